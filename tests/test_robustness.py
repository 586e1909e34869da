"""Failures of the system in the loop itself, in process: nothing goes deaf, dies or spins, and all of it
ends by itself.

Processes whose system calls are made to fail: tests/test_injection.py.
"""

import errno
import os
import selectors
import socket

import pytest

from helpers import ANY_PORT, Recorder, turn_until
from numseq import stream as stream_module
from numseq import system
from numseq.addresses import resolve
from numseq.loop import COMPACT_ABOVE, READ, REST_SECONDS, WAIT_PAUSE, Loop, working_selector
from numseq.stream import Listener, listen, listening_socket

CODES = [errno.EINTR, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.EIO, errno.EINVAL,
         errno.EPERM]
FAILURES = [OSError(code, os.strerror(code)) for code in CODES] + [MemoryError()]
each_failure = pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: getattr(failure, "strerror",
                                                                                        None) or "memory")
SECONDS = 5.0  # of the fake clock
ALWAYS = 10 ** 9  # times
TURNS_MOST = 40 * SECONDS  # in that time: four for each rest


class Failing:
    """A function that fails while it is told to, and otherwise is the one it stands for."""

    def __init__(self, plain, failure, times):
        self.plain = plain
        self.failure = failure
        self.times = times  # how often it still fails

    def __call__(self, *arguments, **keywords):
        if self.times > 0:
            self.times -= 1
            raise self.failure
        return self.plain(*arguments, **keywords)


def run_for(loop, seconds):
    """Lets the fake clock run so long.

    Returns how many turns that took, which says whether the loop spins.
    """
    clock = loop.poller.selector.clock
    first, end = loop.turns, clock() + seconds
    while clock() < end and loop.turns - first < 100000:
        loop.turn()
    return loop.turns - first


@pytest.fixture
def listener(loop, sockets):
    """A Listener; `.taken` are the sockets that came."""
    taken = []

    def accepted(connection):
        taken.append(connection)
        sockets.append(connection)

    listener, = listen(loop, *ANY_PORT, accepted=accepted)
    listener.taken = taken
    return listener


@pytest.fixture
def client(listener, sockets):
    sockets.append(socket.create_connection(listener.address, 10))
    return sockets[-1]


# ---- accepting


@each_failure
@pytest.mark.parametrize("times", [1, ALWAYS], ids=["once", "for a while"])
def test_a_listener_hears_again_after_failures_of_accept(loop, listener, client, failure, times):
    failing = listener._accept = Failing(listener._accept, failure, times)
    assert run_for(loop, SECONDS) < TURNS_MOST
    failing.times = 0
    run_for(loop, 2 * REST_SECONDS)
    turn_until(loop, lambda: listener.taken)
    assert listener.taken[0].gettimeout() == 0


@each_failure
@pytest.mark.parametrize("times", [1, 3, 20])
def test_a_listener_hears_again_after_accept_and_watching_fail(loop, listener, client, monkeypatch, failure,
                                                               times):
    listener._accept = Failing(listener._accept, OSError(errno.ENOMEM, "no memory"), 1)
    monkeypatch.setattr(loop, "watch", Failing(loop.watch, failure, times))
    run_for(loop, SECONDS)
    turn_until(loop, lambda: listener.taken)
    del loop.errors[:]


def test_trouble_is_told_with_its_reason(loop, listener, client):
    troubles = []
    listener.troubled = troubles.append
    listener._accept = Failing(listener._accept, OSError(errno.EMFILE, "no files"), 2)
    turn_until(loop, lambda: troubles)
    assert troubles[0].errno == errno.EMFILE


def test_a_listener_that_another_shut_down_rests(loop, listener, client):
    turn_until(loop, lambda: listener.taken)
    listener._socket.shutdown(socket.SHUT_RDWR)
    assert run_for(loop, SECONDS) < TURNS_MOST


