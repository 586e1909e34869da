"""Numbers from 0 to 100, one a byte, to and from decimal text: many at once, without an object for each.

In padded text every number has a place as wide as every other's: three bytes for its digits, where a digit that is
not there is a zero byte, and those of what separates it from the next. `unpad` turns it into text.
"""

PAD = b"\0"
DIGITS = 3  # of a number, at most
BULK = 64  # numbers from which on padded text is quicker than one text a number

_HUNDREDS = bytes(48 + i // 100 if i >= 100 else 0 for i in range(256))
_TENS = bytes(48 + i // 10 % 10 if i >= 10 else 0 for i in range(256))
_ONES = bytes(48 + i % 10 for i in range(256))
_TEXTS = [b"%d" % i for i in range(101)]
_VALUES = {b"%d" % i: i for i in range(101)}


def place(separator):
    """The place of a number in padded text, with the separator (bytes) behind it."""
    return PAD * DIGITS + separator


def pad(numbers, row, width):
    """The numbers (bytes) as padded text (bytearray), put into a row of places, each width bytes wide, repeatedly."""
    size = width * len(numbers)
    padded = bytearray(row * -(-size // len(row)))
    del padded[size:]
    padded[0::width] = numbers.translate(_HUNDREDS)
    padded[1::width] = numbers.translate(_TENS)
    padded[2::width] = numbers.translate(_ONES)
    return padded


def unpad(padded):
    """Padded text (bytes or bytearray) without its padding, of the same type."""
    return padded.translate(None, PAD)


def join(numbers, separator):
    """The numbers (bytes) as text, with the separator (bytes) in between: what is quickest for a few of them."""
    return separator.join(map(_TEXTS.__getitem__, numbers))


def parse(texts):
    """The numbers (bytes) that the texts (bytes, each) stand for; KeyError unless each is 0 to 100, as `%d` has it."""
    return bytes(map(_VALUES.__getitem__, texts))
