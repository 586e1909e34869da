"""A turn gives costly work a bounded time; cheap requests do not wait for it."""

import pytest

from numseq import budget as module
from numseq.budget import Budget
from numseq.checksums import TINY, Checksums
from numseq.sequence import CHECKSUM_STEP
from test_checksums import Session

STEP = module.WORK_SECONDS / 4  # seconds that each reading of the clock takes


@pytest.fixture
def busy(loop, clock):
    """The loop on a clock that goes on at each reading, as on a slow machine."""

    def tick():
        clock.advance(STEP)
        return clock()

    loop.clock = tick
    return loop


def test_there_is_time_until_it_is_spent_and_again_in_the_next_turn(loop, clock):
    budget = Budget(loop)
    assert budget.is_left()
    began = clock()
    clock.advance(module.WORK_SECONDS / 2)
    budget.spend(began)
    assert budget.is_left()
    budget.spend(began)
    assert not budget.is_left()
    loop.turns += 1
    assert budget.is_left()


def test_short_checksums_beyond_the_budget_are_made_in_the_next_turns(busy):
    shared = Checksums(busy)
    sessions = [Session(CHECKSUM_STEP, b"%d" % i) for i in range(20)]
    for session in sessions:
        shared.ask(session)
    made = [sum(session.checksum is not None for session in sessions)]
    while made[-1] < 20:
        busy.turn()
        made.append(sum(session.checksum is not None for session in sessions))
        assert made[-1] - made[-2] <= 5
    assert 0 < made[0] <= 5


def test_tiny_checksums_never_wait(busy):
    shared = Checksums(busy)
    for i in range(20):
        shared.ask(Session(CHECKSUM_STEP, b"%d" % i))
    tiny = Session(TINY)
    shared.ask(tiny)
    assert tiny.checksum is not None


def test_a_long_checksum_goes_on_beside_any_number_of_short_ones(busy):
    shared = Checksums(busy)
    long = Session(3 * CHECKSUM_STEP)
    shared.ask(long)
    for i in range(40):
        shared.ask(Session(CHECKSUM_STEP, b"%d" % i))
    for _ in range(3):
        busy.turn()
    assert long.checksum is not None


def test_failed_checksum_is_reported_and_the_others_are_made(loop, clock):
    shared = Checksums(loop)
    broken, good = Session(2 * CHECKSUM_STEP), Session(2 * CHECKSUM_STEP, b"good")

    def fail(first, last):
        raise ValueError("boom")

    broken.slice = fail
    shared.ask(broken)
    shared.ask(good)
    for _ in range(4):
        loop.turn()
    assert good.checksum is not None
    assert [str(error) for error in loop.errors] == ["boom"]
    del loop.errors[:]
