#!/usr/bin/env python3
"""The server: keeps each client's sequence for a while, and hands it out over connections that drop.

    python numseq/server.py 5000
"""

if __name__ == "__main__" and not __package__:  # run as a file: let the package be found, and run it from there
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from numseq.server import main

    sys.exit(main())

import os
import signal
import sys

from . import console, protocol, sequence
from .loop import AGAIN, HOLD, OUTPUT_HIGH, READ_SIZE, Loop, Stream
from .store import CLIENTS_MOST, EXISTS, FAILED, FULL, MISSING, RETENTION, MemoryStore, Record

SESSION_TIMEOUT = 1.0  # seconds a connection lives from its accept
CONNECTIONS_MOST = 16384  # at once, where the limit of open files allows it: 1,500 bytes each, 25 MB
MESSAGES_MOST = 1024  # requests answered a turn and connection, 2 ms of them at the slowest
FILES_RESERVED = 16  # standard streams, selector, signals, listeners, and some to spare
FAREWELLS_MOST = 32  # connections over the limit that are being told so; more are cut off without a word
DRAWN_MOST = 32 * 1024 * 1024  # bytes of numbers drawn for connections, one each; beyond, the oldest are given up
DRAWN_SMALL = 2048  # bytes of a sequence that is not counted: CONNECTIONS_MOST of them are as much again

# What ERR says of a store's refusal.
REFUSALS = {
    EXISTS: protocol.ALREADY_EXISTS,
    MISSING: protocol.DOES_NOT_EXIST,
    FULL: protocol.TOO_MANY_CLIENTS,
    FAILED: protocol.STORE_FAILED,
}


class Server:
    """Accepts connections on the loop, and gives each a Session.

    tell(text), where it is given, takes a line for each thing that happens.
    """

    def __init__(self, loop, store, tell=None, session_timeout=SESSION_TIMEOUT, connections_most=None,
                 messages_most=MESSAGES_MOST, test_mode=False):
        self.loop = loop
        self.store = store
        self.tell = tell
        self.session_timeout = session_timeout
        self.connections_most = connections_most or connections_limit(loop)
        self.messages_most = messages_most
        self.sessions = set()
        self.farewells = set()
        self._listeners = []
        self._test_mode = test_mode
        self._drawn = {}  # from session to bytes, in the order in which they were drawn
        self._drawn_bytes = 0
        self.asked = 0  # what the store was asked for and has not answered yet

    def listen(self, host, port):
        """Listens on every address of host (text; ASCII) and port; returns the addresses. Raises OSError."""
        self._listeners = self.loop.listen(host, port, self._accepted)
        return [listener.address for listener in self._listeners]

    def drain(self):
        """Stops accepting, lets the sessions that run end within their time, and then stops the loop.

        Called again, it stops the loop at once.
        """
        if not self._listeners:
            self.loop.stop()
        self._close_listeners()
        self.stop_if_drained()

    def close(self):
        """Aborts what there is."""
        self._close_listeners()
        for session in list(self.sessions) + list(self.farewells):
            session.stream.abort()
        self.store.close()

    def stop_if_drained(self):
        """Stops the loop once nobody is accepted any more and nobody is left."""
        if not (self._listeners or self.sessions or self.farewells or self.asked):
            self.loop.stop()

    def _close_listeners(self):
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _accepted(self, connection):
        try:
            if len(self.sessions) < self.connections_most:
                self.sessions.add(Session(self, connection))
            elif len(self.farewells) < FAREWELLS_MOST:
                Farewell(self, connection)
            else:
                connection.close()
        except OSError as error:  # the selector cannot watch it
            connection.close()
            if self.tell:
                self.tell("connection refused: %s" % error)

    # ---- what sessions ask for

    def seed(self, client_id):
        """The seed of a new sequence; under TEST_MODE alone it follows from the id."""
        return client_id.decode("ascii") if self._test_mode else sequence.unpredictable_seed()

    def drawn(self, session, size):
        """Bounds what is drawn for all sessions together: the one that drew first gives back first."""
        if size > DRAWN_SMALL:
            self._drawn[session] = size
            self._drawn_bytes += size
            while self._drawn_bytes > DRAWN_MOST and len(self._drawn) > 1:
                first = next(iter(self._drawn))
                first.undraw()
                self._drawn_bytes -= self._drawn.pop(first)

    def ended(self, session, error):
        """A session is over: its place is free, and the store may count down."""
        self.sessions.discard(session)
        self._drawn_bytes -= self._drawn.pop(session, 0)
        if self.tell:
            self.tell("%s: %s" % (session, error or "closed"))
        if session.record is not None:
            self.release(session.client_id)
        elif not self._listeners:
            self.stop_if_drained()

    def release(self, client_id):
        """Undoes one opening of a record."""
        self.asked += 1
        self.store.release(client_id, self._released)

    def _released(self):
        self.asked -= 1
        if not self._listeners:
            self.stop_if_drained()


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
        data = stream.input
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
                kind, argument = protocol.parse_request(bytes(data[position:end]))
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
            self._most = min(self.server.loop.output_high // longest + 1, self.server.messages_most)
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


def endpoint(address):
    """A socket's address as text: 127.0.0.1:5000 or [::1]:5000."""
    host, port = address[:2]
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)


