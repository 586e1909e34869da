"""What a check counts: figures of constant size, however long it runs. No I/O, and no clock of its own.

Times are in seconds since the check began, round trips in seconds, sizes in bytes.
"""

import array
import collections

SCALE = 1000 * 1000  # a histogram counts whole microseconds
PRECISION = 5  # bits: 32 buckets for each power of two, so a quantile is at most 1/32 too high
SPAN = 37  # bits: 2 ** 37 us are 38 hours, longer than any round trip; what is above counts as that
SLOTS = 480  # of a series: as many as a plot has room for; an even number, because two become one
SLOT_SECONDS = 0.1  # of a slot at first; doubled whenever the slots are used up, 23 times in ten years
KEPT = 100  # drops and outages kept from the beginning, and as many from the end; those between are counted
OUTAGE_LEAST = 1.0  # seconds: a client that connects again after a reset is back sooner
BURST = 1.0  # seconds: drops that follow one another sooner than this have one reason
BURSTS = 16  # bursts of drops that a period is looked for in, the last ones
BURSTS_LEAST = 5  # by chance, four gaps are equal once in some hundred checks
REGULAR = 0.1  # the part of a period by which a gap may differ from it
MISSED_MOST = 3  # periods in a gap: a cut that met no connection leaves one out

# Why a connection was lost, or not made.
SESSION, RESET, END, SILENCE, REFUSED, LOOKUP, LOCAL, NETWORK = (
    "session", "reset", "end", "silence", "refused", "lookup", "local", "network")
MEANINGS = collections.OrderedDict((
    (SESSION, "the end of the session, which the server resets: expected"),
    (RESET, "reset before the session was over"),
    (END, "ended by the other side in the middle of a sequence"),
    (SILENCE, "no answer within the timeout"),
    (REFUSED, "refused: nobody listens there, or the server has no place"),
    (LOOKUP, "the host's name was not found"),
    (LOCAL, "this machine has no more ports, files or memory"),
    (NETWORK, "any other failure, such as no route"),
))
CAUSES = tuple(MEANINGS)

# A connection that was lost, or not made: when, why (one of CAUSES), whether it is the end of the session, in
# which phase, how old it was, what it had brought, to which client
# (a number), and what the system said.
Drop = collections.namedtuple("Drop", [
    "at", "cause", "expected", "phase", "age", "bytes", "numbers", "client", "error"])
Outage = collections.namedtuple("Outage", ["begin", "seconds"])
Failure = collections.namedtuple("Failure", ["at", "client", "error"])  # of a sequence


class Histogram:
    """Times in a fixed number of buckets, log-linear: as fine for microseconds as for hours."""

    def __init__(self):
        self.count = 0
        self.longest = 0.0  # seconds, exact
        self._buckets = array.array("Q", bytes(8 * (SPAN - PRECISION + 1 << PRECISION)))

    def add(self, seconds):
        """Counts a time."""
        self.count += 1
        if seconds > self.longest:
            self.longest = seconds
        self._buckets[bucket_of(int(seconds * SCALE))] += 1

    def merge(self, other):
        """Adds what another has counted."""
        self.count += other.count
        self.longest = max(self.longest, other.longest)
        for bucket, count in other.items():
            self._buckets[bucket] += count

    def items(self):
        """[(bucket, count)] of the buckets that are not empty."""
        return [each for each in enumerate(self._buckets) if each[1]]

    def quantile(self, part):
        """The time (seconds) that `part` (0 to 1) of all are within, up to 1/32 too long; None of nothing."""
        left = part * self.count
        for bucket, count in self.items():
            left -= count
            if left <= 0:
                return min(bucket_start(bucket + 1) / SCALE, self.longest)
        return self.longest if self.count else None

    def summary(self):
        """The figures of a line (dict): count, p50, p99, p999, longest."""
        longest = self.longest if self.count else None
        return dict(count=self.count, p50=self.quantile(0.5), p99=self.quantile(0.99),
                    p999=self.quantile(0.999), longest=longest)


def bucket_of(value):
    """The bucket (int) of a whole number."""
    value = min(max(value, 0), (1 << SPAN) - 1)
    shift = max(value.bit_length() - PRECISION - 1, 0)
    return (shift << PRECISION) + (value >> shift)


def bucket_start(bucket):
    """The least whole number of a bucket."""
    shift = max((bucket >> PRECISION) - 1, 0)
    return bucket - (shift << PRECISION) << shift


