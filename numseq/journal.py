"""The state file: the client id and the received numbers, which a client keeps between its runs.

Batches are requested in order, and replies come in the order of the requests. So the received numbers are
always the beginning of the sequence. The file is a line,

    numseq 1 <client id> <n> <batch> <crc32 of all before it, as 8 hex digits>

followed by the numbers, one per byte. It is created whole and put in place by a rename; after that, numbers
are only appended. So the file is valid after a kill at any moment, except that its last batch may be torn.
Appended numbers are not forced to the disk: a power cut may lose them.

Only the owner may read the file, because anyone who knows the id can take the sequence. It is locked while a
run uses it.
"""

import binascii
import errno
import os

from . import files, protocol
from .errors import UsageError

MAGIC = b"numseq"
VERSION = b"1"
HEADER_MOST = 128  # bytes of the first line; the longest valid one has 73


class Journal:
    """The numbers of a sequence that have arrived: in memory and, with a path, in a file.

    client_id  UUID (bytes)
    n          length of the sequence (int)
    batch      numbers per batch (int)
    numbers    a bytearray, one number per byte, to which the owner appends
    path       path of the state file (text), or None
    complain   complain(text) is called once if the file cannot be written; the fetch goes on without it
    """

    def __init__(self, client_id, n, batch, numbers=b"", path=None, complain=lambda text: None):
        self.client_id = client_id
        self.n = n
        self.batch = batch
        self.numbers = bytearray(numbers)
        self.path = path
        self.kept = False  # whether the file has all numbers that have arrived, for CONTINUE
        self._complain = complain
        self._target = path  # the path with its links resolved
        self._claimed = None  # descriptor of an existing file, locked but not yet overwritten
        self._loaded = None  # valid bytes of the claimed file, if the journal was loaded from it
        self._file = None  # descriptor of this journal's file, while it can be written
        self._written = 0  # numbers in the file

    def claim(self):
        """Locks the file at `path` for this run; to be called before anything is sent.

        Raises UsageError if no file can be there, or another run uses it. If it cannot be written, calls
        `complain`.
        """
        if self.path is None:
            return
        try:
            files.require_usable(self.path)
        except OSError as error:
            raise UsageError("the state %a cannot be used: %s" % (self.path, error.strerror)) from None
        require_no_output(self.path)
        try:
            self._target, self._claimed = files.claim(self.path)
            if self._claimed is None:
                files.require_writable(self.path)
        except BlockingIOError:
            raise in_use(self.path) from None
        except OSError as error:
            self._give_up(error)

    def is_open(self):
        """Whether numbers are being written to the file (bool)."""
        return self._file is not None

    def batches(self):
        """The number of batches that have arrived (int), including a short last one."""
        return -(-len(self.numbers) // self.batch)

    def total(self):
        """The number of batches in the sequence (int)."""
        return -(-self.n // self.batch)

    def take(self, target, file):
        """Continues in the claimed file (its descriptor) at `target`, from which this journal was loaded."""
        self._target, self._claimed, self._loaded = target, file, len(self._header()) + len(self.numbers)

    def begin(self):
        """Creates the file, replaces an existing one, or continues in the one that was loaded.

        Does nothing without a path, or if the file is open. Can be called again after it failed.
        """
        if self.path is None or self.is_open():
            return
        try:
            if self._claimed is None:
                self._target, self._claimed = files.claim(self.path)
            if self._loaded is None:
                data = self._header() + self.numbers
                self._file = files.place(self._target, self._claimed, data, private=True)
                if self._claimed not in (None, self._file):
                    files.release(self._claimed)
            else:
                files.make_private(self._claimed)
                os.ftruncate(self._claimed, self._loaded)  # a torn tail is fetched again
                self._file = self._claimed
            self._claimed = self._loaded = None
            self.kept = True
        except OSError as error:
            self._give_up(error)
        self._written = len(self.numbers)

    def flush(self):
        """Appends the numbers that have arrived since the last call to the file."""
        if self._file is not None and self._written < len(self.numbers):
            try:
                files.write_all(self._file, self.numbers[self._written:])
            except OSError as error:
                self._give_up(error)
            self._written = len(self.numbers)

    def drop_numbers(self):
        """Drops the numbers, which did not match the checksum, and keeps the client id."""
        del self.numbers[:]
        if self._file is None:
            self.begin()
            return
        try:
            os.ftruncate(self._file, len(self._header()))  # works on a full disk, unlike a new file
        except OSError as error:
            self._give_up(error)
        self._written = 0

    def close(self):
        """Flushes and closes the file."""
        self.flush()
        if self.is_open() and not files.is_at(self._target, self._file):
            self._give_up(OSError(errno.ESTALE, "another has removed or replaced it"))
        try:
            self._release()
        except OSError as error:  # a network file system may report a full disk only here
            self._give_up(error)

    def _release(self):
        """Closes the open descriptors. Raises OSError."""
        opened = {self._file, self._claimed} - {None}
        self._file = self._claimed = self._loaded = None
        for file in opened:
            files.release(file)

    def _header(self):
        fields = b"%b %b %b %d %d " % (MAGIC, VERSION, self.client_id, self.n, self.batch)
        return fields + b"%08x\n" % binascii.crc32(fields)

    def _give_up(self, error):
        try:
            self._release()
        except OSError:  # the first error is reported
            pass
        in_place = self.kept and error.errno != errno.ESTALE
        what = "go on from what is there" if in_place else "not be possible"
        is_taken = isinstance(error, (BlockingIOError, FileExistsError))
        why = "another run uses it" if is_taken else error.strerror
        self.kept = False
        complain, self._complain = self._complain, lambda text: None
        complain("the state %a cannot be written, CONTINUE will %s: %s" % (self.path, what, why))


def require_no_output(path):
    """Raises UsageError if this process's standard output or error goes to the regular file at `path`."""
    # In this order: before Python 3.8, isfile raises ValueError for some paths at which no file can be.
    if files.own_file(path) is not None and os.path.isfile(path):
        raise UsageError("the state %a is the file that the output goes to" % path)


def in_use(path):
    """The UsageError for a state that another run has claimed."""
    return UsageError("the state %a is in use by another run, name a different one for this run" % path)


def load(path, complain=lambda text: None, claim=False):
    """The Journal of a state file. Raises UsageError with a message of one line.

    path      of the file (text)
    complain  as for Journal
    claim     whether to lock the file for this run, as Journal.claim does (bool); a read-only file is not
              locked
    """
    file, locked = None, False
    if claim:
        require_no_output(path)
    try:
        if claim:
            target, file, locked = files.open_claimed(path)
        else:
            file = files.open_to_read(files.find(path))
        journal = parse(files.read(file, HEADER_MOST + protocol.N_MOST + 1), path, complain)
        if locked:
            journal.take(target, file)
            file = None
        return journal
    except BlockingIOError:
        raise in_use(path) from None
    except FileNotFoundError:
        raise UsageError("there is no state %a to continue from, begin with NEW" % path) from None
    except OSError as error:
        raise UsageError("the state %a cannot be read: %s" % (path, error.strerror)) from None
    finally:
        if file is not None:
            files.release(file)


def parse(data, path, complain):
    """The Journal in the content of a state file (bytes). Raises UsageError with a message of one line."""
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
    # A torn batch is requested again.
    whole = len(numbers) if len(numbers) == n else len(numbers) // batch * batch
    journal = Journal(client_id, n, batch, numbers[:whole], path, complain)
    journal.kept = True
    return journal


