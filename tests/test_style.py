"""What a linter would check, on the syntax trees of all files: names, docstrings, line length."""

import ast
import collections
import glob
import os

import pytest

from helpers import ROOT

LINE_MOST = 110  # characters
NAME_MOST = 70  # characters of a test's name
FILES = sorted(os.path.relpath(path, ROOT)
               for pattern in ("numseq/*.py", "tests/*.py", "bench/*.py", "tools/*.py", "*.py")
               for path in glob.glob(os.path.join(ROOT, pattern)))
PACKAGE = [path for path in FILES if path.startswith("numseq" + os.sep)]
TESTS = [path for path in FILES if os.path.basename(path).startswith("test_")]
# Methods of the protocols of loop.py, stream.py and store.py: described there, and implemented elsewhere.
PROTOCOL = {"fileno", "on_events", "received", "closed", "connected", "take_up", "settle", "abort",
            "create", "open", "release", "close"}
DEFINITIONS = ast.FunctionDef, ast.ClassDef


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def tree_of(path):
    return ast.parse(read(path), path)


def names_used(tree):
    """Every name that a tree uses: as a variable, an attribute, an argument, an import or a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def names_stored(node):
    """The names bound by an assignment.

    A tuple of targets is left out, because some of them may be unused.
    """
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


@pytest.mark.parametrize("path", FILES)
def test_lines_are_at_most_110_characters_long(path):
    assert [number for number, line in enumerate(read(path).split("\n"), 1) if len(line) > LINE_MOST] == []


@pytest.mark.parametrize("path", FILES)
def test_every_import_is_used(path):
    tree = tree_of(path)
    imported = [alias.asname or alias.name.partition(".")[0] for node in ast.walk(tree)
                if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    read_names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    exported = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
                and isinstance(node.value, str)}
    assert [name for name in imported if name not in read_names | exported] == []


def body_of(function):
    """The nodes of a function, without those of classes in it, whose names are attributes."""
    nodes = [function]
    for node in nodes:
        nodes += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.ClassDef)]
    return nodes


@pytest.mark.parametrize("path", FILES)
def test_every_local_variable_is_used(path):
    unused = []
    for function in ast.walk(tree_of(path)):
        if isinstance(function, ast.FunctionDef):
            nodes = list(ast.walk(function))
            used = {node.id for node in nodes
                    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store)}
            used.update(*(node.names for node in nodes if isinstance(node, (ast.Global, ast.Nonlocal))))
            unused += [name for node in body_of(function) for name in names_stored(node)
                       if name not in used and not name.startswith("_")]
    assert unused == []


def test_every_name_of_a_module_is_used_somewhere():
    used = {name for path in FILES for name in names_used(tree_of(path))}
    used |= {"time_limit", "signal_handlers"}  # of all tests
    unused = []
    for path in FILES:
        for node in tree_of(path).body:
            names = [node.name] if isinstance(node, DEFINITIONS) else names_stored(node)
            unused += ["%s: %s" % (path, name) for name in names
                       if name not in used and not name.startswith(("test_", "pytest", "__"))]
    assert unused == []


@pytest.mark.parametrize("path", PACKAGE)
def test_everything_public_has_a_docstring(path):
    tree = tree_of(path)
    public = [(path, tree)] + [(node.name, node) for node in tree.body if isinstance(node, DEFINITIONS)]
    for name, node in list(public):
        if isinstance(node, ast.ClassDef):
            public += [("%s.%s" % (name, each.name), each) for each in node.body
                       if isinstance(each, DEFINITIONS) and each.name not in PROTOCOL]
    assert [name for name, node in public
            if not name.rpartition(".")[2].startswith("_") and not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", PACKAGE)
def test_no_f_string_is_in_the_package(path):
    assert [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.JoinedStr)] == []


@pytest.mark.parametrize("path", TESTS)
def test_test_names_are_unique_and_at_most_70_characters_long(path):
    names = [node.name for node in ast.walk(tree_of(path))
             if isinstance(node, DEFINITIONS) and node.name.startswith("test_")]
    assert [name for name, count in collections.Counter(names).items() if count > 1 or len(name)
            > NAME_MOST] == []
