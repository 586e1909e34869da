"""The server's side of a connection: what is answered when, and what is kept meanwhile."""

from . import protocol, sequence
from .loop import AGAIN, HOLD, Stream
from .store import EXISTS, FAILED, FULL, MISSING, Record

# What ERR says of a store's refusal.
REFUSALS = {
    EXISTS: protocol.ALREADY_EXISTS,
    MISSING: protocol.DOES_NOT_EXIST,
    FULL: protocol.TOO_MANY_CLIENTS,
    FAILED: protocol.STORE_FAILED,
}


class Session:
    """One connection, and what it has open. Its phase follows from what it has."""

    __slots__ = ("server", "stream", "client_id", "record", "_numbers", "_most", "_timer", "_reply", "_held", "_last")

    def __init__(self, server, connection):
        self.server = server
        self.client_id = None  # bytes, once the store was asked for it
        self.record = None  # once the store gave it
        self._numbers = None  # bytes, one a number, once they were needed
        self._reply = None  # what came of asking the store
        self._held = False  # whether the store takes its time
        self._last = None  # once the last reply is made: whether the client is to be heard out
        self.stream = Stream(server.loop, connection, self)
        self._timer = server.loop.call_later(server.session_timeout, self._time_is_up)

    # ---- what the stream calls

    def received(self, stream):
        """Answers the messages that are there, within what a turn may cost, in one write."""
        if self._numbers is not None:
            answered = protocol.answer_receives(stream.input, self._numbers, self.record.batch, self._most)
            if answered is not None:
                answers, taken = answered
                stream.write(answers)
                stream.input = stream.input[taken:]
                return AGAIN if stream.input or stream.ended else None
        replies = []
        then = None
        try:
            then = self._answer_each(stream, replies)
        except protocol.ProtocolError as error:
            self._last = True
            replies.append(protocol.encode_error(str(error)))
        stream.write(b"".join(replies))
        if self._last is not None or (stream.ended and then is None):
            stream.close(expect_more=self._last)
        return then

    def closed(self, stream, error):
        self.server.loop.cancel(self._timer)
        self.stream = None
        self.server.ended(self, error)

    def _time_is_up(self):
        self.stream.abort()

    # ---- messages

    def _answer_each(self, stream, replies):
        """Answers message by message into replies; returns what `received` does. Raises ProtocolError."""
        data = bytes(stream.input)
        position = size = 0
        try:
            while position < len(data):
                if replies and (size > stream.room() or len(replies) == self.server.messages_most):
                    return AGAIN
                end = protocol.find_end(data, position, protocol.LONGEST_REQUEST)
                if end < 0:
                    if stream.ended:
                        raise protocol.ProtocolError(protocol.UNFINISHED)
                    return None
                kind, argument = protocol.parse_request(data[position:end])
                answers = ANSWERS[self.record is not None]
                if kind not in answers:
                    raise protocol.ProtocolError(answers[None])
                position = end + 1
                reply = answers[kind](self, argument)
                if reply is None:
                    return HOLD
                replies.append(reply)
                size += len(reply)
                if self._last is not None:
                    return None
            return None
        finally:
            stream.input = data[position:]

    def _init(self, argument):
        client_id, n, batch = argument
        record = Record(self.server.seed(client_id), n, batch)
        return self._ask(self.server.store.create, client_id, record)

    def _cont(self, client_id):
        return self._ask(self.server.store.open, client_id)

    def _ask(self, method, client_id, *record):
        """Asks the store; returns the reply, or None where the store takes its time."""
        self.client_id = client_id
        self.server.asked += 1
        method(client_id, *record, self._opened)
        self._held = self._reply is None
        return self._reply

    def _opened(self, record, refusal):
        """The store's answer. It may come within the asking, or later, or when the client has gone."""
        self.server.asked -= 1
        if self.stream is None:
            if record is not None:
                self.server.release(self.client_id)
            else:
                self.server.stop_if_drained()
            return
        self.record = record
        if record is None:
            self._last = True
            self._reply = protocol.encode_error(REFUSALS[refusal].format(self.client_id.decode("ascii")))
        else:
            self._reply = protocol.ACK_MESSAGE
            if self.server.tell:
                self.server.tell("%s: open" % self)
        if self._held:
            self.stream.write(self._reply)
            if record is None:
                self.stream.close()
            else:
                self.stream.resume()

    def _recv(self, index):
        first = index * self.record.batch
        if first >= self.record.n:
            return protocol.encode_error(protocol.NO_SUCH_BATCH % index)
        return protocol.encode_batch(self._draw()[first:first + self.record.batch])

    def _fin(self, argument):
        self._last = False
        return protocol.encode(protocol.FAC, sequence.checksum(self._draw()).encode("ascii"))

    def _draw(self):
        if self._numbers is None:
            self._numbers = sequence.draw(self.record.seed, self.record.n)
            # A run of RECVs fills the output to twice its mark at the most.
            longest = self.record.batch * protocol.NUMBER_BYTES
            self._most = min(self.server.loop.output_high // longest + 1, self.server.messages_most, protocol.RUN_MOST)
            self.server.drawn(self, len(self._numbers))
        return self._numbers

    def undraw(self):
        """Gives back what can be drawn again."""
        self._numbers = None

    def __str__(self):
        return "connection" if self.client_id is None else self.client_id.decode("ascii")


# What is answered before a sequence is open, and then; under None, what is wrong with anything else.
ANSWERS = (
    {protocol.INIT: Session._init, protocol.CONT: Session._cont, None: protocol.TOO_EARLY},
    {protocol.RECV: Session._recv, protocol.FIN: Session._fin, None: protocol.TOO_LATE},
)


class Farewell:
    """A connection over the limit, on its way out with the reason."""

    __slots__ = ("server", "stream")

    def __init__(self, server, connection):
        self.server = server
        self.stream = Stream(server.loop, connection, self)
        server.farewells.add(self)
        self.stream.write(protocol.encode_error(protocol.TOO_MANY_CONNECTIONS))
        self.stream.close()

    def received(self, stream):
        """Nothing is, after close()."""

    def closed(self, stream, error):
        self.server.farewells.discard(self)
        self.server.stop_if_drained()
