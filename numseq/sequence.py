"""The sequence: from (seed, n) to its numbers, their sum and their checksum. Nothing else knows how they are drawn."""

import os
import random

from . import digits

SEED_BYTES = 16  # of an unpredictable seed: as much as an id has, so that neither is easier to guess
DRAW_WORDS = 1024  # generator words drawn at once: 8 times as many are no faster, and cost more memory

# randint(0, 100) takes the top 7 bits of a generator word, and the next word where they are over 100. So the top
# byte of each word, without those of 202 and over, and halved, gives the same numbers.
_HALVES = bytes(i // 2 for i in range(256))
_OVER = bytes(range(202, 256))


def unpredictable_seed():
    """A seed (int) that nobody can guess."""
    return int.from_bytes(os.urandom(SEED_BYTES), "little")


def draw(seed, n):
    """n numbers from 0 to 100 (bytes, one a number): those of randint(0, 100) on random.Random(seed).

    At once and not one by one: a seventeenth of the time of randint on 3.11, a fiftieth on 3.6. The same on
    every version, 32 and 64 bits.
    """
    words = random.Random(seed).getrandbits
    numbers = bytearray()
    while len(numbers) < n:
        # About 202 in 256 words give a number; a few too many are cheaper than another round.
        count = min(DRAW_WORDS, (n - len(numbers)) * 4 // 3 + 8)
        numbers += words(32 * count).to_bytes(4 * count, "little")[3::4].translate(_HALVES, _OVER)
    return bytes(numbers[:n])


def checksum(numbers):
    """The md5 (32 hex digits) of the text of the list of the numbers (bytes): of `[6, 41, 81]` for 6, 41, 81."""
    listed = digits.unpad(digits.pad(numbers, b", "))
    return _md5(b"[%b]" % listed[:-2]).hexdigest()


def _find_md5():
    """md5, not for security but as the checksum that the protocol names.

    The interpreter's own where it has one: hashlib loads OpenSSL, 3.6 MB of it. Builds under FIPS refuse a plain
    hashlib.md5; those before 3.9 do not know the word that makes them agree.
    """
    try:
        from _md5 import md5
    except ImportError:
        import hashlib

        try:
            hashlib.md5(b"", usedforsecurity=False)
        except TypeError:
            return hashlib.md5
        return lambda data: hashlib.md5(data, usedforsecurity=False)
    return md5


_md5 = _find_md5()
