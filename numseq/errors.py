"""What can go wrong with a fetch. Each class has the exit status of the client."""


class FetchError(Exception):
    """A fetch that did not end with a complete and verified sequence. str() is one line for a person.

    status     what the client exits with (int)
    resumable  whether CONTINUE can go on from what has arrived (bool)
    """

    status = 1
    advises = False  # whether str() says what to do, which no transcript shows

    def __init__(self, message, resumable=False):
        super().__init__(message)
        self.resumable = resumable


class ChecksumMismatch(FetchError):
    """All numbers have arrived, but they are not the server's."""

    status = 1


class UsageError(FetchError):
    """Wrong arguments: a number out of range, say, or no state to continue from."""

    status = 2


class Refused(FetchError):
    """The server answered ERR; str() is what it said."""

    status = 3


class Forgotten(Refused):
    """The server does not have the sequence any more: a new one is needed."""


class ConnectionLost(FetchError):
    """The connection could not be made, was lost, or fell silent.

    cause   the OSError: a TimeoutError where it fell silent, a socket.gaierror where the look-up failed;
            None where the server closed the connection
    """

    status = 4

    def __init__(self, message, resumable=False, cause=None):
        super().__init__(message, resumable)
        self.cause = cause


class ProtocolBroken(FetchError):
    """The server sent what the protocol does not allow."""

    status = 5
