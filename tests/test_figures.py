"""What a check counts: exact where it can be, of constant size always."""

import random
import sys

import pytest

from numseq import figures
from numseq.figures import BURSTS, KEPT, SLOTS, SLOT_SECONDS, Drop, Figures, Histogram, Kept, Rhythm, Series


def drop(at, expected=False, cause=figures.RESET, count=10, client=0):
    return Drop(at, cause, expected, "receiving", 0.25, count, 5, client, "Connection reset by peer")


# ---- histogram


def test_each_bucket_begins_where_the_one_before_ends():
    starts = [figures.bucket_start(bucket) for bucket in range(1000)]
    assert starts == sorted(set(starts))
    assert [figures.bucket_of(start) for start in starts] == list(range(1000))
    assert [figures.bucket_of(start - 1) for start in starts[1:]] == list(range(999))


def test_quantiles_are_at_most_a_32nd_above_the_exact_ones():
    chance = random.Random(1)
    times = sorted(chance.lognormvariate(-7, 2) for _ in range(5000))
    histogram = Histogram()
    for each in times:
        histogram.add(each)
    for part in 0.5, 0.9, 0.99, 0.999:
        exact = times[int(part * len(times)) - 1]
        assert exact - 1e-6 <= histogram.quantile(part) <= exact * 33 / 32 + 2e-6
    assert histogram.longest == times[-1]


def test_quantile_of_nothing_is_none():
    assert Histogram().summary() == {"count": 0, "p50": None, "p99": None, "p999": None, "longest": None}


def test_no_quantile_is_above_the_longest():
    histogram = Histogram()
    histogram.add(0.001009)
    names = "p50", "p99", "p999", "longest"
    assert histogram.summary() == dict(dict.fromkeys(names, 0.001009), count=1)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e-9, 3600.0 * 24 * 365])
def test_histogram_takes_times_out_of_its_range(seconds):
    histogram = Histogram()
    histogram.add(seconds)
    assert (histogram.count, sum(count for _, count in histogram.items())) == (1, 1)


def test_merged_histograms_are_those_of_all_times():
    both, one, other = Histogram(), Histogram(), Histogram()
    for number in range(100):
        (one if number % 3 else other).add(number / 7)
        both.add(number / 7)
    one.merge(other)
    assert (one.items(), one.summary()) == (both.items(), both.summary())


# ---- series


def test_series_counts_everything_at_every_resolution():
    series = Series()
    for second in range(5000):
        series.add(second + 0.5, 2)
    assert sum(series.counts) == 10000
    assert series.step >= 5000 / SLOTS
    used = series.used(5000)
    assert len(used) <= SLOTS
    assert max(used) - min(used[:-1]) <= 2  # one second more or less


def test_series_halves_its_resolution_only_when_it_is_full():
    series = Series()
    series.add(SLOTS * SLOT_SECONDS - 0.01, 1)
    assert series.step == SLOT_SECONDS
    series.add(SLOTS * SLOT_SECONDS + 0.01, 1)
    assert (series.step, sum(series.counts)) == (2 * SLOT_SECONDS, 2)


def test_series_takes_ten_years():
    series = Series()
    for year in range(11):
        series.add(year * 365.0 * 86400, 1)
    assert sum(series.used(10 * 365 * 86400.0)) == 11


# ---- what is kept


def test_the_first_and_the_last_are_kept_and_all_are_counted():
    kept = Kept()
    for number in range(1000):
        kept.add(number)
    assert kept.all() == list(range(KEPT)) + list(range(1000 - KEPT, 1000))
    assert (kept.count, kept.omitted()) == (1000, 1000 - 2 * KEPT)


def test_a_few_are_all_kept():
    kept = Kept()
    kept.add("drop")
    assert (kept.all(), kept.omitted()) == (["drop"], 0)


# ---- periods


@pytest.mark.parametrize("period", [2, 30, 3600])
def test_drops_at_equal_distances_have_a_period(period):
    chance = random.Random(period)
    rhythm = Rhythm()
    for number in range(7):
        for client in range(8):
            rhythm.add(5 + number * period + chance.random() * 0.1)
    assert rhythm.period() == pytest.approx(period, rel=0.03)


