"""Stores for tests: those of each kind as a server has them, and some that answer late, when told to, or with
a refusal."""

import time

from helpers import pass_time, turn_until
from numseq.store import Record, from_url

LATE = 0.01  # seconds in which a late store answers

RECORD = Record(b"5", 10, 2)
OTHER = Record("6", 20, 3)


def id_of(number):
    """A client id (bytes), another for each number."""
    return b"123e4567-e89b-12d3-a456-%012x" % number


def answer(method, *arguments):
    """What a store's method answers, which has to come at once and only once."""
    answers = []
    method(*arguments, lambda *each: answers.append(each))
    assert len(answers) == 1
    return answers[0]


def keep(store, client_id, record=RECORD):
    """Creates a record that nobody has open, in a store that answers at once."""
    assert answer(store.create, client_id, record) == (record, None)
    assert answer(store.release, client_id) == ()


class SlowStore:
    """A store that answers when `answer()` is called; `answers` are those that are due."""

    def __init__(self, store):
        self.store = store
        self.answers = []
        self.released = []
        self.slow_release = False

    def _later(self, done):
        return lambda *answer: self.answers.append(lambda: done(*answer))

    def create(self, client_id, record, done):
        self.store.create(client_id, record, self._later(done))

    def open(self, client_id, done):
        self.store.open(client_id, self._later(done))

    def release(self, client_id, done):
        self.released.append(client_id)
        self.store.release(client_id, self._later(done) if self.slow_release else done)

    def answer(self):
        answers, self.answers = self.answers, []
        for each in answers:
            each()

    def close(self):
        self.store.close()


class RefusingStore:
    """A store that refuses everything."""

    def __init__(self, refusal):
        self.refusal = refusal

    def create(self, client_id, record, done):
        done(None, self.refusal)

    def open(self, client_id, done):
        done(None, self.refusal)

    def release(self, client_id, done):
        raise AssertionError("nothing was opened")

    def close(self):
        pass


class LateStore:
    """A store that answers `delay` seconds later, on the loop's clock."""

    def __init__(self, loop, store, delay):
        self._loop = loop
        self._store = store
        self._delay = delay
        self._due = {}  # from an answer to the timer that gives it

    def __len__(self):
        return len(self._store)

    def _later(self, done):
        def answered(*answer):
            def give():
                del self._due[give]
                done(*answer)

            self._due[give] = self._loop.call_later(self._delay, give)

        return answered

    def create(self, client_id, record, done):
        self._store.create(client_id, record, self._later(done))

    def open(self, client_id, done):
        self._store.open(client_id, self._later(done))

    def release(self, client_id, done):
        self._store.release(client_id, self._later(done))

    def close(self):
        for give, timer in list(self._due.items()):
            self._loop.cancel(timer)
            give()
        self._store.close()


# ---- stores of one kind


class Stores:
    """Makes stores of one kind, asks them, and lets time pass for them."""

    slack = 0.06  # seconds by which something may seem to be late
    early = 0.001  # and early

    def __init__(self, loop, clock, url):
        self.loop = loop
        self.clock = clock
        self.url = url
        self.forgotten = []  # (client id, when), of all stores
        self.lines = []  # complaints
        self._made = []

    def make(self, **options):
        """Another store, as another server has it."""
        store = from_url(self.url, self.loop, self._forget, complain=self.lines.append, **options)
        self._made.append(store)
        return store

    def _forget(self, client_id):
        self.forgotten.append((client_id, self.loop.now))

    def answer(self, method, *arguments):
        """What a method of a store answers, now or later, and only once."""
        answers = []
        method(*arguments, lambda *answer: answers.append(answer))
        if not answers:
            self.wait_for(answers)
        assert len(answers) == 1
        return answers[0]

    def wait_for(self, answers):
        turn_until(self.loop, lambda: answers)

    def keep(self, store, client_id, record=RECORD):
        """Creates a record that nobody has open."""
        assert self.answer(store.create, client_id, record) == (record, None)
        assert self.answer(store.release, client_id) == ()

    def pass_time(self, seconds):
        pass_time(self.loop, self.clock, seconds)

    def close(self):
        for store in self._made:
            store.close()


class LateStores(Stores):
    """Those that answer a little later."""

    slack = 10 * LATE
    early = 2 * LATE

    def make(self, **options):
        return LateStore(self.loop, super().make(**options), LATE)

    def wait_for(self, answers):
        while not answers:
            self.loop.turn()


class RealStores(Stores):
    """On a real Redis: on its socket where it has a database of its own."""

    slack = 1.1
    turns = 5  # each of which waits for the socket: whatever a store asks is answered within them

    def __init__(self, loop, clock, redis, db=0):
        super().__init__(loop, clock, "redis+socket://%s?db=%d" % (redis.path, db) if db else redis.url)
        self._redis = redis
        self._ahead = -time.monotonic()  # with the real time: how far Redis is ahead of the test's clock
        redis.command("FLUSHALL")
        redis.command("SELECT", db)

    def pass_time(self, seconds):
        end = self.clock() + seconds
        while self.clock() < end - 0.0005:
            step = min(1.0, end - self.clock())
            self.clock.advance(step)
            self._ahead -= step
            if self._ahead + time.monotonic() < 0:  # what has passed in reality need not be added
                missing = -self._ahead - time.monotonic()
                self._redis.advance(missing)
                self._ahead += missing
            last = self.loop.turns + self.turns
            turn_until(self.loop, lambda: self.loop.turns >= last)
