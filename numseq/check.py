"""CHECK: proves a link. Fetches sequences over and over, many at a time, and verifies every number."""

import errno
import signal
import socket
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
from .transfer import BATCH, HOST, TIMEOUT, WINDOW, WINDOW_MOST, Fetch, Observer, endpoints, new_id
from .units import counted, duration, short_time, whole
from .version import __version__

VERSION = 1  # of the lines of --json; a new name does not change it
CLIENTS = 8
CLIENTS_MOST = 10000
DURATION = 10.0  # seconds
INTERVAL = 1.0  # seconds
N_USUAL = 10000  # numbers of a sequence: a connection lives for 2,000 requests, if it lives
N_SHARED = 200 * 1000  # numbers of all clients' sequences together: a second or two on a busy machine
RETRY = 10  # with the usual timeout as long as a server keeps a sequence
SESSION_TIMEOUT = 1.0  # seconds that the server lets a connection live: its default
IN_FLIGHT = 4096  # requests of all clients together: answered well within a session, also by a slow machine
SEQUENCES_PER_SECOND = 2500  # begun, at most: a server keeps 100,000 for 30 s, which are 3,333 a second
PAUSE = 1.0  # seconds before a client begins again whose sequence was given up or refused
# Seconds around the end of the session in which a reset is the session's: a busy loop is late to see that a
# connection was made, and a busy server and a long link are late to end it (two round trips beside LATE).
EARLY = 0.1
LATE = 1.0
DROP_LINES_MOST = 100  # of an interval, expected or not: more are counted
SAME_AGE = 0.1  # the part of their age by which resets may differ that have one reason
SAME_AGE_LEAST = 5  # resets, before anything is concluded from their ages
AT_ONCE = 1e-6  # seconds between two timers that are due together
BUSY_LEAST = 0.1  # seconds: in less, the share of a processor means nothing
BUSY = 0.9  # the part of a processor from which it was the limit
CONNECTING = "connecting"  # the phase before those of a Fetch

GIVEN_UP = 4  # the exit status
ENDED_BY = {signal.SIGINT: None, signal.SIGTERM: 143, signal.SIGHUP: 129}  # None is the status of the result
UNFINISHED = b"<!DOCTYPE html><title>numseq check</title><p>The check is not over yet.\n"

# This machine has no more files, memory or ports.
EXHAUSTED = EXHAUSTED_FILES | {errno.EADDRNOTAVAIL, errno.EADDRINUSE}

# The cause of a drop, by what its connection ended with.
CAUSES = (
    (socket.gaierror, LOOKUP),
    (ConnectionRefusedError, REFUSED),
    (TimeoutError, SILENCE),
    ((ConnectionResetError, BrokenPipeError, ConnectionAbortedError), RESET),
)


def add_options(add):
    """Adds the options of CHECK to its parser; `add` is its add_argument."""
    from . import options

    add("port", type=options.server_port, help="the server's port")
    add("--host", action="append", dest="hosts", type=options.host, metavar="HOST[:PORT]",
        help="the server's name or address (%s); more servers of its fleet where it is given again" % HOST)
    add("--clients", type=options.number(1, CLIENTS_MOST), default=CLIENTS, metavar="N",
        help="sequences at a time, each over a connection of its own (%(default)s)")
    add("--duration", type=options.seconds, default=DURATION, metavar="SECONDS",
        help="how long new sequences are begun (%(default)g)")
    add("--interval", type=options.seconds, default=INTERVAL, metavar="SECONDS",
        help="time from one line to the next (%(default)g)")
    add("-n", type=options.number(1, protocol.N_MOST), metavar="N",
        help="numbers of a sequence, 1 to %d (%d shared by all, but at most %d)"
             % (protocol.N_MOST, N_SHARED, N_USUAL))
    add("--batch_size", "--batch-size", type=options.number(1, protocol.BATCH_MOST), default=BATCH,
        metavar="N", help="numbers in a message (%(default)s)")
    add("--window", type=options.number(1, WINDOW_MOST), metavar="W",
        help="requests in flight of each client (%d shared by all, but at most %d)" % (IN_FLIGHT, WINDOW))
    add("--timeout", type=options.seconds, default=TIMEOUT, metavar="SECONDS",
        help="silence after which a connection is given up, also while connecting (%(default)g)")
    add("--retry", type=options.number(0, options.COUNT_MOST), default=RETRY, metavar="N",
        help="give a sequence up after an outage of N times --timeout (%(default)s)")
    add("--session-timeout", type=options.seconds, default=SESSION_TIMEOUT, metavar="SECONDS",
        help="how long the server lets a connection live, whose end is expected (%(default)g)")
    add("--max-time", type=options.seconds, metavar="SECONDS",
        help="of the whole run; then it ends with %d (no limit)" % GIVEN_UP)
    add("--json", action="store_true", help="an object for each line: docs/check.md names what is in it")
    add("--report", metavar="FILE", help="write a page with plots there, in HTML")


