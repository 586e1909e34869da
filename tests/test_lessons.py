"""The index of what hand-written reactors have got wrong, and where the test is that shows this one does not.

`pytest -m lesson` runs them all; a test has the mark `lesson(number)`. All of them apply.
"""

import ast
import os
import re

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.path.join(os.path.dirname(os.path.dirname(HERE)), "shared", "reactor-lessons.md")

LESSONS = {
    1: ("out of files, the listener spins", ["test_loop", "test_hostile"]),
    2: ("a connection that is gone before its accept ends the listener", ["test_loop"]),
    3: ("accepts starve those who are here, or overflow the backlog", ["test_loop"]),
    4: ("writability is asked for with nothing to write, and the loop spins", ["test_loop"]),
    5: ("a peer that has ended its own direction does not get its answers", ["test_loop"]),
    6: ("the last words are thrown away by a reset, because input was unread", ["test_loop", "test_hostile"]),
    7: ("a send that fails hides what the peer had said", ["test_loop"]),
    8: ("an event of a closed connection reaches the one that got its number", ["test_loop"]),
    9: ("closing twice, or within one's own callback, breaks the selector", ["test_loop"]),
    10: ("a hang-up of a connection that is not read spins", ["test_loop"]),
    11: ("cancelled timers stay in the heap", ["test_loop"]),
    12: ("a timer that is moved delays another", ["test_loop"]),
    13: ("equal deadlines compare callbacks", ["test_loop"]),
    14: ("the clock on the wall moves timers", ["test_loop"]),
    15: ("waits round to a busy 0, or to for ever", ["test_loop"]),
    16: ("a timer that sets itself starves the sockets", ["test_loop"]),
    17: ("a flooder starves the others", ["test_loop", "test_hostile"]),
    18: ("messages left in a buffer wait for more input", ["test_loop", "test_faults"]),
    19: ("a client that does not read costs memory without bound", ["test_loop", "test_hostile"]),
    20: ("input without an end is collected", ["test_loop", "test_hostile"]),
    21: ("input a byte at a time costs its square", ["test_loop", "test_faults"]),
    22: ("a signal does not end a wait, or many of them fill the pair", ["test_loop"]),
    23: ("an exception in a callback ends more than its connection", ["test_loop"]),
    24: ("a connect that fails is not seen, or its other addresses not tried", ["test_loop"]),
    25: ("a restart waits for TIME_WAIT", ["test_loop"]),
    26: ("both families do not share a port", ["test_loop"]),
    27: ("answers wait for acknowledgements", ["test_loop"]),
    28: ("the end cuts sessions, or never comes", ["test_loop", "test_signals"]),
    29: ("a connection over the limit is not told, or its place is lost", ["test_hostile"]),
    30: ("output that nobody reads stops the loop", ["test_console", "test_signals"]),
}


def marked():
    """{number: {names of the files whose tests have it}}"""
    found = {}
    for name in os.listdir(HERE):
        if name.startswith("test_") and name.endswith(".py"):
            with open(os.path.join(HERE, name), encoding="utf-8") as file:
                for node in ast.walk(ast.parse(file.read())):
                    called = isinstance(node, ast.Call) and (getattr(node.func, "attr", None) or getattr(node.func, "id", None))
                    if called == "lesson":
                        found.setdefault(node.args[0].value, set()).add(name[:-len(".py")])
    return found


def test_lesson_lacks_its_test_or_its_row():
    assert marked() == {number: set(files) for number, (_, files) in LESSONS.items()}


@pytest.mark.skipif(not os.path.exists(SHARED), reason="the list of lessons is not there")
def test_lesson_is_not_in_the_index():
    with open(SHARED, encoding="utf-8") as file:
        numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", file.read(), re.MULTILINE)]
    assert numbers == sorted(LESSONS)