def test_cut_that_met_no_connection_does_not_hide_the_period():
    rhythm = Rhythm()
    for number in 0, 1, 2, 4, 5, 6, 8:
        rhythm.add(30.0 * number)
    assert rhythm.period() == 30


@pytest.mark.parametrize("count", range(5))
def test_few_drops_have_no_period(count):
    rhythm = Rhythm()
    for number in range(count):
        rhythm.add(30.0 * number)
    assert rhythm.period() is None


def test_drops_at_random_seldom_seem_to_have_a_period():
    chance = random.Random(5)
    found = 0
    for check in range(300):
        rhythm, at = Rhythm(), 0.0
        for number in range(BURSTS):
            at += chance.expovariate(1 / 30)
            rhythm.add(at)
        found += rhythm.period() is not None
    assert found <= 3


def test_period_is_that_of_the_last_drops():
    rhythm = Rhythm()
    for number in range(50):
        rhythm.add(number * number)
    for number in range(BURSTS):
        rhythm.add(3000.0 + 30 * number)
    assert rhythm.period() == 30


# ---- all together


def test_drops_of_the_session_are_counted_apart():
    kept = Figures(1)
    kept.drop(drop(1.0, expected=True, cause=figures.SESSION))
    kept.drop(drop(2.0))
    tally = kept.close_interval()
    assert (tally.drops, tally.expected_drops) == (1, 1)
    assert {cause: count for cause, count in tally.causes.items() if count} == {"session": 1, "reset": 1}
    assert [each.at for each in kept.kept_drops.all()] == [2.0]


def test_outage_lasts_from_the_last_byte_before_it_to_the_first_after():
    kept = Figures(2)
    kept.receive(0, 9.5, 100)
    kept.receive(1, 10.0, 100)
    kept.drop(drop(13.0, client=0))
    assert kept.outage(14.0) == 0  # the other client may still be well
    kept.drop(drop(13.5, client=1))
    assert kept.outage(14.0) == 4.0
    kept.receive(1, 15.0, 100)
    assert kept.outages.all() == [(10.0, 5.0)]
    assert (kept.outage(16.0), kept.outage_seconds) == (0, 5.0)


def test_short_absence_is_no_outage():
    kept = Figures(1)
    kept.receive(0, 10.0, 100)
    kept.drop(drop(10.5))
    kept.receive(0, 10.9, 100)
    assert kept.outages.count == 0


def test_outage_at_the_end_of_the_check_is_counted():
    kept = Figures(1)
    kept.drop(drop(0.5, count=0))
    kept.end_outage(20.0)
    assert kept.outages.all() == [(0.0, 20.0)]


def test_retries_while_nobody_answers_make_no_period():
    kept = Figures(1)
    for number in range(BURSTS):
        kept.drop(drop(5.0 * number, cause=figures.REFUSED, count=0))
    assert kept.rhythm.period() is None


def test_interval_has_the_figures_of_its_own_time():
    kept = Figures(1)
    for count in 300, 100:
        kept.progress(0.5, count)
        kept.now.round_trips.add(count / 1000)
        summary = kept.close_interval().summary(2.0)
        assert (summary["numbers"], summary["numbers_per_second"]) == (count, count / 2)
        assert summary["round_trips"]["longest"] == count / 1000
    assert kept.total.summary(4.0)["numbers"] == 400
    assert kept.total.round_trips.count == 2


def size(value):
    """Bytes of a value and what it consists of."""
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(size(each) for each in value.values())
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return sys.getsizeof(value) + sum(map(size, value))
    return sys.getsizeof(value) + (size(vars(value)) if hasattr(value, "__dict__") else 0)


def test_figures_of_months_take_no_more_than_those_of_an_hour():
    kept = Figures(8)

    def pass_time(begin, end, count):
        for number in range(count):
            at = begin + (end - begin) * number / count
            kept.receive(number % 8, at, 100)
            kept.progress(at, 50)
            kept.drop(drop(at, expected=number % 2, cause=figures.SESSION if number % 2 else figures.RESET))
            kept.now.round_trips.add(0.001 * (number % 97))
            kept.close_interval()

    pass_time(0, 3600, 2000)
    hour = size(vars(kept))
    pass_time(3600, 90 * 86400, 4000)
    assert size(vars(kept)) < hour + 1000
    assert kept.total.drops == 3000
