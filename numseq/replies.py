"""The NUMs for the full batches of a sequence, encoded at each request or kept. Without I/O."""

from . import digits
from .protocol import NUMBER_BYTES, encode_batch

# NUMs are kept only for sequences of so many batches: with fewer it does not pay, with more it takes too much
# memory.
KEPT_LEAST, KEPT_MOST = 16, 1024
KEPT_BATCH_MOST = 32  # numbers; for larger batches, keeping costs short runs more than it saves
KEPT_NUMBERS_MOST = 8192  # of a sequence: all of their NUMs are encoded in 0.15 ms
GROUP = 512  # numbers whose NUMs are encoded together: 10 us
LONG_RUN = 128  # numbers of a run above which it takes less time to encode just the run than its groups
OBJECT_BYTES = 56  # of a kept NUM besides its text: the bytes object, with padding, and a pointer to it

_NUMBER, _LAST_NUMBER = digits.place(b":"), digits.place(b";")  # padding for the numbers of a batch


def encode_batches(numbers, batch):
    """The NUMs (bytes) of full batches. numbers (bytes) are those of all batches, at least one."""
    row = _NUMBER * (batch - 1) + _LAST_NUMBER
    text = digits.unpad(digits.pad(numbers, row, len(_NUMBER)))
    return b"NUM,%b;" % text[:-1].replace(b";", b";NUM,")


class Replies:
    """The NUMs of a sequence, encoded at each request.

    numbers (sequence.Numbers) and batch (numbers per batch) may be read. `many` takes places in multiples of
    `scale`, which `many` itself may change for the next call.
    """

    __slots__ = ("numbers", "batch", "scale")

    def __init__(self, numbers, batch):
        self.numbers = numbers
        self.batch = batch
        self.scale = batch

    def one(self, index):
        """The NUM (bytes) for the batch at index (int); None if there is no such full batch."""
        place = index * self.batch
        asked = self.numbers.slice(place, place + self.batch)
        return encode_batch(asked) if len(asked) == self.batch else None

    def many(self, places):
        """The NUMs (bytes) for several batches; None if one of them is short, or past the end.

        places (int) has each index times `scale`.
        """
        asked = b"".join(self.numbers.slices(places, self.batch))
        return encode_batches(asked, self.batch) if len(asked) == len(places) * self.batch else None


class KeptReplies(Replies):
    """The same, but a NUM is encoded only once, together with its neighbours, and kept.

    A batch of 5 is encoded in 85 ns that way, alone in 300 ns, and looked up in 40. Most clients request each
    batch once, and then keeping the NUMs of long runs would take 17 % more time. So long runs are encoded as
    in Replies, until they have requested as many batches as there are: then some are requested again.
    """

    __slots__ = ("_kept", "_group", "_new")

    def __init__(self, numbers, batch, count):
        super().__init__(numbers, batch)
        self._kept = [None] * count  # the NUM for each full batch, once it is encoded
        self._group = max(1, GROUP // batch)  # batches encoded together, at least
        self._new = count  # how many batches long runs may still request for the first time

    def one(self, index):
        """The NUM (bytes) for the batch at index (int); None if there is no such full batch."""
        if index >= len(self._kept):
            return None
        if self._kept[index] is None:
            self._encode(index, index)
        return self._kept[index]

    def many(self, places):
        """The NUMs (bytes) for the batches at several places; None if one is short, or past the end."""
        if self._new > 0:
            if len(places) * self.batch > LONG_RUN:
                self._new -= len(places)
                if self._new <= 0:
                    self.scale = 1
                return super().many(places)
            batch = self.batch
            places = [place // batch for place in places]
        kept = self._kept
        try:
            return b"".join([kept[index] for index in places])
        except IndexError:
            return None
        except TypeError:  # some are not encoded yet
            missing = [index for index in places if kept[index] is None]
            self._encode(min(missing), max(missing))
            return b"".join([kept[index] for index in places])

    def _encode(self, first, last):
        """Encodes the batches from first to last (indices), and the others of their groups."""
        first -= first % self._group
        last = min(last - last % self._group + self._group, len(self._kept))
        text = encode_batches(self.numbers.slice(first * self.batch, last * self.batch), self.batch)
        self._kept[first:last] = text.replace(b";", b";\n").splitlines()


def kept_bytes(n, batch):
    """Bytes of memory for all NUMs of n numbers in batches, or 0 if they are not to be kept."""
    count = n // batch
    if not KEPT_LEAST <= count <= KEPT_MOST or batch > KEPT_BATCH_MOST or n > KEPT_NUMBERS_MOST:
        return 0
    return count * OBJECT_BYTES + n * NUMBER_BYTES
