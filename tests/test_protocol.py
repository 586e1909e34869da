"""The protocol: bytes in, messages out, and back. No sockets."""

import random

import pytest

from numseq import digits, protocol
from numseq.protocol import ProtocolError

ID = b"123e4567-e89b-12d3-a456-426614174000"
CHECKSUM = "f90b20dae8c9b7d7be2a5fb7cc856e8b"
ARABIC_FIVE = "\u0665".encode()

REQUESTS = [
    (b"INIT,%b,5,5;" % ID, (b"INIT", (ID, 5, 5))),
    (b"INIT,%b,0,1;" % ID, (b"INIT", (ID, 0, 1))),
    (b"INIT,%b,65535,65535;" % ID.upper(), (b"INIT", (ID.upper(), 65535, 65535))),
    (b"CONT,%b;" % ID, (b"CONT", ID)),
    (b"CONT,%b;" % ID.upper(), (b"CONT", ID.upper())),
    (b"CONT,FFFFFFFF-ffff-FFFF-ffff-FFFFFFFFFFFF;", (b"CONT", b"FFFFFFFF-ffff-FFFF-ffff-FFFFFFFFFFFF")),
    (b"RECV,0;", (b"RECV", 0)),
    (b"RECV,65534;", (b"RECV", 65534)),
    (b"RECV,99999999999999999999;", (b"RECV", 99999999999999999999)),
    (b"FIN;", (b"FIN", None)),
]
REPLIES = [
    (b"ACK;", (b"ACK", None)),
    (b"NUM,0;", (b"NUM", b"\0")),
    (b"NUM,6:41:81:68:68;", (b"NUM", bytes([6, 41, 81, 68, 68]))),
    (b"NUM,100:0:100;", (b"NUM", bytes([100, 0, 100]))),
    (b"FAC,%b;" % CHECKSUM.encode(), (b"FAC", CHECKSUM)),
    (b"ERR,%b already exist;" % ID, (b"ERR", "%s already exist" % ID.decode())),
    (b"ERR,a, b: c;", (b"ERR", "a, b: c")),
    (b"ERR,;", (b"ERR", "")),
]

# What is no number, though int() takes much of it.
NO_NUMBERS = [b"", b" ", b"1_0", b" 5", b"5 ", b"+5", b"-1", b"-0", b"5\n", b"5.0", b"5e0", b"0x5", b"five", b"5\0", b"\0",
              ARABIC_FIVE, "\u00b2".encode("latin-1"), "\u0661\u0662".encode(), b"5:5"]

# What is no client id.
NO_IDS = [b"", ID[:-1], ID + b"0", b"{" + ID + b"}", b"urn:uuid:" + ID, ID.replace(b"-", b""), ID.replace(b"-", b"_"),
          ID.replace(b"a", b"g"), b" " + ID[1:], ID[:-1] + b"\n", ID[:-1] + b"\0", ID[:8] + b"0" + ID[8:-1],
          b"x" * 36, protocol.ID_SHAPE, b"-" * 36, ID[:-2] + ARABIC_FIVE, ID.replace(b"-", b"0")]


def split(data, longest, parse):
    """What the messages in data are, up to the first that is wrong (its ProtocolError), and the bytes that are left."""
    found = []
    position = 0
    while True:
        try:
            end = protocol.find_end(data, position, longest)
            if end < 0:
                return found, bytes(data[position:])
            found.append(parse(bytes(data[position:end])))
        except ProtocolError as error:
            return found + [error], bytes(data[position:])
        position = end + 1


def split_requests(data):
    return split(data, protocol.LONGEST_REQUEST, protocol.parse_request)


def split_replies(data):
    return split(data, protocol.LONGEST_REPLY, protocol.parse_reply)


# ---- messages, both directions


@pytest.mark.parametrize("data, parsed", REQUESTS)
def test_every_request_is_read_as_what_it_says(data, parsed):
    assert split_requests(data) == ([parsed], b"")


@pytest.mark.parametrize("data, parsed", REPLIES)
def test_every_reply_is_read_as_what_it_says(data, parsed):
    assert split_replies(data) == ([parsed], b"")


