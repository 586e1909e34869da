"""Records in this process's memory: the default store."""

import struct

from .store import CLIENTS_MOST, EXISTS, FULL, MISSING, RETENTION, Record

FORGET_BATCH = 256  # records forgotten per turn, so that thousands at once do not starve the sockets
FORGET_PAUSE = 0.01  # seconds between two batches: see MemoryStore._forget

# A record that nobody has open: its deadline (seconds), n, batch, and whether the seed is text; then the
# seed. One object of 64 bytes that the garbage collector does not traverse, instead of several of 200 bytes
# together.
_PACKED = struct.Struct("<dHH?")


def pack(entry, deadline):
    """The record of an entry (n and batch up to 65,535; text of ASCII) and its deadline as bytes."""
    record = entry[0]
    is_text = isinstance(record.seed, str)
    seed = record.seed.encode("ascii") if is_text else record.seed
    return _PACKED.pack(deadline, record.n, record.batch, is_text) + seed


def unpack(client_id, packed):
    """An entry with the record that was packed; nobody has it open."""
    _, n, batch, is_text = _PACKED.unpack_from(packed)
    seed = packed[_PACKED.size:]
    return [Record(seed.decode("ascii") if is_text else seed, n, batch), 0]


class MemoryStore:
    """Records in memory, on the loop's clock. About 180 bytes each; they are gone when the process ends.

    forgotten(client_id) is called for each record that is dropped.
    """

    def __init__(self, loop, forgotten, retention=RETENTION, clients_most=CLIENTS_MOST):
        self._loop = loop
        self._forgotten = forgotten
        self._retention = retention
        self._clients_most = clients_most
        self._open = {}  # from client id to [record, how many connections have it open]
        # from client id to packed record: those that nobody has open, in the order of their deadlines
        self._kept = {}
        self._timer = None

    def __len__(self):
        return len(self._open) + len(self._kept)

    def create(self, client_id, record, done):
        if client_id in self._open or client_id in self._kept:
            done(None, EXISTS)
        elif len(self._open) + len(self._kept) >= self._clients_most:
            done(None, FULL)
        else:
            self._open[client_id] = [record, 1]
            done(record, None)

    def open(self, client_id, done):
        entry = self._open.get(client_id)
        if entry is None:
            packed = self._kept.pop(client_id, None)
            if packed is None:
                done(None, MISSING)
                return
            entry = self._open[client_id] = self._unpack(client_id, packed)
        entry[1] += 1
        done(entry[0], None)

    def release(self, client_id, done):
        entry = self._open[client_id]
        if entry[1] == 1:
            deadline = self._loop.now + self._retention
            # Kept before it is closed: where there is no memory for that, nothing has changed.
            self._kept[client_id] = self._pack(entry, deadline)
            del self._open[client_id]
            if self._timer is None:
                self._timer = self._loop.call_at(deadline, self._forget)
        else:
            entry[1] -= 1
        done()

    def close(self):
        """Drops the timer."""
        self._loop.cancel(self._timer)

    # What a store with copies elsewhere does in its own way.
    _pack = staticmethod(pack)
    _unpack = staticmethod(unpack)

    def _drop(self, client_id, packed):
        self._forgotten(client_id)

    def _forget(self):
        """Forgets what is due.

        One timer is enough: all are kept equally long, so the first is always due first.
        """
        now = self._loop.now
        due = []
        following = None
        for client_id, packed in self._kept.items():
            deadline = _PACKED.unpack_from(packed)[0]
            if deadline > now or len(due) == FORGET_BATCH:
                following = deadline
                break
            due.append(client_id)
        for client_id in due:
            self._drop(client_id, self._kept.pop(client_id))
        # A dict that is iterated from its front passes over what was deleted there (1 ns each). The pause
        # keeps that under a percent of the time with as many records as there may be.
        self._timer = None
        if following is not None:
            self._timer = self._loop.call_at(max(following, now + FORGET_PAUSE), self._forget)
