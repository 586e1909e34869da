"""The command CHECK, which tests a link: fetches many sequences at a time, and verifies every number.

docs/check.md describes its output and its options.
"""

import errno
import sys
import time

from . import lines, output, protocol, signals, writer
from .addresses import format_endpoint
from .console import MISSING, Console, file_of
from .errors import ChecksumMismatch, ConnectionLost, ProtocolBroken
from .figures import END, LOCAL, LOOKUP, NETWORK, REFUSED, RESET, SESSION, SILENCE, Drop, Failure, Figures
from .journal import Journal
from .loop import Loop
from .stream import EXHAUSTED as EXHAUSTED_FILES
from .system import signal, socket
from .transfer import (BATCH, CONNECTING, HOST, TIMEOUT, WINDOW, WINDOW_MOST, Fetch, Observer, endpoints,
                       new_id)
from .units import counted, duration, short_time, whole
from .version import __version__

VERSION = 1  # version of the lines of --json; stays the same when fields are added

# Defaults of the options.
CLIENTS = 8
CLIENTS_MOST = 10000
DURATION = 10.0  # seconds
INTERVAL = 1.0  # seconds
N_USUAL = 10000  # numbers per sequence: 2,000 requests, on one connection if it lasts
N_SHARED = 200 * 1000  # numbers of all clients' sequences together: 1 to 2 s of work for a busy machine
RETRY = 10  # at the default timeout this covers the 30 s for which a server keeps a sequence
SESSION_TIMEOUT = 1.0  # seconds: the server's default
IN_FLIGHT = 4096  # requests in flight of all clients: even a slow machine answers them within a session

# The pace of new sequences.
SEQUENCES_PER_SECOND = 2500  # limit; a server can keep 100,000 for 30 s, which is 3,333 per second
PAUSE = 1.0  # seconds until a client tries again after its sequence was given up or refused

# A reset is the expected end of a session from EARLY before it to LATE and two round trips after it. A busy
# client notices late that a connection was made, and a busy server or a long link ends it late.
EARLY = 0.1  # seconds
LATE = 1.0  # seconds

DROP_LINES_MOST = 100  # lines of drops per interval, of expected and unexpected ones each; others are counted
SAME_AGE = 0.1  # resets count as equally old if their ages differ by less than this share
SAME_AGE_LEAST = 5  # resets needed before their ages are compared
AT_ONCE = 1e-6  # seconds: timers this close are due at the same time
BUSY_LEAST = 0.1  # seconds: in a shorter interval, the share of a processor means nothing
BUSY = 0.9  # share of a processor from which it counts as the bottleneck

GIVEN_UP = 4  # exit status
ENDED_BY = {signal.SIGINT: None, signal.SIGTERM: 143, signal.SIGHUP: 129}  # exit status; None: of the result

# Errors for lack of files, memory or ports on this machine.
EXHAUSTED = EXHAUSTED_FILES | {errno.EADDRNOTAVAIL, errno.EADDRINUSE}

# The cause of a drop, by the class of the connection's error.
CAUSES = (
    (socket.gaierror, LOOKUP),
    (ConnectionRefusedError, REFUSED),
    (TimeoutError, SILENCE),
    ((ConnectionResetError, BrokenPipeError, ConnectionAbortedError), RESET),
)


