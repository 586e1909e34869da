"""Lines on a standard stream: a reader that stalls never blocks the loop, and lost lines are counted.

All of it is lesson 30.
"""

import errno
import io
import os
import re
import resource
import socket

import pytest

from helpers import Recorder, fill_pipe, is_idle, run_python, turn_until
from numseq import console as module
from numseq.console import Console, file_of, open_standard_streams

pytestmark = pytest.mark.lesson(30)

TEXT = "line %06d of the many that are written here"
PIPE = 64 * 1024  # bytes that the kernel keeps in a pipe on Linux; a terminal keeps less
MISSING = re.compile(r"(\d+) lines are missing here: nobody read them in time")


@pytest.fixture
def console_on(loop):
    """A function: a Console for a file, or for None."""
    consoles = []

    def make(file, **options):
        consoles.append(Console(loop, file_of(file), **options))
        return consoles[-1]

    yield make
    for console in consoles:
        console.close()


@pytest.fixture
def pipe():
    """(to read, to write): both ends of a pipe, as unbuffered files."""
    theirs, ours = os.pipe()
    with io.FileIO(theirs, "r") as theirs, io.FileIO(ours, "w") as ours:
        yield theirs, ours


@pytest.fixture
def terminal():
    """(user's end, program's end) of a pseudo-terminal in raw mode, as unbuffered files."""
    pty = pytest.importorskip("pty")
    tty = pytest.importorskip("tty")
    try:
        theirs, ours = pty.openpty()
    except OSError as error:
        pytest.skip("there are no pseudo-terminals here: %s" % error)
    with io.FileIO(theirs, "r+") as theirs, io.FileIO(ours, "r+") as ours:
        tty.setraw(ours.fileno())
        yield theirs, ours


def write_lines(console, first, count):
    for number in range(first, first + count):
        console.line(TEXT % number)


def reader_of(file):
    """A function that reads what is there without waiting; returns all text read so far."""
    os.set_blocking(file.fileno(), False)
    data = bytearray()

    def read():
        try:
            while True:
                some = file.read(65536)
                if not some:  # None where there is nothing now
                    break
                data.extend(some)
        except OSError:  # a terminal whose other end has gone
            pass
        return data.decode("ascii")

    return read


def check_lines(text, count):
    """Checks that each of `count` lines is there, whole and in order, or counted as missing at its place."""
    expected = 0
    for line in text.splitlines(True):
        assert line.endswith("\n")
        missing = MISSING.match(line)
        if missing:
            expected += int(missing.group(1))
        else:
            assert line == TEXT % expected + "\n"
            expected += 1
    assert expected == count


# ---- pipes and terminals


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_stopped_reader_does_not_delay_the_loop(loop, request, console_on, make_pair, kind):
    """Lines wait, excess ones are dropped and counted, and connections are served meanwhile."""
    theirs, ours = request.getfixturevalue(kind)
    console = console_on(ours)
    handler = Recorder()
    _, peer = make_pair(handler)
    for turn in range(50):
        write_lines(console, turn * 100, 100)
        peer.send(b"x")
        loop.turn()
    assert len(handler.data) == 50
    assert is_idle(loop)
    assert console.dropped > 0
    read = reader_of(theirs)
    turn_until(loop, lambda: MISSING.search(read()))
    assert len(read()) <= module.WAITING_MOST + PIPE + 100, "too many bytes waited"
    check_lines(read(), 5000)
    assert console.dropped == 0
    write_lines(console, 0, 1)
    turn_until(loop, lambda: read().endswith(TEXT % 0 + "\n"))
    assert is_idle(loop)


