"""The reactor: a selector, a heap of timers, and signals, in one thread.

It knows nothing of connections and protocols. Only `Loop.turn` waits, once per turn.

A watched object has these members:

    fileno()         the number of its file
    interest         the events watched for: READ, WRITE, both or 0. Initially 0, later set by `watch` only
    on_events(mask)  called with READ, WRITE or both when its file is ready
    abort(error)     called after an uncaught exception in one of its callbacks; error is an OSError or None

An object that asks for attention, by putting itself into `Loop.attention`, has these:

    take_up()        called at the start of the next turn: continues buffered work, which no event announces,
                     then asks for attention again
    settle()         called at the end of the turn; returns whether to call `take_up` in the next turn
"""

import errno
import heapq
import os
import select
import selectors
import time

from .system import signal, socket

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# Bytes per recv, of which a stream does one per turn: this bounds how long one connection keeps the others
# waiting. malloc serves 64 KiB without a system call; 256 KiB take ten times as long.
READ_SIZE = 64 * 1024
# Unsent bytes above which a stream is not read: the peer sends requests without reading replies.
OUTPUT_HIGH = 256 * 1024
# Settle after this many objects asked for attention: the output that waits for it takes bounded memory,
# up to twice OUTPUT_HIGH each.
SETTLE_AFTER = 16
# Events of a turn up to which single replies are sent at once. With more, a busy server would wake a sleeping
# peer for many of them: 12 % more time with 1,000 connections that request long sequences.
AT_ONCE_MOST = 64
TIMERS_PER_TURN = 256  # timers run per turn, so that thousands due at once do not starve the sockets
COMPACT_ABOVE = 1024  # cancelled timers that may stay in the heap, whatever its size
REST_SECONDS = 0.1  # how long a file is not watched that would spin: ten attempts a second cost nothing
WAIT_PAUSE = 0.05  # seconds to sleep after the wait itself failed, so that repeated failures do not spin
SHORT_TURN = 64e-6  # seconds; turns shorter than this are counted together
TIME_BUCKETS = 64  # buckets of a histogram of times: one per bit of the microseconds, more than any time has
LATE = 0.1  # seconds of delay above which a timer waits for one more look at the selector
WAIT_LIMIT = 86400.0  # seconds per wait: epoll overflows at 2,147,483 s, 32-bit select at 2 ** 31
FD_SETSIZE = 1024  # select(2) cannot watch files numbered from here on
SIGNALS_SIZE = 4096  # bytes per read of the signals' socket, one byte per signal


