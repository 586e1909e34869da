"""The server: accepts connections, gives each a session, and is run by a command line."""

import os
import sys
import types

from . import console, process, protocol, sequence, signals
from .addresses import PORT_MOST, format_endpoint
from .budget import Budget
from .checksums import Checksums
from .loop import OUTPUT_HIGH, READ_SIZE, Loop
from .metrics import Figures, families, summary
from .session import ENDINGS, ERRORS, LAST_WORD, Farewell, Session
from .store import ANSWERED, CLIENTS_MOST, EXISTS, FAILED, FULL, MISSING, RETENTION, SHARED
from .store import Requests, from_url, scheme_of
from .stream import LINGER_SECONDS, Listener, close_file, listen
from .supervisor import BadActivation, Supervisor, listening_sockets
from .system import socket

SESSION_TIMEOUT = 1.0  # seconds that a connection may live, from its accept
CONNECTIONS_MOST = 16384  # open at once, if the limit of open files allows it: 1 KB each, 16 MB
MESSAGES_MOST = 1024  # requests answered per connection and turn: 2 ms at the slowest
FILES_RESERVED = 24  # files for the selector, signals, listeners and their spares, metrics and the store
FEW_CONNECTIONS = 1024  # warn at the start if the limit of open files allows fewer connections
FAREWELLS_MOST = 32  # connections that linger beyond the limit (refused or finished); more are closed at once
DRAIN_SECONDS = 1.0  # after a signal, how long connections already in the backlog are accepted
WANTED_FILES = CONNECTIONS_MOST + FAREWELLS_MOST + FILES_RESERVED + 40  # soft limit wanted; 40 inherited
MAPPED = b"\0" * 10 + b"\xff\xff"  # prefix of an IPv4 address on an IPv6 socket
COMPLAINTS_MOST = 64  # different complaints remembered to hold back repetitions
COMPLAINT_SECONDS = 60.0  # seconds before the same complaint is written again
STORE_TROUBLE_SECONDS = 10.0  # how long a failure of the store counts as trouble, unless it answers again

# The reasons for refusing a connection.
OVER_LIMIT, OVER_ADDRESS_LIMIT, NO_FILES, NO_MEMORY, UNWATCHED = (
    "limit", "limit_of_its_address", "no_files", "no_memory", "not_watched")
REFUSAL_REASONS = OVER_LIMIT, OVER_ADDRESS_LIMIT, NO_FILES, NO_MEMORY, UNWATCHED

# Bytes of drawn numbers and kept replies for all connections; above it, the oldest are dropped and made again
# on demand. The numbers of short sequences are not counted: CONNECTIONS_MOST of them are 17 MB.
DRAWN_MOST = 32 * 1024 * 1024
# Bytes of the same up to which more replies are kept: more would not stay in the processor's caches.
KEPT_BYTES_MOST = 4 * 1024 * 1024
# Sessions up to which more replies are kept. Of 1,000, each requests so little in its second that keeping
# takes 3 % more time.
KEEPING_MOST = 512


