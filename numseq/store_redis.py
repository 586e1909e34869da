"""Records in Redis or Valkey, shared by the servers of a fleet: a client can go on at any of them.

A record is a key with a time to live. Opening it sets that time to a lease plus the retention, and a server's
last release sets it to the retention. So no release purges a record that another server has open, and a
server that dies leaves nothing to clean up: its leases run out.

`RedisStore` translates the contract of a store into commands, which `redis_client.Client` sends. Every
command may run twice without harm, except SET NX, for which a random token in the value tells whose record it
is. So there are no scripts, transactions or notifications, and Redis 2.6.12 is new enough.
"""

import binascii
import functools
import os
import struct

from . import resp
from .redis_client import CLOSED, DOWN, UP, Client, Command, parse_url
from .store import ANSWER_SECONDS, CLIENTS_MOST, EXISTS, FAILED, FULL, MISSING, RETENTION, Record

LEASE_LEAST = 0.2  # seconds; a shorter session or retention would be renewed every few milliseconds
TOUCH_BATCH = 256  # keys renewed or checked per turn
TOUCH_PAUSE = 0.01  # seconds between two batches
CHECK_PAUSE = 1.0  # seconds until a check that found Redis away is repeated
CHECK_MARGIN = 0.01  # seconds from a key's end to its check ...
CHECK_DRIFT = 0.001  # ... and this part of the retention: two clocks that are being corrected differ by 0.1 %
CLAIM_SECONDS = 5.0  # how long a claim lives: servers that released a record together check it together
LATE_CLAIM_SECONDS = 60.0  # ... beyond the retention, where requests failed: servers reconnect 8 s apart
FORMAT = 1  # of a value

# A record that was released here: when to check it, its token, what is known of the release.
_KEPT = struct.Struct("<d8sB")
CONFIRMED = 0  # by Redis
UNCONFIRMED = 1  # that request failed, or one to open the record: the key may also live for its lease
OVERDUE = 2  # the same, and the key was still there at the first check
TOKEN_BYTES = 8
NUMBERS = ((resp.INTEGER, 0), (resp.INTEGER, 1))  # the replies to PEXPIRE


# ---- commands and values


def _milliseconds(seconds):
    return b"%d" % max(1, round(seconds * 1000))


def set_new(key, value, seconds):
    """The command that creates a key. The reply is OK, or NULL if the key exists."""
    data = resp.encode(b"SET", key, value, b"NX", b"PX", _milliseconds(seconds))
    return Command(data, lambda reply: reply == resp.OK or reply == resp.NULL)


def expire(key, seconds):
    """The command that sets a key's time to live. The reply is 1, or 0 if the key does not exist."""
    return Command(resp.encode(b"PEXPIRE", key, _milliseconds(seconds)), NUMBERS.__contains__)


def get(key):
    """The command that reads a key. The reply is its value, or NULL."""
    return Command(resp.encode(b"GET", key), lambda reply: reply[0] == resp.BULK)


def key_of(client_id):
    """The key of a client's record."""
    return b"numseq:" + client_id


def claim_key_of(token):
    """The key by which one of several servers claims to announce the purge of the record with this token."""
    return b"numseq:purged:" + binascii.hexlify(token)


def encode_value(record, drawing, token):
    """A record as a value (bytes): format and drawing, n, batch, seed, token (16 hex digits)."""
    is_text = isinstance(record.seed, str)
    seed = b"t" + record.seed.encode("ascii") if is_text else b"b" + binascii.hexlify(record.seed)
    return b"%d,%d,%d,%b,%b" % (first_number(drawing), record.n, record.batch, seed, token)


def first_number(drawing):
    """The first number of a value, which combines its format and the drawing: 1 if both are 1."""
    return (FORMAT - 1) * 256 + drawing


def decode_value(value, drawing):
    """(record, token) of a value (bytes). Raises ValueError for another format or drawing, and for damage."""
    first, _, rest = value.partition(b",")
    is_ours = first == b"%d" % first_number(drawing)
    if first.isdigit() and not is_ours:
        raise ValueError("is of another version of numseq")
    try:
        n, batch, rest = rest.split(b",", 2)
        seed, _, token = rest.rpartition(b",")
        record = Record(_SEEDS[seed[:1]](seed[1:]), _number(n, 0), _number(batch, 1))
        token = binascii.unhexlify(token)
        if not is_ours or len(token) != TOKEN_BYTES:
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError("is no record of numseq") from None
    return record, token


_SEEDS = {b"t": lambda text: text.decode("ascii"), b"b": binascii.unhexlify}


def _number(text, least):
    if not (text.isdigit() and len(text) <= 5 and least <= int(text) <= 0xFFFF):
        raise ValueError
    return int(text)


# ---- the store


