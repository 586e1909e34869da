"""The errors of a fetch. Each class has an exit status of the client."""


class FetchError(Exception):
    """Base class: a fetch did not complete and verify its sequence. str() is a message of one line.

    status     exit status of the client (int)
    resumable  whether CONTINUE or `resume` can go on with the numbers that have arrived (bool)
    """

    status = 1
    advises = False  # whether str() says what to do; if so, it is shown after a transcript as well

    def __init__(self, message, resumable=False):
        super().__init__(message)
        self.resumable = resumable


class ChecksumMismatch(FetchError):
    """All numbers have arrived, but they do not match the server's checksum."""

    status = 1


class UsageError(FetchError):
    """Wrong arguments, such as a number out of range, or no state to continue from."""

    status = 2


class Refused(FetchError):
    """The server answered ERR; str() is its message."""

    status = 3


class Forgotten(Refused):
    """The server no longer has the sequence, so a new one is needed."""


class ConnectionLost(FetchError):
    """The connection could not be made, was lost, or was silent for too long; or max_time is over.

    cause  the OSError, such as a TimeoutError after silence or a socket.gaierror after a failed look-up; None
           if the server closed the connection
    """

    status = 4

    def __init__(self, message, resumable=False, cause=None):
        super().__init__(message, resumable)
        self.cause = cause


class ProtocolBroken(FetchError):
    """The server sent something that the protocol does not allow."""

    status = 5
