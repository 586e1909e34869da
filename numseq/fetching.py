"""The client's command line: fetches a sequence over as many connections as it takes, and verifies it."""

import os
import sys

from . import files, journal, protocol, shell, signals, writer
from .console import open_standard_streams
from .errors import ChecksumMismatch, ConnectionLost, Forgotten, Refused, UsageError
from .loop import Loop
from .output import Output, put_numbers, require_writable
from .transfer import BATCH, HOST, STATE, TIME_OVER, TIMEOUT, WINDOW, WINDOW_MOST, Fetch, endpoints, new_id

# Exit statuses beside those of errors.py and writer.py. After a signal it is SIGNALLED plus its number.
COMPLETE = 0
SIGNALLED = 128

DESCRIPTION = "Fetches a sequence of numbers over connections that drop, and verifies it."
STATUSES = """exit statuses:
  0    complete, and the checksum is valid
  1    complete, but the checksum does not match; the numbers are dropped
  2    the command line or a path is wrong, or the state is missing or in use
  3    refused by the server (ERR)
  4    connection failed or lost, or --max-time is over; CONTINUE can go on
  5    the server broke the protocol
  74   the output cannot be written
  129  ended by SIGHUP; CONTINUE can go on
  130  interrupted (SIGINT); CONTINUE can go on
  141  nobody reads the output
  143  ended by SIGTERM; CONTINUE can go on"""

TEXTS = {number: "interrupted" if name == "SIGINT" else "ended by " + name
         for name, number in signals.NUMBERS.items()}

CHECK_DESCRIPTION = "Tests a link: fetches sequences continuously, and verifies every number."
CHECK_STATUSES = """exit statuses:
  0    every sequence was completed and verified
  1    a checksum does not match: numbers arrived wrong
  2    the command line is wrong
  4    a sequence was given up, or none was completed
  5    the server broke the protocol
  74   the output cannot be written
  129  ended by SIGHUP, 143 by SIGTERM; SIGINT ends it as if its time were over
  141  nobody reads the output"""


def parse_arguments(arguments, program):
    """The settings (a namespace). Wrong arguments end the program with a line on standard error."""
    from . import options

    parser = options.Parser(prog=program, description=DESCRIPTION, epilog=STATUSES)
    parser.add_version()
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    new = commands.add_parser("NEW", help="fetch a new sequence", description="Fetches a new sequence.",
                              epilog=STATUSES)
    more = commands.add_parser("CONTINUE", help="continue the last sequence",
                               description="Continues the sequence of the last NEW from its state file.",
                               epilog=STATUSES)
    new.add_argument("n", type=options.number(0, protocol.N_MOST),
                     help="how many numbers, 0 to %d" % protocol.N_MOST)
    for command in (new, more):
        add = command.add_argument
        add("port", type=options.server_port, help="the server's port")
        if command is new:
            add("--client_id", "--client-id", type=options.client_id, metavar="UUID",
                help="the id under which the server keeps the sequence (a new one)")
            add("--batch_size", "--batch-size", type=options.number(1, protocol.BATCH_MOST), default=BATCH,
                metavar="N", help="numbers in a message (%(default)s)")
        add("--host", action="append", dest="hosts", type=options.host, metavar="HOST[:PORT]",
            help="the server's name or address (%s); repeat it for more servers with the same store" % HOST)
        add("--state", default=STATE, metavar="PATH",
            help="the file that CONTINUE continues from (%(default)s in the current directory)")
        add("--retry", type=options.number(0, options.COUNT_MOST), default=0, metavar="N",
            help="reconnect and continue by itself; survives an outage of N times --timeout (%(default)s)")
        add("--timeout", type=options.seconds, default=TIMEOUT, metavar="SECONDS",
            help="give a connection up after this long without input, also while connecting (%(default)s)")
        add("--max-time", type=options.seconds, metavar="SECONDS",
            help="end the whole run after this long (no limit)")
        add("--window", type=options.number(1, WINDOW_MOST), metavar="W",
            help="requests in flight, at most (1, or %d with --quiet)" % WINDOW)
        add("--output", metavar="FILE",
            help="write the verified numbers to this file, one per line; - is standard output")
        add("-q", "--quiet", action="store_true", help="print only the result")
        add("--no-progress", dest="progress", action="store_false", help="show no progress on a terminal")
        add("--version", action=options.Version)
    test = commands.add_parser("CHECK", help="test a link", description=CHECK_DESCRIPTION,
                               epilog=CHECK_STATUSES)
    if "CHECK" in arguments:
        from . import check

        check.add_options(test.add_argument)
        test.set_defaults(run=check.run)
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    settings = parser.parse_args(arguments)
    if settings.command is None:
        parser.error("a command is missing: NEW, CONTINUE or CHECK")
    try:
        endpoints(settings.hosts or HOST, settings.port)
    except UsageError as error:
        parser.error(error)
    return settings


