"""The outputs of a client: the transcript, the result, the progress, and the numbers."""

import os
import sys
import time

from . import digits, files
from .console import file_of, plain, writer
from .writer import LOOK, OutputFailed, Patience, Writer, failure

PROGRESS_PAUSE = 0.1  # seconds between two updates of the progress
WIDTH = 80  # columns of a terminal of unknown width
DUMB = frozenset(["", "dumb"])  # values of TERM for terminals without escape sequences
ERASE = "\r\x1b[K"  # clears the line

# The line for each event of a Fetch.
TRANSCRIPT = {
    "sending": "Sending message: '%s'",
    "received": "Received: %s",
    "requesting": "Requesting numbers%s",
    "skipping": "Skipping chunk-nr: %s",
    "closing": "Closing the connection%s",
    "error": "ERROR: %s",
}
FLUSHED = frozenset(["sending", "error"])  # events before a wait: their lines are written at once


class Output:
    """The text outputs of one run: transcript, error messages and progress, kept on separate lines.

    program   the program's name (text), the prefix of error messages
    numbers   the path that the numbers are written to (text, as for --output), or None. If it is standard
              output, the transcript goes to standard error
    patience  the Patience with slow readers; by default without a limit
    """

    def __init__(self, program, numbers=None, patience=None):
        self.patience = Patience() if patience is None else patience
        self._progress = None  # a Progress, hidden while a line is written
        self._program = program
        self._complaints = Writer(file_of(sys.stderr), self.patience)
        self._lines = self._complaints
        if not is_standard_output(numbers):
            self._lines = Writer(file_of(sys.stdout), self.patience)

    def line(self, text, flush=True):
        """Writes a line of text to the transcript. Raises as a Writer does."""
        self._hide_progress()
        self._lines.line(text, flush)

    def event(self, event, detail, indent=""):
        """Writes the line of a Fetch's event (a key of TRANSCRIPT). Raises as a Writer does."""
        self.line(indent + TRANSCRIPT[event] % detail, event in FLUSHED)

    def result(self, transfer, error):
        """Writes the sum and the checksum of a Fetch, if it has them; error is the FetchError or None.

        Raises as a Writer does.
        """
        if transfer.checksum is not None:
            self.line("The SUM of numbers is: %d" % transfer.sum)
            self.line("Checksum (%s) is %s!" % (transfer.checksum, "valid" if error is None else "not valid"))

    def flush(self):
        """Writes buffered lines. Raises as a Writer does."""
        self._lines.flush()

    def complain(self, text):
        """Writes an error message to standard error, and ignores failures. Raises Stopped."""
        self._hide_progress()
        try:
            self._complaints.line("%s: %s" % (self._program, text))
        except OutputFailed:
            pass

    def hint(self, command):
        """Writes the command line (text from `shell.join`) that goes on. Raises Stopped."""
        try:
            self._complaints.write(("%s: to go on: %s\n" % (plain(self._program), command)).encode("ascii"))
        except OutputFailed:
            pass

    def show_progress(self, loop, transfer, wanted):
        """Shows the progress of a Fetch on standard error, if that is a terminal and `wanted` is true."""
        file = file_of(sys.stderr)
        if wanted and file is not None and os.isatty(file):
            self._progress = Progress(loop, transfer, file)

    def close_progress(self):
        """Removes the progress."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _hide_progress(self):
        if self._progress is not None:
            self._progress.hide()


def is_standard_output(path):
    """Whether `path` (text or None) is standard output, under any name."""
    return path == "-" or (path is not None and files.own_file(path) == 1)


def require_writable(path):
    """Raises OutputFailed if put_file could not write to `path` (text), as far as it can be told."""
    try:
        if path == "-":
            file = file_of(sys.stdout)
            os.write(-1 if file is None else file, b"")  # fails if it is closed, or open for reading only
        else:
            files.require_writable(path)
    except OSError as error:
        raise failure(name_of(path), error) from None


def name_of(path):
    """The name (text) of the output `path` (text) in messages."""
    return "standard output" if path == "-" else "%a" % path


def put_numbers(path, numbers, patience):
    """Writes the numbers (bytes) to a file, one per line. Everything else is as in put_file."""
    place = digits.place(b"\n")
    put_file(path, digits.unpad(digits.pad(numbers, place, len(place))), patience)


def put_file(path, data, patience=None):
    """Replaces the file at `path` (text) by one with data (bytes); `-` is standard output.

    Devices, pipes and open files of this process (such as /dev/stdout) are written to instead.
    Raises OutputFailed, Unread and Stopped.
    """
    name = name_of(path)
    try:
        own = file_of(sys.stdout) if path == "-" else files.own_file(path)
        if path == "-" or own is not None:
            Writer(own, patience, name).write(data)
        elif files.is_special(path):
            put_special(path, data, patience, name)
        else:
            files.put(path, data)
    except OSError as error:
        raise failure(name, error) from None


def put_special(path, data, patience, name):
    """Writes data (bytes) to a device or a pipe, after waiting for a reader. Raises as a Writer does."""
    patience = Patience() if patience is None else patience
    file = files.open_special(path)
    while file is None:
        patience.look()
        time.sleep(LOOK)
        file = files.open_special(path)
    try:
        Writer(file, patience, name).write(data)
    finally:
        os.close(file)


class Progress:
    """Shows the progress of a Fetch on a terminal (a file descriptor) while in its foreground."""

    def __init__(self, loop, transfer, terminal):
        self._loop = loop
        self._transfer = transfer
        self._terminal = terminal
        _, self._write_some, self._close = writer(terminal)
        self._is_dumb = os.environ.get("TERM", "") in DUMB
        self._shown = 0  # columns in use
        self._began = loop.now
        self._had = len(transfer.journal.numbers)
        self._timer = loop.call_later(PROGRESS_PAUSE, self._show)

    def hide(self):
        """Clears the line, until the next update."""
        if self._shown:
            self._draw("")

    def close(self):
        """Clears the line for good."""
        self._loop.cancel(self._timer)
        self.hide()
        self._close()

    def _show(self):
        self._timer = self._loop.call_later(PROGRESS_PAUSE, self._show)
        journal = self._transfer.journal
        have = len(journal.numbers)
        rate = (have - self._had) / max(self._loop.now - self._began, PROGRESS_PAUSE)
        left = "%.0f s left" % ((journal.n - have) / rate) if rate else "waiting"
        share = 100 * have // journal.n if journal.n else 100
        text = "%d %%, %.0f numbers/s, %s, %d drops" % (share, rate, left, self._transfer.drops)
        if is_in_foreground(self._terminal):
            self._draw(text[:width(self._terminal) - 1])  # some terminals wrap after the last column

    def _draw(self, text):
        """Replaces the line by text, unless the terminal would block."""
        if self._is_dumb:
            data = "\r" + text + " " * (self._shown - len(text))
            data += "\r" if not text else ""
        else:
            data = ERASE + text
        try:
            self._write_some(data.encode("ascii"))
            self._shown = len(text)
        except BlockingIOError:
            pass
        except OSError:  # the terminal is gone; the fetch goes on
            self._loop.cancel(self._timer)
            self._shown = 0


def is_in_foreground(terminal):
    """Whether this process is not a background job of a terminal (a file descriptor)."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not the controlling terminal
        return True


def width(terminal):
    """The current number of columns of a terminal (a file descriptor)."""
    try:
        return os.get_terminal_size(terminal).columns or WIDTH
    except OSError:
        return WIDTH