@pytest.mark.parametrize("message, data", [
    ((b"INIT", ID, b"5", b"6"), b"INIT,%b,5,6;" % ID),
    ((b"CONT", ID), b"CONT,%b;" % ID),
    ((b"RECV", b"7"), b"RECV,7;"),
    ((b"FIN",), b"FIN;"),
    ((b"ACK",), b"ACK;"),
    ((b"FAC", CHECKSUM.encode()), b"FAC,%b;" % CHECKSUM.encode()),
])
def test_a_message_is_written_as_the_wire_has_it(message, data):
    assert protocol.encode(*message) == data


@pytest.mark.parametrize("first, last", [(0, 0), (0, 1), (9, 12), (65533, 65535)])
def test_requests_for_a_range_of_batches_are_written_as_one_by_one(first, last):
    assert protocol.encode_receives(first, last) == b"".join(b"RECV,%d;" % i for i in range(first, last))


@pytest.mark.parametrize("what", [
    protocol.UNKNOWN_TYPE, protocol.NO_CONTENT % "FIN", protocol.INVALID_ID, protocol.INVALID_N, protocol.INVALID_BATCH,
    protocol.INVALID_FIELDS, protocol.INVALID_INDEX, protocol.TOO_LONG, protocol.UNFINISHED, protocol.TOO_EARLY,
    protocol.TOO_LATE, protocol.ALREADY_EXISTS.format(ID.decode()), protocol.DOES_NOT_EXIST.format(ID.decode()),
    protocol.NO_SUCH_BATCH % 7, protocol.TOO_MANY_CLIENTS, protocol.TOO_MANY_CONNECTIONS, protocol.STORE_FAILED])
def test_whatever_is_wrong_reaches_the_client_as_one_message(what):
    assert split_replies(protocol.encode_error(what)) == ([(b"ERR", what)], b"")


def test_an_error_that_is_not_ascii_can_still_be_said():
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
def test_a_count_that_is_no_number_or_out_of_range_is_refused(message, what, text):
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_request(message % text)
    assert str(caught.value) == what


def test_a_batch_of_no_numbers_is_refused():
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_request(b"INIT,%b,5,0" % ID)
    assert str(caught.value) == protocol.INVALID_BATCH


@pytest.mark.parametrize("text", NO_NUMBERS + [b"5,5", b"5,"])
def test_an_index_that_is_no_number_is_refused(text):
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_request(b"RECV," + text)
    assert str(caught.value) == protocol.INVALID_INDEX


@pytest.mark.parametrize("text", NO_NUMBERS + [b"101", b"007", b"00", b"1,2", b"1:", b":1", b"1::2"])
def test_a_batch_with_what_is_no_number_from_0_to_100_is_refused(text):
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
def test_what_is_no_uuid_is_refused_as_a_client_id(text):
    assert not protocol.is_id(text)
    for message in (b"CONT," + text, b"INIT,%b,5,5" % text):
        with pytest.raises(ProtocolError):
            protocol.parse_request(message)


def test_of_all_bytes_only_hex_digits_are_taken_in_a_client_id():
    taken = bytes(i for i in range(256) if protocol.is_id(bytes([i]) + ID[1:]))
    assert taken == b"0123456789ABCDEFabcdef"
    assert bytes(i for i in range(256) if protocol.is_id(ID[:8] + bytes([i]) + ID[9:])) == b"-"


@pytest.mark.parametrize("message", [
    b"", b",", b"INIT", b"INIT,", b"INIT,%b" % ID, b"INIT,%b,5" % ID, b"INIT,%b,5,5,5" % ID, b"INIT,%b,5,5," % ID,
    b"init,%b,5,5" % ID, b" INIT,%b,5,5" % ID, b"\nFIN", b"FIN\n", b"FIN,", b"FIN,1", b"fin", b"RECV", b"recv,0", b"CONT",
    b"CONT,%b," % ID, b"ACK", b"NUM,1", b"NOPE", b"\xff\xfe", b"\0"])
def test_a_request_that_is_none_is_refused(message):
    with pytest.raises(ProtocolError):
        protocol.parse_request(message)