def test_steady_reader_gets_every_line(loop, console_on, pipe):
    theirs, ours = pipe
    console = console_on(ours)
    read = reader_of(theirs)
    for turn in range(50):
        write_lines(console, turn * 100, 100)
        loop.turn()
        read()
    turn_until(loop, lambda: len(read().splitlines()) == 5000)
    check_lines(read(), 5000)


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_output_written_in_a_turn_is_bounded(loop, request, console_on, monkeypatch, kind):
    theirs, ours = request.getfixturevalue(kind)
    console = console_on(ours)
    sizes = []
    plain = os.write
    monkeypatch.setattr(os, "write",
                        lambda file, data: sizes.append((loop.turns, len(data))) or plain(file, data))
    write_lines(console, 0, 1000)
    read = reader_of(theirs)
    turn_until(loop, lambda: len(read().splitlines()) == 1000)
    assert max(size for _, size in sizes) <= module.WRITE_MOST
    assert len({turn for turn, _ in sizes}) == len(sizes)


def test_lines_of_a_turn_go_out_in_one_write(loop, console_on, pipe, monkeypatch):
    theirs, ours = pipe
    console = console_on(ours)
    sizes = []
    plain = os.write
    monkeypatch.setattr(os, "write", lambda file, data: sizes.append(len(data)) or plain(file, data))
    write_lines(console, 0, 100)
    assert sizes == []
    loop.turn()
    assert len(sizes) == 1
    check_lines(reader_of(theirs)(), 100)
    assert is_idle(loop)


@pytest.mark.parametrize("when", ["before", "idle", "waiting"])
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_lost_reader_neither_ends_the_loop_nor_makes_it_spin(loop, request, console_on, kind, when):
    theirs, ours = request.getfixturevalue(kind)
    if when == "before":
        theirs.close()
    console = console_on(ours)
    if when == "waiting":
        write_lines(console, 0, 5000)
        assert is_idle(loop)
    if when != "before":
        theirs.close()
    for _ in range(3):
        write_lines(console, 0, 10)
        assert is_idle(loop)
    assert loop.errors == []
    assert len(loop.poller.selector.get_map()) == 0


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"),
                    reason="without /proc what was opened cannot be opened again")
def test_shared_file_is_never_made_non_blocking(loop, request, console_on, kind):
    """The mode is shared with the shell, which would keep it even if the program is killed."""
    theirs, ours = request.getfixturevalue(kind)
    console = console_on(ours)
    assert os.get_blocking(ours.fileno())
    write_lines(console, 0, 5000)
    assert is_idle(loop)
    assert os.get_blocking(ours.fileno())
    console.close()
    assert os.get_blocking(ours.fileno())


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_without_proc_the_file_is_non_blocking_until_closed(loop, request, console_on, monkeypatch, kind):
    def no_proc(*_):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    theirs, ours = request.getfixturevalue(kind)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_proc)
        console = console_on(ours)
    write_lines(console, 0, 5000)
    assert is_idle(loop)
    read = reader_of(theirs)
    turn_until(loop, lambda: MISSING.search(read()))
    check_lines(read(), 5000)
    console.close()
    assert os.get_blocking(ours.fileno())


def test_file_keeps_the_blocking_mode_it_had(loop, console_on, sockets):
    sockets.extend(socket.socketpair())
    for blocking in True, False:
        sockets[0].setblocking(blocking)
        console = console_on(sockets[0])
        console.line("x")
        loop.turn()
        assert sockets[1].recv(10) == b"x\n"
        console.close()
        assert os.get_blocking(sockets[0].fileno()) is blocking


def test_socket_behind_it_stays_blocking_for_others_at_every_moment(loop, console_on, sockets):
    sockets.extend(socket.socketpair())
    console = console_on(sockets[0])
    write_lines(console, 0, 20000)
    assert is_idle(loop)
    assert os.get_blocking(sockets[0].fileno())
    sockets[1].setblocking(False)
    data = bytearray()

    def complete():
        try:
            data.extend(sockets[1].recv(65536))
        except BlockingIOError:
            pass
        return MISSING.search(data.decode("ascii"))

    turn_until(loop, complete)
    check_lines(data.decode("ascii"), 20000)