def add_options(add):
    """Adds the options of CHECK to its parser, whose add_argument is `add`."""
    from . import options

    add("port", type=options.server_port, help="the server's port")
    add("--host", action="append", dest="hosts", type=options.host, metavar="HOST[:PORT]",
        help="the server's name or address (%s); repeat it for more servers with the same store" % HOST)
    add("--clients", type=options.number(1, CLIENTS_MOST), default=CLIENTS, metavar="N",
        help="sequences at a time, each over a connection of its own (%(default)s)")
    add("--duration", type=options.seconds, default=DURATION, metavar="SECONDS",
        help="start new sequences for this long (%(default)g)")
    add("--interval", type=options.seconds, default=INTERVAL, metavar="SECONDS",
        help="time from one line to the next (%(default)g)")
    add("-n", type=options.number(1, protocol.N_MOST), metavar="N",
        help="numbers per sequence, 1 to %d (%d shared by all, but at most %d)"
             % (protocol.N_MOST, N_SHARED, N_USUAL))
    add("--batch_size", "--batch-size", type=options.number(1, protocol.BATCH_MOST), default=BATCH,
        metavar="N", help="numbers in a message (%(default)s)")
    add("--window", type=options.number(1, WINDOW_MOST), metavar="W",
        help="requests in flight per client (%d shared by all, but at most %d)" % (IN_FLIGHT, WINDOW))
    add("--timeout", type=options.seconds, default=TIMEOUT, metavar="SECONDS",
        help="give a connection up after this long without input, also while connecting (%(default)g)")
    add("--retry", type=options.number(0, options.COUNT_MOST), default=RETRY, metavar="N",
        help="give a sequence up after an outage of N times --timeout (%(default)s)")
    add("--session-timeout", type=options.seconds, default=SESSION_TIMEOUT, metavar="SECONDS",
        help="the server's --session-timeout: a reset at that age is expected (%(default)g)")
    add("--max-time", type=options.seconds, metavar="SECONDS",
        help="end the whole run after this long, with status %d (no limit)" % GIVEN_UP)
    add("--json", action="store_true", help="print each line as a JSON object, described in docs/check.md")
    add("--report", metavar="FILE", help="write an HTML page with plots to this file")


# ---- the check


class Client(Observer):
    """One of the clients: fetches one sequence after another, and reports its connections to the check."""

    def __init__(self, check, number):
        self.check = check
        self.number = number
        self.fetch = None  # the current Fetch
        self._connected = 0.0  # time of connecting
        self._begun = 0  # numbers of the sequence before this connection
        self._counted = 0  # numbers of the sequence counted so far
        self._bytes = 0  # bytes received on this connection
        self._sent = self._answered = 0  # messages on this connection
        self._left = 0  # bytes of an incomplete reply, already counted
        self._mark = None  # the request whose round trip is measured: (its number, time sent)
        self._round_trip = 0.0  # the latest one, in seconds

    def begin(self):
        """Starts a new sequence."""
        check, settings = self.check, self.check.settings
        self._counted = 0
        journal = Journal(new_id(), check.n, settings.batch_size)
        self.fetch = Fetch(check.loop, settings.hosts or HOST, settings.port, journal, self._done,
                           window=check.window, timeout=settings.timeout, retry=settings.retry,
                           observer=self, known=check.known)

    def cancel(self):
        """Cancels the current sequence; returns whether there was one (bool)."""
        fetch, self.fetch = self.fetch, None
        if fetch is not None:
            self._count(len(fetch.journal.numbers))
            fetch.cancel()
        return fetch is not None

    def count(self):
        """Counts the numbers that have arrived since the last call."""
        if self.fetch is not None:
            self._count(len(self.fetch.journal.numbers))

    def _count(self, have):
        if have > self._counted:
            self.check.kept.progress(self.check.elapsed(), have - self._counted)
            self._counted = have

    def _done(self, fetch, error):
        self.fetch = None
        self._count(len(fetch.journal.numbers) if fetch.checksum is None else fetch.journal.n)
        self.check.finished(self, fetch, error)

    # ---- events of the Fetch: see Observer

    def connected(self):
        self.check.kept.now.connections += 1
        self._connected = self.check.loop.now
        self._begun = len(self.fetch.journal.numbers)
        self._bytes = self._sent = self._answered = self._left = 0
        self._mark = None

    def sent(self, messages):
        """Counts the bytes, and measures a round trip from here unless one is being measured."""
        if self._mark is None:
            self._mark = self._sent + 1, self.check.loop.now
        self._sent += messages.count(b";")
        self.check.kept.now.bytes_sent += len(messages)

    def received(self, data):
        kept, count = self.check.kept, len(data) - self._left
        if count:
            self._bytes += count
            self._answered += data.count(b";")  # the incomplete reply had none
            self._left = len(data) - data.rfind(b";") - 1
            kept.receive(self.number, self.check.elapsed(), count)
            if self._mark is not None and self._answered >= self._mark[0]:
                self._round_trip = self.check.loop.now - self._mark[1]
                kept.now.round_trips.add(self._round_trip)
                self._mark = None
        self.count()

    def lost(self, error):
        """Reports the drop to the check."""
        self.count()
        made = self.fetch.phase is not CONNECTING
        age = self.check.loop.now - self._connected if made else 0.0
        cause = cause_of(error)
        if cause is RESET and self._is_over(age):
            cause = SESSION
        self.check.dropped(Drop(
            self.check.elapsed(), cause, cause is SESSION, self.fetch.phase, age,
            self._bytes if made else 0, self._counted - self._begun if made else 0, self.number, str(error)))

    def _is_over(self, age):
        """Whether the session of a connection of this age (seconds) should be at its end."""
        end = self.check.settings.session_timeout
        return end - EARLY <= age <= end + LATE + 2 * self._round_trip


