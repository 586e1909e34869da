"""The loop: timers, running, exceptions and signals."""

import errno
import gc
import os
import resource
import selectors
import signal
import socket
import threading
import time
import types
import weakref

import pytest

from helpers import ANY_PORT, Recorder, TimeSelector, boom, echo, is_idle, read_from, read_to_end, turn_until
from numseq import loop as reactor
from numseq.connect import connect
from numseq.loop import READ, WRITE, Loop, Poller
from numseq.stream import Stream, listen

lesson = pytest.mark.lesson


@pytest.fixture
def real_loop():
    """A Loop on the platform's own clock and selector."""
    loop = Loop()
    yield loop
    loop.close()


# ---- timers


def test_timer_runs_when_it_is_due_and_not_before(loop, clock):
    ran = []
    loop.call_later(1.5, lambda: ran.append(clock()))
    loop.call_at(clock() + 0.5, lambda: ran.append(clock()))
    begin = clock()
    loop.run()
    assert ran == [begin + 0.5, begin + 1.5]


def test_callback_gets_the_argument_of_its_timer(loop):
    ran = []
    loop.call_later(1, ran.append, "later")
    loop.call_at(loop.now, ran.append, "soon")
    loop.run()
    assert ran == ["soon", "later"]


def test_delays_count_from_the_time_at_which_the_turn_began(loop, clock):
    begin = clock()
    ran = []

    def slow():
        clock.advance(0.25)
        loop.call_later(1, lambda: ran.append(clock()))

    loop.call_later(0, slow)
    loop.run()
    assert ran == [begin + 1]


@lesson(11)
def test_cancelled_timers_leave_the_heap(loop, traced):
    live = [loop.call_later(1000 + number, boom) for number in range(100)]
    grown = traced()
    for _ in range(100):
        for _ in range(1000):
            loop.cancel(loop.call_later(30, boom))
        assert grown() < 2 ** 20, "100,000 timers take about 15 MB"
    assert loop.timers() == len(live)


@lesson(11)
@pytest.mark.parametrize("is_bound", [False, True])
def test_cancelled_timer_lets_go_of_its_callback_at_once(loop, is_bound):
    """Not only when the timer would have been due."""
    class Owner:
        def callback(self):
            """Never called."""

    owner = Owner()
    there = weakref.ref(owner)
    timer = loop.call_later(30, owner.callback) if is_bound else loop.call_later(30, Owner.callback, owner)
    del owner
    loop.cancel(timer)
    gc.collect()
    assert there() is None


@lesson(11)
def test_compaction_keeps_the_live_timers_in_order(loop):
    """Also when they are cancelled in a callback."""
    ran = []
    doomed = []
    for number in range(3000):
        doomed.append(loop.call_later(2 + number % 7, boom))
        if number % 3 == 0:
            loop.call_later(2 + number % 7, lambda number=number: ran.append((number % 7, number)))

    def cancel_all():
        for timer in doomed:
            loop.cancel(timer)

    loop.call_later(1, cancel_all)
    loop.run()
    assert len(ran) == 1000
    assert ran == sorted(ran)


@lesson(11)
def test_cancelling_costs_the_same_however_many_timers_live(loop, monkeypatch):
    """The heap is compacted only once half of it is cancelled, so the cost per cancel is constant."""
    compactions = []
    plain = reactor.heapq.heapify
    monkeypatch.setattr(reactor.heapq, "heapify", lambda heap: compactions.append(len(heap)) or plain(heap))
    for _ in range(5000):
        loop.call_later(30, boom)
    for _ in range(50000):
        loop.cancel(loop.call_later(30, boom))
    assert 5 <= len(compactions) <= 50


def test_cancelling_a_timer_that_ran_or_was_cancelled_does_nothing(loop):
    ran = []
    timer = loop.call_later(1, lambda: ran.append(1))
    loop.turn()
    cancelled = loop.call_later(1, boom)
    for each in (None, timer, cancelled, cancelled):
        loop.cancel(each)
    assert (ran, loop.timers()) == ([1], 0)


def test_timer_cancelled_in_a_callback_never_fires(loop):
    loop.call_later(1, lambda: loop.cancel(second))
    second = loop.call_later(1, boom)
    loop.run()
    assert loop.timers() == 0


@lesson(12)
def test_moving_one_timer_leaves_the_others_in_time(loop, clock):
    begin = clock()
    ran = []
    timers = [loop.call_later(1 + number / 10, boom) for number in range(20)]
    loop.call_later(2.05, lambda: ran.append(clock() - begin))
    for number, timer in enumerate(timers):
        loop.cancel(timer)
        timers[number] = loop.call_later(5 + number, lambda: ran.append(clock() - begin))
    loop.run()
    assert ran == pytest.approx([2.05] + [5 + number for number in range(20)])


