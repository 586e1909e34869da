"""The server's side of a connection: a state machine over the protocol."""

from . import protocol
from .pipeline import RUN_MOST, answer_receive, answer_receives
from .replies import KeptReplies, Replies, kept_bytes
from .sequence import WHOLE_MOST, Numbers
from .store import EXISTS, FAILED, FULL, MISSING, Record
from .stream import Stream

# The phases of a session.
NEW = "new"  # waiting for INIT or CONT
ASKED = "asked"  # waiting for the store
OPEN = "open"  # the sequence is open
FINISHING = "finishing"  # FIN was received, the checksum is being computed
# The final phases, which name how the session ended.
FINISHED = "finished"  # the FAC was written
REFUSED = "refused"  # an ERR that ends the session was written
TIME_IS_UP = "time is up"  # the session was aborted at its time limit
CLOSED = "closed"  # the peer closed before FIN
RESET = "reset"  # the peer reset the connection
FAILED_INSIDE = "failed"  # another error of the connection or of the server itself
ENDINGS = (FINISHED, REFUSED, TIME_IS_UP, CLOSED, RESET, FAILED_INSIDE)

ID_SHOWN = 8  # characters of a client id in logs
COSTLY = 65536  # input bytes times numbers per batch above which answers (0.5 ms) need the turn's budget

# The ERR for each refusal of the store.
REFUSALS = {
    EXISTS: protocol.ALREADY_EXISTS,
    MISSING: protocol.DOES_NOT_EXIST,
    FULL: protocol.TOO_MANY_CLIENTS,
    FAILED: protocol.STORE_FAILED,
}

# Kinds of ERR in the figures, besides the store's refusals.
NO_SUCH_BATCH, MALFORMED, TOO_MANY_CONNECTIONS = "no_such_batch", "malformed", "too_many_connections"
ERRORS = tuple(REFUSALS) + (NO_SUCH_BATCH, MALFORMED, TOO_MANY_CONNECTIONS)


