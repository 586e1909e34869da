"""A server's checksums: made in steps between the requests of others, and kept for those who ask again."""

from .sequence import BLOCK, CHECKSUM_STEP, checksum_steps

KEPT_MOST = 4096  # checksums kept, 300 bytes each
KEPT_ABOVE = BLOCK  # numbers of a sequence whose checksum is kept; that of a shorter one takes 30 us


class Checksums:
    """Makes the checksums that sessions ask for: one step per turn for all together, first come first served.

    A session has a `record`, a `stream`, slice(first, last) for its numbers, and gets finished(checksum), in
    bytes.
    """

    def __init__(self, loop):
        self._loop = loop
        self._waiting = {}  # from session to the steps of its checksum, in the order of their asking
        self._timer = None  # for the next step
        self._kept = {}  # from record to checksum (bytes), the oldest first

    def ask(self, session):
        """Calls session.finished(checksum) once: now if the checksum is known or takes one step, or later."""
        record = session.record
        checksum = self._kept.get(record)
        if checksum is not None:
            session.finished(checksum)
            return
        self._waiting[session] = checksum_steps(session.slice, record.n)
        if record.n <= CHECKSUM_STEP:
            self._advance(session)
        elif self._timer is None:
            self._timer = self._loop.call_later(0, self._step)

    def drop(self, session):
        """Forgets a session, which may not wait."""
        self._waiting.pop(session, None)

    def _step(self):
        self._timer = None
        session = next(iter(self._waiting), None)
        if session is not None:
            self._timer = self._loop.call_later(0, self._step)  # next turn, after its requests
            self._loop.guard(session.stream, lambda: self._advance(session))

    def _advance(self, session):
        checksum = next(self._waiting[session])
        if checksum is not None:
            del self._waiting[session]
            if session.record.n > KEPT_ABOVE:
                if len(self._kept) == KEPT_MOST:
                    del self._kept[next(iter(self._kept))]
                self._kept[session.record] = checksum
            session.finished(checksum)
