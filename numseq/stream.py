"""Sockets on the loop: streams (connected sockets) and listeners.

Each stream has a handler with these methods:

    connected(stream)      the connection is established; called for outgoing connections only
    received(stream)       `stream.input` grew, or `stream.ended` became true. The handler takes what it can
                           from `stream.input` and leaves the rest. If it stops early, it calls
                           `stream.resume()` to be called again in the next turn, or `stream.pause()` not to
                           be called until the stream is resumed
    closed(stream, error)  the connection is over; called once. error is an OSError or None
"""

import errno
import os
import struct

from . import addresses
from .loop import READ, WRITE, watch_or_rest
from .system import socket

# Bytes per send, so that one peer does not keep the others waiting. A loopback socket takes about as much.
WRITE_SIZE = 256 * 1024
LOW_DIVISOR = 4  # resume reading once the unsent output is below OUTPUT_HIGH / 4
INPUT_LIMIT = 1024 * 1024  # bytes that a handler may leave in `input`; more is a bug in the handler
LINGER_SECONDS = 1.0  # how long a closing stream waits for its peer to read the output and close
LINGER_BYTES = 64 * 1024 * 1024  # how much input a lingering stream discards
BACKLOG = 1024  # connections that the kernel may queue for accept; it lowers this to its own limit
ACCEPT_BATCH = 64  # accepts per turn: fewer overflow the backlog, more starve the open connections
EMPTY_MOST = 16  # empty batches in a row before a listener rests; processes sharing its port may be faster
LAST_WORD_READ = 4096  # bytes to read from a refused connection, so that closing it sends no reset

