"""A server's figures: counters, exported over HTTP to Prometheus or as a few lines to a person.

Counting happens on every request, so it has to be cheap: a counter is an attribute, and a histogram is a list
whose index is the bit length of a time in microseconds. Names and units follow
https://prometheus.io/docs/practices/naming/, the text is the exposition format 0.0.4.
"""

import time

from . import process
from .loop import TIME_BUCKETS
from .stream import Stream, close_file, listen

CONNECTIONS_MOST = 8  # open at once: a collector or two and some browsers; further ones are closed
REQUEST_MOST = 4096  # bytes of a request; browsers send under 1,000, collectors under 300
REQUEST_SECONDS = 1.0  # seconds from accept to the end of the response

SHOWN = range(6, 25, 2)  # the exported buckets: up to 64 us, 256 us, ... 16.8 s
SUMMARY_WIDTH = 110  # characters of a line for a person; a single longer figure may exceed it

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class Histogram:
    """A histogram of times (seconds) with a fixed number of buckets, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self, counts=None, seconds=0.0):
        # counts[k] is for times from 2 ** (k - 1) to below 2 ** k microseconds, counts[0] for those below 1.
        self.counts = [0] * TIME_BUCKETS if counts is None else counts
        self.sum = seconds

    def add(self, seconds):
        """Counts a time, which must not be negative."""
        self.counts[int(seconds * 1e6).bit_length()] += 1
        self.sum += seconds

    def count(self):
        """The number of times counted (int)."""
        return sum(self.counts)

    def quantile(self, share):
        """The upper bound (seconds) of the bucket with this quantile (0 to 1); 0 if nothing was counted."""
        wanted, below = share * self.count(), 0
        for place, count in enumerate(self.counts):
            below += count
            if count and below >= wanted:
                return 2 ** place / 1e6
        return 0.0

    def samples(self, name):
        """Its lines in the exposition format: cumulative buckets, sum and count."""
        total = self.count()
        lines = ['%s_bucket{le="%s"} %d' % (name, number(2 ** place / 1e6), sum(self.counts[:place + 1]))
                 for place in SHOWN]
        return lines + ['%s_bucket{le="+Inf"} %d' % (name, total), "%s_sum %s" % (name, number(self.sum)),
                        "%s_count %d" % (name, total)]


class Counts(dict):
    """A counter for each of a fixed set of names."""

    def __init__(self, *names):
        super().__init__(dict.fromkeys(names, 0))

    def text(self):
        """The counters that are not 0, for a person."""
        return ", ".join("%d %s" % (count, name.replace("_", " ")) for name, count in self.items()
                         if count) or "none"


def number(value):
    """A number as text: integers without a fraction, others in their shortest exact form."""
    return "%d" % value if value == int(value) else repr(float(value))


def render(families):
    """The exposition text (bytes) of families [(name, kind, help, label, value)].

    value is a number or a Histogram; with a label, it is a dict from the label's values to numbers. Label
    values come from tables of this program, never from a client. A family whose value is None, because the
    system does not tell it, is left out.
    """
    lines = []
    for name, kind, text, label, value in families:
        if value is None:
            continue
        lines += ["# HELP %s %s" % (name, text), "# TYPE %s %s" % (name, kind)]
        if kind == HISTOGRAM:
            lines += value.samples(name)
        elif label:
            lines += ['%s{%s="%s"} %s' % (name, label, key, number(count)) for key, count in value.items()]
        else:
            lines.append("%s %s" % (name, number(value)))
    return "".join(line + "\n" for line in lines).encode("ascii")


# ---- what a server counts


class Figures:
    """The counters of one server. Whoever observes an event increments the attribute for it."""

    __slots__ = ("started", "accepted", "refused", "ended", "messages", "numbers", "bytes", "errors",
                 "created", "purged", "store_requests", "store_times", "internal_errors")

    def __init__(self, refusals, endings, errors, outcomes):
        """The arguments are the possible values of each label (sequences of text)."""
        self.started = time.time()
        self.accepted = self.messages = self.numbers = self.bytes = 0
        self.created = self.purged = self.internal_errors = 0
        self.refused = Counts(*refusals)
        self.ended = Counts(*endings)
        self.errors = Counts(*errors)
        self.store_requests = Counts(*outcomes)
        self.store_times = Histogram()

    def count(self, size):
        """Counts a reply of `size` bytes."""
        self.messages += 1
        self.bytes += size


def families(figures, loop, connections, sequences, dropped):
    """The families for `render`.

    connections and sequences are the current numbers (int); sequences is None if the store does not know.
    """
    turns = Histogram(list(loop.turn_counts), loop.turn_seconds)
    turns.counts[SHOWN[0]] += loop.turns - turns.count()  # the turns below SHORT_TURN
    return [
        ("numseq_connections", GAUGE, "Connections that are open.", None, connections),
        ("numseq_connections_accepted_total", COUNTER,
         "Connections that were accepted, refused ones included.", None, figures.accepted),
        ("numseq_connections_refused_total", COUNTER, "Connections that were refused.", "reason",
         figures.refused),
        ("numseq_sessions_ended_total", COUNTER, "Sessions that have ended.", "reason", figures.ended),
        ("numseq_messages_sent_total", COUNTER, "Replies, all kinds together.", None, figures.messages),
        ("numseq_numbers_sent_total", COUNTER, "Numbers in these replies.", None, figures.numbers),
        ("numseq_sent_bytes_total", COUNTER, "Bytes of these replies.", None, figures.bytes),
        ("numseq_errors_sent_total", COUNTER, "Replies that were an ERR.", "kind", figures.errors),
        ("numseq_sequences", GAUGE, "Sequences that are kept.", None, sequences),
        ("numseq_sequences_created_total", COUNTER, "Sequences that were created.", None, figures.created),
        ("numseq_sequences_purged_total", COUNTER, "Sequences that were forgotten.", None, figures.purged),
        ("numseq_store_requests_total", COUNTER, "Requests to the store.", "outcome", figures.store_requests),
        ("numseq_store_request_seconds", HISTOGRAM, "Times of requests to the store.", None,
         figures.store_times),
        ("numseq_turns_total", COUNTER, "Turns of the loop.", None, loop.turns),
        ("numseq_turn_seconds", HISTOGRAM, "Times of the turns, without their waits.", None, turns),
        ("numseq_lines_dropped_total", COUNTER, "Lines of output that nobody read in time.", None, dropped),
        ("numseq_internal_errors_total", COUNTER, "Exceptions that no callback handled.", None,
         figures.internal_errors),
    ] + process_families(figures.started)


def summary(families):
    """The families as a few lines for a person (list of text), without those that are 0 or unknown."""
    words = []
    for name, kind, _, label, value in families:
        name = name.replace("numseq_", "").replace("process_", "").replace("_total", "").replace("_", " ")
        if kind == HISTOGRAM:
            if value.count():
                words.append("%s: half under %s ms, 99%% under %s ms, longest under %s ms" % (
                    (name.replace(" seconds", " times"),)
                    + tuple(number(1000 * value.quantile(share)) for share in (0.5, 0.99, 1))))
        elif label:
            if any(value.values()):
                words.append("%s: %s" % (name, value.text()))
        elif value:
            words.append("%s: %s" % (name, number(value)))
    lines = []
    for word in words:
        if lines and len(lines[-1]) + len(word) < SUMMARY_WIDTH:
            lines[-1] += "; " + word
        else:
            lines.append(word)
    return lines


# ---- the process

PROCESS = [
    ("process_resident_memory_bytes", GAUGE, "Physical memory that the process takes.", process.memory),
    ("process_open_fds", GAUGE, "Files that the process has open.", process.files_open),
    ("process_max_fds", GAUGE, "Files that the process may have open.", process.files_most),
    ("process_cpu_seconds_total", COUNTER, "Processor time that the process has taken.",
     process.processor_seconds),
]


def process_families(started):
    """The families of the process, which was started at `started` (seconds since 1970)."""
    return [(name, kind, text, None, read()) for name, kind, text, read in PROCESS] + [
        ("process_start_time_seconds", GAUGE, "When the process began, in seconds since 1970.", None,
         started)]


# ---- HTTP

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
           431: "Request Header Fields Too Large", 503: "Service Unavailable"}
HEAD_END = (b"\r\n\r\n", b"\n\n")
ABSOLUTE = b"http://"  # the beginning of a target with a host, as for a proxy (RFC 9112, 3.2.2)


def response(status, body, content_type="text/plain; charset=utf-8", head_only=False):
    """A whole HTTP response (bytes)."""
    head = "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n" % (
        status, REASONS[status], content_type, len(body), "Allow: GET, HEAD\r\n" if status == 405 else "")
    return head.encode("ascii") + (b"" if head_only else body)


def parse(data):
    """(method, path), both bytes, of a request (bytes); None if its head is incomplete. Raises ValueError."""
    if data.startswith(b"\r\n"):  # some clients send an empty line first (RFC 9112, 2.2)
        data = data[2:]
    if not any(end in data for end in HEAD_END):
        return None
    method, target, version = data.splitlines()[0].split(b" ")
    if not version.startswith(b"HTTP/1."):
        raise ValueError("not HTTP/1")
    if target[:len(ABSOLUTE)].lower() == ABSOLUTE:
        target = b"/" + target[len(ABSOLUTE):].partition(b"/")[2]
    return method, target.partition(b"?")[0]


class Exporter:
    """Serves GET /metrics and GET /healthz on the server's loop.

    figures() returns the families for `render`; trouble() returns why the server is unhealthy (text) or None.
    """

    def __init__(self, loop, figures, trouble):
        self.loop = loop
        self.figures = figures
        self.trouble = trouble
        self.scrapes = set()
        self._listeners = []

    def listen(self, host, port):
        """Listens on every address of host and port; returns the addresses. Raises OSError."""
        self._listeners = listen(self.loop, host, port, self._accepted)
        return [listener.address for listener in self._listeners]

    def answer(self, method, path):
        """The response (bytes) to a request."""
        head_only = method == b"HEAD"
        if method not in (b"GET", b"HEAD"):
            return response(405, b"GET or HEAD\n")
        if path == b"/metrics":
            return response(200, render(self.figures()), CONTENT_TYPE, head_only)
        if path == b"/healthz":
            trouble = self.trouble()
            body = ((trouble or "ok") + "\n").encode("ascii", "replace")
            return response(503 if trouble else 200, body, head_only=head_only)
        return response(404, b"/metrics or /healthz\n", head_only=head_only)

    def close(self):
        """Closes the listeners and aborts all connections."""
        for listener in self._listeners:
            listener.close()
        for scrape in list(self.scrapes):
            scrape.stream.abort()

    def _accepted(self, connection):
        if len(self.scrapes) >= CONNECTIONS_MOST:
            close_file(connection)
            return
        try:
            scrape = Scrape(self, connection)
        except OSError:  # the selector cannot watch it
            close_file(connection)
            return
        self.scrapes.add(scrape)


class Scrape:
    """One connection to the Exporter: one request and its response."""

    __slots__ = ("exporter", "stream", "_timer")

    def __init__(self, exporter, connection):
        self.exporter = exporter
        self._timer = exporter.loop.call_later(REQUEST_SECONDS, lambda: self.stream.abort())
        try:
            self.stream = Stream(exporter.loop, connection, self)
        except BaseException:
            exporter.loop.cancel(self._timer)
            raise

    def received(self, stream):
        try:
            request = parse(bytes(stream.input[:REQUEST_MOST]))
        except ValueError:
            answer = response(400, b"not an HTTP/1 request\n")
        else:
            if request is not None:
                answer = self.exporter.answer(*request)
            elif len(stream.input) >= REQUEST_MOST:
                answer = response(431, b"too long a request\n")
            elif stream.ended:
                answer = b""
            else:
                return
        stream.write(answer)
        stream.close()

    def closed(self, stream, error):
        self.exporter.loop.cancel(self._timer)
        self.exporter.scrapes.discard(self)

