"""Numbers from 0 to 100, one per byte, to and from decimal text: many at once, without an object for each.

In padded text every number is equally wide: three bytes for its digits, of which missing ones are zero bytes,
and the bytes of the separator. `unpad` deletes the zero bytes. `read` goes the other way, for indices.
"""

import struct

PAD = b"\0"
DIGITS = 3  # of a number, at most
BULK = 24  # numbers from which padded text is faster than a format
MARK = b"\xff"  # not a number: where `pad` inserts the mark's text

RUN = 1024  # numbers that `read` takes at once
TAB = b"\t"  # before each number that `read` takes
READ_MOST = 0xFFFF  # the largest number that `read` takes
_PLACES = 8  # a TAB and up to 7 digits: four bits each, in a lane of 32
# How the 8 digits of each lane become a number, in all lanes at once: pairs of digits, then of pairs, then of
# fours, by shift, mask of the upper half, and its weight. The lowest digit comes first, because the text is
# reversed.
_STEPS = [(shift, int.from_bytes(mask * (4 * RUN // len(mask)), "big"), scale) for shift, mask, scale in (
    (4, b"\x0f", 10), (8, b"\x00\xff", 100), (16, b"\x00\x00\xff\xff", 10000))]
_TOO_LARGE = _STEPS[2][1] << 16
_ZEROS = bytes.maketrans(b" ", b"0")

_HUNDREDS = bytes(48 + i // 100 if i >= 100 else 0 for i in range(255))
_TENS = bytes(48 + i // 10 % 10 if i >= 10 else 0 for i in range(255))
_ONES = bytes(48 + i % 10 for i in range(255))
_VALUES = {b"%d" % i: i for i in range(101)}


def place(separator):
    """Padding for one number in padded text (bytes), followed by the separator (bytes)."""
    return PAD * DIGITS + separator


def columns(mark):
    """The `columns` for `pad` that replace each MARK among the numbers by the mark's text (3 bytes)."""
    return [column + mark[i:i + 1] for i, column in enumerate((_HUNDREDS, _TENS, _ONES))]


_NO_MARKS = columns(PAD * DIGITS)


def pad(numbers, row, width, columns=_NO_MARKS):
    """Numbers (bytes) as padded text (bytearray): `row` (bytes) repeated, each number in `width` bytes."""
    size = width * len(numbers)
    padded = bytearray(row * -(-size // len(row)))
    del padded[size:]
    for i, column in enumerate(columns):
        padded[i::width] = numbers.translate(column)
    return padded


def unpad(padded):
    """Padded text (bytes or bytearray) without its padding; the same type."""
    return padded.translate(None, PAD)


def writer(before, separator, after):
    """Returns a function from numbers (bytes) to text: `before`, the numbers with separators, `after`."""
    formats = [before + separator.join([b"%d"] * count) + after for count in range(BULK)]
    row, whole = place(separator), before + b"%b" + after

    def write(numbers):
        if len(numbers) < BULK:
            return formats[len(numbers)] % tuple(numbers)
        return whole % unpad(pad(numbers, row, len(row)))[:-len(separator)]

    return write


def parse(texts):
    """The numbers (bytes) of a list of texts (bytes), each as `%d` writes 0 to 100.

    Raises KeyError for any other.
    """
    return bytes(map(_VALUES.__getitem__, texts))


def read_plainly(text, count, scale):
    """What `read` returns, number by number: its definition, and what it is tested against."""
    before, *texts = text.split(TAB)
    if before or len(texts) != count or not all(len(each) < _PLACES and each.isdigit() for each in texts):
        return None
    if max(map(int, texts), default=0) > READ_MOST:
        return None
    return tuple(scale * int(each) for each in texts)


def read(text, count, scale):
    """Reads `count` numbers (1 to RUN), each after a TAB, times scale (to READ_MOST), as a tuple.

    None where a number is above READ_MOST or has not 1 to 7 digits, and for any other text. Takes three
    fifths of the time of `read_plainly`: tabs are expanded to columns of 8, and all columns are added up as
    one large integer, pairs of digits first (SWAR: Lamport, "Multiple byte processing with full-word
    instructions", 1975).
    """
    aligned = text[::-1].expandtabs(_PLACES)  # reversed, so that the lowest digit comes first in each column
    if len(aligned) != _PLACES * count or count > RUN:
        return None
    if not (aligned[::_PLACES].isdigit() and text.translate(None, TAB).isdigit()):
        return None
    lanes = int(aligned.translate(_ZEROS), 16)
    for shift, mask, more in _STEPS:
        lanes = (lanes >> shift & mask) + more * (lanes & mask)
    if lanes & _TOO_LARGE:
        return None
    return struct.unpack("<%dI" % count, (scale * lanes).to_bytes(4 * count, "little"))
