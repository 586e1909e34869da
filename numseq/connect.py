"""Outgoing connections: looks names up in a child process and tries addresses in parallel.

`connect` starts a Connector. It starts a LookUp for each name and an Attempt for each address; the first
attempt that succeeds becomes a Stream.
"""

import errno
import os
import sys

from . import addresses
from .loop import READ, WRITE
from .stream import Stream
from .system import signal, socket

ATTEMPT_DELAY = 0.25  # seconds from one attempt to the next while none has succeeded (RFC 8305)
ADDRESSES_MOST = 16  # addresses tried per name: all have been started after four seconds
LOOK_UP_SECONDS = 30.0  # limit of a look-up: the C library asks three servers twice, 5 s each
CHILD_FILES = 1024  # the child of a look-up closes the files up to so many above the last watched one
ANSWER_SIZE = 4096  # bytes per read of a look-up's answer; 16 addresses are 1 KiB


def connect(loop, host, port, handler):
    """Connects to the first address of host and port that answers; returns a Connector, which can be aborted.

    Later calls handler.connected(stream), or handler.closed(None, error) with the last OSError.
    """
    return Connector(loop, [(host, port)], handler)


class Connector:
    """Establishes a connection to the first address that answers, of one or more servers.

    endpoints   [(host, port)], the preferred one first
    known       addresses of earlier look-ups, from (host, port) to [(family, address)]. They replace a
                look-up, and new ones are added. The address that answers is moved to the front
    delay       if an address does not answer within so many seconds, the next is tried in parallel (RFC 8305)
    """

    def __init__(self, loop, endpoints, handler, known=None, delay=ATTEMPT_DELAY):
        self.loop = loop
        self._delay = delay
        self.known = {} if known is None else known
        self.since = None  # when the first attempt began (seconds), or None
        self.tried = []  # [((host, port), address)] of all attempts
        self._endpoints = list(endpoints)  # not looked up yet
        self._addresses = []  # [(endpoint, family, address)] not tried yet
        self._pending = set()  # SharedLookUps and Attempts
        self._handler = handler
        self._error = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        # Started by the loop, so that the caller has this object before the handler is called.
        self._timer = loop.call_later(0, self._next)

    def abort(self, error=None):
        """Gives up. The handler is not called."""
        self.loop.cancel(self._timer)
        self._endpoints = self._addresses = ()
        pending, self._pending = self._pending, set()
        for each in pending:
            each.leave(self)

    def _next(self):
        """Tries the next address, or looks up the next name; earlier ones may still be pending."""
        self.loop.cancel(self._timer)
        while not self._addresses and self._endpoints:
            endpoint = self._endpoints.pop(0)
            try:
                found = self.known.get(endpoint) or addresses.numeric(*endpoint)
            except OSError as error:
                self._error = error
                continue
            if found:
                self._found(endpoint, found)
            else:
                self._pending.add(share_look_up(self, endpoint))
                break
        if self._addresses:
            self._try(*self._addresses.pop(0))
        elif not self._pending:
            self._handler.closed(None, self._error)
            return
        if self._addresses or self._endpoints:
            self._timer = self.loop.call_later(self._delay, self._next)

    def _found(self, endpoint, found):
        self.known[endpoint] = found
        self._addresses.extend((endpoint, family, address) for family, address in found[:ADDRESSES_MOST])

    def looked_up(self, look_up, found, error):
        """Called by a SharedLookUp: found is [(family, address)], or error an OSError."""
        if look_up not in self._pending:  # aborted meanwhile
            return
        self._pending.discard(look_up)
        if error is None:
            self._found(look_up.endpoint, addresses.alternated(found))
        else:
            self._error = error
        self._next()

    def _try(self, endpoint, family, address):
        if self.since is None:
            self.since = self.loop.now
        self.tried.append((endpoint, address))
        attempt = Attempt(self, endpoint, family, address)
        self._pending.add(attempt)
        try:
            attempt.start()
        except OSError as error:
            self.failed(attempt, error)

    def failed(self, attempt, error):
        """Called by an Attempt whose address cannot be connected to: goes on with the next address."""
        self._pending.discard(attempt)
        attempt.abort()
        self._error = error
        # Through the loop, so that many addresses that fail at once do not recurse.
        self.loop.cancel(self._timer)
        self._timer = self.loop.call_later(0, self._next)

    def succeeded(self, attempt, connection):
        """Called by an Attempt with its connected socket: aborts the others and tells the handler."""
        self._pending.discard(attempt)
        self.abort()
        found = self.known.get(attempt.endpoint)
        if found:  # else another user of the table has forgotten what was found
            first = attempt.family, attempt.address
            self.known[attempt.endpoint] = [first] + [each for each in found if each != first]
        self.tried = [(attempt.endpoint, attempt.address)]
        stream = Stream(self.loop, connection, self._handler)
        try:
            self._handler.connected(stream)
        except Exception:
            stream.abort()
            raise


