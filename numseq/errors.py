"""What can go wrong with a fetch: a small tree that mirrors the client's exit statuses."""


class FetchError(Exception):
    """A fetch that did not end with a complete and verified sequence. str() is one line for a person.

    `status` is what the client exits with (int). `resumable` is whether a CONTINUE can go on from what is
    there (bool).
    """

    status = 1

    def __init__(self, message, resumable=False):
        super().__init__(message)
        self.resumable = resumable


class ChecksumMismatch(FetchError):
    """All numbers have arrived, but they are not those that the server made."""

    status = 1


class UsageError(FetchError):
    """What was asked for cannot be: a number out of its range, or no state to continue from."""

    status = 2


class Refused(FetchError):
    """The server said ERR; str() is what it said."""

    status = 3


class ConnectionLost(FetchError):
    """The connection could not be made, was lost, or fell silent."""

    status = 4


class ProtocolBroken(FetchError):
    """The server said what no server says."""

    status = 5
