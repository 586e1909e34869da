"""What every store promises, held against each of them, and the requests in flight.

The clock is the test's. For a real Redis the keys' times to live are made shorter instead, in steps of a
second: there it is known to a second when something happens.
"""

import random

import pytest

from helpers import turn_until
from numseq.store import ANSWER_SECONDS, EXISTS, FAILED, FULL, MISSING, RETENTION, Record, Requests
from numseq.store_memory import MemoryStore
from redis_servers import ScriptedRedis
from stores import OTHER, RECORD, LateStores, RealStores, SlowStore, Stores, answer, id_of, keep as keep_now

A, B, C = map(id_of, range(10, 13))


# {name: function(request, loop, clock)}: every kind of store that the suite is run against
KINDS = {
    "memory": lambda request, loop, clock: Stores(loop, clock, "memory:"),
    "late": lambda request, loop, clock: LateStores(loop, clock, "memory:"),
    "file": lambda request, loop, clock: Stores(
        loop, clock, "file:%s" % (request.getfixturevalue("tmp_path") / "store")),
    "scripted redis": lambda request, loop, clock: Stores(loop, clock, ScriptedRedis(loop).url),
    "scripted redis, a byte a turn": lambda request, loop, clock: Stores(
        loop, clock, ScriptedRedis(loop, piece=1).url),
    "real redis": lambda request, loop, clock: RealStores(
        loop, clock, request.getfixturevalue("real_redis")),
    "real redis on a socket": lambda request, loop, clock: RealStores(
        loop, clock, request.getfixturevalue("real_redis"), db=3),
}


# Real time passes at a real server, so those take seconds.
@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.slow) if kind.startswith("real") else kind
                        for kind in KINDS])
def stores(request, loop, clock):
    """A Stores of each kind. None of them has anything to complain of."""
    stores = KINDS[request.param](request, loop, clock)
    yield stores
    stores.close()
    assert stores.lines == []


@pytest.fixture
def store(stores):
    return stores.make()


# ---- create, open, release


def test_opened_record_is_the_created_one(stores, store):
    assert stores.answer(store.create, A, RECORD) == (RECORD, None)
    assert stores.answer(store.create, B, OTHER) == (OTHER, None)
    assert stores.answer(store.open, A) == (RECORD, None)
    assert stores.answer(store.release, A) == ()
    assert stores.answer(store.release, A) == ()
    assert stores.answer(store.open, A) == (RECORD, None)
    assert stores.answer(store.open, B) == (OTHER, None)
    assert len(store) == 2


@pytest.mark.parametrize("record", [
    Record(bytes(16), 0, 1), Record(b"\xff" * 16, 65535, 65535), Record(b",\r\n;$*+-:", 1, 1),
    Record(A.decode("ascii"), 5, 5), Record("", 1, 1),
])
def test_any_record_comes_back_as_it_was(stores, store, record):
    stores.keep(store, A, record)
    assert stores.answer(store.open, A) == (record, None)


def test_open_record_is_not_created_again(stores, store):
    stores.answer(store.create, A, RECORD)
    assert stores.answer(store.create, A, OTHER) == (None, EXISTS)
    assert stores.answer(store.open, A) == (RECORD, None)


def test_retained_record_is_not_created_again(stores, store):
    stores.keep(store, A)
    assert stores.answer(store.create, A, OTHER) == (None, EXISTS)
    assert stores.answer(store.open, A) == (RECORD, None)


def test_unknown_record_is_missing(stores, store):
    assert stores.answer(store.open, A) == (None, MISSING)
    assert len(store) == 0


def test_ids_in_different_case_are_different(stores, store):
    mixed = A[:10].upper() + A[10:]
    assert len({A, mixed, A.upper()}) == 3
    for number, client_id in enumerate((A, mixed, A.upper())):
        stores.keep(store, client_id, Record(b"0123456789abcdef", number, 1))
    for number, client_id in enumerate((A, mixed, A.upper())):
        assert stores.answer(store.open, client_id) == (Record(b"0123456789abcdef", number, 1), None)


