"""Plays the service manager: starts a program with sockets of its own, and listens to what the program says
of itself."""

import os
import socket
import tempfile

FIRST_FILE = 3
HEARD_MOST = 4096  # bytes of one message
WAIT = 10  # seconds in which a message has to come

# Puts the files whose numbers it is given at 3 and up, says that they are meant for it, and becomes the
# program.
LAUNCHER = """
import os, sys
numbers = [int(number) for number in sys.argv[1].split(",") if number]
high = [os.dup2(number, 100 + place) for place, number in enumerate(numbers)]
for place, number in enumerate(high):
    os.dup2(number, %d + place)
    os.close(number)
if numbers:
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ.setdefault("LISTEN_FDS", str(len(numbers)))
if "WATCHDOG_USEC" in os.environ:
    os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable] + sys.argv[2:])
""" % FIRST_FILE


def launch(sockets, arguments):
    """(arguments after the interpreter's name, keywords of Popen) that start it with the sockets passed."""
    numbers = [each.fileno() for each in sockets]
    return ["-c", LAUNCHER, ",".join(map(str, numbers))] + list(arguments), {"pass_fds": tuple(numbers)}


def passed_socket(host="127.0.0.1", family=socket.AF_INET):
    """A socket that listens on a free port, as a service manager makes one: blocking."""
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, 0))
    listening.listen(1024)
    return listening


class Notices:
    """The socket that a program tells how it is doing; `name` is for NOTIFY_SOCKET."""

    def __init__(self, abstract=False):
        self.heard = []  # each message, as a list of its assignments
        self._folder = tempfile.TemporaryDirectory()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(WAIT)
        path = os.path.join(self._folder.name, "notify")
        self.name = "@" + path if abstract else path
        self._socket.bind("\0" + path if abstract else path)

    def read(self):
        """The next message, as a list of its assignments."""
        self.heard.append(self._socket.recv(HEARD_MOST).decode("ascii").split("\n"))
        return self.heard[-1]

    def wait_for(self, assignment):
        """Reads until a message has the assignment; returns that message."""
        while assignment not in self.read():
            pass
        return self.heard[-1]

    def close(self):
        self._socket.close()
        self._folder.cleanup()
