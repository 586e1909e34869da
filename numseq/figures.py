"""The statistics of a check, in constant memory however long it runs. No I/O, and no clock of its own.

Times are in seconds since the start of the check, round trips in seconds, sizes in bytes.
"""

import array
import collections

# Histogram.
SCALE = 1000 * 1000  # histogram units per second: microseconds
PRECISION = 5  # bits: 32 buckets per power of two, so a quantile is at most 1/32 too high
SPAN = 37  # bits: longer times count as 2 ** 37 us, which is 38 hours

# Series.
SLOTS = 480  # slots: as many as a plot can show; even, because slots are merged in pairs
SLOT_SECONDS = 0.1  # seconds per slot at first; doubled when all slots are used, 23 times in ten years

# Drops and outages.
KEPT = 100  # entries kept from the beginning, and as many from the end; those between are only counted
OUTAGE_LEAST = 1.0  # seconds: a client reconnects sooner than this after a reset

# Rhythm: the search for drops at regular intervals.
BURST = 1.0  # seconds: drops closer together than this count as one burst with one cause
BURSTS = 16  # latest bursts that are searched for a period
BURSTS_LEAST = 5  # bursts: their four gaps are equal by chance once in some hundred checks
REGULAR = 0.1  # share of the period by which a gap may differ
MISSED_MOST = 3  # periods per gap, as a cut that meets no connection causes no drop

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

# A connection that was lost, or not made: time, one of CAUSES, whether it was the end of the session, phase
# of the fetch, age of the connection, bytes and numbers received on it, number of the client, error message.
Drop = collections.namedtuple("Drop", [
    "at", "cause", "expected", "phase", "age", "bytes", "numbers", "client", "error"])
Outage = collections.namedtuple("Outage", ["begin", "seconds"])
Failure = collections.namedtuple("Failure", ["at", "client", "error"])  # a sequence that failed


class Histogram:
    """Counts times in a fixed number of log-linear buckets: the relative precision is the same for all."""

    def __init__(self):
        self.count = 0
        self.longest = 0.0  # seconds, exact
        self._buckets = array.array("Q", bytes(8 * (SPAN - PRECISION + 1 << PRECISION)))

    def add(self, seconds):
        """Counts one time (seconds)."""
        self.count += 1
        if seconds > self.longest:
            self.longest = seconds
        self._buckets[bucket_of(int(seconds * SCALE))] += 1

    def merge(self, other):
        """Adds the counts of another Histogram."""
        self.count += other.count
        self.longest = max(self.longest, other.longest)
        for bucket, count in other.items():
            self._buckets[bucket] += count

    def items(self):
        """The buckets that are not empty (list of (bucket, count))."""
        return [each for each in enumerate(self._buckets) if each[1]]

    def quantile(self, part):
        """The quantile `part` (0 to 1) in seconds, at most 1/32 too high; None if nothing was counted."""
        left = part * self.count
        for bucket, count in self.items():
            left -= count
            if left <= 0:
                return min(bucket_start(bucket + 1) / SCALE, self.longest)
        return self.longest if self.count else None

    def summary(self):
        """The fields of a line (dict): count, p50, p99, p999, longest."""
        longest = self.longest if self.count else None
        return dict(count=self.count, p50=self.quantile(0.5), p99=self.quantile(0.99),
                    p999=self.quantile(0.999), longest=longest)


def bucket_of(value):
    """The bucket (int) of a number of microseconds (int)."""
    value = min(max(value, 0), (1 << SPAN) - 1)
    shift = max(value.bit_length() - PRECISION - 1, 0)
    return (shift << PRECISION) + (value >> shift)


def bucket_start(bucket):
    """The lowest number of microseconds in a bucket (int)."""
    shift = max((bucket >> PRECISION) - 1, 0)
    return bucket - (shift << PRECISION) << shift


