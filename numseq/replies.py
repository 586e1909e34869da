"""The NUMs for the full batches of a sequence, encoded at each request or kept. Without I/O."""

from . import digits
from .protocol import NUMBER_BYTES, encode_batch

# NUMs are kept for sequences with enough batches for it to pay, and few enough for the memory that it takes.
KEPT_LEAST, KEPT_MOST = 16, 1024  # batches
KEPT_NUMBERS_MOST = 8192
GROUP = 512  # numbers whose NUMs are encoded together, in 10 us
OBJECT_BYTES = 56  # of a kept NUM besides its text: the bytes object and a pointer to it

_NUMBER, _LAST_NUMBER = digits.place(b":"), digits.place(b";")  # padding for the numbers of a batch


def encode_batches(numbers, batch):
    """The NUMs (bytes) of full batches. numbers (bytes) are those of all batches, at least one."""
    row = _NUMBER * (batch - 1) + _LAST_NUMBER
    text = digits.unpad(digits.pad(numbers, row, len(_NUMBER)))
    return b"NUM,%b;" % text[:-1].replace(b";", b";NUM,")


class Replies:
    """The NUMs of a sequence, encoded at each request.

    numbers (sequence.Numbers) and batch (numbers per batch) may be read. `many` takes places in multiples of
    `scale`.
    """

    __slots__ = ("numbers", "batch", "scale")

    def __init__(self, numbers, batch):
        self.numbers = numbers
        self.batch = batch
        self.scale = batch

    def one(self, index):
        """The NUM (bytes) for the batch at index (int). Returns None or raises IndexError if it has none."""
        place = index * self.batch
        asked = self.numbers.slice(place, place + self.batch)
        return encode_batch(asked) if len(asked) == self.batch else None

    def many(self, places):
        """The NUMs (bytes) for several batches; None if one of them is short, or past the end.

        places (tuple or range of int) has each index times `scale`.
        """
        asked = b"".join(self.numbers.slices(places, self.batch))
        return encode_batches(asked, self.batch) if len(asked) == len(places) * self.batch else None


class KeptReplies(Replies):
    """The same, but a NUM is encoded only once, together with its neighbours, and kept.

    A batch of 5 takes 85 ns that way, and 300 ns alone. `one` also returns None for a NUM that is not encoded
    yet; `many` encodes it.
    """

    __slots__ = ("one", "_kept", "_group")

    def __init__(self, numbers, batch, count):
        self.numbers = numbers
        self.batch = batch
        self.scale = 1
        self._kept = [None] * count
        self._group = max(1, GROUP // batch)  # batches encoded together
        self.one = self._kept.__getitem__

    def many(self, places):
        """The NUMs (bytes) for several batches; None if one of them is short, or past the end."""
        kept = self._kept
        try:
            return b"".join([kept[index] for index in places])
        except IndexError:
            return None
        except TypeError:  # one is not encoded yet
            for index in places:
                if kept[index] is None:
                    self._encode(index)
            return b"".join([kept[index] for index in places])

    def _encode(self, index):
        """Encodes the group of batches that the one at index is in."""
        first = index - index % self._group
        last = min(first + self._group, len(self._kept))
        text = encode_batches(self.numbers.slice(first * self.batch, last * self.batch), self.batch)
        self._kept[first:last] = text.replace(b";", b";\n").splitlines()


def kept_bytes(n, batch):
    """Bytes of memory for all NUMs of n numbers in batches, or 0 if they are not to be kept."""
    count = n // batch
    if not KEPT_LEAST <= count <= KEPT_MOST or n > KEPT_NUMBERS_MOST:
        return 0
    return count * OBJECT_BYTES + n * NUMBER_BYTES