class Session:
    """One connection and its open sequence: a state machine that answers requests."""

    __slots__ = ("server", "stream", "phase", "client_id", "record", "_replies", "_single", "_timer")

    def __init__(self, server, connection):
        self.server = server
        self.phase = NEW
        self.client_id = None  # bytes, from INIT or CONT on
        self.record = None  # the store's Record, once the sequence is open
        self._replies = None  # Replies, from the first RECV or FIN on
        self._single = 0  # see _single_most
        self._timer = server.loop.call_later(server.session_timeout, Session._time_is_up, self)
        try:
            self.stream = Stream(server.loop, connection, self)
        except BaseException:
            server.loop.cancel(self._timer)
            raise

    # ---- called by the stream

    def received(self, stream):
        """Answers the requests in the stream's input, up to the limits of a turn."""
        if self.phase is OPEN:
            data = stream.input
            if type(data) is bytes and len(data) <= self._single and not stream.ended:
                reply = answer_receive(data, self._replies or self._make_replies())
                if reply is not None:
                    stream.input = b""
                    stream.send(reply)
                    figures = self.server.figures
                    figures.messages += 1
                    figures.numbers += self.record.batch
                    figures.bytes += len(reply)
                    return
            if self._answer_run(stream):
                return
        try:
            self._answer_each(stream)
        except protocol.ProtocolError as error:
            self._refuse(str(error), MALFORMED)

    def closed(self, stream, error):
        self.server.loop.cancel(self._timer)
        self._replies = None  # they refer to this session
        if self in self.server.farewells:  # finished: its place is free, its record released
            self.server.left(self)
            return
        self.server.checksums.drop(self)  # also if the time is up while the checksum is being computed
        if self.phase not in ENDINGS:
            if isinstance(error, (ConnectionResetError, BrokenPipeError)):
                self.phase = RESET
            else:
                self.phase = CLOSED if error is None and stream.ended else FAILED_INSIDE
        self.server.ended(self)

    def _time_is_up(self):
        if self.phase is FINISHED:  # all is said, and may still be on its way
            self.stream.expire()
            return
        if self.phase not in ENDINGS:
            self.phase = TIME_IS_UP
        self.stream.abort()

    def write(self, reply):
        """Sends a reply (bytes)."""
        self.stream.write(reply)
        self.server.figures.count(len(reply))

    # ---- requests

    def _answer_run(self, stream):
        """Answers the run of RECVs at the beginning of the input; returns whether it did or has to wait."""
        began = None
        if self._is_costly(len(stream.input)):
            if not self.server.budget.is_left():
                stream.resume()
                return True
            began = self.server.loop.clock()
        answered = answer_receives(stream.input, self._replies or self._make_replies(), self._run_most())
        if answered is None:
            return False
        answers, taken, count = answered
        stream.write(answers)
        stream.input = stream.input[taken:]
        if stream.input or stream.ended:
            stream.resume()
        figures = self.server.figures
        figures.messages += count
        figures.numbers += count * self.record.batch
        figures.bytes += len(answers)
        if began is not None:
            self.server.budget.spend(began)
        return True

    def _answer_each(self, stream):
        """Answers the requests one by one. Raises ProtocolError."""
        data = bytes(stream.input)
        position = count = 0
        try:
            while position < len(data):
                if count == self.server.messages_most or stream.room() < 0 or self._has_to_wait():
                    stream.resume()
                    return
                end = protocol.find_end(data, position, protocol.LONGEST_REQUEST)
                if end < 0:
                    if stream.ended:
                        raise protocol.ProtocolError(protocol.UNFINISHED)
                    return
                kind, argument = protocol.parse_request(data[position:end])
                answer = ANSWERS[self.phase].get(kind)
                if answer is None:
                    raise protocol.ProtocolError(UNEXPECTED[self.phase])
                position = end + 1
                count += 1
                answer(self, argument)
                if self.phase is not OPEN:  # waiting for the store or the checksum, or over
                    return
        finally:
            stream.input = data[position:]
        if stream.ended:
            stream.close()

    def _init(self, argument):
        client_id, n, batch = argument
        self.client_id = client_id
        self.phase = ASKED
        try:
            seed = self.server.seed(client_id)
        except OSError:  # no random bytes
            self._opened(None, FAILED)
            return
        self.server.requests.create(client_id, Record(seed, n, batch), self._created)
        self._wait_for_store()

    def _created(self, record, refusal):
        if record is not None:
            self.server.figures.created += 1
        self._opened(record, refusal)

    def _cont(self, client_id):
        self.client_id = client_id
        self.phase = ASKED
        self.server.requests.open(client_id, self._opened)
        self._wait_for_store()

    def _wait_for_store(self):
        if self.phase is ASKED:
            self.stream.pause()

    def _opened(self, record, refusal):
        """Called with the store's reply: at once, later, or after the connection was closed."""
        if self.phase is not ASKED:  # the connection was closed
            if record is not None:
                self.server.requests.release(self.client_id)
        elif record is None:
            self._refuse(REFUSALS[refusal].format(self.client_id.decode("ascii")), refusal)
        else:
            self.record = record
            self.phase = OPEN
            self._single = self._single_most()
            self.write(protocol.ACK_MESSAGE)
            if self.stream.paused:
                self.stream.resume()
            self.server.opened(self)

    def _recv(self, index):
        first = index * self.record.batch
        if first >= self.record.n:
            self.server.figures.errors[NO_SUCH_BATCH] += 1
            self.write(protocol.encode_error(protocol.NO_SUCH_BATCH % index))
            return
        began = self.server.loop.clock()
        numbers = self.slice(first, first + self.record.batch)
        self.write(protocol.encode_batch(numbers))
        self.server.figures.numbers += len(numbers)
        self.server.budget.spend(began)

    def _fin(self, argument):
        self.phase = FINISHING
        self.server.checksums.ask(self)
        if self.phase is FINISHING:
            self.stream.pause()

    def finished(self, checksum):
        """Called with the checksum (bytes): sends the FAC and closes."""
        self.write(protocol.encode(protocol.FAC, checksum.hex().encode("ascii")))
        self.phase = FINISHED
        self._replies = None
        # The stream lingers: input after FIN would otherwise reset the connection and destroy the FAC.
        self.stream.close(expect_more=self.server.finished(self))

    def _refuse(self, what, kind):
        """Ends the session with an ERR whose text is `what`; kind is the one of ERRORS to count."""
        self.phase = REFUSED
        self.server.figures.errors[kind] += 1
        self.write(protocol.encode_error(what))
        self.stream.close()

    # ---- numbers

    def _has_to_wait(self):
        """Whether the next request may be costly and the turn's budget is spent."""
        return (self.phase is OPEN and self._is_costly(protocol.LONGEST_REQUEST)
                and not self.server.budget.is_left())

    def _single_most(self):
        """Bytes of input up to which it may be a single request that needs no budget; 0 if each needs it.

        A single request draws a few blocks of numbers, but from a text seed, all of them.
        """
        n, batch, seed = self.record.n, self.record.batch, self.record.seed
        if n > WHOLE_MOST and (batch > WHOLE_MOST or isinstance(seed, str)):
            return 0
        return protocol.LONGEST_REQUEST

    def _is_costly(self, size):
        """Whether answering `size` bytes of input needs the turn's budget."""
        n, batch = self.record.n, self.record.batch
        if n > WHOLE_MOST and (self._replies is None or not self._replies.numbers.are_drawn()):
            return True
        return size * min(n, batch) > COSTLY

    def slice(self, first, last):
        """The numbers first to last - 1 of the sequence (bytes), fewer at its end."""
        return (self._replies or self._make_replies()).numbers.slice(first, last)

    def _make_replies(self):
        """Creates the session's Replies, again if the server has dropped them since the last request."""
        server, n, batch = self.server, self.record.n, self.record.batch
        numbers = Numbers(self.record.seed, n, self._drew)
        size = kept_bytes(n, batch)
        if size and server.may_keep(size):
            self._replies = KeptReplies(numbers, batch, n // batch)
            server.drawn(self, size)
        else:
            self._replies = Replies(numbers, batch)
        return self._replies

    def _drew(self, size):
        self.server.drawn(self, size)

    def _run_most(self):
        """The most RECVs to answer at once: they fill the output to at most twice the high-water mark."""
        longest = self.record.batch * protocol.NUMBER_BYTES
        return min(self.server.loop.output_high // longest + 1, self.server.messages_most, RUN_MOST)

    def undraw(self):
        """Drops the drawn numbers and the replies, because other sessions need the memory."""
        self._replies = None

    def __str__(self):
        """The beginning of the client id, for logs: the whole id is the client's secret."""
        return "-" if self.client_id is None else self.client_id[:ID_SHOWN].decode("ascii")


# The method for each request, by phase; a missing request is an error.
ANSWERS = {
    NEW: {protocol.INIT: Session._init, protocol.CONT: Session._cont},
    OPEN: {protocol.RECV: Session._recv, protocol.FIN: Session._fin},
}
UNEXPECTED = {NEW: protocol.TOO_EARLY, OPEN: protocol.TOO_LATE}  # the ERR for a missing request

LAST_WORD = protocol.encode_error(protocol.TOO_MANY_CONNECTIONS)


class Farewell:
    """A connection above the limit: it gets an ERR and is closed."""

    __slots__ = ("server", "stream")

    def __init__(self, server, connection):
        self.server = server
        self.stream = Stream(server.loop, connection, self)
        self.stream.write(LAST_WORD)
        self.stream.close()
        server.figures.errors[TOO_MANY_CONNECTIONS] += 1
        server.farewells.add(self)  # now that its end is certain

    def received(self, stream):
        """Never called: the stream is closing."""

    def closed(self, stream, error):
        self.server.left(self)
