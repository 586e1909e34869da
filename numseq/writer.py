"""Text for whoever reads an output: waited for as long as it takes, and never lost.

A reader that is slow, or does not read, stops a plain write, and signals with it. So a Writer looks whether
the file can be written, and whether the run is to end, before each write that could block. It does not make
the file non-blocking, which would make it so for all who have it open.
"""

import os
import select
import signal
import stat
import sys
import time

from . import signals
from .console import plain

BUFFER_MOST = 64 * 1024  # bytes that are collected before they are written
WRITE_MOST = getattr(select, "PIPE_BUF", 512)  # bytes of one write: a pipe that is ready takes so many
LOOK = 0.1  # seconds between two looks for signals while nobody reads
LAST_WORDS = 0.5  # seconds for what is still to be written once a run is to end
REST = 0.01  # seconds after a file that was ready has taken nothing, or the loop would spin

# Exit statuses where the output cannot be written.
OUTPUT_FAILED = 74  # EX_IOERR of sysexits.h
UNREAD = 128 + signal.SIGPIPE  # nobody reads the output, as a shell reports it


class OutputFailed(Exception):
    """An output cannot be written; str() says why."""

    status = OUTPUT_FAILED


def failure(name, error):
    """The OutputFailed of an output (its name) for an OSError."""
    return OutputFailed("%s cannot be written: %s" % (name, error.strerror))


class Unread(OutputFailed):
    """Nobody reads an output any more."""

    status = UNREAD


class Stopped(Exception):
    """The run is to end, by a signal or its deadline, and an output is not written yet."""


class Patience:
    """How long a run waits for the readers of its outputs: until a signal, or for max_time (seconds)."""

    def __init__(self, max_time=None, clock=time.monotonic):
        self._clock = clock
        self._deadline = None if max_time is None else clock() + max_time
        self._last = False

    def last_words(self):
        """Leaves LAST_WORDS for all that is still to be written, and less if there is another signal."""
        if not self._last:
            self._last = True
            self._deadline = self._clock() + LAST_WORDS

    def look(self):
        """Raises Stopped where the run is to wait no more."""
        late = self._deadline is not None and self._clock() >= self._deadline
        if late or len(signals.arrived) > self._last:
            raise Stopped


class Writer:
    """Writes text to an open file (its number; None is nowhere), in order.

    Raises OutputFailed, Unread and Stopped.

    name  what the file is called where it cannot be written. What is still to be written is dropped then
    """

    def __init__(self, file, patience=None, name="standard output"):
        self._file = file
        self._name = name
        self._patience = Patience() if patience is None else patience
        self._waiting = bytearray()
        self._is_ready = None
        if file is not None and not stat.S_ISREG(os.fstat(file).st_mode):  # a disk never blocks for long
            self._is_ready = readiness(file)

    def line(self, text, flush=True):
        """Writes text as a line, in printable ASCII; without `flush` it may wait for the next call."""
        self.write(plain(text).encode("ascii") + b"\n", flush)

    def write(self, data, flush=True):
        """Writes bytes."""
        if self._file is not None:
            self._waiting += data
            if flush or len(self._waiting) > BUFFER_MOST:
                self.flush()

    def flush(self):
        """Writes all that is in memory."""
        data, self._waiting = bytes(self._waiting), bytearray()
        written = 0
        try:
            while written < len(data):
                written += self._write(data, written)
        except Stopped:
            self._waiting += data[written:]
            raise
        except BrokenPipeError:
            raise Unread("nobody reads %s" % self._name) from None
        except OSError as error:
            raise failure(self._name, error) from None

    def _write(self, data, begin):
        if self._is_ready is None:
            return os.write(self._file, data[begin:])
        while not self._is_ready(0):
            self._patience.look()
            self._is_ready(LOOK)
        try:
            return os.write(self._file, data[begin:begin + WRITE_MOST])
        except BlockingIOError:
            self._patience.look()
            time.sleep(REST)
            return 0


def readiness(file):
    """A function from seconds to whether an open file (its number) can be written, waited for so long."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(file, select.POLLOUT)
        return lambda seconds: bool(poll.poll(seconds * 1000))
    return lambda seconds: bool(select.select([], [file], [], seconds)[1])


def put_text(stream, text):
    """Writes text to sys.stdout or sys.stderr, None being nowhere. Raises as a Writer does."""
    if stream is None:
        return
    try:
        file = stream.fileno()
    except OSError:  # it is no file, but what another program has put in its place
        stream.write(text)
    else:
        stream.flush()
        Writer(file).write(text.encode("ascii", "backslashreplace"))


def report(program, error):
    """Says on standard error why an output failed (an OutputFailed), if anybody reads; returns the status."""
    if not isinstance(error, Unread):
        try:
            put_text(sys.stderr, plain("%s: %s" % (program, error)) + "\n")
        except (OutputFailed, Stopped):
            pass
    return error.status
