"""Lines for a person on a standard stream, written without ever blocking the loop.

A stalled terminal, or a pipe that nobody reads, would stop the loop in a plain write.
"""

import os
import stat

from .loop import WRITE

WAITING_MOST = 64 * 1024  # bytes of lines waiting to be written; lines beyond are dropped and counted
WRITE_MOST = 16 * 1024  # bytes of one write, so that a slow serial line does not hold up the loop


class Console:
    """Writes lines to a file (its number; None for nowhere): each line whole, in order, or not at all."""

    def __init__(self, loop, file):
        self.loop = loop
        self.interest = 0
        self.dropped = 0  # dropped lines not yet reported
        self._waiting = bytearray()
        self._torn = False  # whether the last line in the file lacks its end
        # False once the selector has refused the file: a disk or a null device is always ready
        self._pollable = True
        self._restore = None  # the number of a file to be made blocking again
        self._reopened = None  # the number of a file to be closed
        self._file = file
        if file is not None:
            self._unblock(file)

    def fileno(self):
        return self._file

    def line(self, text):
        """Writes text as a line at the end of this turn, or as soon as the file takes it."""
        if self._file is None:
            return
        data = plain(text).encode("ascii") + b"\n"
        if len(self._waiting) + len(data) > WAITING_MOST:
            self.dropped += 1
            return
        self._waiting += data
        self.loop.attention[self] = None  # so that the lines of a turn go out in one write

    def take_up(self):
        self.loop.attention[self] = None

    def settle(self):
        """Writes unless the loop waits for the file; returns whether there is more to write next turn."""
        return not self.interest and self._write()

    def on_events(self, mask):
        self._write()

    def abort(self, error=None):
        """Gives up: nobody reads the file any more."""
        if self._file is not None:
            self.loop.watch(self, 0)
            self._file = None
            self._waiting = bytearray()

    def close(self):
        """Writes what the file takes at once, and leaves the file as it was found."""
        for _ in range(WAITING_MOST // WRITE_MOST + 1):
            if self._file is not None and (self._waiting or self.dropped):
                self._write()
        self.abort()
        if self._restore is not None:
            try:
                os.set_blocking(self._restore, True)
            except OSError:
                pass
        if self._reopened is not None:
            os.close(self._reopened)
            self._reopened = None

    def _write(self):
        """Writes what the file takes; returns whether to write the rest next turn, without a poll."""
        try:
            with memoryview(self._waiting) as view, view[:WRITE_MOST] as head:
                written = os.write(self._file, head) if head else 0
        except (BlockingIOError, InterruptedError):
            written = 0
        except OSError:
            self.dropped += self._waiting.count(b"\n")
            self._waiting = bytearray(b"\n" if self._torn else b"")
            if not self._regular:  # the reader has gone; a disk may be less full later
                self.abort()
            return False
        if written:
            self._torn = self._waiting[written - 1:written] != b"\n"
            del self._waiting[:written]
        if self._pollable:
            try:
                self.loop.watch(self, WRITE if self._waiting else 0)
            except PermissionError:  # epoll refuses a disk and a null device
                self._pollable = False
        if self.dropped and not self._waiting:
            dropped, self.dropped = self.dropped, 0
            self.line("%d lines are missing here: nobody read them in time" % dropped)
        return bool(self._waiting) and not self._pollable

    def _unblock(self, file):
        """Makes writes to the file return at once, without changing it for others who have it open."""
        mode = os.fstat(file).st_mode
        self._regular = stat.S_ISREG(mode)
        if self._regular:
            return  # a disk never blocks for long, and cannot be watched
        # Non-blocking is a property of the open file, which other processes share (a shell and its terminal):
        # so open it once more.
        if stat.S_ISFIFO(mode) or os.isatty(file):
            try:
                self._file = self._reopened = os.open("/proc/self/fd/%d" % file,
                                                      os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                return
            except OSError:  # no /proc, or not ours to open
                pass
        if os.get_blocking(file):
            os.set_blocking(file, False)
            self._restore = file


def plain(text):
    """Text as one line of printable ASCII, which every terminal and every locale can show."""
    data = text.encode("ascii", "backslashreplace") if text.isprintable() else text.encode("unicode_escape")
    return data.decode("ascii")


def open_standard_streams():
    """Opens the null device for each closed standard stream, or the next socket would take its number."""
    for file in range(3):
        try:
            os.fstat(file)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is `file`


def file_of(stream):
    """The number of sys.stdout or sys.stderr, or None where it was closed when the program started."""
    return None if stream is None else stream.fileno()
