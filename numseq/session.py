"""The server's side of a connection: a state machine over the protocol."""

from . import protocol
from .pipeline import RUN_MOST, answer_receives
from .sequence import Numbers
from .store import EXISTS, FAILED, FULL, MISSING, Record
from .stream import Stream

# The phases of a session.
NEW = "new"  # neither INIT nor CONT has come yet
ASKED = "asked"  # the store was asked for the sequence
OPEN = "open"  # the sequence is there
FINISHING = "finishing"  # FIN has come, and its checksum is being made
OVER = "over"  # the last reply is written

# What ERR says of a store's refusal.
REFUSALS = {
    EXISTS: protocol.ALREADY_EXISTS,
    MISSING: protocol.DOES_NOT_EXIST,
    FULL: protocol.TOO_MANY_CLIENTS,
    FAILED: protocol.STORE_FAILED,
}


class Session:
    """One connection, and the sequence that it has open."""

    __slots__ = ("server", "stream", "phase", "client_id", "record", "_numbers", "_run_most", "_timer")

    def __init__(self, server, connection):
        self.server = server
        self.phase = NEW
        self.client_id = None  # bytes, once it is known
        self.record = None  # the store's, while it is open here
        self._numbers = None  # Numbers, once they are asked for
        self.stream = Stream(server.loop, connection, self)
        self._timer = server.loop.call_later(server.session_timeout, self._time_is_up)

    # ---- called by the stream

    def received(self, stream):
        """Answers the requests in the stream's input, as many as a turn may take."""
        if self.phase is OPEN:
            answered = answer_receives(stream.input, self._draw(), self.record.batch, self._run_most)
            if answered is not None:
                answers, taken = answered
                stream.write(answers)
                stream.input = stream.input[taken:]
                if stream.input or stream.ended:
                    stream.resume()
                return
        try:
            self._answer_each(stream)
        except protocol.ProtocolError as error:
            self._refuse(str(error))

    def closed(self, stream, error):
        self.server.loop.cancel(self._timer)
        if self.phase is FINISHING:
            self.server.checksums.drop(self)
        self.phase = OVER
        self.server.ended(self, error)

    def _time_is_up(self):
        self.stream.abort()

    # ---- requests

    def _answer_each(self, stream):
        """Answers request by request; raises ProtocolError."""
        data = bytes(stream.input)
        position = count = 0
        try:
            while position < len(data):
                if count == self.server.messages_most or stream.room() < 0:
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
                if self.phase is not OPEN:  # the reply takes its time, or the session is over
                    return
        finally:
            stream.input = data[position:]
        if stream.ended:
            stream.close()

    def _init(self, argument):
        client_id, n, batch = argument
        self.client_id = client_id
        self.phase = ASKED
        self.server.requests.create(client_id, Record(self.server.seed(client_id), n, batch), self._opened)
        self._wait_for_store()

    def _cont(self, client_id):
        self.client_id = client_id
        self.phase = ASKED
        self.server.requests.open(client_id, self._opened)
        self._wait_for_store()

    def _wait_for_store(self):
        if self.phase is ASKED:
            self.stream.pause()

    def _opened(self, record, refusal):
        """The store's reply: at once, later, or after the client has gone."""
        if self.phase is OVER:
            if record is not None:
                self.server.requests.release(self.client_id)
        elif record is None:
            self._refuse(REFUSALS[refusal].format(self.client_id.decode("ascii")))
        else:
            self.record = record
            self.phase = OPEN
            self.stream.write(protocol.ACK_MESSAGE)
            if self.stream.paused:
                self.stream.resume()
            self.server.opened(self)

    def _recv(self, index):
        first = index * self.record.batch
        if first >= self.record.n:
            self.stream.write(protocol.encode_error(protocol.NO_SUCH_BATCH % index))
        else:
            self.stream.write(protocol.encode_batch(self.slice(first, first + self.record.batch)))

    def _fin(self, argument):
        self.phase = FINISHING
        self.server.checksums.ask(self)
        if self.phase is FINISHING:
            self.stream.pause()

    def finished(self, checksum):
        """The checksum (bytes) is there."""
        self.phase = OVER
        self.stream.write(protocol.encode(protocol.FAC, checksum.hex().encode("ascii")))
        self.stream.close(expect_more=False)

    def _refuse(self, what):
        """Ends the session with the ERR that says what is wrong (text)."""
        self.phase = OVER
        self.stream.write(protocol.encode_error(what))
        self.stream.close()

    # ---- numbers

    def slice(self, first, last):
        """The numbers first to last - 1 of the sequence, as far as there are any."""
        return self._draw().slice(first, last)

    def _draw(self):
        if self._numbers is None:
            self._numbers = Numbers(self.record.seed, self.record.n)
            # A run of RECVs fills the output to twice the high-water mark at most.
            longest = self.record.batch * protocol.NUMBER_BYTES
            self._run_most = min(self.server.loop.output_high // longest + 1, self.server.messages_most,
                                 RUN_MOST)
            self.server.drawn(self, self.record.n)
        return self._numbers

    def undraw(self):
        """Drops the numbers that are drawn, because others need the memory."""
        self._numbers = None

    def __str__(self):
        return "connection" if self.client_id is None else self.client_id.decode("ascii")


# What answers which request in which phase; a missing one is an error.
ANSWERS = {
    NEW: {protocol.INIT: Session._init, protocol.CONT: Session._cont},
    OPEN: {protocol.RECV: Session._recv, protocol.FIN: Session._fin},
}
UNEXPECTED = {NEW: protocol.TOO_EARLY, OPEN: protocol.TOO_LATE}  # what ERR says then


class Farewell:
    """A connection above the limit: told so, and closed."""

    __slots__ = ("server", "stream")

    def __init__(self, server, connection):
        self.server = server
        self.stream = Stream(server.loop, connection, self)
        server.farewells.add(self)
        self.stream.write(protocol.encode_error(protocol.TOO_MANY_CONNECTIONS))
        self.stream.close()

    def received(self, stream):
        """Never called: the stream is closing."""

    def closed(self, stream, error):
        self.server.farewells.discard(self)
        self.server.stop_if_drained()
