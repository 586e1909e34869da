"""What the package may be written with: modules that every small build has, and the syntax of Python 3.6."""

import ast
import os
import re
import sys

import pytest

from helpers import ROOT

ROW = re.compile(r"^\| `(\w+)` \| .+? \|((?: `\w+`)*) \|$", re.MULTILINE)  # of the table of rooms
PACKAGE = os.path.join(ROOT, "numseq")
MODULES = sorted(name[:-3] for name in os.listdir(PACKAGE) if name.endswith(".py"))

# In Debian's python3.11-minimal, OpenWrt's python3-light, OpenEmbedded's python3-core and python3-io, and
# Buildroot's, from Python 3.6 to 3.14.
EVERYWHERE = frozenset("""
    abc argparse array binascii bisect collections contextlib enum errno functools hashlib heapq io ipaddress
    itertools math operator os random re select selectors signal socket stat string struct subprocess sys
    tempfile textwrap time types zipimport
""".split())
# Only some of them have these: to be imported in a `try`, with a fallback.
TRIED = frozenset(["_md5", "_sha3", "resource", "_signal"])
NEWER_SYNTAX = (getattr(ast, "NamedExpr", ()), getattr(ast, "Match", ()), getattr(ast, "TryStar", ()))


def tree(module):
    with open(os.path.join(PACKAGE, module + ".py"), "rb") as file:
        source = file.read()
    if sys.version_info < (3, 8):
        return ast.parse(source)
    return ast.parse(source, feature_version=(3, 6))


def imports(module):
    """(level, name of the top, whether it is tried) of each import, wherever it stands."""
    found = []

    def visit(node, tried):
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
                visit(child, True)
            for child in node.handlers + node.orelse + node.finalbody:
                visit(child, tried)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, tried)

    visit(tree(module), False)
    return found


def _catches_import_error(handler):
    return isinstance(handler.type, ast.Name) and handler.type.id == "ImportError"


def is_its_own(level, name):
    """Whether an import is of the package itself, by name, as a program started as a file does it."""
    return name == "numseq" if not level else level == 1 and name in MODULES


def rooms():
    """{module: the modules that it imports}, in the order of the table in docs/design.md."""
    with open(os.path.join(ROOT, "docs", "design.md"), encoding="utf-8") as file:
        return {name: set(re.findall(r"\w+", imported)) for name, imported in ROW.findall(file.read())}


def own_imports(module):
    """The modules of the package that a module imports.

    A store is imported by its name when it is asked for.
    """
    return {name for level, name, _ in imports(module) if level
            and not (module == "store" and name.startswith("store_"))}


def test_table_of_rooms_has_every_module_once():
    assert sorted(rooms()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_table_of_rooms_names_what_a_module_imports(module):
    assert rooms()[module] == own_imports(module)


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_from_above_them(module):
    order = list(rooms())
    assert [name for name in own_imports(module) if order.index(name) >= order.index(module)] == []


@pytest.mark.parametrize("module", MODULES)
def test_only_modules_that_every_small_build_has_are_imported(module):
    assert [name for level, name, tried in imports(module)
            if not (is_its_own(level, name) or not level
                    and (name in EVERYWHERE or tried and name in TRIED))] == []


def test_imports_are_found_wherever_they_stand():
    assert (0, "selectors", False) in imports("loop")
    assert (0, "_md5", True) in imports("sequence")  # inside a try
    assert (0, "hashlib", False) in imports("sequence")  # inside a function
    assert (1, "protocol", False) in imports("server")


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


@pytest.mark.skipif(not hasattr(sys, "stdlib_module_names"), reason="before 3.10 the names are not known")
def test_no_module_run_as_a_file_hides_one_of_the_standard_library():
    # Then the package's own folder comes first in sys.path.
    assert set(MODULES) & set(sys.stdlib_module_names) == set()