class Server:
    """Accepts connections on the loop and gives each a Session.

    tell(text), if given, is called with a line for each event of a connection. complain(text), if given, is
    called with a line for each problem that an operator should know of; the same line comes at most once in
    COMPLAINT_SECONDS.
    """

    def __init__(self, loop, store, tell=None, session_timeout=SESSION_TIMEOUT, connections_most=None,
                 messages_most=MESSAGES_MOST, test_mode=False, connections_per_address=None, complain=None):
        self.loop = loop
        self.store = store
        self.requests = Requests(loop, store, self._store_answered, self._store_observed)
        self.tell = tell
        self.session_timeout = session_timeout
        self.connections_most = connections_most or connections_limit(loop)
        self.messages_most = messages_most
        self.sessions = set()
        self.farewells = set()
        self.figures = Figures(REFUSAL_REASONS, ENDINGS, ERRORS, (ANSWERED, EXISTS, MISSING, FULL, FAILED))
        self.budget = Budget(loop)
        self.checksums = Checksums(loop, self.budget)
        self.draining = False
        self._listeners = []
        self._test_mode = test_mode
        self._drawn = {}  # from session to the bytes of its drawn numbers and kept replies, oldest first
        self._drawn_bytes = 0
        self._per_address_most = connections_per_address
        self._addresses = {}  # from session to its peer's address, if `tell` or the limit needs it
        self._per_address = {}  # from address_key() to the number of sessions
        self._complain = complain
        self._complained = {}  # from text to when it was last written; at most COMPLAINTS_MOST
        self._store_failed = None  # when the store last failed, None if it has answered since

    # ---- listening

    def listen(self, host, port, reuse_port=False):
        """Listens on every address of host (text, ASCII) and port; returns the addresses. Raises OSError.

        With reuse_port, other servers may listen on the same port.
        """
        return self._listen_on(listen(self.loop, host, port, self._accepted, self._left_out, reuse_port))

    def listen_on(self, sockets):
        """Accepts connections from sockets that already listen; returns their addresses."""
        return self._listen_on([Listener(self.loop, each, self._accepted) for each in sockets])

    def _listen_on(self, listeners):
        self._listeners = listeners
        for listener in listeners:
            listener.troubled = self._troubled
            listener.refused = self._no_files
        return [listener.address for listener in listeners]

    def _left_out(self, address, error):
        self.complain("not listening on %s: %s" % (endpoint(address), error.strerror))

    def drain(self):
        """Ends the server: accepts the backlog, lets all sessions end within their time, stops the loop.

        A second call stops the loop at once.
        """
        if self.draining:
            self.loop.stop()
            return
        self.draining = True
        for listener in self._listeners:
            listener.finish()
        if any(listener.is_open for listener in self._listeners):
            self.loop.call_later(DRAIN_SECONDS, self._close_listeners)
        # The last resort, if something goes wrong meanwhile.
        self.loop.call_later(DRAIN_SECONDS + self.session_timeout + LINGER_SECONDS, self.loop.stop)
        self.stop_if_drained()

    def close(self):
        """Aborts all connections and closes the listeners and the store."""
        self._close_listeners()
        for session in list(self.sessions) + list(self.farewells):
            session.stream.abort()
        self.store.close()

    def stop_if_drained(self):
        """Stops the loop if the server is draining, and all sessions and store requests have ended."""
        if self.draining and not (self.sessions or self.farewells or self.requests.in_flight):
            if not any(listener.is_open for listener in self._listeners):
                self.loop.stop()

    def _close_listeners(self):
        for listener in self._listeners:
            listener.close()
        if self.draining:
            self.stop_if_drained()

    # ---- accepting

    def _accepted(self, connection):
        self.figures.accepted += 1
        address = None
        if self.tell or self._per_address_most:
            try:
                address = connection.getpeername()
            except OSError:  # the peer has reset the connection already
                connection.close()
                return
        if len(self.sessions) >= self.connections_most:
            self._refuse(connection, OVER_LIMIT, address)
        elif self._per_address_most and self._is_address_full(address):
            self._refuse(connection, OVER_ADDRESS_LIMIT, address)
        else:
            try:
                session = Session(self, connection)
            except OSError as error:  # the selector cannot watch it
                self._refuse(connection, UNWATCHED, address, error)
                return
            except MemoryError:
                self.figures.refused[NO_MEMORY] += 1
                raise
            try:
                self.sessions.add(session)
                if address is not None:
                    self._remember(session, address)
            except MemoryError:
                session.stream.abort()
                raise

    def _is_address_full(self, address):
        return self._per_address.get(address_key(address), 0) >= self._per_address_most

    def _remember(self, session, address):
        self._addresses[session] = address
        if self._per_address_most:
            key = address_key(address)
            self._per_address[key] = self._per_address.get(key, 0) + 1

    def _refuse(self, connection, reason, address, error=None):
        self.figures.refused[reason] += 1
        if self.tell:
            self.tell("%s -: refused: %s" % (endpoint(address), error or reason.replace("_", " ")))
        if error is None and len(self.farewells) < FAREWELLS_MOST:
            try:
                Farewell(self, connection)
                return
            except OSError:  # the selector cannot watch it
                pass
        close_file(connection)

    def _no_files(self, connection):
        """Called by a Listener for a connection that comes when the process is out of files."""
        self.figures.accepted += 1
        self.figures.refused[NO_FILES] += 1
        connection.send(LAST_WORD)

    def _troubled(self, error):
        self.complain("cannot accept connections for now: %s" % (error or type(error).__name__))

    def complain(self, text):
        """Writes a line for an operator, unless the same line was written recently. Never raises."""
        try:
            now = self.loop.now
            if self._complain and now - self._complained.get(text, -COMPLAINT_SECONDS) >= COMPLAINT_SECONDS:
                if len(self._complained) >= COMPLAINTS_MOST:
                    self._complained.clear()
                self._complained[text] = now
                self._complain(text)
        except MemoryError:
            pass

    def report(self, error):
        """Counts an uncaught exception and writes a complaint. Never raises."""
        self.figures.internal_errors += 1
        if isinstance(error, MemoryError):
            self.complain("out of memory: connections are dropped")
        elif isinstance(error, OSError):
            self.complain("the system refuses: %s" % error)
        else:
            self.complain("internal error: %s" % where_raised(error))

    # ---- health and figures

    def status(self):
        """The state of the server in one line (text)."""
        kept = self._sequences()
        return "%s%d connections of at most %d%s" % (
            "ending; " if self.draining else "", len(self.sessions), self.connections_most,
            "" if kept is None else ", %d sequences" % kept)

    def trouble(self):
        """Why the server is unhealthy (text), or None."""
        if self.draining:
            return "ending"
        is_away = getattr(self.store, "is_away", None)  # also while nobody asks it
        failed = self._store_failed
        if is_away and is_away() or failed is not None and self.loop.now - failed < STORE_TROUBLE_SECONDS:
            return "the store does not answer"
        return None

    def _sequences(self):
        try:
            return len(self.store)
        except TypeError:  # the store has no len()
            return None

    def families(self, dropped):
        """The figures, as metrics.families has them; dropped is the number of dropped lines."""
        return families(self.figures, self.loop, len(self.sessions) + len(self.farewells), self._sequences(),
                        dropped)

    # ---- for the store's requests

    def _store_answered(self):
        if self.draining:
            self.stop_if_drained()

    def _store_observed(self, outcome, seconds):
        self.figures.store_requests[outcome] += 1
        self.figures.store_times.add(seconds)
        self._store_failed = self.loop.now if outcome is FAILED else None

    # ---- for sessions

    def seed(self, client_id):
        """A seed for a new sequence: random bytes, or in TEST_MODE the client id as text."""
        return client_id.decode("ascii") if self._test_mode else sequence.unpredictable_seed()

    def may_keep(self, size):
        """Whether a session may keep its replies, which take `size` bytes."""
        return len(self.sessions) <= KEEPING_MOST and self._drawn_bytes + size <= KEPT_BYTES_MOST

    def drawn(self, session, size):
        """Called when a session has drawn `size` bytes of numbers, or is about to keep replies of that size.

        Above DRAWN_MOST, the oldest others drop theirs.
        """
        total = self._drawn_bytes + size
        self._drawn[session] = self._drawn.get(session, 0) + size
        self._drawn_bytes = total
        while self._drawn_bytes > DRAWN_MOST and len(self._drawn) > 1:
            first = next(each for each in self._drawn if each is not session)
            first.undraw()
            self._dropped(first)

    def _dropped(self, session):
        """Counts the numbers and replies of a session no more."""
        total = self._drawn_bytes - self._drawn.get(session, 0)  # first, so that no memory is needed below
        self._drawn.pop(session, None)
        self._drawn_bytes = total

    def opened(self, session):
        """Called when a session has opened its sequence."""
        if self.tell:
            self.tell("%s %s: open" % (endpoint(self._addresses.get(session)), session))

    def finished(self, session):
        """Called when a session has sent its checksum: frees its place; returns whether it may linger."""
        self.farewells.add(session)
        self.ended(session)
        return len(self.farewells) <= FAREWELLS_MOST

    def left(self, farewell):
        """Called when the connection of a Farewell or of a finished session has closed."""
        self.farewells.discard(farewell)
        if self.draining:
            self.stop_if_drained()

    def ended(self, session):
        """Called when a session has ended: frees its place and releases its record."""
        self.sessions.discard(session)
        self._dropped(session)
        self.figures.ended[session.phase] += 1
        if session.record is not None:
            self.requests.release(session.client_id)
        elif self.draining:
            self.stop_if_drained()
        address = self._addresses.pop(session, None)
        if address is not None and self._per_address_most:
            key = address_key(address)
            self._per_address[key] -= 1
            if not self._per_address[key]:
                del self._per_address[key]
        if self.tell:
            self.tell("%s %s: %s" % (endpoint(address), session, session.phase))


