"""Records in a file, which outlive a server that is killed or upgraded.

The file is a table of 64-byte slots; the first slot is the header. Creating a sequence writes a free slot
before the client gets its ACK; forgetting it overwrites the slot with zeros. Nothing else is written: there
is no log to compact, no rename, and no deadline, because after a start every record gets its whole retention
again. A kill leaves at most one half-written slot. Its checksum is wrong, so the slot counts as free.

Writes are not forced to the disk: a power cut may lose the most recent ones.
"""

import array
import binascii
import collections
import errno
import functools
import os
import stat
import struct
import time

from . import files
from .store import CLIENTS_MOST, FAILED, RETENTION, Record
from .store_memory import MemoryStore

MAGIC = b"numseq store 1\n"
SLOT_SIZE = 64  # bytes; divides sectors and pages, so that no slot crosses their boundaries
SLOTS_MOST = 1 << 22  # slots of a file, 256 MB: in memory, a slot's number has 22 bits
READ_SLOTS = 4096  # slots per read at the start: 256 KiB
DAMAGED_SLOTS = 64  # slots skipped where a read fails: 4 KiB, the block size of disks
LOCK_SECONDS = 5.0  # how long a start waits for another server to end; draining takes a second or two
LOCK_PAUSE = 0.05  # seconds between two attempts
ASIDE_MOST = 10  # foreign files that are put aside; none of them is ever replaced
SEED_MOST = 24  # bytes of a seed other than the client id

_HEADER = MAGIC.ljust(SLOT_SIZE, b"\0")
_FREE = bytes(SLOT_SIZE)

# A slot: kind, version of the drawing, n, batch, kind and length of the seed, serial number, client id,
# a mask of the id's capital letters, seed; then the CRC-32 of all of these.
_FIELDS = struct.Struct("<BBHHBBQ16sI24s")
_CHECK = struct.Struct("<I")
_CHECK_BEGIN = binascii.crc32(MAGIC)  # start value: no other program's file has valid CRCs by chance
_RECORD = 1  # the kind of a slot
SEED_BYTES, SEED_TEXT, SEED_IS_ID, SEED_FOREIGN = range(4)  # kinds of a seed; the last one in memory only

# A record in memory that no connection has open: deadline, n, batch; then the slot's index and the kind of
# the seed in three bytes, and the seed. 31 bytes with a seed of 16, an object of 64 as in MemoryStore.
_PACKED = struct.Struct("<dHH")
_PLACE = slice(_PACKED.size, _PACKED.size + 3)


def pack(entry, deadline):
    """An entry [record, users, slot, kind of the seed] and its deadline (seconds) as bytes."""
    record, _, slot, seed_kind = entry
    place = (slot << 2 | seed_kind).to_bytes(3, "little")
    seed = b"" if seed_kind >= SEED_IS_ID else seed_bytes(record.seed)
    return _PACKED.pack(deadline, record.n, record.batch) + place + seed


def unpack(client_id, packed):
    """The entry of a packed record, open in no connection yet."""
    _, n, batch = _PACKED.unpack_from(packed)
    place = place_of(packed)
    seed_kind = place & 3
    return [Record(seed_of(client_id, seed_kind, packed[_PLACE.stop:]), n, batch), 0, place >> 2, seed_kind]


def place_of(packed):
    """A packed record's place (int): 4 * the slot's index + the kind of the seed."""
    return int.from_bytes(packed[_PLACE], "little")


def seed_kind_of(client_id, seed):
    """The kind of a seed (bytes or text). In TEST_MODE it is the client id, which is not stored twice."""
    if isinstance(seed, bytes):
        return SEED_BYTES
    return SEED_IS_ID if seed.encode("ascii") == client_id else SEED_TEXT


def seed_bytes(seed):
    """A seed (bytes or text of ASCII) as bytes."""
    return seed if isinstance(seed, bytes) else seed.encode("ascii")


