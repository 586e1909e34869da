"""A time budget per turn for drawing numbers and computing checksums, shared by all connections."""

WORK_SECONDS = 0.005  # per turn: how long such work may delay the other clients


class Budget:
    """Counts the time spent on costly work in this turn of the loop."""

    def __init__(self, loop):
        self._loop = loop
        self._turn = None
        self._spent = 0.0

    def is_left(self):
        """Whether costly work may start in this turn; if not, it has to wait for the next."""
        if self._turn != self._loop.turns:
            self._turn = self._loop.turns
            self._spent = 0.0
        return self._spent < WORK_SECONDS

    def spend(self, began):
        """Counts the time since `began`, a reading of loop.clock()."""
        self._spent += self._loop.clock() - began
