"""Records in memory: who has them, and when they are forgotten. The clock is the test's."""

import random
import tracemalloc

import pytest

from numseq.store import EXISTS, FULL, MISSING, RETENTION, Record
from numseq.store_memory import FORGET_BATCH, MemoryStore

RECORD = Record(b"5", 10, 2)
OTHER = Record("6", 20, 3)


@pytest.fixture
def forgotten():
    """[(client id, when)] of all that was forgotten, in order."""
    return []


@pytest.fixture
def make_store(loop, forgotten):
    def make(**options):
        return MemoryStore(loop, lambda client_id: forgotten.append((client_id, loop.now)), **options)

    return make


@pytest.fixture
def store(make_store):
    return make_store()


def answer(method, *arguments):
    """What a method of a store answers; it has to be one answer."""
    answers = []
    method(*arguments, lambda *answer: answers.append(answer))
    assert len(answers) == 1
    return answers[0]


def keep(store, client_id, record=RECORD):
    """Makes a record that nobody has open."""
    assert answer(store.create, client_id, record) == (record, None)
    assert answer(store.release, client_id) == ()


def pass_time(loop, clock, seconds):
    """Lets time pass and the timers run, and nothing more: later timers stay where they are."""
    loop.call_at(clock() + seconds, loop.stop)
    loop.run()


# ---- create, open, release


def test_opened_record_is_the_created_one(store):
    assert answer(store.create, b"a", RECORD) == (RECORD, None)
    assert answer(store.create, b"b", OTHER) == (OTHER, None)
    assert answer(store.open, b"a") == (RECORD, None)
    assert answer(store.release, b"a") == ()
    assert answer(store.release, b"a") == ()
    assert answer(store.open, b"a") == (RECORD, None)
    assert answer(store.open, b"b") == (OTHER, None)
    assert len(store) == 2


def test_open_record_is_not_created_again(store):
    answer(store.create, b"a", RECORD)
    assert answer(store.create, b"a", OTHER) == (None, EXISTS)
    assert answer(store.open, b"a") == (RECORD, None)


def test_retained_record_is_not_created_again(store):
    keep(store, b"a")
    assert answer(store.create, b"a", OTHER) == (None, EXISTS)
    assert answer(store.open, b"a") == (RECORD, None)


def test_unknown_record_is_missing(store):
    assert answer(store.open, b"a") == (None, MISSING)
    assert len(store) == 0


def test_ids_in_another_case_are_kept_as_they_were_written(store):
    keep(store, b"AB")
    assert answer(store.open, b"AB") == (RECORD, None)


def test_refusal_opens_nothing(store, loop, forgotten):
    keep(store, b"a")
    answer(store.create, b"a", OTHER)
    answer(store.open, b"b")
    loop.run()
    assert [client_id for client_id, _ in forgotten] == [b"a"]


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


# ---- retention


def test_record_is_kept_for_the_retention_and_then_forgotten_once(store, loop, clock, forgotten):
    keep(store, b"a")
    pass_time(loop, clock, RETENTION - 0.001)
    assert answer(store.create, b"a", OTHER) == (None, EXISTS)
    begin = clock()
    pass_time(loop, clock, 0.001)
    assert forgotten == [(b"a", pytest.approx(begin + 0.001))]
    assert answer(store.open, b"a") == (None, MISSING)
    assert answer(store.create, b"a", OTHER) == (OTHER, None)
    pass_time(loop, clock, 10 * RETENTION)
    assert len(forgotten) == 1


def test_record_is_never_forgotten_while_open(store, loop, clock, forgotten):
    answer(store.create, b"a", RECORD)
    pass_time(loop, clock, 10 * RETENTION)
    assert answer(store.open, b"a") == (RECORD, None)
    answer(store.release, b"a")
    pass_time(loop, clock, 10 * RETENTION)
    assert forgotten == []
    answer(store.release, b"a")
    pass_time(loop, clock, RETENTION)
    assert len(forgotten) == 1


def test_retention_counts_from_the_last_release(store, loop, clock, forgotten):
    answer(store.create, b"a", RECORD)
    answer(store.open, b"a")
    answer(store.release, b"a")
    pass_time(loop, clock, 7)
    answer(store.release, b"a")
    released = loop.now
    loop.run()
    assert forgotten == [(b"a", pytest.approx(released + RETENTION))]


