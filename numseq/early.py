"""Signal handlers for the time while a server starts or ends.

Without a handler, SIGTERM and SIGINT end the process with a status other than 0, and process 1 of a container
does not even get them. So a server sets these handlers before it loads its other modules.
"""

import os
import signal

ENDING = ("SIGTERM", "SIGINT")  # names of the signals that end a server
STOPPING = ("SIGTTOU",)  # would stop a background server that writes to a terminal set to `tostop`


def handle_signals():
    """Lets SIGTERM and SIGINT end the process with status 0 until the loop handles them.

    Signals that are ignored stay ignored.
    """
    _set(ENDING, lambda number, frame: os._exit(0))
    _set(STOPPING, signal.SIG_IGN)


def ignore_signals():
    """Ignores SIGTERM and SIGINT, so that a late one does not change the exit status."""
    _set(ENDING, signal.SIG_IGN)


def _set(names, handler):
    for name in names:
        number = getattr(signal, name, None)  # None: this system lacks it
        try:
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)
        except ValueError:  # not in the main thread, where signals cannot be set
            pass
