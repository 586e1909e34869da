"""Records in memory: how many are forgotten at once, what they cost, and what is left of them.

The clock is the test's.
"""

import random

import pytest

from helpers import pass_time
from numseq.store import EXISTS, FULL, MISSING, RETENTION, Record, from_url
from numseq.store_memory import FORGET_BATCH, MemoryStore
from stores import RECORD, answer, id_of, keep


@pytest.fixture
def make_store(loop, forgotten):
    """A function: a MemoryStore with options of its own."""
    return lambda **options: MemoryStore(loop, lambda client_id: forgotten.append((client_id, loop.now)),
                                         **options)


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_opening_without_memory_loses_no_record(loop, tmp_path, monkeypatch, kind):
    store = from_url("memory:" if kind == "memory" else "file:%s" % (tmp_path / "store"), loop, None)
    keep(store, id_of(1))
    with monkeypatch.context() as patch:
        patch.setattr("numseq.store_%s.Record" % kind, no_memory)
        with pytest.raises(MemoryError):
            store.open(id_of(1), None)
    assert answer(store.open, id_of(1)) == (RECORD, None)
    store.close()


def test_purges_go_on_after_an_announcement_that_raised(loop):
    announced = []

    def announce(client_id):
        announced.append(client_id)
        if len(announced) == 1:
            raise ValueError("a fault of the one who hears of it")

    store = MemoryStore(loop, announce)
    for first in 0, 2:
        keep(store, id_of(first))
        keep(store, id_of(first + 1))
        loop.run()
    assert announced == list(map(id_of, range(4)))
    assert [type(error) for error in loop.errors] == [ValueError]
    del loop.errors[:]


def test_release_without_memory_changes_nothing(store, loop, forgotten, monkeypatch):
    answer(store.create, id_of(1), RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_at", no_memory)
        with pytest.raises(MemoryError):
            store.release(id_of(1), None)
    answer(store.release, id_of(1))
    loop.run()
    assert [client_id for client_id, _ in forgotten] == [id_of(1)]


def test_purge_that_runs_out_of_memory_leaves_one_timer(store, loop, clock, forgotten, monkeypatch):
    for number in range(2):
        keep(store, id_of(number))
        pass_time(loop, clock, 1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_at", no_memory)
        while not loop.errors:
            loop.turn()
    keep(store, id_of(2))
    assert loop.timers() == 1
    loop.run()
    assert [client_id for client_id, _ in forgotten] == [id_of(0), id_of(1), id_of(2)]
    del loop.errors[:]


def no_memory(*_):
    raise MemoryError


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_limit_counts_open_and_retained_records(make_store, kept):
    store = make_store(clients_most=3)
    for i in range(3):
        answer(store.create, b"%d" % i, RECORD)
    for i in range(kept):
        answer(store.release, b"%d" % i)
    assert len(store) == 3
    assert answer(store.create, b"x", RECORD) == (None, FULL)
    assert answer(store.create, b"0", RECORD) == (None, EXISTS)
    assert answer(store.open, b"x") == (None, MISSING)
    assert answer(store.open, b"0") == (RECORD, None)
    assert len(store) == 3


def test_forgotten_record_makes_room(make_store, loop):
    store = make_store(clients_most=1)
    keep(store, b"a")
    assert answer(store.create, b"b", RECORD) == (None, FULL)
    loop.run()
    assert answer(store.create, b"b", RECORD) == (RECORD, None)


def test_thousands_due_at_once_are_forgotten_in_bounded_batches(store, loop, clock, forgotten):
    count = 10 * FORGET_BATCH + 1
    for i in range(count):
        keep(store, b"%d" % i)
    clock.advance(RETENTION + 1)
    while len(forgotten) < count:
        before = len(forgotten)
        loop.turn()
        assert len(forgotten) - before <= FORGET_BATCH
        assert loop.turns < 100
    assert [client_id for client_id, _ in forgotten] == [b"%d" % i for i in range(count)]
    assert forgotten[-1][1] - forgotten[0][1] < 1
    assert len(store) == 0


def test_one_timer_serves_any_number_of_records(store, loop):
    for i in range(1000):
        keep(store, b"%d" % i)
    for i in range(1000):
        answer(store.open, b"%d" % i)
        answer(store.release, b"%d" % i)
    assert loop.timers() == 1


def test_no_timer_is_left_when_all_records_are_gone(store, loop):
    for i in range(1000):
        keep(store, b"%d" % i)
    loop.run()
    assert loop.timers() == 0
    assert len(store) == 0


def test_empty_store_does_not_keep_waking_the_loop(store, loop, clock):
    keep(store, b"a")
    answer(store.open, b"a")
    pass_time(loop, clock, 10 * RETENTION)
    assert loop.timers() == 0


def test_closed_store_leaves_no_timer_behind(store, loop, forgotten):
    keep(store, b"a")
    store.close()
    assert loop.timers() == 0
    loop.run()
    assert forgotten == []


def test_unused_store_can_be_closed(store, loop):
    store.close()
    assert loop.timers() == 0


def test_retained_record_takes_less_than_300_bytes(make_store, traced):
    store = make_store()
    count = 12000  # where dicts have just grown: the worst of it
    generator = random.Random(1)
    grown = traced()
    for i in range(count):
        keep(store, b"123e4567-e89b-12d3-a456-%012x" % i,
             Record(generator.getrandbits(128).to_bytes(16, "little"), i, 5))
    assert grown() / count < 300


def test_reopening_one_record_for_long_leaves_no_trace(store, loop, traced):
    """Deadlines that are moved must not pile up behind it."""
    keep(store, b"a")
    grown = traced()
    for _ in range(20000):
        answer(store.open, b"a")
        answer(store.release, b"a")
    assert grown() < 20000
    assert loop.timers() == 1


def test_records_that_come_and_go_for_long_leave_no_trace(store, loop, forgotten, traced):
    for i in range(500):
        keep(store, b"first %d" % i)
    loop.run()
    grown = traced()
    for i in range(20):
        for j in range(200):
            keep(store, b"%d %d" % (i, j))
        loop.run()
        assert len(store) == 0
        forgotten.clear()
    assert grown() < 200 * 400
