"""Text that waits for its reader: every byte arrives, in order, and a signal or a deadline ends the wait."""

import errno
import os
import signal
import socket
import sys
import threading

import pytest

from helpers import Clock, fill_pipe, run_python

from numseq import signals, writer
from numseq.writer import OutputFailed, Patience, Stopped, Unread, Writer

LARGE = b"".join(b"%d\n" % number for number in range(100000))


pytestmark = pytest.mark.usefixtures("no_signals")


@pytest.fixture
def no_signals():
    """Forgets at the end which signals came."""
    yield
    del signals.arrived[:]


@pytest.fixture
def pipe():
    """(reading, writing): the numbers of a pipe's ends."""
    ends = list(os.pipe())
    yield ends
    for file in ends:
        try:
            os.close(file)
        except OSError:
            pass


class Reader(threading.Thread):
    """Reads a file to its end, a little at a time."""

    def __init__(self, file, size):
        super().__init__()
        self.data = b""
        self._file = file
        self._size = size
        self.start()

    def run(self):
        while True:
            data = os.read(self._file, self._size)
            if not data:
                return
            self.data += data


class Impatience(Patience):
    """Gives up at the nth look, and counts them."""

    def __init__(self, looks=1, then=None):
        super().__init__()
        self.looks = looks
        self.then = then

    def look(self):
        self.looks -= 1
        if not self.looks:
            if self.then is None:
                raise Stopped
            self.then()
        super().look()


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("size", [100, 65536])
def test_slow_reader_of_a_pipe_gets_every_byte(pipe, blocking, size):
    reading, writing = pipe
    os.set_blocking(writing, blocking)
    reader = Reader(reading, size)
    Writer(writing).write(LARGE)
    assert os.get_blocking(writing) is blocking, "others have the pipe open as well"
    os.close(writing)
    reader.join()
    assert reader.data == LARGE


@pytest.mark.parametrize("blocking", [True, False])
def test_slow_reader_of_a_socket_gets_every_byte(blocking):
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(blocking)
        reader = Reader(there.fileno(), 1000)
        Writer(here.fileno()).write(LARGE)
        here.close()
        reader.join()
    assert reader.data == LARGE


def test_terminal_gets_every_byte(monkeypatch):
    pty = pytest.importorskip("pty")
    here, there = pty.openpty()
    os.set_blocking(there, False)
    got = []

    def read():
        while sum(map(len, got)) < len(LARGE) + LARGE.count(b"\n"):
            got.append(os.read(here, 512))

    reader = threading.Thread(target=read)
    reader.start()
    Writer(there).write(LARGE)
    reader.join()
    os.close(here)
    os.close(there)
    assert b"".join(got).replace(b"\r\n", b"\n") == LARGE


def test_terminal_that_nobody_reads_does_not_block():
    pty = pytest.importorskip("pty")
    here, there = pty.openpty()
    for _ in range(2):  # full, or nearly so
        with pytest.raises(Stopped):
            Writer(there, Impatience(3)).write(LARGE)
        os.read(here, 1)
    assert os.get_blocking(there), "others have the terminal open as well"
    os.close(here)
    os.close(there)


def test_file_gets_all_in_one_write(tmp_path, monkeypatch):
    sizes = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: (sizes.append(len(data)), real(file, data))[1])
    with open(str(tmp_path / "file"), "wb", buffering=0) as file:
        Writer(file.fileno()).write(LARGE)
    assert sizes == [len(LARGE)] and (tmp_path / "file").read_bytes() == LARGE


def test_lines_are_collected_until_one_is_flushed(pipe):
    reading, writing = pipe
    os.set_blocking(reading, False)
    output = Writer(writing)
    output.line("one", flush=False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 100)
    output.line("two")
    assert os.read(reading, 100) == b"one\ntwo\n"
    output.line("three", flush=False)
    output.flush()
    assert os.read(reading, 100) == b"three\n"