def connections_limit(loop):
    """How many connections the limit of open files allows for at once, beside what else is open."""
    try:
        files = os.sysconf("SC_OPEN_MAX")
    except (ValueError, OSError):
        files = -1
    files = min(files if files > 0 else CONNECTIONS_MOST, loop.file_limit or CONNECTIONS_MOST)
    return max(1, min(files - FILES_RESERVED - FAREWELLS_MOST, CONNECTIONS_MOST))


# ---- the command line


def parse_arguments(arguments, program):
    """The settings; leaves the program with a message where there is something wrong with them."""
    from . import options

    parser = options.Parser(prog=program, description=DESCRIPTION)
    add = parser.add_argument
    add("port", type=options.port, help="port to listen on; 0 takes a free one")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--session-timeout", type=options.seconds, default=SESSION_TIMEOUT, metavar="SECONDS",
        help="how long a connection lives from its accept (%(default)s)")
    add("--retention", type=options.seconds, default=RETENTION, metavar="SECONDS",
        help="how long a sequence is kept after its last connection (%(default)s)")
    add("--connections", type=options.number(1, options.COUNT_MOST), metavar="N",
        help="connections at once (from the limit of open files, at most %d)" % CONNECTIONS_MOST)
    add("--clients", type=options.number(1, options.COUNT_MOST), default=CLIENTS_MOST, metavar="N",
        help="sequences kept at once (%(default)s)")
    add("--unsent", type=options.number(1024, options.COUNT_MOST), default=OUTPUT_HIGH, metavar="BYTES",
        help="unsent output of a connection over which it is not read (%(default)s)")
    add("--turn-bytes", type=options.number(1024, options.COUNT_MOST), default=READ_SIZE, metavar="BYTES",
        help="read from a connection before the next one's turn (%(default)s)")
    add("--turn-messages", type=options.number(1, options.COUNT_MOST), default=MESSAGES_MOST, metavar="N",
        help="requests of a connection answered before the next one's turn (%(default)s)")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print nothing but where it listens")
    loudness.add_argument("-v", "--verbose", action="store_true", help="tell of every connection on standard error")
    parser.add_version()
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    settings = parser.parse_args(arguments)
    options.forget()
    return settings


DESCRIPTION = "Keeps sequences of numbers and hands them out over connections that drop. TEST_MODE in the " \
              "environment makes a sequence follow from the client's id."


def serve(settings, program):
    """Runs the server until a signal; returns the exit status."""
    loop = Loop()
    loop.read_size = settings.turn_bytes
    loop.output_high = settings.unsent
    lines, complaints = console.Console(loop, console.file_of(sys.stdout)), console.Console(loop, console.file_of(sys.stderr))
    loop.report = lambda error: complaints.line("%s: internal error: %r" % (program, error))

    def forgotten(client_id):
        if not settings.quiet:
            lines.line("Purging client info for: " + client_id.decode("ascii"))

    store = MemoryStore(loop, forgotten, settings.retention, settings.clients)
    server = Server(loop, store, complaints.line if settings.verbose else None, settings.session_timeout,
                    settings.connections, settings.turn_messages, "TEST_MODE" in os.environ)
    try:
        addresses = server.listen(settings.host, settings.port)
    except OSError as error:
        complaints.line("%s: cannot listen on %s: %s" % (program, endpoint((settings.host, settings.port)), error))
        status = 1
    else:
        lines.line("Listening on " + ", ".join(map(endpoint, addresses)))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(number, server.drain)
        loop.run()
        status = 0
    server.close()
    for output in (lines, complaints):
        output.close()
    loop.close()
    return status


def main(arguments=None, program=None):
    """The command line (a list of text; by default the process's own); returns the exit status."""
    console.open_standard_streams()
    try:
        program = program or os.path.basename(sys.argv[0])
        return serve(parse_arguments(sys.argv[1:] if arguments is None else arguments, program), program)
    except KeyboardInterrupt:  # before the loop has taken over
        return 0


if __name__ == "__main__":
    sys.exit(main())
