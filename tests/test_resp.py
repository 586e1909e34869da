"""Redis's protocol: every byte string is a reply, the beginning of one, or an error; and nothing grows
without bound."""

import random
import tracemalloc

import pytest

from numseq import resp
from numseq.resp import BULK, BULK_MOST, ERROR, INTEGER, LINE_MOST, NULL, OK, STATUS, RespError

REPLIES = [
    (b"+OK\r\n", OK),
    (b"+\r\n", (STATUS, b"")),
    (b"+PONG\r\n", resp.PONG),
    (b"-ERR unknown command 'x'\r\n", (ERROR, b"ERR unknown command 'x'")),
    (b":0\r\n", (INTEGER, 0)),
    (b":-1\r\n", (INTEGER, -1)),
    (b":9223372036854775807\r\n", (INTEGER, 2 ** 63 - 1)),
    (b"$-1\r\n", NULL),
    (b"$0\r\n\r\n", (BULK, b"")),
    (b"$5\r\nhello\r\n", (BULK, b"hello")),
    (b"$4\r\n\r\n\r\n\r\n", (BULK, b"\r\n\r\n")),
    (b"$%d\r\n%b\r\n" % (BULK_MOST, b"x" * BULK_MOST), (BULK, b"x" * BULK_MOST)),
    (b"+" + b"x" * (LINE_MOST - 1) + b"\r\n", (STATUS, b"x" * (LINE_MOST - 1))),
]

WRONG = [
    b"x", b"\r\n", b"\n", b"*1\r\n:1\r\n", b"*", b"%1\r\n", b"_\r\n", b"HTTP/1.1 400 Bad Request\r\n",
    b":\r\n", b":x\r\n", b":1x\r\n", b":+1\r\n", b": 1\r\n", b":1.0\r\n", b":--1\r\n", b":-\r\n",
    b":" + b"1" * 20 + b"\r\n", b":\xb2\r\n", b"$\r\n", b"$-2\r\n", b"$-0x\r\n", b"$x\r\n",
    b"$%d\r\n" % (BULK_MOST + 1), b"$99999999999999999999\r\n",
    b"$2\r\nabc\r\n", b"$3\r\nab\r\n\r\n", b"$3\r\nabc\r\r", b"$3\r\nabcx", b"$0\r\nx",
    b"+" + b"x" * (LINE_MOST + 3), b"-" + b"x" * 10 ** 6, b":" + b"1" * 10 ** 6,
]


def parse_all(data):
    """All replies in data, and where the rest begins."""
    replies, position = [], 0
    while True:
        found = resp.parse(data, position)
        if found is None:
            return replies, position
        reply, position = found
        replies.append(reply)


@pytest.mark.parametrize("parts, encoded", [
    ((b"PING",), b"*1\r\n$4\r\nPING\r\n"),
    ((b"SET", b"k", b""), b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n"),
    ((b"GET", b"\r\n$1\r\n"), b"*2\r\n$3\r\nGET\r\n$6\r\n\r\n$1\r\n\r\n"),
])
def test_commands_are_arrays_of_bulk_strings(parts, encoded):
    assert resp.encode(*parts) == encoded


@pytest.mark.parametrize("data, reply", REPLIES)
def test_reply_is_parsed_with_the_position_of_its_end(data, reply):
    assert resp.parse(data) == (reply, len(data))
    before = b"+before\r\n"
    assert resp.parse(before + data + b"-after", len(before)) == (reply, len(before) + len(data))


@pytest.mark.parametrize("data, reply", REPLIES)
def test_every_beginning_of_a_reply_waits_for_more(data, reply):
    for size in range(len(data)):
        assert resp.parse(data[:size]) is None
        assert resp.parse(bytearray(data[:size])) is None


@pytest.mark.parametrize("data", WRONG)
def test_malformed_reply_is_an_error(data):
    with pytest.raises(RespError):
        resp.parse(data)


@pytest.mark.parametrize("data", WRONG)
def test_malformed_reply_stays_an_error_whatever_follows(data):
    with pytest.raises(RespError):
        resp.parse(data + b"\r\n+OK\r\n")


@pytest.mark.parametrize("seed", range(20))
def test_any_input_is_replies_a_partial_reply_or_an_error(seed):
    draw = random.Random(seed)
    alphabet = b"+-:$*\r\n019xO\x00\xff"
    for _ in range(3000):
        data = bytes(draw.choice(alphabet) for _ in range(draw.randrange(24)))
        try:
            replies, rest = parse_all(data)
        except RespError:
            continue
        assert 0 <= rest <= len(data)
        assert all(kind in (STATUS, ERROR, INTEGER, BULK) for kind, _ in replies)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_replies_raise_only_resp_error(seed):
    draw = random.Random(seed)
    whole = b"".join(data for data, _ in REPLIES[:11])
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            parse_all(bytes(data))
        except RespError:
            pass
    assert len(parse_all(whole)[0]) == 11


@pytest.mark.parametrize("seed", range(20))
def test_replies_are_the_same_however_they_are_cut(seed):
    draw = random.Random(seed)
    chosen = [draw.choice(REPLIES) for _ in range(50)]
    whole = b"".join(data for data, _ in chosen)
    replies, rest, position = [], b"", 0
    while position < len(whole):
        size = draw.choice([1, 2, 3, 50, 5000])
        rest += whole[position:position + size]
        position += size
        found, taken = parse_all(rest)
        replies += found
        rest = rest[taken:]
    assert rest == b""
    assert replies == [reply for _, reply in chosen]


def test_error_is_found_before_the_whole_of_it_has_come():
    """What has to be kept of a reply that is not complete is bounded by what a reply may have."""
    for beginning in (b"+", b"-", b":", b"$"):
        with pytest.raises(RespError):
            resp.parse(beginning + b"1" * (LINE_MOST + 3))
    assert resp.parse(b"$%d\r\n" % BULK_MOST + b"x" * BULK_MOST + b"\r") is None


def test_a_long_input_is_not_copied_for_each_reply():
    data = b"+OK\r\n" * 10000
    tracemalloc.start()
    try:
        position = 0
        for _ in range(1000):
            reply, position = resp.parse(data, position)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reply == OK
    assert peak < 10000


@pytest.mark.parametrize("message, code", [
    (b"LOADING Redis is loading the dataset in memory", b"LOADING"), (b"NOAUTH", b"NOAUTH"), (b"", b""),
    (b" x", b""),
])
def test_code_of_an_error_is_its_first_word(message, code):
    assert resp.error_code(message) == code
