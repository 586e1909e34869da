"""The table of lessons in docs/lessons.md against the tests that carry their marks."""

import ast
import os
import re

from helpers import ROOT

TESTS = os.path.join(ROOT, "tests")
ROW = re.compile(r"^\| (\d+) \| .+ \| ((?:test_\w+ ?)+) \|$", re.MULTILINE)


def marked():
    """{number: {names of the files whose tests carry it}}"""
    found = {}
    for name in os.listdir(TESTS):
        if name.startswith("test_") and name.endswith(".py"):
            with open(os.path.join(TESTS, name), encoding="utf-8") as file:
                for node in ast.walk(ast.parse(file.read())):
                    if isinstance(node, ast.Call):
                        called = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
                        if called == "lesson":
                            found.setdefault(node.args[0].value, set()).add(name[:-len(".py")])
    return found


def rows():
    """{number: {names of the test files}} of the table."""
    with open(os.path.join(ROOT, "docs", "lessons.md"), encoding="utf-8") as file:
        return {int(number): set(names.split()) for number, names in ROW.findall(file.read())}


def test_every_lesson_names_the_files_of_its_tests_and_no_others():
    assert rows() == marked()


def test_lessons_are_numbered_from_1_without_a_gap():
    assert list(rows()) == list(range(1, len(rows()) + 1))
    assert len(rows()) >= 30
