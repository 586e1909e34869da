"""What a client shows on a terminal: progress that fits, and never mixes with a line."""

import errno
import fcntl
import os
import re
import struct
import sys
import termios
import types

import pytest

pty = pytest.importorskip("pty")

from numseq import output  # noqa: E402
from numseq.journal import Journal  # noqa: E402
from numseq.output import ERASE, PROGRESS_PAUSE, Output, Progress  # noqa: E402


MARK = b"\0"


class Terminal:
    """A pseudo-terminal; `file` is the end that a program has."""

    def __init__(self, columns=80):
        self.here, self.file = pty.openpty()
        self.resize(columns)

    def resize(self, columns):
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(self):
        """All that was written since the last call. A mark tells when that has come through."""
        os.writev(self.file, [MARK])
        data = b""
        while not data.endswith(MARK):
            data += os.read(self.here, 65536)
        return data[:-len(MARK)].decode("ascii")

    def close(self):
        os.close(self.here)
        os.close(self.file)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal()
    yield made
    made.close()


@pytest.fixture
def transfer():
    journal = Journal(b"id", 1000, 5)
    return types.SimpleNamespace(journal=journal, drops=0, checksum=None)


@pytest.fixture
def draw(loop, transfer, terminal):
    """A function: lets a Progress draw once, with so many more numbers; returns what it drew."""
    made = []

    def draw_once(numbers=0):
        if not made:
            made.append(Progress(loop, transfer, terminal.file))
        transfer.journal.numbers += bytes(numbers)
        loop.turn()
        return terminal.read()

    yield draw_once
    for progress in made:
        progress.close()


def test_progress_shows_the_share_and_the_speed(draw):
    assert draw() == ERASE + "0 %, 0 numbers/s, waiting, 0 drops"
    assert re.fullmatch(re.escape(ERASE) + r"50 %, \d+ numbers/s, 0 s left, 0 drops", draw(500))


@pytest.mark.parametrize("columns", [1, 2, 10, 20, 34, 35, 200])
def test_progress_fits_the_width_of_the_terminal(draw, terminal, columns):
    terminal.resize(columns)
    shown = draw()[len(ERASE):]
    assert len(shown) == min(columns - 1, len("0 %, 0 numbers/s, waiting, 0 drops"))


def test_progress_follows_a_change_of_the_width(draw, terminal):
    assert len(draw()) > 30
    terminal.resize(12)
    assert draw() == ERASE + "0 %, 0 numb"
    terminal.resize(80)
    assert draw().endswith("0 drops")


def test_terminal_that_does_not_tell_its_width_has_80_columns(terminal):
    terminal.resize(0)
    assert output.width(terminal.file) == 80


@pytest.mark.parametrize("kind", ["dumb", "", None])
def test_no_escapes_are_used_where_the_terminal_knows_none(draw, monkeypatch, kind):
    if kind is None:
        monkeypatch.delenv("TERM")
    else:
        monkeypatch.setenv("TERM", kind)
    first, second = draw(), draw(500)
    assert first == "\r0 %, 0 numbers/s, waiting, 0 drops"
    assert "\x1b" not in second and second.startswith("\r50 %, ")
    assert len(second) >= len(first), "the end of a longer line is still there"


def test_dumb_terminal_is_cleared_by_spaces(loop, transfer, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress(loop, transfer, terminal.file)
    loop.turn()
    shown = terminal.read()
    progress.close()
    assert terminal.read() == "\r" + " " * (len(shown) - 1) + "\r"


def test_nothing_is_drawn_outside_the_foreground(draw, terminal, monkeypatch):
    groups = [os.getpgrp() + 1, os.getpgrp(), os.getpgrp() + 1]
    monkeypatch.setattr(os, "tcgetpgrp", lambda file: groups.pop(0))
    assert draw() == ""
    assert "drops" in draw()
    assert draw() == ""


def test_progress_does_not_wait_for_a_stalled_terminal(loop, transfer, terminal):
    progress = Progress(loop, transfer, terminal.file)
    os.set_blocking(terminal.file, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(terminal.file, b"x" * 1000)
    os.set_blocking(terminal.file, True)
    assert os.read(terminal.here, 10)
    for _ in range(3):
        loop.turn()
    progress.close()
    assert loop.timers() == 0


def test_lost_terminal_ends_only_the_progress(loop, draw, terminal, monkeypatch):
    def gone(file, data):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", gone)
        draw()
    assert loop.timers() == 0


def test_line_clears_the_progress_before_it(loop, transfer, terminal, monkeypatch):
    with os.fdopen(os.dup(terminal.file), "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setattr(sys, "stdout", file)
        shown = Output("client.py")
        shown.show_progress(loop, transfer, True)
        for write in lambda: shown.complain("trouble"), lambda: shown.line("trouble"):
            loop.turn()
            terminal.read()
            write()
            said = terminal.read()
            assert said.startswith(ERASE) and said.endswith("trouble\r\n") and said.count("\n") == 1
        loop.turn()
        assert "drops" in terminal.read()
        shown.close_progress()
        assert terminal.read() == ERASE
        shown.complain("more")
        assert terminal.read() == "client.py: more\r\n"


@pytest.mark.parametrize("wanted, on_terminal", [(False, True), (True, False)])
def test_progress_is_shown_only_if_enabled_and_on_a_terminal(loop, transfer, terminal, monkeypatch, wanted,
                                                             on_terminal):
    with os.fdopen(os.dup(terminal.file), "w") if on_terminal else open(os.devnull, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        shown = Output("client.py")
        shown.show_progress(loop, transfer, wanted)
        assert loop.timers() == 0


def test_progress_is_updated_ten_times_a_second():
    assert PROGRESS_PAUSE == 0.1