def test_fifo_is_written_to_again_once_another_reads_it(loop, console_on, tmp_path):
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(path, "wb", buffering=0) as ours:
        console = console_on(ours)
        console.line("one")
        assert is_idle(loop)
        assert os.read(first, 100) == b"one\n"
        os.close(first)
        for _ in range(3):
            console.line("lost")
            assert is_idle(loop)
        second = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        console.line("two")
        assert is_idle(loop)
        assert os.read(second, 100) == b"3 lines are missing here: nobody read them in time\ntwo\n"
        os.close(second)
        assert console.dropped_ever == 3


def test_failure_of_watching_costs_lines_and_not_the_console(loop, console_on, pipe, monkeypatch):
    theirs, ours = pipe
    console = console_on(ours)

    def refuse(watched, interest):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "watch", refuse)
        console.line("x")
        loop.turn()
    assert {error.errno for error in loop.errors} == {errno.ENOSPC}
    del loop.errors[:]
    console.line("y")
    assert is_idle(loop)
    assert reader_of(theirs)().endswith("y\n")


def test_device_that_says_it_is_ready_but_takes_nothing_rests(loop, console_on, pipe, monkeypatch):
    theirs, ours = pipe
    console = console_on(ours)

    def full(file, data):
        raise BlockingIOError()

    monkeypatch.setattr(os, "write", full)
    console.line("x")
    began = loop.poller.selector.clock()
    for _ in range(100):
        loop.turn()
    assert loop.poller.selector.clock() - began > 2
    monkeypatch.undo()
    read = reader_of(theirs)
    for _ in range(10):
        loop.turn()
    assert read() == "x\n"


def test_closed_console_closes_its_pipe(loop, console_on, pipe):
    theirs, ours = pipe
    console = console_on(ours)
    console.line("last")
    console.close()
    console.close()
    ours.close()
    assert theirs.read(100) == b"last\n"
    assert theirs.read(100) == b""
    assert len(loop.poller.selector.get_map()) == 0


def test_close_returns_what_the_file_did_not_take(loop, console_on, pipe):
    theirs, ours = pipe
    console = console_on(ours)
    write_lines(console, 0, 3000)
    loop.turn()
    left = console.close()
    written = reader_of(theirs)()
    assert (written + left.decode("ascii")).startswith(TEXT % 0 + "\n" + TEXT % 1)
    assert left.endswith(b"\n")


def test_close_says_how_many_lines_are_missing(loop, console_on, pipe):
    _, ours = pipe
    fill_pipe(ours.fileno())
    console = console_on(ours)
    write_lines(console, 0, 5000)
    check_lines(console.close().decode("ascii"), 5000)