def where_raised(error):
    """Type and place of an exception (text). Its message is left out, because it may name a client."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return type(error).__name__
    return "%s in %s, line %d" % (
        type(error).__name__, os.path.basename(place.tb_frame.f_code.co_filename), place.tb_lineno)


def address_key(address):
    """The key to count an address by: an IPv4 address, or the /64 of an IPv6 one, which one host has."""
    host = address[0].partition("%")[0]
    if ":" not in host:
        return host
    data = socket.inet_pton(socket.AF_INET6, host)
    return data if data.startswith(MAPPED) else data[:8]


def endpoint(address):
    """A socket's address as text: 127.0.0.1:5000, [::1]:5000 or [fe80::1%eth0]:5000; "-" for None."""
    if address is None:
        return "-"
    host, port = address[:2]
    if len(address) == 4 and address[3] and "%" not in host:
        host += "%" + interface(address[3])
    return format_endpoint(host, port)


def interface(number):
    """The name of a network interface, or its number (text)."""
    try:
        return socket.if_indextoname(number)
    except (OSError, AttributeError):  # gone, or a build without it
        return str(number)


def connections_limit(loop):
    """How many connections the limit of open files allows, beside the files already open or reserved."""
    files = process.files_most() or WANTED_FILES
    files = min(files, loop.poller.file_limit or files) - process.files_open()
    return max(1, min(files - FILES_RESERVED - FAREWELLS_MOST, CONNECTIONS_MOST))


