"""RESP2, the protocol of Redis and Valkey: encodes commands and parses replies, without I/O.

Every input is a reply, the beginning of one, or raises RespError; nothing else is raised. Arrays raise it
too, because no command that numseq sends is answered with one.
"""

LINE_MOST = 2048  # bytes of a line without CRLF; the longest error message of Redis, DENIED, has 1,065
BULK_MOST = 4096  # bytes of a bulk string; the longest value that numseq writes has 130
DIGITS_MOST = 19  # of a number: enough for signed 64-bit integers

# A reply is a tuple (type, value). The value is bytes for a status, an error or a bulk string, an int for an
# integer, and None for NULL.
STATUS, ERROR, INTEGER, BULK = "status", "error", "integer", "bulk"
OK = (STATUS, b"OK")
PONG = (STATUS, b"PONG")
NULL = (BULK, None)

_END = b"\r\n"


class RespError(Exception):
    """A server's bytes that are not a valid reply; str() says what is wrong."""


def encode(*parts):
    """A command (bytes) from its name and arguments (each bytes)."""
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


def parse(data, start=0):
    """(reply, its end) for the reply that begins at start in data (bytes or bytearray); None if incomplete.

    Raises RespError for anything else, and for a reply above the limits before it is complete.
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
    """The first word (bytes) of an error message: ERR, LOADING, WRONGTYPE ..."""
    return message.partition(b" ")[0]


def _number(text):
    """The integer in a line's text (bytes). Raises RespError."""
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