def test_missing_lines_are_told_where_they_are_missing(loop, console_on, pipe):
    theirs, ours = pipe
    fill_pipe(ours.fileno())
    console = console_on(ours)
    write_lines(console, 0, module.WAITING_MOST // (len(TEXT % 0) + 1))
    before = console.dropped
    console.line("x" * len(TEXT % 0) * 2)  # has no room
    console.line("short")  # would have
    read = reader_of(theirs)
    turn_until(loop, lambda: "missing" in read())
    console.line("more")
    turn_until(loop, lambda: "more" in read())
    assert (before, read().splitlines()[-2:]) == (0, [(module.MISSING % 2).decode().strip(), "more"])


def test_line_too_long_to_wait_is_counted_and_later_ones_are_written(loop, console_on, pipe):
    theirs, ours = pipe
    console = console_on(ours)
    console.line("x" * module.WAITING_MOST)
    loop.turn()
    read = reader_of(theirs)
    turn_until(loop, lambda: console.line("later") or "later" in read(), turns=10)
    assert read().splitlines()[0] == (module.MISSING % 1).decode().strip()
    assert is_idle(loop)


def test_line_for_missing_lines_can_be_another(loop, console_on, pipe):
    theirs, ours = pipe
    console = console_on(ours, missing=b'{"missing": %d}\n')
    write_lines(console, 0, 5000)
    loop.turn()
    read = reader_of(theirs)
    turn_until(loop, lambda: read().endswith("}\n"))
    assert re.search(r'\n\{"missing": \d+\}\n$', read())


def test_reader_that_is_lost_is_told(loop, console_on, pipe):
    theirs, ours = pipe
    told = []
    console = console_on(ours, gone=lambda: told.append(True))
    theirs.close()
    for _ in range(3):
        console.line("line")
        loop.turn()
    assert told


def test_close_does_not_wait_for_a_reader(loop, console_on, pipe):
    theirs, ours = pipe
    console = console_on(ours)
    write_lines(console, 0, 5000)
    assert is_idle(loop)
    console.close()  # the test's time limit is what fails it
    assert len(loop.poller.selector.get_map()) == 0


def test_line_after_close_is_ignored(loop, console_on, pipe):
    console = console_on(pipe[1])
    console.close()
    console.line("late")
    loop.turn()
    assert reader_of(pipe[0])() == ""


def test_line_that_is_not_ascii_is_escaped(loop, console_on, pipe):
    console_on(pipe[1]).line("n\xe9 \u20ac \udcff")
    loop.turn()
    assert pipe[0].read(100) == b"n\\xe9 \\u20ac \\udcff\n"


# ---- files and devices


def test_regular_file_gets_every_line_and_is_not_watched(loop, console_on, tmp_path):
    """The lines of one turn exceed one write, and the selector refuses the file, so the rest goes next turn.
    """
    assert 1000 * len(TEXT) > module.WRITE_MOST
    path = tmp_path / "log"
    with path.open("wb") as file:
        console = console_on(file)
        write_lines(console, 0, 1000)
        assert is_idle(loop)
        check_lines(path.read_text(), 1000)
        write_lines(console, 1000, 10)
        console.close()
        check_lines(path.read_text(), 1010)
        assert os.get_blocking(file.fileno())


@pytest.mark.skipif(not os.path.exists(os.devnull), reason="there is no null device")
def test_null_device_takes_any_amount(loop, console_on):
    with open(os.devnull, "wb") as file:
        console = console_on(file)
        for _ in range(4):  # together more than may wait
            write_lines(console, 0, 1000)
            assert is_idle(loop)
        assert console.dropped == 0
        console.close()
    assert loop.errors == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_device_neither_ends_the_loop_nor_makes_it_spin(loop, console_on):
    with open("/dev/full", "wb", buffering=0) as file:
        console = console_on(file)
        for _ in range(3):
            write_lines(console, 0, 1000)
            assert is_idle(loop)
        console.close()
    assert loop.errors == []


def test_lines_go_on_when_a_full_disk_has_room_again(loop, console_on, tmp_path):
    """Dropped lines are counted, and reported once there is room again."""
    path = tmp_path / "log"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("wb") as file:
        console = console_on(file)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            for turn in range(3):
                write_lines(console, turn * 100, 100)
                assert is_idle(loop)
            assert console.dropped > 200
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        console.line("room again")
        assert is_idle(loop)
        text = path.read_text()
        assert "room again\n" in text
        assert MISSING.search(text)
        assert console.dropped == 0
    assert loop.errors == []


# ---- streams that are closed


def test_stream_closed_at_the_start_is_not_written_to(loop, console_on):
    console = console_on(None)
    console.line("to nowhere")
    loop.run()
    assert loop.turns == 0
    console.close()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_no_socket_takes_the_number_of_a_closed_standard_stream(closed):
    result = run_python("""
import os, socket
from numseq.console import open_standard_streams

out = os.dup(1)
for file in {0!r}:
    os.close(file)
open_standard_streams()
number = socket.socket().fileno()
same = [os.fstat(file).st_rdev == os.stat(os.devnull).st_rdev for file in {0!r}]
for file in {0!r}:
    if file:
        os.write(file, b"nowhere")
os.write(out, b"%d %d" % (number, all(same)))
""".format(closed))
    number, same = result.split()
    assert int(number) > 2
    assert same == "1"


def test_open_standard_streams_are_left_alone():
    before = [os.fstat(file)[:3] for file in range(3)]
    open_standard_streams()
    assert [os.fstat(file)[:3] for file in range(3)] == before