def cause_of(error):
    """The cause of a drop (one of figures.CAUSES), from a ConnectionLost or a Refused."""
    if not isinstance(error, ConnectionLost):
        return REFUSED
    if error.cause is None:
        return END
    if error.cause.errno in EXHAUSTED:
        return LOCAL
    return next((cause for kinds, cause in CAUSES if isinstance(error.cause, kinds)), NETWORK)


# The states of a check.
RUNNING = "running"
DRAINING = "draining"  # current sequences may complete, but no new ones are started
OVER = "over"


class Check:
    """Runs the clients, and reports lines of results.

    settings   the options of add_options (a namespace)
    tell       tell(line) is called with each line but the last (dicts, as in --json)
    over       over() is called when the check has ended by itself; `finish` returns the last line
    """

    def __init__(self, loop, settings, tell, over):
        self.loop = loop
        self.settings = settings
        self.state = RUNNING
        self.kept = Figures(settings.clients)
        self.known = {}  # addresses of the servers, looked up once for all clients
        self.window = settings.window or min(max(IN_FLIGHT // settings.clients, 1), WINDOW)
        self.n = settings.n or min(max(N_SHARED // settings.clients, 1), N_USUAL)
        self._tell = tell
        self._over = over
        self._clients = [Client(self, number) for number in range(settings.clients)]
        self._waiting = {}  # {client: timer of its next sequence}
        self._next = loop.now  # earliest time for the next sequence
        self._began = loop.now
        self._closed = 0.0  # end of the last interval
        self._due = settings.interval  # end of the current interval
        self._ends = settings.duration, settings.duration + settings.timeout  # ends of RUNNING and DRAINING
        self._processor = time.process_time()
        self._first_processor = self._processor
        self._busy = 0.0  # seconds of intervals in which the processor was the bottleneck
        self._lines = [0, 0]  # lines of drops in this interval: unexpected, expected
        self.start = {
            "type": "start", "version": VERSION, "numseq": __version__, "time": time.time(),
            "servers": [format_endpoint(*each)
                        for each in endpoints(settings.hosts or HOST, settings.port)],
            "clients": settings.clients, "duration": settings.duration, "interval": settings.interval,
            "n": self.n, "batch_size": settings.batch_size, "window": self.window,
            "timeout": settings.timeout, "retry": settings.retry, "session_timeout": settings.session_timeout}
        tell(self.start)
        self._ticker = loop.call_at(self._began + self._due, self._tick)
        self._ender = loop.call_later(settings.duration, self._wind_down)
        for client in self._clients:
            self._begin_later(client)

    def elapsed(self):
        """Seconds since the start of the check (float)."""
        return self.loop.now - self._began

    # ---- called by the clients

    def dropped(self, drop):
        """Counts and reports a Drop."""
        self.kept.drop(drop)
        if self._lines[drop.expected] < DROP_LINES_MOST:
            self._lines[drop.expected] += 1
            self._tell(dict(type="drop", **drop._asdict()))

    def finished(self, client, fetch, error):
        """Counts a finished sequence (error is a FetchError or None), and starts the client's next one."""
        now, pause = self.kept.now, 0.0
        if error is None:
            now.completed += 1
            now.verified += fetch.journal.n
        elif isinstance(error, ChecksumMismatch):
            now.wrong += 1
            now.mismatched += fetch.journal.n
        else:
            pause = PAUSE
            if isinstance(error, ProtocolBroken):
                now.broken += 1
            else:
                now.given_up += 1
        if error is not None:
            self.kept.failures.add(Failure(self.elapsed(), client.number, str(error)))
        if self.state is RUNNING:
            self._begin_later(client, pause)
        elif not any(each.fetch for each in self._clients):
            self._end()

    def _begin_later(self, client, pause=0.0):
        """Starts a client's next sequence after the pause; without one, as soon as the rate limit allows."""
        when = self.loop.now + pause
        if not pause:
            when = self._next = max(self._next + 1 / SEQUENCES_PER_SECOND, when)

        def begin():
            del self._waiting[client]
            client.begin()

        self._waiting[client] = self.loop.call_at(when, begin)

    # ---- time

    def _tick(self):
        late = self.elapsed() - self._due
        # No line at the very end of the check, where finish() adds one: it would have an empty interval.
        if min(abs(self._due - end) for end in self._ends) > AT_ONCE:
            self._tell(self._interval(late))
        interval = max(self.settings.interval, AT_ONCE)  # the division by less could overflow
        self._due += interval * (1 + int(late / interval))  # skips the lines missed while suspended
        self._ticker = self.loop.call_at(self._began + self._due, self._tick)

    def _interval(self, late=0.0):
        """Ends the interval, and returns its line (dict)."""
        for client in self._clients:
            client.count()
        end, processor = self.elapsed(), time.process_time()
        seconds = end - self._closed
        share = (processor - self._processor) / seconds if seconds else 0.0
        busy = share >= BUSY and seconds >= BUSY_LEAST
        self._busy += seconds * busy
        line = {"type": "interval", "begin": self._closed, "end": end, "seconds": seconds}
        line.update(self.kept.close_interval().summary(seconds))
        line.update(outage=self.kept.outage(end), processor=share, busy=busy, late=max(late, 0.0))
        self._closed, self._processor, self._lines = end, processor, [0, 0]
        return line

    def _wind_down(self):
        self.state = DRAINING
        for client, timer in self._waiting.items():
            self.loop.cancel(timer)
        self._waiting.clear()
        if any(client.fetch for client in self._clients):
            self._ender = self.loop.call_at(self._began + self._ends[1], self._end)
        else:
            self._end()

    def _end(self):
        self.state = OVER
        self._over()

    def finish(self):
        """Ends the check: reports the last interval, and returns the last line (dict)."""
        self.state = OVER
        for timer in [self._ticker, self._ender] + list(self._waiting.values()):
            self.loop.cancel(timer)
        unfinished = sum(client.cancel() for client in self._clients)
        seconds = self.elapsed()
        self.kept.end_outage(seconds)
        self._tell(self._interval())
        kept, total = self.kept, self.kept.total
        line = {"type": "end", "seconds": seconds}
        line.update(total.summary(seconds))
        line.update(
            unfinished=unfinished, outages=kept.outages.count, outage_seconds=kept.outage_seconds,
            outage_list=[dict(each._asdict()) for each in kept.outages.all()],
            failure_list=[dict(each._asdict()) for each in kept.failures.all()],
            period=kept.rhythm.period(),
            processor=(self._processor - self._first_processor) / seconds if seconds else 0.0,
            busy_seconds=self._busy, status=status_of(total), verdict=verdict(total))
        line["notes"] = notes(line, kept, self.n)
        return line


def status_of(total):
    """The exit status (int) for a Tally."""
    if total.wrong:
        return ChecksumMismatch.status
    if total.broken:
        return ProtocolBroken.status
    return GIVEN_UP if total.given_up or not total.completed else 0


def verdict(total):
    """The result for a Tally (text), as a sentence."""
    if total.wrong:
        return "%s arrived with wrong numbers: the checksum differs." % counted(total.wrong, "sequence")
    if total.broken:
        return "%s ended in what no numseq server sends." % counted(total.broken, "sequence")
    if total.given_up:
        return "%s given up, %s verified." % (counted(total.given_up, "sequence"), whole(total.completed))
    if not total.completed:
        return "No sequence was completed."
    return "All sequences verified: %s, with %s." % (
        whole(total.completed), counted(total.verified, "number"))


def notes(end, kept, n):
    """Remarks on unusual results (list of sentences).

    end   the last line (dict), as far as it is complete
    kept  the Figures
    n     numbers per sequence (int)
    """
    found = []
    if end["period"]:
        found.append("Connections drop every %s: something on the way cuts them with a clock of its own."
                     % duration(end["period"]))
    ages = [drop.age for drop in kept.kept_drops.all() if drop.cause == RESET and drop.phase != CONNECTING]
    if len(ages) >= SAME_AGE_LEAST and max(ages) - min(ages) <= SAME_AGE * max(ages):
        found.append("Connections are reset at an age of %s. Where that is the server's --session-timeout, "
                     "give it to CHECK as well." % short_time(sum(ages) / len(ages)))
    if not end["connections"]:
        found.append("No connection could be made.")
    elif not end["completed"] and not end["given_up"] and not end["wrong"] and not end["broken"]:
        found.append("The time was too short for a sequence of %s numbers: take a longer --duration or a "
                     "smaller -n." % whole(n))
    if end["unfinished"] and end["completed"]:
        found.append("%s not finished when the time was over." % counted(end["unfinished"], "sequence"))
    if end["causes"][LOCAL]:
        found.append("This machine had no more ports, files or memory: take fewer --clients, or a larger -n.")
    if end["busy_seconds"] >= end["seconds"] / 2:
        found.append("The check's own processor was the limit, not the link (%.0f %% of it was used)."
                     % (100 * end["processor"]))
    elif end["busy_seconds"]:
        found.append("The check's own processor was the limit for %s." % duration(end["busy_seconds"]))
    return found


# ---- the command


def run(settings):
    """Runs the command; returns the exit status. Raises OSError, OutputFailed, Unread and Stopped."""
    patience = writer.Patience(settings.max_time)
    if settings.report is not None:
        output.require_writable(settings.report)  # fails now rather than at the end of the check
    loop = Loop()
    ended = []  # exit statuses set by a signal, --max-time or a closed output; the first one counts

    def stop(status=None):
        ended.append(status)
        loop.stop()

    missing, write = (lines.MISSING_JSON, lines.as_json) if settings.json else (MISSING, lines.as_text)
    console = Console(loop, file_of(sys.stdout), missing, lambda: stop(writer.UNREAD))

    def tell(line):
        for text in write(line):
            console.line(text)

    try:
        for number in signals.caught():
            loop.on_signal(number, lambda status=ENDED_BY[number]: stop(status))
        ended.extend(ENDED_BY[number] for number in signals.arrived)  # signals during the start
        check = Check(loop, settings, tell, loop.stop)
        if settings.max_time is not None:
            loop.call_later(settings.max_time, lambda: stop(GIVEN_UP))
        try:
            if not ended:
                loop.run()
        finally:
            end = check.finish()
    finally:
        left = console.close()
        loop.close()
    status = ended[0] if ended else None
    if status is not None:
        patience.last_words()
    try:
        try:
            if status == writer.UNREAD:
                raise writer.Unread("nobody reads standard output")
            put_lines(left, write(end) + ([] if settings.json else lines.details(check.kept)), patience)
        finally:  # a report is written whatever became of the lines, and the other way round
            if settings.report is not None:
                put_report(settings.report, check, end, patience)
    except writer.Stopped:  # nobody read one of them
        if status is None:
            raise
    if status is None or status == GIVEN_UP and end["status"]:  # wrong numbers outweigh the end of --max-time
        return end["status"]
    return status


def put_lines(left, last, patience):
    """Writes what the Console has left (bytes) and the last lines (list of text). Raises as a Writer does."""
    rest = writer.Writer(file_of(sys.stdout), patience)
    rest.write(left, flush=False)
    for text in last:
        rest.line(text, flush=False)
    rest.flush()


def put_report(path, check, end, patience):
    """Writes the report of a Check to `path`; end is the last line. Raises as output.put_file does."""
    from . import report

    output.put_file(path, report.page(check.start, end, check.kept).encode("ascii"), patience)
