"""What a client shows: the transcript, the result, the progress, and the numbers."""

import os
import sys
import time

from . import digits, files
from .console import file_of
from .writer import LOOK, OutputFailed, Patience, Writer, failure, readiness

PROGRESS_PAUSE = 0.1  # seconds between two updates of the progress
WIDTH = 80  # columns of a terminal that does not tell
DUMB = frozenset(["", "dumb"])  # values of TERM for terminals that know no escapes
ERASE = "\r\x1b[K"

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


class Output:
    """The outputs of one run: lines for a person, complaints, and progress, which never mix.

    program  the program's name (text), which begins each complaint
    numbers  where the numbers go (text, as --output has it; None for nowhere). Where that is standard output,
             all lines for a person go to standard error
    """

    def __init__(self, program, numbers=None, patience=None):
        self.patience = Patience() if patience is None else patience
        self._progress = None  # hidden while a line is written
        self._program = program
        self._complaints = Writer(file_of(sys.stderr), self.patience)
        self._lines = self._complaints
        if not is_standard_output(numbers):
            self._lines = Writer(file_of(sys.stdout), self.patience)

    def line(self, text, flush=True):
        """Writes a line for a person. Raises as a Writer does."""
        self._hide_progress()
        self._lines.line(text, flush)

    def event(self, event, detail, indent=""):
        """Writes the transcript's line of a Fetch's event. Raises as a Writer does."""
        self.line(indent + TRANSCRIPT[event] % detail, event in FLUSHED)

    def result(self, transfer, error):
        """Writes the sum and the checksum of a Fetch that has both; error is what it ended with.

        Raises as a Writer does.
        """
        if transfer.checksum is not None:
            self.line("The SUM of numbers is: %d" % transfer.sum)
            self.line("Checksum (%s) is %s!" % (transfer.checksum, "valid" if error is None else "not valid"))

    def flush(self):
        """Writes what is still in memory. Raises as a Writer does."""
        self._lines.flush()

    def complain(self, text):
        """Writes a line to standard error, if anybody reads it. Raises Stopped."""
        self._hide_progress()
        try:
            self._complaints.line("%s: %s" % (self._program, text))
        except OutputFailed:
            pass

    def hint(self, command):
        """Says how to go on: command (text, as `shell.join` has it) is not changed. Raises Stopped."""
        try:
            self._complaints.write(("%s: to go on: %s\n" % (self._program, command)).encode("ascii"))
        except OutputFailed:
            pass

    def show_progress(self, loop, transfer, wanted):
        """Shows the progress of a Fetch on standard error, if that is a terminal and it is wanted (bool)."""
        file = file_of(sys.stderr)
        if wanted and file is not None and os.isatty(file):
            self._progress = Progress(loop, transfer, file)

    def close_progress(self):
        """Shows it no more."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _hide_progress(self):
        if self._progress is not None:
            self._progress.hide()


def is_standard_output(path):
    """Whether the numbers that go to `path` (None for nowhere) arrive at standard output."""
    return path == "-" or (path is not None and files.own_file(path) == 1)


def put_numbers(path, numbers, patience):
    """Writes the numbers (bytes), one per line, to a file, as put_file does."""
    place = digits.place(b"\n")
    put_file(path, digits.unpad(digits.pad(numbers, place, len(place))), patience)


def put_file(path, data, patience=None):
    """Writes data (bytes) to a file, which is replaced as a whole; `-` is standard output.

    Devices, pipes and the files of this process are written to. Raises OutputFailed, Unread and Stopped.
    """
    name = "standard output" if path == "-" else "%a" % path
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
    """Writes data (bytes) to a device or a pipe, whose reader may still be to come.

    Raises as a Writer does.
    """
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
    """The progress of a Fetch, on a terminal (its file's number) in whose foreground this process is."""

    def __init__(self, loop, transfer, terminal):
        self._loop = loop
        self._transfer = transfer
        self._terminal = terminal
        self._is_ready = readiness(terminal)
        self._is_dumb = os.environ.get("TERM", "") in DUMB
        self._shown = 0  # columns that are written
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

    def _show(self):
        self._timer = self._loop.call_later(PROGRESS_PAUSE, self._show)
        journal = self._transfer.journal
        have = len(journal.numbers)
        rate = (have - self._had) / max(self._loop.now - self._began, PROGRESS_PAUSE)
        left = "%.0f s left" % ((journal.n - have) / rate) if rate else "waiting"
        share = 100 * have // journal.n if journal.n else 100
        text = "%d %%, %.0f numbers/s, %s, %d drops" % (share, rate, left, self._transfer.drops)
        if is_in_foreground(self._terminal):
            self._draw(text[:width(self._terminal) - 1])  # in the last column some terminals begin a new line

    def _draw(self, text):
        """Writes text over what is shown, if the terminal takes it at once."""
        if self._is_dumb:
            data = "\r" + text + " " * (self._shown - len(text))
            data += "\r" if not text else ""
        else:
            data = ERASE + text
        try:
            if self._is_ready(0):
                os.write(self._terminal, data.encode("ascii"))
                self._shown = len(text)
        except OSError:  # the terminal has gone, but the fetch goes on
            self._loop.cancel(self._timer)
            self._shown = 0


def is_in_foreground(terminal):
    """Whether this process may draw on a terminal (its file's number): it is not a job in its background."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # it does not control this process
        return True


def width(terminal):
    """The columns of a terminal (its file's number), as it is now."""
    try:
        return os.get_terminal_size(terminal).columns or WIDTH
    except OSError:
        return WIDTH
