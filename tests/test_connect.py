"""Outgoing connections: addresses tried in turn, and names looked up in a child process."""

import errno
import os
import signal
import socket
import time

import pytest

from helpers import ANY_PORT, Recorder, boom, echo, is_idle, needs_ipv6, read_from, turn_until
from numseq import addresses, system
from numseq import connect as module
from numseq.connect import connect
from numseq.stream import Stream

lesson = pytest.mark.lesson
V6 = socket.AF_INET6, ("::1", 5000, 0, 0)
LOOK_UP_SECONDS = 60  # of look-ups that only their child's end can end before a test does

# A client whose resolver takes a minute.
SLOW = """
import socket, sys, time
from numseq import addresses, fetching
real = addresses.resolve
def resolve(host, port, flags=0):
    if not flags:
        print("looking up", flush=True)
        time.sleep(60)
    return real(host, port, flags)
addresses.resolve = resolve
sys.exit(fetching.main(%r, "client.py"))
"""


# ---- connecting


@pytest.fixture
def closed_port():
    """An address where nobody listens; it stays reserved."""
    with socket.socket() as bound:
        bound.bind(ANY_PORT)
        yield bound.getsockname()


@lesson(24)
def test_connected_is_called_once_the_connection_stands(loop, listener):
    handler = Recorder(echo)
    connect(loop, listener.address[0], listener.address[1], handler)
    assert handler.events == []  # not before the caller has what `connect` returns
    turn_until(loop, lambda: handler.events)
    assert handler.events == ["connected"]
    assert is_idle(loop)  # and writability is no longer asked for
    turn_until(loop, lambda: listener.accepted)
    listener.accepted[0].send(b"x")
    assert read_from(loop, listener.accepted[0], 1) == b"x"
    handler.stream.abort()


def test_addresses_forgotten_by_another_connector_cost_no_connection(loop, listener, monkeypatch):
    """Many fetches share the table, and one that cannot connect empties it."""
    start = module.Attempt.start
    known, handler = {}, Recorder()
    monkeypatch.setattr(module.Attempt, "start", lambda attempt: (known.clear(), start(attempt)))
    module.Connector(loop, [listener.address], handler, known)
    turn_until(loop, lambda: handler.events)
    assert (handler.events, known) == (["connected"], {})
    handler.stream.abort()


@lesson(24)
def test_refused_connection_is_reported(loop, closed_port):
    handler = Recorder()
    connect(loop, closed_port[0], closed_port[1], handler)
    turn_until(loop, lambda: handler.events)
    assert handler.events == ["closed"]
    assert handler.error.errno == errno.ECONNREFUSED
    assert isinstance(handler.error, ConnectionRefusedError)
    assert len(loop.poller.selector.get_map()) == 0


@lesson(24)
def test_second_address_is_tried_when_the_first_fails(loop, listener, closed_port, monkeypatch):
    """`localhost` has two addresses, and the server may listen on one. A family may be missing altogether."""
    found = [(socket.AF_INET, closed_port), (-1, closed_port), (socket.AF_INET, listener.address)]
    monkeypatch.setattr(addresses, "resolve", lambda *_: found)
    handler = Recorder()
    connect(loop, "localhost", 1, handler)
    turn_until(loop, lambda: handler.events)
    assert handler.events == ["connected"]
    handler.stream.abort()


@lesson(24)
@needs_ipv6
def test_localhost_reaches_a_server_that_has_only_ipv4(loop, listener, monkeypatch):
    port = listener.address[1]
    monkeypatch.setattr(addresses, "resolve",
                        lambda *_: [(socket.AF_INET6, ("::1", port, 0, 0)),
                                    (socket.AF_INET, ("127.0.0.1", port))])
    handler = Recorder()
    connect(loop, "localhost", port, handler)
    turn_until(loop, lambda: handler.events)
    assert handler.events == ["connected"]
    handler.stream.abort()


@lesson(24)
def test_host_without_an_address_is_reported(loop, monkeypatch):
    monkeypatch.setattr(addresses, "resolve", lambda *_: [])
    handler = Recorder()
    connect(loop, "localhost", 1, handler)
    turn_until(loop, lambda: handler.events)
    assert handler.events == ["closed"]
    assert isinstance(handler.error, OSError)


@lesson(24)
def test_client_never_connects_to_itself(loop, sockets, monkeypatch):
    """A connect to a free local port can get that very port as its source port (TCP simultaneous open)."""
    itself = socket.socket()
    sockets.append(itself)
    itself.bind(ANY_PORT)
    monkeypatch.setattr(addresses, "resolve", lambda *_: [(socket.AF_INET, itself.getsockname())])
    with monkeypatch.context() as patch:
        patch.setattr(system.socket, "socket", lambda *_: itself)
        handler = Recorder()
        connect(loop, "localhost", 1, handler)
        turn_until(loop, lambda: handler.events)
    assert handler.events == ["closed"]
    assert handler.error.errno == errno.ECONNREFUSED


@pytest.mark.parametrize("turns", [0, 1])
def test_connection_given_up_is_not_reported(loop, listener, turns):
    handler = Recorder()
    connector = connect(loop, listener.address[0], listener.address[1], handler)
    if turns:
        loop.turn()  # it is on its way
    connector.abort()
    connector.abort()
    assert is_idle(loop)
    assert handler.events == []
    assert [key.data for key in loop.poller.selector.get_map().values()] == [listener]