@pytest.mark.parametrize("message", [
    b"", b",", b"ACK,", b"ACK,1", b"ack", b"NUM", b"NUM,", b"FAC", b"FAC,", b"FAC," + CHECKSUM.encode()[:-1],
    b"FAC," + CHECKSUM.encode() + b"0", b"FAC," + CHECKSUM.upper().encode(), b"FAC," + b" " * 32, b"FAC," + b"g" * 32,
    b"FAC,a" + b"g" * 30 + b"a", b"FIN", b"RECV,0", b"\nACK", b"NOPE", b"\xff\xfe", b"\0"])
def test_a_reply_that_is_none_is_refused(message):
    with pytest.raises(ProtocolError):
        protocol.parse_reply(message)


# ---- how long a message may be


def test_the_longest_request_is_taken_and_is_the_longest():
    longest = b"INIT,%b,65535,65535;" % ID
    assert len(longest) == protocol.LONGEST_REQUEST
    assert split_requests(longest) == ([(b"INIT", (ID, 65535, 65535))], b"")


def test_the_longest_reply_is_taken_and_is_the_longest():
    longest = b"NUM," + b":".join([b"100"] * 65535) + b";"
    assert len(longest) == protocol.LONGEST_REPLY
    assert split_replies(longest) == ([(b"NUM", b"\x64" * 65535)], b"")


@pytest.mark.parametrize("longest", [protocol.LONGEST_REQUEST, protocol.LONGEST_REPLY])
@pytest.mark.parametrize("before", [b"", b"FIN;" * 3])
def test_a_message_a_byte_too_long_is_refused_before_its_end_is_there(longest, before):
    start = len(before)
    data = before + b"R" * (longest - 1)
    assert protocol.find_end(data, start, longest) == -1
    assert protocol.find_end(data + b";", start, longest) == start + longest - 1
    for too_long in (data + b"R", data + b"R;", data + b"R" * 100 + b";"):
        with pytest.raises(ProtocolError):
            protocol.find_end(too_long, start, longest)


def test_an_end_is_found_wherever_the_search_goes_on():
    data = b"FIN;RECV,12;"
    for searched in range(11):
        assert protocol.find_end(data, 4, 54, searched) == 11
    assert protocol.find_end(data[:-1], 4, 54, 8) == -1


@pytest.mark.parametrize("parse, message", [
    (protocol.parse_request, b"RECV,%b"), (protocol.parse_request, b"INIT,%b,%%b,5" % ID),
    (protocol.parse_request, b"INIT,%b,5,%%b" % ID), (protocol.parse_reply, b"NUM,%b")])
@pytest.mark.parametrize("digit", [b"0", b"9"])
def test_a_number_of_more_digits_than_python_converts_is_refused_like_any_other(parse, message, digit):
    with pytest.raises(ProtocolError):
        parse(message % (digit * 5000))


@pytest.mark.parametrize("digit", [b"0", b"9"])
@pytest.mark.parametrize("length", [49, 60, 5000])
def test_a_message_that_is_too_long_is_left_to_the_plain_path_which_refuses_it(digit, length):
    assert protocol.answer_receives(b"RECV,0;RECV,%b;" % (digit * length), b"\1" * 10, 5, 1000) is None
    assert isinstance(split_requests(b"RECV,%b;" % (digit * length))[0][0], ProtocolError)


# ---- totality: a parse or a ProtocolError, and nothing else


def mutations(seed, messages, count):
    """Runs of messages with some bytes changed, dropped, doubled or cut off, and runs of bytes of any kind."""
    generator = random.Random(seed)
    alphabet = b";,:-0123456789INITCONTRECVFNUMAKE\0\t\n \xff\xd9\xa5"
    for _ in range(count):
        data = bytearray(b"".join(generator.choice(messages)[0] for _ in range(generator.randint(0, 4))))
        for _ in range(generator.choice([0, 1, 1, 2, 8])):
            place = generator.randint(0, len(data))
            byte = generator.choice([generator.choice(alphabet), generator.randrange(256)])
            length = generator.choice([0, 1, 1, 5])
            data[place:place + length] = generator.choice([b"", bytes([byte]), bytes([byte]) * 2, bytes(data[:place])])
        yield bytes(data[:generator.choice([len(data), generator.randint(0, len(data))])])
        yield bytes(generator.choice(alphabet) for _ in range(generator.randint(0, 80)))
        yield bytes(generator.randrange(256) for _ in range(generator.randint(0, 80)))


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
    (protocol.LONGEST_REQUEST, protocol.parse_request, REQUESTS), (protocol.LONGEST_REPLY, protocol.parse_reply, REPLIES)])
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


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("seed", range(2))
def test_the_fast_paths_raise_nothing_whatever_the_bytes(kind, seed):
    numbers = bytes(range(50))
    for data in mutations(seed, REQUESTS + REPLIES, 250):
        for prefix in (b"", b"RECV,", b"NUM,"):
            protocol.answer_receives(kind(prefix + data), numbers, 5, 100)
            protocol.split_numbers(kind(prefix + data), 2, 100)