def test_refused_request_opens_no_record(stores, store):
    stores.keep(store, A)
    stores.answer(store.create, A, OTHER)
    stores.answer(store.open, B)
    stores.pass_time(RETENTION + stores.slack)
    assert [client_id for client_id, _ in stores.forgotten] == [A]


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_store_at_its_limit_creates_nothing(stores, kept):
    store = stores.make(clients_most=3)
    for number in range(3):
        stores.answer(store.create, id_of(number), RECORD)
    for number in range(kept):
        stores.answer(store.release, id_of(number))
    assert len(store) == 3
    assert stores.answer(store.create, A, RECORD) == (None, FULL)
    assert stores.answer(store.create, id_of(0), RECORD) == (None, EXISTS)
    assert stores.answer(store.open, A) == (None, MISSING)
    assert stores.answer(store.open, id_of(0)) == (RECORD, None)
    assert len(store) == 3


def test_forgotten_record_makes_room(stores):
    store = stores.make(clients_most=1)
    stores.keep(store, A)
    assert stores.answer(store.create, B, RECORD) == (None, FULL)
    stores.pass_time(RETENTION + stores.slack)
    assert stores.answer(store.create, B, RECORD) == (RECORD, None)


# ---- retention


def test_record_is_kept_for_the_retention_and_then_forgotten_once(stores, store):
    stores.keep(store, A)
    begin = stores.loop.now
    stores.pass_time(RETENTION - stores.slack)
    assert stores.forgotten == []
    assert stores.answer(store.create, A, OTHER) == (None, EXISTS)
    stores.pass_time(2 * stores.slack)
    (client_id, when), = stores.forgotten
    assert client_id == A
    assert RETENTION - stores.early <= when - begin <= RETENTION + stores.slack
    assert stores.answer(store.open, A) == (None, MISSING)
    assert stores.answer(store.create, A, OTHER) == (OTHER, None)
    stores.pass_time(2 * RETENTION)
    assert len(stores.forgotten) == 1


def test_record_is_never_forgotten_while_open(stores):
    """For as long as a session may last."""
    store = stores.make(session_timeout=10 * RETENTION)
    stores.answer(store.create, A, RECORD)
    stores.pass_time(2.5 * RETENTION)
    assert stores.answer(store.open, A) == (RECORD, None)
    stores.answer(store.release, A)
    stores.pass_time(2.5 * RETENTION)
    assert stores.forgotten == []
    assert stores.answer(store.create, A, RECORD) == (None, EXISTS)
    stores.answer(store.release, A)
    stores.pass_time(RETENTION + stores.slack)
    assert len(stores.forgotten) == 1
    assert stores.answer(store.open, A) == (None, MISSING)


def check_is_forgotten_after_the_retention(stores):
    """The only record, released now, is forgotten once the retention is over."""
    released = stores.loop.now
    stores.pass_time(RETENTION + stores.slack)
    (client_id, when), = stores.forgotten
    assert RETENTION - stores.early <= when - released <= RETENTION + stores.slack


def test_retention_counts_from_the_last_release(stores, store):
    stores.answer(store.create, A, RECORD)
    stores.answer(store.open, A)
    stores.answer(store.release, A)
    stores.pass_time(0.5)
    stores.answer(store.release, A)
    check_is_forgotten_after_the_retention(stores)


def test_opening_again_moves_the_deadline(stores, store):
    stores.keep(store, A)
    for _ in range(4):
        stores.pass_time(0.9 * RETENTION)
        assert stores.answer(store.open, A) == (RECORD, None)
        stores.answer(store.release, A)
    assert stores.forgotten == []
    check_is_forgotten_after_the_retention(stores)


