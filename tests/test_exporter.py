"""The figures over HTTP: how they are written, and how little a scrape may cost."""

import errno
import re
import socket

import pytest

from helpers import read_to_end, turn_until
from numseq import metrics
from numseq.exporter import CONNECTIONS_MOST, REQUEST_SECONDS, Exporter, parse, render, samples
from numseq.loop import REST_SECONDS
from numseq.metrics import COUNTER, GAUGE, HISTOGRAM, Counts, Histogram

# What the exposition format allows of a line that is no comment.
SAMPLE = re.compile(r'[a-z_]+(\{[a-z]+="[^"\\\n]*"\})? (-?[0-9.]+(e[-+]?[0-9]+)?)')


def lines_of(*families):
    return render(families).decode("ascii").splitlines()


# ---- the text


def test_buckets_are_cumulative_and_end_with_all():
    histogram = Histogram()
    for seconds in 10e-6, 100e-6, 0.001, 100:
        histogram.add(seconds)
    lines = samples("t_seconds", histogram)
    counts = [int(line.rpartition(" ")[2]) for line in lines if "_bucket" in line]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 4
    assert lines[0] == 't_seconds_bucket{le="6.4e-05"} 1'
    assert lines[-3:] == ['t_seconds_bucket{le="+Inf"} 4', "t_seconds_sum 100.00111", "t_seconds_count 4"]


def test_a_family_has_help_type_and_samples():
    assert lines_of(("a_total", COUNTER, "All of it.", None, 3)) == [
        "# HELP a_total All of it.", "# TYPE a_total counter", "a_total 3"]


def test_a_label_has_a_line_for_each_value_also_at_zero():
    counts = Counts("reset", "time_is_up")
    counts["reset"] += 2
    assert lines_of(("ended_total", COUNTER, "Ended.", "reason", counts))[2:] == [
        'ended_total{reason="reset"} 2', 'ended_total{reason="time_is_up"} 0']
    assert counts.text() == "2 reset"
    assert Counts("reset").text() == "none"


def test_what_the_system_does_not_tell_is_left_out():
    assert lines_of(("a", GAUGE, "Unknown.", None, None)) == []


def test_every_line_is_of_the_exposition_format():
    histogram = Histogram()
    histogram.add(0.1)
    families = metrics.process_families(1700000000.25) + [("t_seconds", HISTOGRAM, "Times.", None, histogram)]
    text = render(families).decode("ascii")
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith("# HELP ") or line.startswith("# TYPE ") or SAMPLE.fullmatch(line), line


# ---- HTTP


