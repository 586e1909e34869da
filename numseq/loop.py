"""The reactor: one selector, a heap of timers, listeners, streams, outgoing connections and signals.

It knows nothing of what is said on the connections. All of it runs in one thread, and nothing in it
waits but `Loop.turn`, once a turn, which is on one screen below.

A handler, the owner of a stream, has three methods:

    connected(stream)        the connection stands; only called for `Loop.connect`
    received(stream)         `stream.input` grew, or `stream.ended` became true. It takes what it can from
                             `stream.input`, leaves the rest there, and returns
                                 None   to be called when there is more input,
                                 AGAIN  to be called next turn without more input (fairness),
                                 HOLD   to be called after `stream.resume()`, and to read nothing until then
    closed(stream, error)    the connection is over, once; error is an OSError or None
"""

import errno
import heapq
import os
import select
import selectors
import signal
import socket
import struct
import time

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE
AGAIN = 1
HOLD = 2

READ_SIZE = 64 * 1024  # bytes of one recv, one a turn: what a connection may ask of us before the others' turn;
# as much as a shared malloc arena gives without asking the system (256 KiB cost ten times as long)
WRITE_SIZE = 256 * 1024  # bytes of one send, one a turn, for the same reason; about what a loopback socket takes
SETTLE_AFTER = 4  # streams whose sends wait for each other: fewer wake a sleeping peer for each, and of more, what the
# kernel keeps of the first has left the cache by then (64 cost 4 % of a whole session)
OUTPUT_HIGH = 256 * 1024  # unsent bytes over which a stream is not read: its peer asks, but does not listen
OUTPUT_LOW = 4  # it is read again once its unsent bytes are under this part of that
INPUT_LIMIT = 1024 * 1024  # bytes a handler may leave in `input`; more is a fault of the handler's
LINGER_SECONDS = 1.0  # how long a closing stream waits for its peer to take the rest and to end
LINGER_BYTES = 64 * 1024 * 1024  # how much of its peer's input a closing stream throws away
BACKLOG = 1024  # connections the kernel may keep for us to accept; it lowers it to its own limit
ACCEPT_BATCH = 64  # accepts a turn: fewer overflow the backlog, more starve those already here
ACCEPT_PAUSE = 0.1  # seconds a listener rests when there are no more files or buffers
TIMERS_PER_TURN = 256  # timers run a turn, so that thousands due at once do not starve the sockets
COMPACT_ABOVE = 1024  # cancelled timers that may stay in the heap however small it is
WAIT_LIMIT = 86400.0  # seconds of one poll: epoll overflows at 2,147,483 s, 32-bit select at 2 ** 31
PORT_MOST = 65535  # of TCP's
FD_SETSIZE = 1024  # select(2) cannot watch a file with this number or above

LAST = getattr(socket, "MSG_MORE", 0)  # of a send before a close: Linux sends the end in the same segment
EXHAUSTED = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
NO_SUCH_FAMILY = frozenset([errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])


