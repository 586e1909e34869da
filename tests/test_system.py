"""Sockets and signals, from the modules that Python's own are made of where these exist."""

import signal
import socket

import pytest

from helpers import run_python

# What the package uses of sockets is what both kinds have.
SESSION = """
import signal, socket, sys
if {public}:
    sys.modules["_socket"] = sys.modules["_signal"] = None  # importing them fails
from numseq import __main__, system
print(system.socket.__name__, system.signal.__name__)
sys.exit(__main__.main([]))
"""


@pytest.mark.parametrize("public, names", [(True, "socket signal"), (False, "_socket _signal")])
def test_session_with_either_kind_of_modules(public, names):
    lines = run_python(SESSION.format(public=public)).splitlines()
    assert lines[0] == names
    assert lines[-1].endswith("is valid!")


def test_sockets_and_signals_of_both_kinds_are_the_same():
    """So an application may mix them: its errors, constants and handlers are those of the package."""
    from numseq import system

    assert issubclass(socket.socket, system.socket.socket)
    assert socket.gaierror is system.socket.gaierror
    assert socket.AF_INET6 == system.socket.AF_INET6
    assert (signal.SIGTERM, signal.SIG_IGN) == (system.signal.SIGTERM, system.signal.SIG_IGN)