def test_a_connection_without_memory_for_it_is_closed(loop, client, listener, monkeypatch):
    listener._accepted = Failing(listener._accepted, MemoryError(), 1)
    client.settimeout(0)
    turn_until(loop, lambda: not loop.attention and listener._accepted.times == 0)
    client.settimeout(10)
    assert client.recv(1) == b""
    run_for(loop, 2 * REST_SECONDS)
    assert listener.interest == READ


def test_those_who_wait_are_accepted_before_the_end(loop, listener, sockets):
    for _ in range(200):
        sockets.append(socket.create_connection(listener.address, 10))
    listener.finish()
    turn_until(loop, lambda: not listener.is_open)
    assert len(listener.taken) == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.address, 10)


# ---- waiting


@each_failure
def test_a_wait_that_fails_is_a_pause_and_then_the_loop_goes_on(loop, make_pair, monkeypatch, failure):
    handler = Recorder()
    stream, peer = make_pair(handler)
    pauses = []
    loop._sleep = pauses.append
    failing = Failing(loop.poller.wait, failure, 5)
    monkeypatch.setattr(loop.poller, "wait", failing)
    peer.send(b"x")
    turn_until(loop, lambda: handler.data == b"x")
    assert pauses == [WAIT_PAUSE] * 5 and len(loop.errors) == 5
    del loop.errors[:]


def test_a_file_that_epoll_has_and_nobody_watches_is_taken_out_of_it(sockets):
    if not hasattr(selectors, "EpollSelector"):
        pytest.skip("there is no epoll here")
    loop = Loop()
    sockets.extend(socket.socketpair())
    sockets[1].send(b"x")
    loop.poller.selector._selector.register(sockets[0].fileno(), 1)
    assert loop.poller.wait(0) == []
    loop.call_later(0.05, loop.stop)
    before = loop.turns
    loop.run()
    assert loop.turns - before < 10
    loop.close()


@pytest.mark.parametrize("working", ["PollSelector", "SelectSelector"])
def test_where_a_selector_cannot_be_made_the_next_is_taken(monkeypatch, working):
    def refused():
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(selectors, "DefaultSelector", refused)
    if working == "SelectSelector":
        monkeypatch.setattr(selectors, "PollSelector", refused, raising=False)
    with working_selector() as selector:
        assert type(selector).__name__ == working


def test_without_any_selector_the_reason_is_told(monkeypatch):
    for name in "DefaultSelector", "PollSelector", "SelectSelector":
        monkeypatch.delattr(selectors, name, raising=False)
    with pytest.raises(OSError, match="no selector works here"):
        working_selector()


# ---- streams


class Broken:
    """A socket with other methods in place of some of its own."""

    def __init__(self, real, **methods):
        self._real = real
        vars(self).update(methods)

    def __getattr__(self, name):
        return getattr(self._real, name)


@each_failure
def test_a_recv_that_fails_costs_its_connection_at_the_most(loop, make_pair, failure):
    handlers = Recorder(), Recorder()
    (stream, peer), (_, other) = map(make_pair, handlers)
    plain = stream._socket
    stream._socket = Broken(plain, recv=Failing(None, failure, ALWAYS))
    peer.send(b"x")
    other.send(b"x")
    assert run_for(loop, SECONDS) < TURNS_MOST
    assert handlers[1].data == b"x"
    passing = isinstance(failure, (BlockingIOError, InterruptedError))
    assert handlers[0].closed_times == (0 if passing else 1)
    del loop.errors[:]
    stream._socket = plain
    stream.abort()


@each_failure
def test_a_socket_that_says_it_can_send_but_does_not_rests(loop, make_pair, failure):
    stream, peer = make_pair(Recorder())
    stream._socket = Broken(stream._socket, send=Failing(None, failure, ALWAYS))
    stream.write(b"x")
    assert run_for(loop, SECONDS) < TURNS_MOST
    del loop.errors[:]


