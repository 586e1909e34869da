#!/usr/bin/env python3
"""The client: fetches a sequence, continues it over as many connections as it takes, and verifies it.

    python numseq/client.py NEW 5 5000
    python numseq/client.py CONTINUE 5000
"""

if __name__ == "__main__" and not __package__:  # run as a file: let the package be found, and run it from there
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from numseq.client import main

    sys.exit(main())

import collections
import os
import random
import signal
import sys

from . import console, digits, journal, protocol, sequence
from .errors import ChecksumMismatch, ConnectionLost, FetchError, ProtocolBroken, Refused, UsageError
from .loop import PORT_MOST, Loop

HOST = "127.0.0.1"
BATCH = 5  # numbers in a batch
STATE = "numseq.state"  # the file in the current directory that CONTINUE reads
TIMEOUT = 3.0  # seconds of silence, also while connecting, after which a connection is given up
WINDOW = 1024  # requests in flight when nobody reads along: as many as the server answers in one turn
WINDOW_MOST = protocol.N_MOST  # there are no more batches
PAUSE_FIRST = 0.05  # seconds before the first new try, doubled for each that follows without progress
PAUSE_MOST = 5.0  # seconds
PROGRESS_PAUSE = 0.1  # seconds between two looks at the progress

# Exit statuses beside those of the errors.
COMPLETE = 0
OUTPUT_FAILED = 74  # as sysexits.h has it: EX_IOERR
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE  # nobody reads the output any more, as the shell counts it

Result = collections.namedtuple("Result", ["numbers", "sum", "checksum", "client_id"])

OPENING, RECEIVING, FINISHING = "opening", "receiving", "finishing"  # the phases of a connection


