"""RESP2, the protocol of Redis and Valkey: commands to bytes, bytes to replies. No I/O.

Parsing is total: every byte string is a reply, the beginning of one, or a RespError; nothing else is raised.
Arrays are errors, because none of the commands that numseq sends is answered with one.
"""

LINE_MOST = 1024  # bytes of a line without its end; an error message with a key and an address in it has 200
BULK_MOST = 4096  # bytes of a bulk string; the longest value that numseq writes has 130
DIGITS_MOST = 19  # of a number: those of a signed 64-bit integer

# A reply is a tuple (type, value): the value is bytes of a status, an error and a bulk string, an int of an
# integer, and None of what is not there.
STATUS, ERROR, INTEGER, BULK = "status", "error", "integer", "bulk"
OK = (STATUS, b"OK")
PONG = (STATUS, b"PONG")
NULL = (BULK, None)

_END = b"\r\n"


class RespError(Exception):
    """What is wrong with the bytes that a server sent."""


def encode(*parts):
    """A command (bytes) of its name and arguments (each bytes)."""
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


def parse(data, start=0):
    """(reply, where it ends) of the reply that begins at start in data (bytes or bytearray).

    Returns None where its end is not there yet. Raises RespError for what is no reply, or a longer one than
    allowed, before its end is seen.
    """
    end = data.find(_END, start, start + LINE_MOST + len(_END) + 1)
    if end < 0:
        if len(data) - start > LINE_MOST + len(_END):
            raise RespError("a line of over %d bytes" % LINE_MOST)
        if start < len(data) and data[start] not in _PARSERS:
            raise RespError("unknown type of reply %a" % bytes(data[start:start + 1]))
        return None
    if end == start or data[start] not in _PARSERS:
        raise RespError("unknown type of reply %a" % bytes(data[start:start + 1]))
    return _PARSERS[data[start]](data, bytes(data[start + 1:end]), end + len(_END))


def error_code(message):
    """The first word (bytes) of an error's message: ERR, LOADING, WRONGTYPE ..."""
    return message.partition(b" ")[0]


def _number(text):
    """The integer that a line's text is."""
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > DIGITS_MOST:
        raise RespError("%a is not a number" % text[:DIGITS_MOST + 1])
    return int(text)


def _status(data, text, end):
    return (STATUS, text), end


def _error(data, text, end):
    return (ERROR, text), end


def _integer(data, text, end):
    return (INTEGER, _number(text)), end


def _bulk(data, text, end):
    size = _number(text)
    if size == -1:
        return NULL, end
    if not 0 <= size <= BULK_MOST:
        raise RespError("a bulk string of %d bytes" % size)
    if not _END.startswith(bytes(data[end + size:end + size + len(_END)])):
        raise RespError("a bulk string without its end")
    if len(data) < end + size + len(_END):
        return None
    return (BULK, bytes(data[end:end + size])), end + size + len(_END)


_PARSERS = {b"+"[0]: _status, b"-"[0]: _error, b":"[0]: _integer, b"$"[0]: _bulk}
