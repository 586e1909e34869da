#!/usr/bin/env python3
"""The server: keeps each client's sequence for a while, and sends it over connections that drop.

    python numseq/server.py 5000
"""

# run as a file: let the package be found, and run it from there
if __name__ == "__main__" and not __package__:
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from numseq.server import main

    sys.exit(main())

import os
import signal
import sys
import types

from . import console, protocol, sequence
from .checksums import Checksums
from .loop import OUTPUT_HIGH, READ_SIZE, Loop
from .session import Farewell, Session
from .store import CLIENTS_MOST, RETENTION, Requests
from .store_memory import MemoryStore
from .stream import PORT_MOST, listen

SESSION_TIMEOUT = 1.0  # seconds a connection lives from its accept
CONNECTIONS_MOST = 16384  # at once, where the limit of open files allows it: 1,500 bytes each, 25 MB
MESSAGES_MOST = 1024  # requests of a connection answered per turn: 2 ms at the slowest
FILES_RESERVED = 16  # standard streams, selector, signals, listeners, and some to spare
FAREWELLS_MOST = 32  # connections above the limit that are being told so; more are closed without a word
# bytes of numbers kept for connections, one byte each; beyond, the oldest are dropped
DRAWN_MOST = 32 * 1024 * 1024


class Server:
    """Accepts connections on the loop, and gives each a Session.

    tell(text), if given, gets a line for each event of a connection.
    """

    def __init__(self, loop, store, tell=None, session_timeout=SESSION_TIMEOUT, connections_most=None,
                 messages_most=MESSAGES_MOST, test_mode=False):
        self.loop = loop
        self.store = store
        self.requests = Requests(loop, store, self._store_answered)
        self.tell = tell
        self.session_timeout = session_timeout
        self.connections_most = connections_most or connections_limit(loop)
        self.messages_most = messages_most
        self.sessions = set()
        self.farewells = set()
        self._listeners = []
        self._test_mode = test_mode
        self.checksums = Checksums(loop)
        self._drawn = {}  # from session to bytes of its numbers, in the order in which they were drawn
        self._drawn_bytes = 0

    def listen(self, host, port):
        """Listens on every address of host (text, ASCII) and port; returns the addresses. Raises OSError."""
        self._listeners = listen(self.loop, host, port, self._accepted)
        return [listener.address for listener in self._listeners]

    def drain(self):
        """Stops accepting, lets the sessions end within their time, and then stops the loop.

        Called again, it stops the loop at once.
        """
        if not self._listeners:
            self.loop.stop()
        self._close_listeners()
        self.stop_if_drained()

    def close(self):
        """Aborts all connections, and closes the listeners and the store."""
        self._close_listeners()
        for session in list(self.sessions) + list(self.farewells):
            session.stream.abort()
        self.store.close()

    def stop_if_drained(self):
        """Stops the loop if the server accepts no more and nothing is left to finish."""
        if not (self._listeners or self.sessions or self.farewells or self.requests.in_flight):
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

    def _store_answered(self):
        if not self._listeners:
            self.stop_if_drained()

    # ---- for sessions

    def seed(self, client_id):
        """The seed of a new sequence; in TEST_MODE it follows from the client id."""
        return client_id.decode("ascii") if self._test_mode else sequence.unpredictable_seed()

    def drawn(self, session, size):
        """Bounds the memory of drawn numbers: beyond it, the session that drew first drops its numbers."""
        self._drawn[session] = size
        self._drawn_bytes += size
        while self._drawn_bytes > DRAWN_MOST and len(self._drawn) > 1:
            first = next(iter(self._drawn))
            first.undraw()
            self._drawn_bytes -= self._drawn.pop(first)

    def opened(self, session):
        """A session has its sequence open."""
        if self.tell:
            self.tell("%s: open" % session)

    def ended(self, session, error):
        """A session's connection is over: frees its place, and releases its record."""
        self.sessions.discard(session)
        self._drawn_bytes -= self._drawn.pop(session, 0)
        if self.tell:
            self.tell("%s: %s" % (session, error or "closed"))
        if session.record is not None:
            self.requests.release(session.client_id)
        elif not self._listeners:
            self.stop_if_drained()


