"""Records in this process's memory: the default store."""

import struct

from .store import CLIENTS_MOST, EXISTS, FULL, MISSING, RETENTION, Record

FORGET_BATCH = 256  # records forgotten per turn, so that thousands due at once do not starve the sockets
FORGET_PAUSE = 0.01  # seconds between two batches: see MemoryStore._forget

# A record that no connection has open: deadline (seconds), n, batch, whether the seed is text; then the seed.
# One bytes object takes 64 bytes and is not tracked by the garbage collector; several objects take 200.
_PACKED = struct.Struct("<dHH?")


def pack(entry, deadline):
    """An entry's record (n and batch up to 65,535, text in ASCII) and its deadline (seconds) as bytes."""
    record = entry[0]
    is_text = isinstance(record.seed, str)
    seed = record.seed.encode("ascii") if is_text else record.seed
    return _PACKED.pack(deadline, record.n, record.batch, is_text) + seed


def unpack(client_id, packed):
    """The entry of a packed record, open in no connection yet."""
    _, n, batch, is_text = _PACKED.unpack_from(packed)
    seed = packed[_PACKED.size:]
    return [Record(seed.decode("ascii") if is_text else seed, n, batch), 0]


class MemoryStore:
    """Keeps records in memory, about 180 bytes each; they are lost when the process ends.

    forgotten(client_id) is called for each forgotten record.
    """

    def __init__(self, loop, forgotten, retention=RETENTION, clients_most=CLIENTS_MOST):
        self._loop = loop
        self._forgotten = forgotten
        self._retention = retention
        self._clients_most = clients_most
        self._open = {}  # from client id to [record, number of connections that have it open]
        self._kept = {}  # from client id to packed record: open in no connection, ordered by deadline
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
            packed = self._kept.get(client_id)
            if packed is None:
                done(None, MISSING)
                return
            # Added before it is deleted, as in `release`.
            entry = self._open[client_id] = self._unpack(client_id, packed)
            del self._kept[client_id]
        entry[1] += 1
        done(entry[0], None)

    def release(self, client_id, done):
        entry = self._open[client_id]
        if entry[1] == 1:
            deadline = self._loop.now + self._retention
            packed = self._pack(entry, deadline)
            # Added before it is deleted, and the timer first: if memory runs out, nothing has changed.
            if self._timer is None:
                self._timer = self._loop.call_at(deadline, self._forget)
            self._kept[client_id] = packed
            del self._open[client_id]
        else:
            entry[1] -= 1
        done()

    def close(self):
        """Cancels the timer."""
        self._loop.cancel(self._timer)

    # Overridden by FileStore.
    _pack = staticmethod(pack)
    _unpack = staticmethod(unpack)

    def _drop(self, client_id, packed):
        self._forgotten(client_id)

    def _forget(self):
        """Forgets the records that are due.

        One timer is enough: all records are kept equally long, so the first one is due first.
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
            self._loop.guard(None, lambda: self._drop(client_id, self._kept.pop(client_id)))
        # Iterating over a dict skips the entries deleted at its front, 1 ns each. The pause keeps this below
        # a percent of the time even with the largest number of records.
        self._timer = None if following is None else self._loop.call_at(
            max(following, now + FORGET_PAUSE), self._forget)
