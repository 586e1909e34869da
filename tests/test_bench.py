"""The benchmark runs to its end; and what can be counted of speed and memory is as small as it should be.

No time is asserted: it is another on every machine.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from helpers import ANY_PORT, ROOT, SLOW_SECONDS, WAIT_SECONDS, read_from, read_to_end, spy_on, turn_until
from numseq import protocol
from numseq.serving import Server
from numseq.store_memory import MemoryStore
from programs import environment

RUN = os.path.join(ROOT, "bench", "run.py")
FIGURES = {
    "compared": ["roundtrip-1", "roundtrip-8", "roundtrip-32", "roundtrip-256", "roundtrip-1000", "pipelined",
                 "session-5", "session-1000", "stall", "stall-whole", "idle", "retained", "peak", "start"],
    "growth": ["1-of-1000", "8-of-1000", "32-of-1000", "256-of-1000", "1000-of-1000", "4000-of-1000",
               "32-of-5", "32-of-10000", "32-of-65535", "1000-of-5", "1000-of-10000", "1000-of-65535",
               "left-0", "left-1000", "left-2000", "timers-0", "timers-1000", "timers-100000"],
}
QUICK = ["pipelined", "start", "timers-0"]  # those that are tried in every run
FOR_EVER = 10.0 ** 6  # seconds, where a test is not about the session's time
IDLE_MOST = 1400  # bytes of an idle connection
RETAINED_MOST = 300  # bytes of a client that is gone and not forgotten
CONNECTIONS = 200  # in a group, whose two ends are open at once
GROUPS = 10
WINDOW = 256

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmark needs Linux")


# ---- the program


def start_bench(*arguments):
    """Popen of the benchmark.

    Coverage is not measured: it costs time, and the benchmark kills its servers.
    """
    return subprocess.Popen([sys.executable, RUN] + list(arguments), universal_newlines=True,
                            env=environment(measured=False), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def bench(*arguments):
    """(status, standard output, standard error) of a run of the benchmark."""
    child = start_bench(*arguments)
    try:
        out, err = child.communicate(timeout=SLOW_SECONDS - WAIT_SECONDS)
    finally:
        child.terminate()  # it ends what it has started, as kill would not
        child.wait()
    return child.returncode, out, err


def rows(out):
    """{label: [the figure in each column, or None]} of the rows of a table."""
    lines = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("|")]
    return {label: [None if cell == "-" else float(cell.split()[0]) for cell in cells]
            for label, *cells in lines[2:]}


@on_linux
@pytest.mark.parametrize("table, name", [
    pytest.param(table, name, marks=[] if name in QUICK else pytest.mark.slow)
    for table in FIGURES for name in FIGURES[table]])
def test_benchmark_prints_every_row(table, name):
    status, out, err = bench("--quick", "--table", table, "--only", name)
    assert (status, err) == (0, "")
    (label, figures), = rows(out).items()
    assert all(figure is None or figure > 0 for figure in figures) and figures[0], label


@on_linux
@pytest.mark.parametrize("table", FIGURES)
def test_unknown_row_is_refused_with_the_names_of_all(table):
    status, out, err = bench("--quick", "--table", table, "--only", "none")
    assert (status, out) == (2, "")
    assert err.strip().endswith("no figure none; there are " + ", ".join(FIGURES[table]))


@on_linux
@pytest.mark.parametrize("python", ["/bin/false", "/no/such/python"])
def test_benchmark_reports_a_failure_in_one_line(python):
    status, out, err = bench("--quick", "--only", "start", "--python", python)
    assert status == 1
    assert re.match(r"bench: .*\n\Z", err)


@on_linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_benchmark_leaves_nothing_behind(number):
    child = start_bench("--only", "roundtrip-8")
    children = []
    try:
        while len(children) < 2:  # a server and its load
            time.sleep(0.02)
            with open("/proc/%d/task/%d/children" % (child.pid, child.pid)) as file:
                children = file.read().split()
        child.send_signal(number)
        out, err = child.communicate(timeout=WAIT_SECONDS)
    finally:
        child.terminate()
        child.wait()
    assert (child.returncode, err) == (1, "bench: interrupted\n")
    assert not any(os.path.exists("/proc/" + each) for each in children)


# ---- what is counted


@pytest.fixture
def server(loop):
    server = Server(loop, MemoryStore(loop, lambda client_id: None, FOR_EVER), session_timeout=FOR_EVER)
    server.address = server.listen(*ANY_PORT)[0]
    yield server
    server.close()


def client_id(number):
    return b"%08x-0000-4000-8000-000000000000" % number


def connect(server):
    """A plain socket, connected to the server, which has not accepted it yet."""
    peer = socket.create_connection(server.address, WAIT_SECONDS)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def ask(loop, peer, request, size):
    """`size` bytes of answer to a request."""
    peer.sendall(request)
    return read_from(loop, peer, size)


@pytest.fixture
def counted(loop, server, sockets, monkeypatch):
    """(peer, calls): a connection with an open sequence, and the server's system calls for it from now on."""
    peer = connect(server)
    sockets.append(peer)
    opening = protocol.encode(protocol.INIT, client_id(0), b"65535", b"5")
    assert ask(loop, peer, opening, 4) == protocol.ACK_MESSAGE
    session, = server.sessions
    calls = spy_on(session.stream).calls
    for name in "register", "modify", "unregister":
        monkeypatch.setattr(loop.poller.selector, name, lambda *_, name=name: calls.append(name))
    return peer, calls


