"""The client's side: fetches a sequence over as many connections as it takes, and verifies it."""

import collections
import os
import random

from . import protocol, sequence
from .errors import ChecksumMismatch, ConnectionLost, FetchError, ProtocolBroken, Refused, UsageError
from .journal import Journal, load
from .loop import Loop
from .pipeline import split_numbers
from .stream import PORT_MOST, connect

HOST = "127.0.0.1"
BATCH = 5  # numbers in a batch
STATE = "numseq.state"  # the file in the current directory that CONTINUE reads
TIMEOUT = 3.0  # seconds of silence, also while connecting, after which a connection is given up
WINDOW = 1024  # requests in flight where nobody reads a transcript: as many as the server answers in a turn
WINDOW_MOST = protocol.N_MOST  # there are no more batches
PAUSE_FIRST = 0.05  # seconds before the first retry, doubled for each one that follows without progress
PAUSE_MOST = 5.0  # seconds

Result = collections.namedtuple("Result", ["numbers", "sum", "checksum", "client_id"])

# The phases of a connection.
OPENING = "opening"  # INIT or CONT is to be acknowledged
RECEIVING = "receiving"  # batches are missing
FINISHING = "finishing"  # FIN is to be answered

# What is known of the sequence at the server.
ABSENT = "absent"
UNKNOWN = "unknown"  # an INIT was sent, but not answered
PRESENT = "present"


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

    journal   the Journal with what has arrived so far
    done      done(fetch, error) is called once, when the fetch is over; error is a FetchError, or None when
              the numbers are complete and verified
    resume    whether the server has the sequence already (bool)
    window    requests in flight, at most
    timeout   seconds of silence after which a connection is given up
    retry     retries without progress before the fetch is given up
    watch     watch(event, detail) is called for each event: see output.TRANSCRIPT. It excludes the fast path.
    observer  told of each connection, at little cost: see Observer
    """

    def __init__(self, loop, host, port, journal, done, resume=False, window=WINDOW, timeout=TIMEOUT, retry=0,
                 watch=None, observer=None):
        self.loop = loop
        self.journal = journal
        self.checksum = None  # the server's, at the end
        self.sum = None  # of the numbers, at the end
        self.drops = 0  # connections lost
        self._address = host, port
        self._done = done
        self._sequence = PRESENT if resume else ABSENT
        self._window = max(window, 1)
        self._timeout = timeout
        self._retry = retry
        self._watch = watch
        self._observer = observer or Observer()
        self._failures = 0  # in a row, without progress
        self._link = None  # a Connector or a Stream; None between connections and at the end
        self._timer = None
        self._heard = 0.0  # when the link was made, or the server was last heard
        self._phase = OPENING
        self._next_batch = 0  # the first batch not yet requested on this connection
        self._searched = 0  # bytes of the stream's input already searched for `;`
        self._connect()

    def cancel(self):
        """Ends the fetch without calling `done`. What has arrived stays in the journal."""
        self._unlink()
        self.journal.close()

    # ---- connections

    def _connect(self):
        self._heard = self.loop.now
        self._phase = OPENING
        self._searched = 0
        self._timer = self.loop.call_later(self._timeout, self._check_silence)
        try:
            self._link = connect(self.loop, *self._address, handler=self)
        except OSError as error:  # of the look-up
            self.loop.cancel(self._timer)
            lost = ConnectionLost(str(error), cause=error)
            self._timer = self.loop.call_later(0, lambda: self._lost(lost))  # once the caller has this object

    def _unlink(self):
        self.loop.cancel(self._timer)
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    def _check_silence(self):
        if self._heard + self._timeout > self.loop.now:
            self._timer = self.loop.call_at(self._heard + self._timeout, self._check_silence)
        else:
            self._lost(ConnectionLost("no answer for %g s" % self._timeout, cause=TimeoutError()))

    @property
    def phase(self):
        """What the connection waits for: OPENING, RECEIVING or FINISHING."""
        return self._phase

    def connected(self, stream):
        self._observer.connected()
        self._link = stream
        self._heard = self.loop.now
        if self._sequence is ABSENT:
            self._sequence = UNKNOWN
            self._send(protocol.encode(protocol.INIT, self.journal.client_id, b"%d" % self.journal.n,
                                       b"%d" % self.journal.batch))
        else:
            self._send(protocol.encode(protocol.CONT, self.journal.client_id))

    def closed(self, stream, error):
        if self._link is not None:  # not closed by this side
            text = str(error) if error else "The server closed the connection"
            self._lost(ConnectionLost(text, cause=error))

    def _lost(self, error):
        """The connection is gone or useless: retries, or ends."""
        self._observer.lost(error)
        self._unlink()
        self.drops += 1
        error.resumable = self._sequence is PRESENT
        if self._watch:
            self._watch("error", str(error))
        if self._failures >= self._retry:
            self._end(error)
            return
        pause = min(PAUSE_FIRST * 2 ** min(self._failures, 32), PAUSE_MOST)
        self._failures += 1
        # Jitter, or all clients of a server that was away come back at once.
        self._timer = self.loop.call_later(pause * random.uniform(0.5, 1), self._connect)

    def _end(self, error):
        self._unlink()
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
            self.journal.flush()
        if error is not None:
            self._fail(error)
        elif self._link is stream:
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

    def _read_each(self, stream):
        """Takes reply by reply. Raises ProtocolError and Refused."""
        data = stream.input
        position = 0
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
                    self._watch("received", protocol.printable(message) + ";")
                kind, content = protocol.parse_reply(message)
                if kind == protocol.ERR:
                    raise Refused(content)
                expected, take = REPLIES[self._phase]
                if kind != expected:
                    raise protocol.ProtocolError("unexpected reply")
                take(self, content)
        finally:
            if position:
                stream.input = data[position:]

    def _take_ack(self, content):
        self._phase = RECEIVING
        self._next_batch = self.journal.batches()
        if not self.journal.is_open():
            self.journal.begin()
        self._sequence = PRESENT
        if self._watch:
            self._watch("requesting", "")
            for index in range(self._next_batch):
                self._watch("skipping", index)

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

    def _request(self):
        """Once half of the window is free, requests batches to fill it; sends FIN when all have arrived."""
        if self._phase is not RECEIVING:
            return
        have, total = self.journal.batches(), self.journal.total()
        if have == total:
            self._phase = FINISHING
            self._send(protocol.FIN_MESSAGE)
        elif (self._next_batch - have) * 2 <= self._window:
            first, self._next_batch = self._next_batch, min(have + self._window, total)
            self._send(protocol.encode_receives(first, self._next_batch))

    def _send(self, messages):
        if self._watch:
            for message in messages.split(b";")[:-1]:
                self._watch("sending", protocol.printable(message) + ";")
        self._observer.sent(messages)
        self._link.write(messages)

    def _fail(self, error):
        """A reply that ends the fetch, unless another connection can help."""
        does_not_exist = protocol.DOES_NOT_EXIST.format(self.journal.client_id.decode("ascii"))
        if self._sequence is UNKNOWN and str(error) == does_not_exist:
            self._sequence = ABSENT  # the INIT that was not answered has not arrived either
            self._unlink()
            self._connect()
        elif str(error) == protocol.TOO_MANY_CONNECTIONS and self._failures < self._retry:
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


# ---- as a library


def fetch(n, port, host=HOST, batch_size=BATCH, client_id=None, state=None, window=WINDOW, timeout=TIMEOUT,
          retry=0):
    """Fetches a new sequence of n numbers (0 to 65,535) from the server at port, and verifies it.

    host        name or address (text, ASCII)
    batch_size  numbers in a message (1 to 65,535)
    client_id   the UUID (text) under which the server keeps the sequence; by default a new one
    state       path of a file from which `resume` can go on; by default there is none
    window      requests in flight, at most
    timeout     seconds of silence after which a connection is given up, also while connecting
    retry       retries without progress before the fetch is given up

    Returns a Result: numbers (list of int, 0 to 100), sum (int), checksum (32 hex digits), client_id (text).
    Raises UsageError, Refused, ConnectionLost, ProtocolBroken or ChecksumMismatch, all of them FetchErrors,
    whose `resumable` says whether `resume` can go on. It blocks and runs a loop of its own; for many at once
    see Fetch.
    """
    name = new_id() if client_id is None else str(client_id).encode("ascii", "replace")
    for fits, what in (
        (0 <= n <= protocol.N_MOST, protocol.INVALID_N),
        (1 <= batch_size <= protocol.BATCH_MOST, protocol.INVALID_BATCH),
        (protocol.is_id(name), protocol.INVALID_ID),
    ):
        if not fits:
            raise UsageError(what)
    return _fetch_now(Journal(name, n, batch_size, path=state), host, port, False, window, timeout, retry)


def resume(port, state=STATE, host=HOST, window=WINDOW, timeout=TIMEOUT, retry=0):
    """Goes on with the sequence of a state file; otherwise as `fetch`."""
    return _fetch_now(load(state), host, port, True, window, timeout, retry)


def _fetch_now(kept, host, port, resumed, window, timeout, retry):
    if not 1 <= port <= PORT_MOST:  # getaddrinfo would take it modulo 65,536
        raise UsageError("Invalid port: 1 to %d" % PORT_MOST)
    loop = Loop()
    errors = []

    def done(fetch, error):
        errors.append(error)
        loop.stop()

    try:
        transfer = Fetch(loop, host, port, kept, done, resumed, window, timeout, retry)
        try:
            loop.run()
        finally:
            transfer.cancel()
    finally:
        loop.close()
    error = errors[0]
    if error is not None:
        error.resumable = error.resumable and kept.kept
        raise error
    return Result(list(kept.numbers), transfer.sum, transfer.checksum, kept.client_id.decode("ascii"))


def new_id():
    """A new client id (bytes): a random UUID, version 4 of RFC 4122."""
    value = bytearray(os.urandom(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    text = "".join(map("{:02x}".format, value))
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])).encode("ascii")