# ---- a server's fast path


def numbers_of(seed, n):
    generator = random.Random(seed)
    return bytes(generator.choice([0, 9, 10, 99, 100, generator.randint(0, 100)]) for _ in range(n))


def batches_of(numbers, batch):
    return [numbers[i:i + batch] for i in range(0, len(numbers), batch)]


def text_of(numbers):
    return b"NUM," + b":".join(b"%d" % number for number in numbers) + b";"


def plain_answers(data, batches, most):
    """(answers, bytes taken) of the RECVs of batches that data begins with, at most `most`, one by one."""
    answers, position = [], 0
    while len(answers) < most:
        try:
            end = protocol.find_end(data, position, protocol.LONGEST_REQUEST)
            kind, index = protocol.parse_request(bytes(data[position:end])) if end >= 0 else (None, None)
        except ProtocolError:
            break
        if kind != b"RECV" or index >= len(batches):
            break
        answers.append(text_of(batches[index]))
        position = end + 1
    return b"".join(answers), position


AROUND_BULK = [digits.BULK - 1, digits.BULK, digits.BULK + 1]


@pytest.mark.parametrize("n", [1, 2, 5, *AROUND_BULK, 100, 1000])
def test_a_batch_is_written_as_the_wire_has_it_however_long_it_is(n):
    for seed in range(5):
        assert protocol.encode_batch(numbers_of(seed, n)) == text_of(numbers_of(seed, n))


@pytest.mark.parametrize("batch", [1, 2, 5, *AROUND_BULK, 300])
@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_batches_are_written_as_one_by_one(batch, count):
    batches = batches_of(numbers_of(batch, batch * count), batch)
    marked = b"".join(digits.MARK + each for each in batches)
    assert protocol.encode_batches(marked, batch) == b"".join(map(text_of, batches))


def test_the_longest_batch_is_the_longest_message():
    numbers = b"\x64" * 65535
    assert protocol.encode_batch(numbers) == text_of(numbers)
    assert len(text_of(numbers)) == protocol.LONGEST_REPLY
    assert protocol.answer_receives(b"RECV,0;", numbers, 65535, 10) == (text_of(numbers), 7)


OTHERS = [b"FIN;", b"CONT,%b;" % ID, b"INIT,%b,5,5;" % ID, b"RECV,;", b"RECV;", b"RECV,-1;", b"RECV,+1;", b"RECV, 1;",
          b"RECV,1_0;", b"RECV,%b;" % ARABIC_FIVE, b"RECV,1,1;", b";", b"RECV", b"\0", b"recv,1;", b"RECV,65535;",
          b"RECV,65536;", b"RECV,99999999999999999999;", b"RECV,1\n;", b"RECV,RECV,1;", b"RECV,1;;",
          b"RECV,\t1;", b"RECV,1\t;", b"RECV,\t;", b"RECV,1,;", b"RECV,,1;", b"RECV1,;", b"1RECV,;", b"RE1CV,2;", b"VCER,1;",
          b"RECV,1V;", b"RRECV,1;", b"RECV,R1;", b"ECV,1;RR", b"RECV,1;RECV,", b"RECV,1RECV,2;;", b"RECV,0000001;"]


