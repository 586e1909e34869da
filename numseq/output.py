"""What a client shows: the transcript, the progress, and the numbers."""

import os
import signal
import sys

from . import console, digits, journal

PROGRESS_PAUSE = 0.1  # seconds between two updates of the progress

# Exit statuses where the output cannot be written.
OUTPUT_FAILED = 74  # EX_IOERR of sysexits.h
UNREAD = 128 + signal.SIGPIPE  # nobody reads the output, as a shell reports it

# The line for each event of a Fetch.
TRANSCRIPT = {
    "sending": "Sending message: '%s'",
    "received": "Received: %s",
    "requesting": "Requesting numbers%s",
    "skipping": "Skipping chunk-nr: %s",
    "closing": "Closing the connection%s",
    "error": "ERROR: %s",
}
FLUSHED = frozenset(["sending", "error"])  # events that are followed by a wait


class OutputFailed(Exception):
    """Standard output, or the file for the numbers, cannot be written."""


def put_line(file, text, flush=True):
    """Writes text as a line to an open file; None is nowhere.

    Raises BrokenPipeError, and OutputFailed for the rest.
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


def put_event(file, event, detail):
    """Writes the transcript's line of a Fetch's event. Raises as put_line does."""
    put_line(file, TRANSCRIPT[event] % detail, event in FLUSHED)


def put_result(file, transfer, error):
    """Writes the sum and the checksum of a Fetch that has both; error is what it ended with.

    Raises as put_line does.
    """
    if transfer.checksum is not None:
        put_line(file, "The SUM of numbers is: %d" % transfer.sum)
        put_line(file,
                 "Checksum (%s) is %s!" % (transfer.checksum, "valid" if error is None else "not valid"))


def complain(program, text):
    """Writes a line to standard error, if anybody reads it."""
    try:
        put_line(sys.stderr, "%s: %s" % (program, text))
    except (BrokenPipeError, OutputFailed):
        pass


def discard(file):
    """Throws away what an open file still has to write: it failed, and would fail again at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
    except OSError:  # no /dev: a pipe, open at both ends, takes what is left
        null = os.pipe()[1]
    os.dup2(null, file.fileno())


def status_without_output(error, program):
    """The exit status after a BrokenPipeError or an OutputFailed, which is reported on stderr."""
    if isinstance(error, BrokenPipeError):
        return UNREAD
    complain(program, error)
    return OUTPUT_FAILED


def put_numbers(path, numbers):
    """Writes the numbers (bytes), one per line, to a file, as put_file does."""
    place = digits.place(b"\n")
    put_file(path, digits.unpad(digits.pad(numbers, place, len(place))))


def put_file(path, text):
    """Writes text (bytes) to a file, which is replaced as a whole; `-` is standard output.

    Raises BrokenPipeError, and OutputFailed for any other failure.
    """
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
    """The progress of a Fetch, on a terminal."""

    def __init__(self, loop, transfer, terminal):
        self._loop = loop
        self._transfer = transfer
        self._terminal = terminal
        self._began = loop.now
        self._had = len(transfer.journal.numbers)
        self._timer = loop.call_later(PROGRESS_PAUSE, self._show)

    def close(self):
        """Clears the line."""
        self._loop.cancel(self._timer)
        self._write("")

    def _show(self):
        self._timer = self._loop.call_later(PROGRESS_PAUSE, self._show)
        journal = self._transfer.journal
        have = len(journal.numbers)
        rate = (have - self._had) / max(self._loop.now - self._began, PROGRESS_PAUSE)
        left = "%.0f s left" % ((journal.n - have) / rate) if rate else "waiting"
        share = 100 * have // journal.n if journal.n else 100
        self._write("%d %%, %.0f numbers/s, %s, %d drops" % (share, rate, left, self._transfer.drops))

    def _write(self, text):
        try:
            self._terminal.write("\r\x1b[K" + text)
            self._terminal.flush()
        except OSError:  # the terminal has gone, but the fetch goes on
            discard(self._terminal)
