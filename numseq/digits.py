"""Numbers from 0 to 100, one a byte, to and from decimal text: many at once, without an object for each.

In padded text every number has a place as wide as every other's: three bytes for its digits, where a digit that is
not there is a zero byte, and those of what separates it from the next. `unpad` turns it into text. `read` goes the
other way, for indices.
"""

import struct

PAD = b"\0"
DIGITS = 3  # of a number, at most
BULK = 24  # numbers from which on padded text is quicker than a format
MARK = b"\xff"  # no number: among numbers, what is written as a text of the writer's own

RUN = 1024  # numbers that are read at once
TAB = b"\t"  # before each number that is read
READ_MOST = 0xFFFF  # the largest number that is read
_PLACES = 8  # digits of a number that is read: four bits each, in a lane of 32
# How the 8 digits of each lane become a number, all lanes at once: neighbours by the bits between them, the mask of the
# one that counts more, and how much more. The first digit is that of the ones, because the text is read backwards.
_STEPS = [(shift, int.from_bytes(mask * (4 * RUN // len(mask)), "big"), scale) for shift, mask, scale in (
    (4, b"\x0f", 10), (8, b"\x00\xff", 100), (16, b"\x00\x00\xff\xff", 10000))]
_TOO_LARGE = _STEPS[2][1] << 16
_ZEROS = bytes.maketrans(b" ", b"0")

_HUNDREDS = bytes(48 + i // 100 if i >= 100 else 0 for i in range(255))
_TENS = bytes(48 + i // 10 % 10 if i >= 10 else 0 for i in range(255))
_ONES = bytes(48 + i % 10 for i in range(255))
_VALUES = {b"%d" % i: i for i in range(101)}


def place(separator):
    """The place of a number in padded text, with the separator (bytes) behind it."""
    return PAD * DIGITS + separator


def columns(mark):
    """For `pad`, where the mark's text (bytes, three of them) stands in the stead of each MARK among the numbers."""
    return [column + mark[i:i + 1] for i, column in enumerate((_HUNDREDS, _TENS, _ONES))]


_NO_MARKS = columns(PAD * DIGITS)


def pad(numbers, row, width, columns=_NO_MARKS):
    """The numbers (bytes) as padded text (bytearray), put into a row of places, each width bytes wide, repeatedly."""
    size = width * len(numbers)
    padded = bytearray(row * -(-size // len(row)))
    del padded[size:]
    for i, column in enumerate(columns):
        padded[i::width] = numbers.translate(column)
    return padded


def unpad(padded):
    """Padded text (bytes or bytearray) without its padding, of the same type."""
    return padded.translate(None, PAD)


def writer(before, separator, after):
    """A function from numbers (bytes) to their text (bytes) with what stands before, between and after them (bytes)."""
    formats = [before + separator.join([b"%d"] * count) + after for count in range(BULK)]
    row, whole = place(separator), before + b"%b" + after

    def write(numbers):
        if len(numbers) < BULK:
            return formats[len(numbers)] % tuple(numbers)
        return whole % unpad(pad(numbers, row, len(row)))[:-len(separator)]

    return write


def parse(texts):
    """The numbers (bytes) that the texts (bytes, each) stand for; KeyError unless each is 0 to 100, as `%d` has it."""
    return bytes(map(_VALUES.__getitem__, texts))


def read(text, count, scale):
    """The count (up to RUN) numbers in the text (bytes), each behind a TAB, times scale (up to READ_MOST), as a tuple.

    None where one of them is over READ_MOST, or has no digit or more than 7, and where the text is any other. In three
    fifths of the time of a split, an int and a multiplication for each: the tabs are expanded to columns, and the
    columns added up as one large integer, neighbouring digits first (SWAR, as Lamport's "Multiple byte processing
    with full-word instructions", 1975).
    """
    aligned = text[::-1].expandtabs(_PLACES)  # from right to left, so that the ones stand first in each
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