ABORT_OPTION = struct.pack("ii", 1, 0)  # SO_LINGER for a reset; packed here, as memory may be short later
OUT_OF_FILES = frozenset([errno.EMFILE, errno.ENFILE])
EXHAUSTED = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
NO_SUCH_FAMILY = frozenset([errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
MORE_FOLLOWS = getattr(socket, "MSG_MORE", 0)  # lets Linux put the data and the FIN in one segment

# The states of a stream.
OPEN = "open"
LINGERING = "lingering"  # flushes output, then shuts down its direction; discards input until the peer closes
CLOSING = "closing"  # flushes output, then closes the socket: no more input is expected
CLOSED = "closed"

# The flow of an open stream's input. FLOWING is falsy, which is tested in every turn.
FLOWING = 0  # the handler is called when more has arrived
PAUSED = 1  # nothing is read, and the handler is not called
RESUMED = 2  # the handler is called in the next turn, even if nothing more has arrived


class Stream:
    """A connected socket with a buffer for each direction. Its state determines which events are watched."""

    __slots__ = ("loop", "handler", "interest", "input", "ended", "state",
                 "_socket", "_output", "_flow", "_error", "_deadline", "_discarded")

    def __init__(self, loop, connection, handler):
        self.loop = loop
        self.handler = handler
        self.interest = 0
        self.input = b""  # bytes or bytearray: received, not yet taken by the handler
        self.ended = False  # whether the peer has closed its direction
        self.state = OPEN
        self._socket = connection
        self._output = b""  # bytes or bytearray: written, not yet sent
        self._flow = FLOWING
        self._error = None  # the OSError of a failed send; a last message of the peer may still be readable
        self._deadline = None  # the timer that ends lingering and closing
        self._discarded = 0  # bytes of input discarded while lingering
        loop.watch(self, READ)

    def fileno(self):
        return self._socket.fileno()

    # ---- for its owner

    def room(self):
        """The number of bytes that may be written before the stream stops reading; negative if above."""
        return self.loop.output_high - len(self._output)

    def write(self, data):
        """Sends data (bytes or bytearray): what the kernel takes at the end of this turn, the rest later.

        One send carries everything written in a turn. Does nothing once the stream is closing.
        """
        if self.state is not OPEN or self._error is not None or not data:
            return
        if self._output:
            self._output = grown(self._output, data)
        else:
            self._output = data if type(data) is bytes else bytes(data)  # callers may change their bytearray
        self.loop.attention[self] = None

    def send(self, data):
        """Sends data (bytes) like `write`, but at once: for a short and only reply to what was received.

        This saves asking for attention and settling, 0.4 us. In a crowded turn, and if other output is
        unsent, it is `write`.
        """
        if self.loop.is_crowded or self._output or self.state is not OPEN or self._error is not None:
            self.write(data)
            return
        try:  # calling _flush instead would cost 1.3 % of a round trip
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._error = error
            self.loop.attention[self] = None
            return
        if sent != len(data):
            self._output = data[sent:]
            self.loop.attention[self] = None

    def pause(self):
        """Stops reading and calling the handler until `resume`."""
        if self.state is OPEN:
            self._flow = PAUSED
            self.loop.attention[self] = None

    def resume(self):
        """Calls the handler in the next turn, with or without more input, and reads again."""
        if self.state is OPEN:
            self._flow = RESUMED
            self.loop.attention[self] = None

    @property
    def paused(self):
        """Whether the stream waits for `resume`."""
        return self._flow == PAUSED

    def close(self, expect_more=True):
        """Flushes the output and closes, so that all of it reaches the peer.

        If input is unread at a close, the kernel sends a reset, and the peer loses what it has not read yet
        (RFC 2525, 2.17). So the stream lingers: it flushes, shuts down its own direction, discards further
        input, and closes when the peer closes, after LINGER_SECONDS or after LINGER_BYTES.

        Pass expect_more=False if the peer will send nothing more: the socket is then closed as soon as the
        output is flushed, which saves a turn and two system calls. A peer that sends something at this very
        moment may lose the end of the output.
        """
        if self.state is not OPEN:
            return
        if self.ended and not self._output:
            self._close(self._error)
            return
        self.state = LINGERING if expect_more and not self.ended else CLOSING
        self._flow = FLOWING
        self.loop.attention[self] = None

    def abort(self, error=None):
        """Closes at once, with a reset."""
        if self.state is not CLOSED:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT_OPTION)
            except OSError:  # the peer has reset the connection already
                pass
            self._close(error)

    def expire(self):
        """Closes at once, with a reset where output is left; what the kernel has still reaches the peer."""
        if self._output or self.state is CLOSED:
            self.abort()
        else:
            self._close(None)

    # ---- for the loop

    def on_events(self, mask):
        """Sends once if the socket is writable; receives once if it is readable, and calls the handler."""
        if mask & WRITE:
            unsent = len(self._output)
            self._flush()
            if len(self._output) == unsent:  # reported writable, but takes nothing
                self.loop.rest(self)
                return
            self.loop.attention[self] = None
        if self._flow or not mask & READ:
            return
        try:
            data = self._socket.recv(self.loop.read_size)
        except (BlockingIOError, InterruptedError):  # reported readable, but has nothing
            self.loop.rest(self)
            return
        except OSError as error:
            self._close(self._error or error)
            return
        if not data or self.state is not OPEN:
            self._end_or_discard(data)
            return
        self.input = grown(self.input, data) if self.input else data
        self.handler.received(self)
        if self.input:  # for the limit; whoever changes the flow asks for attention
            self.loop.attention[self] = None

    def take_up(self):
        """Calls the handler if the stream was resumed, unless too much output is unsent."""
        if self._flow == RESUMED and self._is_output_low():
            self._flow = FLOWING
            self.handler.received(self)
        self.loop.attention[self] = None

    def settle(self):
        """Called at the end of a turn: sends once at most, then updates the selector."""
        if self._output and not self.interest & WRITE:
            self._flush()
            if (self.interest and self.state is OPEN
                    and not (self._output or self._flow or self.input or self.ended)):
                return False  # the usual case: everything is sent, and the interest has not changed
        if self.state is CLOSED:
            return False
        if self.state is not OPEN:
            self._wind_down()
            return False
        if self.ended and self._error is not None:
            self._close(self._error)
            return False
        if self._flow == FLOWING and len(self.input) > INPUT_LIMIT:
            raise ValueError("a handler left %d bytes of input" % len(self.input))
        self._update()
        return self._flow == RESUMED and self._is_output_low()

    # ---- from state to interest

    def _update(self):
        self.loop.watch(self, (READ if self._is_readable() else 0) | (WRITE if self._output else 0))

    def _is_readable(self):
        if self.state is not OPEN:
            return self.state is LINGERING
        if self.ended or self._flow == PAUSED or (self._flow == RESUMED and not self._is_output_low()):
            return False
        # Reading stops above the high-water mark and resumes below the low-water mark.
        return self.room() >= 0 if self.interest & READ else self._is_output_low()

    def _is_output_low(self):
        return len(self._output) * LOW_DIVISOR <= self.loop.output_high

    # ---- steps

    def _end_or_discard(self, data):
        """Handles the end of input (no data), and input that arrives after close()."""
        self.ended = not data
        if self.state is OPEN:
            if self._error is None:
                self.handler.received(self)
        else:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.abort()
        self.loop.attention[self] = None

    def _flush(self):
        """Sends the output, at most WRITE_SIZE bytes."""
        output = self._output
        try:
            if len(output) <= WRITE_SIZE:
                sent = self._socket.send(output, 0 if self.state is OPEN else MORE_FOLLOWS)
            else:
                with memoryview(output) as view, view[:WRITE_SIZE] as head:
                    sent = self._socket.send(head)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._error = error
            sent = len(output)
        if sent == len(output):
            self._output = b""
        else:
            if type(output) is bytes:
                self._output = output = bytearray(output)
            del output[:sent]

    def _wind_down(self):
        """One step from `close` to closing the socket, after output was sent or the peer has closed."""
        if self.input:
            if not self.ended:
                self.state = LINGERING  # the peer has sent more
            self.input = b""
        if self.ended:
            self.state = CLOSING
        if self._error is not None or (self.state is CLOSING and not self._output):
            self._close(self._error)
            return
        if self._deadline is None:
            self._deadline = self.loop.call_later(LINGER_SECONDS, Stream.expire, self)
        if not self._output:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:  # the peer has gone
                self._close(error)
                return
        self._update()

    def _close(self, error):
        self.state = CLOSED  # first, so that a failure below is not repeated
        stop_watching(self)
        connection, self._socket = self._socket, None
        close_file(connection)
        self._output = self.input = b""
        self._flow = FLOWING
        self.loop.cancel(self._deadline)
        handler, self.handler = self.handler, None
        handler.closed(self, error)


def stop_watching(watched):
    """Stops watching an object. Raises nothing: closing the file takes it out of epoll anyway."""
    try:
        watched.loop.watch(watched, 0)
    except Exception:  # out of memory, or the kernel refuses
        watched.interest = 0


def close_file(connection):
    """Closes a socket and ignores errors: its file number is free in any case."""
    try:
        connection.close()
    except OSError:
        pass


def grown(data, more):
    """data (bytes or bytearray) with more appended: in place if possible, so that small pieces cost O(n)."""
    if type(data) is bytes:
        data = bytearray(data)
    data += more
    return data


# ---- incoming connections


def listen(loop, host, port, accepted, left_out=None, reuse_port=False):
    """Listens on every address of host (text, ASCII) and port (0 takes a free one); returns the Listeners.

    accepted(socket) is called for each connection. With reuse_port, other processes of the same user may
    listen there too, and the kernel spreads the connections among them.

    Raises OSError if an address cannot be listened on. An address that this host does not have, or whose
    family the kernel lacks, is skipped if another works; left_out(address, error) is called for it.
    """
    listeners, refusals = [], []
    for family, address in addresses.resolve(host, port, socket.AI_PASSIVE):
        if listeners and not port:  # one free port for all families
            address = (address[0], listeners[0].address[1]) + address[2:]
        try:
            listeners.append(Listener(loop, listening_socket(family, address, reuse_port), accepted))
        except OSError as error:
            refusals.append((address, error))
            if error.errno not in NO_SUCH_FAMILY:
                break
    if refusals and not (listeners and refusals[-1][1].errno in NO_SUCH_FAMILY):
        for listener in listeners:
            listener.close()
        raise refusals[-1][1]
    if left_out is not None:
        for address, error in refusals:
            left_out(address, error)
    return listeners


class Listener:
    """A listening socket. accepted(socket) is called for each connection, non-blocking, with TCP_NODELAY.

    Two more callbacks may be set:

    troubled(error)  called whenever no connection can be accepted for now
    refused(socket)  called for each connection that comes when the process is out of files. It may send a
                     last message; the socket is closed afterwards. A spare file is kept for this
    """

    def __init__(self, loop, listening, accepted):
        self.loop = loop
        self.interest = 0
        self.address = listening.getsockname()
        self.troubled = self.refused = None
        self._socket = listening
        self._accept = acceptor(listening)
        self._accepted = accepted
        self._empty = 0  # batches in a row that were empty although the listener was ready
        self._last = None  # how many more to accept before closing; None until `finish`
        self._resting = None  # the timer that ends a rest
        self._spare = None  # the number of the spare file
        self._save_file()
        loop.watch(self, READ)

    def fileno(self):
        return self._socket.fileno()

    @property
    def is_open(self):
        """Whether connections may still be accepted."""
        return self._socket is not None

    def on_events(self, mask):
        count = 0
        for connection in accept(self._accept, self._rest):
            count += 1
            self._hand_over(connection)
            if self._socket is None:
                return
        self._empty = 0 if count else self._empty + 1
        if self._last is not None:
            self._last -= count
            if count < ACCEPT_BATCH or self._last <= 0:
                self.close()
        elif self._empty >= EMPTY_MOST:
            self._resting = self.loop.rest(self)

    def finish(self):
        """Accepts the connections already in the backlog, then closes. A long backlog takes several turns."""
        self._last = BACKLOG
        self.on_events(READ)

    def _hand_over(self, connection):
        """Calls `accepted`; an exception there closes only this connection."""
        try:
            self._accepted(connection)
        except Exception as error:
            close_file(connection)
            if isinstance(error, MemoryError):
                self._rest(error)
            else:
                self.loop.report(error)

    def _rest(self, error):
        """Rests: out of files, buffers or memory, or every accept fails, the listener would spin."""
        if self.troubled is not None:
            self.troubled(error)
        if self.refused is not None and getattr(error, "errno", None) in OUT_OF_FILES:
            self._say_last_words()
        if self._socket is not None:
            self._resting = self.loop.rest(self)

    def _say_last_words(self):
        for _ in range(ACCEPT_BATCH):
            if self._spare is None:
                self._save_file()
                return
            spare, self._spare = self._spare, None
            os.close(spare)
            try:
                connection = self._accept()
            except (OSError, MemoryError):
                self._save_file()
                return
            try:
                self.refused(connection)
                connection.recv(LAST_WORD_READ)
            except OSError:  # the peer has closed already
                pass
            close_file(connection)
            self._save_file()

    def _save_file(self):
        try:
            self._spare = os.dup(self._socket.fileno())
        except OSError:  # the next rest tries again
            pass

    def take_up(self):
        self.loop.attention[self] = None

    def settle(self):
        """Called after a rest."""
        if self._socket is not None:
            watch_or_rest(self)

    def abort(self, error=None):
        """Rests after an exception in a callback, because one that always fails would spin."""
        if self._socket is not None:
            self._resting = self.loop.rest(self)

    def close(self):
        if self._socket is not None:
            self.loop.cancel(self._resting)
            stop_watching(self)
            close_file(self._socket)
            self._socket = None
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def accept(take, exhausted):
    """The accept policy: yields up to ACCEPT_BATCH sockets, each returned by take().

    exhausted(error) is called, and ends the batch, if files, buffers or memory run out. It is also called if
    every accept of a batch fails: a sandbox forbids it, or another process has shut the socket down.
    """
    failures = 0
    for _ in range(ACCEPT_BATCH):
        try:
            connection = take()
        except (BlockingIOError, InterruptedError):
            return
        except MemoryError as error:
            exhausted(error)
            return
        except OSError as error:
            if error.errno in EXHAUSTED:
                exhausted(error)
                return
            # The connection is gone already, or a firewall rule forbids it: the next one may work.
            failures += 1
            failure = error
            continue
        yield connection
    if failures == ACCEPT_BATCH:
        exhausted(failure)


def acceptor(listening):
    """A function that accepts a connection and returns its socket, non-blocking.

    That function raises OSError or MemoryError. It uses the private function that socket.accept() is built
    on, if this Python has it: socket.accept() creates enum members and another object, 2.4 us of a session's
    50 us.
    """
    accept_number = getattr(listening, "_accept", None)
    family, kind = int(listening.family), int(listening.type)

    def accept_quickly():
        number = accept_number()[0]
        try:
            connection = socket.SocketType(family, kind, 0, number)
        except BaseException:
            os.close(number)
            raise
        return unblocked(connection)

    return accept_quickly if accept_number is not None else lambda: unblocked(listening.accept()[0])


def unblocked(connection):
    """Makes a socket non-blocking and returns it. If that fails, closes it and raises OSError."""
    try:
        connection.setblocking(False)
    except BaseException:
        close_file(connection)
        raise
    return connection


def listening_socket(family, address, reuse_port=False):
    """A non-blocking socket that listens on address. Raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # restarts do not wait for TIME_WAIT
        if reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise OSError(errno.EOPNOTSUPP, "this system does not let processes share a port")
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has its own socket
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
