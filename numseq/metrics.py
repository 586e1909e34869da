"""A server's figures: counters, and their summary for a person.

Counting happens on every request, so it has to be cheap: a counter is an attribute, and a histogram is a list
whose index is the bit length of a time in microseconds. Names and units follow
https://prometheus.io/docs/practices/naming/.
"""

import time

from . import process
from .loop import TIME_BUCKETS

SHOWN = range(6, 25, 2)  # the exported buckets: up to 64 us, 256 us, ... 16.8 s
SUMMARY_WIDTH = 110  # characters of a line for a person; a single longer figure may exceed it

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
    """The figures [(name, kind, help, label, value)], each of which Prometheus calls a family.

    value is a number or a Histogram; with a label, it is a dict from the label's values to numbers. It is
    None if the system does not tell it. Label values come from tables of this program, never from a client.

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
