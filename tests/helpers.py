"""Shared helpers: a clock that moves only when told, handlers that record, and both ends of a connection.

How time passes:

    loop.turn(), loop.run()             when nothing is ready, the clock jumps by the timeout of the wait
    turn_until(loop, predicate)         the clock stands still, and the sockets get a few real milliseconds
                                        per turn
    jump_until(loop, predicate, turns)  the clock jumps once nothing is in flight on the sockets
    clock.advance(seconds)              the clock jumps
"""

import os
import selectors
import socket
import struct
import subprocess
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEST_SECONDS = 120  # ends a test that hangs; far more than any takes, also on a busy machine
SLOW_SECONDS = 400  # the same for tests marked as slow
# One wait for a process or a socket. It is shorter than the above, so that its own message shows.
WAIT_SECONDS = 60
SOCKET_WAIT = 0.005  # real seconds that one turn of `turn_until` waits for sockets
KERNEL_WAIT = 0.0001  # real seconds after which data in flight in the kernel has arrived
ANY_PORT = "127.0.0.1", 0


def has_ipv6():
    """Whether ::1 can be listened on."""
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="there is no ::1 here")
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")


class Clock:
    """A clock whose seconds pass when told. It does not begin at 0."""

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
    """A handler that records calls. `received` calls `reply(stream)`; without it, all input is taken."""

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
            self.reply(stream)
        else:
            self.data += stream.input
            stream.input = b""

    def closed(self, stream, error):
        self.events.append("closed")
        self.error = error


def turn_until(loop, predicate, turns=20000, seconds=WAIT_SECONDS):
    """Turns the loop until predicate() is true; fails the test after that many turns or real seconds."""
    selector = loop.poller.selector
    end = time.monotonic() + seconds
    first = loop.turns
    before, selector.socket_wait = selector.socket_wait, SOCKET_WAIT
    try:
        while not predicate():
            if loop.turns - first >= turns or time.monotonic() > end:
                errors = getattr(loop, "errors", None)
                pytest.fail("still waiting after %d turns, with %d files watched, %d timers, errors %r"
                            % (loop.turns - first, len(selector.get_map()), loop.timers(), errors))
            loop.turn()
    finally:
        selector.socket_wait = before


def jump_until(loop, predicate, turns):
    """Turns the loop until predicate() is true; fails the test after that many turns.

    The clock jumps when nothing is ready and nothing is in flight in the kernel.
    """
    for _ in range(turns):
        if predicate():
            return
        if not loop.poller.selector.real.select(0):
            time.sleep(KERNEL_WAIT)
        loop.turn()
    pytest.fail("still waiting after %d turns, with %d timers" % (turns, loop.timers()))


def pass_time(loop, clock, seconds):
    """Lets time pass and the timers run, and nothing more: later timers stay where they are."""
    loop.call_at(clock() + seconds, loop.stop)
    loop.run()


class SpySocket:
    """A socket that records its stream's system calls, the data of each send, and the errors of sends."""

    def __init__(self, real):
        self.calls = []
        self.sent = []
        self.errors = []
        self._real = real

    def recv(self, size):
        self.calls.append("recv")
        return self._real.recv(size)

    def send(self, data, flags=0):
        self.calls.append("send")
        self.sent.append(bytes(data))
        try:
            return self._real.send(data, flags)
        except OSError as error:
            self.errors.append(error)
            raise

    def __getattr__(self, name):
        return getattr(self._real, name)


def spy_on(stream):
    """Puts a SpySocket before the stream's socket, since nothing public shows system calls."""
    stream._socket = SpySocket(stream._socket)
    return stream._socket


def is_idle(loop, turns=200):
    """Whether the loop comes to rest: three of its turns together are waits. The clock jumps with them."""
    waits = 0
    for _ in range(turns):
        before = loop.poller.selector.clock()
        loop.turn()
        waits = waits + 1 if loop.poller.selector.clock() > before else 0
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


def fill_pipe(file):
    """Writes to a pipe until it takes no more."""
    os.set_blocking(file, False)
    for size in 4096, 1:
        try:
            while True:
                os.write(file, b"x" * size)
        except BlockingIOError:
            pass
    os.set_blocking(file, True)


def read_all(peer):
    """Everything that comes to a plain socket up to the end of input, or None if the connection is reset."""
    data = b""
    try:
        while True:
            some = peer.recv(65536)
            if not some:
                return data
            data += some
    except ConnectionResetError:
        return None


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
    """Turns the loop until the plain socket `peer` has read its end; returns all that came.

    A reset is raised.
    """
    return read_from(loop, peer, float("inf"))


def run_python(code, timeout=TEST_SECONDS, **options):
    """Runs code in a fresh interpreter, where numseq can be imported; returns what it printed.

    It has to end with 0.
    """
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


def boom(*_):
    """A callback that fails."""
    raise ValueError("boom")


def echo(stream):
    """A handler's `reply` that sends back all input, and closes at its end."""
    stream.write(bytes(stream.input))
    stream.input = b""
    if stream.ended:
        stream.close()


def interest(loop, watched):
    """The events that the selector watches an object for."""
    try:
        return loop.poller.selector.get_key(watched).events
    except (KeyError, ValueError):
        return 0
