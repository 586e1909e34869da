"""What a service manager passes and wants to be told: sockets that already listen, readiness, the watchdog.

The protocols are those of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3), which systemd, s6,
runit's
helpers, podman and others speak. All of it is in environment variables; where there are none, nothing here
does
anything. The variables are taken out of the environment, so that no child believes that they are meant for
it.
"""

import os
import socket

FIRST_FILE = 3  # number of the first file that is passed: SD_LISTEN_FDS_START
# files passed; nobody listens on as many addresses, and a typing error is not tried a million times
FILES_MOST = 64
BEAT_DIVISOR = 2  # keep-alives in a watchdog's period, as sd_watchdog_enabled(3) recommends
NOTICE_MOST = 1024  # bytes of a status line
ADDRESS_FAMILIES = {2: socket.AF_INET, 4: socket.AF_INET6}  # by how many parts an address has
ABSTRACT = "@"  # first character of a socket's name that is in no file system


class BadActivation(ValueError):
    """What the supervisor passed cannot be used; the text says why, in one line."""


def listening_sockets(environment):
    """The sockets that the supervisor passed (each non-blocking), as a list; empty where there are none.

    environment is os.environ or a dict like it; LISTEN_* are removed from it. Raises BadActivation for what
    is not
    a TCP socket that listens, because a server that ignored it would be ready and never be reached.
    """
    meant_for = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", "")
    if meant_for != str(os.getpid()):  # of a parent, or there are none
        return []
    if not (count.isdigit() and 1 <= int(count) <= FILES_MOST):
        raise BadActivation("LISTEN_FDS is not a number from 1 to %d" % FILES_MOST)
    return [_listening_socket(file) for file in range(FIRST_FILE, FIRST_FILE + int(count))]


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
    # Before 3.7 a socket does not find out its family; the shape of its address tells.
    family = ADDRESS_FAMILIES.get(len(address)) if isinstance(address, tuple) and isinstance(address[0],
                                                                                             str) else None
    if family is None or kind != socket.SOCK_STREAM or not listens:
        raise BadActivation("file %d, which was passed, is no TCP socket that listens" % file)
    passed = socket.socket(family, socket.SOCK_STREAM, fileno=file)
    passed.set_inheritable(False)
    passed.setblocking(False)  # or an accept would wait where another process has taken the connection
    return passed


class Supervisor:
    """Tells the supervisor how the server is doing. Every method does nothing where nobody wants to know.

    environment is os.environ or a dict like it; NOTIFY_SOCKET and WATCHDOG_* are removed from it.
    """

    def __init__(self, environment):
        name = environment.pop("NOTIFY_SOCKET", "")
        self.watchdog = None  # seconds in which a keep-alive is expected; None where none is
        period, meant_for = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if period.isdigit() and int(period) and meant_for in ("", str(os.getpid())):
            self.watchdog = int(period) / 1e6
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
            except (OSError, AttributeError):  # AttributeError: a build without AF_UNIX
                self._socket = None

    def notify(self, *assignments):
        """Sends assignments (text, "READY=1") as one message.

        Returns whether it was sent. Never waits or raises.
        """
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(assignments).encode("ascii", "replace")[:NOTICE_MOST],
                                self._address)
        except (OSError, ValueError):  # full, or the supervisor has gone: the next message may get through
            return False
        return True

    def ready(self, loop, status):
        """Says that the server serves, and from then on that it is alive; status() is a line for a person."""
        self._loop, self._status = loop, status
        self.notify("READY=1", "STATUS=" + status())
        if self.watchdog is not None and self._socket is not None:
            self._keep_alive()

    def stopping(self, status):
        """Says that the server lets its last sessions end; it is still alive meanwhile."""
        self.notify("STOPPING=1", "STATUS=" + status)

    def close(self):
        """Ends the keep-alives."""
        if self._timer is not None:
            self._loop.cancel(self._timer)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _keep_alive(self):
        # From the loop's own timers: a loop that hangs or spins in one turn says nothing, and is started
        # anew.
        self.notify("WATCHDOG=1", "STATUS=" + self._status())
        self._timer = self._loop.call_later(self.watchdog / BEAT_DIVISOR, self._keep_alive)
