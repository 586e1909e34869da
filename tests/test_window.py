"""The congestion window, fed with figures: what it requests when, and what it learns from a connection."""

import pytest

from numseq import protocol
from numseq.transfer import WINDOW, WINDOW_MOST
from numseq.window import (FIRST_SECONDS, LATER, LATER_SECONDS, LIMIT_LEAST, PROMPT, PROMPT_FLIGHT,
                           QUEUED_MOST, QUEUED_SOME, REQUEST_BYTES, SEGMENT_REQUESTS, SHRINK, SLOW_FLIGHT,
                           UNQUEUED, UNQUEUED_SECONDS, Window)

TOTAL = WINDOW_MOST  # batches
SLOW = 0.5  # seconds: the round trip of a link that is not prompt
OPENING = len(b"CONT,%b;" % protocol.ID_SHAPE)


def connected(round_trip=SLOW, most=WINDOW, total=TOTAL):
    """A Window whose first connection was made at the time 0."""
    window = Window(most, total)
    window.connected(0.0, round_trip, 0)
    return window


def requested(window, now=0.0, have=0, most=None):
    """How many batches the window requests now."""
    first, last = window.fill(now, have, most)
    assert last == window.next_batch
    return last - first


def grown(window):
    """How many batches the window requests after some round trips whose replies came at once."""
    for _ in range(8):
        window.fill(0.0, window.next_batch)
        window.answered(0.0, window.next_batch)
    return requested(window, 0.0, window.next_batch)


# ---- first flight


@pytest.mark.parametrize("round_trip, most, expected", [
    (PROMPT, WINDOW_MOST, PROMPT_FLIGHT), (PROMPT, 7, 7), (0.0, WINDOW, PROMPT_FLIGHT),
    (PROMPT + 0.001, WINDOW_MOST, SLOW_FLIGHT), (10, 7, 7), (10, 0, 1)])
def test_first_flight_is_large_only_where_connecting_was_quick(round_trip, most, expected):
    assert requested(connected(round_trip, most)) == expected


def test_first_flight_ends_with_the_sequence():
    window = connected(total=5)
    assert (window.fill(0.0, 0), window.fill(0.0, 0), window.fill(1.0, 5)) == ((0, 5), (5, 5), (5, 5))
    assert connected(total=0).fill(0.0, 0) == (0, 0)


def test_next_connection_begins_with_what_has_not_arrived():
    window = connected()
    window.fill(0.0, 0)
    window.answered(0.5, 10)
    window.lost(1.0, 10, 0.0)
    window.connected(1.5, SLOW, 10)
    assert window.next_batch == window.fill(1.5, 10)[0] == 10


def test_full_first_segment_fits_in_one():
    requests = protocol.encode_receives(13000, 13000 + SEGMENT_REQUESTS)
    assert len(requests) + protocol.LONGEST_REQUEST <= 1448


@pytest.mark.parametrize("round_trip, lead", [
    (0.0, None), (PROMPT, None), (0.02, None), (0.1, 23), (0.3, 5), (0.6, 1), (10, 1)])
def test_slower_connecting_makes_a_shorter_first_segment(round_trip, lead):
    window = connected(round_trip)
    assert window.lead(OPENING) == lead
    if lead is not None:
        assert OPENING + lead * REQUEST_BYTES <= 120 / round_trip * FIRST_SECONDS or lead == 1
        assert requested(window, most=lead) == lead
        assert requested(window) == SLOW_FLIGHT - lead, "the rest of the flight"


def test_first_segment_doubles_when_its_replies_come_soon():
    window = connected(0.1)
    for lead in [23, 46, 92, None, None]:
        assert window.lead(OPENING) == lead
        window.fill(0.0, 0)
        window.answered(0.1 + FIRST_SECONDS, window.next_batch)
        window.connected(0.0, 0.1, 0)


def test_reply_is_soon_by_the_shortest_round_trip_of_all():
    window = connected(0.1)
    window.connected(0.0, 0.4, 0)
    lead = window.lead(OPENING)
    window.fill(0.0, 0)
    window.answered(0.4 + FIRST_SECONDS, window.next_batch)
    assert window.lead(OPENING) == lead


def test_first_segment_shrinks_after_a_connection_that_brought_nothing():
    window = connected(0.1)
    for lead in [23, 5, 1, 1]:
        assert window.lead(OPENING) == lead
        window.fill(0.0, 0)
        window.lost(1.0, 0, 0.0)
        window.connected(0.0, 0.1, 0)


# ---- growth