@lesson(23)
def test_exception_in_connected_closes_the_connection(loop, listener):
    handler = Recorder()
    handler.connected = boom
    connect(loop, listener.address[0], listener.address[1], handler)
    turn_until(loop, lambda: loop.errors)
    assert isinstance(loop.errors.pop(), ValueError)
    assert handler.events == ["closed"]
    assert [key.data for key in loop.poller.selector.get_map().values()] == [listener]


# ---- looking names up


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
    real = addresses.resolve

    def give(answer):
        def resolve(host, port, flags=0):
            if flags & socket.AI_NUMERICHOST:
                return real(host, port, flags)
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(addresses, "resolve", resolve)

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


def test_look_up_whose_answer_cannot_be_read_is_an_error(loop, answers, monkeypatch, no_children):
    answers([(socket.AF_INET, ("127.0.0.1", 1))])
    handler = Recorder()
    connect(loop, "server.example", 1, handler)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "read", unreadable)
        turn_until(loop, lambda: handler.events or loop.errors)
    assert (handler.events, handler.error.errno) == (["closed"], errno.EIO)
    assert module.SharedLookUp.running == {}


def unreadable(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


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


def test_connectors_that_wait_for_one_name_share_a_look_up(loop, listener, monkeypatch, no_children):
    asked = []
    real = module.LookUp
    monkeypatch.setattr(module, "LookUp", lambda *of: asked.append(of) or real(*of))
    handlers = [Recorder() for _ in range(3)]
    connectors = [connect(loop, "localhost", listener.address[1], handler) for handler in handlers]
    loop.turn()
    connectors[0].abort()
    turn_until(loop, lambda: handlers[1].stream and handlers[2].stream)
    assert (len(asked), handlers[0].events) == (1, [])
    connect(loop, "localhost", listener.address[1], handlers[0])
    turn_until(loop, lambda: handlers[0].stream)
    assert len(asked) == 2, "a later one is looked up anew"
    assert module.SharedLookUp.running == {}
    for handler in handlers:
        handler.stream.abort()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_look_up_that_cannot_be_watched_blocks_and_leaves_nothing(loop, monkeypatch, no_children):
    def refuse(watched, interest):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = os.listdir("/proc/self/fd")
    ended = []
    monkeypatch.setattr(loop.poller, "_register", refuse)
    module.LookUp(loop, ("localhost", 5000), lambda *outcome: ended.append(outcome))
    loop.turn()
    (_, found, error), = ended
    assert found and error is None
    assert os.listdir("/proc/self/fd") == before


def look_up_slowly(host, port, flags=0):
    if not flags:
        time.sleep(LOOK_UP_SECONDS)


def test_files_of_the_parent_are_closed_in_the_child(loop, connected_sockets, monkeypatch, no_children):
    """Or a connection that the parent closes meanwhile would not end for its peer."""
    there, here = connected_sockets()
    here.setblocking(False)
    monkeypatch.setattr(addresses, "resolve", look_up_slowly)
    connector = connect(loop, "server.example", 1, Recorder())
    loop.turn()
    here.close()
    there.settimeout(LOOK_UP_SECONDS / 2)
    assert there.recv(1) == b""
    connector.abort()


def test_high_files_of_the_parent_are_closed_in_the_child(
        loop, connected_sockets, monkeypatch, no_children):
    """A server may have many thousands."""
    there, here = connected_sockets()
    high = socket.fromfd(here.fileno(), here.family, here.type)
    number = 3 * module.CHILD_FILES
    try:
        os.dup2(here.fileno(), number)
    except OSError:
        pytest.skip("the limit of open files is below %d" % number)
    here.close()
    high.close()
    here = socket.socket(fileno=number)
    here.setblocking(False)
    handler = Recorder()
    stream = Stream(loop, here, handler)
    monkeypatch.setattr(addresses, "resolve", look_up_slowly)
    connector = connect(loop, "server.example", 1, Recorder())
    loop.turn()
    stream.close(expect_more=False)
    loop.turn()
    there.settimeout(LOOK_UP_SECONDS / 2)
    assert there.recv(1) == b""
    connector.abort()


@pytest.mark.parametrize("forks", [True, False])
def test_look_up_that_may_not_block_needs_a_process(loop, answers, monkeypatch, no_children, forks):
    answers([V6])
    if not forks:
        monkeypatch.setattr(os, "fork", no_process)
    ends = []
    module.LookUp(loop, ("server.example", 1), lambda *end: ends.append(end[1:]), may_block=False)
    turn_until(loop, lambda: ends)
    (found, error), = ends
    assert (found, error and error.errno) == (([V6], None) if forks else (None, errno.EAGAIN))


def test_signal_ends_a_client_whose_look_up_hangs(programs):
    client = programs.start_client(run=("-c", SLOW % ["NEW", "5", "5000", "--host", "server.example", "-q"]),
                                   PYTHONPATH=os.path.dirname(os.path.dirname(module.__file__)))
    client.wait_for("looking up")
    client.process.send_signal(signal.SIGINT)
    assert client.wait().status == 130  # long before the look-up ends, or the client's watchdog kills it
