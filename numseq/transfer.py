"""The client's side: fetches a sequence over as many connections as it takes, and verifies it.

`Fetch` is one fetch on a loop; `fetch` and `resume` block until one is complete. docs/links.md says how a
fetch adapts to slow, long and lossy links.
"""

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
from .window import Window

# ---- defaults and limits

HOST = "127.0.0.1"
HOSTS_MOST = 16  # servers of one fleet
BATCH = 5  # numbers per batch
STATE = "numseq.state"  # state file, in the current directory

# Connecting.
TIMEOUT = 3.0  # seconds of silence, also while connecting, after which a connection is given up
MOMENT = 0.001  # seconds: tolerance when two computed times are compared
PATIENCE_MOST = 4  # timeouts: the limit for connecting, which doubles after each attempt that timed out

# Requests in flight.
WINDOW = 2048  # requests: the default limit where no transcript is shown; their replies are 40 kB
WINDOW_MOST = protocol.N_MOST  # requests: no sequence has more batches

# Retries.
PAUSE_FIRST = 0.05  # seconds between two attempts; doubled after each attempt without progress
PAUSE_MOST = 5.0  # seconds: the longest pause
RETRIES_LEAST = 3  # retries granted even if they take longer than the timeout each

# ---- texts

SAID_MOST = 200  # characters shown of an ERR; the longest of a numseq server has 85
SHOWN_MOST = 60  # bytes shown of input that is not a reply
PLACES_MOST = 4  # addresses named in a message
NUMBER_BYTES = 2.91  # average bytes of a number (0 to 100) and its separator
TIME_OVER = "not complete after %g s"  # message of the ConnectionLost when max_time is over


class Result(collections.namedtuple("Result", ["numbers", "sum", "checksum", "client_id"])):
    """A complete and verified sequence.

    numbers      list of int, 0 to 100
    sum          their sum (int)
    checksum     32 hex digits (text)
    client_id    UUID (text)
    state_error  one line on why the state file could not be written (text), or None
    """

    state_error = None


# The phases of a connection.
CONNECTING = "connecting"
OPENING = "opening"  # waits for the ACK of INIT or CONT
RECEIVING = "receiving"  # waits for batches
FINISHING = "finishing"  # has all batches, and waits for the reply to FIN

# What is known about the sequence at the server.
ABSENT = "absent"
UNKNOWN = "unknown"  # INIT was sent, but not answered
PRESENT = "present"

# Refusals that may pass, and are retried.
PASSING = frozenset([protocol.TOO_MANY_CONNECTIONS, protocol.TOO_MANY_CLIENTS, protocol.STORE_FAILED])
REPLY_TYPES = frozenset([protocol.ACK, protocol.NUM, protocol.FAC, protocol.ERR])


class Observer:
    """Receives the events of a Fetch's connections. These methods do nothing; override those of interest."""

    def connected(self):
        """A connection was established."""

    def sent(self, messages):
        """Whole messages (bytes) were sent."""

    def received(self, data):
        """Input has arrived, or has ended. `data` (bytes) is all unprocessed input, old and new."""

    def lost(self, error):
        """The connection was lost or not made: error is a ConnectionLost, or a Refused that may pass."""


