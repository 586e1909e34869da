"""Writes lines to a standard stream without blocking the loop.

A plain write would block on a stalled terminal, or on a full pipe that nobody reads.
"""

import os
import select
import stat

from .loop import WRITE
from .system import socket

if os.name != "posix":  # docs/builds.md has what other systems lack
    raise ImportError("it needs a POSIX system")

WAITING_MOST = 64 * 1024  # bytes of lines waiting to be written; lines beyond are dropped and counted
WRITE_MOST = 16 * 1024  # bytes of one write, so that a slow serial line does not hold up the loop
PIPE_PIECE = getattr(select, "PIPE_BUF", 512)  # bytes that a writable pipe takes without blocking
TERMINAL_PIECE = 1  # bytes that a writable terminal takes without blocking
PIECES_MOST = 256  # such pieces per write
MISSING = b"%d lines are missing here: nobody read them in time\n"


class Console:
    """Writes lines to a file (its number; None discards them): each line whole and in order, or not at all.

    Other processes may have the file open, so its flags are not changed. Lines that cannot be written in time
    are dropped and counted; as soon as the file takes data again, a line in it says how many are missing.

    missing  that line (bytes, with %d)
    gone     gone() is called when a write fails because the pipe has no reader
    """

    def __init__(self, loop, file, missing=MISSING, gone=lambda: None):
        self.loop = loop
        self._missing = missing
        self._gone = gone
        self.interest = 0
        self.dropped = 0  # dropped lines not yet reported in the file
        self.dropped_ever = 0
        self._waiting = bytearray()
        self._torn = False  # whether the last line in the file is incomplete
        self._failed = False  # whether lines were dropped before those that are waiting
        self._pollable = True  # False once the selector has refused the file, as epoll does with a disk
        self._file = file
        self._close = None
        if file is not None:
            self._file, self._write_some, self._close = writer(file)

    def fileno(self):
        return self._file

    def line(self, text):
        """Writes text as a line, at the end of this turn or when the file takes it."""
        if self._file is None:
            return
        data = plain(text).encode("ascii") + b"\n"
        # After a dropped line all are dropped until the notice, which says "here", can be put there.
        if self.dropped and not self._failed or len(self._waiting) + len(data) > WAITING_MOST:
            self._drop(1)
            if self._waiting:  # the notice follows once that is written
                return
        else:
            self._waiting += data
        self.loop.attention[self] = None  # the lines of a turn go out in one write

    def take_up(self):
        self.loop.attention[self] = None

    def settle(self):
        """Writes unless the loop waits for the file; returns whether to write more in the next turn."""
        return not self.interest and self._write()

    def on_events(self, mask):
        before = len(self._waiting)
        self._write()
        if self.interest and len(self._waiting) == before:  # reported ready, but takes nothing
            self.loop.rest(self)

    def abort(self, error=None):
        """Drops the waiting lines, which cannot be written. Later lines are tried again."""
        if self._file is not None:
            self._drop(self._waiting.count(b"\n"))
            self._waiting = bytearray()
            self._failed = self.dropped > 0
            self.loop.watch(self, 0)

    def close(self):
        """Writes what the file takes without waiting; returns the rest and the notice (bytes)."""
        for _ in range(WAITING_MOST // WRITE_MOST + 1):
            if self._file is not None and (self._waiting or self.dropped):
                self._write()
        left, told = bytes(self._waiting), self._notice()
        left = told + left if self._failed else left + told
        if self._file is not None:
            self.loop.watch(self, 0)
            self._file = None
            self._waiting = bytearray()
            self._close()
        return left

    def _drop(self, count):
        self.dropped += count
        self.dropped_ever += count

    def _notice(self):
        """The line about dropped lines (bytes), to be put where they are missing; empty if there are none."""
        if not self.dropped:
            return b""
        return (b"\n" if self._torn and self._failed else b"") + self._missing % self.dropped

    def _write(self):
        """Writes what the file takes; returns whether to write the rest in the next turn.

        It returns False if the loop watches the file, because its event then leads to the next write.
        """
        notice = self._notice() if self._failed else b""
        try:
            with memoryview(notice or self._waiting) as view, view[:WRITE_MOST] as head:
                written = self._write_some(head) if head else 0
        except (BlockingIOError, InterruptedError):
            written = 0
        except OSError as error:  # no reader, or the disk is full; either may change later
            self.abort()
            if isinstance(error, BrokenPipeError):
                self._gone()
            return False
        if notice and written:
            self._waiting[:0] = notice
            self._failed = False
            self.dropped = 0
        if written:
            self._torn = self._waiting[written - 1:written] != b"\n"
            del self._waiting[:written]
        if self._pollable:
            try:
                self.loop.watch(self, WRITE if self._waiting else 0)
            except PermissionError:  # epoll refuses files on a disk and the null device
                self._pollable = False
        if self.dropped and not self._waiting and not self._failed:
            self._waiting += self._missing % self.dropped
            self.dropped = 0
            self.loop.attention[self] = None
        return bool(self._waiting) and not self._pollable


def writer(file):
    """(number to watch, write(data), close()) for a file's number. Writes never block.

    O_NONBLOCK belongs to the open file, which is shared with other processes (such as the shell on the same
    terminal), and would stay set if this process were killed. So it is not set; the file is opened again
    instead. If that is impossible, each write first asks whether the file is ready.

    write() returns how many bytes were taken; raises OSError, and BlockingIOError if none were.
    """
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode) or not os.get_blocking(file):  # a disk never blocks for long
        return file, lambda data: os.write(file, data), nothing
    if stat.S_ISSOCK(mode):
        # A socket cannot be opened again, but MSG_DONTWAIT makes a single send non-blocking.
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(file))
        return connection.fileno(), lambda data: connection.send(data, socket.MSG_DONTWAIT), connection.close
    terminal = os.isatty(file)
    if terminal or stat.S_ISFIFO(mode):
        for path_of in "/proc/self/fd/{}".format, os.ttyname:
            try:
                again = os.open(path_of(file), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:  # no /proc, no (name of a) terminal, no permission, or no reader
                continue
            return again, lambda data: os.write(again, data), lambda: os.close(again)
    piece = TERMINAL_PIECE if terminal else PIPE_PIECE
    return file, lambda data: write_cautiously(file, data, piece), nothing


def write_cautiously(file, data, piece):
    """Writes to a blocking file in small pieces while it is ready; returns the number of bytes taken."""
    written = 0
    while written < min(len(data), piece * PIECES_MOST) and select.select([], [file], [], 0)[1]:
        written += os.write(file, data[written:written + piece])
    if not written:
        raise BlockingIOError()
    return written


def nothing():
    """Does nothing: the file stays open."""


def plain(text):
    """Text as one line of printable ASCII, which every terminal and locale can show."""
    data = text.encode("ascii", "backslashreplace") if text.isprintable() else text.encode("unicode_escape")
    return data.decode("ascii")


def open_standard_streams():
    """Opens the null device for each closed standard stream, so that no socket gets its number."""
    for file in range(3):
        try:
            os.fstat(file)
        except OSError:
            try:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `file`
            except OSError:  # no /dev: the read end of a pipe will do
                reading, writing = os.pipe()
                os.close(writing)


def file_of(stream):
    """The file number of sys.stdout or sys.stderr, or None if it was closed when the program started."""
    return None if stream is None else stream.fileno()
