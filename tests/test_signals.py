"""How the server ends, and what a stalled output behind it costs: real processes and real signals."""

import os
import signal
import socket
import time

import pytest

from programs import CLIENT_ID, HOST, script

from numseq.server import SESSION_TIMEOUT

PATIENCE = 5.0  # seconds that one socket operation may take
LATE = 0.5  # seconds that a busy machine may add
LINE = len("Purging client info for: %s\n" % CLIENT_ID)
PIPE = 1024 * 1024  # bytes that a pipe and the lines that wait take together, at most

lesson = pytest.mark.lesson
both = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture
def say(sockets):
    """A function: a connection to a port that has said so much; the socket."""

    def connect(port, data):
        peer = socket.create_connection((HOST, port), PATIENCE)
        sockets.append(peer)
        peer.sendall(data)
        return peer

    return connect


def read_all(peer):
    """All that comes until the end; None in place of a reset."""
    data = b""
    try:
        while True:
            some = peer.recv(65536)
            if not some:
                return data
            data += some
    except ConnectionResetError:
        return None


def init(number=0, n=10):
    return b"INIT,%08d-0000-0000-0000-000000000000,%d,5;" % (number, n)


def refused(port):
    """Whether nobody listens there, within a second."""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            socket.create_connection((HOST, port), PATIENCE).close()
        except OSError:
            return True
        time.sleep(0.005)
    return False


@lesson(28)
@both
def test_signal_stops_accepting_and_lets_running_sessions_end(programs, say, number):
    server = programs.server()
    peer = say(server.port, init())
    assert peer.recv(100) == b"ACK;"
    server.process.send_signal(number)
    assert refused(server.port)
    peer.sendall(b"RECV,0;RECV,1;FIN;")
    answers = read_all(peer).split(b";")
    assert [answer[:3] for answer in answers] == [b"NUM", b"NUM", b"FAC", b""]
    ended = server.wait()
    assert (ended.status, ended.err) == (0, "")


@lesson(28)
@both
def test_idle_session_delays_the_end_by_its_timeout_at_most(programs, say, number):
    """It has its second, and not more."""
    server = programs.server()
    peer = say(server.port, init())
    assert peer.recv(100) == b"ACK;"
    begin = time.monotonic()
    server.process.send_signal(number)
    assert server.wait().status == 0
    assert time.monotonic() - begin < SESSION_TIMEOUT + LATE
    assert read_all(peer) is None


@lesson(28)
@both
def test_second_signal_ends_the_server_at_once(programs, say, number):
    server = programs.server("--session-timeout", 15)
    peer = say(server.port, init())
    assert peer.recv(100) == b"ACK;"
    server.process.send_signal(number)
    assert refused(server.port)
    begin = time.monotonic()
    server.process.send_signal(number)
    ended = server.wait()
    assert (ended.status, ended.err) == (0, "")
    assert time.monotonic() - begin < 1 + LATE
    assert read_all(peer) is None


@both
def test_server_without_sessions_ends_at_once(programs, number):
    server = programs.server()
    begin = time.monotonic()
    server.process.send_signal(number)
    ended = server.wait()
    assert (ended.status, ended.err) == (0, "")
    assert time.monotonic() - begin < LATE


@lesson(30)
def test_full_output_pipe_delays_nobody_and_dropped_lines_are_counted(programs, say):
    """Nobody reads its lines: clients are served nevertheless, and the reader who comes late is told how many are missing."""
    out, into = os.pipe()
    try:
        fill_pipe(into)
        server = programs.start_client("0", "--retention", "0.01", out=into, TEST_MODE="1", run=script("server"))
        port = port_of(server.process.pid)
        count = PIPE // LINE // 8
        for first in range(0, count, 50):
            for peer in [say(port, init(first + number) + b"FIN;") for number in range(50)]:
                assert read_all(peer).startswith(b"ACK;FAC,")
                peer.close()
        time.sleep(0.1)
        text = drained(out)
        assert "lines are missing here: nobody read them in time" in text
        server.process.terminate()
        assert server.wait().status == 0
    finally:
        os.close(out)
        os.close(into)


def fill_pipe(file):
    """Until it takes no more."""
    os.set_blocking(file, False)
    for size in 4096, 1:
        try:
            while True:
                os.write(file, b"x" * size)
        except BlockingIOError:
            pass
    os.set_blocking(file, True)


def port_of(process):
    """The port on which a process listens, of which nobody can read the first line: as /proc has it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        inodes = set()
        for name in os.listdir("/proc/%d/fd" % process):
            try:
                inodes.add(os.readlink("/proc/%d/fd/%s" % (process, name)))
            except OSError:
                pass
        with open("/proc/%d/net/tcp" % process) as table:
            for line in list(table)[1:]:
                fields = line.split()
                if fields[3] == "0A" and "socket:[%s]" % fields[9] in inodes:
                    return int(fields[1].rpartition(":")[2], 16)
        time.sleep(0.01)
    return pytest.fail("it does not listen")


def drained(file):
    """All that comes out of a pipe until nothing does for a moment."""
    os.set_blocking(file, False)
    text = b""
    idle = 0
    while idle < 20:
        try:
            text += os.read(file, 65536)
            idle = 0
        except BlockingIOError:
            idle += 1
            time.sleep(0.02)
    return text.decode("ascii")
