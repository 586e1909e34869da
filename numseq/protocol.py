"""The protocol, without any I/O: bytes in, messages out; messages in, bytes out; for both directions.

It is total: every byte string is a message, the beginning of one, or a ProtocolError that says what is wrong.
Messages are handled as bytes without their terminator, client ids as bytes as they were written.
"""

from . import digits

NUMBER_MOST = 100  # the numbers are 0 to this
N_MOST = 0xFFFF  # numbers of a sequence
BATCH_MOST = 0xFFFF  # numbers of a batch
ID_SHAPE = b"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"  # of a UUID; x is a hex digit

INIT, CONT, RECV, FIN = b"INIT", b"CONT", b"RECV", b"FIN"
ACK, NUM, FAC, ERR = b"ACK", b"NUM", b"FAC", b"ERR"

# The longest messages there are, with their terminators: what is longer is refused before its end is seen.
LONGEST_REQUEST = len(b"INIT,%b,%d,%d;" % (ID_SHAPE, N_MOST, BATCH_MOST))
LONGEST_REPLY = len(b"NUM,") + len(b"100:") * N_MOST

CHECKSUM_DIGITS = 32  # of an md5

# Places of batches that are remembered, over all widths: 220 bytes each, so 3.6 MB at the most. It takes all
# batches of the longest sequence with batches of 4 and more.
PLACES_MOST = 16384
WIDTHS_MOST = 64  # different widths of batches among them

# What ERR says is wrong.
UNKNOWN_TYPE = "Unknown message type"
NO_CONTENT = "%s takes no content"
INVALID_ID = "Invalid client id"
INVALID_N = "Invalid count of numbers: 0 to %d" % N_MOST
INVALID_BATCH = "Invalid batch size: 1 to %d" % BATCH_MOST
INVALID_FIELDS = "INIT takes a client id, a count and a batch size"
INVALID_INDEX = "Invalid batch index"
TOO_LONG = "Message too long"
UNFINISHED = "Message without an end"
TOO_EARLY = "INIT or CONT has to come first"
TOO_LATE = "INIT or CONT came already"
ALREADY_EXISTS = "{} already exist"
DOES_NOT_EXIST = "Client-id: {} does not exist"
NO_SUCH_BATCH = "Invalid batch index requested: %s"
TOO_MANY_CLIENTS = "Too many clients"
TOO_MANY_CONNECTIONS = "Too many connections"
STORE_FAILED = "The sequence cannot be kept now"


class ProtocolError(Exception):
    """What is wrong with a message, as ERR says it."""


# ---- messages


def encode(kind, *contents):
    """A message with its terminator (bytes) of a type (bytes) and contents (bytes)."""
    return b",".join((kind,) + contents) + b";"


def encode_error(what):
    """The ERR that says what is wrong (text)."""
    return encode(ERR, what.encode("ascii", "backslashreplace"))


def find_end(data, start, longest, searched=0):
    """Where the message that begins at start ends (its terminator's index), or -1 where its end is not there yet.

    `searched` is up to where there is known to be none, so that a long message that comes in small pieces is
    not searched from its beginning each time. Raises ProtocolError for one that will be longer than `longest`.
    """
    end = data.find(b";", max(start, searched), start + longest)
    if end < 0 and len(data) - start >= longest:
        raise ProtocolError(TOO_LONG)
    return end


def parse_number(text, least, most):
    """The number (int) that text (bytes) is: ASCII digits only, in the range; else ValueError."""
    if not text.isdigit():
        raise ValueError("not a number")
    number = int(text)
    if not least <= number <= most:
        raise ValueError("out of range")
    return number


_SHAPES = bytes(b"x"[0] if chr(i) in "0123456789abcdefABCDEF" else i if chr(i) == "-" else 0 for i in range(256))


def is_id(text):
    """Whether text (bytes) is a client id: a UUID in its usual form, in either case."""
    return text.translate(_SHAPES) == ID_SHAPE


# ---- what clients send


def parse_request(message):
    """(type, argument) of a client's message; raises ProtocolError.

    The argument is (id, n, batch) of an INIT, the id of a CONT, the index (int) of a RECV, None of a FIN.
    """
    kind, comma, content = message.partition(b",")
    parse = _REQUESTS.get(kind)
    if parse is None:
        raise ProtocolError(UNKNOWN_TYPE)
    return kind, parse(content, comma)


def _parse_init(content, comma):
    fields = content.split(b",")
    if len(fields) != 3:
        raise ProtocolError(INVALID_FIELDS)
    client_id, n, batch = fields
    if not is_id(client_id):
        raise ProtocolError(INVALID_ID)
    return client_id, _number_of(n, 0, N_MOST, INVALID_N), _number_of(batch, 1, BATCH_MOST, INVALID_BATCH)


def _parse_cont(content, comma):
    if not is_id(content):
        raise ProtocolError(INVALID_ID)
    return content


def _parse_recv(content, comma):
    if not content.isdigit():
        raise ProtocolError(INVALID_INDEX)
    return int(content)


def _parse_fin(content, comma):
    if comma:
        raise ProtocolError(NO_CONTENT % "FIN")


def _number_of(text, least, most, wrong):
    try:
        return parse_number(text, least, most)
    except ValueError:
        raise ProtocolError(wrong) from None


_REQUESTS = {INIT: _parse_init, CONT: _parse_cont, RECV: _parse_recv, FIN: _parse_fin}


