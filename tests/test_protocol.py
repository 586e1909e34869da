"""The protocol: bytes in, messages out, and back. No sockets."""

import pytest

from messages import (ARABIC_FIVE, CHECKSUM, ID, REPLIES, REQUESTS, mutations, numbers_of, split,
                      split_replies, split_requests, text_of)
from numseq import digits, protocol
from numseq.protocol import ProtocolError

# Not numbers, although int() accepts many of them.
NO_NUMBERS = [b"", b" ", b"1_0", b" 5", b"5 ", b"+5", b"-1", b"-0", b"5\n", b"5.0", b"5e0", b"0x5", b"five",
              b"5\0", b"\0", ARABIC_FIVE, "\u00b2".encode("latin-1"), "\u0661\u0662".encode(), b"5:5"]

# Not client ids.
NO_IDS = [b"", ID[:-1], ID + b"0", b"{" + ID + b"}", b"urn:uuid:" + ID, ID.replace(b"-", b""),
          ID.replace(b"-", b"_"), ID.replace(b"a", b"g"), b" " + ID[1:], ID[:-1] + b"\n", ID[:-1] + b"\0",
          ID[:8] + b"0" + ID[8:-1], b"x" * 36, protocol.ID_SHAPE, b"-" * 36, ID[:-2] + ARABIC_FIVE,
          ID.replace(b"-", b"0")]


# ---- messages, both directions


@pytest.mark.parametrize("data, parsed", REQUESTS)
def test_every_request_is_read_as_its_meaning(data, parsed):
    assert split_requests(data) == ([parsed], b"")


@pytest.mark.parametrize("data, parsed", REPLIES)
def test_every_reply_is_read_as_its_meaning(data, parsed):
    assert split_replies(data) == ([parsed], b"")


@pytest.mark.parametrize("message, data", [
    ((b"INIT", ID, b"5", b"6"), b"INIT,%b,5,6;" % ID),
    ((b"CONT", ID), b"CONT,%b;" % ID),
    ((b"RECV", b"7"), b"RECV,7;"),
    ((b"FIN",), b"FIN;"),
    ((b"ACK",), b"ACK;"),
    ((b"FAC", CHECKSUM.encode()), b"FAC,%b;" % CHECKSUM.encode()),
])
def test_messages_are_written_in_the_wire_format(message, data):
    assert protocol.encode(*message) == data


@pytest.mark.parametrize("first, last", [(0, 0), (0, 1), (9, 12), (65533, 65535)])
def test_requests_for_a_range_are_written_as_they_are_one_by_one(first, last):
    assert protocol.encode_receives(first, last) == b"".join(b"RECV,%d;" % i for i in range(first, last))


@pytest.mark.parametrize("what", [
    protocol.UNKNOWN_TYPE, protocol.NO_CONTENT % "FIN", protocol.INVALID_ID, protocol.INVALID_N,
    protocol.INVALID_BATCH, protocol.INVALID_FIELDS, protocol.INVALID_INDEX, protocol.TOO_LONG,
    protocol.UNFINISHED, protocol.TOO_EARLY, protocol.TOO_LATE, protocol.ALREADY_EXISTS.format(ID.decode()),
    protocol.DOES_NOT_EXIST.format(ID.decode()), protocol.NO_SUCH_BATCH % 7, protocol.TOO_MANY_CLIENTS,
    protocol.TOO_MANY_CONNECTIONS, protocol.STORE_FAILED])
def test_any_error_text_reaches_the_client_as_one_message(what):
    assert split_replies(protocol.encode_error(what)) == ([(b"ERR", what)], b"")


def test_error_that_is_not_ascii_can_be_sent():
    (kind, text), = split_replies(protocol.encode_error("caf\u00e9 \udcff"))[0]
    assert kind == b"ERR" and text.startswith("caf")


def test_all_messages_in_one_packet_are_told_apart():
    assert split_requests(b"".join(data for data, _ in REQUESTS)) == ([parsed for _, parsed in REQUESTS], b"")
    assert split_replies(b"".join(data for data, _ in REPLIES)) == ([parsed for _, parsed in REPLIES], b"")


