"""The protocols of service managers: passed sockets, readiness and the watchdog.

They are those of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3), as systemd, s6, runit's helpers,
podman and others use them. Environment variables switch them on; without these, nothing here does anything.
The variables are removed from the environment, so that child processes do not take them as their own.
"""

import os

from .system import socket

FIRST_FILE = 3  # number of the first file that is passed: SD_LISTEN_FDS_START
FILES_MOST = 64  # passed files: more than anybody needs, so that a typing error is found at once
BEAT_DIVISOR = 2  # keep-alives per watchdog period, as sd_watchdog_enabled(3) recommends
NOTICE_MOST = 1024  # bytes of a message
READY_PAUSE = 0.5  # seconds until "READY=1" is sent again: a busy supervisor's queue may be full at boot
READY_TRIES = 240  # two minutes of them: systemd waits for 90 s
DIGITS_MOST = 20  # of a number in the environment: enough for 64 bits
ADDRESS_FAMILIES = {2: socket.AF_INET, 4: socket.AF_INET6}  # by the number of parts of an address
ABSTRACT = "@"  # first character of the name of an abstract socket, which is in no file system


def number(text):
    """A number of the environment (text) as an int; 0 if it is none or too long."""
    # isdigit() alone takes superscripts, which int() refuses.
    return int(text) if len(text) <= DIGITS_MOST and text.encode("ascii", "replace").isdigit() else 0


class BadActivation(ValueError):
    """The passed files cannot be used; str() says why in one line."""


def listening_sockets(environment):
    """The list of sockets that the supervisor passed, each non-blocking; empty if there are none.

    environment is os.environ or a dict like it; LISTEN_* are removed from it. Raises BadActivation if a file
    is not a listening TCP socket: a server that ignored it would report that it is ready, but be unreachable.
    """
    meant_for = environment.pop("LISTEN_PID", "")
    count = number(environment.pop("LISTEN_FDS", ""))
    environment.pop("LISTEN_FDNAMES", "")
    if meant_for != str(os.getpid()):  # not set, or meant for a parent
        return []
    if not 1 <= count <= FILES_MOST:
        raise BadActivation("LISTEN_FDS is not a number from 1 to %d" % FILES_MOST)
    return [_listening_socket(file) for file in range(FIRST_FILE, FIRST_FILE + count)]


def _listening_socket(file):
    try:
        probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=file)
        try:
            address = probe.getsockname()
            kind = probe.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
            listens = probe.getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_ACCEPTCONN", socket.SO_TYPE))
        finally:
            probe.detach()
    except OSError as error:
        raise BadActivation("file %d, which was passed, is no socket: %s" % (file, error.strerror)) from None
    # Before Python 3.7 a socket does not detect its family, so take it from the form of the address.
    is_ip = isinstance(address, tuple) and isinstance(address[0], str)
    family = ADDRESS_FAMILIES.get(len(address)) if is_ip else None
    if family is None or kind != socket.SOCK_STREAM or not listens:
        raise BadActivation("file %d, which was passed, is no TCP socket that listens" % file)
    passed = socket.socket(family, socket.SOCK_STREAM, fileno=file)
    os.set_inheritable(file, False)
    passed.setblocking(False)  # accept must not wait if another process has taken the connection
    return passed


class Supervisor:
    """Tells the supervisor how the server is doing. Without a supervisor, all methods do nothing.

    environment is os.environ or a dict like it; NOTIFY_SOCKET and WATCHDOG_* are removed from it.
    """

    def __init__(self, environment):
        name = environment.pop("NOTIFY_SOCKET", "")
        self.watchdog = None  # seconds within which a keep-alive is expected, or None
        period, meant_for = number(environment.pop("WATCHDOG_USEC", "")), environment.pop("WATCHDOG_PID", "")
        if period and meant_for in ("", str(os.getpid())):
            self.watchdog = period / 1e6
        self._loop = self._status = self._timer = None
        self._address = self._socket = None
        if name.startswith(ABSTRACT):
            self._address = b"\0" + os.fsencode(name[1:])
        elif name.startswith("/"):
            self._address = os.fsencode(name)
        if self._address is not None:
            try:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            except (OSError, AttributeError):  # AttributeError: this build lacks AF_UNIX
                self._socket = None

    def notify(self, *assignments):
        """Sends assignments (text such as "READY=1") as one message; returns whether it was sent.

        Never waits, and raises nothing.
        """
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(assignments).encode("ascii", "replace")[:NOTICE_MOST],
                                self._address)
        except (OSError, ValueError):  # full, or the supervisor has gone; the next message may get through
            return False
        return True

    def ready(self, loop, status):
        """Reports that the server is ready, and starts the keep-alives; status() returns a line of text."""
        self._loop, self._status = loop, status
        self._say_ready(READY_TRIES)

    def _say_ready(self, tries):
        if not self.notify("READY=1", "STATUS=" + self._status()) and self._socket is not None and tries > 1:
            # Without it, the supervisor would take the start for failed.
            self._timer = self._loop.call_later(READY_PAUSE, self._say_ready, tries - 1)
        elif self.watchdog is not None and self._socket is not None:
            self._keep_alive()

    def stopping(self, status):
        """Reports that the server is ending its last sessions. The keep-alives go on."""
        self.notify("STOPPING=1", "STATUS=" + status)

    def close(self):
        """Ends the keep-alives."""
        if self._timer is not None:
            self._loop.cancel(self._timer)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _keep_alive(self):
        # Runs on the loop's timers: if the loop hangs, the keep-alives stop and the server is restarted.
        self.notify("WATCHDOG=1", "STATUS=" + self._status())
        self._timer = self._loop.call_later(self.watchdog / BEAT_DIVISOR, self._keep_alive)