class Loop:
    """The reactor. Tests pass their own `clock` (seconds, monotonic), `selector` and `sleep` to control time.

    `read_size` and `output_high` (bytes) are settings for its streams: see READ_SIZE and OUTPUT_HIGH.
    """

    def __init__(self, clock=time.monotonic, selector=None, sleep=time.sleep):
        self.poller = Poller(working_selector() if selector is None else selector)
        self.watch = self.poller.watch
        self.now = clock()  # seconds, read once per turn
        self.turns = 0
        # turn_counts[k] is the number of turns that took 2 ** (k - 1) to 2 ** k microseconds, waits excluded.
        # Turns below SHORT_TURN are left out.
        self.turn_counts = [0] * TIME_BUCKETS
        self.turn_seconds = 0.0  # total time of all turns
        self.read_size = READ_SIZE
        self.output_high = OUTPUT_HIGH
        self.is_crowded = False  # whether this turn has more than AT_ONCE_MOST events
        self.attention = {}  # objects to take up and to settle; a dict, because a set does not keep the order
        self.clock = clock  # for measuring times within a turn
        self._sleep = sleep
        # A heap of [when, order, callback, argument]. callback is None once the timer was cancelled or run,
        # when is None once it has left the heap.
        self._timers = []
        self._order = 0  # breaks ties of `when`, so that equal deadlines run in the order of their creation
        self._cancelled = 0  # cancelled timers in the heap
        self._signals = None
        self._running = False

    # ---- time

    def call_at(self, when, callback, argument=None):
        """Runs callback() when the loop's clock reaches `when` (seconds); returns a handle for `cancel`.

        With an argument other than None, runs callback(argument). A function and its object take 64 bytes
        less than a bound method.
        """
        self._order += 1
        timer = [when, self._order, callback, argument]
        heapq.heappush(self._timers, timer)
        return timer

    def call_later(self, delay, callback, argument=None):
        """Runs callback() `delay` seconds after the start of this turn; otherwise like `call_at`."""
        return self.call_at(self.now + delay, callback, argument)

    def cancel(self, timer):
        """Drops a timer and its callback. None, expired and cancelled timers are ignored. Raises nothing."""
        if timer is None or timer[2] is None:
            return
        timer[2] = timer[3] = None
        if timer[0] is None:  # out of the heap: it was about to run in this turn
            return
        self._cancelled += 1
        # Most timers are cancelled long before they are due. Removing them once they make up half of the heap
        # costs constant time per timer.
        if self._cancelled > COMPACT_ABOVE and self._cancelled * 2 > len(self._timers):
            try:
                self._timers = [timer for timer in self._timers if timer[2] is not None]
            except MemoryError:  # later, then: whoever cancels a timer has more to clean up
                return
            heapq.heapify(self._timers)
            self._cancelled = 0

    def timers(self):
        """The number of pending timers (int)."""
        return sum(timer[2] is not None for timer in self._timers)

    # ---- signals

    def on_signal(self, number, callback):
        """Runs callback() in the loop after each signal `number`. Works in the main thread only."""
        if self._signals is None:
            self._signals = Signals(self)
        self._signals.add(number, callback)

    # ---- running

    def run(self):
        """Runs turns until `stop`, or until no file, timer or object is left to wait for."""
        self._running = True
        while self._running and (self.attention or self.poller.watched or self._first_timer()):
            self.turn()

    def stop(self):
        """Ends `run` after this turn."""
        self._running = False

    def turn(self):
        """One iteration."""
        # 1. Decide how long to wait: not at all if an object asks for attention, because its work is in
        #    buffers that no selector sees; otherwise until the first timer. The selector rounds up, so the
        #    loop never waits busily. The previous turn took the time since its clock was read.
        now = self.clock()
        seconds = now - self.now
        self.turn_seconds += seconds
        if seconds >= SHORT_TURN:
            self.turn_counts[int(seconds * 1e6).bit_length()] += 1
        first = None
        if self.attention:
            timeout = 0
        else:
            first = self._first_timer()
            timeout = WAIT_LIMIT if first is None else first[0] - now
            if timeout < 0:
                timeout = 0
            elif timeout > WAIT_LIMIT:
                timeout = WAIT_LIMIT
        # 2. Wait.
        try:
            events = self.poller.wait(timeout)
            # After SIGSTOP and SIGCONT, epoll.poll returns an empty list once its timeout has passed, without
            # looking again. Input that has arrived meanwhile must be read before the late timer runs.
            if not events and timeout and first is not None and self.clock() > first[0] + LATE:
                events = self.poller.wait(0)
        except Exception as error:
            events = ()
            self.report(error)
            self._sleep(WAIT_PAUSE)
        # 3. Read the clock.
        self.now = self.clock()
        self.turns += 1
        self.is_crowded = len(events) > AT_ONCE_MOST
        # 4. Take up the work left in buffers.
        left = {}  # objects to take up in the next turn
        if self.attention:
            asking, self.attention = self.attention, {}
            for each in asking:
                try:
                    each.take_up()
                except Exception as error:
                    self._failed(each, error)
                if len(self.attention) >= SETTLE_AFTER:
                    self._settle(left)
        # 5. Handle the events. A callback may have closed another object of this batch, and its file's number
        #    may already be reused. The object's own interest tells: it is 0 once the object is closed.
        for watched, mask in events:
            mask &= watched.interest
            if mask:
                try:
                    watched.on_events(mask)
                except Exception as error:
                    self._failed(watched, error)
                if len(self.attention) >= SETTLE_AFTER:
                    self._settle(left)
        # 6. Send what was written and update the selector. Sending each run of replies at once would take
        #    14 % more with 16 peers, because it wakes them more often.
        if self.attention:
            self._settle(left)
        if left:
            self._ask_again(left)
        # 7. Run the timers that are due, but not those that they set.
        timers = self._timers
        if timers and timers[0][0] <= self.now:
            self._run_timers()

    def _settle(self, left):
        """Settles the objects that ask for attention; adds those to take up in the next turn to `left`."""
        asking, self.attention = self.attention, {}
        for each in asking:
            try:
                if each.settle():
                    left[each] = None
            except Exception as error:
                self._failed(each, error)

    def _ask_again(self, left):
        """Has the objects in `left` taken up in the next turn, before those that asked meanwhile."""
        since, self.attention = self.attention, left
        for each in since:
            try:
                left[each] = None
            except Exception as error:  # out of memory: the object would never be taken up
                self._failed(each, error)

    def _run_timers(self):
        timers = self._timers
        due = []
        while timers and timers[0][0] <= self.now and len(due) < TIMERS_PER_TURN:
            timer = timers[0]
            if timer[2] is None:
                self._cancelled -= 1
            else:
                try:
                    due.append(timer)  # before it leaves the heap, so that a MemoryError loses no timer
                except MemoryError:
                    break
                timer[0] = None
            heapq.heappop(timers)
        for timer in due:
            callback, argument = timer[2], timer[3]
            timer[2] = timer[3] = None
            if callback is not None:  # not cancelled by an earlier one
                try:
                    callback() if argument is None else callback(argument)
                except MemoryError as error:  # run it again later: without its timer a connection never ends
                    timer[:] = self.now + REST_SECONDS, timer[1], callback, argument
                    heapq.heappush(self._timers, timer)  # `cancel` may have replaced the list
                    self.report(error)
                except Exception as error:
                    self.report(error)

    def _first_timer(self):
        """The first pending timer, or None; removes cancelled timers before it."""
        timers = self._timers
        while timers and timers[0][2] is None:
            heapq.heappop(timers)
            self._cancelled -= 1
        return timers[0] if timers else None

    # ---- failures

    def rest(self, watched):
        """Stops watching an object for REST_SECONDS, then asks for attention for it. Returns the timer.

        For a file that is reported ready when nothing can be done with it: the loop would spin.
        """
        # The timer comes first: if memory is short, the object is still watched and tries again.
        timer = self.call_later(REST_SECONDS, lambda: self.attention.__setitem__(watched, None))
        self.watch(watched, 0)
        return timer

    def guard(self, owner, callback):
        """Runs callback(); an exception aborts only its owner (which may be None) and is reported."""
        try:
            callback()
        except Exception as error:
            self._failed(owner, error)

    def _failed(self, owner, error):
        """Aborts the owner of a callback that raised, and reports the error."""
        if owner is not None:
            try:
                owner.abort(error if isinstance(error, OSError) else None)
            except Exception as second:
                self.report(second)
        self.report(error)

    def report(self, error):
        """Called with each uncaught exception of a callback or of the wait; override it.

        This default raises the error. With a replacement that never raises, the loop survives every error.
        """
        raise error

    def close(self):
        """Restores the signal handlers and closes the selector. Owners close their watched objects."""
        if self._signals is not None:
            self._signals.close()
            self._signals = None
        self.poller.close()