@pytest.mark.parametrize("most", [1, 2, 3, 7, 64])
def test_window_is_filled_again_once_half_of_it_is_free(most):
    window = connected(PROMPT, most, total=200)
    assert requested(window) == most
    for have in range(1, 200):
        window.answered(0.0, have)
        in_flight = window.next_batch - have
        expected = min(most, 200 - have) if in_flight * 2 <= most else in_flight
        window.fill(0.0, have)
        assert window.next_batch - have == expected


@pytest.mark.parametrize("seconds, factor", [
    (SLOW * UNQUEUED + UNQUEUED_SECONDS, 4), (SLOW * UNQUEUED + UNQUEUED_SECONDS + 0.01, 2),
    (SLOW * 2 + QUEUED_SOME, 2), (SLOW * 2 + QUEUED_SOME + 0.01, 1), (SLOW * 2 + QUEUED_MOST, 1),
    ((SLOW * 2 + QUEUED_MOST) * 2, 0.5), ((SLOW * 2 + QUEUED_MOST) * 1000, 0)])
def test_longer_replies_make_a_smaller_window(seconds, factor):
    window = connected()
    window.fill(0.0, 0)
    window.answered(seconds, SLOW_FLIGHT)
    assert requested(window, seconds, SLOW_FLIGHT) == max(int(SLOW_FLIGHT * factor), 1)


def test_run_counts_once_all_of_it_is_answered():
    window = connected()
    window.fill(0.0, 0)
    window.answered(0.5, SLOW_FLIGHT - 1)
    assert requested(window, 0.5, SLOW_FLIGHT - 1) == SLOW_FLIGHT - 1
    window.answered(0.5, SLOW_FLIGHT)
    assert requested(window, 0.5, SLOW_FLIGHT) == 4 * SLOW_FLIGHT - (SLOW_FLIGHT - 1)


@pytest.mark.parametrize("round_trip, most, expected", [
    (PROMPT, WINDOW_MOST, PROMPT_FLIGHT), (SLOW, WINDOW, WINDOW), (SLOW, 100, 100)])
def test_growth_ends_at_the_limit(round_trip, most, expected):
    assert grown(connected(round_trip, most)) == expected


# ---- what a lost connection says about the next one


@pytest.mark.parametrize("brought, expected", [
    (0, SLOW_FLIGHT // SHRINK), (10, SLOW_FLIGHT // SHRINK), (50, 50), (SLOW_FLIGHT, SLOW_FLIGHT)])
def test_next_flight_is_what_the_last_connection_brought(brought, expected):
    window = connected()
    window.fill(0.0, 0)
    window.lost(1.0, brought, 0.0)
    window.connected(2.0, SLOW, brought)
    assert requested(window, 2.0, brought) == expected


def test_connection_that_requested_nothing_leaves_the_window_as_it_is():
    window = connected()
    window.fill(0.0, 0)
    window.lost(1.0, SLOW_FLIGHT, 0.0)
    window.connected(2.0, SLOW, SLOW_FLIGHT)  # never acknowledged, and a transcript waits for that
    window.lost(3.0, SLOW_FLIGHT, 1.0)
    window.connected(4.0, SLOW, SLOW_FLIGHT)
    assert requested(window, 4.0, SLOW_FLIGHT) == SLOW_FLIGHT


@pytest.mark.parametrize("silent, limit", [(0.79, WINDOW), (0.81, SLOW_FLIGHT // 2)])
def test_window_stays_small_where_the_link_fell_silent_early(silent, limit):
    """It is limited to half of its size, and again to four times that after another connection."""
    window = connected()
    window.fill(0.0, 0)
    window.lost(10.0, 0, 10 * silent)
    for expected in limit, min(limit * SHRINK, WINDOW):
        window.connected(0.0, SLOW, 0)
        assert grown(window) == expected
        window.lost(1.0, window.next_batch, 0.0)


def test_limit_of_a_silent_link_has_a_least():
    window = connected()
    for _ in range(10):
        window.fill(0.0, 0)
        window.lost(10.0, 0, 10.0)
        window.connected(0.0, SLOW, 0)
    assert requested(window) == 1 and grown(window) == LIMIT_LEAST


def test_connection_older_than_the_latest_useful_request_requests_little():
    """The age of that request counts half with each further connection that had no later one."""
    window = connected()
    window.fill(0.0, 0)
    window.answered(0.8, SLOW_FLIGHT)
    window.fill(0.8, SLOW_FLIGHT)
    have = window.next_batch
    window.answered(1.0, have)
    for age in 0.8, 0.4, 0.2:
        window.lost(1.0, have, 0.0)
        sizes = []
        for now in 0.0, age * LATER + LATER_SECONDS - 0.01, age * LATER + LATER_SECONDS + 0.01:
            window.connected(0.0, SLOW, have)
            sizes.append(requested(window, now, have))
        assert sizes == [768, 768, 768 // SHRINK]
        have += 768
