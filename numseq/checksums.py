"""A server's checksums: made in steps between the requests of others, and kept for those who ask again."""

from .budget import Budget
from .sequence import BLOCK, CHECKSUM_STEP, checksum_steps

KEPT_MOST = 4096  # checksums kept, 300 bytes each
TINY = 128  # numbers of a sequence whose checksum is made at once however busy the turn: 5 us
KEPT_ABOVE = BLOCK  # numbers of a sequence whose checksum is kept; that of a shorter one takes 30 us


class Checksums:
    """Makes the checksums that sessions ask for, first come first served.

    Those of one step are made at once while the turn's budget lasts, and else at its end or in the next
    turns. Of the longer ones, one step per turn is made for all of them together.

    A session has a `record`, a `stream`, slice(first, last) for its numbers, and gets finished(checksum), in
    bytes.
    """

    def __init__(self, loop, budget=None):
        self._loop = loop
        self._budget = budget or Budget(loop)
        # From session to the steps of its checksum, in the order of their asking: those of one step, and
        # longer ones.
        self._short = {}
        self._waiting = {}
        self._timer = None  # for the next step
        self._kept = {}  # from record to checksum (bytes), the oldest first

    def ask(self, session):
        """Calls session.finished(checksum) once: now if the checksum is known or takes one step, or later."""
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
        """Forgets a session, which may not wait."""
        self._waiting.pop(session, None)
        self._short.pop(session, None)

    def _step(self):
        self._timer = None
        if self._short or self._waiting:
            self._timer = self._loop.call_later(0, self._step)  # next turn, after its requests
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