class Fetch:
    """Fetches one sequence, over as many connections as it takes. Any number of fetches can share a loop.

    host      HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT (text), or a list of them: servers of one fleet
    port      port of the hosts without one (int)
    journal   the Journal with the numbers that have arrived so far
    done      done(fetch, error) is called once, at the end; error is a FetchError, or None if the numbers are
              complete and verified
    resume    whether the server has the sequence already (bool)
    window    limit of requests in flight (int)
    timeout   seconds of silence after which a connection is given up
    retry     the fetch is given up after `retry` times `timeout` seconds without progress (int); 0 allows one
              connection
    max_time  seconds from now after which the fetch is given up; None for no limit
    watch     watch(event, detail) is called for each event, see output.TRANSCRIPT. It turns off the fast
              path. A connection then opens with INIT or CONT alone, unless an earlier one was acknowledged
              but received no numbers
    observer  an Observer, which costs less than `watch`
    known     cache of host addresses (a dict), shared by several fetches: see Connector

    Raises UsageError for a malformed host.
    """

    def __init__(self, loop, host, port, journal, done, resume=False, window=WINDOW, timeout=TIMEOUT, retry=0,
                 watch=None, observer=None, known=None, max_time=None):
        self.loop = loop
        self.journal = journal
        self.checksum = None  # the server's (text), once complete
        self.sum = None  # sum of the numbers (int), once complete
        self.drops = 0  # connections lost
        self.phase = CONNECTING  # of the latest connection
        self._endpoints = endpoints(host, port)  # in the order in which they are tried
        self._known = {} if known is None else known
        self._done = done
        self._sequence = PRESENT if resume else ABSENT
        self._init_lost = False  # whether an earlier INIT may still be carried out
        self._window = Window(window, journal.total())
        self._timeout = timeout
        self._patience = timeout  # seconds allowed for connecting, and later without input
        self._retry = retry
        self._watch = watch
        self._observer = observer or Observer()
        self._eager = watch is None  # whether a connection opens with its whole first flight
        self._end_timer = None if max_time is None else loop.call_later(
            max_time, lambda: self._run_out(max_time))
        self._failures = 0  # consecutive connections without progress
        self._failing_since = None  # time of the first of these attempts; None once a batch has arrived
        self._progress = False  # whether any batch has arrived
        self._made = self._acknowledged = 0  # connections
        self._place = None  # HOST:PORT of the latest one (text)
        self._link = None  # a Connector or a Stream; None between connections and at the end
        self._timer = None  # ends a silent connection, or the pause before the next one
        self._begun = 0.0  # time of the start of the attempt to connect
        self._heard = 0.0  # time of the last input, or of connecting if there was none
        self._opened_with = None  # INIT or CONT
        self._fin_sent = False
        self._second = None  # timer that sends the rest of the first flight
        self._searched = 0  # bytes of the stream's input already searched for `;`
        self._connect()

    def cancel(self):
        """Ends the fetch without calling `done`. The numbers that have arrived stay in the journal."""
        self.loop.cancel(self._end_timer)
        self._unlink()
        self.journal.close()

    # ---- connections

    def _connect(self):
        self._begun = self.loop.now
        if self._failing_since is None:
            self._failing_since = self._begun
        self.phase = CONNECTING
        self._fin_sent = False
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
        """Gives the attempt up when its time is over, without the look-up, which has a limit of its own."""
        since = self._link.since  # None during the look-up
        due = (self.loop.now if since is None else since) + self._patience
        if due > self.loop.now:
            self._timer = self.loop.call_at(due, self._check_connecting)
        else:
            text = self._unconnected("no answer for %g s" % self._patience)
            # The round trip may just be longer than that.
            self._patience = min(self._patience * 2, self._timeout * min(PATIENCE_MOST, max(self._retry, 1)))
            self._lost(ConnectionLost(text, cause=TimeoutError()))

    def _check_silence(self):
        due = self._heard + self._patience
        if due > self.loop.now:
            self._timer = self.loop.call_at(due, self._check_silence)
        else:
            self._lost(ConnectionLost("no answer for %g s" % self._patience, cause=TimeoutError()))

    def connected(self, stream):
        self._observer.connected()
        connector, self._link = self._link, stream
        self._made += 1
        self._heard = self.loop.now
        round_trip = self.loop.now - connector.since
        self._window.connected(self.loop.now, round_trip, self.journal.batches())
        self._patience = max(self._timeout, 2 * round_trip)
        self.loop.cancel(self._timer)
        self._timer = self.loop.call_later(self._patience, self._check_silence)
        (endpoint, _), = connector.tried  # only the one that answered is left
        self._place = format_endpoint(*endpoint)
        self._endpoints.sort(key=lambda each: each != endpoint)  # tried first on the next connection
        self._open()

    def closed(self, stream, error):
        if self._link is not None:  # else this side closed it
            text = str(error) if error else "The server closed the connection"
            self._lost(ConnectionLost(text if stream is not None else self._unconnected(text), cause=error))

    def _unconnected(self, reason):
        """The message of a ConnectionLost where no connection was made (text)."""
        tried = self._link.tried or [(endpoint, endpoint) for endpoint in self._endpoints]
        places = [format_endpoint(*endpoint) + (" (%s)" % address[0] if address[0] != endpoint[0] else "")
                  for endpoint, address in tried]
        shown = places[:PLACES_MOST] + ["..."] * (len(places) > PLACES_MOST)
        return "cannot connect to %s: %s" % (", ".join(shown), reason)

    def _lost(self, error):
        """The connection is lost or useless: schedules the next one, or ends the fetch."""
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
        if self._failing_since is not None and self.phase is not CONNECTING:
            self._change_server()
        self._timer = self.loop.call_later(self._pause(), self._connect)
        self._failures += 1

    def _learn(self):
        """Adapts the next connection to what this one brought."""
        if self.phase is CONNECTING:
            self._known.clear()  # the addresses may have changed
            return
        self._window.lost(self.loop.now, self.journal.batches(), self.loop.now - self._heard)
        if self._failing_since is not None and self.phase is not OPENING:
            self._eager = True  # requests sent after the ACK may come too late for the session

    def _change_server(self):
        """After a connection that brought nothing: next server first, and this one's next address later."""
        endpoint = self._endpoints.pop(0)
        self._endpoints.append(endpoint)
        if self.phase is OPENING:
            found = self._known.get(endpoint, [])
            self._known[endpoint] = found[1:] + found[:1]

    def _may_retry(self):
        """Whether a retry is left. Each stands for `timeout` seconds, the time of a silent connection.

        The last one starts when the time of all retries is over, so they outlast any shorter outage.
        """
        if self._failing_since is None or self._failures < min(self._retry, RETRIES_LEAST):
            return self._retry > 0
        return self._begun < self._last_retry() - MOMENT

    def _last_retry(self):
        """When the last retry starts, if none before brings a batch (seconds on the loop's clock)."""
        return self._failing_since + self._retry * self._timeout

    def _pause(self):
        """Seconds until the next attempt: exponential backoff, but no later than the last retry.

        It is measured from the start of one attempt to the start of the next, so there is hardly any pause
        after a timeout. Jitter keeps the clients of a restarted server apart.
        """
        pause = min(PAUSE_FIRST * 2 ** min(self._failures, 32), PAUSE_MOST)
        pause = max(self._begun + pause - self.loop.now, PAUSE_FIRST) * jitter()
        left = self._last_retry() - self.loop.now if self._failing_since is not None else 0.0
        return min(pause, left) if left > 0 else pause

    def _diagnosis(self, error):
        """The error to report; if no connection brought a batch, it says how far they came."""
        if not isinstance(error, ConnectionLost) or self._progress or not self._made:
            return error
        left = min(self.journal.batch, self.journal.n - len(self.journal.numbers))
        if not self._acknowledged:
            text = "connected to %s, but never acknowledged: %s" % (self._place, error)
            return ConnectionLost(text, error.resumable, error.cause)
        if self._acknowledged < 2 or not left:
            return error
        text = ("acknowledged %d times by %s, but no batch of about %d bytes ever arrived whole: take a "
                "smaller --batch_size, or a longer --session-timeout at the server (%s)"
                % (self._acknowledged, self._place, len("NUM,;") + left * NUMBER_BYTES, error))
        advice = ConnectionLost(text, cause=error.cause)
        advice.advises = True
        return advice

    def _run_out(self, max_time):
        """Ends the fetch because `max_time` is over."""
        error = ConnectionLost(TIME_OVER % max_time, self._sequence is PRESENT, TimeoutError())
        if self._watch:
            self._watch("error", str(error))
        self._end(error)

    def _end(self, error):
        self.cancel()
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
            self._window.answered(self.loop.now, self.journal.batches())
            self.journal.flush()
        if error is not None:
            self._fail(error)
        elif self._link is stream:
            if self.phase is RECEIVING:
                self._request()
            if stream.ended:
                self.closed(stream, None)

    def _read_run(self, stream):
        """The fast path: takes all full batches at the beginning of the input at once."""
        if self.phase is not RECEIVING or self._watch:
            return
        journal = self.journal
        most = min(self._window.next_batch, journal.n // journal.batch) - journal.batches()
        run = split_numbers(stream.input, journal.batch, most) if most > 0 else None
        if run is not None:
            numbers, taken = run
            journal.numbers += numbers
            stream.input = stream.input[taken:]
            self._searched = 0
            self._check_complete()

    def _read_each(self, stream):
        """Takes the replies one by one. Raises ProtocolError, ProtocolBroken and Refused."""
        data = stream.input
        position = 0
        if self.phase is OPENING:
            self._require_server(data)
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
                expected, take = REPLIES[self.phase]
                if kind != expected:
                    raise protocol.ProtocolError("unexpected reply")
                take(self, content)
        finally:
            if position:
                stream.input = data[position:]

    def _require_server(self, data):
        """Raises ProtocolBroken if the first input of a connection (bytes) cannot be a reply."""
        if not any(kind.startswith(bytes(data[:3])) for kind in REPLY_TYPES):
            line = bytes(data[:SHOWN_MOST]).partition(b"\n")[0].rstrip(b"\r")
            text = "no numseq server: it says %s" % protocol.printable(line)
            raise ProtocolBroken(text, self._sequence is PRESENT)

    def _take_ack(self, content):
        self.phase = RECEIVING
        self._acknowledged += 1
        self.journal.begin()
        self._sequence = PRESENT
        if self._watch:
            self._watch("requesting", "")
            for index in range(self.journal.batches()):
                self._watch("skipping", index)
        self._check_complete()

    def _take_numbers(self, numbers):
        journal = self.journal
        index = journal.batches()
        if index == self._window.next_batch:
            raise protocol.ProtocolError("unexpected reply")
        expected = min(journal.batch, journal.n - len(journal.numbers))
        if len(numbers) != expected:
            raise protocol.ProtocolError("%d numbers in batch %d, which has %d"
                                         % (len(numbers), index, expected))
        journal.numbers += numbers
        self._check_complete()

    def _check_complete(self):
        if self.phase is RECEIVING and self._fin_sent and len(self.journal.numbers) == self.journal.n:
            self.phase = FINISHING

    def _take_checksum(self, checksum):
        self.checksum = checksum
        self.sum = sum(self.journal.numbers)
        if self._watch:
            self._watch("closing", "")
        link, self._link = self._link, None  # so that it is not aborted
        link.close(expect_more=False)
        error = None
        if sequence.checksum(bytes(self.journal.numbers)) != checksum:
            error = ChecksumMismatch("Checksum (%s) is not valid!" % checksum, resumable=True)
            self.journal.drop_numbers()
        self._end(error)

    # ---- requests

    def _open(self):
        """Sends INIT or CONT and, where `_eager`, the first flight without waiting for the ACK."""
        journal = self.journal
        self.phase = OPENING
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
        else:
            lead = self._window.lead(len(opening))
            self._request(opening, lead)
            if lead is not None:
                # At the end of the turn, so that it goes in a segment of its own.
                self._second = self.loop.call_later(0, self._request)

    def _request(self, opening=b"", most=None):
        """Sends `opening` and the requests for which the window has room; FIN follows the last one."""
        have, total = self.journal.batches(), self.journal.total()
        messages = opening + protocol.encode_receives(*self._window.fill(self.loop.now, have, most))
        if self._window.next_batch == total and not self._fin_sent and (self._eager or have == total):
            self._fin_sent = True
            messages += protocol.FIN_MESSAGE
            self._check_complete()
        if messages:
            self._send(messages)

    def _send(self, messages):
        if self._watch:
            for message in messages.split(b";")[:-1]:
                self._watch("sending", protocol.printable(message) + ";")
        self._observer.sent(messages)
        self._link.write(messages)

    def _fail(self, error):
        """Handles a refusal or a broken protocol: ends the fetch, unless another connection can help."""
        text, client_id = str(error), self.journal.client_id.decode("ascii")
        opening, new = self.phase is OPENING, self._opened_with is protocol.INIT
        if opening and not new and text == protocol.DOES_NOT_EXIST.format(client_id):
            self._recreate(client_id)
        elif opening and text in PASSING and self._may_retry():
            if new and text != protocol.STORE_FAILED:
                self._sequence = ABSENT  # a store that failed may have created it nevertheless
            self._lost(error)
        elif (new and self._init_lost and text == protocol.ALREADY_EXISTS.format(client_id)
                and self._may_retry()):
            self._sequence = PRESENT  # by an earlier INIT, which the store carried out late
            self._lost(error)
        else:
            if self._watch and not isinstance(error, Refused):
                self._watch("error", text)
            self._end(error)

    def _recreate(self, client_id):
        """After a CONT that got DOES_NOT_EXIST: sends INIT again if that is safe, or ends the fetch."""
        if self._sequence is UNKNOWN:
            self._sequence = ABSENT  # the unanswered INIT has not arrived, or not yet
            self._init_lost = True
            self._unlink()
            self._connect()
        else:
            forgotten = Forgotten("the server has forgotten the sequence %s: begin with NEW" % client_id)
            forgotten.advises = self._acknowledged > 0  # else the transcript's one ERR says enough
            self._end(forgotten)


# The reply expected in each phase, and the method that takes it. ERR is possible in all phases.
REPLIES = {
    OPENING: (protocol.ACK, Fetch._take_ack),
    RECEIVING: (protocol.NUM, Fetch._take_numbers),
    FINISHING: (protocol.FAC, Fetch._take_checksum),
}


def shown(message):
    """A server's message (bytes) as printable text: a NUM in full, others up to SAID_MOST characters."""
    text = protocol.printable(message)
    return text if message.startswith(b"NUM,") and not message[4:].strip(b"0123456789:") else shortened(text)


def shortened(text):
    """The first SAID_MOST characters of a text from the peer."""
    return text if len(text) <= SAID_MOST else text[:SAID_MOST] + "..."


# ---- the blocking interface


def fetch(n, port, host=HOST, batch_size=BATCH, client_id=None, state=None, window=WINDOW, timeout=TIMEOUT,
          retry=0, max_time=None):
    """Fetches a new sequence of n numbers (0 to 65,535) from the server at port; returns once it is verified.

    host        HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT (text, ASCII), or a list of them: servers of one
                fleet
    batch_size  numbers per message (1 to 65,535)
    client_id   the UUID (text) under which the server keeps the sequence; by default a new one
    state       path of a state file, from which `resume` can go on; by default there is none
    window      limit of requests in flight (int)
    timeout     seconds of silence after which a connection is given up, also while connecting
    retry       the fetch outlasts outages of up to `retry` times `timeout` seconds (int); 0 allows one
                connection
    max_time    limit of the whole fetch in seconds; by default there is none

    Returns a Result. If the state file could not be written to the end, its `state_error` says why; one that
    cannot be written at all is a UsageError before anything is sent.

    Raises UsageError, Refused, ConnectionLost, ProtocolBroken or ChecksumMismatch. All of them are
    FetchErrors, whose `resumable` says whether `resume` can go on.

    Blocks, on a loop of its own, and can be called in any thread. Nothing stays open afterwards. To run many
    fetches at once, use Fetch.
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

    return _fetch_now(new, host, port, window, timeout, retry, max_time)


def resume(port, state=STATE, host=HOST, window=WINDOW, timeout=TIMEOUT, retry=0, max_time=None):
    """Continues the sequence of a state file (its path). Everything else is as in `fetch`."""

    def old(complain):
        return load(os.fsdecode(state), complain, claim=True)

    return _fetch_now(old, host, port, window, timeout, retry, max_time, resume=True)


def _fetch_now(open_journal, host, port, window, timeout, retry, max_time, resume=False):
    for fits, what in (
        # Without these checks, getaddrinfo takes a port modulo 65,536, and an empty host as this machine.
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
        transfer, error = _run(host, port, journal, resume=resume, window=window, timeout=timeout,
                               retry=retry, max_time=max_time)
    finally:
        journal.close()
    if error is not None:
        error.resumable = error.resumable and journal.kept
        raise error
    result = Result(list(journal.numbers), transfer.sum, transfer.checksum, journal.client_id.decode("ascii"))
    if complaints:
        result.state_error = complaints[0]
    return result


def _run(host, port, journal, **options):
    """Runs a Fetch on a loop of its own; returns (the Fetch or None, the FetchError or None)."""
    ended = []
    loop = transfer = None
    try:
        loop = Loop()

        def done(transfer, error):
            ended.append(error)
            loop.stop()

        transfer = Fetch(loop, host, port, journal, done, **options)
        loop.run()
        return transfer, ended[0]
    except OSError as error:  # no more file descriptors, or one that the selector cannot watch
        return transfer, ConnectionLost(str(error), journal.kept)
    finally:
        if transfer is not None:
            transfer.cancel()
        if loop is not None:
            for watched in list(loop.poller.watched.values()):  # connections that are still closing
                watched.abort()
            loop.close()


def endpoints(hosts, port):
    """[(host, port)] of one host or a list of them (text, as for Fetch), without duplicates.

    Hosts without a port get `port`. Raises UsageError.
    """
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


def jitter():
    """A random factor (float) from 0.5 to 1, without the module random, which a small build may lack."""
    return (257 + os.urandom(1)[0]) / 512


def new_id():
    """A new client id (bytes): a random UUID, version 4 of RFC 4122."""
    value = bytearray(os.urandom(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    text = "".join(map("{:02x}".format, value))
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])).encode("ascii")
