"""What the tests share: a clock that only moves when told, a loop that runs on it, and both ends of a connection.

How time passes:

    loop.turn(), loop.run()        where nothing is ready, the clock jumps by what the loop wanted to wait
    turn_until(loop, predicate)    the clock stands still, and the sockets get a few real milliseconds a turn
    clock.advance(seconds)         the clock jumps

The helpers are plain functions; they are also there as fixtures of the same name.
"""

import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from numseq.loop import Listener, Loop, Signals, Stream

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEST_SECONDS = 30  # no test takes a tenth of it: one that hangs fails, and the others still run
SOCKET_WAIT = 0.005  # real seconds that one turn of `turn_until` waits for sockets
ANY_PORT = "127.0.0.1", 0


def pytest_configure(config):
    config.addinivalue_line("markers", "lesson(number): what others' reactors got wrong, which the test shows done right")


# ---- helpers


class Clock:
    """Seconds that pass when told; any beginning but 0 will do."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds

    def advance(self, seconds):
        self.seconds += seconds


class TimeSelector:
    """The platform's selector, except that waiting costs no time: the clock jumps instead."""

    def __init__(self, clock, selector=None):
        self.clock = clock
        self.real = selectors.DefaultSelector() if selector is None else selector
        self.socket_wait = 0  # if not 0, a wait is this many real seconds, and the clock stands still
        self.timeouts = []  # all that were asked for
        for name in "register", "unregister", "modify", "get_map", "get_key", "close":
            setattr(self, name, getattr(self.real, name))

    def select(self, timeout=None):
        self.timeouts.append(timeout)
        events = self.real.select(0)
        if events:
            return events
        if self.socket_wait:
            return self.real.select(min(self.socket_wait, timeout))
        self.clock.advance(timeout)
        return []


class Recorder:
    """A handler that remembers. `reply(stream)` does as `received` of any handler; without it all input is taken."""

    def __init__(self, reply=None):
        self.reply = reply
        self.events = []  # "connected", "received", "closed"
        self.data = bytearray()  # the input, where there is no `reply`
        self.stream = None
        self.error = None  # what it was closed with

    @property
    def closed_times(self):
        return self.events.count("closed")

    def connected(self, stream):
        self.stream = stream
        self.events.append("connected")

    def received(self, stream):
        self.events.append("received")
        if self.reply is not None:
            return self.reply(stream)
        self.data += stream.input
        stream.input = b""
        return None

    def closed(self, stream, error):
        self.events.append("closed")
        self.error = error


def turn_until(loop, predicate, turns=20000, seconds=10):
    """Turns the loop until predicate() is true; fails the test after that many turns or real seconds."""
    selector = loop.selector
    end = time.monotonic() + seconds
    first = loop.turns
    before, selector.socket_wait = selector.socket_wait, SOCKET_WAIT
    try:
        while not predicate():
            if loop.turns - first >= turns or time.monotonic() > end:
                pytest.fail("still waiting after %d turns, with %d files watched, %d timers and the errors %r" % (
                    loop.turns - first, len(selector.get_map()), loop.timers(), getattr(loop, "errors", None)))
            loop.turn()
    finally:
        selector.socket_wait = before


class SpySocket:
    """A socket that remembers the system calls of a stream on it, and what each send was given."""

    def __init__(self, real):
        self.calls = []
        self.sent = []
        self._real = real

    def recv(self, size):
        self.calls.append("recv")
        return self._real.recv(size)

    def send(self, data, flags=0):
        self.calls.append("send")
        self.sent.append(bytes(data))
        return self._real.send(data, flags)

    def __getattr__(self, name):
        return getattr(self._real, name)


def is_idle(loop, turns=200):
    """Whether the loop comes to rest: three of its turns together are waits. The clock jumps with them."""
    waits = 0
    for _ in range(turns):
        before = loop.selector.clock()
        loop.turn()
        waits = waits + 1 if loop.selector.clock() > before else 0
        if waits == 3:
            return True
    return False