def read_messages(loop, peer, count):
    """Reads `count` messages, and checks that no more arrived with them."""
    data = b""
    while data.count(b";") < count:
        data += read_from(loop, peer, 1)
    assert data.count(b";") == count
    return data


def test_request_costs_one_recv_one_send_and_no_change_of_interest(loop, counted):
    peer, calls = counted
    for index in range(100):
        peer.sendall(b"RECV,%d;" % index)
        read_messages(loop, peer, 1)
    assert calls == ["recv", "send"] * 100


def test_window_of_requests_costs_one_recv_and_one_send(loop, counted):
    peer, calls = counted
    for first in range(0, 10 * WINDOW, WINDOW):
        peer.sendall(protocol.encode_receives(first, first + WINDOW))
        read_messages(loop, peer, WINDOW)
    assert calls == ["recv", "send"] * 10


def test_wrong_index_costs_no_more_than_a_right_one(loop, counted):
    peer, calls = counted
    peer.sendall(b"RECV,65535;RECV,0;")
    read_messages(loop, peer, 2)
    assert calls == ["recv", "send"]


def test_session_costs_a_recv_and_send_per_request_and_its_end(loop, server, sockets, monkeypatch):
    peer = connect(server)
    sockets.append(peer)
    turn_until(loop, lambda: server.sessions)
    session, = server.sessions
    calls = spy_on(session.stream).calls
    selector = loop.poller.selector
    for name in "modify", "unregister":
        def change(*arguments, name=name, call=getattr(selector, name)):
            calls.append(name)
            return call(*arguments)

        monkeypatch.setattr(selector, name, change)
    for request in protocol.encode(protocol.INIT, client_id(0), b"5", b"5"), b"RECV,0;", b"FIN;":
        peer.sendall(request)
        read_messages(loop, peer, 1)
    peer.close()
    turn_until(loop, lambda: "unregister" in calls)
    assert calls == ["recv", "send"] * 3 + ["recv", "unregister"], "the last recv is the peer's end"


def open_group(loop, server, sockets, group):
    """Connections in the backlog, which take only kernel memory so far."""
    peers = [connect(server) for _ in range(CONNECTIONS)]
    sockets.extend(peers)
    return [(peer, client_id(group * CONNECTIONS + number)) for number, peer in enumerate(peers)]


def greet(loop, peers):
    """Begins a session on each connection."""
    for peer, each in peers:
        peer.sendall(protocol.encode(protocol.INIT, each, b"5", b"5"))
    for peer, _ in peers:
        assert read_from(loop, peer, 4) == protocol.ACK_MESSAGE


def test_idle_connection_takes_little_memory(loop, server, sockets, traced):
    greet(loop, open_group(loop, server, sockets, 0))
    peers = open_group(loop, server, sockets, 1)
    grown = traced()
    greet(loop, peers)
    assert 0 < grown() / CONNECTIONS <= IDLE_MOST


def test_retained_client_takes_little_memory(loop, server, sockets, traced):
    def leave(group):
        peers = open_group(loop, server, sockets, group)
        greet(loop, peers)
        for peer, _ in peers:
            peer.sendall(protocol.FIN_MESSAGE)
        for peer, _ in peers:
            assert len(read_to_end(loop, peer)) == len("FAC,;") + protocol.CHECKSUM_DIGITS
            peer.close()
        turn_until(loop, lambda: not server.sessions)
        sockets.clear()

    leave(0)
    grown = traced()
    for group in range(1, 1 + GROUPS):
        leave(group)
    assert len(server.store) == CONNECTIONS * (1 + GROUPS)
    assert 0 < grown() / (CONNECTIONS * GROUPS) <= RETAINED_MOST