def encode_receives(first, last):
    """The RECVs of the batches first to last - 1, as one string of bytes."""
    return b"RECV,%d;" * (last - first) % tuple(range(first, last))


def split_receives(data, most):
    """(texts of the indices, bytes taken) of the RECVs that data begins with, at most `most`; or None.

    None is for the message-by-message way to deal with: data does not begin with a whole RECV. Where other messages
    come in between, a text is none of an index, which `Frames.answer` will see.
    """
    end = data.rfind(b";")
    if end < 0 or not data.startswith(b"RECV,"):
        return None
    texts = data[5:end].split(b";RECV,", most)
    if len(texts) > most:
        return texts, end - len(texts.pop()) - len(b"RECV,")
    return texts, end + 1


# ---- what servers send


class Frames:
    """The NUM messages of a sequence, each a slice of one padded text.

    4 bytes a number, instead of an object and its header a batch.
    """

    NUMBER = digits.DIGITS + 1  # bytes a number takes

    __slots__ = ("count", "longest", "_padded", "_width")

    def __init__(self, numbers, batch):
        n = len(numbers)
        batch = max(min(batch, n), 1)
        self.count = -(-n // batch)  # of batches
        padded = digits.pad(numbers, b":")
        self._width = width = self.NUMBER * batch
        padded[width - 1::width] = b";" * (n // batch)
        if n % batch:  # the last one is short, and filled up: all slices are equally long
            padded[-1:] = b";"
            padded += digits.PAD * (width - len(padded) % width)
        self._padded = bytes(padded)
        self.longest = len(b"NUM,") + width  # bytes of a message, at most

    def message(self, index):
        """The NUM of a batch; raises IndexError where there is no such batch."""
        if index >= self.count:
            raise IndexError(index)
        return b"NUM," + digits.unpad(self._padded[index * self._width:(index + 1) * self._width])

    def answer(self, texts):
        """The NUMs of many indices (bytes, each, as they were written), as one; None unless each is of a batch.

        The fast path of a server: a few operations on whole buffers, and nothing of Python's done for each message.
        It may be taken for every run of RECVs because an index that is none, or is no batch's, makes it None.
        """
        places = _places.get(self._width)
        if places is None:
            places = _new_places(self._width)
        try:
            cuts = list(map(self._padded.__getitem__, map(places.__getitem__, texts)))
        except ValueError:
            return None
        joined = b"NUM,".join(cuts)
        if len(joined) != len(cuts) * self.longest - len(b"NUM,"):  # behind the end, a slice is shorter
            return None
        return b"NUM," + digits.unpad(joined)


class Places(dict):
    """From the text of an index to the slice of its batch in padded text, for batches of one width."""

    __slots__ = ("width",)

    def __init__(self, width):
        self.width = width

    def __missing__(self, text):
        index = parse_number(text, 0, N_MOST)
        place = slice(index * self.width, (index + 1) * self.width)
        if text == b"%d" % index:  # not 007, of which there are too many
            if sum(map(len, _places.values())) >= PLACES_MOST:
                _places.clear()
                _places[self.width] = self
                self.clear()
            self[text] = place
        return place


_places = {}  # from width to Places: the same for all sequences


def _new_places(width):
    if len(_places) >= WIDTHS_MOST:
        _places.clear()
    places = _places[width] = Places(width)
    return places


# ---- what clients read


def parse_reply(message):
    """(type, content) of a server's message; raises ProtocolError.

    The content is the numbers of a NUM (bytes, one a number), the checksum of a FAC (text), what is wrong of an ERR
    (text), None of an ACK.
    """
    kind, comma, content = message.partition(b",")
    parse = _REPLIES.get(kind)
    if parse is None:
        raise ProtocolError("an answer of no known type")
    return kind, parse(content, comma)


def _parse_ack(content, comma):
    if comma:
        raise ProtocolError(NO_CONTENT % "ACK")


def _parse_num(content, comma):
    try:
        return digits.parse(content.split(b":"))
    except KeyError:
        raise ProtocolError("numbers that are not 0 to 100") from None


def _parse_fac(content, comma):
    if len(content) != CHECKSUM_DIGITS or content.strip(b"0123456789abcdef"):
        raise ProtocolError("a checksum that is none")
    return content.decode("ascii")


def _parse_err(content, comma):
    return printable(content)


_REPLIES = {ACK: _parse_ack, NUM: _parse_num, FAC: _parse_fac, ERR: _parse_err}

_PRINTABLE = bytes(i if 32 <= i < 127 else ord("?") for i in range(256))


def printable(data):
    """Bytes of a peer's as text that may be shown: nothing in it moves a terminal's cursor."""
    return bytes(data).translate(_PRINTABLE).decode("ascii")


def split_numbers(data, batch, most):
    """(numbers, bytes taken) of the NUMs of full batches that data begins with, at most `most`; or None.

    The fast path of a client, as `Frames.answer` is of a server: it may be taken whenever NUMs of full batches are
    what is expected, because anything else makes it None, and then goes message by message.
    """
    end = data.rfind(b";")
    if end < 0 or not data.startswith(b"NUM,"):
        return None
    texts = bytes(data[4:end]).split(b";NUM,", most)
    taken = end + 1
    if len(texts) > most:
        taken = end - len(texts.pop()) - len(b"NUM,")
    if any(text.count(b":") != batch - 1 for text in texts):
        return None
    try:
        return digits.parse(b":".join(texts).split(b":")), taken
    except KeyError:
        return None
