"""Catches the signals that end a run, before the slow imports: none is lost, and none causes a traceback.

Uses `_signal`, because `signal` imports enum, which takes longer than everything here.
"""

try:
    import _signal as signal
except ImportError:
    import signal

NUMBERS = {name: getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")}
ARRIVED_MOST = 16  # signals remembered: the first sets the exit status, any other ends the run at once

arrived = []  # numbers of the signals that have arrived, in order


def catch():
    """From now on, adds the signals that would end the process to `arrived`.

    Ignored signals stay ignored. Returns {number: previous handler} for `restore`, without signals that were
    already caught. Does nothing outside the main thread, where Python does not allow handlers.
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