def test_lines_that_nobody_flushes_do_not_grow_without_end(tmp_path):
    with open(str(tmp_path / "file"), "wb") as file:
        output = Writer(file.fileno())
        for _ in range(writer.BUFFER_MOST // 100 + 1):
            output.line("x" * 99, flush=False)
    assert (tmp_path / "file").stat().st_size > writer.BUFFER_MOST - 100


def test_line_is_printable_ascii(pipe):
    Writer(pipe[1]).line("\u00e9\n\x1b[31m")
    assert os.read(pipe[0], 100) == b"\\xe9\\n\\x1b[31m\n"


def test_nowhere_takes_everything_without_a_wait():
    class Waits:
        look = None  # calling it would fail

    assert Writer(None, Waits()).write(LARGE) is None
    assert writer.put_text(None, "text") is None


# ---- the wait


def test_full_pipe_is_waited_for_and_then_written(pipe):
    reading, writing = pipe
    fill_pipe(writing)
    drained = []
    output = Writer(writing, Impatience(looks=2, then=lambda: drained.append(os.read(reading, 1 << 20))))
    output.write(b"after")
    assert len(drained) == 1 and os.read(reading, 100) == b"after"


@pytest.mark.parametrize("blocking", [True, False])
def test_signal_ends_the_wait_and_the_rest_can_be_written_later(pipe, blocking):
    reading, writing = pipe
    fill_pipe(writing)
    os.set_blocking(writing, blocking)
    output = Writer(writing, Impatience(looks=2, then=lambda: signals.remember(signal.SIGTERM)))
    with pytest.raises(Stopped):
        output.write(b"after")
    os.read(reading, 1 << 20)
    output.flush()
    assert os.read(reading, 100) == b"after"


def test_signal_in_the_middle_of_a_long_text_loses_nothing(pipe):
    reading, writing = pipe
    output = Writer(writing, Impatience(looks=1))
    with pytest.raises(Stopped):
        output.write(LARGE)
    reader = Reader(reading, 65536)
    output.flush()
    os.close(writing)
    reader.join()
    assert reader.data == LARGE


def test_signal_that_came_earlier_does_not_stop_what_can_be_written(pipe):
    signals.remember(signal.SIGINT)
    Writer(pipe[1]).write(b"now")
    assert os.read(pipe[0], 100) == b"now"


def test_deadline_ends_the_wait(pipe):
    clock = Clock()
    fill_pipe(pipe[1])
    patience = Patience(10, clock)
    patience.look()
    clock.advance(10)
    with pytest.raises(Stopped):
        Writer(pipe[1], patience).write(b"late")


def test_last_words_have_their_time_and_no_more():
    clock = Clock()
    signals.remember(signal.SIGINT)
    patience = Patience(clock=clock)
    with pytest.raises(Stopped):
        patience.look()
    patience.last_words()
    patience.look()
    clock.advance(writer.LAST_WORDS)
    patience.last_words()
    with pytest.raises(Stopped):
        patience.look()


def test_second_signal_ends_the_last_words_too():
    signals.remember(signal.SIGINT)
    patience = Patience(clock=Clock())
    patience.last_words()
    patience.look()
    signals.remember(signal.SIGINT)
    with pytest.raises(Stopped):
        patience.look()


def test_file_that_is_ready_and_takes_nothing_does_not_spin(pipe, monkeypatch):
    rests = []
    monkeypatch.setattr(writer.time, "sleep", rests.append)
    real = os.write
    refused = [True, True]

    def write(file, data):
        if refused:
            refused.pop()
            raise BlockingIOError(errno.EAGAIN, "")
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    Writer(pipe[1]).write(b"data")
    monkeypatch.undo()
    assert rests == [writer.REST] * 2 and os.read(pipe[0], 100) == b"data"


# ---- failures


def test_reader_that_has_gone_is_told_apart(pipe):
    os.close(pipe[0])
    with pytest.raises(Unread) as failed:
        Writer(pipe[1]).write(b"data")
    assert failed.value.status == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_failure_names_the_output_and_drops_what_is_left():
    with open("/dev/full", "wb", buffering=0) as full:
        output = Writer(full.fileno(), name="'x'")
        with pytest.raises(OutputFailed) as failed:
            output.write(b"data")
        assert (str(
            failed.value), failed.value.status) == ("'x' cannot be written: " + os.strerror(errno.ENOSPC), 74)
        output.flush()


def test_stream_that_is_no_file_is_written_as_text(capsys):
    writer.put_text(sys.stdout, "to a test\n")
    assert capsys.readouterr().out == "to a test\n"


def test_report_says_why_and_returns_the_status(capfd):
    assert writer.report("client.py", OutputFailed("x cannot be written: full")) == 74
    assert writer.report("client.py", Unread("nobody reads x")) == 141
    assert capfd.readouterr().err == "client.py: x cannot be written: full\n"


def test_writer_works_where_there_is_no_poll():
    assert run_python("import select; select.__dict__.pop('poll', None)\n"
                      "from numseq.writer import Writer\nWriter(1).line('said')") == "said\n"