def fill(sender, data=b"x" * 65536):
    """Sends until the kernel takes no more of a plain socket's output; returns how many bytes that was."""
    timeout = sender.gettimeout()
    sender.setblocking(False)
    sent = 0
    try:
        while True:
            sent += sender.send(data)
    except BlockingIOError:
        return sent
    finally:
        sender.settimeout(timeout)


def reset(sender):
    """Closes a plain socket so that its peer gets a reset."""
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sender.close()


def read_from(loop, peer, count, at_once=64 * 1024):
    """Turns the loop until `count` bytes have come to the plain socket `peer`, or its end; returns them."""
    data = bytearray()

    def complete():
        while len(data) < count:
            try:
                some = peer.recv(min(at_once, count - len(data)))
            except BlockingIOError:
                return False
            if not some:
                break
            data.extend(some)
        return True

    timeout = peer.gettimeout()
    peer.setblocking(False)
    try:
        turn_until(loop, complete)
    finally:
        peer.settimeout(timeout)
    return bytes(data)


def read_to_end(loop, peer):
    """Turns the loop until the plain socket `peer` has read its end; returns all that came. A reset is raised."""
    return read_from(loop, peer, float("inf"))


def run_python(code, timeout=TEST_SECONDS, **options):
    """Runs code in a fresh interpreter, where numseq can be imported; returns what it printed. It has to end with 0."""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, universal_newlines=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        out, err = child.communicate(timeout=timeout)
    except BaseException:
        child.kill()
        child.communicate()
        raise
    assert child.returncode == 0, "ended with %s:\n%s%s" % (child.returncode, out, err)
    return out


# ---- fixtures


def _as_fixture(function):
    return pytest.fixture(name=function.__name__)(lambda: function)


turn_until_fixture = _as_fixture(turn_until)
is_idle_fixture = _as_fixture(is_idle)
fill_fixture = _as_fixture(fill)
reset_fixture = _as_fixture(reset)
read_from_fixture = _as_fixture(read_from)
read_to_end_fixture = _as_fixture(read_to_end)
run_python_fixture = _as_fixture(run_python)


@pytest.fixture(autouse=True)
def time_limit():
    """Fails a test that hangs."""

    def fail(number, frame):
        pytest.fail("not done in %d seconds" % TEST_SECONDS)

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(TEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def loop(clock):
    """A Loop on the fake clock. A test that expects `loop.errors` takes them out; any that are left fail it."""
    loop = Loop(clock, TimeSelector(clock))
    loop.errors = []
    loop.report = loop.errors.append
    yield loop
    for key in list(loop.selector.get_map().values()):
        if isinstance(key.data, Listener):
            key.data.close()
        elif not isinstance(key.data, Signals):  # those are the loop's own
            key.data.abort()
    loop.close()
    assert loop.errors == []


@pytest.fixture
def sockets():
    """A list of plain sockets to close at the end of the test."""
    sockets = []
    yield sockets
    for each in sockets:
        each.close()


@pytest.fixture
def connected_sockets(sockets):
    """A function: two plain sockets with a TCP connection between them; `buffers` is what the kernel may keep of it."""

    def connect(buffers=None):
        listening = socket.socket()
        here = socket.socket()
        sockets.extend([listening, here])
        for each in listening, here:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a small message is there at once
            if buffers:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        listening.bind(ANY_PORT)
        listening.listen(1)
        here.settimeout(TEST_SECONDS / 3)
        here.connect(listening.getsockname())
        there, _ = listening.accept()
        there.settimeout(TEST_SECONDS / 3)
        sockets.append(there)
        listening.close()
        return there, here

    return connect


@pytest.fixture
def make_pair(loop, connected_sockets):
    """A function: a Stream of `handler` (a new Recorder) and the plain socket at its other end."""

    def make(handler=None, buffers=None):
        connection, peer = connected_sockets(buffers)
        connection.setblocking(False)
        return Stream(loop, connection, Recorder() if handler is None else handler), peer

    return make


@pytest.fixture
def handler():
    """The Recorder of `pair`'s stream."""
    return Recorder()


@pytest.fixture
def pair(make_pair, handler):
    """(Stream, plain socket at its other end)"""
    return make_pair(handler)