@lesson(13)
def test_equal_deadlines_fire_in_the_order_they_were_set(loop, clock):
    ran = []
    when = clock() + 1
    for number in range(100):
        loop.call_at(when, lambda number=number: ran.append(number))
    loop.run()
    assert ran == list(range(100))


@lesson(14)
def test_timers_run_on_the_monotonic_clock(real_loop, monkeypatch):
    monkeypatch.setattr(time, "time", boom)
    ran = []
    real_loop.call_later(0.001, lambda: ran.append(1))
    real_loop.run()
    assert ran
    assert abs(real_loop.now - time.monotonic()) < 10


@lesson(15)
def test_waiting_for_a_timer_takes_few_turns(real_loop):
    """A timeout rounded down to milliseconds would cost many turns at its end. A busy machine takes fewer."""
    ran = []
    for number in range(5):
        real_loop.call_later(0.0100 + number * 0.0107, lambda: ran.append(real_loop.turns))
    real_loop.run()
    assert len(ran) == 5
    assert real_loop.turns <= 10


@lesson(15)
def test_overdue_timer_does_not_make_the_wait_endless(loop, clock):
    """A negative timeout means for ever to epoll and poll."""
    loop.call_later(1, lambda: None)
    clock.advance(5)
    loop.turn()
    assert loop.poller.selector.timeouts == [0]


@lesson(15)
@pytest.mark.parametrize("delay", [None, 1e6, 1e12, float("inf")])
def test_longest_wait_fits_the_system_call(loop, delay):
    if delay is not None:
        loop.call_later(delay, boom)
    loop.turn()
    assert loop.poller.selector.timeouts == [reactor.WAIT_LIMIT]
    with selectors.DefaultSelector() as selector:
        here, there = socket.socketpair()
        with here, there:
            there.send(b"x")
            selector.register(here, READ)
            assert selector.select(reactor.WAIT_LIMIT)  # the platform takes it


@lesson(16)
def test_timer_set_again_with_no_delay_lets_sockets_be_served(loop, make_pair):
    runs = []

    def again():
        runs.append(loop.turns)
        if len(runs) < 1000:
            loop.call_later(0, again)

    handler = Recorder(echo)
    _, peer = make_pair(handler)
    loop.call_later(0, again)
    loop.turn()
    peer.send(b"x")
    assert read_from(loop, peer, 1) == b"x"
    assert 0 < len(runs) < 100
    assert len(set(runs)) == len(runs)  # one a turn


@lesson(16)
def test_thousands_of_timers_due_at_once_let_sockets_be_served(loop, make_pair):
    """They run in order, a bounded number per turn."""
    ran = []
    when_served = []
    _, peer = make_pair(Recorder(lambda stream: when_served.append(len(ran)) or echo(stream)))
    for number in range(5000):
        loop.call_later(0, lambda number=number: ran.append(number))
    loop.turn()
    peer.send(b"x")
    turn_until(loop, lambda: len(ran) == 5000)
    assert ran == list(range(5000))
    assert when_served and when_served[0] < 2500


# ---- running


def test_run_ends_when_nothing_can_happen_any_more(loop):
    loop.run()
    loop.call_later(1, lambda: None)
    loop.run()
    assert loop.turns == 1


def test_run_does_not_wait_for_a_cancelled_timer(loop, clock):
    begin = clock()
    loop.cancel(loop.call_later(1, boom))
    loop.run()
    assert clock() == begin


def test_run_ends_when_the_last_timer_cancels_the_others(loop, clock):
    begin = clock()
    other = loop.call_later(5, boom)
    loop.call_later(1, lambda: loop.cancel(other))
    loop.run()
    assert clock() == begin + 1


def test_stop_ends_the_run_after_the_turn(loop):
    ran = []
    loop.call_later(1, loop.stop)
    loop.call_later(1, lambda: ran.append(1))
    loop.call_later(2, boom)
    loop.run()
    assert ran == [1]
    assert loop.timers() == 1


def test_closed_loop_closes_its_selector():
    loop = Loop()
    loop.close()
    assert loop.poller.selector.get_map() is None


def test_exceptions_are_printed_by_default(real_loop):
    real_loop.call_later(0, boom)
    with pytest.raises(ValueError):
        real_loop.turn()


# ---- exceptions


@lesson(23)
def test_exception_in_one_handler_is_reported_and_ends_only_its_stream(loop, make_pair):
    bad, good = Recorder(boom), Recorder(echo)
    _, bad_peer = make_pair(bad)
    _, good_peer = make_pair(good)
    bad_peer.send(b"x")
    good_peer.send(b"y")
    assert read_from(loop, good_peer, 1) == b"y"
    turn_until(loop, lambda: loop.errors)
    assert isinstance(loop.errors.pop(), ValueError)
    assert bad.closed_times == 1
    assert good.closed_times == 0
    with pytest.raises(ConnectionResetError):
        read_to_end(loop, bad_peer)