class Series:
    """A count over time, in SLOTS slots. When they are used up, pairs of them are merged.

    step    seconds per slot
    counts  the count of each slot
    """

    def __init__(self):
        self.step = SLOT_SECONDS
        self.counts = array.array("Q", bytes(8 * SLOTS))

    def add(self, at, count):
        """Adds a count at a time (seconds)."""
        slot = int(at / self.step)
        while slot >= SLOTS:
            merged = [self.counts[i] + self.counts[i + 1] for i in range(0, SLOTS, 2)]
            self.counts = array.array("Q", merged + [0] * (SLOTS // 2))
            self.step *= 2
            slot = int(at / self.step)
        self.counts[slot] += count

    def used(self, end):
        """The counts of the slots up to a time (list of int)."""
        return list(self.counts[:min(max(-int(-end // self.step), 1), SLOTS)])


class Kept:
    """Keeps the first and the last KEPT of any number of items.

    count  how many were added
    """

    def __init__(self):
        self.count = 0
        self.first = []
        self.last = collections.deque(maxlen=KEPT)

    def add(self, each):
        """Adds an item; in between, an older one may be dropped."""
        self.count += 1
        if len(self.first) < KEPT:
            self.first.append(each)
        else:
            self.last.append(each)

    def all(self):
        """The kept items, in order (list)."""
        return self.first + list(self.last)

    def omitted(self):
        """The number of items dropped between `first` and `last` (int)."""
        return self.count - len(self.first) - len(self.last)


class Rhythm:
    """Detects drops at regular intervals, as by a firewall that cuts all connections every 30 s."""

    def __init__(self):
        self._bursts = collections.deque(maxlen=BURSTS)  # start times
        self._last = None  # time of the last drop

    def add(self, at):
        """Adds the time of a drop (seconds)."""
        if self._last is None or at - self._last >= BURST:
            self._bursts.append(at)
        self._last = at

    def period(self):
        """The interval of the drops in seconds, or None if they are irregular."""
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

    # Numbers: verified or mismatched by their checksum. Sequences: completed; given_up; wrong, with a
    # mismatched checksum; broken, by a violation of the protocol.
    COUNTS = ("connections", "drops", "expected_drops", "numbers", "verified", "mismatched", "bytes_received",
              "bytes_sent", "completed", "given_up", "wrong", "broken")

    def __init__(self):
        for name in self.COUNTS:
            setattr(self, name, 0)
        self.causes = dict.fromkeys(CAUSES, 0)
        self.round_trips = Histogram()

    def merge(self, other):
        """Adds the counts of another Tally."""
        for name in self.COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for cause, count in other.causes.items():
            self.causes[cause] += count
        self.round_trips.merge(other.round_trips)

    def summary(self, seconds):
        """The fields of a line (dict) for an interval of this length (seconds)."""
        figures = {name: getattr(self, name) for name in self.COUNTS}
        for name in "numbers", "verified", "bytes_received", "bytes_sent":
            figures[name + "_per_second"] = figures[name] / seconds if seconds > 0 else 0.0
        figures["causes"] = dict(self.causes)
        figures["round_trips"] = self.round_trips.summary()
        return figures


class Figures:
    """All statistics of a check with this number of clients (int)."""

    def __init__(self, clients):
        self.total = Tally()  # of all past intervals
        self.now = Tally()  # of the current interval
        self.numbers = Series()
        self.drops = Series()  # unexpected drops only
        self.kept_drops = Kept()  # unexpected drops only
        self.kept_expected = Kept()
        self.outages = Kept()
        self.failures = Kept()
        self.outage_seconds = 0.0
        self.rhythm = Rhythm()
        self.heard = 0.0  # time of the last input
        self._clients = clients
        self._failing = set()  # clients that have lost a connection and received nothing since

    def receive(self, client, at, count):
        """Counts bytes that a client (its number) has received; this ends an outage."""
        self.now.bytes_received += count
        if self._failing:
            self.end_outage(at)
            self._failing.discard(client)
        self.heard = at

    def progress(self, at, count):
        """Counts numbers that have arrived."""
        self.now.numbers += count
        self.numbers.add(at, count)

    def drop(self, drop):
        """Counts a Drop."""
        self.now.causes[drop.cause] += 1
        if drop.expected:
            self.now.expected_drops += 1
            self.kept_expected.add(drop)
            return
        self.now.drops += 1
        self.drops.add(drop.at, 1)
        self.kept_drops.add(drop)
        self._failing.add(drop.client)
        if drop.bytes:  # connections without input may fail in the rhythm of the retries
            self.rhythm.add(drop.at)

    def outage(self, at):
        """Seconds without input if every client has lost its connection, otherwise 0 (float)."""
        return at - self.heard if len(self._failing) == self._clients else 0.0

    def end_outage(self, at):
        """Counts the current outage, if there is one, because of new input or the end of the check."""
        seconds = self.outage(at)
        if seconds >= OUTAGE_LEAST:
            self.outages.add(Outage(self.heard, seconds))
            self.outage_seconds += seconds

    def close_interval(self):
        """Starts a new interval, and returns the Tally of the last one."""
        closed, self.now = self.now, Tally()
        self.total.merge(closed)
        return closed
