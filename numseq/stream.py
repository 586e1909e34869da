"""Sockets on the loop: streams, listeners, and outgoing connections.

The owner of a stream is its handler, with three methods:

    connected(stream)      the connection is established; called for `connect` alone
    received(stream)       `stream.input` grew, or `stream.ended` became true. It takes what it can from
                           `stream.input` and leaves the rest there. Where it stops early, it calls
                           `stream.resume()` to be called again next turn, or `stream.pause()` to be called no
                           more until somebody resumes the stream
    closed(stream, error)  the connection is over; called once. error is an OSError or None
"""

import errno
import os
import socket
import struct

from . import addresses
from .loop import READ, WRITE, watch_or_rest

# bytes of one send, one per turn, so that one peer does not keep the others waiting; about what
WRITE_SIZE = 256 * 1024
# a loopback socket takes
LOW_DIVISOR = 4  # reading starts again once the unsent output is below OUTPUT_HIGH / 4
INPUT_LIMIT = 1024 * 1024  # bytes that a handler may leave in `input`; more is a fault of the handler
LINGER_SECONDS = 1.0  # how long a closing stream waits for its peer to take the rest and to end
LINGER_BYTES = 64 * 1024 * 1024  # how much input a lingering stream throws away
BACKLOG = 1024  # connections that the kernel may keep for us to accept; it lowers this to its own limit
ACCEPT_BATCH = 64  # accepts per turn: fewer overflow the backlog, more starve the connections that are there
# accepts in a row that give nothing, though the listener is ready; others that share it may be faster
EMPTY_MOST = 16
LAST_WORD_READ = 4096  # bytes of a refused connection that are read, so that closing it does not reset it