# ---- the check


class Client(Observer):
    """One of the clients: fetches one sequence after the other, and tells the check of its connections."""

    def __init__(self, check, number):
        self.check = check
        self.number = number
        self.fetch = None  # the Fetch that runs
        self._connected = None  # when the connection was made; None while there is none
        self._begun = 0  # numbers of the sequence before this connection
        self._counted = 0  # numbers of the sequence counted so far
        self._bytes = 0  # received on this connection
        self._sent = self._answered = 0  # messages on this connection
        self._left = 0  # bytes of the input that were there the last time
        self._mark = None  # (number of a request, when it was sent): what times the next round trip
        self._round_trip = 0.0  # the last one

    def begin(self):
        """Begins a sequence, if it is not too late."""
        check, settings = self.check, self.check.settings
        if check.state is RUNNING:
            self._counted = 0
            journal = Journal(new_id(), check.n, settings.batch_size)
            self.fetch = Fetch(check.loop, settings.hosts or HOST, settings.port, journal, self._done,
                               window=check.window, timeout=settings.timeout, retry=settings.retry,
                               observer=self, known=check.known)

    def cancel(self):
        """Ends the sequence, if there is one; returns whether there was."""
        fetch, self.fetch = self.fetch, None
        if fetch is not None:
            self._count(len(fetch.journal.numbers))
            fetch.cancel()
        return fetch is not None

    def count(self):
        """Counts the numbers that have come."""
        if self.fetch is not None:
            self._count(len(self.fetch.journal.numbers))

    def _count(self, have):
        if have > self._counted:
            self.check.kept.progress(self.check.elapsed(), have - self._counted)
            self._counted = have

    def _done(self, fetch, error):
        self.fetch = self._connected = None
        self._count(len(fetch.journal.numbers) if fetch.checksum is None else fetch.journal.n)
        self.check.finished(self, fetch, error)

    # ---- what the Fetch tells

    def connected(self):
        self.check.kept.now.connections += 1
        self._connected = self.check.loop.now
        self._begun = len(self.fetch.journal.numbers)
        self._bytes = self._sent = self._answered = self._left = 0
        self._mark = None

    def sent(self, messages):
        """Counts the bytes, and notes the time of a request, unless one is timed already."""
        if self._mark is None:
            self._mark = self._sent + 1, self.check.loop.now
        self._sent += messages.count(b";")
        self.check.kept.now.bytes_sent += len(messages)

    def received(self, data):
        kept, count = self.check.kept, len(data) - self._left
        if count:
            self._bytes += count
            self._answered += data.count(b";")  # there is none in what was left
            self._left = len(data) - data.rfind(b";") - 1
            kept.receive(self.number, self.check.elapsed(), count)
            if self._mark is not None and self._answered >= self._mark[0]:
                self._round_trip = self.check.loop.now - self._mark[1]
                kept.now.round_trips.add(self._round_trip)
                self._mark = None
        self.count()

    def lost(self, error):
        """Tells the check of the drop."""
        self.count()
        made = self._connected is not None
        age = self.check.loop.now - self._connected if made else 0.0
        cause = cause_of(error)
        if cause is RESET and self._is_over(age):
            cause = SESSION
        self.check.dropped(Drop(
            self.check.elapsed(), cause, cause is SESSION, self.fetch.phase if made else CONNECTING, age,
            self._bytes if made else 0, self._counted - self._begun if made else 0, self.number, str(error)))
        self._connected = None

    def _is_over(self, age):
        """Whether a connection of that age is at the end of its session."""
        end = self.check.settings.session_timeout
        return end - EARLY <= age <= end + LATE + 2 * self._round_trip