@lesson(23)
def test_exception_in_a_resumed_handler_does_not_end_the_loop(loop, make_pair):
    """Resumed handlers are not called from the event dispatch, which catches exceptions of its own."""
    handler = Recorder(lambda stream: stream.resume() if handler.events.count("received") < 2 else boom())
    _, peer = make_pair(handler)
    peer.send(b"x")
    turn_until(loop, lambda: loop.errors)
    assert isinstance(loop.errors.pop(), ValueError)
    assert handler.closed_times == 1


@lesson(23)
def test_exception_in_closed_after_an_exception_does_not_end_the_loop(loop, make_pair):
    """Both exceptions are reported, and the other streams are served."""
    handler = Recorder(boom)
    handler.closed = boom
    _, bad_peer = make_pair(handler)
    _, good_peer = make_pair(Recorder(echo))
    bad_peer.send(b"x")
    good_peer.send(b"y")
    assert read_from(loop, good_peer, 1) == b"y"
    turn_until(loop, lambda: loop.errors)
    assert [type(error) for error in loop.errors] == [ValueError, ValueError]
    del loop.errors[:]


@lesson(23)
def test_exception_in_a_timer_does_not_stop_the_next_one(loop):
    ran = []
    loop.call_later(1, boom)
    loop.call_later(1, lambda: ran.append(1))
    loop.run()
    assert isinstance(loop.errors.pop(), ValueError)
    assert ran == [1]


@lesson(23)
def test_exception_in_accepted_does_not_end_the_listener(loop, client_of):
    accepted = []

    def first_fails(connection):
        accepted.append(connection)
        if len(accepted) == 1:
            boom()

    listener, = listen(loop, *ANY_PORT, accepted=first_fails)
    client_of(listener)
    client_of(listener)
    turn_until(loop, lambda: len(accepted) == 2)
    assert isinstance(loop.errors.pop(), ValueError)
    for connection in accepted:
        connection.close()


@lesson(23)
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_interrupt_ends_the_run(loop, make_pair, interruption):
    def interrupt(*_):
        raise interruption

    loop.call_later(0, interrupt)
    with pytest.raises(interruption):
        loop.turn()
    _, peer = make_pair(Recorder(interrupt))
    peer.send(b"x")
    with pytest.raises(interruption):
        turn_until(loop, lambda: False)


# ---- select(2)


@pytest.fixture
def high_socket(connected_sockets):
    """A connected socket with a number that select(2) cannot watch."""
    fcntl = pytest.importorskip("fcntl")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft <= reactor.FD_SETSIZE + 10:
        pytest.skip("no more than %d files are allowed here" % soft)
    connection, _ = connected_sockets()
    with socket.socket(fileno=fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD, reactor.FD_SETSIZE)) as high:
        high.setblocking(False)
        yield high


@lesson(1)
def test_file_number_too_high_for_select_costs_only_its_connection(clock, high_socket):
    """It is treated like running out of files."""
    loop = Loop(clock, selectors.SelectSelector())
    with pytest.raises(OSError) as caught:
        Stream(loop, high_socket, Recorder())
    assert caught.value.errno == errno.EMFILE
    loop.call_later(0, lambda: None)
    loop.turn()
    loop.close()


def test_high_file_number_is_watched_by_selectors_that_can(loop, high_socket):
    assert loop.poller.file_limit is None
    Stream(loop, high_socket, Recorder()).abort()


def test_connect_with_a_file_number_too_high_is_reported(loop, listener, open_files):
    handler = Recorder()
    before = open_files()
    loop.poller.file_limit = 0
    connect(loop, listener.address[0], listener.address[1], handler)
    turn_until(loop, lambda: handler.events or loop.errors)
    assert handler.events == ["closed"]
    assert handler.error.errno == errno.EMFILE
    assert open_files() == before + len(listener.accepted)


# ---- watching


class Watched:
    """An object that can be watched."""

    interest = 0

    def __init__(self, file):
        self.file = file

    def fileno(self):
        return self.file.fileno()


@pytest.fixture
def poller():
    poller = Poller(selectors.DefaultSelector())
    yield poller
    poller.close()


def fail(*_):
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize("step, before", [("register", 0), ("modify", READ)])
def test_failed_watching_leaves_nothing_watched(poller, connected_sockets, monkeypatch, step, before):
    here, there = connected_sockets()
    there.send(b"x")
    watched = Watched(here)
    poller.watch(watched, before)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(poller.selector, step, fail)
        poller.watch(watched, READ | WRITE)
    assert (watched.interest, poller.watched, poller.wait(0)) == (0, {}, [])
    poller.watch(watched, READ)
    assert poller.wait(0) == [(watched, READ)]


