"""What a server does before anything else: signals that come while it starts or ends are no accident.

A signal that nobody handles kills a process with another status than 0; as process 1 of a container it is not
even
delivered. So this comes before the other modules are loaded, and loads nothing but `signal`.
"""

import os
import signal

ENDING = ("SIGTERM", "SIGINT")  # names of the signals that end a server
# that would stop one in the background as soon as it writes to a terminal with tostop set
STOPPING = ("SIGTTOU",)


def handle_signals():
    """Ends the process with 0 at SIGTERM and SIGINT, until the loop takes over.

    What is ignored stays ignored.
    """
    _set(ENDING, lambda number, frame: os._exit(0))
    _set(STOPPING, signal.SIG_IGN)


def ignore_signals():
    """For the very end: the status is decided, and another signal does not change it."""
    _set(ENDING, signal.SIG_IGN)


def _set(names, handler):
    for name in names:
        number = getattr(signal, name, None)  # some systems lack some
        try:
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)
        except ValueError:  # not in the main thread: signals are another's
            pass
