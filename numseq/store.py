"""What a store of sequences promises, and how it is asked.

A store keeps a Record for each client id (bytes) between connections. It has four methods, and answers
through the callback `done`:

    create(client_id, record, done)  creates the record unless there is one, and opens it:
                                     done(record, None), or done(None, EXISTS | FULL | FAILED)
    open(client_id, done)            opens the record: done(record, None), or done(None, MISSING | FAILED)
    release(client_id, done)         undoes one create or one open: done()
    close()                          gives back what the store holds of the loop and of the system

What every store promises:

- `done` is called exactly once: at once or later, also after the client has gone; with FAILED at the latest
  after ANSWER_SECONDS, or at `close()`.
- FAILED and FULL pass: a client tries again. EXISTS and MISSING do not.
- A record that nobody has open is kept for the retention, and then forgotten and announced: the store calls
  forgotten(client_id). None is forgotten while a connection has it open.

`Requests` holds a store to the first of these, and counts what is in flight. tests/test_store.py has the
suite that every store passes.
"""

import collections

RETENTION = 30.0  # seconds a record is kept after its last connection ended
CLIENTS_MOST = 100 * 1000  # records kept at once: about 20 MB in memory
# in which a store answers: half of a session, so that the client still hears of the failure
ANSWER_SECONDS = 0.5

EXISTS = "exists"
MISSING = "missing"
FULL = "full"
FAILED = "failed"

# All that a sequence can be made from again: the seed (bytes or text), how many numbers, the batch size.
Record = collections.namedtuple("Record", ["seed", "n", "batch"])

# What --store takes, by its scheme.
SCHEMES = {
    "memory": "memory:",
    "file": "file:PATH",
    "redis": "redis://HOST:PORT/DB",
    "redis+socket": "redis+socket:///PATH",
}
SHARED = frozenset(["redis", "redis+socket"])  # schemes of stores that several servers can have

# The states of a request; the second is also what one that was not refused came to.
WAITING = "waiting"
ANSWERED = "answered"
TIMED_OUT = "timed out"


class Requests:
    """Asks a store. Each request is answered exactly once, with FAILED after ANSWER_SECONDS.

    in_flight  how many requests the store has not answered yet (int)
    answered   is called without arguments after each answer, late ones included
    observed   is called with what each create and open came to, ANSWERED or a refusal, and how long it took
    (seconds)
    """

    def __init__(self, loop, store, answered, observed=lambda outcome, seconds: None):
        self.in_flight = 0
        self._loop = loop
        self._store = store
        self._answered = answered
        self._observed = observed

    def create(self, client_id, record, done):
        """Asks for a record to be created and opened: see the store's `create`."""
        request = _Request(self, client_id, done)
        request.ask(lambda: self._store.create(client_id, record, request.answer))

    def open(self, client_id, done):
        """Asks for a record to be opened: see the store's `open`."""
        request = _Request(self, client_id, done)
        request.ask(lambda: self._store.open(client_id, request.answer))

    def release(self, client_id):
        """Has one create or open undone. Nobody waits for the answer, but it is in flight until then."""
        self.in_flight += 1
        try:
            self._store.release(client_id, self._released)
        except Exception:  # no memory: nothing is in flight
            self.in_flight -= 1
            raise

    def _released(self):
        self.in_flight -= 1
        self._answered()


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
        requests.in_flight += 1

    def ask(self, ask):
        """Asks the store, and limits how long it may take, where it has not answered at once."""
        try:
            ask()
        except Exception:  # no memory: nothing is in flight
            if self._state is WAITING:
                self._state = ANSWERED
                self._requests.in_flight -= 1
            raise
        if self._state is WAITING:
            self._timer = self._requests._loop.call_later(ANSWER_SECONDS, self._time_is_up)

    def answer(self, record, refusal):
        """What the store calls as `done`."""
        requests, state = self._requests, self._state
        self._state = ANSWERED
        if state is WAITING:
            requests._loop.cancel(self._timer)
            self._finish(record, refusal)
        elif state is TIMED_OUT and record is not None:
            requests.release(self._client_id)  # the client was told FAILED, so nobody has it open
        requests._answered()

    def _time_is_up(self):
        self._state = TIMED_OUT
        self._finish(None, FAILED)
        self._requests._answered()

    def _finish(self, record, refusal):
        requests = self._requests
        requests.in_flight -= 1
        requests._observed(refusal or ANSWERED, requests._loop.clock() - self._began)
        done, self._done = self._done, None
        done(record, refusal)


def scheme_of(url):
    """The scheme of a store's URL, one of SCHEMES. Raises ValueError."""
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in SCHEMES:
        raise ValueError("a store is one of " + ", ".join(SCHEMES.values()))
    return scheme


def from_url(url, loop, forgotten, retention=RETENTION, clients_most=CLIENTS_MOST, session_timeout=1.0,
             drawing=1, complain=lambda text: None):
    """The store that a URL (text) names. Nothing of the other stores is imported.

        memory:                                                   in this process
        file:PATH                                                 survives it
        redis://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/DB] shared by servers
        redis+socket://[USER:PASSWORD@]/PATH[?db=DB]              the same

    forgotten(client_id) is called for each record that is forgotten. session_timeout is how long a
    connection lives (seconds), drawing the version of the way in which this server draws numbers.
    complain(text) takes a line for a person.

    Raises ValueError where the URL is wrong, and OSError where the store cannot be used. Both say why,
    without the password.
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

    return store_redis.RedisStore(store_redis.parse_url(url), loop, forgotten, retention, clients_most,
                                  session_timeout, drawing, complain)