class Fetch:
    """One sequence on its way here, over as many connections as it takes. Any number of them share a loop.

    begun     the Journal of what there is already
    done      done(fetch, error) is called once, when the fetch is over; error is a FetchError, or None when the
              numbers are complete and verified
    resume    whether the server has the sequence already (bool)
    window    requests in flight, at most
    timeout   seconds of silence after which a connection is given up
    retry     new connections without progress before the fetch is given up
    watch     watch(event, text) is called for each thing that happens: see TRANSCRIPT. It costs the fast path.
    """

    def __init__(self, loop, host, port, begun, done, resume=False, window=WINDOW, timeout=TIMEOUT, retry=0,
                 watch=None):
        self.loop = loop
        self.journal = begun
        self.checksum = None  # as the server said it, in the end
        self.sum = None  # of the numbers, in the end
        self.drops = 0  # connections lost
        self._address = host, port
        self._done = done
        self._created = resume  # whether the server has the sequence; None where INIT was sent and not answered
        self._window = max(window, 1)
        self._timeout = timeout
        self._retry = retry
        self._watch = watch
        self._failures = 0  # in a row, without progress
        self._link = None  # a Connector or a Stream; None while pausing, and once it is over
        self._timer = None
        self._heard = 0.0  # when the link was made, or the server last said something
        self._acknowledged = False
        self._asked = 0  # batches that this connection need not ask for any more
        self._searched = 0  # bytes of the stream's input that have no end of a message
        self._connect()

    def cancel(self):
        """Ends the fetch without a word. What has arrived stays in the journal."""
        self._unlink()
        self.journal.close()

    # ---- connections

    def _connect(self):
        self._heard = self.loop.now
        self._acknowledged = False
        self._searched = 0
        self._timer = self.loop.call_later(self._timeout, self._check_silence)
        try:
            self._link = self.loop.connect(*(self._address + (self,)))
        except OSError as error:  # of the name's look-up
            self.loop.cancel(self._timer)
            lost = ConnectionLost(str(error))
            self._timer = self.loop.call_later(0, lambda: self._lost(lost))  # the caller has this object in hand first

    def _unlink(self):
        self.loop.cancel(self._timer)
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    def _check_silence(self):
        if self._heard + self._timeout > self.loop.now:
            self._timer = self.loop.call_at(self._heard + self._timeout, self._check_silence)
        else:
            self._lost(ConnectionLost("no answer for %g s" % self._timeout))

    def connected(self, stream):
        self._link = stream
        self._heard = self.loop.now
        if self._created is False:
            self._created = None
            self._send(protocol.encode(protocol.INIT, self.journal.client_id, b"%d" % self.journal.n,
                                       b"%d" % self.journal.batch))
        else:
            self._send(protocol.encode(protocol.CONT, self.journal.client_id))

    def closed(self, stream, error):
        if self._link is not None:  # and not closed from this side
            self._lost(ConnectionLost(str(error) if error else "The server closed the connection"))

    def _lost(self, error):
        """The connection is gone, or of no use: tries again, or ends."""
        self._unlink()
        self.drops += 1
        error.resumable = self._created is True
        if self._watch:
            self._watch("error", str(error))
        if self._failures >= self._retry:
            self._end(error)
            return
        pause = min(PAUSE_FIRST * 2 ** min(self._failures, 32), PAUSE_MOST)
        self._failures += 1
        # With jitter, or all clients of a server that was away come back at once.
        self._timer = self.loop.call_later(pause * random.uniform(0.5, 1), self._connect)

    def _end(self, error):
        self._unlink()
        self.journal.close()
        self._done(self, error)

    # ---- messages

    def received(self, stream):
        self._heard = self.loop.now
        had = len(self.journal.numbers)
        error = None
        try:
            self._take(stream)
        except protocol.ProtocolError as broken:
            error = ProtocolBroken("The server broke the protocol: %s" % broken, self._created is True)
        except FetchError as refused:
            error = refused
        if len(self.journal.numbers) > had:
            self._failures = 0
            self.journal.flush()
        if error is not None:
            self._fail(error)
        elif self._link is stream:
            self._ask()
            if stream.ended:
                self.closed(stream, None)

    def _take(self, stream):
        """Takes what the server said. Raises ProtocolError and Refused."""
        begun = self.journal
        if self._phase() is RECEIVING and not self._watch:
            full = min(self._asked, begun.n // begun.batch) - begun.batches()
            run = protocol.split_numbers(stream.input, begun.batch, full) if full > 0 else None
            if run is not None:
                numbers, taken = run
                begun.numbers += numbers
                stream.input = stream.input[taken:]
                self._searched = 0
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
                take = EXPECTED.get((self._phase(), kind))
                if take is None:
                    raise protocol.ProtocolError("an answer to nothing")
                take(self, content)
        finally:
            if position:
                stream.input = data[position:]

    def _phase(self):
        if not self._acknowledged:
            return OPENING
        return RECEIVING if self._asked <= self.journal.total() else FINISHING

    def _take_ack(self, content):
        self._acknowledged = True
        self._asked = self.journal.batches()
        if not self.journal.is_open():
            self.journal.begin()
        self._created = True
        if self._watch:
            self._watch("requesting", "")
            for index in range(self._asked):
                self._watch("skipping", index)

    def _take_num(self, numbers):
        begun = self.journal
        index = begun.batches()
        if index == self._asked:
            raise protocol.ProtocolError("an answer to nothing")
        expected = min(begun.batch, begun.n - len(begun.numbers))
        if len(numbers) != expected:
            raise protocol.ProtocolError("%d numbers in batch %d, which has %d" % (len(numbers), index, expected))
        begun.numbers += numbers

    def _take_fac(self, checksum):
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

    def _ask(self):
        """Asks for as many batches as the window has room for, once half of it is free; FIN when all are here."""
        have, total = self.journal.batches(), self.journal.total()
        if self._phase() is not RECEIVING:
            return
        if have == total:
            self._asked = total + 1
            self._send(protocol.FIN_MESSAGE)
        elif (self._asked - have) * 2 <= self._window:
            first, self._asked = self._asked, min(have + self._window, total)
            self._send(protocol.encode_receives(first, self._asked))

    def _send(self, messages):
        if self._watch:
            for message in messages.split(b";")[:-1]:
                self._watch("sending", protocol.printable(message) + ";")
        self._link.write(messages)

    def _fail(self, error):
        """An answer that ends the fetch, unless another connection can make up for it."""
        if self._created is None and str(error) == protocol.DOES_NOT_EXIST.format(self.journal.client_id.decode("ascii")):
            self._created = False  # an INIT that was not answered has not arrived either
            self._unlink()
            self._connect()
        elif str(error) == protocol.TOO_MANY_CONNECTIONS and self._failures < self._retry:
            self._lost(error)
        else:
            if self._watch and not isinstance(error, Refused):
                self._watch("error", str(error))
            self._end(error)


# What is expected when; anything else breaks the protocol.
EXPECTED = {
    (OPENING, protocol.ACK): Fetch._take_ack,
    (RECEIVING, protocol.NUM): Fetch._take_num,
    (FINISHING, protocol.FAC): Fetch._take_fac,
}


# ---- as a library


def fetch(n, port, host=HOST, batch_size=BATCH, client_id=None, state=None, window=WINDOW, timeout=TIMEOUT, retry=0):
    """Fetches a new sequence of n numbers (0 to 65,535) from the server at port, and returns when it is verified.

    host        name or address (text, ASCII)
    batch_size  numbers in a message (1 to 65,535)
    client_id   the UUID (text) under which the server keeps the sequence; by default a new one
    state       path of a file in which `resume` finds what has arrived; by default there is none
    window      requests in flight, at most
    timeout     seconds of silence after which a connection is given up; connecting counts
    retry       new connections without progress before the fetch is given up

    Returns a Result: numbers (list of int, 0 to 100), sum (int), checksum (32 hex digits), client_id (text).
    Raises UsageError, Refused, ConnectionLost, ProtocolBroken or ChecksumMismatch, all of them FetchErrors, whose
    `resumable` says whether `resume` can go on. It runs a loop of its own until then; for many at once see Fetch.
    """
    name = new_id() if client_id is None else str(client_id).encode("ascii", "replace")
    for fits, what in (
        (0 <= n <= protocol.N_MOST, protocol.INVALID_N),
        (1 <= batch_size <= protocol.BATCH_MOST, protocol.INVALID_BATCH),
        (protocol.is_id(name), protocol.INVALID_ID),
    ):
        if not fits:
            raise UsageError(what)
    return _fetch_now(journal.Journal(name, n, batch_size, path=state), host, port, False, window, timeout, retry)


def resume(port, state=STATE, host=HOST, window=WINDOW, timeout=TIMEOUT, retry=0):
    """Goes on with the sequence of a state file; otherwise as `fetch`."""
    return _fetch_now(journal.load(state), host, port, True, window, timeout, retry)


def _fetch_now(begun, host, port, resumed, window, timeout, retry):
    if not 1 <= port <= PORT_MOST:  # getaddrinfo would take it modulo 65,536
        raise UsageError("Invalid port: 1 to %d" % PORT_MOST)
    loop = Loop()
    errors = []

    def done(fetch, error):
        errors.append(error)
        loop.stop()

    try:
        fetched = Fetch(loop, host, port, begun, done, resumed, window, timeout, retry)
        try:
            loop.run()
        finally:
            fetched.cancel()
    finally:
        loop.close()
    error = errors[0]
    if error is not None:
        error.resumable = error.resumable and begun.kept
        raise error
    return Result(list(begun.numbers), fetched.sum, fetched.checksum, begun.client_id.decode("ascii"))


def new_id():
    """A new client id (bytes): a random UUID, version 4 of RFC 4122."""
    value = bytearray(os.urandom(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    text = "".join(map("{:02x}".format, value))
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])).encode("ascii")


