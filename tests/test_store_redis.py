"""Records in Redis: what becomes of a request when Redis is late, silent, wrong, away, demoted or
replaced."""

import errno
import os
import socket
import tracemalloc

import pytest

from helpers import pass_time, turn_until
import redis_servers
from numseq import redis_client
from numseq.loop import Loop
from numseq.redis_client import (ATTEMPT_SECONDS, BACKOFF_MOST, IDLE_SECONDS, IN_FLIGHT_MOST, PING,
                                 WAITING_MOST, Place, parse_url)
from numseq.serving import Server
from numseq.store import ANSWER_SECONDS, EXISTS, FAILED, FULL, MISSING, RETENTION, Record, Requests
from numseq.store_redis import RedisStore, decode_value, encode_value
from numseq.stream import Stream
from redis_servers import HOST, RealRedis, ScriptedRedis
from stores import id_of

RECORD = Record(b"0123456789abcdef", 10, 2)
OTHER = Record(b"fedcba9876543210", 20, 3)


A, B, C = id_of(10), id_of(11), id_of(12)
KEY = b"numseq:" + A


class Asked:
    """A request to a store, with its answers and when they came."""

    def __init__(self, loop, method, *arguments):
        self.loop = loop
        self.began = loop.now
        self.answers = []
        method(*arguments, self._done)

    def _done(self, *answer):
        self.answers.append(answer)
        self.took = self.loop.now - self.began

    @property
    def answer(self):
        assert len(self.answers) == 1
        return self.answers[0]


def ask(loop, method, *arguments):
    """Asks, and lets time pass until the answer is there; returns an Asked."""
    asked = Asked(loop, method, *arguments)
    for _ in range(2000):
        if asked.answers:
            break
        loop.turn()
    assert asked.took <= ANSWER_SECONDS + 0.001
    return asked


def boom_of(error):
    """A function that raises the error."""
    def fail(*_):
        raise error

    return fail


@pytest.fixture
def redis(loop):
    return ScriptedRedis(loop)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def forgotten():
    return []


@pytest.fixture
def make_store(loop, lines, forgotten):
    """A function: a RedisStore on ScriptedRedises; it has connected unless `connect` is false."""
    made = []

    def make(*servers, connect=True, **options):
        hosts = [(HOST, server.port) for server in servers]
        place = Place(hosts, None, None, options.pop("password", None), 0)
        store = RedisStore(place, loop, forgotten.append, complain=lines.append, **options)
        made.append(store)
        if connect:
            turn_until(loop, store.is_up)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(redis, make_store):
    return make_store(redis)


@pytest.fixture
def proven(loop, redis, store):
    """The store, whose connection has answered a request already."""
    assert ask(loop, store.create, C, RECORD).answer == (RECORD, None)
    return store


# ---- what is sent


def test_a_session_takes_two_round_trips(loop, redis, store):
    del redis.commands[:]
    assert ask(loop, store.create, A, RECORD).answer == (RECORD, None)
    assert redis.names() == [b"SET"]
    ask(loop, store.release, A)
    assert redis.names() == [b"SET", b"PEXPIRE"]
    assert ask(loop, store.open, A).answer == (RECORD, None)
    assert redis.names() == [b"SET", b"PEXPIRE", b"PEXPIRE", b"GET"]


def test_requests_of_a_turn_go_in_one_write(loop, redis, proven):
    asked = [Asked(loop, proven.create, id_of(number), RECORD) for number in range(50)]
    turns = loop.turns
    turn_until(loop, lambda: all(each.answers for each in asked))
    assert loop.turns - turns < 10


def test_key_expires_after_lease_and_retention_then_after_retention(loop, redis, make_store):
    store = make_store(redis, session_timeout=2, retention=30)
    ask(loop, store.create, A, RECORD)
    assert redis.keys[KEY][1] - loop.now == pytest.approx(32, abs=0.01)
    ask(loop, store.release, A)
    assert redis.keys[KEY][1] - loop.now == pytest.approx(30, abs=0.01)
    ask(loop, store.open, A)
    assert redis.keys[KEY][1] - loop.now == pytest.approx(32, abs=0.01)


@pytest.mark.parametrize("record", [RECORD, Record("text, with a comma", 0, 1), Record(b"", 65535, 65535)])
def test_value_holds_the_record(record):
    value = encode_value(record, 1, b"00112233445566ff")
    assert decode_value(value, 1) == (record, bytes.fromhex("00112233445566ff"))


@pytest.mark.parametrize("value", [
    b"", b"x", b"1", b"1,", b"1,5", b"1,5,5", b"1,5,5,b00", b"1,5,5,b0,0011223344556677",
    b"1,5,5,x00,0011223344556677",
    b"1,-1,5,b00,0011223344556677", b"1,65536,5,b00,0011223344556677", b"1,5,0,b00,0011223344556677",
    b"1,5,5,b00,00112233445566", b"1,5,5,b00,001122334455667x", b"1,5,5,t\xff,0011223344556677",
    b"1," + b"1" * 4000 + b",5,b00,0011223344556677",
    b"x,5,5,b00,0011223344556677", b"1x,5,5,b00,0011223344556677",
    b"2,5,5,b00,0011223344556677", b"257,5,5,b00,0011223344556677",
    b"1,5,5,b,b00,0011223344556677", b",5,5,b00,0011223344556677",
])
def test_key_with_another_value_fails_and_is_named(loop, redis, store, lines, value):
    redis.keys[KEY] = value, loop.now + 100
    assert ask(loop, store.open, A).answer == (None, FAILED)
    assert len(lines) == 1 and KEY.decode("ascii") in lines[0]
    assert ask(loop, store.create, B, RECORD).answer == (RECORD, None)