@pytest.mark.parametrize("split_it, messages", [(split_requests, REQUESTS), (split_replies, REPLIES)])
def test_every_beginning_of_a_message_waits_for_the_rest(split_it, messages):
    for data, _ in messages:
        for length in range(len(data)):
            assert split_it(data[:length]) == ([], data[:length])


# ---- what is refused


@pytest.mark.parametrize("text", NO_NUMBERS + [b"65536", b"9999999"])
@pytest.mark.parametrize("message, what", [
    (b"INIT,%b,%%b,5" % ID, protocol.INVALID_N), (b"INIT,%b,5,%%b" % ID, protocol.INVALID_BATCH)])
def test_invalid_count_is_refused(message, what, text):
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_request(message % text)
    assert str(caught.value) == what


def test_empty_batch_is_refused():
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_request(b"INIT,%b,5,0" % ID)
    assert str(caught.value) == protocol.INVALID_BATCH


@pytest.mark.parametrize("text", NO_NUMBERS + [b"5,5", b"5,"])
def test_invalid_index_is_refused(text):
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_request(b"RECV," + text)
    assert str(caught.value) == protocol.INVALID_INDEX


@pytest.mark.parametrize("text", NO_NUMBERS + [b"101", b"007", b"00", b"1,2", b"1:", b":1", b"1::2"])
def test_batch_with_a_number_outside_0_to_100_is_refused(text):
    if text == b"5:5":
        return  # is two of them
    for content in (text, b"1:" + text, text + b":1"):
        with pytest.raises(ProtocolError):
            protocol.parse_reply(b"NUM," + content)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_parse_number_takes_ascii_digits_only(text):
    with pytest.raises(ValueError):
        protocol.parse_number(text, 0, 10 ** 9)


@pytest.mark.parametrize("text, number", [(b"4", None), (b"5", 5), (b"7", 7), (b"8", None), (b"007", 7)])
def test_parse_number_keeps_to_its_range(text, number):
    if number is None:
        with pytest.raises(ValueError):
            protocol.parse_number(text, 5, 7)
    else:
        assert protocol.parse_number(text, 5, 7) == number


@pytest.mark.parametrize("text", NO_IDS)
def test_client_id_that_is_no_uuid_is_refused(text):
    assert not protocol.is_id(text)
    for message in (b"CONT," + text, b"INIT,%b,5,5" % text):
        with pytest.raises(ProtocolError):
            protocol.parse_request(message)


def test_client_id_takes_only_hex_digits_of_all_bytes():
    taken = bytes(i for i in range(256) if protocol.is_id(bytes([i]) + ID[1:]))
    assert taken == b"0123456789ABCDEFabcdef"
    assert bytes(i for i in range(256) if protocol.is_id(ID[:8] + bytes([i]) + ID[9:])) == b"-"


@pytest.mark.parametrize("message", [
    b"", b",", b"INIT", b"INIT,", b"INIT,%b" % ID, b"INIT,%b,5" % ID, b"INIT,%b,5,5,5" % ID,
    b"INIT,%b,5,5," % ID, b"init,%b,5,5" % ID, b" INIT,%b,5,5" % ID, b"\nFIN", b"FIN\n", b"FIN,", b"FIN,1",
    b"fin", b"RECV", b"recv,0", b"CONT", b"CONT,%b," % ID, b"ACK", b"NUM,1", b"NOPE", b"\xff\xfe", b"\0"])
def test_unknown_request_is_refused(message):
    with pytest.raises(ProtocolError):
        protocol.parse_request(message)


@pytest.mark.parametrize("message", [
    b"", b",", b"ACK,", b"ACK,1", b"ack", b"NUM", b"NUM,", b"FAC", b"FAC,", b"FAC," + CHECKSUM.encode()[:-1],
    b"FAC," + CHECKSUM.encode() + b"0", b"FAC," + CHECKSUM.upper().encode(), b"FAC," + b" " * 32,
    b"FAC," + b"g" * 32, b"FAC,a" + b"g" * 30 + b"a", b"FIN", b"RECV,0", b"\nACK", b"NOPE", b"\xff\xfe",
    b"\0"])
def test_unknown_reply_is_refused(message):
    with pytest.raises(ProtocolError):
        protocol.parse_reply(message)


# ---- how long a message may be


