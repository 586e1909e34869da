"""Handles the signals that end a program from its first moment, before the slow imports.

Without handlers they would end it with a traceback or another status, and process 1 of a container would
not even get them. Until its loop handles them, a client remembers them (`catch`), and a server exits with
status 0 (`exit_at_once`). Ignored signals stay ignored. Outside the main thread, where Python does not allow
handlers, nothing is handled.
"""

import os

from .system import signal

NUMBERS = {name: getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")}  # they end a client
SERVER_NUMBERS = signal.SIGTERM, signal.SIGINT  # they end a server
FIGURES = getattr(signal, "SIGUSR1", None)  # makes a server print its figures; None: the system lacks it
# Would stop a background server that writes to a terminal set to `tostop`.
STOPPING = (signal.SIGTTOU,) if hasattr(signal, "SIGTTOU") else ()
ARRIVED_MOST = 16  # signals remembered: the first sets the exit status, any other ends the run at once

arrived = []  # numbers of the signals that have arrived, in order


# ---- for a client


def catch():
    """From now on, adds the signals that would end the process to `arrived`.

    Returns {number: previous handler} for `restore`, without signals that were already caught.
    """
    return _handle(NUMBERS.values(), _remember)


def caught():
    """The numbers of the signals that `catch` handles now (list of int)."""
    return [number for number in NUMBERS.values() if signal.getsignal(number) is _remember]


def restore(taken):
    """Restores the handlers that `catch` returned (a dict); if there are any, clears `arrived`."""
    for number, handler in taken.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if taken:
        del arrived[:]


def remember(number):
    """Adds a signal number to `arrived`, for handlers other than that of `catch`."""
    if len(arrived) < ARRIVED_MOST:
        arrived.append(number)


def _remember(number, frame):
    remember(number)


# ---- for a server


def exit_at_once():
    """Lets SIGTERM and SIGINT end the process with status 0."""
    _handle(SERVER_NUMBERS, _exit)
    _handle(STOPPING, signal.SIG_IGN)


def ignore():
    """Ignores SIGTERM and SIGINT, so that a late one does not change the exit status."""
    _handle(SERVER_NUMBERS, signal.SIG_IGN)


def _exit(number, frame):
    os._exit(0)


def _handle(numbers, handler):
    """Sets the handler of signals that are not ignored; returns {number: previous handler} of the changed."""
    changed = {}
    for number in numbers:
        previous = signal.getsignal(number)
        if previous != signal.SIG_IGN and previous is not handler:
            try:
                signal.signal(number, handler)
            except ValueError:  # not in the main thread
                break
            changed[number] = previous
    return changed
