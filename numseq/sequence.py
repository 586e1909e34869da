"""From a seed to the numbers of a sequence, and their checksum. Nothing else knows how numbers are drawn."""

import os

from . import digits

# The version of the way in which numbers are drawn. A store that outlives a server keeps it with each record,
# so that a server that draws in another way refuses the sequence instead of handing out other numbers.
DRAWING = 1

SEED_BYTES = 16  # of an unpredictable seed: as much as an id has, so that neither is easier to guess
DRAW_WORDS = 1024  # generator words drawn at once: 8 times as many are no faster, and cost more memory

BLOCK = 1024  # numbers drawn together, 8 us: twice as many save 3 % of a whole sequence and double that
RATE = 168  # bytes that SHAKE128 makes at a time
RATE_NUMBERS = 128  # numbers that RATE bytes nearly always contain; 132.6 on average
# Numbers per slice of many up to which all are read first: reading 16 cache lines in a row takes no longer
# than waiting for one at random. A tenth of the time where 16 clients of 65,535 numbers share a cache of 1
# MiB.
READ_AHEAD = 1024
CHECKSUM_STEP = 8192  # numbers of one step of a checksum: 0.3 ms, with drawing them

# randint(0, 100) takes the top 7 bits of a generator's word, and the next word where they are over 100. So
# the top byte of each word, without those of 202 and over, and halved, gives the same numbers.
_HALVES = bytes(i // 2 for i in range(256))
_OVER = bytes(range(202, 256))

_text = digits.writer(b"", b", ", b"")


def unpredictable_seed():
    """A seed (bytes) that nobody can guess. Raises OSError where the system has no random bytes now."""
    return os.urandom(SEED_BYTES)  # 1 us; a pool of them would be shared by threads


def draw(seed, first, last):
    """The numbers first to last - 1 of a seed's sequence (bytes, one a number), the same at every call.

    A text seed gives those of randint(0, 100) on random.Random(seed), which has to draw all before them.
    A bytes seed gives blocks that do not depend on each other; nobody can tell one number from others.
    """
    if isinstance(seed, str):
        return _words(seed, last)[first:]
    if first >= last:
        return b""
    begin = first - first % BLOCK
    places = range(begin, last, BLOCK)
    blocks = [draw_block(seed, place // BLOCK, min(BLOCK, last - place)) for place in places]
    return b"".join(blocks)[first - begin:]


def _words(seed, count):
    """The first numbers of random.Random(seed), drawn in bulk instead of one by one.

    A seventeenth of the time of randint on 3.11, a fiftieth on 3.6; the same on every version.
    """
    import random  # for TEST_MODE alone: a millisecond and 0.4 MB of the others' start

    draw_bits = random.Random(seed).getrandbits
    numbers = bytearray()
    while len(numbers) < count:
        words = min(DRAW_WORDS, (count - len(numbers)) * 4 // 3 + 16)  # 202 of 256 give a number
        numbers += draw_bits(32 * words).to_bytes(4 * words, "little")[3::4].translate(_HALVES, _OVER)
    return bytes(numbers[:count])


def draw_block(seed, number, count):
    """The first `count` numbers of a block: bytes of SHAKE128 (FIPS 202) of the seed and the block's number.

    Bytes of 202 and over are skipped, the others halved. The number is two bytes, big-endian.
    """
    stream = _shake_128(seed + number.to_bytes(2, "big"))
    rounds = -(-count // RATE_NUMBERS)
    while True:
        numbers = stream.digest(rounds * RATE).translate(_HALVES, _OVER)
        if len(numbers) >= count:
            return numbers[:count]
        rounds += 1


class Numbers:
    """The numbers of one sequence, drawn in blocks as they are asked for, and kept."""

    __slots__ = ("_seed", "_n", "_blocks", "_whole")

    def __init__(self, seed, n):
        self._seed = seed
        self._n = n
        self._blocks = {}  # from number to block (bytes), of those that are drawn; None once all are
        self._whole = None  # all numbers (bytes), once all blocks are drawn
        if n <= BLOCK or isinstance(seed, str):
            self._whole, self._blocks = draw(seed, 0, n), None

    def slice(self, first, last):
        """The numbers first to last - 1 (bytes), as far as there are any."""
        if self._whole is not None:
            return self._whole[first:last]
        piece, offset = self._piece(first, last)
        return piece[first - offset:last - offset]

    def slices(self, places, size):
        """A list of `slice(place, place + size)` for many places."""
        whole = self._whole
        if whole is not None:
            if len(whole) <= READ_AHEAD * len(places):
                whole.find(digits.MARK)  # it is not there, so this reads all of them in order, into the cache
            return [whole[place:place + size] for place in places]
        first, last = min(places), max(places) + size
        # not a run in order: most of what is between is not asked for
        if last - first > 2 * size * len(places):
            return [self.slice(place, place + size) for place in places]
        piece, offset = self._piece(first, last)
        return [piece[place:place + size] for place in [place - offset for place in places]]

    def _piece(self, first, last):
        """(numbers of the blocks that have the numbers first to last - 1, where these blocks begin)."""
        blocks, count = self._blocks, -(-self._n // BLOCK)
        numbers = range(first // BLOCK, min(-(-last // BLOCK), count))
        for number in numbers:
            if number not in blocks:
                blocks[number] = draw_block(self._seed, number, min(BLOCK, self._n - number * BLOCK))
        piece = b"".join([blocks[number] for number in numbers])
        if len(blocks) == count:
            self._whole = b"".join([blocks[number] for number in range(count)])
            self._blocks = None
        return piece, numbers.start * BLOCK


def checksum_steps(read, n):
    """A generator of the checksum (bytes), and of None before it for every step but the last.

    It spreads the work of a long sequence over several turns of the loop. The checksum is the md5 of the text
    of the list of the numbers: of `[6, 41, 81]` for 6, 41, 81. read(first, last) gives the numbers first to
    last - 1 (bytes or bytearray).
    """
    md5 = _md5(b"[")
    for first in range(0, n, CHECKSUM_STEP):
        if first:
            yield None
            md5.update(b", ")
        md5.update(_text(read(first, min(first + CHECKSUM_STEP, n))))
    md5.update(b"]")
    yield md5.digest()


def checksum(numbers):
    """The checksum of numbers (bytes), as 32 hex digits."""
    for digest in checksum_steps(lambda first, last: numbers[first:last], len(numbers)):
        pass
    return digest.hex()


def _from_hashlib(name):
    """A hash function of hashlib, which also loads OpenSSL (3.6 MB): for builds without their own.

    FIPS builds refuse hashlib.md5 unless it is said not to be for security, which it is not: the protocol
    names it as the checksum. Before 3.9 there is no such argument.
    """
    import hashlib

    function = getattr(hashlib, name)
    try:
        function(b"", usedforsecurity=False)
    except TypeError:
        return function
    return lambda data: function(data, usedforsecurity=False)


try:
    from _md5 import md5 as _md5
except ImportError:
    _md5 = _from_hashlib("md5")
try:
    from _sha3 import shake_128 as _shake_128
except ImportError:
    _shake_128 = _from_hashlib("shake_128")