class FailingEpoll:
    """The epoll object of a selector, which refuses every change."""

    modify = staticmethod(fail)

    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="there is no epoll here")
def test_change_that_epoll_refuses_leaves_nothing_watched(poller, connected_sockets, monkeypatch):
    """EpollSelector.modify() forgets the file then, but the kernel does not."""
    here, there = connected_sockets()
    there.send(b"x")
    watched = Watched(here)
    poller.watch(watched, READ)
    monkeypatch.setattr(poller.selector, "_selector", FailingEpoll(poller.selector._selector))
    with pytest.raises(OSError):
        poller.watch(watched, READ | WRITE)
    assert (watched.interest, poller.watched, poller.wait(0)) == (0, {}, [])


# ---- signals


@pytest.fixture
def kill():
    """A function: sends this process a signal."""
    return lambda number: os.kill(os.getpid(), number)


@lesson(22)
def test_signal_ends_a_long_wait(real_loop, kill):
    ran = []
    real_loop.on_signal(signal.SIGUSR1, lambda: ran.append(1) or real_loop.stop())
    real_loop.call_later(60, boom)
    sender = threading.Timer(0.05, kill, [signal.SIGUSR1])
    sender.start()
    real_loop.run()
    sender.join()
    assert ran == [1]
    assert real_loop.turns <= 3


@lesson(22)
def test_flood_of_signals_neither_blocks_nor_spins(loop, kill, capfd):
    """The wakeup socket is drained, and a full one is no error."""
    ran = []
    loop.on_signal(signal.SIGUSR1, lambda: ran.append(1))
    for _ in range(100000):
        kill(signal.SIGUSR1)
    turn_until(loop, lambda: ran, turns=2)
    assert is_idle(loop)
    assert len(ran) == 1
    assert capfd.readouterr() == ("", "")
    kill(signal.SIGUSR1)
    turn_until(loop, lambda: len(ran) == 2, turns=2)


@lesson(22)
def test_wakeup_file_and_handlers_are_restored(clock):
    here, there = socket.socketpair()
    there.setblocking(False)
    before = signal.getsignal(signal.SIGUSR2)
    previous = signal.set_wakeup_fd(there.fileno())
    try:
        signal.signal(signal.SIGUSR1, boom)
        loop = Loop(clock, TimeSelector(clock))
        loop.on_signal(signal.SIGUSR1, boom)
        loop.on_signal(signal.SIGUSR1, boom)
        loop.on_signal(signal.SIGUSR2, boom)
        loop.close()
        assert signal.getsignal(signal.SIGUSR1) is boom
        assert signal.getsignal(signal.SIGUSR2) == before
        assert signal.set_wakeup_fd(previous) == there.fileno()
    finally:
        signal.set_wakeup_fd(previous)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        here.close()
        there.close()


@lesson(22)
@lesson(23)
def test_exception_in_a_signal_callback_does_not_stop_other_signals(loop, kill):
    """Each exception is reported, and later signals are handled."""
    numbers = signal.SIGUSR1, signal.SIGUSR2
    for number in numbers:
        loop.on_signal(number, boom)
    for times in 1, 2:
        for number in numbers:
            kill(number)
        turn_until(loop, lambda: loop.errors)
        assert is_idle(loop)
        assert [str(error) for error in loop.errors] == ["boom", "boom"]
        del loop.errors[:]


def test_signal_without_a_callback_is_ignored(loop, kill):
    """The wakeup socket gets the numbers of all signals that have a Python handler."""
    theirs = []
    previous = signal.signal(signal.SIGUSR2, lambda *_: theirs.append(1))
    try:
        loop.on_signal(signal.SIGUSR1, boom)
        kill(signal.SIGUSR2)
        assert is_idle(loop)
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert theirs == [1]


# ---- a process that was stopped


class LateSelector:
    """A selector as after SIGCONT: the first look comes back empty although its time was long over."""

    def __init__(self, clock, file):
        self.clock, self.file = clock, file
        self.looks = 0

    def register(self, file, events, data=None):
        self.key = selectors.SelectorKey(file, file.fileno(), events, data)
        return self.key

    def select(self, timeout):
        self.looks += 1
        if self.looks == 1:
            self.clock.advance(timeout + 60)
            return []
        return [(self.key, READ)]

    def close(self):
        pass


def test_input_is_read_before_a_timer_that_ran_late(clock):
    order = []
    file = types.SimpleNamespace(interest=0, fileno=lambda: 3, on_events=lambda mask: order.append("input"))
    loop = Loop(clock, LateSelector(clock, file))
    loop.watch(file, READ)
    loop.call_later(1, lambda: order.append("timer"))
    loop.turn()
    assert order == ["input", "timer"]
    loop.close()
