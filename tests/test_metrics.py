"""A server's figures: what is counted, and what the process tells of itself."""

import pytest

from numseq import metrics, process
from numseq.metrics import Histogram

# ---- histograms


@pytest.mark.parametrize("seconds, bound", [
    (0, 1e-6), (0.9e-6, 1e-6), (1e-6, 2e-6), (100e-6, 128e-6), (1, 1.048576)])
def test_a_time_is_in_the_bucket_that_ends_above_it(seconds, bound):
    histogram = Histogram()
    histogram.add(seconds)
    assert histogram.quantile(0.5) == bound
    assert histogram.count() == 1 and histogram.sum == seconds


def test_no_time_is_too_long_for_a_histogram():
    histogram = Histogram()
    histogram.add(10 ** 9)
    assert histogram.count() == 1


def test_quantiles_are_those_of_the_times_counted():
    histogram = Histogram()
    for _ in range(99):
        histogram.add(50e-6)
    histogram.add(0.5)
    assert (histogram.quantile(0.5), histogram.quantile(0.99), histogram.quantile(1)) == (64e-6, 64e-6,
                                                                                          0.524288)
    assert Histogram().quantile(0.5) == 0


def test_process_without_proc_still_tells_its_processor_time(monkeypatch):
    def missing(*arguments):
        raise OSError()

    monkeypatch.setattr(process.os, "listdir", missing)
    monkeypatch.setattr(process, "open", missing, raising=False)
    monkeypatch.setattr(process.os, "sysconf", missing)
    values = {name: value for name, _, _, _, value in metrics.process_families(0)}
    assert values["process_cpu_seconds_total"] > 0
    assert [name for name, value in values.items() if value is None] == [
        "process_resident_memory_bytes", "process_max_fds"]
    assert values["process_open_fds"] >= 3


def test_process_tells_its_memory_and_files_where_there_is_proc():
    values = {name: value for name, _, _, _, value in metrics.process_families(0)}
    assert values["process_resident_memory_bytes"] > 1e6
    assert 3 <= values["process_open_fds"] < values["process_max_fds"]
