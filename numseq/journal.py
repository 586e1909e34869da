"""The state file: the client id and the received numbers, which a client keeps between its runs.

Batches are requested in order and replies come in the order of the requests, so what a client has is always
the beginning of its sequence. The file is a line,

    numseq 1 <client id> <n> <batch> <crc32 of all before it, as 8 hex digits>

followed by the numbers, one per byte. It is created whole and put in place by a rename; after that, numbers
are only appended. So after a kill at any moment the file is right as far as it goes, except that its last
batch may be torn. It is not forced to the disk: a power cut may lose it.
"""

import binascii
import errno
import os

from . import protocol
from .errors import UsageError

MAGIC = b"numseq"
VERSION = b"1"
HEADER_MOST = 128  # bytes of the first line; it has 73 at the most


class Journal:
    """A sequence as far as it has arrived: in memory and, with a path, in a file.

    client_id is bytes; numbers is a bytearray, one number per byte, to which the owner appends.
    complain(text) is called once if the file cannot be written; the fetch goes on without it.
    """

    def __init__(self, client_id, n, batch, numbers=b"", path=None, complain=lambda text: None):
        self.client_id = client_id
        self.n = n
        self.batch = batch
        self.numbers = bytearray(numbers)
        self.path = path
        self.kept = False  # whether CONTINUE will find in the file all that has arrived
        self._complain = complain
        self._file = None  # open while it is in place and can be written
        self._written = 0  # numbers in the file

    def is_open(self):
        """Whether numbers are being written to the file."""
        return self._file is not None

    def batches(self):
        """How many batches have arrived (int), a short last one included."""
        return -(-len(self.numbers) // self.batch)

    def total(self):
        """How many batches the sequence has (int)."""
        return -(-self.n // self.batch)

    def begin(self):
        """Creates the file, or replaces what is there."""
        if self.path is None:
            return
        self.close()
        try:
            self._file = replace(self.path, self._header() + self.numbers)
            self.kept = True
        except OSError as error:
            self._give_up(error)
        self._written = len(self.numbers)

    def flush(self):
        """Appends to the file what has arrived since the last call."""
        if self._file is not None and self._written < len(self.numbers):
            try:
                write_whole(self._file, self.numbers[self._written:])
            except OSError as error:
                self._give_up(error)
            self._written = len(self.numbers)

    def drop_numbers(self):
        """Drops the numbers, which were not the server's, and keeps the client id."""
        del self.numbers[:]
        if self._file is None:
            self.begin()
            return
        try:
            os.ftruncate(self._file, len(self._header()))  # needs no room on the disk, unlike a new file
        except OSError as error:
            self._give_up(error)
        self._written = 0

    def close(self):
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _header(self):
        fields = b"%b %b %b %d %d " % (MAGIC, VERSION, self.client_id, self.n, self.batch)
        return fields + b"%08x\n" % binascii.crc32(fields)

    def _give_up(self, error):
        self.close()
        what = "go on from what is there" if self.kept else "not be possible"
        self._complain("the state %a cannot be written, CONTINUE will %s: %s"
                       % (self.path, what, error.strerror))
        self._complain = lambda text: None
        self.kept = False


def load(path, complain=lambda text: None):
    """The Journal (with what has arrived) of a state file. Raises UsageError, whose text is one line."""
    most = HEADER_MOST + protocol.N_MOST + 1
    try:
        with open(path, "rb") as file:
            data = file.read(most)
    except FileNotFoundError:
        raise UsageError("there is no state %a to continue from, begin with NEW" % path) from None
    except OSError as error:
        raise UsageError("the state %a cannot be read: %s" % (path, error.strerror)) from None
    header, newline, numbers = data.partition(b"\n")
    fields = header.split(b" ")
    if newline and fields[0] == MAGIC and fields[1:2] != [VERSION]:
        raise UsageError("the state %a is of another version, begin with NEW" % path)
    try:
        magic, _, client_id, n, batch, check = fields
        intact = b"%08x" % binascii.crc32(header[:-len(check)]) == check
        if not intact or magic != MAGIC or not protocol.is_id(client_id):
            raise ValueError("damaged")
        n = protocol.parse_number(n, 0, protocol.N_MOST)
        batch = protocol.parse_number(batch, 1, protocol.BATCH_MOST)
        if not newline or len(numbers) > n or max(numbers, default=0) > protocol.NUMBER_MOST:
            raise ValueError("damaged")
    except ValueError:
        raise UsageError("the state %a is damaged, begin with NEW" % path) from None
    # a torn batch is requested again
    whole = len(numbers) if len(numbers) == n else len(numbers) // batch * batch
    journal = Journal(client_id, n, batch, numbers[:whole], path, complain)
    journal.kept = True
    return journal


def replace(path, data):
    """Replaces the file at path by one with data (bytes), and returns its number, open for appending.

    Who reads path sees the old file or the new one, never a part. Raises OSError.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # or root would lose /dev/null
        raise OSError(errno.EINVAL, "not a regular file")
    beside = "%s.%d" % (path, os.getpid())
    if os.path.lexists(beside):  # a process of this number was killed here; it may also be another's link
        os.unlink(beside)
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
    try:
        write_whole(file, data)
        os.replace(beside, path)
    except OSError:
        os.close(file)
        os.unlink(beside)
        raise
    return file


def write_whole(file, data):
    """Writes all of data to a file (its number); raises OSError."""
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(file, view[written:])