@pytest.mark.parametrize("data, request_line", [
    (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", (b"GET", b"/metrics")),
    (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", (b"GET", b"/metrics")),
    (b"HEAD / HTTP/1.1\n\n", (b"HEAD", b"/")),
    (b"\r\nGET /healthz HTTP/1.1\r\n\r\n", (b"GET", b"/healthz")),
    (b"GET http://127.0.0.1:9100/metrics?a HTTP/1.1\r\n\r\n", (b"GET", b"/metrics")),
    (b"GET HTTP://[::1]/healthz HTTP/1.1\r\n\r\n", (b"GET", b"/healthz")),
    (b"GET http://host HTTP/1.1\r\n\r\n", (b"GET", b"/")),
    (b"GET /http://host/metrics HTTP/1.1\r\n\r\n", (b"GET", b"/http://host/metrics")),
    (b"\r\n", None),
    (b"GET /metrics HTTP/1.1\r\nHost: x\r\n", None),
    (b"", None),
])
def test_requests_are_read_once_their_head_is_complete(data, request_line):
    assert parse(data) == request_line


@pytest.mark.parametrize("data", [b"INIT,1;\n\n", b"GET /\r\n\r\n", b"GET / SIP/2.0\r\n\r\n", b"\n\n",
                                  b"\xff\xfe \n\n"])
def test_what_is_no_request_is_refused(data):
    with pytest.raises(ValueError):
        parse(data)


class Health:
    trouble = None


@pytest.fixture
def health():
    return Health()


@pytest.fixture
def exporter(loop, health):
    exporter = Exporter(loop, lambda: [("a_total", COUNTER, "All.", None, 1)], lambda: health.trouble)
    exporter.listen("127.0.0.1", 0)
    yield exporter
    exporter.close()
    assert exporter.scrapes == set()


@pytest.fixture
def scrape(exporter, sockets):
    """A function: a connection to the exporter that has sent so much; the socket."""
    (_, port), = [listener.address for listener in exporter._listeners]

    def connect(data):
        sockets.append(socket.create_connection(("127.0.0.1", port), 10))
        sockets[-1].sendall(data)
        return sockets[-1]

    return connect


def get(loop, scrape, data):
    """(status, head, body) of the answer."""
    head, _, body = read_to_end(loop, scrape(data)).partition(b"\r\n\r\n")
    length = int(re.search(br"Content-Length: (\d+)", head).group(1))
    assert b"Connection: close" in head and (len(body) == length or not body)
    return int(head.split()[1]), head, body


def test_metrics_are_served_in_the_exposition_format(loop, scrape):
    status, head, body = get(loop, scrape, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body) == (200, b"# HELP a_total All.\n# TYPE a_total counter\na_total 1\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head


def test_health_is_503_with_the_reason_while_there_is_trouble(loop, scrape, health):
    assert get(loop, scrape, b"GET /healthz HTTP/1.1\r\n\r\n")[::2] == (200, b"ok\n")
    health.trouble = "draining"
    assert get(loop, scrape, b"GET /healthz HTTP/1.1\r\n\r\n")[::2] == (503, b"draining\n")


def test_head_has_no_body(loop, scrape):
    status, head, body = get(loop, scrape, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert status == 200 and b"Content-Length: 53" in head and body == b""


@pytest.mark.parametrize("data, status", [
    (b"GET /etc/passwd HTTP/1.1\r\n\r\n", 404), (b"POST /metrics HTTP/1.1\r\n\r\n", 405), (b"x\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000, 431), (b"GET / HTTP/1.1\r\nA: " + b"b" * 10000, 431)])
def test_other_requests_are_answered_with_their_status(loop, scrape, data, status):
    assert get(loop, scrape, data)[0] == status


def test_a_request_may_come_a_byte_at_a_time(loop, scrape, exporter):
    peer = scrape(b"")
    for byte in b"GET /healthz HTTP/1.1\r\n\r\n":
        peer.sendall(bytes([byte]))
        while loop.poller.selector.real.select(0):
            loop.turn()
    assert read_to_end(loop, peer).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_says_nothing_is_cut_off_after_a_second(loop, clock, scrape, exporter):
    peer = scrape(b"GET")
    turn_until(loop, lambda: exporter.scrapes)
    clock.advance(REQUEST_SECONDS)
    turn_until(loop, lambda: not exporter.scrapes)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_a_client_that_ends_in_its_request_is_closed(loop, scrape, exporter):
    peer = scrape(b"GET /metr")
    peer.shutdown(socket.SHUT_WR)
    assert read_to_end(loop, peer) == b""


def test_a_connection_that_cannot_be_watched_leaves_nothing(loop, scrape, exporter, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "too many files are watched")

    with monkeypatch.context() as patch:
        patch.setattr("numseq.exporter.Stream", fail)
        assert read_to_end(loop, scrape(b"")) == b""
    assert (exporter.scrapes, loop.timers()) == (set(), 0)
    assert read_to_end(loop, scrape(b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


def test_a_connection_without_memory_for_its_timer_leaves_nothing(
        loop, clock, scrape, exporter, monkeypatch):
    call_later = loop.call_later

    def fail(delay, callback):
        if delay == REQUEST_SECONDS:
            raise MemoryError
        return call_later(delay, callback)

    watched = dict(loop.poller.watched)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_later", fail)
        assert read_to_end(loop, scrape(b"")) == b""
    clock.advance(REST_SECONDS)
    turn_until(loop, lambda: loop.poller.watched == watched)
    assert exporter.scrapes == set()
    assert read_to_end(loop, scrape(b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


def test_no_more_than_eight_are_served_at_once(loop, scrape, exporter):
    peers = [scrape(b"GET ") for _ in range(CONNECTIONS_MOST)]
    turn_until(loop, lambda: len(exporter.scrapes) == len(peers))
    assert read_to_end(loop, scrape(b"")) == b""
    peers[0].sendall(b"/healthz HTTP/1.1\r\n\r\n")
    assert read_to_end(loop, peers[0]).startswith(b"HTTP/1.1 200 ")
    peers[0].close()
    turn_until(loop, lambda: len(exporter.scrapes) < len(peers))
    assert read_to_end(loop, scrape(b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