def test_record_of_another_drawing_fails_and_the_line_names_it(loop, redis, make_store, lines):
    assert ask(loop, make_store(redis, drawing=2).create, A, RECORD).answer == (RECORD, None)
    assert ask(loop, make_store(redis, drawing=1).open, A).answer == (None, FAILED)
    assert len(lines) == 1 and KEY.decode("ascii") in lines[0] and "version" in lines[0]


# ---- the named failures of such clients


def test_the_next_caller_never_gets_the_reply_to_an_earlier_request(loop, clock, redis, proven):
    """redis-py#2624, coredis#143: a connection whose answer is late is not used again."""
    for client_id, record in ((A, RECORD), (B, OTHER)):
        ask(loop, proven.create, client_id, record)
        ask(loop, proven.release, client_id)
    redis.delay = ATTEMPT_SECONDS + 0.05
    late = Asked(loop, proven.open, A)
    turn_until(loop, lambda: redis.names()[-1] == b"GET")
    redis.delay = 0
    pass_time(loop, clock, ATTEMPT_SECONDS)
    assert ask(loop, proven.open, B).answer == (OTHER, None)
    assert late.answer == (RECORD, None)
    assert len(redis.connections) == 2 and redis.connections[0].stream is None
    pass_time(loop, clock, 1)
    assert ask(loop, proven.open, B).answer == (OTHER, None)


def cut_after_the_first_set(redis):
    """Loses the reply to the next SET: the connection is reset instead."""
    lost = []

    def reply(parts, answer):
        if parts[0] == b"SET" and not lost:
            lost.append(parts)
            redis.cut()
            return None
        return answer

    redis.reply = reply


def test_a_create_whose_answer_was_lost_is_ours_when_it_is_sent_again(loop, redis, proven):
    """redis-py#261, valkey#1087: it was executed, so the second one finds the key there."""
    cut_after_the_first_set(redis)
    assert ask(loop, proven.create, A, RECORD).answer == (RECORD, None)
    assert redis.names()[1:] == [b"SET", b"SET", b"GET"]
    assert ask(loop, proven.create, A, OTHER).answer == (None, EXISTS)


def test_a_create_whose_answer_was_lost_does_not_take_over_anothers(loop, redis, proven):
    ask(loop, proven.create, A, OTHER)
    cut_after_the_first_set(redis)
    assert ask(loop, proven.create, A, RECORD).answer == (None, EXISTS)


def test_no_command_is_sent_more_than_twice(loop, redis, proven):
    def always_cut(parts, answer):
        if parts[0] == b"SET":
            redis.cut()
            return None
        return answer

    redis.reply = always_cut
    del redis.commands[:]
    assert ask(loop, proven.create, A, RECORD).answer == (None, FAILED)
    assert redis.names().count(b"SET") == 2


def test_a_half_open_connection_is_detected_within_seconds(loop, clock, redis, proven):
    """lettuce#2082: nothing is heard any more, and nothing is asked."""
    connection, = redis.open_connections()
    redis.reply = lambda parts, answer: None
    pass_time(loop, clock, IDLE_SECONDS + ATTEMPT_SECONDS + 0.1)
    assert connection.stream is None
    redis.reply = None
    pass_time(loop, clock, 2 * BACKOFF_MOST)
    assert ask(loop, proven.create, A, RECORD).answer == (RECORD, None)


def test_in_an_outage_requests_fail_at_once_and_nothing_is_queued(loop, clock, redis, proven, lines):
    """lettuce#813."""
    redis.stop()
    pass_time(loop, clock, 1)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(20000):
            asked = Asked(loop, proven.create, id_of(100), RECORD)
            assert asked.answer == (None, FAILED) and asked.took == 0
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used < 20000
    assert len(lines) == 1


def test_requests_waiting_for_a_connection_are_limited(loop, redis, make_store):
    store = make_store(redis, connect=False)
    asked = [Asked(loop, store.create, id_of(number), RECORD) for number in range(WAITING_MOST + 10)]
    assert [each.answers for each in asked[WAITING_MOST:]] == [[(None, FAILED)]] * 10
    assert not any(each.answers for each in asked[:WAITING_MOST])


def test_a_demoted_master_is_replaced_by_the_next_host(loop, redis, make_store):
    """redis-py#435."""
    other = ScriptedRedis(loop)
    other.is_replica = True
    store = make_store(redis, other)
    ask(loop, store.create, A, RECORD)
    redis.is_replica, other.is_replica = True, False
    other.keys = dict(redis.keys)
    assert ask(loop, store.create, B, RECORD).answer == (RECORD, None)
    assert ask(loop, store.open, A).answer == (RECORD, None)
    assert len(other.open_connections()) == 1 and not redis.open_connections()


def test_a_wrong_password_does_not_reset_the_backoff(loop, clock, redis, make_store, lines):
    """redis-client#274."""
    redis.reply = lambda parts, answer: (b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
                                         if parts[0] == b"AUTH" else b"-NOAUTH Authentication required.\r\n")
    store = make_store(redis, password=b"secret", connect=False)
    pass_time(loop, clock, BACKOFF_MOST / 2)
    assert len(redis.connections) == 1
    pass_time(loop, clock, 60 - BACKOFF_MOST / 2)
    assert 60 / BACKOFF_MOST <= len(redis.connections) <= 2 + 60 / (BACKOFF_MOST / 2)
    assert len(lines) == 1 and "WRONGPASS" in lines[0] and "secret" not in lines[0]
    assert Asked(loop, store.create, A, RECORD).answer == (None, FAILED)


def test_a_record_does_not_expire_while_it_is_in_use(loop, clock, redis, make_store):
    store = make_store(redis, session_timeout=1000, retention=5)
    ask(loop, store.create, A, RECORD)
    for _ in range(100):
        pass_time(loop, clock, 1)
        assert redis.value(KEY) is not None


# ---- late, silent, wrong, in pieces, cut


