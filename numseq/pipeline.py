"""The protocol, many messages at once and without I/O: the fast paths for requests and replies sent in a row.

Each function may be tried on any input where its messages are expected. It returns None for everything but
the common case, whole messages of full batches, and the input is then handled message by message, with the
same result.
"""

from . import digits
from .protocol import LONGEST_REQUEST, NUM, encode_batch

RUN_MOST = digits.RUN  # RECVs answered at once
SHORTEST_RECV = len(b"RECV,0;")

_NUMBER, _LAST_NUMBER = digits.place(b":"), digits.place(b";")  # places of the numbers of a batch
_MARK = digits.place(b",")  # the place of the MARK before a batch, which becomes "NUM,"
_NUM_COLUMNS = digits.columns(NUM)
_SEMICOLON = b";"[0]
_COMMA_TO_TAB = bytes.maketrans(b",", digits.TAB)


def encode_batches(marked, batch):
    """The NUMs (bytes) of full batches. marked (bytes) has the numbers of each batch after a MARK."""
    row = _MARK + _NUMBER * (batch - 1) + _LAST_NUMBER
    return digits.unpad(digits.pad(marked, row, len(_NUMBER), _NUM_COLUMNS))


def answer_receives(data, numbers, batch, most):
    """(answers, bytes taken, RECVs) for up to `most` RECVs (at most RUN_MOST) that data begins with; or None.

    The server's fast path: a few operations on whole buffers, and no Python code per message. data (bytes or
    bytearray) is a client's input, numbers are those of its sequence: see `sequence.Numbers`.
    """
    if data[:5] != b"RECV,":  # cheaper to see here than by an exception
        return None
    index = data[5:-1]
    # a single request, no pipelining
    if index.isdigit() and data[-1] == _SEMICOLON and len(data) <= LONGEST_REQUEST:
        place = int(index) * batch
        asked = numbers.slice(place, place + batch)
        return (encode_batch(asked), len(data), 1) if len(asked) == batch else None
    run = bytes(data[:data.rfind(b";", 0, SHORTEST_RECV * most) + 1])
    count = run.count(b";RECV,") + 1
    indices = run.translate(_COMMA_TO_TAB, b"RECV;")
    # these letters stand elsewhere too, or the run is empty
    if len(indices) != len(run) - count * len(b"RECV;"):
        return None
    places = digits.read(indices, count, batch)
    if places is None:
        return None
    marked = digits.MARK + digits.MARK.join(numbers.slices(places, batch))
    if len(marked) != count * (1 + batch):  # a batch that is short, or behind the end
        return None
    return encode_batches(marked, batch), len(run), count


def split_numbers(data, batch, most):
    """(numbers, bytes taken) of up to `most` NUMs of full batches at the beginning of data; or None.

    The client's fast path. data (bytes or bytearray) is a server's input; numbers are bytes, one per number.
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
