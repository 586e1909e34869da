"""The reactor: a selector, a heap of timers, and signals, in one thread.

It knows nothing of sockets and protocols. Only `Loop.turn` waits, once per turn.

An object that is watched has

    fileno()         the number of its file
    interest         READ, WRITE, both or 0: what is watched for; 0 at first, then set by `watch` alone
    on_events(mask)  called with READ, WRITE or both when its file is ready
    abort(error)     called after an uncaught exception in its callbacks; error is an OSError or None

and one that asks for attention, by putting itself into `Loop.attention`, has

    take_up()        called at the start of the next turn: goes on with work that no file announces, then asks
                     for attention again
    settle()         called at the end of the turn; returns whether `take_up` is due in the next turn
"""

import errno
import heapq
import os
import select
import selectors
import signal
import socket
import time

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# bytes of one recv, one per turn: what a connection may have answered before the next one's turn; as much as
# malloc gives without asking the system (256 KiB cost ten times as long)
READ_SIZE = 64 * 1024
# unsent bytes above which a stream is not read: its peer sends requests, but reads no replies
OUTPUT_HIGH = 256 * 1024
# objects to settle before the next event: a send wakes a peer that sleeps, and later ones then find it awake
# (4 cost 7 % more with 32 connections); with 64 the kernel's data of the first has left the cache
SETTLE_AFTER = 16
TIMERS_PER_TURN = 256  # timers run per turn, so that thousands due at once do not starve the sockets
COMPACT_ABOVE = 1024  # cancelled timers that may stay in the heap, however small it is
# how long a file that is ready, but of no use now, is not watched: 10 tries a second cost nothing
REST_SECONDS = 0.1
WAIT_PAUSE = 0.05  # seconds slept where the wait itself fails, for want of memory or by a fault of the system
SHORT_TURN = 64e-6  # seconds under which a turn is not told apart from others
TURN_BUCKETS = 64  # of the times of turns: more than any time has bits in its microseconds
LATE = 0.1  # seconds that a timer has to be late for the selector to be asked again before it is run
WAIT_LIMIT = 86400.0  # seconds of one wait: epoll overflows at 2,147,483 s, 32-bit select at 2 ** 31
FD_SETSIZE = 1024  # select(2) cannot watch a file with this number or above
SIGNALS_SIZE = 4096  # bytes of one read of the signals' socket, one byte per signal