# ---- the command line

DESCRIPTION = "Fetches a sequence of numbers over connections that drop, and verifies it."
STATUSES = """exit statuses:
  0    complete, and the checksum is valid
  1    complete, but the checksum does not match; what arrived is dropped
  2    the command line is wrong, or there is no state to continue from
  3    refused by the server (ERR)
  4    connection failed or lost; CONTINUE can go on
  5    the server broke the protocol
  74   the output cannot be written
  130  interrupted; CONTINUE can go on
  141  nobody reads the output any more"""

# What the transcript says of each event.
TRANSCRIPT = {
    "sending": "Sending message: '%s'",
    "received": "Received: %s",
    "requesting": "Requesting numbers%s",
    "skipping": "Skipping chunk-nr: %s",
    "closing": "Closing the connection%s",
    "error": "ERROR: %s",
}
FLUSHED = frozenset(["sending", "error"])  # what is followed by a wait


def parse_arguments(arguments, program):
    """The settings; leaves the program with a message where there is something wrong with them."""
    from . import options

    parser = options.Parser(prog=program, description=DESCRIPTION, epilog=STATUSES,
                            formatter_class=options.RawDescription)
    parser.add_version()
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    # The prog of the commands' own messages is the whole program's.
    new = commands.add_parser("NEW", help="fetch a new sequence", description="Fetches a new sequence.",
                              epilog=STATUSES, formatter_class=options.RawDescription)
    more = commands.add_parser("CONTINUE", help="go on with the last one",
                               description="Goes on with the sequence of the last NEW, of which it has the state.",
                               epilog=STATUSES, formatter_class=options.RawDescription)
    new.add_argument("n", type=options.number(0, protocol.N_MOST), help="how many numbers, 0 to %d" % protocol.N_MOST)
    for command in (new, more):
        add = command.add_argument
        add("port", type=options.server_port, help="the server's port")
        if command is new:
            add("--client_id", "--client-id", type=options.client_id, metavar="UUID",
                help="the id under which the server keeps the sequence (a new one)")
            add("--batch_size", "--batch-size", type=options.number(1, protocol.BATCH_MOST), default=BATCH, metavar="N",
                help="numbers in a message (%(default)s)")
        add("--host", default=HOST, help="the server's name or address (%(default)s)")
        add("--state", default=STATE, metavar="PATH",
            help="the file that CONTINUE goes on from (%(default)s in the current directory)")
        add("--retry", type=options.number(0, options.COUNT_MOST), default=0, metavar="N",
            help="reconnect and continue, up to N times without progress (%(default)s)")
        add("--timeout", type=options.seconds, default=TIMEOUT, metavar="SECONDS",
            help="silence after which a connection is given up (%(default)s)")
        add("--window", type=options.number(1, WINDOW_MOST), metavar="W",
            help="requests in flight (1, or %d with --quiet)" % WINDOW)
        add("--output", metavar="FILE", help="put the numbers there once they are verified, one a line; - is standard output")
        add("-q", "--quiet", action="store_true", help="print the result alone")
        add("--no-progress", dest="progress", action="store_false", help="show no progress on a terminal")
        add("--version", action="version", version=options.VERSION)
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    settings = parser.parse_args(arguments)
    if settings.command is None:
        parser.error("one of the commands NEW and CONTINUE has to be there")
    options.forget()
    return settings