class Loop:
    """The reactor. `clock` (seconds, monotonic) and `selector` can be handed in, so that tests own time."""

    def __init__(self, clock=time.monotonic, selector=None):
        self.selector = selectors.DefaultSelector() if selector is None else selector
        self.now = clock()  # seconds, as of this turn
        self.turns = 0
        self._clock = clock
        # A heap of [when, order, callback]: callback is None once cancelled or run, when is None out of the heap.
        self._timers = []
        self._order = 0  # breaks ties of `when`, so that equal deadlines run in order
        self._cancelled = 0  # how many of the heap's entries are cancelled
        self._again = {}  # streams to take up next turn without new input, in order
        self.unsettled = []  # streams with something to send, or that may want another interest now
        self._watching = {}  # from file to what is watched: as the selector has it, less a call for each look
        self._wait, self._stop_waiting = waiter(self.selector, self._watching)
        self._signals = None
        self._running = False
        self.read_size = READ_SIZE
        self.output_high = OUTPUT_HIGH
        # Files with this number or above cannot be watched; None where any can.
        self.file_limit = FD_SETSIZE if isinstance(self.selector, selectors.SelectSelector) else None

    # ---- time

    def call_at(self, when, callback):
        """Runs callback() once `now` reaches `when` (seconds on the loop's clock); returns a handle for `cancel`."""
        self._order += 1
        timer = [when, self._order, callback]
        heapq.heappush(self._timers, timer)
        return timer

    def call_later(self, delay, callback):
        """Runs callback() `delay` seconds after the beginning of this turn; returns a handle for `cancel`."""
        self._order += 1
        timer = [self.now + delay, self._order, callback]
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer):
        """Drops a timer and what it refers to. None, one that has run and one that is cancelled are welcome."""
        if timer is None or timer[2] is None:
            return
        timer[2] = None
        if timer[0] is None:  # taken from the heap already, to be run in this very turn
            return
        self._cancelled += 1
        # Most timers are cancelled long before they are due. They go when they are half of the heap, at
        # a cost that is constant for each.
        if self._cancelled > COMPACT_ABOVE and self._cancelled * 2 > len(self._timers):
            self._timers = [timer for timer in self._timers if timer[2] is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def timers(self):
        """How many timers are waiting; cancelled ones do not count."""
        return sum(timer[2] is not None for timer in self._timers)

    # ---- connections

    def listen(self, host, port, accepted):
        """Listens on every address of host (text, ASCII) and port (0 takes a free one); returns the Listeners.

        accepted(socket) is called for each connection. Raises OSError where an address cannot be had; a
        family that the kernel lacks is passed over as long as another is there.
        """
        listeners, refusal = [], None
        for family, address in resolve(host, port, socket.AI_PASSIVE):
            if listeners and not port:  # one free port for all families
                address = (address[0], listeners[0].address[1]) + address[2:]
            try:
                listeners.append(Listener(self, listening_socket(family, address), accepted))
            except OSError as error:
                refusal = error
                if error.errno not in NO_SUCH_FAMILY:
                    break
        if refusal is not None and not (listeners and refusal.errno in NO_SUCH_FAMILY):
            for listener in listeners:
                listener.close()
            raise refusal
        return listeners

    def connect(self, host, port, handler):
        """Connects to the first address of host and port that answers; returns what can be aborted meanwhile.

        Then handler.connected(stream) is called, or handler.closed(None, error) with the last OSError.
        A name is looked up at once, and the loop waits for it: the standard library has no other way.
        """
        return Connector(self, resolve(host, port), handler)

    # ---- signals

    def on_signal(self, number, callback):
        """Runs callback() in the loop after signal `number`. Only in the main thread, where Python allows it."""
        if self._signals is None:
            self._signals = Signals(self)
        self._signals.add(number, callback)

    # ---- running

    def run(self):
        """Turns until `stop`, or until there is nothing left that could ever happen."""
        self._running = True
        while self._running and (self._first_timer() or self._again or self.unsettled or self._watching):
            self.turn()

    def stop(self):
        """Ends `run` after this turn."""
        self._running = False

    def turn(self):
        """One iteration."""
        # 1. How long to wait: not at all if a stream has whole messages in its buffer, which select cannot
        #    see, or something to send, else until the first timer. The wait rounds up, so that none is a busy one.
        first = self._first_timer()
        if self._again or self.unsettled:
            timeout = 0
        elif first is not None:
            timeout = min(max(first[0] - self._clock(), 0), WAIT_LIMIT)
        else:
            timeout = WAIT_LIMIT
        # 2. Wait.
        events = self._wait(timeout)
        # 3. Read the clock, once a turn.
        self.now = self._clock()
        self.turns += 1
        # 4. Take up what was left in buffers.
        if self._again:
            again, self._again = self._again, {}
            for stream in again:
                self.guard(stream, stream.take_up)
                if len(self.unsettled) >= SETTLE_AFTER:
                    self._settle()
        # 5. Handle the events. A callback may have closed another's connection, and its number may already
        #    be a new one's: the object that was registered says what it still wants, if anything.
        for watched, mask in events:
            mask &= watched.interest
            if mask:
                try:
                    watched.on_events(mask)
                except Exception as error:
                    self._failed(watched, error)
                if len(self.unsettled) >= SETTLE_AFTER:
                    self._settle()
        # 6. Send what came of it, and watch for what is wanted now. A peer that sleeps is woken by the first of
        #    several answers and finds the others when it looks: 0.9 us of a round trip's 10 with 32 connections.
        self._settle()
        # 7. Run the timers that are due, and not those that are set meanwhile.
        timers = self._timers
        due = []
        while timers and timers[0][0] <= self.now and len(due) < TIMERS_PER_TURN:
            timer = heapq.heappop(timers)
            if timer[2] is None:
                self._cancelled -= 1
            else:
                timer[0] = None
                due.append(timer)
        for timer in due:
            callback, timer[2] = timer[2], None
            if callback is not None:  # none of those before it cancelled it
                self.guard(None, callback)

    def take_up(self, stream):
        """Has stream.take_up() called next turn, which then comes at once."""
        self._again[stream] = None

    def _settle(self):
        """Settles the streams that ask for it; those that ask meanwhile have their turn in the next."""
        streams, self.unsettled = self.unsettled, []
        for stream in streams:
            try:
                stream.settle()
            except Exception as error:
                self._failed(stream, error)

    def watch(self, watched, interest):
        """Makes `interest` what the selector watches of `watched`; nothing at all is unregistered.

        Raises OSError (EMFILE) for a file that select(2) cannot watch, which would fail every later select.
        """
        if interest != watched.interest:
            if self.file_limit is not None and interest and watched.fileno() >= self.file_limit:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if not interest:
                del self._watching[self.selector.unregister(watched).fd]
            elif watched.interest:
                self.selector.modify(watched, interest, watched)
            else:
                self._watching[self.selector.register(watched, interest, watched).fd] = watched
            watched.interest = interest

    def report(self, error):
        """Told of every exception that a callback let out. To be replaced; this one raises it again."""
        raise error

    def close(self):
        """Gives back the selector and the signals. Streams and listeners are their owners' to close."""
        if self._signals is not None:
            self._signals.close()
            self._signals = None
        self._stop_waiting()
        self.selector.close()

    def _first_timer(self):
        """The timer that is due first, or None; cancelled ones before it go."""
        timers = self._timers
        while timers and timers[0][2] is None:
            heapq.heappop(timers)
            self._cancelled -= 1
        return timers[0] if timers else None

    def guard(self, owner, callback):
        """Runs callback(); an exception costs the owner alone."""
        try:
            callback()
        except Exception as error:
            self._failed(owner, error)

    def _failed(self, owner, error):
        """An exception in a callback costs that connection alone, and is told."""
        if owner is not None:
            self.guard(None, lambda: owner.abort(error if isinstance(error, OSError) else None))
        self.report(error)


class Stream:
    """A connected socket with a buffer for each direction. Its interest follows from its state."""

    __slots__ = ("loop", "handler", "interest", "input", "ended", "closing",
                 "_socket", "_output", "_pending", "_broken", "_deadline", "_discarded")

    def __init__(self, loop, connection, handler):
        self.loop = loop
        self.handler = handler
        self.interest = 0
        self.input = b""  # bytes or bytearray: what the handler has not taken yet
        self.ended = False  # the peer has sent its last
        self.closing = False  # close() was called: what is owed is flushed, what comes is thrown away
        self._socket = connection
        self._output = b""  # b"" or a bytearray: what the kernel has not taken yet
        self._pending = None  # what the handler asked for last: None, AGAIN or HOLD
        self._broken = None  # the OSError of a send: nothing more can be sent, but an ERR may still be there to read
        self._deadline = None  # the timer that ends a closing
        self._discarded = 0
        loop.watch(self, READ)

    def fileno(self):
        return self._socket.fileno()

    # ---- what it wants

    def _readable(self):
        if self.ended:
            return False
        if self.closing:
            return True
        # Under the low mark reading begins, over the high one it stops.
        if self._pending is HOLD or (self._pending is AGAIN and not self._listens()):
            return False
        return self.room() >= 0 if self.interest & READ else self._listens()

    def _listens(self):
        """Whether the peer takes what it asked for: little of the output is left."""
        return len(self._output) * OUTPUT_LOW <= self.loop.output_high

    def _update(self):
        self.loop.watch(self, (READ if self._readable() else 0) | (WRITE if self._output else 0))

    # ---- what its owner does

    def room(self):
        """Bytes that may be written before the stream is read no more."""
        return self.loop.output_high - len(self._output)

    def write(self, data):
        """Sends bytes: at the end of this turn what the kernel takes then, the rest when it can.

        All that is written in a turn goes in one send. After close() it does nothing.
        """
        if self.closing or self._broken is not None or not data:
            return
        if self._output:
            self._output = grown(self._output, data)
        else:
            self._output = data if type(data) is bytes else bytes(data)  # the caller may go on with a bytearray
        self.loop.unsettled.append(self)

    def resume(self):
        """Ends a HOLD."""
        if self._pending is HOLD:
            self._pending = AGAIN
            self.loop.unsettled.append(self)

    def close(self, expect_more=True):
        """Flushes what is owed and closes, so that it reaches the peer.

        A socket that is closed with unread input makes the kernel send a reset and throw away what the peer has
        not read yet (RFC 2525, 2.17). So this shuts down its own direction, throws away what still comes, and
        closes at the peer's end, at a deadline, or at a cap. With expect_more=False, where the peer has nothing
        more to say, the socket is closed as soon as all is sent, which saves a turn and two system calls; a peer
        that says more in this very moment may lose the last of it.
        """
        if self.closing or self._socket is None:
            return
        self.ended = self.ended or not (expect_more or self.input)
        if self.ended and not self._output:
            self._close(self._broken)
            return
        self.closing = True
        self.input = b""
        self._pending = None
        self.loop.unsettled.append(self)

    def abort(self, error=None):
        """Closes at once, with a reset."""
        if self._socket is not None:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:  # the peer was faster
                pass
            self._close(error)

    # ---- what the loop does

    def on_events(self, mask):
        """One recv at the most, and what came is handed on; where the kernel has room again, one send."""
        if mask & WRITE:
            self._flush()
            self.loop.unsettled.append(self)
        if self._pending or not mask & READ:
            return  # what the handler left comes first
        try:
            data = self._socket.recv(self.loop.read_size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close(self._broken or error)
            return
        if not data or self.closing:
            self._end_or_discard(data)
            return
        self.input = grown(self.input, data) if self.input else data
        self._pending = self.handler.received(self)
        if self._pending or self.input:
            self.loop.unsettled.append(self)

    def take_up(self):
        """Gives the handler another go at what it left, once enough of the output is gone."""
        if self._pending is AGAIN and self._listens():
            self._pending = self.handler.received(self)
        self.loop.unsettled.append(self)

    def settle(self):
        """The end of a turn: one send at the most, and what is watched for becomes what is wanted now."""
        if self._output and not self.interest & WRITE:
            self._flush()
            if self.interest and not (self._output or self._pending or self.input or self.ended or self.closing):
                return  # as nearly always: all is sent and nothing is left, so what is wanted is what was
        if self._socket is None:
            return
        if self.closing:
            self._wind_down()
            return
        if self.ended and self._broken is not None:
            self._close(self._broken)
            return
        if self._pending is AGAIN:
            if self._listens():
                self.loop.take_up(self)
        elif len(self.input) > INPUT_LIMIT:
            raise ValueError("a handler left %d bytes of input" % len(self.input))
        self._update()

    def _end_or_discard(self, data):
        self.ended = not data
        if not self.closing:
            if self._broken is None:
                self._pending = self.handler.received(self)
            self.loop.unsettled.append(self)
            return
        self._discarded += len(data)
        if self._discarded > LINGER_BYTES:
            self.abort()
        elif self.ended:
            self.loop.unsettled.append(self)

    def _flush(self):
        """One send of what there is."""
        output = self._output
        try:
            if len(output) <= WRITE_SIZE:
                sent = self._socket.send(output, LAST if self.closing else 0)
            else:
                with memoryview(output) as view, view[:WRITE_SIZE] as head:
                    sent = self._socket.send(head)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._broken = error  # what the peer said before may still be there to read
            sent = len(output)
        if sent == len(output):
            self._output = b""
        else:
            if type(output) is bytes:
                self._output = output = bytearray(output)
            del output[:sent]

    def _wind_down(self):
        """One step from close() to the socket's end: when some output has gone, and when the peer has ended."""
        if self._broken is not None or (self.ended and not self._output):
            self._close(self._broken)
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
        self.loop.watch(self, 0)
        self._socket.close()
        self._socket = None
        self._output = self.input = b""
        self._pending = None
        self.closing = True
        self.loop.cancel(self._deadline)
        handler, self.handler = self.handler, None
        handler.closed(self, error)


def grown(data, more):
    """data (bytes or bytearray) with more behind it: grows in place, so that many small pieces stay linear."""
    if type(data) is bytes:
        data = bytearray(data)
    data += more
    return data


class Listener:
    """A listening socket. accepted(socket) is called for each connection, non-blocking, with TCP_NODELAY."""

    def __init__(self, loop, listening, accepted):
        self.loop = loop
        self.interest = 0
        self.address = listening.getsockname()
        self._socket = listening
        self._family, self._type = int(listening.family), int(listening.type)
        self._accepted = accepted
        self._resume = None
        loop.watch(self, READ)

    def fileno(self):
        return self._socket.fileno()

    def on_events(self, mask):
        for connection in accept(self._take, self._rest):
            self._accepted(connection)
            if self._socket is None:
                return

    def _take(self):
        # What socket.accept() does, less its making of enum members and a Python object: 2.4 us of a session's 50.
        number, _ = self._socket._accept()
        return socket.SocketType(self._family, self._type, 0, number)

    def _rest(self):
        """Out of files or buffers: a level-triggered listener would spin until some come back."""
        self.loop.watch(self, 0)
        self._resume = self.loop.call_later(ACCEPT_PAUSE, self._wake)

    def _wake(self):
        self.loop.watch(self, READ)

    def abort(self, error=None):
        """An exception in `accepted` is that connection's, not the listener's."""

    def close(self):
        if self._socket is not None:
            self.loop.cancel(self._resume)
            self.loop.watch(self, 0)
            self._socket.close()
            self._socket = None


def accept(take, exhausted):
    """The accept policy: yields a bounded batch of the connections that take() gives; exhausted() when out of files."""
    for _ in range(ACCEPT_BATCH):
        try:
            connection = take()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno in EXHAUSTED:
                exhausted()
                return
            continue  # that connection is gone, or a firewall's rule forbids it: the next may be well
        connection.setblocking(False)
        yield connection


class Connector:
    """An outgoing connection on its way: tries one address after the other."""

    def __init__(self, loop, addresses, handler):
        self.loop = loop
        self.interest = 0
        self._addresses = iter(addresses)
        self._handler = handler
        self._socket = None
        # From the loop, so that the caller has this object in hand before anything is called back.
        self._start = loop.call_later(0, self._next)
        self._error = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    def fileno(self):
        return self._socket.fileno()

    def abort(self, error=None):
        """Gives up, without a word to the handler."""
        self.loop.cancel(self._start)
        self._addresses = iter(())
        self._drop()

    def on_events(self, mask):
        self._check(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _next(self):
        for family, address in self._addresses:
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM)
                self._socket.setblocking(False)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                code = self._socket.connect_ex(address)
                if code in (errno.EINPROGRESS, errno.EINTR):
                    self.loop.watch(self, WRITE)
                    return
            except OSError as error:
                self._error = error
                self._drop()
                continue
            self._check(code)
            return
        self._handler.closed(None, self._error)

    def _check(self, code):
        if not code:
            try:
                # Connecting to a free port of one's own host can meet oneself (a simultaneous open).
                if self._socket.getsockname() == self._socket.getpeername():
                    code = errno.ECONNREFUSED
            except OSError as error:  # reset in this very moment
                code = error.errno
        if code:
            self._error = OSError(code, os.strerror(code))
            self._drop()
            self._next()
            return
        self.loop.watch(self, 0)
        connection, self._socket = self._socket, None
        stream = Stream(self.loop, connection, self._handler)
        try:
            self._handler.connected(stream)
        except Exception:
            stream.abort()
            raise

    def _drop(self):
        if self._socket is not None:
            self.loop.watch(self, 0)
            self._socket.close()
            self._socket = None


class Signals:
    """Signals as events: the interpreter writes a byte for each into a socket pair, which ends the wait."""

    def __init__(self, loop):
        self.loop = loop
        self.interest = 0
        self._callbacks = {}
        self._handlers = {}  # what was there before
        self._socket, self._writer = socket.socketpair()
        self._socket.setblocking(False)
        self._writer.setblocking(False)
        try:
            # A full pair loses bytes of signals that are already known of: no warning is due.
            self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        except TypeError:  # before 3.7
            self._previous = signal.set_wakeup_fd(self._writer.fileno())
        loop.watch(self, READ)

    def fileno(self):
        return self._socket.fileno()

    def add(self, number, callback):
        self._callbacks[number] = callback
        # A handler has to be there for the byte to be written; what it does happens in the loop.
        previous = signal.signal(number, lambda number, frame: None)
        self._handlers.setdefault(number, previous)

    def on_events(self, mask):
        numbers = set()
        while True:
            try:
                data = self._socket.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                break
            numbers.update(data)
        for number in numbers & set(self._callbacks):
            self.loop.guard(None, self._callbacks[number])

    def abort(self, error=None):
        """An exception is not the end of signals."""

    def close(self):
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous)
        self.loop.watch(self, 0)
        self._socket.close()
        self._writer.close()


def waiter(selector, watching):
    """(wait, close) of a selector, where watching is a dict from the number of each of its files to what is watched.

    wait(timeout), in seconds, returns [(watched, mask)] of what is ready by then, and close() gives back what it took.
    """
    if type(selector) is not getattr(selectors, "EpollSelector", None):
        return lambda timeout: [(key.data, mask) for key, mask in selector.select(timeout)], lambda: None
    # The fast path: this waits on the selector's own epoll. Its select() goes the same way with a call and some
    # objects for each event, 0.2 to 0.3 us of a round trip's 10.
    epoll = select.epoll.fromfd(os.dup(selector.fileno()))
    poll = epoll.poll
    return lambda timeout: [(watching[number], MASKS[events]) for number, events in poll(timeout)], epoll.close


# What the selectors make of epoll's EPOLLIN (1), EPOLLOUT (4), EPOLLERR (8) and EPOLLHUP (16).
MASKS = bytes((READ if events & ~4 else 0) | (WRITE if events & ~1 else 0) for events in range(32))


def resolve(host, port, flags=0):
    """[(family, address)] of host (text; empty for every address of this machine) and port.

    The host goes in as bytes: as text it needs the idna codec, which small builds lack, even for 127.0.0.1.
    Raises OSError where there is none, also for a host that is not ASCII.
    """
    try:
        name = host.encode("ascii") or None
    except UnicodeError:
        raise OSError(errno.EINVAL, "a host name has to be ASCII") from None
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


def listening_socket(family, address):
    """A non-blocking socket that listens on address; raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart waits for TIME_WAIT
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