def seed_of(client_id, seed_kind, seed):
    """A record's seed (bytes or text) from its kind and its stored bytes."""
    if seed_kind == SEED_BYTES:
        return seed
    return (client_id if seed_kind == SEED_IS_ID else seed).decode("ascii")


class FileStore(MemoryStore):
    """A MemoryStore with a copy of its records in a file.

    drawing is the version (0 to 255) of this server's way to draw numbers. A record of another version is
    kept, but `open` answers FAILED for it. complain(text) takes a line for an operator.

    Raises OSError if the file cannot be used, with the reason as its strerror, and ValueError if clients_most
    is too large.
    """

    def __init__(self, path, loop, forgotten, retention=RETENTION, clients_most=CLIENTS_MOST, drawing=1,
                 complain=lambda text: None, sleep=time.sleep):
        if clients_most >= SLOTS_MOST:
            raise ValueError("a file keeps %d clients at most" % (SLOTS_MOST - 1))
        super().__init__(loop, forgotten, retention, clients_most)
        self._path = path
        self._drawing = drawing
        self._complain = complain
        self._failing = False  # whether the last write failed
        self._table = None
        try:
            files.find(path)  # refuses what another user put there, in a directory such as /tmp
            self._table = Table(path, complain, sleep)
            deadline = loop.clock() + retention  # loop.now is from before the wait for the lock
            for slot, client_id, drawn, record in self._table.load(self._slot_of):
                seed_kind = seed_kind_of(client_id, record.seed) if drawn == drawing else SEED_FOREIGN
                self._kept[client_id] = pack([record, 0, slot, seed_kind], deadline)
            if self._kept:
                self._timer = loop.call_at(deadline, self._forget)
        except OSError as error:
            self.close()
            raise OSError(error.errno, "%a: %s" % (path, error.strerror)) from None

    def create(self, client_id, record, done):
        super().create(client_id, record, functools.partial(self._created, client_id, done))

    def _created(self, client_id, done, record, refusal):
        """Writes a new record to the file before the store replies."""
        if record is not None:
            try:
                slot = self._table.put(client_id, record, self._drawing)
                self._open[client_id] += slot, seed_kind_of(client_id, record.seed)
                self._failing = False
            except OSError as error:
                del self._open[client_id]
                self._failed(error)
                record, refusal = None, FAILED
            except MemoryError:
                del self._open[client_id]
                raise
        done(record, refusal)

    def open(self, client_id, done):
        packed = self._kept.get(client_id)
        if packed is not None and place_of(packed) & 3 == SEED_FOREIGN:
            self._complain("%a: the numbers of %s are drawn by another version of numseq" % (
                self._path, client_id.decode("ascii")))
            done(None, FAILED)
        else:
            super().open(client_id, done)

    def close(self):
        super().close()
        if self._table is not None:
            self._table.close()

    _pack = staticmethod(pack)
    _unpack = staticmethod(unpack)

    def _drop(self, client_id, packed):
        try:
            self._table.clear(place_of(packed) >> 2)
        except OSError as error:
            self._failed(error)
        self._forgotten(client_id)

    def _slot_of(self, client_id):
        """The slot of a record that no connection has open, or None."""
        packed = self._kept.get(client_id)
        return None if packed is None else place_of(packed) >> 2

    def _failed(self, error):
        """Complains about the first write that failed since a sequence was last written."""
        if not self._failing:
            self._failing = True
            self._complain("%a cannot be written, no new sequence is kept until it can: %s" % (
                self._path, error.strerror))


# ---- the file