def cause_of(error):
    """The cause of a drop: of a ConnectionLost, or of a Refused that passes."""
    if not isinstance(error, ConnectionLost):
        return REFUSED
    if error.cause is None:
        return END
    if error.cause.errno in EXHAUSTED:
        return LOCAL
    return next((cause for kinds, cause in CAUSES if isinstance(error.cause, kinds)), NETWORK)


# The states of a check.
RUNNING = "running"
DRAINING = "draining"  # sequences that run may be completed, but none is begun
OVER = "over"


class Check:
    """Runs the clients, and tells what happens.

    settings   as add_options has them (a namespace)
    tell       tell(line) is called with each line that is due but the last (dicts, as --json has them)
    over       over() is called when the check has ended by itself; `finish` makes the last line
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
        self._waiting = {}  # from client to the timer of its next sequence
        self._next = loop.now  # when the next sequence may be begun
        self._began = loop.now
        self._closed = 0.0  # the end of the last interval
        self._due = settings.interval  # the end of the interval that runs
        self._ends = settings.duration, settings.duration + settings.timeout  # of RUNNING and of DRAINING
        self._processor = time.process_time()
        self._first_processor = self._processor
        self._busy = 0.0  # seconds of intervals in which the processor was the limit
        self._lines = [0, 0]  # drops told in this interval: unexpected ones, expected ones
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
        """Seconds since the check began."""
        return self.loop.now - self._began

    # ---- for its clients

    def dropped(self, drop):
        """A connection was lost, or could not be made."""
        self.kept.drop(drop)
        if self._lines[drop.expected] < DROP_LINES_MOST:
            self._lines[drop.expected] += 1
            self._tell(dict(type="drop", **drop._asdict()))

    def finished(self, client, fetch, error):
        """A sequence has come to its end: error is a FetchError or None."""
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
        """Begins the next sequence of a client after the pause, or as soon as the pace of all allows it."""
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
        if min(abs(self._due - end) for end in self._ends) > AT_ONCE:  # or the last interval would be empty
            self._tell(self._interval(late))
        interval = self.settings.interval
        self._due += interval * (1 + int(late / interval))  # a machine that was stopped leaves lines out
        self._ticker = self.loop.call_at(self._began + self._due, self._tick)

    def _interval(self, late=0.0):
        """The line of the interval that ends now (dict)."""
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
        """Ends everything; tells the last interval, and returns the last line (dict)."""
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
    """The exit status (int) of a Tally."""
    if total.wrong:
        return ChecksumMismatch.status
    if total.broken:
        return ProtocolBroken.status
    return GIVEN_UP if total.given_up or not total.completed else 0


def verdict(total):
    """The result of a Tally, as a sentence."""
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
    """What a reader of the last line should know (list of sentences)."""
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
        found.append("The check's own processor was the limit, not the link (%.0f %% of it were used)."
                     % (100 * end["processor"]))
    elif end["busy_seconds"]:
        found.append("The check's own processor was the limit for %s." % duration(end["busy_seconds"]))
    return found


# ---- the command


def run(settings, program):
    """Runs the command; returns the exit status. Raises OutputFailed, Unread and Stopped."""
    loop = Loop()
    ended = []  # the status that a signal or the reader's end has decided

    def stop(status=None):
        ended.append(status)
        loop.stop()

    missing, write = (lines.MISSING_JSON, lines.as_json) if settings.json else (MISSING, lines.as_text)
    console = Console(loop, file_of(sys.stdout), missing, lambda: stop(writer.UNREAD))

    def tell(line):
        for text in write(line):
            console.line(text)

    if settings.report is not None:
        output.put_file(settings.report, UNFINISHED)  # whether it can be written is better known now
    try:
        for number, status in ENDED_BY.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                loop.on_signal(number, lambda status=status: stop(status))
        ended.extend(ENDED_BY[number] for number in signals.arrived)  # while this was starting
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
    if status == writer.UNREAD:
        raise writer.Unread("nobody reads standard output")
    if settings.report is not None:
        put_report(settings.report, check, end)
    last = write(end) + ([] if settings.json else lines.details(check.kept))
    rest = writer.Writer(file_of(sys.stdout))
    rest.write(left, flush=False)
    for text in last:
        rest.line(text)
    if status is None or status == GIVEN_UP and end["status"]:  # wrong numbers are worse than too little time
        return end["status"]
    return status


def put_report(path, check, end):
    """Writes the page. Raises as output.put_file does."""
    from . import report

    output.put_file(path, report.page(check.start, end, check.kept).encode("ascii"))