def test_opening_one_again_leaves_the_deadlines_of_others(stores, store):
    begin = stores.loop.now
    for client_id in (A, B, C):
        stores.keep(store, client_id)
    stores.pass_time(10)
    stores.answer(store.open, A)
    stores.pass_time(0.5)
    stores.answer(store.release, A)
    stores.pass_time(RETENTION + stores.slack)
    assert [client_id for client_id, _ in stores.forgotten] == [B, C, A]
    for (client_id, when), expected in zip(stores.forgotten, [RETENTION, RETENTION, RETENTION + 10.5]):
        assert expected - stores.early <= when - begin <= expected + stores.slack


@pytest.mark.parametrize("retention", [0.25, 2.5, 10 ** 6])
def test_retention_is_configurable(stores, retention):
    store = stores.make(retention=retention)
    stores.keep(store, A)
    stores.pass_time(min(0.9 * retention, 50))
    assert stores.forgotten == []
    if retention < 10:
        stores.pass_time(0.1 * retention + stores.slack)
        assert [client_id for client_id, _ in stores.forgotten] == [A]


@pytest.mark.parametrize("seed", range(3))
def test_records_exist_exactly_as_in_a_model_after_any_history(stores, seed):
    """Against the plainest store: for each id how many have it open, and since when nobody has."""
    retention = 5
    slack = stores.slack + 0.05
    store = stores.make(clients_most=6, retention=retention, session_timeout=10 ** 6)
    generator = random.Random(seed)
    users, since = {}, {}
    for _ in range(150):
        client_id = id_of(generator.randrange(8))
        action = generator.choice(["create", "open", "release", "release", "wait"])
        if action == "create":
            expected = EXISTS if client_id in users else FULL if len(users) >= 6 else None
            assert stores.answer(store.create, client_id, RECORD)[1] == expected
            if expected is None:
                users[client_id] = 1
        elif action == "open":
            assert stores.answer(store.open, client_id)[1] == (None if client_id in users else MISSING)
            if client_id in users:
                users[client_id] += 1
        elif action == "release" and users.get(client_id):
            stores.answer(store.release, client_id)
            users[client_id] -= 1
            since[client_id] = stores.loop.now
        elif action == "wait":
            stores.pass_time(generator.choice([0.1, 1, 3]))
            idle = {each: stores.loop.now - since[each] for each, count in users.items() if not count}
            if any(retention - slack < seconds < retention + slack for seconds in idle.values()):
                stores.pass_time(2 * slack)  # close to a deadline it may be either
                idle = {each: stores.loop.now - since[each] for each in idle}
            for each, seconds in idle.items():
                if seconds >= retention + slack:
                    del users[each]
                elif seconds > retention - slack:
                    if stores.answer(store.open, each)[1] is MISSING:
                        del users[each]
                    else:
                        users[each] += 1
        assert len(store) == len(users)


def test_records_are_forgotten_in_the_order_of_their_release(stores, store):
    ids = [id_of(number) for number in range(20)]
    for client_id in ids:
        stores.answer(store.create, client_id, RECORD)
    random.Random(1).shuffle(ids)
    released = {}
    for client_id in ids:
        stores.pass_time(0.5)
        stores.answer(store.release, client_id)
        released[client_id] = stores.loop.now
    stores.pass_time(RETENTION + stores.slack)
    assert [client_id for client_id, _ in stores.forgotten] == ids
    for client_id, when in stores.forgotten:
        assert -stores.early <= when - released[client_id] - RETENTION <= stores.slack


# ---- its end


def test_closed_store_has_answered_every_request(stores, store):
    stores.keep(store, A)
    answers = []
    store.create(B, RECORD, lambda *answer: answers.append(answer))
    store.open(A, lambda *answer: answers.append(answer))
    store.close()
    assert len(answers) == 2
    assert answers[0] in ((RECORD, None), (None, FAILED))
    stores.pass_time(RETENTION + stores.slack)
    assert len(answers) == 2
    assert stores.forgotten == []


def test_closed_store_leaves_nothing_on_the_loop(stores, loop):
    before = loop.timers(), len(loop.poller.watched)
    store = stores.make()
    stores.keep(store, A)
    store.close()
    turns = []
    turn_until(loop, lambda: turns.append(None) or len(turns) > 5)
    assert (loop.timers(), len(loop.poller.watched)) == before