class Table:
    """The file: locked and read once, then written slot by slot. It knows no deadlines."""

    def __init__(self, path, complain, sleep=time.sleep):
        self._path = path
        self._complain = complain
        self._sleep = sleep
        self._begin()

    def _begin(self):
        self._file = open_locked(self._path, self._sleep)
        self._end = 1  # the first slot past the end of the file
        self._number = 0  # the highest serial number in the file
        self._free = array.array("I")  # free slots before the end; the last one is used next
        # Slots that may still hold a forgotten record because clearing them failed. They are written before
        # all others, oldest first: of two slots of one id, the newer must not be cleared before the older.
        self._dirty = collections.deque()

    def load(self, slot_of):
        """Reads the file: yields (slot, client id, version of the drawing, record). Raises OSError.

        slot_of(client_id) returns the slot of an id that was yielded before, or None. An id may be yielded
        again with a newer record, which replaces the previous one.
        """
        header = os.pread(self._file, SLOT_SIZE, 0)
        count = min(os.fstat(self._file).st_size // SLOT_SIZE, SLOTS_MOST)
        self._end = max(count, 1)
        records = damaged = lost = 0
        for first, last, data in read_pieces(self._file, count):
            if data is None:
                lost += last - first
                continue
            for slot, begin in enumerate(range(0, len(data), SLOT_SIZE), first):
                decoded = decode_slot(data, begin)
                if decoded is None:
                    damaged += data[begin:begin + SLOT_SIZE] != _FREE
                    self._free.append(slot)
                    continue
                records += 1
                number, client_id, drawing, record = decoded
                self._number = max(self._number, number)
                other = slot_of(client_id)
                if other is not None:
                    newer = self._number_in(other) > number
                    self._dirty.append(slot if newer else other)
                    if newer:
                        continue
                yield slot, client_id, drawing, record
        self._free.reverse()
        if header != _HEADER:
            if records:
                self._complain("%a: its header was damaged, and is written anew" % self._path)
            elif damaged or not (_HEADER.startswith(header) or header == _FREE):
                self._put_aside()
                yield from self.load(slot_of)
                return
            self._write(0, _HEADER)
        self._make_private()
        if damaged:
            self._complain("%a: %d damaged slots, what they held is lost" % (self._path, damaged))
        if lost:
            self._complain("%a: %d slots cannot be read, what they held is lost" % (self._path, lost))

    def put(self, client_id, record, drawing):
        """Writes a record into a free slot; returns the slot's index. Raises OSError."""
        if self._free and not self._dirty:
            self._dirty.append(self._free.pop())  # dirty until the write has succeeded
        slot = self._dirty[0] if self._dirty else self._end
        if slot == SLOTS_MOST:
            raise OSError(errno.ENOSPC, "all of its slots are in use")
        self._write(slot, encode_slot(client_id, record, drawing, self._number + 1))
        self._number += 1
        if self._dirty:
            self._dirty.popleft()
        else:
            self._end += 1
        return slot

    def clear(self, slot):
        """Clears a slot, and another one that could not be cleared before.

        Raises OSError; the slot is then cleared later or overwritten.
        """
        self._dirty.append(slot)
        for _ in range(min(2, len(self._dirty))):
            self._write(self._dirty[0], _FREE)
            self._free.append(self._dirty.popleft())

    def close(self):
        """Closes the file, which releases its lock."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                os.close(file)
            except OSError as error:  # a network file system may write only now
                self._complain("%a: what was written last may be lost: %s" % (self._path, error.strerror))

    def _make_private(self):
        """Leaves the file to its owner alone: the seeds and the client ids in it are secrets."""
        if os.fstat(self._file).st_mode & 0o077:
            try:
                os.fchmod(self._file, files.MODE_PRIVATE)
            except OSError:  # another user's file, or a file system without modes
                pass

    def _write(self, slot, data):
        if os.pwrite(self._file, data, slot * SLOT_SIZE) < SLOT_SIZE:  # the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _number_in(self, slot):
        """The serial number in a slot, or 0 if it has no valid record."""
        decoded = decode_slot(os.pread(self._file, SLOT_SIZE, slot * SLOT_SIZE).ljust(SLOT_SIZE, b"\0"), 0)
        return decoded[0] if decoded else 0

    def _put_aside(self):
        """Renames a file that is not a store, and starts a new one."""
        names = [self._path + (".bad.%d" % number if number else ".bad") for number in range(ASIDE_MOST)]
        aside = next((name for name in names if not os.path.lexists(name)), None)
        if aside is None:
            raise OSError(errno.EEXIST, "no store of this version, like %d beside it: delete %a to %a" % (
                ASIDE_MOST, names[0], names[-1]))
        os.rename(self._path, aside)
        self.close()
        self._complain("%a is no store of this version: it is %a now, and the store is empty" % (
            self._path, aside))
        self._begin()


def read_pieces(file, count):
    """Yields (first, last, bytes) for the slots first to last - 1 of `count`, without the header.

    The bytes are None if they cannot be read (EIO). Raises OSError for other errors.
    """
    begin = 1
    size = READ_SLOTS
    while begin < count:
        end = min(begin - begin % size + size, count)
        try:
            data = os.pread(file, (end - begin) * SLOT_SIZE, begin * SLOT_SIZE)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            if size == READ_SLOTS:
                size = DAMAGED_SLOTS
                continue
            data = None
        if data is not None:
            end = begin + len(data) // SLOT_SIZE  # a read may return less
            if end == begin:
                return  # the file was truncated meanwhile
        yield begin, end, data
        begin = end
        if not begin % READ_SLOTS:
            size = READ_SLOTS


def encode_slot(client_id, record, drawing, number):
    """A record as a slot (bytes); n and batch are up to 65,535. Raises ValueError if the id is not a UUID."""
    seed_kind = seed_kind_of(client_id, record.seed)
    seed = b"" if seed_kind == SEED_IS_ID else seed_bytes(record.seed)
    if len(seed) > SEED_MOST:
        raise ValueError("a seed of %d bytes" % len(seed))
    digits = client_id.replace(b"-", b"")
    fields = _FIELDS.pack(_RECORD, drawing, record.n, record.batch, seed_kind, len(seed), number,
                          binascii.unhexlify(digits), capitals_of(digits), seed)
    return fields + _CHECK.pack(binascii.crc32(fields, _CHECK_BEGIN))


def decode_slot(data, begin):
    """(serial number, client id, version of the drawing, record) of the slot at begin in data (bytes).

    None if the slot has no valid record.
    """
    fields = data[begin:begin + _FIELDS.size]
    if binascii.crc32(fields, _CHECK_BEGIN) != _CHECK.unpack_from(data, begin + _FIELDS.size)[0]:
        return None
    kind, drawing, n, batch, seed_kind, size, number, raw, capitals, seed = _FIELDS.unpack(fields)
    if kind != _RECORD or seed_kind > SEED_IS_ID or size > SEED_MOST or not batch:
        return None
    digits = binascii.hexlify(raw)
    if capitals:
        digits = bytes(digit - 32 if capitals >> place & 1 and digit >= 97 else digit
                       for digit, place in zip(digits, range(31, -1, -1)))
    client_id = b"-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return number, client_id, drawing, Record(seed_of(client_id, seed_kind, seed[:size]), n, batch)


_CAPITALS = bytes(b"1"[0] if chr(i) in "ABCDEF" else b"0"[0] for i in range(256))


def capitals_of(digits):
    """A mask (32 bits) of the capitals among the 32 hex digits (bytes): ids are case-sensitive."""
    return 0 if digits.islower() or digits.isdigit() else int(digits.translate(_CAPITALS), 2)


def open_locked(path, sleep=time.sleep):
    """Opens and locks the file, creating it if necessary; returns its number. Raises OSError."""
    for _ in range(int(LOCK_SECONDS / LOCK_PAUSE)):
        # O_NONBLOCK, because opening a FIFO could block.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, files.MODE_PRIVATE)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            os.lockf(file, os.F_TLOCK, 0)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except (BlockingIOError, PermissionError):  # locked: POSIX allows EAGAIN and EACCES
            pass
        except FileNotFoundError:  # the previous server has just put the file aside
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        sleep(LOCK_PAUSE)
    raise OSError(errno.EBUSY, "another server has it open")