def test_longest_request_is_accepted_and_a_longer_one_refused():
    longest = b"INIT,%b,65535,65535;" % ID
    assert len(longest) == protocol.LONGEST_REQUEST
    assert split_requests(longest) == ([(b"INIT", (ID, 65535, 65535))], b"")


def test_longest_reply_is_accepted_and_a_longer_one_refused():
    longest = b"NUM," + b":".join([b"100"] * 65535) + b";"
    assert len(longest) == protocol.LONGEST_REPLY
    assert split_replies(longest) == ([(b"NUM", b"\x64" * 65535)], b"")


@pytest.mark.parametrize("longest", [protocol.LONGEST_REQUEST, protocol.LONGEST_REPLY])
@pytest.mark.parametrize("before", [b"", b"FIN;" * 3])
def test_message_a_byte_too_long_is_refused_before_its_end_arrives(longest, before):
    start = len(before)
    data = before + b"R" * (longest - 1)
    assert protocol.find_end(data, start, longest) == -1
    assert protocol.find_end(data + b";", start, longest) == start + longest - 1
    for too_long in (data + b"R", data + b"R;", data + b"R" * 100 + b";"):
        with pytest.raises(ProtocolError):
            protocol.find_end(too_long, start, longest)


def test_end_of_message_is_found_wherever_the_search_resumes():
    data = b"FIN;RECV,12;"
    for searched in range(11):
        assert protocol.find_end(data, 4, 54, searched) == 11
    assert protocol.find_end(data[:-1], 4, 54, 8) == -1


@pytest.mark.parametrize("parse, message", [
    (protocol.parse_request, b"RECV,%b"), (protocol.parse_request, b"INIT,%b,%%b,5" % ID),
    (protocol.parse_request, b"INIT,%b,5,%%b" % ID), (protocol.parse_reply, b"NUM,%b")])
@pytest.mark.parametrize("digit", [b"0", b"9"])
def test_number_of_more_digits_than_python_converts_is_refused(parse, message, digit):
    with pytest.raises(ProtocolError):
        parse(message % (digit * 5000))


# ---- totality: a parse or a ProtocolError, and nothing else


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("split_it, messages", [(split_requests, REQUESTS), (split_replies, REPLIES)])
def test_any_bytes_are_messages_or_a_protocol_error(split_it, messages, seed):
    refused = 0
    for data in mutations(seed, messages, 250):
        found, rest = split_it(data)
        assert split_it(bytearray(data))[1] == rest
        if found and isinstance(found[-1], ProtocolError):
            refused += 1
            what = str(found[-1])
            assert what and what == protocol.printable(what.encode()) and ";" not in what
    assert refused > 100


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("longest, parse, messages", [
    (protocol.LONGEST_REQUEST, protocol.parse_request, REQUESTS),
    (protocol.LONGEST_REPLY, protocol.parse_reply, REPLIES)])
def test_bytes_that_come_one_by_one_are_the_same_messages(longest, parse, messages, seed):
    for data in mutations(seed, messages, 50):
        found, position = [], 0
        for length in range(len(data) + 1):
            try:
                end = protocol.find_end(data[:length], position, longest, length - 1)
                if end >= 0:
                    found.append(parse(data[position:end]))
                    position = end + 1
            except ProtocolError:
                found.append(ProtocolError)
                break
        at_once = split(data, longest, parse)[0]
        assert found == [ProtocolError if isinstance(each, ProtocolError) else each for each in at_once]


@pytest.mark.parametrize("n", [1, 2, 5, digits.BULK - 1, digits.BULK, digits.BULK + 1, 100, 1000])
def test_batch_of_any_length_is_written_in_the_wire_format(n):
    for seed in range(5):
        assert protocol.encode_batch(numbers_of(seed, n)) == text_of(numbers_of(seed, n))


# ---- what may be shown


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_control_characters_are_not_shown(kind):
    text = protocol.printable(kind(range(256)))
    assert len(text) == 256
    assert all(" " <= character <= "~" for character in text)
    assert text[32:127] == bytes(range(32, 127)).decode()


def test_error_of_a_hostile_server_cannot_control_the_terminal():
    kind, text = protocol.parse_reply(b"ERR,\x1b[2J\r\n\x9b\x00ok\xff")
    assert kind == b"ERR" and text.endswith("ok?")
    assert all(" " <= character <= "~" for character in text)
