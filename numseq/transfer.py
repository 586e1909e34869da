"""The client's side: fetches a sequence over as many connections as it takes, and verifies it."""

import collections
import os

from . import protocol, sequence
from .addresses import PORT_MOST, format_endpoint, parse_endpoint
from .connect import Connector
from .errors import (ChecksumMismatch, ConnectionLost, FetchError, Forgotten, ProtocolBroken, Refused,
                     UsageError)
from .journal import Journal, load
from .loop import Loop
from .pipeline import split_numbers

HOST = "127.0.0.1"
HOSTS_MOST = 16  # servers of a fleet
BATCH = 5  # numbers in a batch
STATE = "numseq.state"  # the file in the current directory that CONTINUE reads
TIMEOUT = 3.0  # seconds of silence, also while connecting, after which a connection is given up
MOMENT = 0.001  # seconds by which times that were computed in different ways may differ
PATIENCE_MOST = 4  # times the timeout that a connection may take to be made, where shorter waits were in vain
WINDOW = 2048  # requests in flight, at most, where nobody reads a transcript: 40 kB of replies
WINDOW_MOST = protocol.N_MOST  # there are no more batches
PAUSE_FIRST = 0.05  # seconds from one connection without progress to the next, doubled for each that follows
PAUSE_MOST = 5.0  # seconds
RETRIES_LEAST = 3  # retries that there are even if each takes longer than the timeout

# How much is requested before anything is known of the link. A SYN and its answer are 150 bytes: where they
# took 10 ms, the link carries 100 kbit/s, and the first segment of a large flight arrives within a session.
PROMPT = 0.01  # seconds
PROMPT_FLIGHT = 1024  # requests, as many as the server answers in a turn; more gain nothing there
SLOW_FLIGHT = 96  # requests on a link that is slower or longer: 0.8 s of 9.6 kbit/s
SYN_BYTES = 120  # of a SYN and its answer, without what a link adds
FIRST_SECONDS = 0.25  # what the first segment may take if only its rate makes the link slow
SEGMENT_REQUESTS = 120  # that a full segment holds: the first requests need not be shorter for it

# How the window follows the link.
UNQUEUED = 1.25  # round trips within which replies come that have waited for nothing,
UNQUEUED_SECONDS = 0.05  # and seconds beside them that the server may take
GROWTH = 3  # what each reply adds to the window then: fourfold in a round trip; else each adds 1,
QUEUED_SOME = 0.5  # until replies wait for so many seconds in queues, beside two round trips
QUEUED_MOST = 0.6  # and when they wait for so many, it narrows
SHRINK = 4  # the most that the window is divided by, where a connection brought less than its first requests
LATER = 1.25  # times the age up to which earlier connections had their requests answered: after that, and
LATER_SECONDS = 0.1  # seconds more, little is requested, as it would come too late
SILENT_SHARE = 0.8  # of a connection's time after which its silence says something of the link
LIMIT_LEAST = 12  # requests: the window may grow to it even on a link that falls silent
SAID_MOST = 200  # characters of an ERR that are shown: the longest of a numseq server has 85
TIME_OVER = "not complete after %g s"  # the ConnectionLost of a fetch whose max_time is over


class Result(collections.namedtuple("Result", ["numbers", "sum", "checksum", "client_id"])):
    """A complete sequence.

    `state_error` says in a line why its state could not be written (text), else it is None.
    """

    state_error = None

# The phases of a connection.
OPENING = "opening"  # INIT or CONT is to be acknowledged
RECEIVING = "receiving"  # batches are missing
FINISHING = "finishing"  # FIN is to be answered

# What is known of the sequence at the server.
ABSENT = "absent"
UNKNOWN = "unknown"  # an INIT was sent, but not answered
PRESENT = "present"

# What a server says that another try may find changed.
PASSING = frozenset([protocol.TOO_MANY_CONNECTIONS, protocol.TOO_MANY_CLIENTS, protocol.STORE_FAILED])
REPLY_TYPES = frozenset([protocol.ACK, protocol.NUM, protocol.FAC, protocol.ERR])
PLACES_MOST = 4  # addresses that a message names
NUMBER_BYTES = 2.91  # of a number and what separates it from the next, on average
SHOWN_MOST = 60  # bytes that are shown of what is no reply