# SO_LINGER that makes a close a reset; made once, as memory may be short then
ABORT_OPTION = struct.pack("ii", 1, 0)
OUT_OF_FILES = frozenset([errno.EMFILE, errno.ENFILE])
EXHAUSTED = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
NO_SUCH_FAMILY = frozenset([errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
# a flag of send: lets Linux put the data and the FIN in one segment
MORE_FOLLOWS = getattr(socket, "MSG_MORE", 0)

# The states of a stream.
OPEN = "open"
# output is flushed, then our direction is shut down; input is thrown away until the peer ends
LINGERING = "lingering"
CLOSING = "closing"  # output is flushed, then the socket is closed; the peer has ended, or says no more
CLOSED = "closed"

# What becomes of the input of an open stream.
FLOWING = 0  # the handler is called when there is more
PAUSED = 1  # nothing is read, and the handler is not called
RESUMED = 2  # the handler is called next turn, also without more


class Stream:
    """A connected socket with a buffer for each direction. What is watched for follows from its state."""

    __slots__ = ("loop", "handler", "interest", "input", "ended", "state",
                 "_socket", "_output", "_flow", "_error", "_deadline", "_discarded")

    def __init__(self, loop, connection, handler):
        self.loop = loop
        self.handler = handler
        self.interest = 0
        self.input = b""  # bytes or bytearray: what the handler has not taken yet
        self.ended = False  # whether the peer has ended its direction
        self.state = OPEN
        self._socket = connection
        self._output = b""  # b"" or a bytearray: what the kernel has not taken yet
        self._flow = FLOWING
        # the OSError of a send: nothing more can be sent, but a last ERR may still be there to read
        self._error = None
        self._deadline = None  # the timer that ends lingering and closing
        self._discarded = 0  # bytes of input thrown away
        loop.watch(self, READ)

    def fileno(self):
        return self._socket.fileno()

    # ---- for its owner

    def room(self):
        """Bytes that may be written before the stream is no longer read."""
        return self.loop.output_high - len(self._output)

    def write(self, data):
        """Sends bytes: at the end of this turn what the kernel takes then, the rest when it can.

        All that is written in a turn goes in one send. Once the stream is closing, it does nothing.
        """
        if self.state is not OPEN or self._error is not None or not data:
            return
        if self._output:
            self._output = grown(self._output, data)
        else:
            self._output = data if type(data) is bytes else bytes(data)  # the caller may change a bytearray
        self.loop.attention[self] = None

    def pause(self):
        """Stops reading, and calling the handler, until `resume`."""
        if self.state is OPEN:
            self._flow = PAUSED
            self.loop.attention[self] = None

    def resume(self):
        """Calls the handler next turn, with or without more input, and reads again."""
        if self.state is OPEN:
            self._flow = RESUMED
            self.loop.attention[self] = None

    @property
    def paused(self):
        """Whether the stream waits for `resume`."""
        return self._flow == PAUSED

    def close(self, expect_more=True):
        """Flushes the output and closes, so that all of it reaches the peer.

        The kernel answers unread input at a close with a reset, and throws away what the peer has not read
        yet (RFC 2525, 2.17). So the stream lingers: it flushes, shuts its own direction down, throws away
        what still comes, and closes when the peer ends, at a deadline, or at a cap. With expect_more=False,
        where the peer has nothing more to say, the socket is closed as soon as the output is flushed, which
        saves a turn and two system calls; a peer that does say more at this very moment may lose the last of
        the output.
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
            except OSError:  # the peer was faster
                pass
            self._close(error)

    # ---- for the loop

    def on_events(self, mask):
        """At most one recv, whose data goes to the handler; one send where the kernel has room again."""
        if mask & WRITE:
            unsent = len(self._output)
            self._flush()
            if len(self._output) == unsent:  # not a byte, though the socket is ready
                self.loop.rest(self)
                return
            self.loop.attention[self] = None
        if self._flow != FLOWING or not mask & READ:
            return
        try:
            data = self._socket.recv(self.loop.read_size)
        except (BlockingIOError, InterruptedError):  # nothing, though it is ready
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
        if self._flow != FLOWING or self.input:
            self.loop.attention[self] = None

    def take_up(self):
        """Calls the handler again where it was resumed, unless too much output is unsent."""
        if self._flow == RESUMED and self._is_output_low():
            self._flow = FLOWING
            self.handler.received(self)
        self.loop.attention[self] = None

    def settle(self):
        """The end of a turn: at most one send, then the selector's interest follows from the state."""
        if self._output and not self.interest & WRITE:
            self._flush()
            if (self.interest and self.state is OPEN
                    and not (self._output or self._flow or self.input or self.ended)):
                return False  # nearly always: everything is sent, and the interest is still the same
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
        # Reading stops above the high-water mark and starts again below the low one.
        return self.room() >= 0 if self.interest & READ else self._is_output_low()

    def _is_output_low(self):
        return len(self._output) * LOW_DIVISOR <= self.loop.output_high

    # ---- steps

    def _end_or_discard(self, data):
        """Handles the peer's end (no data), and input after close()."""
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
        """Sends the output, or the first WRITE_SIZE bytes of it."""
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
        """One step from close() to the socket's end: after some output has gone, or the peer has ended."""
        if self.input:
            if not self.ended:
                self.state = LINGERING  # the peer did say more
            self.input = b""
        if self.ended:
            self.state = CLOSING
        if self._error is not None or (self.state is CLOSING and not self._output):
            self._close(self._error)
            return
        if self._deadline is None:
            self._deadline = self.loop.call_later(LINGER_SECONDS, self.abort)
        if not self._output:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:  # the peer has gone
                self._close(error)
                return
        self._update()

    def _close(self, error):
        self.state = CLOSED  # first, so that nothing that fails here is tried again
        stop_watching(self)
        connection, self._socket = self._socket, None
        close_file(connection)
        self._output = self.input = b""
        self._flow = FLOWING
        self.loop.cancel(self._deadline)
        handler, self.handler = self.handler, None
        handler.closed(self, error)


def stop_watching(watched):
    """Watches an object no more, whatever fails.

    Closing its file takes it out of the kernel's list anyway.
    """
    try:
        watched.loop.watch(watched, 0)
    except Exception:  # no memory, or the kernel refuses
        watched.interest = 0


def close_file(connection):
    """Closes a socket, whatever the kernel says of that: its number is free afterwards."""
    try:
        connection.close()
    except OSError:
        pass


def grown(data, more):
    """Appends more to data (bytes or bytearray), in place if possible: many small pieces stay linear."""
    if type(data) is bytes:
        data = bytearray(data)
    data += more
    return data


# ---- incoming connections


def listen(loop, host, port, accepted, left_out=None, reuse_port=False):
    """Listens on every address of host (text, ASCII) and port (0 takes a free one); returns the Listeners.

    accepted(socket) is called for each connection. With reuse_port, other processes of the same user may
    listen there too, and the kernel spreads the connections. Raises OSError where an address cannot be had;
    one that is not there, or a family that the kernel lacks, is passed over as long as another works:
    left_out(address, error) is called for it.
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

    troubled(error), where it is set, is called each time that no connection can be accepted for now.
    refused(socket), where it is set, is called for each connection for which there is no file left: it may
    say a last
    word, and the socket is closed when it returns. A spare file is kept for that.
    """

    def __init__(self, loop, listening, accepted):
        self.loop = loop
        self.interest = 0
        self.address = listening.getsockname()
        self.troubled = self.refused = None
        self._socket = listening
        self._accept = acceptor(listening)
        self._accepted = accepted
        self._empty = 0  # times in a row that it was ready and gave nothing
        self._last = None  # how many more are accepted before it closes; None while it does not
        self._resting = None  # the timer that ends a rest
        self._spare = None  # the number of a file
        self._save_file()
        loop.watch(self, READ)

    def fileno(self):
        return self._socket.fileno()

    @property
    def is_open(self):
        """Whether connections may still come."""
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
        """Accepts those who have connected until now, then closes: now, or in the next turns where they are
        many."""
        self._last = BACKLOG
        self.on_events(READ)

    def _hand_over(self, connection):
        """An exception in `accepted` costs that connection alone."""
        try:
            self._accepted(connection)
        except Exception as error:
            close_file(connection)
            if isinstance(error, MemoryError):
                self._rest(error)
            else:
                self.loop.report(error)

    def _rest(self, error):
        """No files, buffers or memory, or nothing but errors: a level-triggered listener would spin."""
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
            except OSError:  # it has gone
                pass
            close_file(connection)
            self._save_file()

    def _save_file(self):
        try:
            self._spare = os.dup(self._socket.fileno())
        except OSError:  # tried again at the next rest
            pass

    def take_up(self):
        self.loop.attention[self] = None

    def settle(self):
        """The end of a rest."""
        if self._socket is not None:
            watch_or_rest(self)

    def abort(self, error=None):
        """An exception in a callback costs the listener a rest, so that one that fails for good does not
        spin."""
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
    """The accept policy: yields a bounded batch of the sockets that take() returns.

    exhausted(error) is called, and the batch is over, when out of files or memory; and when all of a batch
    failed,
    as they do where a sandbox forbids it, or another has shut the listener down.
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
            # that connection is gone, or a firewall's rule forbids it: the next one may be fine
            failures += 1
            failure = error
            continue
        yield connection
    if failures == ACCEPT_BATCH:
        exhausted(failure)


def acceptor(listening):
    """A function that accepts one connection and returns its socket, non-blocking; raises OSError or
    MemoryError.

    socket.accept() makes enum members and a Python object: 2.4 us of a session's 50. The private function
    below it is used where it is there.
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
    """A socket, once it is non-blocking. Raises OSError, and closes it then."""
    try:
        connection.setblocking(False)
    except BaseException:
        close_file(connection)
        raise
    return connection


def listening_socket(family, address, reuse_port=False):
    """A non-blocking socket that listens on address; raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart waits for TIME_WAIT
        if reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise OSError(errno.EOPNOTSUPP, "this system does not let processes share a port")
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
