"""What every store promises, held against each of them, and the requests in flight.

The clock is the test's.
"""

import random

import pytest

from helpers import pass_time
from numseq.store import ANSWER_SECONDS, EXISTS, FAILED, MISSING, RETENTION, Requests
from numseq.store_memory import MemoryStore
from stores import OTHER, RECORD, LateStore, SlowStore, answer, id_of, keep as keep_now

LATE = 0.01  # seconds in which a late store answers
A, B, C = map(id_of, range(10, 13))

# {name: function(loop, forgotten, **options)}: every store that the suite is run against
STORES = {
    "memory": MemoryStore,
    "late": lambda loop, forgotten, **options: LateStore(loop, MemoryStore(loop, forgotten, **options), LATE),
}


@pytest.fixture(params=STORES)
def make_store(request, loop, forgotten):
    """A function: a store of each kind, with options of its own."""
    stores = []

    def make(**options):
        stores.append(STORES[request.param](loop, lambda client_id: forgotten.append((client_id, loop.now)),
                                            **options))
        return stores[-1]

    yield make
    for each in stores:
        each.close()


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def ask(loop, clock):
    """A function: what a store's method answers, now or later.

    Each call must have been answered exactly once at the end.
    """
    asked = []

    def ask_one(method, *arguments):
        answers = []
        asked.append(answers)
        method(*arguments, lambda *each: answers.append(each))
        before = clock()
        while not answers and clock() < before + ANSWER_SECONDS:
            loop.turn()
        assert answers, "not answered within %g s" % ANSWER_SECONDS
        return answers[0]

    yield ask_one
    assert [len(answers) for answers in asked] == [1] * len(asked)


def near(seconds):
    """A time, or times, give or take what a late store takes."""
    return pytest.approx(seconds, abs=10 * LATE)


def keep(ask, store, client_id, record=RECORD):
    """Creates a record that nobody has open."""
    assert ask(store.create, client_id, record) == (record, None)
    assert ask(store.release, client_id) == ()


# ---- create, open, release


def test_opened_record_is_the_created_one(ask, store):
    assert ask(store.create, A, RECORD) == (RECORD, None)
    assert ask(store.create, B, OTHER) == (OTHER, None)
    assert ask(store.open, A) == (RECORD, None)
    assert ask(store.release, A) == ()
    assert ask(store.release, A) == ()
    assert ask(store.open, A) == (RECORD, None)
    assert ask(store.open, B) == (OTHER, None)


def test_open_record_is_not_created_again(ask, store):
    ask(store.create, A, RECORD)
    assert ask(store.create, A, OTHER) == (None, EXISTS)
    assert ask(store.open, A) == (RECORD, None)


def test_retained_record_is_not_created_again(ask, store):
    keep(ask, store, A)
    assert ask(store.create, A, OTHER) == (None, EXISTS)
    assert ask(store.open, A) == (RECORD, None)


def test_unknown_record_is_missing(ask, store):
    assert ask(store.open, A) == (None, MISSING)


def test_ids_in_different_case_are_different(ask, store):
    keep(ask, store, A.upper())
    assert ask(store.open, A.upper()) == (RECORD, None)
    assert ask(store.open, A) == (None, MISSING)


def test_refusal_opens_nothing(ask, store, loop, forgotten):
    keep(ask, store, A)
    ask(store.create, A, OTHER)
    ask(store.open, B)
    loop.run()
    assert [client_id for client_id, _ in forgotten] == [A]


# ---- retention


def test_record_is_kept_for_the_retention_and_then_forgotten_once(ask, store, loop, clock, forgotten):
    keep(ask, store, A)
    pass_time(loop, clock, RETENTION - 5 * LATE)
    assert ask(store.create, A, OTHER) == (None, EXISTS)
    released = clock() - RETENTION + 5 * LATE
    pass_time(loop, clock, 10 * LATE)
    assert forgotten == [(A, near(released + RETENTION))]
    assert ask(store.open, A) == (None, MISSING)
    assert ask(store.create, A, OTHER) == (OTHER, None)
    pass_time(loop, clock, 10 * RETENTION)
    assert len(forgotten) == 1


def test_record_is_never_forgotten_while_open(ask, store, loop, clock, forgotten):
    ask(store.create, A, RECORD)
    pass_time(loop, clock, 10 * RETENTION)
    assert ask(store.open, A) == (RECORD, None)
    ask(store.release, A)
    pass_time(loop, clock, 10 * RETENTION)
    assert forgotten == []
    ask(store.release, A)
    pass_time(loop, clock, RETENTION + 5 * LATE)
    assert len(forgotten) == 1


def test_retention_counts_from_the_last_release(ask, store, loop, clock, forgotten):
    ask(store.create, A, RECORD)
    ask(store.open, A)
    ask(store.release, A)
    pass_time(loop, clock, 7)
    ask(store.release, A)
    released = loop.now
    loop.run()
    assert forgotten == [(A, near(released + RETENTION))]


def test_opening_again_moves_the_deadline(ask, store, loop, clock, forgotten):
    keep(ask, store, A)
    for _ in range(5):
        pass_time(loop, clock, 0.9 * RETENTION)
        ask(store.open, A)
        ask(store.release, A)
    assert forgotten == []
    released = loop.now
    loop.run()
    assert forgotten == [(A, near(released + RETENTION))]


def test_opening_one_again_leaves_the_deadlines_of_others(ask, store, loop, clock, forgotten):
    begin = loop.now
    for client_id in (A, B, C):
        keep(ask, store, client_id)
    pass_time(loop, clock, 10)
    ask(store.open, A)
    pass_time(loop, clock, 10)
    ask(store.release, A)
    loop.run()
    times = [(client_id, when - begin) for client_id, when in forgotten]
    assert [client_id for client_id, _ in times] == [B, C, A]
    assert [when for _, when in times] == near([RETENTION, RETENTION, RETENTION + 20])


