"""What the package may be written with: modules that every small build has, and the syntax of Python 3.6."""

import ast
import functools
import os
import re
import sys

import pytest

from helpers import ROOT

ROW = re.compile(r"^\| `(\w+)` \| .+? \|((?: `\w+`)*) \|$", re.MULTILINE)  # of the table of modules
PACKAGE = os.path.join(ROOT, "numseq")
MODULES = sorted(name[:-3] for name in os.listdir(PACKAGE) if name.endswith(".py"))

# In Debian's python3.11-minimal, OpenWrt's python3-light, OpenEmbedded's python3-core and python3-io, and
# Buildroot's, from Python 3.6 to 3.15.
EVERYWHERE = frozenset("""
    abc argparse array binascii bisect collections contextlib enum errno functools hashlib heapq io ipaddress
    itertools math operator os re select selectors signal socket stat string struct subprocess sys
    tempfile textwrap time types zipimport
""".split())
# Only some of them have these: to be imported in a `try`, with a fallback.
TRIED = frozenset(["_md5", "_sha3", "resource", "_signal", "_socket"])
# In some of them, and needed for one purpose: imported by the function that needs them.
LATE = frozenset(["random"])
# Private functions of the standard library that are used where they exist; elsewhere something else is.
TRIED_PRIVATE = frozenset(["_accept"])
DOCUMENTED = frozenset(["_exit"])  # public in spite of its name
NEWER_SYNTAX = (getattr(ast, "NamedExpr", ()), getattr(ast, "Match", ()), getattr(ast, "TryStar", ()))


@functools.lru_cache(maxsize=None)
def tree(module):
    with open(os.path.join(PACKAGE, module + ".py"), "rb") as file:
        source = file.read()
    if sys.version_info < (3, 8):
        return ast.parse(source)
    return ast.parse(source, feature_version=(3, 6))


def imports(module):
    """(level, name of the top, how) of each import, wherever it stands; how is "tried", "late" or None."""
    found = []

    def visit(node, tried):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            tried = tried or "late"
        if isinstance(node, ast.Import):
            found.extend((0, alias.name.partition(".")[0], tried) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found.extend((node.level, name, tried) for name in names)
            else:
                found.append((0, node.module.partition(".")[0], tried))
        elif isinstance(node, ast.Try) and any(_catches_import_error(handler) for handler in node.handlers):
            for child in node.body:
                visit(child, "tried")
            for child in node.handlers + node.orelse + node.finalbody:
                visit(child, tried)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, tried)

    visit(tree(module), None)
    return found


def _catches_import_error(handler):
    return isinstance(handler.type, ast.Name) and handler.type.id == "ImportError"


def is_its_own(level, name):
    """Whether an import is of the package itself, by name, as a program started as a file does it."""
    return name == "numseq" if not level else level == 1 and name in MODULES


def imports_in_table():
    """{module: the modules that it imports}, in the order of the table in docs/design.md."""
    with open(os.path.join(ROOT, "docs", "design.md"), encoding="utf-8") as file:
        return {name: set(re.findall(r"\w+", imported)) for name, imported in ROW.findall(file.read())}


def own_imports(module):
    """The modules of the package that a module imports.

    A store is imported by its name when it is asked for.
    """
    return {name for level, name, _ in imports(module) if level
            and not (module == "store" and name.startswith("store_"))}


def test_table_of_modules_has_every_module_once():
    assert sorted(imports_in_table()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_table_of_modules_names_what_a_module_imports(module):
    assert imports_in_table()[module] == own_imports(module)


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_from_above_them(module):
    order = list(imports_in_table())
    assert [name for name in own_imports(module) if order.index(name) >= order.index(module)] == []


@pytest.mark.parametrize("module", MODULES)
def test_only_modules_that_every_small_build_has_are_imported(module):
    assert [name for level, name, how in imports(module)
            if not (is_its_own(level, name) or not level and (
                name in EVERYWHERE or how == "tried" and name in TRIED or how and name in LATE))] == []


def test_imports_are_found_wherever_they_stand():
    assert (0, "selectors", None) in imports("loop")
    assert (0, "_md5", "tried") in imports("sequence")
    assert (0, "hashlib", "late") in imports("sequence")
    assert (1, "protocol", None) in imports("serving")


def private_uses(module):
    """The names that are private in the standard library and used or overridden in a module."""
    top = tree(module)
    library = {alias.asname or alias.name for node in ast.walk(top) if isinstance(node, ast.Import)
               for alias in node.names}
    for node in ast.walk(top):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and _root(node.value) in library:
            yield node.attr  # socket._x, socket.socket._x
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (alias.name for alias in node.names if _is_private(alias.name))
        elif isinstance(node, ast.ClassDef) and any(_root(base) in library for base in node.bases):
            yield from (each.name for each in node.body
                        if isinstance(each, ast.FunctionDef) and _is_private(each.name))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and _is_private(name.value):
                yield name.value


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def _root(node):
    """The name that a chain of attributes begins with, or None."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return getattr(node, "id", None)


@pytest.mark.parametrize("module", MODULES)
def test_private_parts_of_the_standard_library_are_not_relied_on(module):
    assert set(private_uses(module)) - TRIED_PRIVATE - DOCUMENTED == set()


def test_private_parts_are_found_however_they_are_used(tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text("import argparse, os\nos._exit(1)\nos.path._joinrealpath\n"
                                     "class A(argparse.ArgumentParser):\n    def _get_formatter(self): pass\n"
                                     "from socket import _x\ngetattr(os, '_y')\nself._mine\n")
    monkeypatch.setattr("test_imports.PACKAGE", str(tmp_path))
    assert sorted(private_uses("bad")) == ["_exit", "_get_formatter", "_joinrealpath", "_x", "_y"]


@pytest.mark.parametrize("module", MODULES)
def test_syntax_is_that_of_python_3_6(module):
    tree(module)


@pytest.mark.parametrize("module", MODULES)
def test_later_syntax_is_not_used(module):
    for node in ast.walk(tree(module)):
        assert not isinstance(node, NEWER_SYNTAX), "line %d" % node.lineno
        assert not (isinstance(node, ast.arguments)
                    and getattr(node, "posonlyargs", None)), "positional-only arguments"
        assert not (isinstance(node, ast.ImportFrom) and node.module == "__future__"), "line %d" % node.lineno


@pytest.mark.parametrize("name", ["server", "client"])
def test_file_that_is_compiled_at_each_start_holds_only_the_start(name):
    docstring, start = tree(name).body
    assert isinstance(docstring, ast.Expr) and ast.unparse(start.test) == "__name__ == '__main__'"


@pytest.mark.skipif(not hasattr(sys, "stdlib_module_names"), reason="before 3.10 the names are not known")
def test_no_module_run_as_a_file_hides_one_of_the_standard_library():
    # Then the package's own folder comes first in sys.path.
    assert set(MODULES) & set(sys.stdlib_module_names) == set()