class Observer:
    """What a Fetch tells of its connections. This one ignores it."""

    def connected(self):
        """A connection is established."""

    def sent(self, messages):
        """Whole messages (bytes) are on their way."""

    def received(self, data):
        """There is more input, or its end. `data` (bytes) is what is not handled yet, old and new."""

    def lost(self, error):
        """The connection was lost, or not made: error is a ConnectionLost, or a Refused that passes."""


class Fetch:
    """One sequence being fetched, over as many connections as it takes. Any number of them can share a loop.

    host      HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT (text), or a list of them: servers of one fleet
    port      of the hosts without one
    journal   the Journal with what has arrived so far
    done      done(fetch, error) is called once, when the fetch is over; error is a FetchError, or None when
              the numbers are complete and verified
    resume    whether the server has the sequence already (bool)
    window    requests in flight, at most
    timeout   seconds of silence after which a connection is given up
    retry     the fetch is given up after `retry` times `timeout` seconds without progress; 0: one connection
    max_time  seconds from now after which the fetch is given up; None for no limit
    watch     watch(event, detail) is called for each event: see output.TRANSCRIPT. It excludes the fast path
              and the first flight: a connection opens with INIT or CONT alone
    observer  told of each connection, at little cost: see Observer
    known     addresses of the hosts (a dict) that several fetches share: see Connector

    Raises UsageError for a host that is none.
    """

    def __init__(self, loop, host, port, journal, done, resume=False, window=WINDOW, timeout=TIMEOUT, retry=0,
                 watch=None, observer=None, known=None, max_time=None):
        self.loop = loop
        self.journal = journal
        self.checksum = None  # the server's, at the end
        self.sum = None  # of the numbers, at the end
        self.drops = 0  # connections lost
        self._endpoints = endpoints(host, port)  # the one to try first is first
        self._known = {} if known is None else known
        self._done = done
        self._sequence = PRESENT if resume else ABSENT
        self._init_lost = False  # whether an earlier INIT may still be carried out
        self._window_most = max(window, 1)
        self._window_limit = self._window_most  # lower where the link fell silent
        self._window = None  # requests in flight that the link seems to carry; None before it is known
        self._timeout = timeout
        self._patience = timeout  # seconds for connecting
        self._retry = retry
        self._watch = watch
        self._observer = observer or Observer()
        self._eager = watch is None  # whether a connection begins with all that it will ask for
        self._end_timer = None if max_time is None else loop.call_later(
            max_time, lambda: self._run_out(max_time))
        self._failures = 0  # in a row, without progress
        self._failing_since = None  # when the first of them was begun
        self._progress = False  # whether any batch has arrived
        self._made = self._acknowledged = 0  # connections
        self._link = None  # a Connector or a Stream; None between connections and at the end
        self._timer = None
        self._begun = 0.0  # when the link was begun
        self._heard = 0.0  # when the link was made, or the server was last heard
        self._connected = 0.0  # when the stream was connected
        self._silence = timeout  # seconds without a word after which the connection is given up
        self._round_trip = 0.0  # seconds that connecting took
        self._shortest = float("inf")  # the same of the fastest connection, which waited in no queue
        self._phase = OPENING
        self._opened_with = None  # INIT or CONT
        self._finished = False  # whether FIN was sent
        self._first_batch = 0  # the first that this connection is to bring
        self._flight = 0  # batches of its first requests
        self._next_batch = 0  # the first batch not yet requested on this connection
        self._runs = collections.deque()  # unanswered: (first batch, the one after the last, when requested)
        self._answered = 0.0  # how old the connection was when the last run that was answered was requested
        self._lifetime = None  # the same of connections that were lost: later requests came too late
        self._lead = None  # batches requested in the first segment of a slow link
        self._second = None  # the timer of the second segment of the first requests
        self._searched = 0  # bytes of the stream's input already searched for `;`
        self._connect()

    def cancel(self):
        """Ends the fetch without calling `done`. What has arrived stays in the journal."""
        self.loop.cancel(self._end_timer)
        self._unlink()
        self.journal.close()

    # ---- connections

    def _connect(self):
        self._begun = self.loop.now
        if self._failing_since is None:
            self._failing_since = self._begun
        self._phase = OPENING
        self._opened_with = None
        self._finished = False
        self._flight = 0
        self._runs.clear()
        self._answered = 0.0
        self._searched = 0
        self._timer = self.loop.call_later(self._patience, self._check_connecting)
        self._link = Connector(self.loop, self._endpoints, self, self._known)

    def _unlink(self):
        self.loop.cancel(self._timer)
        self.loop.cancel(self._second)
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    def _check_connecting(self):
        """The time of a look-up does not count: the resolver has its own limit."""
        since = self._link.since
        due = (self.loop.now if since is None else since) + self._patience
        if due > self.loop.now:
            self._timer = self.loop.call_at(due, self._check_connecting)
        else:
            text = self._unconnected("no answer for %g s" % self._patience)
            # The link may only be longer than that.
            self._patience = min(self._patience * 2, self._timeout * min(PATIENCE_MOST, max(self._retry, 1)))
            self._lost(ConnectionLost(text, cause=TimeoutError()))

    def _check_silence(self):
        if self._heard + self._silence > self.loop.now:
            self._timer = self.loop.call_at(self._heard + self._silence, self._check_silence)
        else:
            self._lost(ConnectionLost("no answer for %g s" % self._silence, cause=TimeoutError()))

    @property
    def phase(self):
        """What the connection waits for: OPENING, RECEIVING or FINISHING."""
        return self._phase

    def connected(self, stream):
        self._observer.connected()
        connector, self._link = self._link, stream
        self._made += 1
        self._heard = self._connected = self.loop.now
        self._round_trip = self.loop.now - connector.since
        self._shortest = min(self._shortest, self._round_trip)
        self._patience = self._silence = max(self._timeout, 2 * self._round_trip)
        self.loop.cancel(self._timer)
        self._timer = self.loop.call_later(self._silence, self._check_silence)
        (endpoint, _), = connector.tried
        self._endpoints.sort(key=lambda each: each != endpoint)  # it comes first on the next connection
        self._open()

    def closed(self, stream, error):
        if self._link is not None:  # not closed by this side
            text = str(error) if error else "The server closed the connection"
            self._lost(ConnectionLost(text if stream is not None else self._unconnected(text), cause=error))

    def _unconnected(self, reason):
        """What to say where no connection was made (text)."""
        tried = self._link.tried
        if not tried:
            places = [format_endpoint(*endpoint) for endpoint in self._endpoints]
        else:
            places = ["%s (%s)" % (format_endpoint(*endpoint), address[0]) if address[0] != endpoint[0]
                      else format_endpoint(*endpoint) for endpoint, address in tried]
        shown = places[:PLACES_MOST] + ["..."] * (len(places) > PLACES_MOST)
        return "cannot connect to %s: %s" % (", ".join(shown), reason)

    def _lost(self, error):
        """The connection is gone or useless: retries, or ends."""
        self._observer.lost(error)
        self._unlink()
        self.drops += 1
        error.resumable = self._sequence is PRESENT
        if self._watch:
            self._watch("error", str(error))
        if isinstance(error, ConnectionLost):
            self._learn()
        if not self._may_retry():
            self._end(self._diagnosis(error))
            return
        if self._failing_since is not None:
            self._change_server()
        # From one beginning to the next, so that a connection that was swallowed has no pause after it. With
        # jitter, or all clients of a server that was away come back at once.
        pause = min(PAUSE_FIRST * 2 ** min(self._failures, 32), PAUSE_MOST)
        share = (257 + os.urandom(1)[0]) / 512  # 0.5 to 1; a small build may lack the module random
        pause = max(self._begun + pause - self.loop.now, PAUSE_FIRST) * share
        if self._failing_since is not None:
            left = self._failing_since + self._retry * self._timeout - self.loop.now
            pause = min(pause, left) if left > 0 else pause
        self._failures += 1
        self._timer = self.loop.call_later(pause, self._connect)

    def _may_retry(self):
        """Whether there are retries left: each stands for `timeout` seconds, what a silent connection takes.

        The last one begins when the time of all of them is over: they outlast every outage that is shorter.
        """
        if self._failing_since is None or self._failures < min(self._retry, RETRIES_LEAST):
            return self._retry > 0
        return self._begun < self._failing_since + self._retry * self._timeout - MOMENT

    def _learn(self):
        """Draws conclusions from what a connection has brought, for the next one's first requests."""
        if self._opened_with is None:
            self._known.clear()  # its addresses may have changed
            return
        brought = self.journal.batches() - self._first_batch
        silent = self.loop.now - self._heard
        if silent > max(self._reply_most(), SILENT_SHARE * (self.loop.now - self._connected)):
            # It fell silent soon, and not at some time: so many replies at once may not get through.
            self._window_limit = max(self._window // 2, min(LIMIT_LEAST, self._window_most))
        else:
            self._window_limit = min(self._window_limit * SHRINK, self._window_most)
        if brought < self._flight:
            self._window = max(brought, self._flight // SHRINK, 1)
        if brought:
            self._lifetime = max(self._answered, self._lifetime / 2 if self._lifetime is not None else 0.0)
        elif self._lead is not None:
            self._lead //= SHRINK
        if not brought and self._phase is not OPENING:
            self._eager = True  # what waits for an answer may come too late for this session

    def _change_server(self):
        """Another address first, and another server, after a connection that brought nothing."""
        endpoint = self._endpoints[0]
        if self._opened_with is not None:
            if self._phase is OPENING:
                found = self._known.get(endpoint, [])
                self._known[endpoint] = found[1:] + found[:1]
            self._endpoints.append(self._endpoints.pop(0))

    def _diagnosis(self, error):
        """The error, saying how far the connections came where none brought anything."""
        if not isinstance(error, ConnectionLost) or self._progress or not self._made:
            return error
        where = format_endpoint(*self._endpoints[0])
        left = min(self.journal.batch, self.journal.n - len(self.journal.numbers))
        if not self._acknowledged:
            text = "connected to %s, but never acknowledged: %s" % (where, error)
            return ConnectionLost(text, error.resumable, error.cause)
        if self._acknowledged < 2 or not left:
            return error
        text = ("acknowledged %d times by %s, but no batch of about %d bytes ever arrived whole: take a "
                "smaller --batch_size, or a longer --session-timeout at the server (%s)"
                % (self._acknowledged, where, len("NUM,;") + left * NUMBER_BYTES, error))
        advice = ConnectionLost(text, cause=error.cause)
        advice.advises = True
        return advice

    def _run_out(self, max_time):
        """The time for the whole fetch is over."""
        error = ConnectionLost(TIME_OVER % max_time, self._sequence is PRESENT, TimeoutError())
        if self._watch:
            self._watch("error", str(error))
        self._end(error)

    def _end(self, error):
        self.loop.cancel(self._end_timer)
        self._unlink()
        self.journal.flush()
        self.journal.close()
        self._done(self, error)

    # ---- replies

    def received(self, stream):
        self._observer.received(stream.input)
        self._heard = self.loop.now
        had = len(self.journal.numbers)
        error = None
        try:
            self._read_run(stream)
            self._read_each(stream)
        except protocol.ProtocolError as broken:
            error = ProtocolBroken("The server broke the protocol: %s" % broken, self._sequence is PRESENT)
        except FetchError as refused:
            error = refused
        if len(self.journal.numbers) > had:
            self._failures = 0
            self._failing_since = None
            self._progress = True
            self._adapt()
            self.journal.flush()
        if error is not None:
            self._fail(error)
        elif self._link is stream:
            if self._phase is RECEIVING:
                self._request()
            if stream.ended:
                self.closed(stream, None)

    def _read_run(self, stream):
        """Takes the full batches at the beginning of the input, all at once."""
        if self._phase is not RECEIVING or self._watch:
            return
        journal = self.journal
        most = min(self._next_batch, journal.n // journal.batch) - journal.batches()
        run = split_numbers(stream.input, journal.batch, most) if most > 0 else None
        if run is not None:
            numbers, taken = run
            journal.numbers += numbers
            stream.input = stream.input[taken:]
            self._searched = 0
            self._check_complete()

    def _read_each(self, stream):
        """Takes reply by reply. Raises ProtocolError and Refused."""
        data = stream.input
        position = 0
        if self._phase is OPENING and not any(kind.startswith(bytes(data[:3])) for kind in REPLY_TYPES):
            line = bytes(data[:SHOWN_MOST]).partition(b"\n")[0].rstrip(b"\r")
            text = "no numseq server: it says %s" % protocol.printable(line)
            raise ProtocolBroken(text, self._sequence is PRESENT)
        try:
            while self._link is stream:
                end = protocol.find_end(data, position, protocol.LONGEST_REPLY, position + self._searched)
                if end < 0:
                    self._searched = len(data) - position
                    return
                self._searched = 0
                message = bytes(data[position:end])
                position = end + 1
                if self._watch:
                    self._watch("received", shown(message) + ";")
                kind, content = protocol.parse_reply(message)
                if kind == protocol.ERR:
                    raise Refused(shortened(content))
                expected, take = REPLIES[self._phase]
                if kind != expected:
                    raise protocol.ProtocolError("unexpected reply")
                take(self, content)
        finally:
            if position:
                stream.input = data[position:]

    def _take_ack(self, content):
        self._phase = RECEIVING
        self._acknowledged += 1
        if not self.journal.is_open():
            self.journal.begin()
        self._sequence = PRESENT
        if self._watch:
            self._watch("requesting", "")
            for index in range(self._first_batch):
                self._watch("skipping", index)
        self._check_complete()

    def _take_numbers(self, numbers):
        journal = self.journal
        index = journal.batches()
        if index == self._next_batch:
            raise protocol.ProtocolError("unexpected reply")
        expected = min(journal.batch, journal.n - len(journal.numbers))
        if len(numbers) != expected:
            raise protocol.ProtocolError("%d numbers in batch %d, which has %d"
                                         % (len(numbers), index, expected))
        journal.numbers += numbers
        self._check_complete()

    def _check_complete(self):
        if self._finished and len(self.journal.numbers) == self.journal.n:
            self._phase = FINISHING

    def _take_checksum(self, checksum):
        self.checksum = checksum
        self.sum = sum(self.journal.numbers)
        if self._watch:
            self._watch("closing", "")
        link, self._link = self._link, None
        link.close(expect_more=False)
        error = None
        if sequence.checksum(bytes(self.journal.numbers)) != checksum:
            error = ChecksumMismatch("Checksum (%s) is not valid!" % checksum, resumable=True)
            self.journal.drop_numbers()
        self._end(error)

    # ---- requests

    def _open(self):
        """The first requests of a connection. Where nobody reads a transcript, nothing waits for the ACK."""
        journal = self.journal
        self._first_batch = self._next_batch = journal.batches()
        if self._window is None:
            self._window = min(self._window_most, PROMPT_FLIGHT if self._is_prompt() else SLOW_FLIGHT)
        if self._sequence is ABSENT:
            self._sequence = UNKNOWN
            self._opened_with = protocol.INIT
            opening = protocol.encode(protocol.INIT, journal.client_id, b"%d" % journal.n,
                                      b"%d" % journal.batch)
        else:
            self._opened_with = protocol.CONT
            opening = protocol.encode(protocol.CONT, journal.client_id)
        if not self._eager:
            self._send(opening)
        elif self._is_prompt():
            self._request(opening)
        else:
            # A segment that is still on its way when the session ends was sent in vain. So the first one is
            # short, in case only its rate makes the link slow.
            if self._lead is None:
                room = int(SYN_BYTES / self._round_trip * FIRST_SECONDS) - len(opening)
                self._lead = room // len(b"RECV,12345;")
            self._lead = max(self._lead, 1)
            self._request(opening, self._lead if self._lead < SEGMENT_REQUESTS else WINDOW_MOST)
            self.loop.cancel(self._second)
            self._second = self.loop.call_later(0, self._request_rest)

    def _reply_most(self):
        """Seconds within which a reply comes, unless it waits for others or is lost."""
        return 2 * self._round_trip + QUEUED_MOST

    def _is_prompt(self):
        return self._round_trip <= PROMPT

    def _request_rest(self):
        """The second segment of the first requests."""
        if self._phase is not FINISHING and self._opened_with is not None and self._link is not None:
            self._request()

    def _request(self, opening=b"", most=WINDOW_MOST):
        """Requests what the window has room for, once half of it is free, and FIN behind the last batch."""
        have, total = self.journal.batches(), self.journal.total()
        messages = opening
        window = min(self._window, most)
        age = self.loop.now - self._connected
        if self._lifetime is not None and age > self._lifetime * LATER + LATER_SECONDS:
            window = max(window // SHRINK, 1)
        if self._next_batch < total and (opening or (self._next_batch - have) * 2 <= window):
            first, self._next_batch = self._next_batch, min(have + window, total)
            messages += protocol.encode_receives(first, self._next_batch)
            if have == self._first_batch:
                self._flight = self._next_batch - have
            self._runs.append((first, self._next_batch, self.loop.now))
        if self._next_batch == total and not self._finished and (self._eager or have == total):
            self._finished = True
            messages += protocol.FIN_MESSAGE
        if messages:
            self._send(messages)
            if self._phase is RECEIVING:
                self._check_complete()

    def _adapt(self):
        """Widens the window where its replies came soon, and narrows it where they waited in a queue.

        Requests that wait in a queue when the session ends were sent in vain, and delay the next connection.
        """
        have = self.journal.batches()
        while self._runs and self._runs[0][1] <= have:
            first, last, requested = self._runs.popleft()
            self._answered = requested - self._connected
            seconds = self.loop.now - requested
            is_first = first == self._first_batch and self._lead is not None
            if is_first and seconds <= self._shortest + FIRST_SECONDS:
                self._lead = min(self._lead * 2, SEGMENT_REQUESTS)
            if seconds > self._reply_most():
                self._window = max(int(self._window * self._reply_most() / seconds), 1)
            elif seconds <= 2 * self._round_trip + QUEUED_SOME:
                growth = GROWTH if seconds <= UNQUEUED * self._round_trip + UNQUEUED_SECONDS else 1
                most = min(PROMPT_FLIGHT, self._window_limit) if self._is_prompt() else self._window_limit
                self._window = max(self._window, min(self._window + growth * (last - first), most))

    def _send(self, messages):
        if self._watch:
            for message in messages.split(b";")[:-1]:
                self._watch("sending", protocol.printable(message) + ";")
        self._observer.sent(messages)
        self._link.write(messages)

    def _fail(self, error):
        """A reply that ends the fetch, unless another connection can help."""
        client_id = self.journal.client_id.decode("ascii")
        opening = self._phase is OPENING
        does_not_exist = opening and str(error) == protocol.DOES_NOT_EXIST.format(client_id)
        if does_not_exist and self._opened_with is protocol.CONT:
            if self._sequence is UNKNOWN:
                self._sequence = ABSENT  # the INIT that was not answered has not arrived, or not yet
                self._init_lost = True
                self._unlink()
                self._connect()
            else:
                forgotten = Forgotten("the server has forgotten the sequence %s: begin with NEW" % client_id)
                forgotten.advises = self._acknowledged > 0  # a transcript of a single refusal says enough
                self._end(forgotten)
        elif opening and str(error) in PASSING and self._may_retry():
            if self._opened_with is protocol.INIT and str(error) != protocol.STORE_FAILED:
                self._sequence = ABSENT  # a store that failed may have created it nevertheless
            self._lost(error)
        elif (self._init_lost and self._opened_with is protocol.INIT and self._may_retry()
                and str(error) == protocol.ALREADY_EXISTS.format(client_id)):
            self._sequence = PRESENT  # by an earlier INIT, which the store carried out late
            self._lost(error)
        else:
            if self._watch and not isinstance(error, Refused):
                self._watch("error", str(error))
            self._end(error)


# The reply that each phase expects, and what takes it; ERR is always possible.
REPLIES = {
    OPENING: (protocol.ACK, Fetch._take_ack),
    RECEIVING: (protocol.NUM, Fetch._take_numbers),
    FINISHING: (protocol.FAC, Fetch._take_checksum),
}


def shown(message):
    """A server's message (bytes) as text: numbers whole, anything else in a few lines at most."""
    text = protocol.printable(message)
    return text if message.startswith(b"NUM,") and not message[4:].strip(b"0123456789:") else shortened(text)


def shortened(text):
    """The beginning of a text that a peer chose, which may be long."""
    return text if len(text) <= SAID_MOST else text[:SAID_MOST] + "..."


# ---- as a library


def fetch(n, port, host=HOST, batch_size=BATCH, client_id=None, state=None, window=WINDOW, timeout=TIMEOUT,
          retry=0, max_time=None):
    """Fetches a new sequence of n numbers (0 to 65,535) from the server at port; returns once it is verified.

    host        HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT (text, ASCII), or a list of them: servers of one
                fleet
    batch_size  numbers in a message (1 to 65,535)
    client_id   the UUID (text) under which the server keeps the sequence; by default a new one
    state       path of a file from which `resume` can go on; by default there is none
    window      requests in flight, at most
    timeout     seconds of silence after which a connection is given up, also while connecting
    retry       the fetch outlasts outages of up to `retry` times `timeout` seconds; 0 is one connection
    max_time    seconds after which the fetch is given up whatever arrives; by default there is no limit

    Returns a Result: numbers (list of int, 0 to 100), sum (int), checksum (32 hex digits), client_id (text).
    Its `state_error` is None, or says (text) why the state could not be written to its end. Raises
    UsageError, Refused, ConnectionLost, ProtocolBroken or ChecksumMismatch, all of them FetchErrors, whose
    `resumable` says whether `resume` can go on. A state that cannot be written is a UsageError before
    anything is sent. It blocks and runs a loop of its own, in any thread; for many at once see Fetch. Nothing
    stays open afterwards.
    """
    name = str(client_id).encode("ascii", "replace") if client_id is not None else None
    for fits, what in (
        (0 <= n <= protocol.N_MOST, protocol.INVALID_N),
        (1 <= batch_size <= protocol.BATCH_MOST, protocol.INVALID_BATCH),
        (name is None or protocol.is_id(name), protocol.INVALID_ID),
    ):
        if not fits:
            raise UsageError(what)

    def new(complain):
        journal = Journal(name or new_id(), n, batch_size, path=None if state is None else os.fsdecode(state),
                          complain=complain)
        journal.claim()
        return journal

    return _fetch_now(new, host, port, False, window, timeout, retry, max_time)


def resume(port, state=STATE, host=HOST, window=WINDOW, timeout=TIMEOUT, retry=0, max_time=None):
    """Goes on with the sequence of a state file; otherwise as `fetch`."""

    def old(complain):
        return load(os.fsdecode(state), complain, claim=True)

    return _fetch_now(old, host, port, True, window, timeout, retry, max_time)


def _fetch_now(open_journal, host, port, resumed, window, timeout, retry, max_time):
    for fits, what in (
        # getaddrinfo would take a port modulo 65,536, and an empty host for this machine.
        (1 <= port <= PORT_MOST, "Invalid port: 1 to %d" % PORT_MOST),
        (host, "Invalid host: it is empty"),
        (window >= 1, "Invalid window: at least 1"),
        (timeout > 0, "Invalid timeout: above 0"),
        (retry >= 0, "Invalid retry: at least 0"),
        (max_time is None or max_time > 0, "Invalid max_time: above 0"),
    ):
        if not fits:
            raise UsageError(what)
    complaints = []
    try:
        journal = open_journal(complaints.append)
    except OSError as error:
        raise UsageError(str(error)) from None
    try:
        if complaints:
            raise UsageError(complaints[0])
        transfer, error = _run(journal, host, port, resumed, window, timeout, retry, max_time)
    finally:
        journal.close()
    if error is not None:
        error.resumable = error.resumable and journal.kept
        raise error
    result = Result(list(journal.numbers), transfer.sum, transfer.checksum, journal.client_id.decode("ascii"))
    if complaints:
        result.state_error = complaints[0]
    return result


def _run(journal, *settings):
    """Runs a Fetch on a loop of its own; returns the Fetch and what it ended with."""
    ended = []
    loop = transfer = None
    try:
        loop = Loop()

        def done(transfer, error):
            ended.append(error)
            loop.stop()

        host, port, resumed, window, timeout, retry, max_time = settings
        transfer = Fetch(loop, host, port, journal, done, resumed, window, timeout, retry, max_time=max_time)
        loop.run()
        return transfer, ended[0]
    except OSError as error:  # too few files, or one that cannot be watched
        return transfer, ConnectionLost(str(error), journal.kept)
    finally:
        if transfer is not None:
            transfer.cancel()
        if loop is not None:
            for watched in list(loop.poller.watched.values()):  # a connection that was still being closed
                watched.abort()
            loop.close()


def endpoints(hosts, port):
    """[(host, port)] of a host or a list of them, as Fetch takes them; raises UsageError."""
    found = []
    for text in [hosts] if isinstance(hosts, str) else hosts:
        try:
            host, own_port = parse_endpoint(text)
        except ValueError as error:
            wrong = "%a is not HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT: %s" % (text, error)
            raise UsageError(wrong) from None
        if (host, own_port or port) not in found:
            found.append((host, own_port or port))
    if not 1 <= len(found) <= HOSTS_MOST:
        raise UsageError("1 to %d hosts" % HOSTS_MOST)
    return found


def new_id():
    """A new client id (bytes): a random UUID, version 4 of RFC 4122."""
    value = bytearray(os.urandom(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    text = "".join(map("{:02x}".format, value))
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])).encode("ascii")
