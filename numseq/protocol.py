"""The protocol, one message at a time: encodes and parses requests and replies, without I/O.

Every input is a message, the beginning of one, or raises ProtocolError; nothing else is raised. Messages are
bytes without their terminator. Client ids are bytes in their original case.
"""

from . import digits

NUMBER_MOST = 100  # the numbers are 0 to 100
N_MOST = 0xFFFF  # numbers of a sequence
BATCH_MOST = 0xFFFF  # numbers of a batch
ID_SHAPE = b"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"  # of a UUID; x is a hex digit

INIT, CONT, RECV, FIN = b"INIT", b"CONT", b"RECV", b"FIN"
ACK, NUM, FAC, ERR = b"ACK", b"NUM", b"FAC", b"ERR"

# The longest messages, with their terminators. Longer ones are refused before their end has arrived.
LONGEST_REQUEST = len(b"INIT,%b,%d,%d;" % (ID_SHAPE, N_MOST, BATCH_MOST))
LONGEST_INDEX = LONGEST_REQUEST - len(b"RECV,;")  # digits of a RECV's index, leading zeros included
LONGEST_REPLY = len(b"NUM,") + len(b"100:") * N_MOST

NUMBER_BYTES = len(b"100:")  # of a number in a NUM, at most
CHECKSUM_DIGITS = 32  # of an md5

# The texts of ERR.
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
    """A malformed or unexpected message. str() is the text for the ERR."""


# ---- messages

ACK_MESSAGE = b"ACK;"
FIN_MESSAGE = b"FIN;"


def encode(kind, *contents):
    """A message (bytes) with its terminator, from its type (bytes) and the fields of its content (bytes)."""
    return b",".join((kind,) + contents) + b";"


def encode_error(what):
    """An ERR (bytes) with a text."""
    return encode(ERR, what.encode("ascii", "backslashreplace"))


def find_end(data, start, longest, searched=0):
    """The index of the terminator of the message that begins at start, or -1 if it has not arrived yet.

    Bytes before `searched` are known to contain none, so that a long message in small pieces is not searched
    from its beginning each time. Raises ProtocolError for a message longer than `longest` bytes.
    """
    end = data.find(b";", searched if searched > start else start, start + longest)
    if end < 0 and len(data) - start >= longest:
        raise ProtocolError(TOO_LONG)
    return end


def parse_number(text, least, most):
    """The number (int) in text (bytes): only ASCII digits, from least to most. Raises ValueError."""
    if not text.isdigit():
        raise ValueError("not a number")
    number = int(text)
    if not least <= number <= most:
        raise ValueError("out of range")
    return number


_SHAPES = bytes(b"x"[0] if chr(i) in "0123456789abcdefABCDEF" else i if chr(i) == "-" else 0
                for i in range(256))


def is_id(text):
    """Whether text (bytes) is a client id: a UUID as 8-4-4-4-12 hex digits, in either case."""
    return text.translate(_SHAPES) == ID_SHAPE


# ---- requests


def parse_request(message):
    """(type, argument) of a request. Raises ProtocolError.

    The argument is (id, n, batch) for INIT, the id for CONT, the index (int) for RECV, None for FIN.
    """
    kind, comma, content = message.partition(b",")
    if kind not in _REQUESTS:
        raise ProtocolError(UNKNOWN_TYPE)
    return kind, _REQUESTS[kind](content, comma)


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
    if len(content) > LONGEST_INDEX:
        raise ProtocolError(TOO_LONG)
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
    """The RECVs (bytes) for the batches first to last - 1."""
    return b"RECV,%d;" * (last - first) % tuple(range(first, last))


# ---- replies

# encode_batch(numbers) is the NUM (bytes) for the numbers of a batch (bytes, one per number).
encode_batch = digits.writer(b"NUM,", b":", b";")


def parse_reply(message):
    """(type, content) of a reply. Raises ProtocolError.

    The content is the numbers (bytes, one per number) for NUM, the checksum (text) for FAC, the text for ERR,
    None for ACK.
    """
    kind, comma, content = message.partition(b",")
    if kind not in _REPLIES:
        raise ProtocolError("unknown message type")
    return kind, _REPLIES[kind](content, comma)


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
        raise ProtocolError("malformed checksum")
    return content.decode("ascii")


def _parse_err(content, comma):
    return printable(content)


_REPLIES = {ACK: _parse_ack, NUM: _parse_num, FAC: _parse_fac, ERR: _parse_err}

_PRINTABLE = bytes(i if 32 <= i < 127 else ord("?") for i in range(256))


def printable(data):
    """Bytes from a peer as text that is safe to print, without control characters."""
    return bytes(data).translate(_PRINTABLE).decode("ascii")