def test_unused_store_can_be_closed(stores, loop):
    before = loop.timers()
    stores.make().close()
    assert loop.timers() == before


# ---- several servers on one store


@pytest.fixture
def fleet(stores):
    """Two stores of two servers."""
    if not stores.url.startswith("redis"):
        pytest.skip("it is not shared")
    return stores.make(), stores.make()


def test_record_created_at_one_server_opens_at_another(stores, fleet):
    here, there = fleet
    stores.answer(here.create, A, RECORD)
    assert stores.answer(there.create, A, OTHER) == (None, EXISTS)
    assert stores.answer(there.open, A) == (RECORD, None)
    stores.answer(here.release, A)
    stores.answer(there.release, A)
    assert stores.answer(here.open, A) == (RECORD, None)


def test_server_that_released_last_announces_the_purge(stores, fleet):
    here, there = fleet
    stores.keep(here, A)
    stores.pass_time(20)
    stores.answer(there.open, A)
    stores.answer(there.release, A)
    released = stores.loop.now
    stores.pass_time(20)
    assert stores.forgotten == []
    assert stores.answer(here.create, A, OTHER) == (None, EXISTS)
    stores.pass_time(10 + stores.slack)
    (client_id, when), = stores.forgotten
    assert RETENTION - stores.early <= when - released <= RETENTION + stores.slack


def test_release_at_one_server_leaves_what_another_has_open(stores, fleet):
    here, there = (stores.make(session_timeout=10 * RETENTION) for _ in range(2))
    stores.answer(here.create, A, RECORD)
    stores.pass_time(0.5)
    stores.answer(there.open, A)
    stores.answer(there.release, A)
    stores.pass_time(2 * RETENTION)
    assert stores.forgotten == []
    assert stores.answer(there.open, A) == (RECORD, None)


def test_record_open_at_a_killed_server_is_kept_for_its_lease(stores, fleet):
    here, there = fleet
    stores.answer(here.create, A, RECORD)
    here.close()
    stores.pass_time(RETENTION)
    assert stores.answer(there.create, A, OTHER) == (None, EXISTS)
    stores.pass_time(1 + stores.slack)
    assert stores.answer(there.create, A, OTHER) == (OTHER, None)


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
def test_request_without_a_reply_fails_after_half_a_second(requests, heard, loop, clock, method):
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


def test_record_of_a_call_that_failed_is_released(requests, slow, monkeypatch):
    create = slow.create

    def create_and_fail(*arguments):
        create(*arguments)
        raise MemoryError

    monkeypatch.setattr(slow, "create", create_and_fail)
    with pytest.raises(MemoryError):
        requests.create(A, RECORD, None)
    assert requests.in_flight == 0
    slow.answer()
    assert (requests.in_flight, slow.released) == (0, [A])


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


def test_release_is_in_flight_until_the_store_confirms_it(requests, slow, heard):
    keep_now(slow.store, A)
    slow.slow_release = True
    answer(slow.store.open, A)
    requests.release(A)
    assert requests.in_flight == 1
    slow.answer()
    assert (requests.in_flight, heard) == (0, [0])


def test_late_record_without_memory_to_release_it_is_released_later(requests, slow, loop, monkeypatch):
    requests.create(A, RECORD, lambda *each: None)
    loop.run()
    with monkeypatch.context() as patch:
        patch.setattr(slow, "release", no_memory)
        slow.answer()
    assert requests.in_flight == 1
    loop.run()
    assert (requests.in_flight, slow.released) == (0, [A])


def test_release_is_made_once_whatever_hears_of_it(loop, forgotten):
    store = MemoryStore(loop, forgotten.append)
    requests = Requests(loop, store, no_memory)
    keep_now(store, A)
    answer(store.open, A)
    requests.release(A)
    assert [type(error) for error in loop.errors] == [MemoryError]
    del loop.errors[:]
    loop.run()
    assert (requests.in_flight, forgotten) == (0, [A])


def no_memory(*_):
    raise MemoryError