@pytest.mark.parametrize("delay", [0.01, 0.1, 0.19])
def test_a_slow_redis_is_waited_for(loop, redis, proven, delay):
    redis.delay = delay
    asked = ask(loop, proven.create, A, RECORD)
    assert asked.answer == (RECORD, None)
    assert asked.took == pytest.approx(delay, abs=0.01)


@pytest.mark.parametrize("delay", [0.25, 1, 100])
def test_a_redis_that_is_too_slow_costs_half_a_second(loop, clock, redis, proven, lines, delay):
    redis.delay = delay
    for method, arguments in ((proven.create, (A, RECORD)), (proven.open, (A,)), (proven.release, (C,))):
        assert ask(loop, method, *arguments).answer in ((None, FAILED), ())
    assert len(lines) == 1 and "does not answer" in lines[0]


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 400 Bad Request\r\n", b"*1\r\n:1\r\n", b":1\r\n", b"+QUEUED\r\n", b"$3\r\nabc\r\n",
    b"+OK\r\n+OK\r\n",
    b"x" * 10000, b"\0", b"-ERR unknown command 'SET'\r\n", b"-\r\n",
])
def test_a_wrong_answer_ends_the_connection_and_creates_nothing_here(loop, clock, redis, proven, answer):
    connection, = redis.open_connections()
    redis.reply = lambda parts, right: answer if parts[0] == b"SET" else right
    asked = ask(loop, proven.create, A, RECORD)
    if answer != b"+OK\r\n+OK\r\n":
        assert asked.answer in ((None, FAILED), (None, EXISTS), (RECORD, None))
        if asked.answer[1] is EXISTS:
            pytest.fail("its own record was taken for another's")
    turn_until(loop, lambda: connection.stream is None)
    redis.reply = None
    pass_time(loop, clock, 2 * BACKOFF_MOST)
    assert ask(loop, proven.create, B, RECORD).answer == (RECORD, None)


def test_cut_after_any_byte_requests_are_answered_and_the_next_ones_work(loop, clock, redis, make_store):
    for size in range(40):
        redis.keys.clear()
        redis.cut_after = size
        store = make_store(redis, connect=False)
        asked = [Asked(loop, store.create, A, RECORD), Asked(loop, store.open, A), Asked(loop, store.open, B)]
        pass_time(loop, clock, 1)
        assert asked[0].answer in ((RECORD, None), (None, FAILED))
        assert asked[1].answer in ((RECORD, None), (None, MISSING), (None, FAILED))
        assert asked[2].answer in ((None, MISSING), (None, FAILED))
        redis.cut_after = None
        for connection in redis.open_connections():
            connection.stream.abort()
        pass_time(loop, clock, 2 * BACKOFF_MOST)
        assert ask(loop, store.create, C, OTHER).answer == (OTHER, None)
        store.close()


@pytest.mark.parametrize("piece", [1, 2, 3, 7])
def test_answers_in_pieces_are_put_together(loop, redis, proven, piece):
    redis.piece = piece
    ask(loop, proven.create, A, RECORD)
    asked = [Asked(loop, proven.open, A), Asked(loop, proven.open, B), Asked(loop, proven.create, A, OTHER)]
    turn_until(loop, lambda: all(each.answers for each in asked))
    assert [each.answer for each in asked] == [(RECORD, None), (None, MISSING), (None, EXISTS)]


def test_an_unexpected_reply_ends_the_connection(loop, redis, proven):
    connection, = redis.open_connections()
    connection.stream.write(b"+OK\r\n")
    turn_until(loop, lambda: connection.stream is None)
    assert ask(loop, proven.create, A, RECORD).answer == (RECORD, None)


def test_a_connection_that_is_cut_is_made_again_at_once(loop, redis, proven, lines):
    for number in range(20):
        redis.cut()
        turn_until(loop, lambda: not redis.open_connections())
        assert ask(loop, proven.create, id_of(100 + number), RECORD).answer == (RECORD, None)
    assert lines == []


def test_a_connection_that_is_always_cut_is_not_made_again_without_a_pause(loop, clock, redis, proven):
    redis.cut_after = len(b"+PONG\r\n")
    redis.cut()
    pass_time(loop, clock, 60)
    assert 10 <= len(redis.connections) <= 50


def test_a_reply_that_was_there_before_its_request_is_not_taken(loop, redis, proven):
    """The second reply to a release comes with the first, before the release's own second command is sent."""
    ask(loop, proven.create, A, RECORD)
    redis.keys.clear()
    connection, = redis.open_connections()
    redis.reply = lambda parts, answer: b":0\r\n+OK\r\n" if parts[0] == b"PEXPIRE" else answer
    ask(loop, proven.release, A)
    assert connection.stream is None
    assert redis.value(KEY) is not None  # the second command was answered by Redis


def test_a_request_without_memory_costs_the_connection_and_no_reply(loop, redis, proven, monkeypatch):
    """Nobody could tell whether it was written, and so whose the next reply is."""
    for client_id, record in ((A, RECORD), (B, OTHER)):
        ask(loop, proven.create, client_id, record)
        ask(loop, proven.release, client_id)
    write, failures = Stream.write, [MemoryError]

    def fail_once(stream, data):
        if failures and b"PEXPIRE" in data:
            raise failures.pop()
        write(stream, data)

    monkeypatch.setattr(Stream, "write", fail_once)
    asked = [Asked(loop, proven.open, A), Asked(loop, proven.open, B)]
    turn_until(loop, lambda: all(each.answers for each in asked))
    assert [each.answer for each in asked] == [(RECORD, None), (OTHER, None)]


