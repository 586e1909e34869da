"""Converts numbers to decimal text and back, many at once and without an object for each.

To text go numbers from 0 to 100, one per byte. `pad` gives every number the same width: three bytes for the
digits, with zero bytes for missing ones, and the separator. `unpad` then deletes the zero bytes. `parse`
reads such numbers, and `read` reads indices, which may be larger.
"""

import struct

PAD = b"\0"
DIGITS = 3  # of a number, at most
BULK = 24  # from this many numbers on, padded text is faster than a format string

RUN = 1024  # numbers that `read` takes at once
TAB = b"\t"  # precedes each number that `read` takes
READ_MOST = 0xFFFF  # the largest number that `read` takes
_PLACES = 8  # a TAB and up to 7 digits, four bits each, in a lane of 32 bits
# Each step (shift, mask, scale) joins neighbours in all lanes at once: first pairs of digits, then pairs of
# these, then the two halves. The text is reversed, so the upper neighbour has the lower decimal place: it is
# shifted down, and the other one is multiplied by the scale.
_STEPS = [(shift, int.from_bytes(mask * (4 * RUN // len(mask)), "big"), scale) for shift, mask, scale in (
    (4, b"\x0f", 10), (8, b"\x00\xff", 100), (16, b"\x00\x00\xff\xff", 10000))]
_TOO_LARGE = _STEPS[2][1] << 16
_ZEROS = bytes.maketrans(b" ", b"0")

# The digits of each number, by place; a zero byte where it has none.
_COLUMNS = [bytes(48 + i // power % 10 if i >= power or power == 1 else 0 for i in range(256))
            for power in (100, 10, 1)]
_VALUES = {b"%d" % i: i for i in range(101)}


def place(separator):
    """The place of one number in padded text: its padding, then the separator (bytes)."""
    return PAD * DIGITS + separator


def pad(numbers, row, width):
    """Numbers (bytes) as padded text (bytearray): `row` (bytes) repeated, a number every `width` bytes."""
    size = width * len(numbers)
    padded = bytearray(row * -(-size // len(row)))
    del padded[size:]
    for i, column in enumerate(_COLUMNS):
        padded[i::width] = numbers.translate(column)
    return padded


def unpad(padded):
    """Padded text (bytes or bytearray) without its padding; the same type."""
    return padded.translate(None, PAD)


def writer(before, separator, after):
    """A function from numbers (bytes) to text (bytes): `before`, the separated numbers, `after`."""
    formats = [before + separator.join([b"%d"] * count) + after for count in range(BULK)]
    row, whole = place(separator), before + b"%b" + after

    def write(numbers):
        if len(numbers) < BULK:
            return formats[len(numbers)] % tuple(numbers)
        return whole % unpad(pad(numbers, row, len(row)))[:-len(separator)]

    return write


def parse(texts):
    """The numbers (bytes) in a list of texts (bytes): 0 to 100, as `%d` writes them. Raises KeyError."""
    return bytes(map(_VALUES.__getitem__, texts))


def read_plainly(text, count, scale):
    """The plain form of `read`, number by number: its definition, used to test it."""
    before, *texts = text.split(TAB)
    if before or len(texts) != count or not all(len(each) < _PLACES and each.isdigit() for each in texts):
        return None
    if max(map(int, texts), default=0) > READ_MOST:
        return None
    return tuple(scale * int(each) for each in texts)


def read(text, count, scale):
    """Reads `count` numbers (1 to RUN) from text (bytes), each after a TAB; returns each times scale (tuple).

    Returns None if a number is above READ_MOST or does not have 1 to 7 digits, and for any other text. scale
    is at most READ_MOST. Takes 60 % of the time of `read_plainly`: tabs are expanded to columns of 8, and all
    columns are added up as one large integer, pairs of digits first (SWAR: Lamport, "Multiple byte
    processing with full-word instructions", 1975).
    """
    aligned = text[::-1].expandtabs(_PLACES)  # reversed, so that each column begins with the lowest digit
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
