"""The server's checksums: computed in steps between other clients' requests, and cached."""

from .budget import Budget
from .sequence import CHECKSUM_STEP, WHOLE_MOST, checksum_steps

KEPT_MOST = 4096  # checksums in the cache, 300 bytes each
TINY = 128  # up to this many numbers the checksum (5 us) is computed at once, even without budget
KEPT_ABOVE = WHOLE_MOST  # above this many numbers the checksum is cached; shorter ones take 30 us at most


class Checksums:
    """Computes the checksums that sessions ask for, first come, first served.

    Short checksums (one step) are computed at once while the turn's budget lasts, otherwise at the end of the
    turn or in later turns. Of the long ones, one step per turn is done for all sessions together.

    A session has `record`, `stream`, slice(first, last) for its numbers, and finished(checksum), which is
    called with bytes.
    """

    def __init__(self, loop, budget=None):
        self._loop = loop
        self._budget = budget or Budget(loop)
        # From session to the steps of its checksum, in the order of the requests.
        self._short = {}  # checksums of one step
        self._waiting = {}  # longer ones
        self._timer = None  # for the next step
        self._kept = {}  # the cache, from record to checksum (bytes), oldest first

    def ask(self, session):
        """Calls session.finished(checksum) once: now if the checksum is cached or short, otherwise later."""
        record = session.record
        checksum = self._kept.get(record)
        if checksum is not None:
            session.finished(checksum)
            return
        steps = checksum_steps(session.slice, record.n)
        if record.n <= TINY:
            session.finished(next(steps))
            return
        if record.n > CHECKSUM_STEP:
            self._waiting[session] = steps
        else:
            self._short[session] = steps
            if self._budget.is_left():
                self._advance(session, self._short)
                return
        if self._timer is None:
            self._timer = self._loop.call_later(0, self._step)

    def drop(self, session):
        """Forgets a session, whether it is waiting or not."""
        self._waiting.pop(session, None)
        self._short.pop(session, None)

    def _step(self):
        # In the next turn, after its requests.
        self._timer = self._loop.call_later(0, self._step) if self._short or self._waiting else None
        while self._short:
            self._guarded(self._short)
            if not self._budget.is_left():
                break
        if self._waiting:
            self._guarded(self._waiting)

    def _guarded(self, waiting):
        session = next(iter(waiting))
        self._loop.guard(session.stream, lambda: self._advance(session, waiting))

    def _advance(self, session, waiting):
        began = self._loop.clock()
        try:
            checksum = next(waiting[session])
        except Exception:
            del waiting[session]
            raise
        self._budget.spend(began)
        if checksum is not None:
            del waiting[session]
            if session.record.n > KEPT_ABOVE:
                if len(self._kept) == KEPT_MOST:
                    del self._kept[next(iter(self._kept))]
                self._kept[session.record] = checksum
            session.finished(checksum)
