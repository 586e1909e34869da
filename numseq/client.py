#!/usr/bin/env python3
"""The client's command line: fetches a sequence over as many connections as it takes, and verifies it.

    python numseq/client.py NEW 5 5000
    python numseq/client.py CONTINUE 5000
"""

if __name__ == "__main__" and not globals().get("__package__"):  # run as a file: find the package
    import sys

    try:
        import os

        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        from numseq.client import main
    except (AttributeError, ImportError) as error:  # see docs/builds.md
        print("numseq does not run on this Python:", error, file=sys.stderr)
        sys.exit(1)
    sys.exit(main())

import os
import signal
import sys

from . import journal, output, protocol
from .console import open_standard_streams
from .errors import ChecksumMismatch, Forgotten, Refused, UsageError
from .loop import Loop
from .transfer import BATCH, HOST, STATE, TIMEOUT, WINDOW, WINDOW_MOST, Fetch, new_id

# Exit statuses beside those of errors.py and output.py.
COMPLETE = 0
INTERRUPTED = 128 + signal.SIGINT

DESCRIPTION = "Fetches a sequence of numbers over connections that drop, and verifies it."
STATUSES = """exit statuses:
  0    complete, and the checksum is valid
  1    complete, but the checksum does not match; the numbers are dropped
  2    the command line is wrong, or there is no state to continue from
  3    refused by the server (ERR)
  4    connection failed or lost; CONTINUE can go on
  5    the server broke the protocol
  74   the output cannot be written
  130  interrupted; CONTINUE can go on
  141  nobody reads the output"""

CHECK_DESCRIPTION = "Proves a link: fetches sequences over and over, and verifies every number."
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
    """The settings (a namespace).

    Where the arguments are wrong, ends the program with a line that says why.
    """
    from . import options

    parser = options.Parser(prog=program, description=DESCRIPTION, epilog=STATUSES)
    parser.add_version()
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    new = commands.add_parser("NEW", help="fetch a new sequence", description="Fetches a new sequence.",
                              epilog=STATUSES)
    more = commands.add_parser("CONTINUE", help="go on with the last sequence",
                               description="Goes on with the sequence of the last NEW, from its state file.",
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
            help="the server's name or address (%s); given again: more servers of its fleet" % HOST)
        add("--state", default=STATE, metavar="PATH",
            help="the file that CONTINUE goes on from (%(default)s in the current directory)")
        add("--retry", type=options.number(0, options.COUNT_MOST), default=0, metavar="N",
            help="reconnect and continue by itself, for an outage of N times --timeout (%(default)s)")
        add("--timeout", type=options.seconds, default=TIMEOUT, metavar="SECONDS",
            help="silence after which a connection is given up, also while connecting (%(default)s)")
        add("--window", type=options.number(1, WINDOW_MOST), metavar="W",
            help="requests in flight, at most (1, or %d with --quiet)" % WINDOW)
        add("--output", metavar="FILE",
            help="write the verified numbers there, one per line; - is standard output")
        add("-q", "--quiet", action="store_true", help="print only the result")
        add("--no-progress", dest="progress", action="store_false", help="show no progress on a terminal")
        add("--version", action="version", version=options.VERSION)
    prove = commands.add_parser("CHECK", help="prove a link", description=CHECK_DESCRIPTION,
                                epilog=CHECK_STATUSES)
    if "CHECK" in arguments:
        from . import check

        check.add_options(prove.add_argument)
        prove.set_defaults(run=check.run)
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    settings = parser.parse_args(arguments)
    if settings.command is None:
        parser.error("a command is missing: NEW, CONTINUE or CHECK")
    return settings


class Command:
    """One run of the command line: what the user is told, and the exit status."""

    def __init__(self, settings, program):
        self.settings = settings
        self.program = program
        self.loop = Loop()
        self.error = None  # what the fetch ended with
        self.interrupted = False
        # With the numbers on standard output, lines for a person go to standard error.
        self.lines = sys.stderr if settings.output == "-" else sys.stdout

    def run(self):
        """Fetches, reports the result, and returns the exit status. Raises as output.put_line does."""
        settings = self.settings
        resumed = settings.command == "CONTINUE"
        if resumed:
            try:
                kept = journal.load(settings.state, self.complain)
            except UsageError as error:
                self.complain(error)
                return error.status
        else:
            kept = journal.Journal(settings.client_id or new_id(), settings.n, settings.batch_size,
                                   path=settings.state, complain=self.complain)
        window = settings.window or (WINDOW if settings.quiet else 1)
        transfer = Fetch(self.loop, settings.hosts or HOST, settings.port, kept, self.done, resumed, window,
                         settings.timeout, settings.retry, None if settings.quiet else self.show)
        shown = settings.quiet and settings.progress and sys.stderr is not None and sys.stderr.isatty()
        progress = output.Progress(self.loop, transfer, sys.stderr) if shown else None
        self.loop.on_signal(signal.SIGINT, self.interrupt)
        try:
            self.loop.run()
        finally:
            if progress:
                progress.close()
            transfer.cancel()
            self.loop.close()
        return self.conclude(transfer)

    def done(self, transfer, error):
        """Called once with the finished transfer and its error, or None."""
        self.error = error
        self.loop.stop()

    def interrupt(self):
        """Ends the fetch, because of a signal."""
        self.interrupted = True
        self.loop.stop()

    def conclude(self, transfer):
        """Writes the last lines, and returns the exit status."""
        error = self.error
        output.put_result(self.lines, transfer, error)
        if self.interrupted:
            self.complain("interrupted")
            self.hint(transfer.journal.kept)
            return INTERRUPTED
        if error is None:
            if self.settings.output is not None:
                output.put_numbers(self.settings.output, bytes(transfer.journal.numbers))
            return COMPLETE
        if isinstance(error, ChecksumMismatch):
            self.complain("these are not the server's numbers, so they were dropped; "
                          "CONTINUE fetches them again")
        elif self.settings.quiet or error.advises:
            refused = isinstance(error, Refused) and not isinstance(error, Forgotten)
            self.complain("refused: %s" % error if refused else error)
        self.hint(error.resumable and transfer.journal.kept)
        return error.status

    def hint(self, possible):
        """Says how to go on, where that is possible."""
        settings = self.settings
        if possible:
            given = [("--host", host) for host in settings.hosts or () if host != HOST]
            given += [("--state", settings.state)] if settings.state != STATE else []
            options = [" %s %s" % (name, value if value.isprintable() and " " not in value else repr(value))
                       for name, value in given]
            self.complain("to go on: %s CONTINUE %d%s" % (self.program, settings.port, "".join(options)))

    def show(self, event, detail):
        """Writes the transcript's line of an event."""
        output.put_event(self.lines, event, detail)

    def complain(self, text):
        """Writes a line to standard error."""
        output.complain(self.program, text)


def main(arguments=None, program=None):
    """The command line (a list of text; by default the process's own); returns the exit status."""
    open_standard_streams()
    program = program or os.path.basename(sys.argv[0])
    try:
        settings = parse_arguments(sys.argv[1:] if arguments is None else arguments, program)
        if settings.command == "CHECK":
            return settings.run(settings, program)
        return Command(settings, program).run()
    except KeyboardInterrupt:  # before the loop has taken over
        return INTERRUPTED
    except (BrokenPipeError, output.OutputFailed) as error:
        return output.status_without_output(error, program)


if __name__ == "__main__":
    sys.exit(main())