def working_selector():
    """The best selector that works on this system. Raises OSError if none does."""
    refusal = None
    # A sandbox may forbid epoll, which DefaultSelector does not check before Python 3.9.
    for name in "DefaultSelector", "PollSelector", "SelectSelector":
        try:
            return getattr(selectors, name)()
        except (AttributeError, OSError) as error:  # AttributeError: this build lacks it
            refusal = error
    raise OSError(errno.ENOSYS, "no selector works here: %s" % refusal)


class Poller:
    """Owns the selector and the map of watched objects. On Linux it waits on epoll directly."""

    def __init__(self, selector):
        self.watched = {}  # from file number to object: a copy of the selector's map, cheaper to read
        # Files numbered from here on cannot be watched; None means no limit.
        self.file_limit = FD_SETSIZE if isinstance(selector, selectors.SelectSelector) else None
        self.selector = selector
        self._epoll = None
        if type(selector) is getattr(selectors, "EpollSelector", None):
            # EpollSelector.select() costs a call and several objects per event: 0.2 to 0.3 us of a round
            # trip's 10 us.
            try:
                self._epoll = select.epoll.fromfd(os.dup(selector.fileno()))
            except OSError:  # out of files
                selector.close()
                raise
            self.wait = self._wait_on_epoll

    def watch(self, watched, interest):
        """Watches an object for `interest`: READ, WRITE or both; 0 unregisters it. All or nothing.

        Raises OSError; the object is no longer watched then. The error is EMFILE if select(2) cannot watch
        the file's number, which would make every later select fail.
        """
        before = watched.interest
        if interest == before:
            return
        try:
            if not interest:
                del self.watched[self.selector.unregister(watched).fd]
            elif before:
                self.selector.modify(watched, interest, watched)
            else:
                if self.file_limit is not None and watched.fileno() >= self.file_limit:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                self.watched[self._register(watched, interest)] = watched
        except Exception:
            self._forget(watched)
            raise
        watched.interest = interest

    def _register(self, watched, interest):
        """Registers an object; returns its file's number."""
        try:
            return self.selector.register(watched, interest, watched).fd
        except KeyError:  # the number's former owner could not be unregistered before it was closed
            self.selector.unregister(watched)
            return self.selector.register(watched, interest, watched).fd

    def _forget(self, watched):
        """Removes every trace of an object that could not be watched. Raises nothing."""
        watched.interest = 0
        try:
            self.selector.unregister(watched)
        except Exception:  # not registered, already closed, or out of memory
            pass
        for number in [number for number, each in self.watched.items() if each is watched]:
            del self.watched[number]
            self._drop(number)

    def _drop(self, number):
        """Removes a file's number from epoll: EpollSelector.modify() drops only its key when it fails."""
        if self._epoll is not None:
            try:
                self._epoll.unregister(number)
            except (OSError, ValueError):  # not registered there either
                pass

    def wait(self, timeout):
        """Waits at most timeout (seconds) for events; returns [(object, READ | WRITE)]."""
        return [(key.data, mask) for key, mask in self.selector.select(timeout)]

    def _wait_on_epoll(self, timeout):
        watched = self.watched
        ready = self._epoll.poll(timeout)
        try:
            return [(watched[number], MASKS[events]) for number, events in ready]
        except KeyError as unknown:  # an object whose registration failed half-way
            self._drop(unknown.args[0])
            return []

    def close(self):
        """Closes the selector."""
        if self._epoll is not None:
            self._epoll.close()
        self.selector.close()


