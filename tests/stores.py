"""Stores that follow a script: they answer when they are told to, late, or with a refusal."""

from numseq.store import Record

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

    def __len__(self):
        return len(self._store)

    def _later(self, done):
        return lambda *answer: self._loop.call_later(self._delay, lambda: done(*answer))

    def create(self, client_id, record, done):
        self._store.create(client_id, record, self._later(done))

    def open(self, client_id, done):
        self._store.open(client_id, self._later(done))

    def release(self, client_id, done):
        self._store.release(client_id, self._later(done))

    def close(self):
        self._store.close()
