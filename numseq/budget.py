"""How much time of a turn may go into drawing numbers and making checksums, for all connections together."""

WORK_SECONDS = 0.005  # per turn: what a client of another sequence waits at most, several times in a session


class Budget:
    """Counts the time that is spent in a turn of the loop. What finds none left waits for the next turn."""

    def __init__(self, loop):
        self._loop = loop
        self._turn = None
        self._spent = 0.0

    def is_left(self):
        """Whether costly work may still begin in this turn."""
        if self._turn != self._loop.turns:
            self._turn = self._loop.turns
            self._spent = 0.0
        return self._spent < WORK_SECONDS

    def spend(self, began):
        """Counts the time since `began`, a reading of the loop's clock."""
        self._spent += self._loop.clock() - began
