"""Fetches complete, verified sequences of numbers over connections that drop.

Importing the package loads only this module, its errors and its version. The first call loads the rest.
"""

from .errors import ChecksumMismatch, ConnectionLost, FetchError, ProtocolBroken, Refused, UsageError
from .version import __version__

__all__ = ["fetch", "resume", "FetchError", "ChecksumMismatch", "UsageError", "Refused", "ConnectionLost",
           "ProtocolBroken", "__version__"]


def fetch(n, port, **options):
    """Fetches n numbers from the server at port; returns a Result once they are complete and verified.

    Options, result and exceptions are those of `numseq.transfer.fetch`.
    """
    from .transfer import fetch as fetch_now

    return fetch_now(n, port, **options)


def resume(port, **options):
    """Continues the sequence of a state file, as `numseq.transfer.resume` does; returns a Result."""
    from .transfer import resume as resume_now

    return resume_now(port, **options)