@pytest.mark.parametrize("name", ["Connector", "_Request", "Stream.abort"])
def test_without_memory_after_a_loss_the_connection_is_made_again(
        loop, clock, redis, proven, monkeypatch, name):
    with monkeypatch.context() as patch:
        patch.setattr("numseq.redis_client." + name, boom_of(MemoryError()))
        connection, = redis.open_connections()
        connection.stream.write(b"+OK\r\n")  # a reply to nothing
        turn_until(loop, lambda: loop.errors)
        with pytest.raises(MemoryError):
            raise loop.errors[0]
        for _ in range(5):
            loop.turn()
    del loop.errors[:]
    pass_time(loop, clock, 2 * BACKOFF_MOST)
    assert ask(loop, proven.create, A, RECORD).answer == (RECORD, None)


def test_after_a_limit_without_memory_later_requests_have_theirs(loop, clock, redis, monkeypatch):
    store = RedisStore(parse_url(redis.url), loop, None)
    really_call = loop.call_at

    def call_at(when, callback, argument=None):
        if callback == store._client._end_late:
            raise MemoryError
        return really_call(when, callback, argument)

    waiting = Asked(loop, store.open, A)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_at", call_at)
        turn_until(loop, lambda: waiting.answers)  # the greeting has to end before the one that waits
    pass_time(loop, clock, 2 * BACKOFF_MOST)
    assert ask(loop, store.open, A).answer == (None, MISSING)
    redis.reply = lambda parts, answer: None
    asked = Asked(loop, store.open, B)
    pass_time(loop, clock, ANSWER_SECONDS + 0.1)
    assert asked.answers == [(None, FAILED)]
    store.close()


def test_a_missing_unix_socket_is_told_and_tried_again(loop, clock, tmp_path, lines):
    path = tmp_path / "socket"
    store = RedisStore(parse_url("redis+socket://%s" % path), loop, None, complain=lines.append)
    assert ask(loop, store.create, A, RECORD).answer == (None, FAILED)
    assert store.is_away() and [line[:len("Redis at %s failed" % path)] for line in lines] == [
        "Redis at %s failed" % path]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        pass_time(loop, clock, 2 * BACKOFF_MOST)
        with listening.accept()[0] as accepted:
            assert accepted.recv(100) == PING.data
    store.close()


