"""Numbers from 0 to 100, one a byte, to and from decimal text: many at once, without an object for each.

A few go through one of the `formats`. In padded text every number has a place as wide as every other's: three bytes
for its digits, where a digit that is not there is a zero byte, and those of what separates it from the next. `unpad`
turns it into text.
"""

PAD = b"\0"
DIGITS = 3  # of a number, at most
BULK = 24  # numbers from which on padded text is quicker than a format
MARK = b"\xff"  # no number: among numbers, what is written as a text of the writer's own

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


def formats(before, separator, after):
    """For each count of numbers under BULK the format (bytes) that makes a text of a tuple of so many."""
    return [before + separator.join([b"%d"] * count) + after for count in range(BULK)]


def parse(texts):
    """The numbers (bytes) that the texts (bytes, each) stand for; KeyError unless each is 0 to 100, as `%d` has it."""
    return bytes(map(_VALUES.__getitem__, texts))
