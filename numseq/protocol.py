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
SHORTEST_RECV = len(b"RECV,0;")
RUN_MOST = digits.RUN  # of RECVs answered at once
LONGEST_INDEX = LONGEST_REQUEST - len(b"RECV,;")  # digits, with the zeros before it
LONGEST_REPLY = len(b"NUM,") + len(b"100:") * N_MOST

NUMBER_BYTES = len(b"100:")  # of a number in a NUM, at most
CHECKSUM_DIGITS = 32  # of an md5

# Bytes of numbers read ahead for each request of a run: 16 cache lines in order take no longer than the one at which a
# request would wait alone. A tenth of the time where 16 clients of 65,535 numbers share a cache of 1 MiB.
WARMED = 1024

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

ACK_MESSAGE = b"ACK;"
FIN_MESSAGE = b"FIN;"


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
    end = data.find(b";", searched if searched > start else start, start + longest)
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
    """The RECVs of the batches first to last - 1, as one string of bytes."""
    return b"RECV,%d;" * (last - first) % tuple(range(first, last))


# ---- what servers send


_PLACE, _LAST_PLACE = digits.place(b":"), digits.place(b";")  # of a number in a batch
_HEAD = digits.place(b",")  # of the MARK before a batch
_NUM_COLUMNS = digits.columns(NUM)  # which is written as NUM
_END = b";"[0]  # what the last byte of a message is
# The comma of a RECV is where its index begins.
_TABS = bytes.maketrans(b",", digits.TAB)


# encode_batch(numbers) is the NUM (bytes) of a batch's numbers (bytes, one a number).
encode_batch = digits.writer(b"NUM,", b":", b";")


def encode_batches(numbers, batch):
    """The NUMs of full batches as one string of bytes. The numbers (bytes) have a MARK before each batch."""
    row = _HEAD + _PLACE * (batch - 1) + _LAST_PLACE
    return digits.unpad(digits.pad(numbers, row, len(_PLACE), _NUM_COLUMNS))


def answer_receives(data, numbers, batch, most):
    """(answers, bytes taken) of the RECVs that data begins with, at most `most` (up to RUN_MOST) of them; or None.

    The fast path of a server: a few operations on whole buffers, and none of Python's for each message. It may be
    taken for whatever comes once a sequence is open, because all but whole RECVs of full batches makes it None,
    and then goes message by message. The numbers (bytes) are those of the whole sequence.
    """
    if data[:5] != b"RECV,":  # another message begins it: cheaper to see here than by an exception
        return None
    index = data[5:-1]
    if index.isdigit() and data[-1] == _END and len(data) <= LONGEST_REQUEST:  # one alone, as each waits for the last
        place = int(index) * batch
        asked = numbers[place:place + batch]
        return (encode_batch(asked), len(data)) if len(asked) == batch else None
    run = bytes(data[:data.rfind(b";", 0, SHORTEST_RECV * most) + 1])
    count = run.count(b";RECV,") + 1
    indices = run.translate(_TABS, b"RECV;")
    if len(indices) != len(run) - count * len(b"RECV;"):  # there is some of that elsewhere, or nothing at all
        return None
    places = digits.read(indices, count, batch)
    if places is None:
        return None
    if len(numbers) <= WARMED * count:
        numbers.find(digits.MARK)  # There is none: this reads them all, in order, into the cache.
    marked = digits.MARK + digits.MARK.join([numbers[place:place + batch] for place in places])
    if len(marked) != count * (1 + batch):  # a batch that is short, or behind the end
        return None
    return encode_batches(marked, batch), len(run)


# ---- what clients read


def parse_reply(message):
    """(type, content) of a server's message; raises ProtocolError.

    The content is the numbers of a NUM (bytes, one a number), the checksum of a FAC (text), what is wrong of an ERR
    (text), None of an ACK.
    """
    kind, comma, content = message.partition(b",")
    if kind not in _REPLIES:
        raise ProtocolError("an answer of no known type")
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

    The fast path of a client, as `answer_receives` is of a server: it may be taken whenever NUMs of full batches are
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