class Attempt:
    """An attempt to connect to one address."""

    __slots__ = ("connector", "endpoint", "family", "address", "interest", "_socket")

    def __init__(self, connector, endpoint, family, address):
        self.connector = connector
        self.endpoint = endpoint
        self.family = family
        self.address = address
        self.interest = 0
        self._socket = None

    def fileno(self):
        return self._socket.fileno()

    def start(self):
        """Starts connecting. Raises OSError."""
        self._socket = socket.socket(self.family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._socket.connect_ex(self.address)
        if code in (errno.EINPROGRESS, errno.EINTR):
            self.connector.loop.watch(self, WRITE)
        else:
            self._check(code)

    def on_events(self, mask):
        self._check(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _check(self, code):
        if not code:
            try:
                # Connecting to a free port of this host can connect a socket to itself (simultaneous open).
                if self._socket.getsockname() == self._socket.getpeername():
                    code = errno.ECONNREFUSED
            except OSError as error:  # the connection was reset in between
                code = error.errno
        if code:
            self.connector.failed(self, OSError(code, os.strerror(code)))
            return
        self.connector.loop.watch(self, 0)
        connection, self._socket = self._socket, None
        self.connector.succeeded(self, connection)

    def abort(self, error=None):
        """Closes the socket."""
        if self._socket is not None:
            self.connector.loop.watch(self, 0)
            self._socket.close()
            self._socket = None

    def leave(self, connector):
        """Called when the Connector gives up."""
        self.abort()


# ---- looking names up


class SharedLookUp:
    """A look-up for all Connectors of a loop that wait for it: a check has up to 10,000 clients."""

    running = {}  # {(loop, endpoint): SharedLookUp}

    def __init__(self, loop, endpoint):
        self.endpoint = endpoint
        self.waiting = set()  # Connectors
        self._loop = loop
        self._look_up = LookUp(loop, endpoint, self._ended)

    def _ended(self, look_up, found, error):
        self.running.pop((self._loop, self.endpoint), None)
        for connector in self.waiting:  # each in a timer of its own, which the loop guards
            self._loop.call_later(0, lambda connector=connector: connector.looked_up(self, found, error))
        self.waiting = set()

    def leave(self, connector):
        """Called when a Connector gives up; the last one ends the look-up."""
        self.waiting.discard(connector)
        if not self.waiting and self.running.get((self._loop, self.endpoint)) is self:
            del self.running[self._loop, self.endpoint]
            self._look_up.abort()


def share_look_up(connector, endpoint):
    """The SharedLookUp of an endpoint, a new one or one that is running, which the Connector waits for."""
    key = connector.loop, endpoint
    if key not in SharedLookUp.running:
        SharedLookUp.running[key] = SharedLookUp(*key)
    SharedLookUp.running[key].waiting.add(connector)
    return SharedLookUp.running[key]


class LookUp:
    """Looks up a name in a child process, because getaddrinfo would block the loop and its signals.

    done(look_up, [(family, address)], error) is called once, unless the look-up is aborted; error is an
    OSError or None. Without os.fork, or with other threads, whose locks a fork could leave taken, the loop
    does block, or if may_block is false, the look-up fails.
    """

    def __init__(self, loop, endpoint, done, may_block=True):
        self.loop = loop
        self.endpoint = endpoint
        self.interest = 0
        self._done = done
        self._answer = b""
        self._child = self._reader = None
        self._timer = loop.call_later(LOOK_UP_SECONDS, self._time_is_up)
        if not self._fork():
            loop.cancel(self._timer)
            self._timer = loop.call_later(0, self._block if may_block else self._give_up)

    def fileno(self):
        return self._reader

    def _fork(self):
        if not may_fork():
            return False
        last = max(self.loop.poller.watched, default=0) + CHILD_FILES
        try:
            self._reader, writer = os.pipe()
            try:
                self._child = os.fork()
            except OSError:
                os.close(writer)
                raise
        except OSError:  # too many files or processes
            self.abort()
            return False
        if not self._child:
            try:
                look_up_alone(writer, last, *self.endpoint)
            finally:
                os._exit(0)  # without flushing copies of the parent's buffers
        os.close(writer)
        try:
            self.loop.watch(self, READ)
        except OSError:
            self.abort()
            return False
        return True

    def on_events(self, mask):
        try:
            data = os.read(self._reader, ANSWER_SIZE)
        except OSError as failure:
            self._end(None, failure)
            return
        if data:
            self._answer += data
            return
        try:
            found, error = parse_answer(self._answer)
        except (ValueError, IndexError):
            found, error = None, OSError(errno.EIO, "the look-up ended without an answer")
        self._end(found, error)

    def _block(self):
        try:
            found, error = addresses.resolve(*self.endpoint), None
        except OSError as failure:
            found, error = None, failure
        if not (found or error):
            error = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        self._end(found, error)

    def _give_up(self):
        self._end(None, OSError(errno.EAGAIN, "no process for the look-up"))

    def _time_is_up(self):
        self._end(None, OSError(errno.ETIMEDOUT, "the look-up took longer than %g s" % LOOK_UP_SECONDS))

    def _end(self, found, error):
        self.abort()
        self._done(self, found, error)

    def abort(self, error=None):
        """Kills the child if there is one, whether it has answered or not."""
        self.loop.cancel(self._timer)
        if self._reader is not None:
            self.loop.watch(self, 0)
            os.close(self._reader)
            self._reader = None
        if self._child:
            try:
                os.kill(self._child, signal.SIGKILL)
                os.waitpid(self._child, 0)
            except OSError:  # already reaped, because SIGCHLD is ignored
                pass
            self._child = None


def may_fork():
    """Whether a child process can look up names: os.fork exists, and no other thread may hold a lock."""
    threading = sys.modules.get("threading")
    return hasattr(os, "fork") and (threading is None or threading.active_count() == 1)


def look_up_alone(writer, last, host, port):
    """The child's part of a LookUp: writes the answer to the file numbered `writer`.

    Other files up to the number `last` are closed.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    # A connection that stays open here would not end for its peer when the parent closes it.
    os.closerange(3, writer)
    os.closerange(writer + 1, max(writer, last) + 1)
    try:
        found = addresses.resolve(host, port)
        lines = ["%d %s" % (family, " ".join(map(str, address))) for family, address in found]
    except OSError as error:
        kind = "resolver" if isinstance(error, socket.gaierror) else "system"
        lines = ["error %s %d %s" % (kind, error.errno or 0, error.strerror)]
    os.write(writer, "\n".join(lines[:ADDRESSES_MOST]).encode("ascii", "replace"))


def parse_answer(answer):
    """([(family, address)], error) from a child's answer (bytes). Raises ValueError or IndexError."""
    lines = answer.decode("ascii").split("\n")
    if lines[0].startswith("error "):
        _, kind, number, text = lines[0].split(" ", 3)
        return None, (socket.gaierror if kind == "resolver" else OSError)(int(number), text)
    found = []
    for line in lines:
        family, host, *numbers = line.split(" ")
        found.append((int(family), (host,) + tuple(map(int, numbers))))
    return found, None
