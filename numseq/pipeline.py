"""The protocol, many messages at once: fast paths for runs of requests and replies, without I/O.

Each function may be tried on any input where its messages are expected. It handles the common case, complete
messages of full batches, and returns None for anything else. The caller then handles the input message by
message, with the same result.
"""

from . import digits
from .protocol import LONGEST_REQUEST

RUN_MOST = digits.RUN  # RECVs answered at once
REMEMBERED_MOST = 1024  # RECVs whose index is remembered: 0.1 MB, and few sequences have more batches
SHORTEST_RECV = len(b"RECV,0;")

_SEMICOLON = b";"[0]
_COMMA_TO_TAB = bytes.maketrans(b",", digits.TAB)
remembered = {}  # from a RECV (bytes) to its index: this lookup takes a fifth of the time of parsing it


def answer_receive(data, replies):
    """The NUM (bytes) if data (bytes) is a single RECV of a full batch, otherwise None.

    This is the server's fast path for clients that wait for each reply. replies are the Replies of the
    client's sequence.
    """
    try:
        index = remembered[data]
    except KeyError:
        index = _remember_index(data)
        if index is None:
            return None
    return replies.one(index)


def _remember_index(data):
    """The index (int) if data is a single RECV, otherwise None. Remembers up to REMEMBERED_MOST of them."""
    text = data[5:-1]
    if not text.isdigit() or data[:5] != b"RECV," or data[-1] != _SEMICOLON or len(data) > LONGEST_REQUEST:
        return None
    index = int(text)
    if len(remembered) < REMEMBERED_MOST:
        remembered[data] = index
    return index


def answer_receives(data, replies, most):
    """Answers up to `most` (at most RUN_MOST) RECVs at the beginning of data.

    Returns (NUMs as bytes, bytes of data taken, number of RECVs), or None. This is the server's fast path for
    clients that do not wait: a few operations on whole buffers, no Python code per message. data (bytes or
    bytearray) is a client's input; replies are the Replies of its sequence.
    """
    if data[:5] != b"RECV,":  # cheaper than an exception later
        return None
    run = bytes(data[:data.rfind(b";", 0, SHORTEST_RECV * most) + 1])
    count = run.count(b";RECV,") + 1
    indices = run.translate(_COMMA_TO_TAB, b"RECV;")
    # Not equal if the run is empty or has these letters elsewhere.
    if len(indices) != len(run) - count * len(b"RECV;"):
        return None
    places = digits.read(indices, count, replies.scale)
    answers = None if places is None else replies.many(places)
    return None if answers is None else (answers, len(run), count)


def split_numbers(data, batch, most):
    """Reads up to `most` NUMs of full batches at the beginning of data.

    Returns (numbers as bytes, one per number; bytes of data taken), or None. This is the client's fast path;
    data (bytes or bytearray) is what the server sent.
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