class RedisStore:
    """Keeps records in Redis or Valkey at a Place, shared by all servers that use the same database.

    session_timeout  how long a connection has a record open, at most (seconds)
    drawing          version (0 to 255) of this server's way to draw numbers; `open` answers FAILED for a
                     record of another version
    clients_most     limit of the records that this server has open or has released, not of all records
    complain         complain(text) takes a line for an operator
    forgotten        forgotten(client_id) is called in the server that last released the record; if that one
                     has ended meanwhile, it is not called at all

    Raises OSError if a host's name cannot be looked up.
    """

    def __init__(self, place, loop, forgotten, retention=RETENTION, clients_most=CLIENTS_MOST,
                 session_timeout=1.0, drawing=1, complain=lambda text: None):
        self._loop = loop
        self._forgotten = forgotten
        self._retention = max(retention, LEASE_LEAST)
        self._clients_most = clients_most
        self._drawing = drawing
        self._complain = complain
        self._margin = CHECK_MARGIN + CHECK_DRIFT * self._retention
        self._lease = max(min(session_timeout, retention), LEASE_LEAST)
        self._hold = self._lease + self._retention
        self._open = {}  # from client id to [value, token, number of connections here that have it open]
        self._kept = {}  # from client id to _KEPT: released here and not yet forgotten, oldest first
        self._check_timer = None
        self._checking = 0  # checks in flight
        self._check_failed = False
        self._touch_timer = None
        # Whether a session may last until another server's release has let its key expire, or almost so long:
        # its own release may be late by ANSWER_SECONDS.
        self._touches = session_timeout + ANSWER_SECONDS > self._retention
        self._name = binascii.hexlify(os.urandom(TOKEN_BYTES))  # of this server, in its claims
        self._client = Client(loop, place, complain)

    def __len__(self):
        """The number of records that this server has open, or has released and not yet forgotten."""
        return len(self._open) + len(self._kept)

    def is_up(self):
        """Whether Redis is connected."""
        return self._client.state is UP

    def is_away(self):
        """Whether requests fail at once, because no host can be used."""
        return self._client.state is DOWN

    def create(self, client_id, record, done):
        if client_id not in self._open and client_id not in self._kept and len(self) >= self._clients_most:
            done(None, FULL)
            return
        key = key_of(client_id)
        try:
            token = os.urandom(TOKEN_BYTES)
        except OSError:  # no random bytes
            done(None, FAILED)
            return
        value = encode_value(record, self._drawing, binascii.hexlify(token))

        def answered(replies):
            if replies is None:
                done(None, FAILED)
                return
            first = replies[0]
            if first == resp.OK or len(replies) == 2 and replies[1] == (resp.BULK, value):
                self._opened(client_id, value, token)
                done(record, None)
            elif first[0] == resp.ERROR:  # of ANSWERS
                done(None, FULL if resp.error_code(first[1]) == b"OOM" else FAILED)
            else:
                done(None, EXISTS)

        command = set_new(key, value, self._hold)
        self._client.ask((command,), answered, (command, get(key)))

    def open(self, client_id, done):
        key = key_of(client_id)

        def answered(replies):
            if replies is None:
                self._doubt(client_id)
                done(None, FAILED)
                return
            kind, value = replies[1]
            if kind == resp.ERROR:  # of ANSWERS
                self._complain("Redis's key %s: %s" % (key.decode("ascii"), value.decode("ascii", "replace")))
                done(None, FAILED)
                return
            if value is None:
                done(None, MISSING)
                return
            try:
                record, token = decode_value(value, self._drawing)
            except ValueError as error:
                self._complain("Redis's key %s %s" % (key.decode("ascii"), error))
                done(None, FAILED)
                return
            self._opened(client_id, value, token)
            done(record, None)

        self._client.ask((expire(key, self._hold), get(key)), answered)

    def release(self, client_id, done):
        entry = self._open[client_id]
        if entry[2] > 1:
            entry[2] -= 1
            done()
            return
        value, token, _ = entry

        def answered(replies):
            done()  # first: if memory runs out below, the request has ended
            self._keep(client_id, token, UNCONFIRMED if replies is None else CONFIRMED)

        del self._open[client_id]
        try:
            self._set_lifetime(client_id, value, self._retention, answered)
        except MemoryError:  # nothing was asked; it is released again later
            self._open[client_id] = entry
            raise

    def close(self):
        self._client.close()
        for timer in (self._check_timer, self._touch_timer):
            self._loop.cancel(timer)

    # ---- records that are open here

    def _opened(self, client_id, value, token):
        packed = self._kept.get(client_id)
        if packed is not None and _KEPT.unpack(packed)[1] != token:  # created anew before it was checked
            self._claim(client_id, _KEPT.unpack(packed)[1], True, lambda has_answer: None)
        if self._touches and self._touch_timer is None:
            self._touch_timer = self._loop.call_later(self._lease / 2, self._touch)
        # In one step, and deleted last: if memory runs out, nothing has changed.
        count = self._open[client_id][2] if client_id in self._open else 0
        self._open[client_id] = [value, token, count + 1]
        self._kept.pop(client_id, None)

    def _touch(self, rest=None):
        """Renews the leases of all open records in batches, if a session may outlast the retention."""
        ids = list(self._open) if rest is None else rest
        for client_id in ids[:TOUCH_BATCH]:
            if client_id in self._open:
                self._set_lifetime(client_id, self._open[client_id][0], self._hold, lambda replies: None)
        if ids[TOUCH_BATCH:]:
            self._touch_timer = self._loop.call_later(TOUCH_PAUSE, self._touch, ids[TOUCH_BATCH:])
        else:
            self._touch_timer = self._loop.call_later(self._lease / 2, self._touch) if self._open else None

    def _set_lifetime(self, client_id, value, seconds, done):
        """Sets the time to live of a record's key; calls done(replies), with None if that failed."""
        key = key_of(client_id)

        def answered(replies):
            if replies == [(resp.INTEGER, 0)]:  # a failover has lost the key during the session
                self._client.ask((set_new(key, value, seconds),), done)
            else:
                done(replies)

        self._client.ask((expire(key, seconds),), answered)

    # ---- records that were released here

    def _keep(self, client_id, token, release):
        """Schedules a check of a released record for the end of its retention."""
        if client_id in self._open or self._client.state is CLOSED:
            return
        self._kept.pop(client_id, None)
        due = self._loop.now + self._retention + self._margin
        self._kept[client_id] = _KEPT.pack(due, token, release)
        if len(self._kept) > self._clients_most:  # created elsewhere, so `create` did not limit them
            del self._kept[next(iter(self._kept))]
        if self._check_timer is None:
            self._check_timer = self._loop.call_at(due, self._check)

    def _doubt(self, client_id):
        """Notes that a request to open a record failed: if Redis has carried it out, the key lives longer."""
        packed = self._kept.get(client_id)
        if packed is not None:
            due, token, _ = _KEPT.unpack(packed)
            self._kept[client_id] = _KEPT.pack(due, token, UNCONFIRMED)

    def _check(self):
        """Reads the keys of records that are due: one that is missing or was created anew is forgotten."""
        # Replaced once all replies have come. If there is no memory to handle one, this goes on.
        self._check_at(self._loop.now + CHECK_PAUSE)
        self._check_failed = False
        due = []
        for client_id, packed in self._kept.items():
            if _KEPT.unpack(packed)[0] > self._loop.now or len(due) == TOUCH_BATCH:
                break
            due.append((client_id, packed))
        self._checking = len(due)
        for client_id, packed in due:
            self._client.ask((get(key_of(client_id)),), functools.partial(self._checked, client_id, packed))
        if not due:
            self._checked_all()

    def _checked(self, client_id, packed, replies):
        due, token, release = _KEPT.unpack(packed)
        if replies is None:
            self._check_failed = True
        elif self._kept.get(client_id) is packed:  # nobody has opened it here since
            value = replies[0][1] if replies[0][0] == resp.BULK else None
            if value is None or not value.endswith(b"," + binascii.hexlify(token)):
                released = due - self._retention - self._margin
                is_late = release != CONFIRMED or released <= self._client.up_since
                self._claim(client_id, token, is_late, functools.partial(self._claimed, client_id, packed))
                return
            del self._kept[client_id]
            if release == UNCONFIRMED:
                self._keep(client_id, token, OVERDUE)
            # Otherwise another server has opened it since, and checks it when the time comes.
        self._check_done()

    def _claimed(self, client_id, packed, has_answer):
        if not has_answer:
            self._check_failed = True
        elif self._kept.get(client_id) is packed:
            del self._kept[client_id]
        self._check_done()

    def _claim(self, client_id, token, is_late, done):
        """Announces a purge, unless another server has done so; calls done(whether Redis has answered).

        Several servers find a record gone if they released it at about the same time, or if Redis was away
        (is_late) or has lost it.
        """
        key = claim_key_of(token)

        def answered(replies):
            # OK, or our own claim. An error, as where Redis has no memory for claims, announces it, too:
            # rather twice than never.
            if replies is not None and (replies[0] != resp.NULL or replies[1:] == [(resp.BULK, self._name)]):
                self._loop.guard(None, lambda: self._forgotten(client_id))
            done(replies is not None)

        claim = set_new(key, self._name, self._retention + LATE_CLAIM_SECONDS if is_late else CLAIM_SECONDS)
        # The claim that is there may be our own, from an attempt whose reply was lost.
        self._client.ask((claim, get(key)) if is_late else (claim,), answered, (claim, get(key)))

    def _check_done(self):
        self._checking -= 1
        if self._checking <= 0:
            self._checked_all()

    def _checked_all(self):
        """Sets the timer for the next record that is due."""
        if self._kept and self._client.state is not CLOSED:
            first = _KEPT.unpack(next(iter(self._kept.values())))[0]
            pause = CHECK_PAUSE if self._check_failed else TOUCH_PAUSE
            self._check_at(max(first, self._loop.now + pause))
        else:
            self._loop.cancel(self._check_timer)
            self._check_timer = None

    def _check_at(self, when):
        """Sets the timer of the next check, and cancels the previous one."""
        timer, self._check_timer = self._check_timer, self._loop.call_at(when, self._check)
        self._loop.cancel(timer)


def from_url(url, *arguments):
    """The RedisStore for a URL (text) and its other arguments. Raises ValueError or OSError."""
    return RedisStore(parse_url(url), *arguments)
