"""The signals that end a run, caught before the program's modules are loaded.

So none is lost while it starts, and none ends in a traceback.

`signal` alone would load enum first, which takes longer than all that is here.
"""

try:
    import _signal as signal
except ImportError:
    import signal

NUMBERS = {name: getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")}
ARRIVED_MOST = 16  # signals remembered: the first says how the run ends, the others that it is to be at once

arrived = []  # the numbers of those that came, in order


def catch():
    """Remembers from now on each signal that would end the process, in `arrived`.

    What was ignored when the process began stays ignored. Returns {number: handler} for `restore`, without
    those that are caught already. Does nothing outside the main thread, where Python does not allow it.
    """
    taken = {}
    for number in NUMBERS.values():
        handler = signal.getsignal(number)
        if handler is not _remember and handler != signal.SIG_IGN:
            try:
                signal.signal(number, _remember)
            except ValueError:
                break
            taken[number] = handler
    return taken


def caught():
    """The numbers of the signals that `catch` has taken over."""
    return [number for number in NUMBERS.values() if signal.getsignal(number) is _remember]


def restore(taken):
    """Puts back the handlers that `catch` returned, and forgets what came meanwhile if there are any."""
    for number, handler in taken.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if taken:
        del arrived[:]


def remember(number):
    """Takes a signal as arrived, for who has learnt of it in another way."""
    if len(arrived) < ARRIVED_MOST:
        arrived.append(number)


def _remember(number, frame):
    remember(number)