# ---- the command line

DESCRIPTION = "Keeps sequences of numbers and sends them over connections that drop.\n" \
              "With TEST_MODE in the environment, a sequence follows from the client's id."

USAGE = 2  # the exit status where the settings are wrong
STORE_VARIABLE = "NUMSEQ_STORE"  # environment variable: keeps a password out of the list of processes

DEFAULTS = {
    "host": "127.0.0.1",
    "session_timeout": SESSION_TIMEOUT,
    "retention": RETENTION,
    "connections": None,
    "connections_per_address": None,
    "metrics": None,
    "clients": CLIENTS_MOST,
    "store": None,
    "reuse_port": False,
    "unsent": OUTPUT_HIGH,
    "turn_bytes": READ_SIZE,
    "turn_messages": MESSAGES_MOST,
    "quiet": False,
    "verbose": False,
}


def read_arguments(arguments, program):
    """The settings (a namespace). Wrong arguments end the program with a message of one line."""
    if len(arguments) == 1:
        try:  # only a port, as on most devices: argparse would cost a sixth of the start and 1 to 2 MB
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
        help="open connections at once (from the limit of open files, at most %d)" % CONNECTIONS_MOST)
    add("--connections-per-address", type=count, metavar="N",
        help="the same for each IPv4 address or IPv6 /64 (no limit)")
    add("--clients", type=count, metavar="N", help="sequences kept at once (%(default)s)")
    add("--store", metavar="URL",
        help="where sequences are kept: memory:, file:PATH, "
             "redis://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/DB] or redis+socket:///PATH "
             "(from %s in the environment, or memory:)" % STORE_VARIABLE)
    add("--reuse-port", action="store_true",
        help="let other servers listen on the same port, such as one for each core; they need a shared store")
    add("--unsent", type=size, metavar="BYTES",
        help="stop reading from a connection with more unsent output than this (%(default)s)")
    add("--turn-bytes", type=size, metavar="BYTES",
        help="bytes read from a connection before it is the next one's turn (%(default)s)")
    add("--turn-messages", type=count, metavar="N",
        help="requests of a connection answered before it is the next one's turn (%(default)s)")
    add("--metrics", type=options.endpoint, metavar="HOST:PORT",
        help="serve metrics and health over HTTP here (off)")
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


class CannotStart(Exception):
    """The server cannot start; str() says why in one line, `status` is the exit status."""

    def __init__(self, text, status=1):
        super().__init__(text)
        self.status = status


def serve(settings, program, environment=os.environ):
    """Runs the server until a signal; returns the exit status."""
    process.raise_files_most(WANTED_FILES)
    loop = Loop()
    loop.read_size = settings.turn_bytes
    loop.output_high = settings.unsent
    lines = console.Console(loop, console.file_of(sys.stdout))
    complaints = console.Console(loop, console.file_of(sys.stderr))
    opened = [loop, complaints, lines]  # closed at the end, the last one first

    def complain(text):
        complaints.line("%s: %s" % (program, text))

    try:
        start(settings, environment, loop, lines, complaints, complain, opened)
        loop.run()
        return 0
    except CannotStart as error:
        complain(str(error))
        return error.status
    finally:
        for each in reversed(opened):
            each.close()


