"""From a seed to the numbers of a sequence, and their checksum. Nothing else knows how numbers are drawn."""

import os

from . import digits

SEED_BYTES = 16  # of an unpredictable seed: as much as an id has, so that neither is easier to guess
SEEDS_POOLED = 256  # seeds of one call of the system
DRAW_WORDS = 1024  # generator words drawn at once: 8 times as many are no faster, and cost more memory

# randint(0, 100) takes the top 7 bits of a generator's word, and the next word where they are over 100. So the top
# byte of each word, without those of 202 and over, and halved, gives the same numbers.
_HALVES = bytes(i // 2 for i in range(256))
_OVER = bytes(range(202, 256))

_text_of_list = digits.writer(b"[", b", ", b"]")


def _seeds():
    while True:
        pool = os.urandom(SEED_BYTES * SEEDS_POOLED)
        for first in range(0, len(pool), SEED_BYTES):
            yield pool[first:first + SEED_BYTES]


# unpredictable_seed() is a seed (bytes) that nobody can guess.
unpredictable_seed = _seeds().__next__


def draw(seed, n):
    """n numbers from 0 to 100 (bytes, one a number), the same whenever and wherever they are drawn from the seed.

    From text they are those of randint(0, 100) on random.Random(seed). From bytes they are made of SHAKE128 (FIPS
    202): who has seen some cannot tell the next, and the first few cost a sixth of seeding the other generator.
    """
    source = _words if isinstance(seed, str) else _stream
    size = n * 4 // 3 + 16  # 202 in 256 bytes give a number: nearly always enough
    while True:
        numbers = source(seed, size).translate(_HALVES, _OVER)
        if len(numbers) >= n:
            return numbers[:n]
        size *= 2


def _words(seed, size):
    """The top bytes of the first words of random.Random(seed), many at once.

    A seventeenth of the time of randint on 3.11, a fiftieth on 3.6; the same on every version, 32 and 64 bits.
    """
    import random  # for TEST_MODE alone: a millisecond and 0.4 MB of the others' start

    draw_bits = random.Random(seed).getrandbits
    parts = [min(DRAW_WORDS, size - first) for first in range(0, size, DRAW_WORDS)]
    return b"".join([draw_bits(32 * part).to_bytes(4 * part, "little")[3::4] for part in parts])


def _stream(seed, size):
    """The first bytes of SHAKE128 of the seed."""
    return _shake_128(seed).digest(size)


def checksum(numbers):
    """The md5 (32 hex digits) of the text of the list of the numbers (bytes): of `[6, 41, 81]` for 6, 41, 81."""
    return _md5(_text_of_list(numbers)).hexdigest()


def _from_hashlib(name):
    """A hash function of hashlib, which also loads OpenSSL (3.6 MB): for builds without their own.

    FIPS builds refuse hashlib.md5 unless it is said not to be for security, which it is not: the protocol names it as
    the checksum. Before 3.9 there is no such argument.
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