class OutputFailed(Exception):
    """Standard output, or the file for the numbers, cannot be written."""


class Command:
    """One run of the command line: what is said to the user, and the exit status."""

    def __init__(self, settings, program):
        self.settings = settings
        self.program = program
        self.loop = Loop()
        self.error = None  # what the fetch ended with
        self.interrupted = False
        # With the numbers on standard output, what is for a person goes where complaints go.
        self.lines = sys.stderr if settings.output == "-" else sys.stdout

    def run(self):
        """Fetches, tells what came of it, and returns the exit status."""
        settings = self.settings
        resumed = settings.command == "CONTINUE"
        if resumed:
            try:
                begun = journal.load(settings.state, self.complain)
            except UsageError as error:
                self.complain(error)
                return error.status
        else:
            begun = journal.Journal(settings.client_id or new_id(), settings.n, settings.batch_size,
                                    path=settings.state, complain=self.complain)
        window = settings.window or (WINDOW if settings.quiet else 1)
        fetched = Fetch(self.loop, settings.host, settings.port, begun, self.done, resumed, window,
                        settings.timeout, settings.retry, None if settings.quiet else self.transcript)
        shown = settings.quiet and settings.progress and sys.stderr is not None and sys.stderr.isatty()
        progress = Progress(self.loop, fetched, sys.stderr) if shown else None
        self.loop.on_signal(signal.SIGINT, self.interrupt)
        try:
            self.loop.run()
        finally:
            if progress:
                progress.close()
            fetched.cancel()
            self.loop.close()
        return self.conclude(fetched)

    def done(self, fetch, error):
        self.error = error
        self.loop.stop()

    def interrupt(self):
        self.interrupted = True
        self.loop.stop()

    def conclude(self, fetched):
        """The last lines, and the exit status."""
        error = self.error
        if fetched.checksum is not None:
            self.say("The SUM of numbers is: %d" % fetched.sum)
            self.say("Checksum (%s) is %s!" % (fetched.checksum, "valid" if error is None else "not valid"))
        if self.interrupted:
            self.complain("interrupted")
            self.hint(fetched.journal.kept)
            return INTERRUPTED
        if error is None:
            if self.settings.output is not None:
                put_numbers(self.settings.output, bytes(fetched.journal.numbers))
            return COMPLETE
        if isinstance(error, ChecksumMismatch):
            self.complain("the numbers are not those of the server and were dropped, CONTINUE fetches them anew")
        elif self.settings.quiet:
            self.complain("refused: %s" % error if isinstance(error, Refused) else error)
        self.hint(error.resumable and fetched.journal.kept)
        return error.status

    def hint(self, possible):
        """How to go on."""
        settings = self.settings
        if possible:
            options = [" %s %s" % (name, value if value.isprintable() and " " not in value else repr(value))
                       for name, value, default in (("--host", settings.host, HOST), ("--state", settings.state, STATE))
                       if value != default]
            self.complain("to go on: %s CONTINUE %d%s" % (self.program, settings.port, "".join(options)))

    def transcript(self, event, detail):
        self.say(TRANSCRIPT[event] % detail, event in FLUSHED)

    def say(self, text, flush=True):
        """A line for the user; raises what `put_line` does."""
        put_line(self.lines, text, flush)

    def complain(self, text):
        """A line on standard error."""
        complain(self.program, text)