def start(settings, environment, loop, lines, complaints, complain, opened):
    """Starts the server on the loop, and adds to `opened` what has to be closed. Raises CannotStart.

    A store and the exporter are loaded only if the settings ask for them, and before the loop runs: later
    there may be no file left to load a module with, or a newer version in its place.
    """
    server = make_server(settings, environment, loop, lines, complaints, complain)
    opened.append(server)
    supervisor = Supervisor(environment)
    opened.append(supervisor)

    def drain():
        supervisor.stopping(server.status())
        server.drain()

    def figures():
        return server.families(lines.dropped_ever + complaints.dropped_ever)

    def tell_figures():
        for line in summary(figures()):
            complain(line)

    where = settings.host, settings.port
    try:
        passed = listening_sockets(environment)
        addresses = server.listen_on(passed) if passed else server.listen(*where, settings.reuse_port)
        if settings.metrics:
            from .exporter import Exporter

            where = settings.metrics
            opened.append(Exporter(loop, figures, server.trouble))
            opened[-1].listen(*where)
        for number in signals.SERVER_NUMBERS:
            loop.on_signal(number, drain)
        if signals.FIGURES is not None:
            loop.on_signal(signals.FIGURES, tell_figures)
        os.close(os.dup(0))  # one connection has to be possible, at least
    except BadActivation as error:
        raise CannotStart(str(error)) from None
    except OSError as error:
        raise CannotStart("cannot listen on %s: %s" % (endpoint(where), error)) from None
    for text in warnings_at_start(settings, environment, server):
        complain(text)
    lines.line("Listening on " + ", ".join(map(endpoint, addresses)))
    supervisor.ready(loop, server.status)


def make_server(settings, environment, loop, lines, complaints, complain):
    """The Server for the settings, with its store. Raises CannotStart."""
    server = None

    def complain_of_store(text):
        if server is None:  # the store is being opened
            complain(text)
        else:  # a client that continues a damaged record again and again causes no line each time
            server.complain(text)

    def forgotten(client_id):
        server.figures.purged += 1
        if not settings.quiet:
            lines.line("Purging client info for: " + client_id.decode("ascii"))

    test_mode = "TEST_MODE" in environment
    if test_mode:
        load_test_mode()
    store = make_store(settings, loop, forgotten, complain_of_store, environment)
    limit = connections_limit(loop)
    server = Server(loop, store, complaints.line if settings.verbose else None, settings.session_timeout,
                    min(settings.connections or limit, limit), settings.turn_messages, test_mode,
                    settings.connections_per_address, complain)
    loop.report = server.report
    return server


def make_store(settings, loop, forgotten, complain, environment):
    """The store for the settings. Raises CannotStart."""
    source, url = "--store", settings.store
    if url is None:
        source, url = STORE_VARIABLE, environment.get(STORE_VARIABLE) or "memory:"
    try:
        if settings.reuse_port and scheme_of(url) not in SHARED:
            source = "--reuse-port"
            raise ValueError("the servers need a store that they share: --store redis:// or redis+socket://")
        return from_url(url, loop, forgotten, settings.retention, settings.clients, settings.session_timeout,
                        sequence.DRAWING, complain)
    except ValueError as error:
        raise CannotStart("%s: %s" % (source, error), USAGE) from None
    except OSError as error:
        raise CannotStart("%s: %s" % (source, error.strerror or error)) from None


def load_test_mode():
    """Loads the module that drawing in TEST_MODE needs. Raises CannotStart."""
    try:
        sequence.draw("", 0, 1)
    except (ImportError, OSError) as error:  # OSError: no file left to load it with
        raise CannotStart("TEST_MODE is not possible here: %s" % error) from None


def warnings_at_start(settings, environment, server):
    """What an operator should know when the server starts (list of text)."""
    found = []
    if "TEST_MODE" in environment:
        found.append("TEST_MODE is set: whoever knows a client's id knows its numbers")
    if server.connections_most < (settings.connections or FEW_CONNECTIONS):
        found.append("the limit of open files, %s, leaves room for %d connections (ulimit -n)" % (
            process.files_most(), server.connections_most))
    return found


def main(arguments=None, program=None):
    """Runs the server's command line (a list of text, by default sys.argv's); returns the exit status.

    Takes over the signals of the process; SIGTERM and SIGINT are ignored when it returns.
    """
    signals.exit_at_once()
    program = program or os.path.basename(sys.argv[0])
    try:
        console.open_standard_streams()
        return serve(read_arguments(sys.argv[1:] if arguments is None else arguments, program), program)
    except KeyboardInterrupt:  # before the loop has taken over
        return 0
    except OSError as error:  # not even the loop could be opened
        print("%s: cannot start: %s" % (program, error), file=sys.stderr)
        return 1
    finally:
        signals.ignore()