class Command:
    """One run of NEW or CONTINUE.

    settings   the result of parse_arguments (a namespace)
    program    the program's name (text), for messages
    arguments  the command line after the program's name (list of text)
    """

    def __init__(self, settings, program, arguments):
        self.settings = settings
        self.program = program
        self.arguments = arguments
        self.patience = writer.Patience(settings.max_time)
        self.output = Output(program, settings.output, self.patience)
        self.transfer = None
        self.error = None  # the FetchError that ended the fetch, if any

    def run(self):
        """Fetches, reports the result, and returns the exit status.

        Raises OutputFailed, Stopped and OSError.
        """
        try:
            self.check_output()
            kept = self.open_journal()
        except UsageError as error:
            self.output.complain(error)
            return error.status
        try:
            self.fetch(kept)
            return self.conclude()
        except writer.Stopped:
            return self.stop()
        finally:
            kept.close()

    def check_output(self):
        """Raises UsageError if --output cannot be a file, and OutputFailed if it cannot be written."""
        output, state = self.settings.output, self.settings.state
        if output is None:
            return
        if output != "-":
            try:
                files.require_usable(output)
            except OSError as error:
                raise UsageError("--output %a cannot be used: %s" % (output, error.strerror)) from None
            if files.is_same(output, state):
                raise UsageError("--output and --state are the same file: %a" % output)
        require_writable(output)

    def open_journal(self):
        """The Journal of this run. Raises UsageError."""
        settings = self.settings
        if settings.command == "CONTINUE":
            return journal.load(settings.state, self.output.complain, claim=True)
        kept = journal.Journal(settings.client_id or new_id(), settings.n, settings.batch_size,
                               path=settings.state, complain=self.output.complain)
        kept.claim()
        return kept

    def fetch(self, kept):
        """Runs the fetch until it ends or a signal arrives. Raises OSError, OutputFailed and Stopped."""
        settings = self.settings
        loop = Loop()
        try:
            for number in signals.caught():
                loop.on_signal(number, lambda number=number: self.signalled(loop, number))
            signals.catch()  # the loop still wakes up; a Writer that waits looks at signals.arrived
            window = settings.window or (WINDOW if settings.quiet else 1)
            watch = None if settings.quiet else self.output.event
            self.transfer = Fetch(loop, settings.hosts or HOST, settings.port, kept,
                                  lambda transfer, error: self.done(loop, error),
                                  settings.command == "CONTINUE", window, settings.timeout, settings.retry,
                                  watch, max_time=settings.max_time)
            self.output.show_progress(loop, self.transfer, settings.quiet and settings.progress)
            if not signals.arrived:
                loop.run()
        finally:
            try:
                self.output.close_progress()
                if self.transfer is not None:
                    self.transfer.cancel()
            finally:
                loop.close()

    def signalled(self, loop, number):
        """Ends the fetch because of a signal."""
        if not signals.arrived:  # it arrived between on_signal and catch
            signals.remember(number)
        loop.stop()

    def done(self, loop, error):
        """Called once at the end of the fetch, with a FetchError or None."""
        self.error = error
        loop.stop()

    def conclude(self):
        """Writes the last lines, and returns the exit status. Raises OutputFailed and Stopped."""
        transfer, error, complain = self.transfer, self.error, self.output.complain
        if signals.arrived:
            raise writer.Stopped
        self.output.result(transfer, error)
        self.output.flush()
        if error is None:
            if self.settings.output is not None:
                put_numbers(self.settings.output, bytes(transfer.journal.numbers), self.patience)
            return COMPLETE
        if isinstance(error, ChecksumMismatch):
            again = "; CONTINUE fetches them again" if transfer.journal.kept else ""
            complain("these are not the server's numbers, so they were dropped" + again)
        elif self.settings.quiet or error.advises:
            refused = isinstance(error, Refused) and not isinstance(error, Forgotten)
            complain("refused: %s" % error if refused else error)
        self.hint(error.resumable)
        return error.status

    def stop(self):
        """Reports the end by a signal, or by --max-time while the output blocked; returns the exit status."""
        self.patience.last_words()
        if signals.arrived:
            status, text = SIGNALLED + signals.arrived[0], TEXTS[signals.arrived[0]]
        else:
            status, text = ConnectionLost.status, TIME_OVER % self.settings.max_time
        try:
            self.output.flush()
        except (writer.OutputFailed, writer.Stopped):
            pass
        try:
            self.output.complain(text)
            self.hint(True)
        except writer.Stopped:
            pass
        return status

    def hint(self, possible):
        """Prints the command line that goes on with the sequence, if that is possible (bool)."""
        settings = self.settings
        if not possible or self.transfer is None or not self.transfer.journal.kept:
            return
        words = shell.program_as_called(self.arguments, self.program) + ["CONTINUE", str(settings.port)]
        hosts = [("--host", host, None) for host in settings.hosts or ()]
        for name, value, default in hosts + [("--state", settings.state, STATE),
                                             ("--output", settings.output, None),
                                             ("--retry", str(settings.retry), "0")]:
            if value != default:
                # argparse accepts a value with a leading dash only in the form --name=value.
                words += ["%s=%s" % (name, value)] if value[:1] == "-" and value != "-" else [name, value]
        self.output.hint(shell.join(words))


def main(arguments=None, program=None):
    """Runs a command line and returns the exit status.

    arguments  without the program's name (list of text); by default those of the process
    program    the program's name (text); by default that of the process
    """
    taken = signals.catch()
    open_standard_streams()
    program = program or os.path.basename(sys.argv[0])
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        settings = parse_arguments(arguments, program)
        if settings.command == "CHECK":
            return settings.run(settings)
        return Command(settings, program, arguments).run()
    except writer.OutputFailed as error:
        return writer.report(program, error)
    except OSError as error:  # no more file descriptors, or one that the selector cannot watch
        return writer.report(program, ConnectionLost("the connection cannot be made: %s" % error))
    except writer.Stopped:  # while an error message was blocked
        return SIGNALLED + signals.arrived[0] if signals.arrived else ConnectionLost.status
    finally:
        signals.restore(taken)