def put_line(file, text, flush=True):
    """Writes text as a line to an open file, or nowhere where that is None.

    Raises BrokenPipeError, and OutputFailed for any other trouble.
    """
    if file is not None:
        try:
            file.write(console.plain(str(text)) + "\n")
            if flush:
                file.flush()
        except OSError as error:
            discard(file)
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputFailed(error) from None


def complain(program, text):
    """A line on standard error, if there is anybody to tell."""
    try:
        put_line(sys.stderr, "%s: %s" % (program, text))
    except (BrokenPipeError, OutputFailed):
        pass


def discard(file):
    """Lets all that is still to be written to an open file vanish: it failed, and would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def put_numbers(path, numbers):
    """Writes the numbers (bytes), one a line, to a file, which is put in place whole; `-` is standard output.

    Raises BrokenPipeError, and OutputFailed for any other trouble.
    """
    place = digits.place(b"\n")
    text = digits.unpad(digits.pad(numbers, place, len(place)))
    try:
        if path == "-":
            if sys.stdout is not None:
                journal.write_whole(sys.stdout.fileno(), text)
        elif os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe cannot be replaced
            with open(path, "wb", buffering=0) as file:
                journal.write_whole(file.fileno(), text)
        else:
            os.close(journal.replace(os.path.realpath(path), text))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed("%a cannot be written: %s" % (path, error.strerror)) from None


class Progress:
    """How far a fetch is, on a terminal, while it goes on."""

    def __init__(self, loop, fetched, terminal):
        self._loop = loop
        self._fetch = fetched
        self._terminal = terminal
        self._began = loop.now
        self._had = len(fetched.journal.numbers)
        self._timer = loop.call_later(PROGRESS_PAUSE, self._show)

    def close(self):
        """Leaves no trace."""
        self._loop.cancel(self._timer)
        self._write("")

    def _show(self):
        self._timer = self._loop.call_later(PROGRESS_PAUSE, self._show)
        begun = self._fetch.journal
        have = len(begun.numbers)
        rate = (have - self._had) / max(self._loop.now - self._began, PROGRESS_PAUSE)
        left = "%.0f s left" % ((begun.n - have) / rate) if rate else "waiting"
        share = 100 * have // begun.n if begun.n else 100
        self._write("%d %%, %.0f numbers/s, %s, %d drops" % (share, rate, left, self._fetch.drops))

    def _write(self, text):
        try:
            self._terminal.write("\r\x1b[K" + text)
            self._terminal.flush()
        except OSError:  # the terminal has gone; the fetch has not
            discard(self._terminal)


def main(arguments=None, program=None):
    """The command line (a list of text; by default the process's own); returns the exit status."""
    console.open_standard_streams()
    program = program or os.path.basename(sys.argv[0])
    try:
        settings = parse_arguments(sys.argv[1:] if arguments is None else arguments, program)
        return Command(settings, program).run()
    except KeyboardInterrupt:  # before the loop has taken over
        return INTERRUPTED
    except (BrokenPipeError, OutputFailed) as error:
        return without_output(error, program)


def without_output(error, program):
    """The exit status after a BrokenPipeError or an OutputFailed; the latter is told on standard error."""
    if isinstance(error, BrokenPipeError):
        return UNREAD
    complain(program, error)
    return OUTPUT_FAILED


if __name__ == "__main__":
    sys.exit(main())
