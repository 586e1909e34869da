"""The congestion window of a fetch: how many requests may be in flight, from what its connections have shown.

Pure logic without I/O and without a clock. docs/links.md says what it achieves.
"""

import collections

# ---- the first flight: what a connection requests before the first reply

# The round trip of the TCP handshake is all that is known of the link. If its 120 bytes took at most 10 ms,
# the link carries at least 100 kbit/s, and a full segment (1,460 bytes) arrives in 0.12 s, well within a
# session of 1 s. Such a link is called prompt.
PROMPT = 0.01  # seconds: the longest round trip of a prompt link
PROMPT_FLIGHT = 1024  # requests on a prompt link: what the server answers in one turn; more do not help
SLOW_FLIGHT = 96  # requests on any other link: they take 0.8 s at 9.6 kbit/s
SYN_BYTES = 120  # bytes of a SYN and its SYN-ACK, without link headers
REQUEST_BYTES = len(b"RECV,12345;")
# The first segment is sized to be transmitted within this time (in seconds), on the assumption that the
# round trip of the handshake was all transmission time, and no propagation delay.
FIRST_SECONDS = 0.25
SEGMENT_REQUESTS = 120  # requests that fill a segment; a flight with this much room is sent in one piece

# ---- growth: as many requests as the link carries without long queues

# A reply is unqueued if it comes within UNQUEUED round trips plus UNQUEUED_SECONDS.
UNQUEUED = 1.25  # round trips
UNQUEUED_SECONDS = 0.05  # seconds: time for the server to answer
GROWTH = 3  # requests that an unqueued reply adds to the window, which grows fourfold per round trip
# Other replies add 1 each, as in slow start, up to a queueing delay of QUEUED_SOME beyond two round trips.
# Over QUEUED_MOST, the window shrinks in proportion to the delay.
QUEUED_SOME = 0.5  # seconds
QUEUED_MOST = 0.6  # seconds
SHRINK = 4  # the window is divided by at most this after a connection that left its first flight unanswered

# ---- what earlier connections say about the next one

# The age of a connection at its latest answered request shows how late a request may be. When the next
# connection is older than LATER times that age plus LATER_SECONDS, its window is divided by SHRINK, since
# most replies would come after the end of the session.
LATER = 1.25
LATER_SECONDS = 0.1  # seconds
# A connection that was silent for this share of its time fell silent early: the link may lose large bursts or
# packets, so from now on the window is limited to half of what it was. Each connection that does not fall
# silent early multiplies the limit by SHRINK again.
SILENT_SHARE = 0.8
LIMIT_LEAST = 12  # requests: the lowest limit of that kind


class Window:
    """The congestion window of one fetch, over all of its connections.

    most        limit of requests in flight (int)
    total       batches of the sequence (int); each request is for one of them, in their order
    next_batch  first batch not yet requested on this connection (int)

    Its methods take the time `now` (seconds), and the number `have` of batches that have arrived (int).
    """

    def __init__(self, most, total):
        self._most = max(most, 1)
        self._total = total
        self._limit = self._most  # of growth; reduced where the link fell silent early
        self._size = None  # requests that may be in flight; None before the first connection
        self._lead = None  # requests in the first segment; None before the first link that is not prompt
        self._shortest = float("inf")  # shortest handshake so far: a round trip without queueing
        self._lifetime = None  # `_answered` of lost connections: requests sent later got no answer

    def connected(self, now, round_trip, have):
        """Begins a new connection, whose handshake took `round_trip` seconds. Called before all others."""
        self._connected = now
        self._round_trip = round_trip
        self._shortest = min(self._shortest, round_trip)
        self._first_batch = self.next_batch = have
        self._flight = 0  # batches requested in the first flight
        self._runs = collections.deque()  # requests in flight: (first batch, last batch + 1, time sent)
        self._answered = 0.0  # age of the connection when the latest answered run was sent
        if self._size is None:
            self._size = min(self._most, PROMPT_FLIGHT if self._is_prompt() else SLOW_FLIGHT)

    def lead(self, opening):
        """The number of requests to send in a first segment, behind `opening` bytes, before the others.

        None if all go in one piece. A segment that arrives after the end of the session is wasted. So the
        first one is short, in case the handshake was slow because of a low bit rate.
        """
        if self._is_prompt():
            return None
        if self._lead is None:
            room = int(SYN_BYTES / self._round_trip * FIRST_SECONDS) - opening
            self._lead = room // REQUEST_BYTES
        self._lead = max(self._lead, 1)
        return self._lead if self._lead < SEGMENT_REQUESTS else None

    def fill(self, now, have, most=None):
        """(first, last + 1) of the batches to request now: fills the window once half of it is free.

        The range is empty if there is nothing to request. With `most`, it is no longer than that.
        """
        size = self._size if most is None else min(self._size, most)
        if self._lifetime is not None and now - self._connected > self._lifetime * LATER + LATER_SECONDS:
            size = max(size // SHRINK, 1)
        first = self.next_batch
        if first < self._total and (first - have) * 2 <= size:
            self.next_batch = min(have + size, self._total)
            self._runs.append((first, self.next_batch, now))
            if have == self._first_batch:
                self._flight = self.next_batch - have
        return first, self.next_batch

    def answered(self, now, have):
        """Grows the window while replies come soon, and shrinks it when they queue for long.

        Requests that are in a queue when the session ends are wasted, and delay the next connection.
        """
        while self._runs and self._runs[0][1] <= have:
            first, last, sent = self._runs.popleft()
            self._answered = sent - self._connected
            seconds = now - sent
            is_first = first == self._first_batch and self._lead is not None
            if is_first and seconds <= self._shortest + FIRST_SECONDS:
                self._lead = min(self._lead * 2, SEGMENT_REQUESTS)
            if seconds > self._reply_most():
                self._size = max(int(self._size * self._reply_most() / seconds), 1)
            elif seconds <= 2 * self._round_trip + QUEUED_SOME:
                growth = GROWTH if seconds <= UNQUEUED * self._round_trip + UNQUEUED_SECONDS else 1
                most = min(PROMPT_FLIGHT, self._limit) if self._is_prompt() else self._limit
                self._size = max(self._size, min(self._size + growth * (last - first), most))

    def lost(self, now, have, silent):
        """Adapts to what the lost connection brought; it ended with `silent` seconds without input."""
        brought = have - self._first_batch
        if silent > max(self._reply_most(), SILENT_SHARE * (now - self._connected)):
            self._limit = max(self._size // 2, min(LIMIT_LEAST, self._most))
        else:
            self._limit = min(self._limit * SHRINK, self._most)
        if brought < self._flight:
            self._size = max(brought, self._flight // SHRINK, 1)
        if brought:
            self._lifetime = max(self._answered, (self._lifetime or 0.0) / 2)
        elif self._lead is not None:
            self._lead //= SHRINK

    def _is_prompt(self):
        return self._round_trip <= PROMPT

    def _reply_most(self):
        """Seconds after which a reply has waited in a queue for too long, or is lost (float)."""
        return 2 * self._round_trip + QUEUED_MOST