class Loop:
    """The reactor. `clock` (seconds, monotonic) and `selector` can be handed in, so that tests control time.

    `read_size` and `output_high` (bytes) are settings of its streams: see READ_SIZE and OUTPUT_HIGH.
    """

    def __init__(self, clock=time.monotonic, selector=None, sleep=time.sleep):
        self.poller = Poller(working_selector() if selector is None else selector)
        self.watch = self.poller.watch
        self.now = clock()  # seconds, read once per turn
        self.turns = 0
        # How many turns took 2 ** (k - 1) to 2 ** k microseconds, without their waits, of those from
        # SHORT_TURN on; and how
        # long all took together (seconds).
        self.turn_counts = [0] * TURN_BUCKETS
        self.turn_seconds = 0.0
        self.read_size = READ_SIZE
        self.output_high = OUTPUT_HIGH
        self.attention = {}  # objects to take up and to settle, in order; a set that keeps its order
        self.clock = clock  # reads the clock anew, for what is shorter than a turn
        self._sleep = sleep
        # A heap of [when, order, callback]: callback is None once cancelled or run, when is None out of the
        # heap.
        self._timers = []
        self._order = 0  # breaks ties of `when`, so that equal deadlines run in order
        self._cancelled = 0  # cancelled timers in the heap
        self._signals = None
        self._running = False

    # ---- time

    def call_at(self, when, callback):
        """Runs callback() when the loop's clock reaches `when` (seconds); returns a handle for `cancel`."""
        self._order += 1
        timer = [when, self._order, callback]
        heapq.heappush(self._timers, timer)
        return timer

    def call_later(self, delay, callback):
        """Runs callback() `delay` seconds after the start of this turn; returns a handle for `cancel`."""
        return self.call_at(self.now + delay, callback)

    def cancel(self, timer):
        """Drops a timer and what it refers to. None, expired and cancelled timers are ignored."""
        if timer is None or timer[2] is None:
            return
        timer[2] = None
        if timer[0] is None:  # already out of the heap, to be run in this turn
            return
        self._cancelled += 1
        # Most timers are cancelled long before they are due. They are removed once they are half of the heap,
        # at a constant cost per timer.
        if self._cancelled > COMPACT_ABOVE and self._cancelled * 2 > len(self._timers):
            self._timers = [timer for timer in self._timers if timer[2] is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def timers(self):
        """How many timers are waiting, without the cancelled ones (int)."""
        return sum(timer[2] is not None for timer in self._timers)

    # ---- signals

    def on_signal(self, number, callback):
        """Runs callback() in the loop after signal `number`.

        Only in the main thread, where Python allows it.
        """
        if self._signals is None:
            self._signals = Signals(self)
        self._signals.add(number, callback)

    # ---- running

    def run(self):
        """Turns until `stop`, or until nothing is left that could ever happen."""
        self._running = True
        while self._running and (self.attention or self.poller.watched or self._first_timer()):
            self.turn()

    def stop(self):
        """Ends `run` after this turn."""
        self._running = False

    def turn(self):
        """One iteration."""
        # 1. How long to wait: not at all if an object asks for attention, because its work is in buffers,
        #    which no selector sees; else until the first timer. The selector rounds up, so that no wait is a
        #    busy one. The time since the clock was last read is what the turn before took.
        now = self.clock()
        seconds = now - self.now
        self.turn_seconds += seconds
        if seconds >= SHORT_TURN:
            self.turn_counts[int(seconds * 1e6).bit_length()] += 1
        first = self._first_timer()
        if self.attention:
            timeout = 0
        elif first is not None:
            timeout = min(max(first[0] - now, 0), WAIT_LIMIT)
        else:
            timeout = WAIT_LIMIT
        # 2. Wait.
        try:
            events = self.poller.wait(timeout)
            # After the process was stopped, a timer can be late although what it waits for has come: what is
            # readable is read first. (epoll.poll, interrupted, returns an empty list when its time is over,
            # without looking again.)
            if not events and timeout and first is not None and self.clock() > first[0] + LATE:
                events = self.poller.wait(0)
        except Exception as error:  # it may fail again at once: the sleep keeps that from spinning
            events = ()
            self.report(error)
            self._sleep(WAIT_PAUSE)
        # 3. Read the clock.
        self.now = self.clock()
        self.turns += 1
        # 4. Take up the work that is left in buffers.
        left = {}  # to be taken up next turn
        if self.attention:
            asking, self.attention = self.attention, {}
            for each in asking:
                try:
                    each.take_up()
                except Exception as error:
                    self._failed(each, error)
                if len(self.attention) >= SETTLE_AFTER:
                    self._settle(left)
        # 5. Handle the events. A callback may have closed another object of the same batch, and its file's
        # number may
        #    already belong to a new one: so the object that was registered says what it is still interested
        # in.
        for watched, mask in events:
            mask &= watched.interest
            if mask:
                try:
                    watched.on_events(mask)
                except Exception as error:
                    self._failed(watched, error)
                if len(self.attention) >= SETTLE_AFTER:
                    self._settle(left)
        # 6. Send the answers and update what is watched. A sleeping peer is woken by the first of several
        # answers and
        #    then finds the others: 0.9 us of the 10 us of a round trip with 32 connections.
        if self.attention:
            self._settle(left)
        if left:
            self._ask_again(left)
        # 7. Run the timers that are due, but not those that they set meanwhile.
        timers = self._timers
        if timers and timers[0][0] <= self.now:
            self._run_timers()

    def _settle(self, left):
        """Settles all that ask for attention, and puts into `left` what is to be taken up next turn."""
        asking, self.attention = self.attention, {}
        for each in asking:
            try:
                if each.settle():
                    left[each] = None
            except Exception as error:
                self._failed(each, error)

    def _ask_again(self, left):
        """Has the objects in `left` taken up next turn, before those that asked since."""
        since, self.attention = self.attention, left
        for each in since:
            try:
                left[each] = None
            except Exception as error:  # no memory: it would never be taken up
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
                    # before it leaves the heap, so that none is lost where there is no memory
                    due.append(timer)
                except MemoryError:
                    break
                timer[0] = None
            heapq.heappop(timers)
        for timer in due:
            callback, timer[2] = timer[2], None
            if callback is not None:  # not cancelled by one before it
                try:
                    callback()
                # once more, later: a connection whose timer is lost would never end
                except MemoryError as error:
                    timer[:] = self.now + REST_SECONDS, timer[1], callback
                    heapq.heappush(timers, timer)
                    self.report(error)
                except Exception as error:
                    self.report(error)

    def _first_timer(self):
        """The timer that is due first, or None; removes cancelled ones before it."""
        timers = self._timers
        while timers and timers[0][2] is None:
            heapq.heappop(timers)
            self._cancelled -= 1
        return timers[0] if timers else None

    # ---- failures

    def rest(self, watched):
        """Watches an object no more until REST_SECONDS are over; then its `settle` decides, called at a
        turn's end.

        For a file that is ready, or says so, while nothing can be done about it: it would spin. Returns the
        timer.
        """
        # The timer first: where there is no memory for it, the object is still watched, and tries again.
        timer = self.call_later(REST_SECONDS, lambda: self.attention.__setitem__(watched, None))
        self.watch(watched, 0)
        return timer

    def guard(self, owner, callback):
        """Runs callback(); an exception costs the owner alone, which may be None."""
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
        """Called with each uncaught exception of a callback, and with those of the wait; override it.

        This one raises it again. One that raises nothing lets the loop outlive whatever happens.
        """
        raise error

    def close(self):
        """Restores the signal handlers and closes the selector.

        Watched objects are their owners' to close.
        """
        if self._signals is not None:
            self._signals.close()
            self._signals = None
        self.poller.close()


def working_selector():
    """The best selector that this system lets us have; raises OSError where it has none at all."""
    refusal = None
    # A sandbox may forbid what the kernel has: before 3.9 nobody tried whether epoll can be made.
    for name in "DefaultSelector", "PollSelector", "SelectSelector":
        try:
            return getattr(selectors, name)()
        except (AttributeError, OSError) as error:  # AttributeError: a build without it
            refusal = error
    raise OSError(errno.ENOSYS, "no selector works here: %s" % refusal)


class Poller:
    """Owns the selector, and knows what is watched.

    It waits on epoll directly where the selector is an epoll one.
    """

    def __init__(self, selector):
        self.watched = {}  # from file number to object: a copy of the selector's map, cheaper to read
        # Files with this number or above cannot be watched; None where any can.
        self.file_limit = FD_SETSIZE if isinstance(selector, selectors.SelectSelector) else None
        self.selector = selector
        self._epoll = None
        if type(selector) is getattr(selectors, "EpollSelector", None):
            # EpollSelector.select() makes a call and several objects per event: 0.2 to 0.3 us of a round
            # trip's 10.
            try:
                self._epoll = select.epoll.fromfd(os.dup(selector.fileno()))
            except OSError:  # too few files
                selector.close()
                raise
            self.wait = self._wait_on_epoll

    def watch(self, watched, interest):
        """Makes `interest` what is watched for; 0 unregisters the object. All or nothing.

        Raises OSError; the object is then watched no more. EMFILE is for a file that select(2) cannot watch,
        and that would fail every later select.
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
        """Returns the file's number."""
        try:
            return self.selector.register(watched, interest, watched).fd
        except KeyError:  # the number was another's, who could not be unregistered before it was closed
            self.selector.unregister(watched)
            return self.selector.register(watched, interest, watched).fd

    def _forget(self, watched):
        """Leaves nothing of an object whose watching failed. Raises nothing."""
        watched.interest = 0
        try:
            self.selector.unregister(watched)
        except Exception:  # not registered, its file is closed already, or there is no memory
            pass
        for number in [number for number, each in self.watched.items() if each is watched]:
            del self.watched[number]
            self._drop(number)

    def _drop(self, number):
        """Takes a file number out of epoll: EpollSelector.modify() forgets its key where it fails, but not
        the file."""
        if self._epoll is not None:
            try:
                self._epoll.unregister(number)
            except (OSError, ValueError):  # not there either
                pass

    def wait(self, timeout):
        """[(object, READ | WRITE)] of what is ready within timeout (seconds)."""
        return [(key.data, mask) for key, mask in self.selector.select(timeout)]

    def _wait_on_epoll(self, timeout):
        watched = self.watched
        ready = self._epoll.poll(timeout)
        try:
            return [(watched[number], MASKS[events]) for number, events in ready]
        except KeyError as unknown:  # of one whose registering failed half way
            self._drop(unknown.args[0])
            return []

    def close(self):
        """Closes the selector."""
        if self._epoll is not None:
            self._epoll.close()
        self.selector.close()


# What the selectors make of epoll's EPOLLIN (1), EPOLLOUT (4), EPOLLERR (8) and EPOLLHUP (16).
MASKS = bytes((READ if events & ~4 else 0) | (WRITE if events & ~1 else 0) for events in range(32))


def wake(number, frame):
    """A signal's handler: the interpreter has written the byte already."""


def watch_or_rest(watched):
    """Watches for reading an object that must never go deaf: where that fails, it rests and tries again."""
    try:
        watched.loop.watch(watched, READ)
    except Exception as error:
        watched.loop.rest(watched)
        watched.loop.report(error)


class Signals:
    """Signals as events: the interpreter writes a byte for each into a socket pair, which ends the wait."""

    def __init__(self, loop):
        self.loop = loop
        self.interest = 0
        self._callbacks = {}
        self._handlers = {}  # from number to the handler that was there before
        self._socket, self._writer = socket.socketpair()
        self._socket.setblocking(False)
        self._writer.setblocking(False)
        try:
            # A full pair loses bytes of signals that are already known: no warning is due.
            self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        except TypeError:  # before 3.7
            self._previous = signal.set_wakeup_fd(self._writer.fileno())
        loop.watch(self, READ)

    def fileno(self):
        return self._socket.fileno()

    def add(self, number, callback):
        """Runs callback() in the loop after signal `number`, unless our parent had it ignored (nohup, sh -c
        'x &')."""
        if signal.getsignal(number) is signal.SIG_IGN:
            return
        self._callbacks[number] = callback
        # The byte is written only where there is a handler; the work happens in the loop.
        previous = signal.signal(number, wake)
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
        if not numbers:  # nothing to read, though it is ready
            self.loop.rest(self)
        for number in numbers & set(self._callbacks):
            self.loop.guard(None, self._callbacks[number])

    def take_up(self):
        self.loop.attention[self] = None

    def settle(self):
        """The end of a rest."""
        if self._socket.fileno() >= 0:
            watch_or_rest(self)

    def abort(self, error=None):
        """An exception in a callback does not end the watching for signals."""

    def close(self):
        """Puts the handlers back that were there before; a handler that was set by others meanwhile stays."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is wake:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous)
        self.loop.watch(self, 0)
        self._socket.close()
        self._writer.close()
