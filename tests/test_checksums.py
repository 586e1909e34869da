"""Checksums in steps between the requests of others, and kept for those who ask again."""

import types

import pytest

from numseq import checksums, sequence
from numseq.checksums import KEPT_ABOVE, Checksums
from numseq.sequence import CHECKSUM_STEP
from numseq.store import Record


class Session:
    """Asks for a checksum, and counts the numbers that are read for it."""

    def __init__(self, n, seed=b"seed"):
        self.record = Record(seed, n, 5)
        self.stream = None
        self.read = 0
        self.checksum = None

    def slice(self, first, last):
        self.read += last - first
        return sequence.draw(self.record.seed, first, last)

    def finished(self, checksum):
        assert self.checksum is None
        self.checksum = checksum


def expected(session):
    return bytes.fromhex(sequence.checksum(sequence.draw(session.record.seed, 0, session.record.n)))


@pytest.fixture
def shared(loop):
    return Checksums(loop)


@pytest.mark.parametrize("n", [0, 1, 5, CHECKSUM_STEP])
def test_checksum_of_one_step_is_made_at_once(shared, n):
    session = Session(n)
    shared.ask(session)
    assert session.checksum == expected(session)


def test_longer_checksum_takes_a_turn_per_step(shared, loop):
    session = Session(3 * CHECKSUM_STEP - 1)
    shared.ask(session)
    read = [session.read]
    while session.checksum is None:
        loop.turn()
        read.append(session.read)
    assert read == [0, CHECKSUM_STEP, 2 * CHECKSUM_STEP, 3 * CHECKSUM_STEP - 1]
    assert session.checksum == expected(session)


def test_turn_makes_one_step_however_many_sessions_ask(shared, loop):
    sessions = [Session(2 * CHECKSUM_STEP, b"%d" % i) for i in range(5)]
    for session in sessions:
        shared.ask(session)
    for turn in range(1, 11):
        loop.turn()
        assert sum(session.read for session in sessions) == turn * CHECKSUM_STEP
        assert [session.checksum is not None for session in sessions] == [i < turn // 2 for i in range(5)]
    assert [session.checksum for session in sessions] == list(map(expected, sessions))


def test_short_checksum_does_not_wait_for_long_ones(shared):
    shared.ask(Session(65535))
    short = Session(5)
    shared.ask(short)
    assert short.checksum == expected(short)


def test_nothing_is_read_for_a_session_that_was_dropped(shared, loop):
    gone, other = Session(65535, b"1"), Session(2 * CHECKSUM_STEP, b"2")
    shared.ask(gone)
    shared.ask(other)
    loop.turn()
    shared.drop(gone)
    shared.drop(gone)
    loop.run()
    assert (gone.read, gone.checksum) == (CHECKSUM_STEP, None)
    assert other.checksum == expected(other)


def test_no_timer_is_left_once_all_are_made(shared, loop):
    session = Session(65535)
    shared.ask(session)
    loop.run()
    assert session.checksum == expected(session)
    assert loop.timers() == 0


@pytest.mark.parametrize("n, reads", [(KEPT_ABOVE, KEPT_ABOVE), (KEPT_ABOVE + 1, 0), (65535, 0)])
def test_checksum_of_a_longer_sequence_is_made_once(shared, loop, n, reads):
    first, second = Session(n), Session(n)
    shared.ask(first)
    loop.run()
    shared.ask(second)
    assert second.checksum == first.checksum == expected(first)
    assert second.read == reads


def test_each_sequence_gets_its_own_checksum(shared, loop):
    sessions = [Session(2000), Session(2000, b"other"), Session(2001)]
    for session in sessions:
        shared.ask(session)
    loop.run()
    assert [session.checksum for session in sessions] == list(map(expected, sessions))


def test_only_the_last_checksums_are_kept(shared, loop, monkeypatch):
    monkeypatch.setattr(checksums, "KEPT_MOST", 3)
    for i in range(5):
        shared.ask(Session(2000, b"%d" % i))
    again = [Session(2000, b"%d" % i) for i in (2, 3, 4, 1)]
    for session in again:
        shared.ask(session)
    assert [session.read for session in again] == [0, 0, 0, 2000]


def test_error_in_a_step_costs_its_session_alone(shared, loop):
    broken, other = Session(65535, b"1"), Session(65535, b"2")
    broken.slice = None  # calling it raises
    errors = []
    loop.report = errors.append
    broken.stream = types.SimpleNamespace(abort=lambda error: shared.drop(broken))
    shared.ask(broken)
    shared.ask(other)
    loop.run()
    assert [type(error) for error in errors] == [TypeError]
    assert other.checksum == expected(other)