def test_records_are_forgotten_in_the_order_of_their_release(ask, store, loop, clock, forgotten):
    ids = [id_of(i) for i in range(50)]
    for client_id in ids:
        ask(store.create, client_id, RECORD)
    random.Random(1).shuffle(ids)
    released = {}
    for client_id in ids:
        pass_time(loop, clock, 0.5)
        ask(store.release, client_id)
        released[client_id] = loop.now
    loop.run()
    assert [client_id for client_id, _ in forgotten] == ids
    for client_id, when in forgotten:
        assert when == near(released[client_id] + RETENTION)


@pytest.mark.parametrize("retention", [0.1, 2.5, 10 ** 9])
def test_retention_is_configurable(ask, make_store, loop, retention, forgotten):
    store = make_store(retention=retention)
    begin = loop.now
    keep(ask, store, A)
    loop.run()
    assert forgotten == [(A, near(begin + retention))]


@pytest.mark.parametrize("seed", range(10))
def test_record_exists_exactly_when_it_should_after_any_history(ask, make_store, loop, clock, seed):
    """Against the plainest store: for each id how many have it open, and since when nobody has."""
    store = make_store(retention=5)
    generator = random.Random(seed)
    users, since = {}, {}
    for _ in range(600):
        client_id = id_of(generator.randrange(8))
        action = generator.choice(["create", "open", "release", "release", "wait"])
        if action == "create":
            expected = EXISTS if client_id in users else None
            assert ask(store.create, client_id, RECORD)[1] == expected
            if expected is None:
                users[client_id] = 1
        elif action == "open":
            assert ask(store.open, client_id)[1] == (None if client_id in users else MISSING)
            if client_id in users:
                users[client_id] += 1
        elif action == "release" and users.get(client_id):
            ask(store.release, client_id)
            users[client_id] -= 1
            since[client_id] = loop.now
        elif action == "wait":
            pass_time(loop, clock, generator.choice([0.1, 1, 3]))
            pass_time(loop, clock, 0.05)  # those due at nearly the same time go in rounds
            for each in [each for each, count in users.items()
                         if not count and loop.now >= since[each] + 5.05]:
                del users[each]
            for each in [each for each, count in users.items()
                         if not count and loop.now >= since[each] + 4.95]:
                if ask(store.open, each)[1] is MISSING:  # at its very deadline it may be either
                    del users[each]
                else:
                    users[each] += 1


# ---- requests in flight


@pytest.fixture
def slow(loop, forgotten):
    """A store that answers when it is told to."""
    return SlowStore(MemoryStore(loop, forgotten.append))


@pytest.fixture
def heard():
    """How many requests were in flight after each answer of the store."""
    return []


@pytest.fixture
def requests(loop, slow, heard):
    requests = Requests(loop, slow, lambda: heard.append(requests.in_flight))
    return requests


def test_request_is_in_flight_until_the_store_answers(requests, slow, heard, loop):
    answers = []
    requests.create(A, RECORD, lambda *each: answers.append(each))
    requests.open(B, lambda *each: answers.append(each))
    assert (requests.in_flight, answers) == (2, [])
    slow.answer()
    assert answers == [(RECORD, None), (None, MISSING)]
    assert (requests.in_flight, heard) == (0, [1, 0])
    assert loop.timers() == 0


def test_request_that_is_answered_at_once_sets_no_timer(loop, forgotten):
    requests = Requests(loop, MemoryStore(loop, forgotten.append), lambda: None)
    answers = []
    requests.create(A, RECORD, lambda *each: answers.append(each))
    assert answers == [(RECORD, None)]
    assert (requests.in_flight, loop.timers()) == (0, 0)


@pytest.mark.parametrize("method", ["create", "open"])
def test_store_that_never_answers_has_failed_after_half_a_second(requests, heard, loop, clock, method):
    answers = []
    begin = clock()
    record = [RECORD] if method == "create" else []
    getattr(requests, method)(A, *record, lambda *each: answers.append(each + (clock() - begin,)))
    loop.run()
    assert answers == [(None, FAILED, pytest.approx(ANSWER_SECONDS))]
    assert (requests.in_flight, heard) == (0, [0])


def test_record_that_comes_too_late_is_released(requests, slow, loop):
    answers = []
    requests.create(A, RECORD, lambda *each: answers.append(each))
    loop.call_later(2 * ANSWER_SECONDS, slow.answer)
    loop.call_later(2 * ANSWER_SECONDS, loop.stop)
    loop.run()
    assert answers == [(None, FAILED)]
    assert slow.released == [A]
    assert requests.in_flight == 0


def test_refusal_that_comes_too_late_releases_nothing(requests, slow, loop):
    answers = []
    requests.open(A, lambda *each: answers.append(each))
    loop.call_later(2 * ANSWER_SECONDS, slow.answer)
    loop.run()
    assert (answers, slow.released) == ([(None, FAILED)], [])


def test_second_answer_to_a_request_is_ignored(requests, slow):
    answers = []
    requests.create(A, RECORD, lambda *each: answers.append(each))
    due = list(slow.answers)
    slow.answer()
    for again in due:
        again()
    assert answers == [(RECORD, None)]
    assert (requests.in_flight, slow.released) == (0, [])


def test_release_is_in_flight_until_the_store_has_done_it(requests, slow, heard):
    keep_now(slow.store, A)
    slow.slow_release = True
    answer(slow.store.open, A)
    requests.release(A)
    assert requests.in_flight == 1
    slow.answer()
    assert (requests.in_flight, heard) == (0, [0])