def test_a_system_without_random_bytes_fails_the_request_alone(loop, clock, redis, proven, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", boom_of(OSError(errno.EMFILE, "Too many open files")))
        assert ask(loop, proven.create, A, RECORD).answer == (None, FAILED)
        redis.stop()
        pass_time(loop, clock, 2)
    redis.listen()
    pass_time(loop, clock, 2 * BACKOFF_MOST)
    assert ask(loop, proven.create, A, RECORD).answer == (RECORD, None)


def test_no_more_than_the_limit_is_in_flight(loop, redis, proven):
    redis.reply = lambda parts, answer: None
    del redis.commands[:]
    for number in range(IN_FLIGHT_MOST + 100):
        Asked(loop, proven.create, id_of(100 + number), RECORD)
    turn_until(loop, lambda: len(redis.commands) == IN_FLIGHT_MOST)
    for _ in range(10):
        loop.turn()
    assert len(redis.commands) == IN_FLIGHT_MOST or redis.commands[IN_FLIGHT_MOST][0] == b"PING"


# ---- what Redis says


NEXT_HOST = {
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "READONLY": b"-READONLY You can't write against a read only replica.\r\n",
    "NOREPLICAS": b"-NOREPLICAS Not enough good replicas to write.\r\n",
    "MISCONF": b"-MISCONF Redis is configured to save RDB snapshots, but is currently unable to persist.\r\n",
    "CLUSTERDOWN": b"-CLUSTERDOWN The cluster is down\r\n",
    "MASTERDOWN": b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    "BUSY": b"-BUSY Redis is busy running a script.\r\n",
}
DENIED = {
    "NOAUTH": b"-NOAUTH Authentication required.\r\n",
    "WRONGPASS": b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    "NOPERM": b"-NOPERM this user has no permissions to run the 'set' command\r\n",
    "MOVED": b"-MOVED 3999 127.0.0.1:6381\r\n",
}


@pytest.mark.parametrize("word", sorted(NEXT_HOST))
@pytest.mark.parametrize("when", ["greeting", "request"])
def test_a_host_that_cannot_serve_gives_way_to_the_next(loop, redis, make_store, lines, word, when):
    error = NEXT_HOST[word]
    redis.reply = lambda parts, answer: error if (parts[0] == b"PING") == (when == "greeting") else answer
    store = make_store(redis, ScriptedRedis(loop), connect=False)
    assert ask(loop, store.create, A, RECORD).answer == (RECORD, None)
    assert lines == []


@pytest.mark.parametrize("word", sorted(NEXT_HOST))
@pytest.mark.parametrize("when", ["greeting", "request"])
def test_a_single_host_that_cannot_serve_is_one_line_an_outage(
        loop, clock, redis, make_store, lines, word, when):
    store = make_store(redis)
    ask(loop, store.create, C, RECORD)
    error = NEXT_HOST[word]
    for outage in range(1, 3):
        redis.reply = lambda parts, answer: error if when == "request" or parts[0] == b"PING" else answer
        if when == "greeting":
            redis.cut()
        for _ in range(20):
            assert ask(loop, store.create, A, RECORD).answer == (None, FAILED)
            pass_time(loop, clock, 1)
        assert len(lines) == outage and word in lines[-1]
        redis.reply = None
        pass_time(loop, clock, 2 * BACKOFF_MOST)
        assert ask(loop, store.open, C).answer == (RECORD, None)


@pytest.mark.parametrize("word", sorted(DENIED))
@pytest.mark.parametrize("when", ["greeting", "request"])
def test_configuration_error_is_named_and_retried_rarely( loop, clock, redis, make_store, lines, word, when):
    redis.reply = lambda parts, answer: DENIED[word] if when == "greeting" or parts[0] == b"SET" else answer
    store = make_store(redis, connect=False)
    for _ in range(60):
        assert ask(loop, store.create, A, RECORD).answer == (None, FAILED)
        pass_time(loop, clock, 1)
    assert len(lines) == 1 and word in lines[0]
    assert len(redis.connections) <= 2 + 60 / (BACKOFF_MOST / 2)
    redis.reply = None
    pass_time(loop, clock, 2 * BACKOFF_MOST)
    assert ask(loop, store.create, B, RECORD).answer == (RECORD, None)


def test_a_redis_without_memory_is_full_and_what_is_there_goes_on(loop, redis, proven, lines):
    redis.reply = lambda parts, answer: (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
                                         if parts[0] == b"SET" else answer)
    assert ask(loop, proven.create, A, RECORD).answer == (None, FULL)
    assert ask(loop, proven.open, C).answer == (RECORD, None)
    assert len(redis.open_connections()) == len(redis.connections) == 1
    assert lines == []


def test_a_key_of_another_type_fails_and_is_named(loop, redis, proven, lines):
    wrong_type = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
    redis.reply = lambda parts, answer: wrong_type if parts[0] == b"GET" else answer
    assert ask(loop, proven.open, A).answer == (None, FAILED)
    assert len(lines) == 1 and KEY.decode("ascii") in lines[0]
    redis.reply = None
    assert ask(loop, proven.open, C).answer == (RECORD, None)
    assert len(redis.connections) == 1


LAST_WORDS = {  # what Redis says before it closes, whatever was asked
    "protected mode": b"-DENIED Redis is running in protected mode because " + b"x" * 1100 + b"\r\n",
    "max number of clients": b"-ERR max number of clients reached\r\n",
}


@pytest.mark.parametrize("words", sorted(LAST_WORDS))
def test_an_error_before_the_end_of_a_connection_is_the_reason(loop, clock, redis, lines, words):
    def say_and_close(parts, answer):
        if parts[0] == b"SELECT":
            redis.open_connections()[-1].stream.write(LAST_WORDS[words])
            redis.open_connections()[-1].stream.close(expect_more=False)
        return None

    redis.reply = say_and_close
    store = RedisStore(parse_url(redis.url + "/4"), loop, None, complain=lines.append)
    pass_time(loop, clock, 30)
    assert len(lines) == 1 and words in lines[0] and len(lines[0]) < 400
    store.close()


def test_a_host_with_too_many_clients_gives_way_to_the_next(loop, redis, make_store, lines):
    redis.reply = lambda parts, answer: LAST_WORDS["max number of clients"]
    store = make_store(redis, ScriptedRedis(loop), connect=False)
    assert ask(loop, store.create, A, RECORD).answer == (RECORD, None)
    assert lines == []


def test_errors_of_many_kinds_are_one_line_an_outage(loop, clock, redis, proven, lines):
    numbers = iter(range(1000))
    redis.reply = lambda parts, answer: b"-E%d failed\r\n" % next(numbers)
    redis.cut()
    pass_time(loop, clock, 100)
    assert len(lines) == 1


# ---- records that Redis has lost


def test_lost_open_record_is_restored_by_its_release(loop, redis, proven):
    ask(loop, proven.create, A, RECORD)
    redis.keys.clear()
    ask(loop, proven.release, A)
    assert redis.keys[KEY][1] - loop.now == pytest.approx(RETENTION, abs=0.1)
    assert ask(loop, proven.open, A).answer == (RECORD, None)


def test_lost_open_record_is_restored_by_its_renewal(loop, clock, redis, make_store):
    store = make_store(redis, session_timeout=1000, retention=5)
    ask(loop, store.create, A, RECORD)
    redis.keys.clear()
    pass_time(loop, clock, 5)
    assert redis.value(KEY) is not None


def test_lost_idle_record_is_missing_and_announced(loop, clock, redis, proven, forgotten):
    ask(loop, proven.create, A, RECORD)
    ask(loop, proven.release, A)
    redis.keys.clear()
    assert ask(loop, proven.open, A).answer == (None, MISSING)
    pass_time(loop, clock, RETENTION + 0.1)
    assert forgotten == [A]


def test_a_purge_is_announced_although_the_id_was_created_anew(loop, clock, redis, make_store, forgotten):
    store, other = make_store(redis), make_store(redis)
    ask(loop, store.create, A, RECORD)
    ask(loop, store.release, A)
    redis.keys.clear()
    ask(loop, other.create, A, OTHER)
    pass_time(loop, clock, RETENTION + 0.1)
    assert forgotten == [A]


def test_a_release_in_an_outage_purges_nothing_early_and_is_announced(loop, clock, redis, proven, forgotten):
    ask(loop, proven.create, A, RECORD)
    keys = redis.keys
    redis.stop()
    pass_time(loop, clock, 0.5)
    ask(loop, proven.release, A)
    released = loop.now
    redis.listen()
    assert keys[KEY][1] >= released + RETENTION
    pass_time(loop, clock, 2 * RETENTION + 5)
    assert forgotten == [A]
    assert ask(loop, proven.open, A).answer == (None, MISSING)


def test_announcements_due_in_an_outage_come_after_it(loop, clock, redis, proven, forgotten):
    for number in range(5):
        ask(loop, proven.create, id_of(number), RECORD)
        ask(loop, proven.release, id_of(number))
    redis.stop()
    pass_time(loop, clock, 2 * RETENTION)
    assert forgotten == []
    redis.listen()
    pass_time(loop, clock, 2 * BACKOFF_MOST)
    assert sorted(forgotten) == [id_of(number) for number in range(5)]


@pytest.mark.parametrize("apart", [0, 0.005, 0.05, 0.5])
def test_one_of_two_servers_announces_however_close_their_releases(
        loop, clock, redis, make_store, forgotten, apart):
    first, second = make_store(redis), make_store(redis)
    ask(loop, first.create, A, RECORD)
    ask(loop, second.open, A)
    ask(loop, first.release, A)
    if apart:
        pass_time(loop, clock, apart)
    ask(loop, second.release, A)
    pass_time(loop, clock, 2 * RETENTION)
    assert forgotten == [A]


@pytest.mark.parametrize("rate", [0.9991, 1.0009])
def test_a_purge_is_announced_although_the_clocks_differ(loop, clock, redis, make_store, forgotten, rate):
    store = make_store(redis, retention=3600)
    ask(loop, store.create, A, RECORD)
    ask(loop, store.release, A)
    value, expires = redis.keys[KEY]
    redis.keys[KEY] = value, loop.now + (expires - loop.now) * rate
    pass_time(loop, clock, 3610)
    assert forgotten == [A]


@pytest.mark.parametrize("loss", ["outage", "restart"])
def test_one_of_two_servers_announces_after_a_loss(loop, clock, redis, make_store, forgotten, loss):
    first, second = make_store(redis), make_store(redis)
    ask(loop, first.create, A, RECORD)
    ask(loop, first.release, A)
    pass_time(loop, clock, 5)
    ask(loop, second.open, A)
    ask(loop, second.release, A)
    redis.stop()
    if loss == "restart":
        redis.keys.clear()
    else:
        pass_time(loop, clock, 2 * RETENTION)
    redis.listen()
    pass_time(loop, clock, 2 * RETENTION)
    assert forgotten == [A]
    assert len(first) == len(second) == 0


@pytest.mark.parametrize("announces", ["first", "second"])
def test_two_servers_that_released_in_an_outage_announce_once(
        loop, clock, redis, make_store, forgotten, announces):
    stores = make_store(redis), make_store(redis)
    ask(loop, stores[0].create, A, RECORD)
    ask(loop, stores[1].open, A)
    redis.stop()
    pass_time(loop, clock, 0.2)
    for store in stores if announces == "first" else reversed(stores):
        ask(loop, store.release, A)
        pass_time(loop, clock, 0.5)
    redis.listen()
    pass_time(loop, clock, 3 * RETENTION)
    assert forgotten == [A]


def test_a_record_whose_opening_failed_late_is_announced(loop, clock, redis, proven, forgotten):
    """Redis has carried it out, so the key lives for its lease, although nobody has it open."""
    ask(loop, proven.create, A, RECORD)
    ask(loop, proven.release, A)
    pass_time(loop, clock, RETENTION / 2)
    redis.reply = lambda parts, answer: None
    assert ask(loop, proven.open, A).answer == (None, FAILED)
    redis.reply = None
    pass_time(loop, clock, 3 * RETENTION)
    assert forgotten == [A]


def test_a_record_that_is_created_anew_before_its_check_is_announced(loop, clock, redis, proven, forgotten):
    ask(loop, proven.create, A, RECORD)
    ask(loop, proven.release, A)
    pass_time(loop, clock, RETENTION - 1)
    redis.keys.clear()
    assert ask(loop, proven.create, A, OTHER).answer == (OTHER, None)
    pass_time(loop, clock, 0.1)
    assert forgotten == [A]
    ask(loop, proven.release, A)
    pass_time(loop, clock, 2 * RETENTION)
    assert forgotten == [A, A]


def test_a_purge_whose_claim_was_made_but_not_answered_is_announced(loop, clock, redis, proven, forgotten):
    ask(loop, proven.create, A, RECORD)
    ask(loop, proven.release, A)
    redis.reply = lambda parts, answer: None if b"purged" in b" ".join(parts) else answer
    pass_time(loop, clock, RETENTION + 0.3)
    assert forgotten == [] and any(b"purged" in key for key in redis.keys)
    redis.reply = None
    pass_time(loop, clock, 5)
    assert forgotten == [A]


def test_without_memory_for_claims_a_purge_is_announced(loop, clock, redis, proven, forgotten):
    ask(loop, proven.create, A, RECORD)
    ask(loop, proven.release, A)
    redis.cut()
    redis.reply = lambda parts, answer: b"-OOM no memory\r\n" if parts[0] == b"SET" else answer
    pass_time(loop, clock, RETENTION + 1)
    assert forgotten == [A]


def test_checks_go_on_after_one_that_raised(loop, clock, redis, make_store, monkeypatch):
    announced = []

    def announce(client_id):
        announced.append(client_id)
        if len(announced) == 1:
            raise ValueError("a fault of the one who hears of it")

    store = RedisStore(parse_url(redis.url), loop, announce)
    reported = []
    monkeypatch.setattr(loop, "report", reported.append)
    for client_id in A, B:
        ask(loop, store.create, client_id, RECORD)
        ask(loop, store.release, client_id)
        pass_time(loop, clock, RETENTION + 1)
    assert announced == [A, B] and len(reported) == 1
    store.close()


def test_a_release_without_memory_can_be_repeated(loop, redis, proven, monkeypatch):
    ask(loop, proven.create, A, RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(redis_client, "_Request", boom_of(MemoryError()))
        with pytest.raises(MemoryError):
            proven.release(A, None)
    ask(loop, proven.release, A)
    assert redis.keys[KEY][1] - loop.now == pytest.approx(RETENTION, abs=0.01)


def test_a_release_that_cannot_be_noted_is_not_in_flight_for_ever(loop, proven, monkeypatch):
    requests = Requests(loop, proven, lambda: None)
    monkeypatch.setattr(proven, "_keep", boom_of(MemoryError()))
    requests.release(C)
    turn_until(loop, lambda: loop.errors)
    assert requests.in_flight == 0
    del loop.errors[:]


def test_checks_without_memory_are_repeated(loop, clock, redis, proven, monkeypatch, forgotten):
    ask(loop, proven.create, A, RECORD)
    ask(loop, proven.release, A)
    redis.cut()  # so that a claim follows
    failures = {b"GET": MemoryError(), b"SET": MemoryError()}
    really_ask = proven._client.ask

    def ask_or_fail(commands, *others):
        failure = failures.pop(redis_servers.parse_command(commands[0].data)[0][0], None)
        if failure is not None:
            raise failure
        really_ask(commands, *others)

    monkeypatch.setattr(proven._client, "ask", ask_or_fail)
    pass_time(loop, clock, RETENTION + 5)
    assert (failures, forgotten) == ({}, [A])
    assert set(map(type, loop.errors)) == {MemoryError}
    del loop.errors[:]


def test_opening_without_memory_forgets_no_purge(loop, clock, redis, proven, monkeypatch, forgotten):
    ask(loop, proven.create, A, RECORD)
    ask(loop, proven.release, A)
    redis.keys.clear()
    with monkeypatch.context() as patch:
        patch.setattr(proven, "_claim", boom_of(MemoryError()))
        proven.create(A, OTHER, None)
        turn_until(loop, lambda: loop.errors)
    del loop.errors[:]
    pass_time(loop, clock, RETENTION + 5)
    assert forgotten == [A]


def test_check_that_ran_out_of_memory_leaves_one_timer(loop, clock, proven, monkeypatch):
    ask(loop, proven.release, C)
    with monkeypatch.context() as patch:
        patch.setattr("numseq.store_redis.get", boom_of(MemoryError()))
        pass_time(loop, clock, RETENTION + 1)
    assert len(loop.errors) > 1
    del loop.errors[:]
    ask(loop, proven.create, A, RECORD)
    ask(loop, proven.release, A)  # so that the checks go on
    pass_time(loop, clock, 5)
    assert [timer[2] for timer in loop._timers].count(proven._check) == 1


@pytest.mark.parametrize("session", [4.6, 5])
def test_a_session_as_long_as_the_retention_keeps_its_record(
        loop, clock, redis, make_store, forgotten, session):
    first, second = [make_store(redis, session_timeout=session, retention=5) for _ in range(2)]
    ask(loop, first.create, A, RECORD)
    ask(loop, second.open, A)
    ask(loop, first.release, A)
    pass_time(loop, clock, session + ANSWER_SECONDS)
    assert redis.value(KEY) is not None
    ask(loop, second.release, A)
    assert forgotten == []


def test_thousands_due_at_once_are_checked_in_batches(loop, clock, redis, make_store, forgotten):
    store = make_store(redis)
    count = 3000
    asked = [Asked(loop, store.create, id_of(number), RECORD) for number in range(count)]
    turn_until(loop, lambda: all(each.answers for each in asked))
    asked = [Asked(loop, store.release, id_of(number)) for number in range(count)]
    turn_until(loop, lambda: all(each.answers for each in asked))
    pass_time(loop, clock, RETENTION + 3)
    assert len(forgotten) == count
    assert len(store) == 0


def test_memory_for_records_of_other_servers_is_limited(loop, redis, make_store):
    creator, store = make_store(redis), make_store(redis, clients_most=10)
    for number in range(30):
        ask(loop, creator.create, id_of(number), RECORD)
        assert ask(loop, store.open, id_of(number)).answer == (RECORD, None)
        ask(loop, store.release, id_of(number))
    assert len(store) == 10


def test_a_retained_record_takes_less_than_300_bytes_here(loop, redis, make_store):
    store = make_store(redis)
    redis.keys = dict()
    count = 3000

    def keep(first, last):
        for step in (store.create, store.release):
            asked = [Asked(loop, step, id_of(number), *([RECORD] if step == store.create else []))
                     for number in range(first, last)]
            turn_until(loop, lambda: all(each.answers for each in asked))

    keep(0, 100)
    redis.reply = lambda parts, answer: redis.keys.clear() or redis.commands.clear() or answer
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for first in range(100, count, 100):
            keep(first, first + 100)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / count < 300


def test_release_just_before_the_close_is_sent(loop, clock, redis, proven):
    ask(loop, proven.create, A, RECORD)
    released = Asked(loop, proven.release, A)
    proven.close()
    assert released.answer == ()
    turn_until(loop, lambda: redis.names()[-1] == b"PEXPIRE")
    assert redis.keys[KEY][1] - loop.now == pytest.approx(RETENTION, abs=0.01)


# ---- the start


def test_login_and_database_come_before_anything_else(loop, redis, lines):
    place = parse_url("redis://user:secret@%s:%d/4" % (HOST, redis.port))
    store = RedisStore(place, loop, None, complain=lines.append)
    turn_until(loop, store.is_up)
    assert redis.commands == [[b"AUTH", b"user", b"secret"], [b"SELECT", b"4"], [b"PING"]]
    store.close()


def test_a_name_without_an_address_is_an_error_at_the_start(loop, lines):
    with pytest.raises(OSError):
        RedisStore(parse_url("redis://no-such-host.invalid"), loop, None, complain=lines.append)


def test_a_socket_that_is_not_there_is_an_outage(loop, clock, tmp_path, lines):
    store = RedisStore(Place([], str(tmp_path / "none"), None, None, 0), loop, None, complain=lines.append)
    pass_time(loop, clock, 10)
    assert Asked(loop, store.create, A, RECORD).answer == (None, FAILED)
    assert len(lines) == 1 and "No such file" in lines[0]
    store.close()


def test_a_redis_that_comes_later_is_found(loop, clock, redis, make_store, lines):
    redis.stop()
    store = make_store(redis, connect=False)
    pass_time(loop, clock, 100)
    redis.listen()
    pass_time(loop, clock, 2 * BACKOFF_MOST)
    assert ask(loop, store.create, A, RECORD).answer == (RECORD, None)
    assert len(lines) == 1


def test_a_slow_start_is_not_taken_for_a_silent_redis(loop, clock, redis, make_store, lines):
    store = make_store(redis, connect=False)
    clock.advance(5)  # as where names were looked up, or modules loaded, for so long
    pass_time(loop, clock, 0.01)
    assert store.is_up() and lines == []


@pytest.fixture
def names(monkeypatch):
    """The addresses of all names, [(family, address)]; they may be changed at any time."""
    addresses = []
    monkeypatch.setattr(redis_client, "resolve", lambda host, port: list(addresses))

    class LookUp:
        def __init__(self, loop, endpoint, done, may_block):
            assert not may_block  # the server's loop never waits for a resolver
            loop.call_later(0.01, lambda: done(self, list(addresses), None))

    monkeypatch.setattr(redis_client, "LookUp", LookUp)
    return addresses


@pytest.fixture
def silent_address(sockets):
    """An address that swallows packets: its backlog is full."""
    listening = socket.socket()
    sockets.append(listening)
    listening.bind((HOST, 0))
    listening.listen(0)
    for _ in range(4):
        waiting = socket.socket()
        sockets.append(waiting)
        waiting.setblocking(False)
        waiting.connect_ex(listening.getsockname())
    return listening.getsockname()


def test_an_address_that_swallows_packets_gives_way_to_the_next(
        loop, redis, names, silent_address, forgotten, lines):
    names += [(socket.AF_INET, silent_address), (socket.AF_INET, (HOST, redis.port))]
    store = RedisStore(parse_url("redis://redis.example"), loop, forgotten.append, complain=lines.append)
    assert ask(loop, store.create, A, RECORD).answer == (RECORD, None)
    assert lines == []
    store.close()


def test_a_name_whose_address_has_changed_is_looked_up_again(loop, clock, redis, names, forgotten, lines):
    other = ScriptedRedis(loop)
    names.append((socket.AF_INET, (HOST, redis.port)))
    store = RedisStore(parse_url("redis://redis.example"), loop, forgotten.append, complain=lines.append)
    assert ask(loop, store.create, A, RECORD).answer == (RECORD, None)
    names[:] = [(socket.AF_INET, (HOST, other.port))]
    redis.stop()
    pass_time(loop, clock, 2)
    assert ask(loop, store.create, B, RECORD).answer == (RECORD, None)
    assert len(other.open_connections()) == 1
    store.close()


def test_a_server_without_its_redis_is_not_healthy_while_nobody_asks(loop, clock, redis, proven):
    server = Server(loop, proven)
    assert server.trouble() is None
    redis.stop()
    for _ in range(5):
        pass_time(loop, clock, 60)
        assert server.trouble() == "the store does not answer"
    redis.listen()
    pass_time(loop, clock, 2 * BACKOFF_MOST)
    assert server.trouble() is None


# ---- the real one


@pytest.fixture
def real_loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair():
    """A master, and a replica of it."""
    master = RealRedis()
    replica = RealRedis("--replicaof", HOST, str(master.port))
    yield master, replica
    for server in master, replica:
        server.close()


def real_ask(loop, method, *arguments):
    """What a store answers, in real time."""
    answers = []
    method(*arguments, lambda *answer: answers.append(answer) or loop.stop())
    if not answers:
        loop.run()
    return answers[0]


def real_wait(loop, seconds):
    loop.call_at(loop.now + seconds, loop.stop)
    loop.run()


def real_ask_again(loop, method, *arguments):
    """The same, and again as long as it is FAILED, as a client with --retry does: Redis may be slow."""
    while True:
        answer = real_ask(loop, method, *arguments)
        if answer != (None, FAILED):
            return answer
        real_wait(loop, 0.05)


def until_created(loop, store, client_id):
    """Creates a record; a create that failed before may have been made nevertheless."""
    if real_ask_again(loop, store.create, client_id, RECORD) != (RECORD, None):
        assert real_ask_again(loop, store.open, client_id) == (RECORD, None)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "demoted", "stopped"])