@each_failure
def test_a_stream_is_closed_whatever_its_steps_raise(loop, make_pair, monkeypatch, failure):
    handler = Recorder()
    stream, peer = make_pair(handler)
    plain = stream._socket

    def close():
        plain.close()
        if isinstance(failure, OSError):
            raise failure

    stream._socket = Broken(plain, close=close)
    with monkeypatch.context() as patch:
        patch.setattr(loop.poller.selector, "unregister", Failing(None, failure, ALWAYS))
        stream.abort()
    assert handler.closed_times == 1 and stream.state is stream_module.CLOSED
    assert stream not in loop.poller.watched.values()
    # The number is free again, for the loop as well.
    handler = Recorder()
    _, peer = make_pair(handler)
    peer.send(b"x")
    turn_until(loop, lambda: handler.data == b"x")


def test_a_timer_without_memory_is_run_again_later(loop, clock):
    ran = []
    failing = Failing(lambda what: ran.append((what, clock())), MemoryError(), 2)
    began = clock()
    loop.call_later(1, failing, "this")
    loop.run()
    assert ran == [("this", pytest.approx(began + 1 + 2 * REST_SECONDS))]
    assert len(loop.errors) == 2
    del loop.errors[:]


class Scarce(list):
    """A list of which there is no memory for a copy."""

    def __iter__(self):
        raise MemoryError


def test_many_timers_can_be_cancelled_without_memory(loop):
    timers = [loop.call_later(1, lambda: pytest.fail("it was cancelled")) for _ in range(2 * COMPACT_ABOVE)]
    loop._timers = Scarce(loop._timers)
    for timer in timers:
        loop.cancel(timer)
    loop.run()
    assert not loop._timers


def test_a_timer_without_memory_that_cancelled_many_others_runs_again(loop):
    ran = []
    failing = Failing(lambda: ran.append(True), MemoryError(), 1)
    others = [loop.call_later(2, failing) for _ in range(2 * COMPACT_ABOVE)]

    def cancel_and_fail():
        for timer in others:
            loop.cancel(timer)
        failing()

    loop.call_later(1, cancel_and_fail)
    loop.run()
    assert (ran, len(loop.errors)) == ([True], 1)
    del loop.errors[:]


def test_a_timer_without_memory_that_is_cancelled_meanwhile_stays_so(loop):
    failing = Failing(lambda: pytest.fail("it was cancelled"), MemoryError(), 1)
    timer = loop.call_later(1, failing)
    while not loop.errors:
        loop.turn()
    loop.cancel(timer)
    loop.run()
    del loop.errors[:]


# ---- addresses


def test_an_address_that_a_name_has_twice_is_listened_on_once(loop, monkeypatch):
    twice = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))] * 2
    monkeypatch.setattr(system.socket, "getaddrinfo", lambda *_, **__: twice)
    assert resolve("localhost", 0) == [(socket.AF_INET, ("127.0.0.1", 0))]
    for listener in listen(loop, "localhost", 0, None):
        listener.close()


def test_an_address_may_stand_in_brackets():
    assert resolve("[::1]", 80)[0][1][:2] == ("::1", 80)


def test_an_address_that_is_not_there_is_told(loop, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(system.socket, "getaddrinfo", lambda *_, **__: found)
    left_out = []
    listeners = listen(loop, "name", 0, None, lambda address, error: left_out.append((address[0],
                                                                                      error.errno)))
    assert left_out == [("192.0.2.1", errno.EADDRNOTAVAIL)]
    assert [listener.address[0] for listener in listeners] == ["127.0.0.1"]
    for listener in listeners:
        listener.close()


def test_a_listener_without_a_spare_file_gets_one_later(loop, sockets, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", Failing(None, OSError(errno.EMFILE, "no files"), ALWAYS))
        listener = Listener(loop, listening_socket(socket.AF_INET, ANY_PORT), sockets.append)
    refused = []
    listener.refused = refused.append
    plain = listener._accept
    listener._accept = Failing(plain, OSError(errno.EMFILE, "no files"), 2)
    peers = [socket.create_connection(listener.address, 10) for _ in range(2)]
    sockets.extend(peers)
    run_for(loop, 1)
    listener._accept = Failing(plain, OSError(errno.EMFILE, "no files"), 1)
    peers.append(socket.create_connection(listener.address, 10))
    run_for(loop, 1)
    assert len(refused) == 3
    listener.close()
