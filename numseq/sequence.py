"""The numbers of a sequence, drawn from its seed, and their checksum. Only this module knows how."""

import os

from . import digits

# The version of the way in which numbers are drawn. Stores that outlive a server keep it with each record, so
# that a server that draws differently refuses the sequence instead of sending other numbers.
DRAWING = 2

SEED_BYTES = 16  # of an unpredictable seed: as many as an id has, so that neither is easier to guess
DRAW_WORDS = 1024  # generator words drawn at once: 8 times as many are no faster and take more memory

# Numbers drawn together, in 2.3 us. 1,024 save 14 % of a whole sequence, but cost a request for numbers that
# are not drawn yet 8 us, and 24 us where SHAKE128 is slow (Debian's Python).
BLOCK = 256
WHOLE_MOST = 1024  # numbers of a sequence up to which all are drawn at once, in 9 us
RATE = 168  # bytes per step of SHAKE128
RATE_NUMBERS = 128  # numbers that RATE bytes nearly always yield; 132.6 on average
# Numbers per requested slice up to which the whole sequence is first read in order, into the cache: reading
# 16 cache lines in order takes no longer than one at random. This saves a tenth of the time per request with
# 16 clients of 65,535 numbers each and a cache of 1 MiB.
READ_AHEAD = 1024
CHECKSUM_STEP = 8192  # numbers per step of a checksum: 0.3 ms, drawing included

# randint(0, 100) takes the top 7 bits of a generator's word, or of the next word if they are above 100. So
# taking the top byte of each word, dropping those from 202 on and halving the rest gives the same numbers.
_HALVES = bytes(i // 2 for i in range(256))
_OVER = bytes(range(202, 256))
_ABSENT = b"\xff"  # no number

_text = digits.writer(b"", b", ", b"")


def unpredictable_seed():
    """A seed (bytes) that nobody can guess. Raises OSError if the system has no random bytes."""
    return os.urandom(SEED_BYTES)  # 1 us; a pool of seeds would have to be safe for threads


def draw(seed, first, last):
    """The numbers first to last - 1 of a seed's sequence (bytes, one per number), the same at every call.

    A text seed gives those of randint(0, 100) on random.Random(seed), for which all before them are drawn.
    A bytes seed gives independent blocks, in which no number can be predicted from others.
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
    """The first `count` numbers of random.Random(seed) (bytes), drawn in bulk; the same on every version.

    Takes a seventeenth of randint's time on Python 3.11, a fiftieth on 3.6.
    """
    import random  # only for TEST_MODE: it would add a millisecond and 0.4 MB to every start

    draw_bits = random.Random(seed).getrandbits
    numbers = bytearray()
    while len(numbers) < count:
        words = min(DRAW_WORDS, (count - len(numbers)) * 4 // 3 + 16)  # 202 of 256 give a number
        numbers += draw_bits(32 * words).to_bytes(4 * words, "little")[3::4].translate(_HALVES, _OVER)
    return bytes(numbers[:count])


def draw_block(seed, number, count):
    """The first `count` numbers (bytes) of a block.

    They come from SHAKE128 (FIPS 202) of the seed and the block's number (two bytes, big-endian): bytes from
    202 on are skipped, the others halved.
    """
    stream = _shake_128(seed + number.to_bytes(2, "big"))
    rounds = -(-count // RATE_NUMBERS)
    while True:
        numbers = stream.digest(rounds * RATE).translate(_HALVES, _OVER)
        if len(numbers) >= count:
            return numbers[:count]
        rounds += 1


class Numbers:
    """The numbers of one sequence: drawn in blocks on demand, and kept.

    Unless the sequence is short (WHOLE_MOST), drew(size) is called with the bytes of newly drawn numbers.
    """

    __slots__ = ("_seed", "_n", "_drew", "_blocks", "_whole")

    def __init__(self, seed, n, drew=lambda size: None):
        self._seed = seed
        self._n = n
        self._drew = drew
        self._blocks = {}  # from number to drawn block (bytes); None once all are drawn
        self._whole = None  # all numbers (bytes), once all blocks are drawn
        if n <= WHOLE_MOST or isinstance(seed, str):
            self._whole, self._blocks, self._drew = draw(seed, 0, n), None, None
            if n > WHOLE_MOST:
                drew(n)

    def are_drawn(self):
        """Whether all of them are drawn."""
        return self._whole is not None

    def slice(self, first, last):
        """The numbers first to last - 1 (bytes), fewer at the end of the sequence."""
        if self._whole is not None:
            return self._whole[first:last]
        piece, offset = self._piece(first, last)
        return piece[first - offset:last - offset]

    def slices(self, places, size):
        """The list of `slice(place, place + size)` for many places."""
        whole = self._whole
        if whole is not None:
            if len(whole) <= READ_AHEAD * len(places):
                whole.find(_ABSENT)  # only to read all numbers into the cache
            return [whole[place:place + size] for place in places]
        first, last = min(places), max(places) + size
        if last - first > 2 * size * len(places):  # scattered: most numbers in between were not requested
            return [self.slice(place, place + size) for place in places]
        piece, offset = self._piece(first, last)
        return [piece[place:place + size] for place in [place - offset for place in places]]

    def _piece(self, first, last):
        """(the joined blocks that contain the numbers first to last - 1, the place of their first number)."""
        blocks, count = self._blocks, -(-self._n // BLOCK)
        numbers = range(first // BLOCK, min(-(-last // BLOCK), count))
        before = len(blocks)
        for number in numbers:
            if number not in blocks:
                blocks[number] = draw_block(self._seed, number, min(BLOCK, self._n - number * BLOCK))
        piece = b"".join([blocks[number] for number in numbers])
        if len(blocks) == count:
            self._whole = b"".join([blocks[number] for number in range(count)])
            self._blocks = None
        if len(blocks) > before:
            self._drew((len(blocks) - before) * BLOCK)
        return piece, numbers.start * BLOCK


def checksum_steps(read, n):
    """Computes a checksum in steps: yields None after each step but the last, then the checksum (bytes).

    The steps spread the work for a long sequence over several turns of the loop. The checksum is the md5 of
    the numbers as the text of a list: `[6, 41, 81]` for 6, 41, 81. read(first, last) returns the numbers
    first to last - 1 (bytes or bytearray).
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
    """A hash function of hashlib, for builds without their own. hashlib also loads OpenSSL (3.6 MB).

    FIPS builds refuse hashlib.md5 without usedforsecurity=False, which Python before 3.9 does not have. The
    protocol uses md5 as a checksum only.
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