# From EPOLLIN (1), EPOLLOUT (4), EPOLLERR (8), EPOLLHUP (16) to READ and WRITE, as EpollSelector maps them.
MASKS = bytes((READ if events & ~4 else 0) | (WRITE if events & ~1 else 0) for events in range(32))


def wake(number, frame):
    """The handler of each signal. It does nothing: the interpreter has already written the byte."""


def watch_or_rest(watched):
    """Watches an object for reading; if that fails, the object rests and is tried again."""
    try:
        watched.loop.watch(watched, READ)
    except Exception as error:
        watched.loop.rest(watched)
        watched.loop.report(error)


class Signals:
    """Signals as events: the interpreter writes a byte per signal into a socket pair, which ends the wait."""

    def __init__(self, loop):
        self.loop = loop
        self.interest = 0
        self._callbacks = {}
        self._handlers = {}  # from signal number to the previous handler
        self._socket, self._writer = socket.socketpair()
        self._socket.setblocking(False)
        self._writer.setblocking(False)
        try:
            # A full pair loses only bytes of signals that are pending anyway: no warning is needed.
            self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        except TypeError:  # before 3.7
            self._previous = signal.set_wakeup_fd(self._writer.fileno())
        loop.watch(self, READ)

    def fileno(self):
        return self._socket.fileno()

    def add(self, number, callback):
        """Runs callback() in the loop after signal `number`, unless the parent ignored it, as nohup does."""
        if signal.getsignal(number) == signal.SIG_IGN:
            return
        self._callbacks[number] = callback
        previous = signal.signal(number, wake)  # without a handler, the interpreter writes no byte
        self._handlers.setdefault(number, previous)

    def on_events(self, mask):
        numbers = set()
        try:
            while True:
                numbers.update(self._socket.recv(SIGNALS_SIZE))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.loop.report(error)
        if not numbers:  # reported ready, but nothing to read
            self.loop.rest(self)
        for number in numbers & set(self._callbacks):
            self.loop.guard(None, self._callbacks[number])

    def take_up(self):
        self.loop.attention[self] = None

    def settle(self):
        """Called after a rest."""
        if self._socket.fileno() >= 0:
            watch_or_rest(self)

    def abort(self, error=None):
        """Does nothing: signals stay watched whatever a callback raises."""

    def close(self):
        """Restores the previous handlers, except those that others have replaced meanwhile."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is wake:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous)
        self.loop.watch(self, 0)
        self._socket.close()
        self._writer.close()
