"""Writes text to outputs that may block, without losing any of it and without missing signals.

A plain write to a pipe or a terminal blocks while its reader is slow. So before each write that could block,
a Writer checks whether the file is ready and whether the run is to end. It does not set O_NONBLOCK, because
that would affect every process that shares the open file. A terminal that is ready may take a single byte, so
it is opened again for each text, as console.writer does.
"""

import os
import select
import stat
import sys
import time

from . import signals
from .console import nothing, plain, writer
from .system import signal

BUFFER_MOST = 64 * 1024  # bytes buffered before they are written
WRITE_MOST = getattr(select, "PIPE_BUF", 512)  # bytes per write: a pipe that is ready takes this many
LOOK = 0.1  # seconds between two checks for signals while the output blocks
LAST_WORDS = 0.5  # seconds for the last lines once the run is to end
REST = 0.01  # seconds of sleep if a file that was ready took nothing, so that the loop does not spin

# Exit statuses where the output cannot be written.
OUTPUT_FAILED = 74  # EX_IOERR of sysexits.h
UNREAD = 128 + signal.SIGPIPE  # the output's reader is gone; the status that a shell reports for it


class OutputFailed(Exception):
    """An output cannot be written; str() says why."""

    status = OUTPUT_FAILED


def failure(name, error):
    """The OutputFailed for an OSError of the output called `name` (text)."""
    return OutputFailed("%s cannot be written: %s" % (name, error.strerror))


class Unread(OutputFailed):
    """The reader of an output is gone (EPIPE)."""

    status = UNREAD


class Stopped(Exception):
    """A signal or the deadline ends the run while an output blocks."""


class Patience:
    """How long a run waits for blocked outputs: until a signal arrives, or max_time (seconds) is over.

    max_time  None for no limit
    clock     returns monotonic seconds
    """

    def __init__(self, max_time=None, clock=time.monotonic):
        self._clock = clock
        self._deadline = None if max_time is None else clock() + max_time
        self._last = False

    def last_words(self):
        """Allows LAST_WORDS for the last lines; another signal ends that time early."""
        if not self._last:
            self._last = True
            self._deadline = self._clock() + LAST_WORDS

    def look(self):
        """Raises Stopped if the wait is over."""
        late = self._deadline is not None and self._clock() >= self._deadline
        expected = 1 if self._last else 0  # signals: the one that has ended the run
        if late or len(signals.arrived) > expected:
            raise Stopped


class Writer:
    """Writes text to a file descriptor, in order. Its methods raise OutputFailed, Unread and Stopped.

    file      a file descriptor; None discards all text
    patience  a Patience; by default without a limit
    name      name of the file (text), for error messages. When a write fails, buffered text is dropped
    """

    def __init__(self, file, patience=None, name="standard output"):
        self._file = file
        self._name = name
        self._patience = Patience() if patience is None else patience
        self._waiting = bytearray()
        self._is_ready = None
        self._is_terminal = file is not None and os.isatty(file)
        if file is not None and not stat.S_ISREG(os.fstat(file).st_mode):  # a disk never blocks for long
            self._is_ready = readiness(file)

    def line(self, text, flush=True):
        """Writes text as a line of printable ASCII; without `flush` it may stay in the buffer."""
        self.write(plain(text).encode("ascii") + b"\n", flush)

    def write(self, data, flush=True):
        """Writes data (bytes); without `flush` it may stay in the buffer."""
        if self._file is not None:
            self._waiting += data
            if flush or len(self._waiting) > BUFFER_MOST:
                self.flush()

    def flush(self):
        """Writes the buffer."""
        data, self._waiting = bytes(self._waiting), bytearray()
        written = 0
        write_some, close = lambda some: os.write(self._file, some), nothing
        if data and self._is_terminal:
            _, write_some, close = writer(self._file)
        try:
            while written < len(data):
                written += self._write(write_some, data, written)
        except Stopped:
            self._waiting += data[written:]
            raise
        except BrokenPipeError:
            raise Unread("nobody reads %s" % self._name) from None
        except OSError as error:
            raise failure(self._name, error) from None
        finally:
            close()

    def _write(self, write_some, data, begin):
        if self._is_ready is None:
            return write_some(data[begin:])
        while not self._is_ready(0):
            self._patience.look()
            self._is_ready(LOOK)
        try:
            return write_some(data[begin:begin + WRITE_MOST])
        except BlockingIOError:
            self._patience.look()
            time.sleep(REST)
            return 0


def readiness(file):
    """A function that waits up to so many seconds and returns whether a file descriptor is writable."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(file, select.POLLOUT)
        return lambda seconds: bool(poll.poll(seconds * 1000))
    return lambda seconds: bool(select.select([], [file], [], seconds)[1])


def put_text(stream, text):
    """Writes text to sys.stdout or sys.stderr, which may be None. Raises as a Writer does."""
    if stream is None:
        return
    try:
        file = stream.fileno()
    except OSError:  # replaced by an object without a file, such as io.StringIO
        stream.write(text)
    else:
        stream.flush()
        Writer(file).write(text.encode("ascii", "backslashreplace"))


def report(program, error):
    """Writes an error with a status to standard error, unless it is Unread; returns the status."""
    if not isinstance(error, Unread):
        try:
            put_text(sys.stderr, plain("%s: %s" % (program, error)) + "\n")
        except (OutputFailed, Stopped):
            pass
    return error.status