def test_opening_again_moves_the_deadline(store, loop, clock, forgotten):
    keep(store, b"a")
    for _ in range(5):
        pass_time(loop, clock, 0.9 * RETENTION)
        answer(store.open, b"a")
        answer(store.release, b"a")
    assert forgotten == []
    released = loop.now
    loop.run()
    assert forgotten == [(b"a", pytest.approx(released + RETENTION))]


def test_opening_one_again_leaves_the_deadlines_of_others(store, loop, clock, forgotten):
    begin = loop.now
    for client_id in (b"a", b"b", b"c"):
        keep(store, client_id)
    pass_time(loop, clock, 10)
    answer(store.open, b"a")
    pass_time(loop, clock, 10)
    answer(store.release, b"a")
    loop.run()
    times = [(client_id, when - begin) for client_id, when in forgotten]
    assert [client_id for client_id, _ in times] == [b"b", b"c", b"a"]
    assert [when for _, when in times] == pytest.approx([RETENTION, RETENTION, RETENTION + 20], abs=0.05)


def test_records_are_forgotten_in_the_order_of_their_release(store, loop, clock, forgotten):
    ids = [b"%d" % i for i in range(50)]
    for client_id in ids:
        answer(store.create, client_id, RECORD)
    random.Random(1).shuffle(ids)
    released = {}
    for client_id in ids:
        pass_time(loop, clock, 0.5)
        answer(store.release, client_id)
        released[client_id] = loop.now
    loop.run()
    assert [client_id for client_id, _ in forgotten] == ids
    for client_id, when in forgotten:
        assert when == pytest.approx(released[client_id] + RETENTION)


@pytest.mark.parametrize("retention", [0.001, 2.5, 10 ** 9])
def test_retention_is_configurable(make_store, loop, retention, forgotten):
    store = make_store(retention=retention)
    begin = loop.now
    keep(store, b"a")
    loop.run()
    assert forgotten == [(b"a", pytest.approx(begin + retention))]


@pytest.mark.parametrize("seed", range(10))
def test_record_exists_exactly_when_it_should_after_any_history(make_store, loop, clock, seed):
    """Against the plainest store: for each id how many have it open, and since when nobody has."""
    store = make_store(clients_most=6, retention=5)
    generator = random.Random(seed)
    users, since = {}, {}
    for _ in range(600):
        client_id = b"%d" % generator.randrange(8)
        action = generator.choice(["create", "open", "release", "release", "wait"])
        if action == "create":
            expected = EXISTS if client_id in users else FULL if len(users) >= 6 else None
            assert answer(store.create, client_id, RECORD)[1] == expected
            if expected is None:
                users[client_id] = 1
        elif action == "open":
            assert answer(store.open, client_id)[1] == (None if client_id in users else MISSING)
            if client_id in users:
                users[client_id] += 1
        elif action == "release" and users.get(client_id):
            answer(store.release, client_id)
            users[client_id] -= 1
            since[client_id] = loop.now
        elif action == "wait":
            pass_time(loop, clock, generator.choice([0.1, 1, 3]))
            pass_time(loop, clock, 0.02)  # those due at nearly the same time go in rounds
            for each in [each for each, count in users.items() if not count and loop.now >= since[each] + 5.02]:
                del users[each]
            for each in [each for each, count in users.items() if not count and loop.now >= since[each] + 4.98]:
                if answer(store.open, each)[1] is MISSING:  # at its very deadline it may be either
                    del users[each]
                else:
                    users[each] += 1
        assert len(store) == len(users)


# ---- at scale


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


def test_retained_record_takes_less_than_300_bytes(make_store):
    store = make_store()
    count = 12000  # where dicts have just grown: the worst of it
    generator = random.Random(1)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(count):
            keep(store, b"123e4567-e89b-12d3-a456-%012x" % i, Record(generator.getrandbits(128).to_bytes(16, "little"), i, 5))
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / count < 300


def test_reopening_one_record_for_long_leaves_no_trace(store, loop):
    """Deadlines that are moved must not pile up behind it."""
    keep(store, b"a")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20000):
            answer(store.open, b"a")
            answer(store.release, b"a")
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used < 20000
    assert loop.timers() == 1


def test_records_that_come_and_go_for_long_leave_no_trace(store, loop, forgotten):
    for i in range(500):
        keep(store, b"first %d" % i)
    loop.run()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(20):
            for j in range(200):
                keep(store, b"%d %d" % (i, j))
            loop.run()
            assert len(store) == 0
            forgotten.clear()
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used < 200 * 400
