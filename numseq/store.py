"""The contract of a store of sequences, and the requests to it.

A store keeps a Record for each client id (bytes) between connections. It has four methods, three of which
answer through the callback `done`:

    create(client_id, record, done)  creates the record unless it exists, and opens it:
                                     done(record, None), or done(None, EXISTS | FULL | FAILED)
    open(client_id, done)            opens the record: done(record, None), or done(None, MISSING | FAILED)
    release(client_id, done)         undoes one create or one open: done(); nothing, if it raises MemoryError
    close()                          releases the store's timers, files and connections

Every store promises:

- `done` is called exactly once, immediately or later, even if the client has gone meanwhile. It is called
  with FAILED after ANSWER_SECONDS at the latest, or at `close()`.
- FAILED and FULL are temporary, so a client tries again. EXISTS and MISSING are final.
- A record that no connection has open is kept for the retention, then forgotten and announced: the store
  calls forgotten(client_id). A record is never forgotten while a connection has it open.

A store may also have len(), the number of its records, and is_away(): whether it cannot be used now.

`Requests` enforces the first promise and counts the requests in flight. tests/test_store.py has the suite
that every store passes.
"""

import collections

RETENTION = 30.0  # seconds a record is kept after its last connection ended
CLIENTS_MOST = 100 * 1000  # records kept at once: about 20 MB in memory
ANSWER_SECONDS = 0.5  # limit of a store's reply: half a session, so that the client still hears of a failure
RELEASE_AGAIN_SECONDS = 1.0  # seconds until a release that ran out of memory is repeated

EXISTS = "exists"
MISSING = "missing"
FULL = "full"
FAILED = "failed"

# What a sequence is made from: the seed (bytes or text), the count of numbers, the batch size.
Record = collections.namedtuple("Record", ["seed", "n", "batch"])

# The forms of --store, by scheme.
SCHEMES = {
    "memory": "memory:",
    "file": "file:PATH",
    "redis": "redis://HOST:PORT/DB",
    "redis+socket": "redis+socket:///PATH",
}
SHARED = frozenset(["redis", "redis+socket"])  # schemes of stores that servers can share

# The states of a request.
WAITING = "waiting"
ANSWERED = "answered"  # also the outcome of a request that was not refused
GIVEN_UP = "given up"  # timed out, or the call failed; a record that comes nevertheless is released


class Requests:
    """Sends requests to a store. Each gets exactly one reply, after ANSWER_SECONDS at the latest.

    in_flight                   the number of requests in flight (int)
    answered()                  called after each reply of the store, late ones included
    observed(outcome, seconds)  called for each create and open; outcome is ANSWERED or a refusal
    """

    def __init__(self, loop, store, answered, observed=lambda outcome, seconds: None):
        self.in_flight = 0
        self._loop = loop
        self._store = store
        self._answered = answered
        self._observed = observed

    def create(self, client_id, record, done):
        """Creates and opens a record: see the store's `create`."""
        request = _Request(self, client_id, done)
        request.send(lambda: self._store.create(client_id, record, request.answer))

    def open(self, client_id, done):
        """Opens a record: see the store's `open`."""
        request = _Request(self, client_id, done)
        request.send(lambda: self._store.open(client_id, request.answer))

    def release(self, client_id):
        """Undoes one create or open. Nobody waits for the reply, but until then it counts as in flight."""
        self.in_flight += 1
        self._release(client_id)

    def _release(self, client_id):
        try:
            self._store.release(client_id, self._released)
        except MemoryError:  # try again later: a record that is never released is never forgotten
            self._loop.call_later(RELEASE_AGAIN_SECONDS, self._release, client_id)

    def _released(self):
        self.in_flight -= 1
        self._loop.guard(None, self._answered)  # the record is released, whatever happens there


class _Request:
    """A create or an open in flight."""

    __slots__ = ("_requests", "_client_id", "_done", "_state", "_timer", "_began")

    def __init__(self, requests, client_id, done):
        self._requests = requests
        self._client_id = client_id
        self._done = done
        self._state = WAITING
        self._timer = None
        self._began = requests._loop.clock()

    def send(self, call):
        """Calls the store with call(); if it does not reply immediately, starts the timer."""
        self._requests.in_flight += 1
        try:
            call()
        except Exception:  # out of memory: the request was not made, or only in part
            if self._state is WAITING:
                self._state = GIVEN_UP
                self._requests.in_flight -= 1
            raise
        if self._state is WAITING:
            self._timer = self._requests._loop.call_later(ANSWER_SECONDS, self._time_is_up)

    def answer(self, record, refusal):
        """The `done` that the store calls."""
        requests, state = self._requests, self._state
        self._state = ANSWERED
        if state is WAITING:
            requests._loop.cancel(self._timer)
            self._finish(record, refusal)
        elif state is GIVEN_UP and record is not None:
            requests.release(self._client_id)  # the session was told FAILED and has not opened the record
        requests._answered()

    def _time_is_up(self):
        self._state = GIVEN_UP
        self._finish(None, FAILED)
        self._requests._answered()

    def _finish(self, record, refusal):
        requests = self._requests
        requests.in_flight -= 1
        done, self._done = self._done, None
        done(record, refusal)  # first: if memory runs out below, the record is in good hands
        requests._observed(refusal or ANSWERED, requests._loop.clock() - self._began)


def scheme_of(url):
    """The scheme of a store's URL, one of SCHEMES. Raises ValueError."""
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in SCHEMES:
        raise ValueError("a store is one of " + ", ".join(SCHEMES.values()))
    return scheme


def from_url(url, loop, forgotten, retention=RETENTION, clients_most=CLIENTS_MOST, session_timeout=1.0,
             drawing=1, complain=lambda text: None):
    """The store for a URL (text). The modules of the other stores are not imported.

        memory:                                                   in the memory of this process
        file:PATH                                                 in a file, which outlives the process
        redis://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/DB] in Redis or Valkey, shared by servers
        redis+socket://[USER:PASSWORD@]/PATH[?db=DB]              the same, over a Unix socket

    forgotten(client_id) is called for each forgotten record. retention and session_timeout are in seconds.
    drawing is the version of this server's way to draw numbers. complain(text) takes a line for an operator.

    Raises ValueError if the URL is wrong, and OSError if the store cannot be used. Both say why, without the
    password.
    """
    scheme = scheme_of(url)
    rest = url[len(scheme) + 1:]
    if scheme == "memory":
        if rest:
            raise ValueError("memory: has nothing behind it")
        from .store_memory import MemoryStore

        return MemoryStore(loop, forgotten, retention, clients_most)
    if scheme == "file":
        if not rest or "\0" in rest:
            raise ValueError("file: has a path behind it")
        from .store_file import FileStore

        return FileStore(rest, loop, forgotten, retention, clients_most, drawing, complain)
    from . import store_redis

    return store_redis.from_url(url, loop, forgotten, retention, clients_most, session_timeout, drawing,
                                complain)
