"""Names and addresses: how they are written, looked up in a child process, and given up."""

import errno
import os
import signal
import socket
import time

import pytest

from helpers import Recorder, boom, turn_until
from numseq import stream as module
from numseq.stream import alternated, connect, format_endpoint, parse_endpoint

V4 = socket.AF_INET, ("10.0.0.1", 5000)
V4_TOO = socket.AF_INET, ("10.0.0.2", 5000)
V6 = socket.AF_INET6, ("::1", 5000, 0, 0)
# A client whose resolver takes a minute.
SLOW = """
import socket, sys, time
from numseq import client, stream
real = stream.resolve
def resolve(host, port, flags=0):
    if not flags:
        print("looking up", flush=True)
        time.sleep(60)
    return real(host, port, flags)
stream.resolve = resolve
sys.exit(client.main(%r, "client.py"))
"""


# ---- how they are written


@pytest.mark.parametrize("text, endpoint", [
    ("localhost", ("localhost", None)), ("localhost:5001", ("localhost", 5001)),
    ("10.0.0.1:1", ("10.0.0.1", 1)),
    ("::1", ("::1", None)), ("[::1]", ("::1", None)), ("[::1]:65535", ("::1", 65535)),
    ("[fe80::1%eth0]:5000", ("fe80::1%eth0", 5000)), ("[10.0.0.1]", ("10.0.0.1", None)),
])
def test_endpoint_is_host_and_port(text, endpoint):
    assert parse_endpoint(text) == endpoint
    if endpoint[1]:
        assert format_endpoint(*endpoint) == text


@pytest.mark.parametrize("text", ["", ":", ":5000", "a:", "a:b", "a:0", "a:65536", "a:-1", "a:+1", "a:\u0661",
                                  "[]", "[::1", "[::1]5000", "[::1]:", "[::1]:x", "a b", "a\n", "a:000001"])
def test_what_is_no_endpoint_is_refused(text):
    with pytest.raises(ValueError):
        parse_endpoint(text)


@pytest.mark.parametrize("host", ["", ":1", "[::1"])
def test_client_refuses_what_is_no_host_in_one_line(programs, host):
    ended = programs.client("NEW", 5, 5000, "--host", host)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "is not HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT" in ended.err


def test_client_takes_a_port_of_its_own_for_each_host(programs, port):
    ended = programs.client("NEW", 5, 1, "--host", "127.0.0.1", "--host", "127.0.0.1:%d" % port, "-q")
    assert (ended.status, ended.err) == (0, "")


def test_families_take_turns():
    assert alternated([V4, V4_TOO, V6]) == [V4, V6, V4_TOO]
    assert alternated([V6, V4, V4_TOO]) == [V6, V4, V4_TOO]
    assert alternated([V4]) == [V4]


# ---- the look-up


@pytest.fixture
def no_children(monkeypatch):
    """Look-ups have a child, whatever threads the tests have, and none of them is left at the end."""
    children = []
    real = os.fork

    def fork():
        child = real()
        children.append(child)
        return child

    monkeypatch.setattr(module, "may_fork", lambda: True)
    monkeypatch.setattr(os, "fork", fork)
    yield
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


@pytest.fixture
def answers(monkeypatch):
    """A function: names have these addresses from now on, or this OSError; numeric ones are as ever."""
    real = module.resolve

    def give(answer):
        def resolve(host, port, flags=0):
            if flags & socket.AI_NUMERICHOST:
                return real(host, port, flags)
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(module, "resolve", resolve)

    return give


def test_address_needs_no_look_up(loop, listener, monkeypatch):
    monkeypatch.setattr(module, "LookUp", boom)
    handler = Recorder()
    connect(loop, listener.address[0], listener.address[1], handler)
    turn_until(loop, lambda: handler.events)
    assert handler.events == ["connected"]
    handler.stream.abort()


@pytest.mark.parametrize("forks", [True, False])
def test_name_is_looked_up_and_connected_to(loop, listener, answers, monkeypatch, no_children, forks):
    answers([V6, (socket.AF_INET, listener.address)])
    if not forks:
        monkeypatch.setattr(os, "fork", no_process)
    handler = Recorder()
    connect(loop, "server.example", listener.address[1], handler)
    turn_until(loop, lambda: handler.events)
    assert handler.events == ["connected"]
    handler.stream.abort()


def no_process():
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_failed_look_up_is_the_error(loop, answers, no_children):
    answers(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    handler = Recorder()
    connect(loop, "server.example", 1, handler)
    turn_until(loop, lambda: handler.events)
    assert handler.events == ["closed"]
    assert isinstance(handler.error, socket.gaierror)
    assert str(handler.error) == "[Errno %d] Name or service not known" % socket.EAI_NONAME


def test_look_up_that_dies_is_an_error(loop, monkeypatch, no_children):
    monkeypatch.setattr(module, "look_up_alone", boom)
    handler = Recorder()
    connect(loop, "server.example", 1, handler)
    turn_until(loop, lambda: handler.events)
    assert (handler.events, handler.error.errno) == (["closed"], errno.EIO)


def test_look_up_has_a_limit(loop, clock, monkeypatch, no_children):
    monkeypatch.setattr(module, "look_up_alone", lambda *_: time.sleep(60))
    handler = Recorder()
    connect(loop, "server.example", 1, handler)
    loop.turn()
    clock.advance(module.LOOK_UP_SECONDS)
    turn_until(loop, lambda: handler.events)
    assert (handler.events, handler.error.errno) == (["closed"], errno.ETIMEDOUT)


def test_look_up_given_up_leaves_nothing(loop, monkeypatch, no_children):
    monkeypatch.setattr(module, "look_up_alone", lambda *_: time.sleep(60))
    handler = Recorder()
    connector = connect(loop, "server.example", 1, handler)
    loop.turn()
    assert len(loop.poller.selector.get_map()) == 1
    connector.abort()
    assert len(loop.poller.selector.get_map()) == loop.timers() == 0
    assert handler.events == []


def test_files_of_the_parent_are_closed_in_the_child(loop, connected_sockets, monkeypatch, no_children):
    """Or a connection that the parent closes meanwhile would not end for its peer."""
    there, here = connected_sockets()
    here.setblocking(False)
    monkeypatch.setattr(module, "resolve", lambda host, port, flags=0: None if flags else time.sleep(60))
    connector = connect(loop, "server.example", 1, Recorder())
    loop.turn()
    time.sleep(0.05)  # the child's first instructions
    here.close()
    there.settimeout(5)
    assert there.recv(1) == b""
    connector.abort()


def test_signal_ends_a_client_whose_look_up_hangs(programs):
    client = programs.start_client(run=("-c", SLOW % ["NEW", "5", "5000", "--host", "server.example", "-q"]),
                                   PYTHONPATH=os.path.dirname(os.path.dirname(module.__file__)))
    client.wait_for("looking up")
    client.process.send_signal(signal.SIGINT)
    assert client.wait().status == 130  # long before the look-up ends, or the client's watchdog kills it