def test_servers_continue_at_the_replica_after_a_failover(real_loop, pair, lines, how):
    master, replica = pair
    place = Place([(HOST, master.port), (HOST, replica.port)], None, None, None, 0)
    store = RedisStore(place, real_loop, None, complain=lines.append)
    until_created(real_loop, store, A)
    real_ask(real_loop, store.release, A)
    while replica.command("GET", KEY.decode()) is None:
        real_wait(real_loop, 0.01)
    if how == "killed":
        master.kill()
    elif how == "stopped":
        master.pause()
    replica.command("REPLICAOF", "NO", "ONE")
    if how == "demoted":
        master.command("REPLICAOF", HOST, replica.port)
    until_created(real_loop, store, B)
    assert replica.command("GET", "numseq:" + B.decode()) is not None
    assert real_ask_again(real_loop, store.open, A) == (RECORD, None)
    store.close()


@pytest.mark.slow
def test_a_real_redis_says_what_the_scripted_one_says(real_loop, lines):
    server = RealRedis("--requirepass", "secret")
    try:
        wrong = ("", 0, "NOAUTH"), (":wrong@", 0, "WRONGPASS"), (":secret@", 99, "DB index")
        for login, db, words in wrong:
            del lines[:]
            place = parse_url("redis://%s%s:%d/%d" % (login, HOST, server.port, db))
            store = RedisStore(place, real_loop, None, complain=lines.append)
            while not any(words in line for line in lines):
                real_wait(real_loop, 0.01)
            store.close()
        server.command("AUTH", "secret")
        place = parse_url("redis://:secret@%s:%d" % (HOST, server.port))
        store = RedisStore(place, real_loop, None, complain=lines.append)
        server.command("LPUSH", KEY.decode(), "x")
        while not any("WRONGTYPE" in line and KEY.decode() in line for line in lines):
            assert real_ask(real_loop, store.open, A) == (None, FAILED)
        until_created(real_loop, store, B)
        server.command("CONFIG", "SET", "maxmemory", "1")
        assert real_ask_again(real_loop, store.create, C, RECORD) == (None, FULL)
        assert real_ask_again(real_loop, store.open, B) == (RECORD, None)
        store.close()
    finally:
        server.close()
