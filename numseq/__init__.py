"""A complete, checksummed sequence of numbers over connections that drop.

Importing the package starts nothing and loads nothing but this and its errors.
"""

from .errors import ChecksumMismatch, ConnectionLost, FetchError, ProtocolBroken, Refused, UsageError

__version__ = "1.0.0"
__all__ = ["fetch", "resume", "FetchError", "ChecksumMismatch", "UsageError", "Refused", "ConnectionLost", "ProtocolBroken"]


def fetch(n, port, **options):
    """Fetches n numbers from the server at port, and returns when they are complete and verified.

    The options and what is returned and raised are those of `numseq.client.fetch`.
    """
    from .client import fetch as fetch_now

    return fetch_now(n, port, **options)


def resume(port, **options):
    """Goes on with the sequence of a state file, as `numseq.client.resume` does."""
    from .client import resume as resume_now

    return resume_now(port, **options)
