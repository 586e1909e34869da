"""How the server ends, and what happens when nobody reads its output: real processes and real signals.

No test asserts that something is fast. A server that does not end is killed by its watchdog, and its status
shows it.
"""

import os
import select
import signal
import socket
import time

import pytest

from helpers import WAIT_SECONDS, fill_pipe, read_all
from numseq.serving import SESSION_TIMEOUT
from programs import CLIENT_ID, HOST, script

LINE = len("Purging client info for: %s\n" % CLIENT_ID)
LINES_BYTES = 128 * 1024  # more than a full pipe and the console's queue leave room for

lesson = pytest.mark.lesson
pytestmark = pytest.mark.slow
both = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def init(number=0, n=10):
    return b"INIT,%08d-0000-0000-0000-000000000000,%d,5;" % (number, n)


def wait_until_refused(port):
    """Waits until nobody listens on the port."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        try:
            socket.create_connection((HOST, port), WAIT_SECONDS).close()
        except OSError:
            return
        time.sleep(0.005)
    pytest.fail("the server still listens")


@pytest.fixture
def begin_session(programs, say):
    """A function: starts a server and one session; returns both."""

    def begin(session_timeout):
        server = programs.server(session_timeout=session_timeout)
        peer = say(server.port, init())
        assert peer.recv(100) == b"ACK;"
        return server, peer

    return begin


@lesson(28)
@both
def test_signal_stops_accepting_and_lets_running_sessions_end(begin_session, number):
    server, peer = begin_session(session_timeout=600)
    server.process.send_signal(number)
    wait_until_refused(server.port)
    peer.sendall(b"RECV,0;RECV,1;FIN;")
    answers = read_all(peer).split(b";")
    assert [answer[:3] for answer in answers] == [b"NUM", b"NUM", b"FAC", b""]
    ended = server.wait()
    assert (ended.status, ended.err) == (0, "")


@lesson(28)
@both
def test_idle_session_delays_the_end_by_its_timeout_at_most(begin_session, number):
    """The peer stays, so only the session timeout can end the server."""
    begin = time.monotonic()
    server, peer = begin_session(session_timeout=None)
    server.process.send_signal(number)
    assert server.wait().status == 0
    assert time.monotonic() - begin >= SESSION_TIMEOUT
    assert read_all(peer) is None


@lesson(28)
@both
def test_second_signal_ends_the_server_at_once(begin_session, number):
    server, peer = begin_session(session_timeout=600)
    server.process.send_signal(number)
    wait_until_refused(server.port)
    server.process.send_signal(number)
    ended = server.wait()
    assert (ended.status, ended.err) == (0, "")
    assert read_all(peer) is None


@both
def test_server_without_sessions_ends_at_once(programs, number):
    server = programs.server()
    server.process.send_signal(number)
    ended = server.wait()
    assert (ended.status, ended.err) == (0, "")


@lesson(30)
def test_full_output_pipe_delays_nobody_and_dropped_lines_are_counted(programs, say):
    out, into = os.pipe()
    try:
        fill_pipe(into)
        server = programs.start_client("0", "--retention", "0.01", "--session-timeout", "600", out=into,
                                       TEST_MODE="1", run=script("server"))
        port = port_of(server.process.pid)
        for first in range(0, LINES_BYTES // LINE, 50):
            for peer in [say(port, init(first + number) + b"FIN;") for number in range(50)]:
                assert read_all(peer).startswith(b"ACK;FAC,")
                peer.close()
        read_until(out, b"lines are missing here: nobody read them in time")
        server.process.terminate()
        assert server.wait().status == 0
    finally:
        os.close(out)
        os.close(into)


def port_of(process):
    """The port on which a process listens, from /proc, for a process whose first line nobody can read."""
    end = time.monotonic() + WAIT_SECONDS
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


def read_until(file, expected):
    """Reads from a pipe until the expected bytes are there."""
    text = b""
    while expected not in text:
        assert select.select([file], [], [], WAIT_SECONDS)[0], "not there: %r" % text[-200:]
        text += os.read(file, 65536)