def runs_of_requests(generator, count):
    """Requests as clients send them, and as they do not: (bytes, whether all are RECVs of full batches and whole)."""
    indices = [generator.randrange(count) if count else 0 for _ in range(generator.choice([1, 2, 5, 40]))]
    pieces = [b"RECV,%d;" % index for index in indices]
    yield b"".join(pieces), count > 0
    first = generator.randint(0, max(count - len(pieces), 0))
    in_order = [b"RECV,%d;" % index for index in range(first, min(first + len(pieces), count))]
    yield b"".join(in_order), bool(in_order)
    shuffled = in_order[1:-1]  # it begins and ends as if it were in order
    generator.shuffle(shuffled)
    yield b"".join(in_order[:1] + shuffled + in_order[1:][-1:]), bool(in_order)
    aliases = list(pieces)
    aliases[generator.randrange(len(aliases))] = b"RECV,00%d;" % indices[0]
    yield b"".join(aliases), count > 0
    too_long = list(pieces)
    too_long[generator.randrange(len(too_long))] = b"RECV,%b%d;" % (b"0" * generator.choice([48, 49, 5000]), indices[0])
    yield b"".join(too_long), False
    beyond = list(pieces)
    beyond[generator.randrange(len(beyond))] = b"RECV,%d;" % (count + generator.choice([0, 0, 1, 2, 100]))
    yield b"".join(beyond), False
    mixed = list(pieces)
    mixed.insert(generator.randint(0, len(mixed)), generator.choice(OTHERS))
    yield b"".join(mixed), False
    whole = b"".join(pieces)
    yield whole[:generator.randint(0, len(whole))], False
    yield whole + b"RECV,%d;"[:generator.randint(1, 6)], False


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("seed", range(12))
def test_a_run_of_requests_is_answered_as_one_by_one(kind, seed):
    generator = random.Random(seed)
    taken_fast = 0
    for _ in range(40):
        n = generator.choice([0, 1, 2, 10, 64, 300, 300])
        batch = generator.choice([1, 2, 5, 5, *AROUND_BULK, 299, 300, 65535])
        numbers = numbers_of(generator.random(), n)
        batches = batches_of(numbers, batch)
        for count in {len(batches), n // batch}:  # with the short one at the end, and without
            for data, whole in runs_of_requests(generator, count):
                most = generator.choice([1, 2, 5, 39, 40, 41, 1000])
                answered = protocol.answer_receives(kind(data), numbers, batch, most)
                # At most so many that it need not count them: what has the bytes of the shortest.
                expected = data[:most * len(b"RECV,0;")].count(b";")
                if answered is not None:
                    taken_fast += 1
                    assert answered == plain_answers(data, batches, expected or 1)
                elif expected:
                    assert not whole or count > n // batch, "a run of nothing but full batches was left to the slow path"
    assert taken_fast > 40


@pytest.mark.parametrize("data", [b"", b"RECV,", b"RECV,1", b"FIN;", b"RECV;", b"ECV,1;", b";RECV,1;", b"CONT,%b;" % ID])
def test_what_does_not_begin_with_a_whole_recv_is_left_to_the_plain_path(data):
    assert protocol.answer_receives(data, b"\1" * 10, 5, 10) is None


@pytest.mark.parametrize("most", [2, 10, protocol.RUN_MOST, protocol.RUN_MOST + 1])
def test_a_run_of_more_requests_than_asked_for_is_answered(most):
    numbers = numbers_of(7, 100)
    data = b"RECV,3;" * 3000
    answered = protocol.answer_receives(data, numbers, 5, most)
    if most <= protocol.RUN_MOST:
        assert answered == plain_answers(data, batches_of(numbers, 5), most)
    else:  # it is the caller's to ask for no more
        assert answered is None


@pytest.mark.parametrize("others", [0, 2, 60])
def test_other_ways_to_write_an_index_are_answered_as_the_plain_path_does(others):
    """Up to the longest; what is longer is left to the plain path, which refuses it, however many short ones hide it."""
    numbers = numbers_of(5, 10)
    batches = batches_of(numbers, 5)
    before = b"RECV,1;" * others
    fast = 0
    for zeros in range(1, protocol.LONGEST_INDEX + 3):
        data = before + b"RECV,%b1;" % (b"0" * zeros)
        answered = protocol.answer_receives(data, numbers, 5, 1000)
        fast += answered is not None
        if zeros < protocol.LONGEST_INDEX:
            assert answered in (None, plain_answers(data, batches, 1000))
        else:
            assert answered is None
            assert isinstance(split_requests(data)[0][-1], ProtocolError)
    assert fast >= 3  # 007 and its like, which cost nothing to understand


# ---- a client's fast path


def plain_numbers(data, batch, most):
    """(numbers, bytes taken) of the NUMs of full batches that data begins with, at most `most`, one by one."""
    numbers, position = b"", 0
    for _ in range(most):
        try:
            end = protocol.find_end(data, position, protocol.LONGEST_REPLY)
            kind, content = protocol.parse_reply(bytes(data[position:end])) if end >= 0 else (None, None)
        except ProtocolError:
            break
        if kind != b"NUM" or len(content) != batch:
            break
        numbers += content
        position = end + 1
    return numbers, position


OTHER_REPLIES = [b"ACK;", b"FAC,%b;" % CHECKSUM.encode(), b"ERR,x;", b"NUM,;", b"NUM;", b"NUM,101;", b"NUM,-1;", b"NUM,1_0;",
                 b"NUM, 5;", b"NUM,007;", b"NUM,%b;" % ARABIC_FIVE, b";", b"NUM", b"\0", b"NUM,1:;", b"NUM,:1;", b"NUM,1;;",
                 b"NUM,NUM,1;", b"NUM,1::1;"]


def runs_of_replies(generator, batch):
    count = generator.choice([1, 2, 5, 40])
    pieces = [text_of(numbers_of(generator.random(), batch)) for _ in range(count)]
    whole = b"".join(pieces)
    yield whole, True
    short = list(pieces)
    short[generator.randrange(count)] = text_of(numbers_of(7, generator.choice([max(1, batch - 1), batch + 1])))
    yield b"".join(short), False
    swapped = list(pieces)
    swapped[generator.randrange(count)] = text_of(b"\1" * (batch + 1))
    swapped.append(text_of(b"\1" * max(1, batch - 1)))  # as many numbers in all
    yield b"".join(swapped), False
    mixed = list(pieces)
    mixed.insert(generator.randint(0, count), generator.choice(OTHER_REPLIES))
    yield b"".join(mixed), False
    yield whole[:generator.randint(0, len(whole))], False
    yield whole + pieces[0][:generator.randint(1, len(pieces[0]) - 1)], False


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("seed", range(12))
def test_a_run_of_batches_is_read_as_one_by_one(kind, seed):
    generator = random.Random(seed)
    taken_fast = 0
    for _ in range(25):
        batch = generator.choice([1, 2, 3, 5, 17])
        for data, whole in runs_of_replies(generator, batch):
            most = generator.choice([1, 2, 5, 39, 40, 41, 1000])
            plain = plain_numbers(data, batch, most)
            run = protocol.split_numbers(kind(data), batch, most)
            if run is not None:
                taken_fast += 1
                assert run == plain
            else:
                assert not whole, "a run of nothing but full batches was left to the slow path"
    assert taken_fast > 30


@pytest.mark.parametrize("data", [b"", b"NUM,", b"NUM,1", b"ACK;", b"NUM;", b"UM,1;", b";NUM,1;"])
def test_what_does_not_begin_with_a_whole_batch_is_left_to_the_plain_path(data):
    assert protocol.split_numbers(data, 1, 10) is None


def test_what_server_and_client_do_fast_fits_together():
    numbers = numbers_of(6, 1000)
    requests = protocol.encode_receives(0, 100)
    answers, taken = protocol.answer_receives(requests, numbers, 10, protocol.RUN_MOST)
    assert taken == len(requests)
    assert protocol.split_numbers(answers, 10, 100) == (numbers, len(answers))


# ---- what may be shown


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_nothing_that_moves_a_cursor_is_shown(kind):
    text = protocol.printable(kind(range(256)))
    assert len(text) == 256
    assert all(" " <= character <= "~" for character in text)
    assert text[32:127] == bytes(range(32, 127)).decode()


def test_an_error_of_a_hostile_server_cannot_write_to_the_terminal():
    kind, text = protocol.parse_reply(b"ERR,\x1b[2J\r\n\x9b\x00ok\xff")
    assert kind == b"ERR" and text.endswith("ok?")
    assert all(" " <= character <= "~" for character in text)