def endpoint(address):
    """A socket's address as text: 127.0.0.1:5000 or [::1]:5000."""
    host, port = address[:2]
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)


def connections_limit(loop):
    """How many connections the limit of open files allows at once, beside the other files."""
    try:
        files = os.sysconf("SC_OPEN_MAX")
    except (ValueError, OSError):
        files = -1
    files = min(files if files > 0 else CONNECTIONS_MOST, loop.poller.file_limit or CONNECTIONS_MOST)
    return max(1, min(files - FILES_RESERVED - FAREWELLS_MOST, CONNECTIONS_MOST))


# ---- the command line

DESCRIPTION = "Keeps sequences of numbers and sends them over connections that drop. With TEST_MODE in the " \
              "environment, a sequence follows from the client's id."

DEFAULTS = {
    "host": "127.0.0.1",
    "session_timeout": SESSION_TIMEOUT,
    "retention": RETENTION,
    "connections": None,
    "clients": CLIENTS_MOST,
    "unsent": OUTPUT_HIGH,
    "turn_bytes": READ_SIZE,
    "turn_messages": MESSAGES_MOST,
    "quiet": False,
    "verbose": False,
}


def read_arguments(arguments, program):
    """The settings (a namespace).

    Where the arguments are wrong, ends the program with a line that says why.
    """
    if len(arguments) == 1:
        try:  # a port alone, as on most devices: argparse would take a sixth of the start, and 1 to 2 MB
            port = protocol.parse_number(arguments[0].encode("ascii"), 0, PORT_MOST)
        except ValueError:
            pass
        else:
            return types.SimpleNamespace(port=port, **DEFAULTS)
    return parse_arguments(arguments, program)


def parse_arguments(arguments, program):
    """The settings, read by argparse."""
    from . import options

    parser = options.Parser(prog=program, description=DESCRIPTION)
    add = parser.add_argument
    count = options.number(1, options.COUNT_MOST)
    size = options.number(1024, options.COUNT_MOST)
    add("port", type=options.port, help="port to listen on; 0 takes a free one")
    add("--host", help="address to listen on (%(default)s)")
    add("--session-timeout", type=options.seconds, metavar="SECONDS",
        help="how long a connection lives from its accept (%(default)s)")
    add("--retention", type=options.seconds, metavar="SECONDS",
        help="how long a sequence is kept after its last connection (%(default)s)")
    add("--connections", type=count, metavar="N",
        help="connections at once (from the limit of open files, at most %d)" % CONNECTIONS_MOST)
    add("--clients", type=count, metavar="N", help="sequences kept at once (%(default)s)")
    add("--unsent", type=size, metavar="BYTES",
        help="unsent output of a connection above which it is not read (%(default)s)")
    add("--turn-bytes", type=size, metavar="BYTES",
        help="read from a connection before the next one's turn (%(default)s)")
    add("--turn-messages", type=count, metavar="N",
        help="requests of a connection answered before the next one's turn (%(default)s)")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true",
                          help="print only the line that says where it listens")
    loudness.add_argument("-v", "--verbose", action="store_true",
                          help="report every connection on standard error")
    parser.add_version()
    parser.set_defaults(**DEFAULTS)
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    return parser.parse_args(arguments)


def serve(settings, program):
    """Runs the server until a signal; returns the exit status."""
    loop = Loop()
    loop.read_size = settings.turn_bytes
    loop.output_high = settings.unsent
    lines = console.Console(loop, console.file_of(sys.stdout))
    complaints = console.Console(loop, console.file_of(sys.stderr))
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
        complaints.line("%s: cannot listen on %s: %s"
                        % (program, endpoint((settings.host, settings.port)), error))
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
        return serve(read_arguments(sys.argv[1:] if arguments is None else arguments, program), program)
    except KeyboardInterrupt:  # before the loop has taken over
        return 0


if __name__ == "__main__":
    sys.exit(main())