class Series:
    """A count over time. It halves its resolution whenever it is full, so SLOTS slots are always enough."""

    def __init__(self):
        self.step = SLOT_SECONDS
        self.counts = array.array("Q", bytes(8 * SLOTS))

    def add(self, at, count):
        """Counts so many at a time."""
        slot = int(at / self.step)
        while slot >= SLOTS:
            merged = [self.counts[i] + self.counts[i + 1] for i in range(0, SLOTS, 2)]
            self.counts = array.array("Q", merged + [0] * (SLOTS // 2))
            self.step *= 2
            slot = int(at / self.step)
        self.counts[slot] += count

    def used(self, end):
        """The counts (list of int) of the slots up to a time."""
        return list(self.counts[:min(max(-int(-end // self.step), 1), SLOTS)])


class Kept:
    """The first and the last of any number of things."""

    def __init__(self):
        self.count = 0
        self.first = []
        self.last = collections.deque(maxlen=KEPT)

    def add(self, each):
        """Keeps it, or counts it."""
        self.count += 1
        if len(self.first) < KEPT:
            self.first.append(each)
        else:
            self.last.append(each)

    def all(self):
        """What is kept, in order (list)."""
        return self.first + list(self.last)

    def omitted(self):
        """How many were not kept, between `first` and `last` (int)."""
        return self.count - len(self.first) - len(self.last)


class Rhythm:
    """Notices that drops come at equal distances in time, as those of a firewall that cuts each 30 s do."""

    def __init__(self):
        self._bursts = collections.deque(maxlen=BURSTS)  # when each began
        self._last = None  # when the last drop was

    def add(self, at):
        """A drop was then."""
        if self._last is None or at - self._last >= BURST:
            self._bursts.append(at)
        self._last = at

    def period(self):
        """Seconds from drop to drop, or None where they are not regular."""
        bursts = list(self._bursts)
        if len(bursts) < BURSTS_LEAST:
            return None
        gaps = [later - earlier for earlier, later in zip(bursts, bursts[1:])]
        usual = sorted(gaps)[len(gaps) // 2]
        periods = [max(round(gap / usual), 1) for gap in gaps]
        if max(periods) > MISSED_MOST or 2 * periods.count(1) <= len(periods):
            return None
        if any(abs(gap - usual * count) > REGULAR * usual for gap, count in zip(gaps, periods)):
            return None
        return (bursts[-1] - bursts[0]) / sum(periods)


class Tally:
    """The counts of an interval, or of the whole check."""

    # Of sequences: completed and verified; given up; with a wrong checksum; ended by what no server sends.
    COUNTS = ("connections", "drops", "expected_drops", "numbers", "verified", "mismatched", "bytes_received",
              "bytes_sent", "completed", "given_up", "wrong", "broken")

    def __init__(self):
        for name in self.COUNTS:
            setattr(self, name, 0)
        self.causes = dict.fromkeys(CAUSES, 0)
        self.round_trips = Histogram()

    def merge(self, other):
        """Adds what another has counted."""
        for name in self.COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for cause, count in other.causes.items():
            self.causes[cause] += count
        self.round_trips.merge(other.round_trips)

    def summary(self, seconds):
        """The figures of a line (dict), of so many seconds."""
        figures = {name: getattr(self, name) for name in self.COUNTS}
        for name in "numbers", "verified", "bytes_received", "bytes_sent":
            figures[name + "_per_second"] = figures[name] / seconds if seconds > 0 else 0.0
        figures["causes"] = dict(self.causes)
        figures["round_trips"] = self.round_trips.summary()
        return figures


class Figures:
    """All that a check of so many clients counts."""

    def __init__(self, clients):
        self.total = Tally()  # without the interval that runs
        self.now = Tally()  # of the interval that runs
        self.numbers = Series()
        self.drops = Series()  # the unexpected ones
        self.kept_drops = Kept()  # the same
        self.kept_expected = Kept()
        self.outages = Kept()
        self.failures = Kept()
        self.outage_seconds = 0.0
        self.rhythm = Rhythm()
        self.heard = 0.0  # when the last byte came
        self._clients = clients
        self._failing = set()  # clients that have lost a connection and heard nothing since

    def receive(self, client, at, count):
        """Bytes have come."""
        self.now.bytes_received += count
        if self._failing:
            self.end_outage(at)
            self._failing.discard(client)
        self.heard = at

    def progress(self, at, count):
        """Numbers have come."""
        self.now.numbers += count
        self.numbers.add(at, count)

    def drop(self, drop):
        """A connection was lost, or could not be made."""
        self.now.causes[drop.cause] += 1
        if drop.expected:
            self.now.expected_drops += 1
            self.kept_expected.add(drop)
            return
        self.now.drops += 1
        self.drops.add(drop.at, 1)
        self.kept_drops.add(drop)
        self._failing.add(drop.client)
        if drop.bytes:  # what fails again and again meanwhile comes in the rhythm of the retries
            self.rhythm.add(drop.at)

    def outage(self, at):
        """How long (seconds) nothing has come, where every client has lost its connection; otherwise 0."""
        return at - self.heard if len(self._failing) == self._clients else 0.0

    def end_outage(self, at):
        """Counts the outage, if there is one: something has come, or the check is over."""
        seconds = self.outage(at)
        if seconds >= OUTAGE_LEAST:
            self.outages.add(Outage(self.heard, seconds))
            self.outage_seconds += seconds

    def close_interval(self):
        """Begins a new interval; returns the Tally of the one that ran."""
        closed, self.now = self.now, Tally()
        self.total.merge(closed)
        return closed
