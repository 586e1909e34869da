"""The fast paths for requests and replies in a row: the same result as message by message, or None."""

import random

import pytest

from messages import (ARABIC_FIVE, CHECKSUM, ID, REPLIES, REQUESTS, batches_of, mutations, numbers_of,
                      split_requests, text_of)
from numseq import digits, pipeline, protocol
from numseq.protocol import ProtocolError
from numseq.replies import KeptReplies, Replies


class Whole(bytes):
    """Numbers as Replies take them."""

    def slice(self, first, last):
        return bytes(self[first:last])

    def slices(self, places, size):
        return [self.slice(place, place + size) for place in places]


def replies_of(numbers, batch, kept=False):
    """The Replies of a client whose sequence these numbers are."""
    if kept:
        return KeptReplies(Whole(numbers), batch, len(numbers) // batch)
    return Replies(Whole(numbers), batch)


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("seed", range(2))
def test_fast_paths_raise_nothing_whatever_the_bytes(kind, seed):
    numbers = bytes(range(50))
    for data in mutations(seed, REQUESTS + REPLIES, 250):
        for prefix in (b"", b"RECV,", b"NUM,"):
            for kept in (False, True):
                replies = replies_of(numbers, 5, kept)
                pipeline.answer_receive(bytes(prefix + data), replies)
                pipeline.answer_receives(kind(prefix + data), replies, 100)
            pipeline.split_numbers(kind(prefix + data), 2, 100)


# ---- a server's fast path


def plain_answers(data, batches, most):
    """(answers, bytes taken, RECVs) of up to `most` RECVs at the beginning of data, one by one."""
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
    return b"".join(answers), position, len(answers)


AROUND_BULK = [digits.BULK - 1, digits.BULK, digits.BULK + 1]


def test_longest_batch_is_the_longest_message():
    numbers = b"\x64" * 65535
    assert protocol.encode_batch(numbers) == text_of(numbers)
    assert len(text_of(numbers)) == protocol.LONGEST_REPLY
    replies = replies_of(numbers, 65535)
    assert pipeline.answer_receives(b"RECV,0;", replies, 10) == (text_of(numbers), 7, 1)


OTHERS = [b"FIN;", b"CONT,%b;" % ID, b"INIT,%b,5,5;" % ID, b"RECV,;", b"RECV;", b"RECV,-1;", b"RECV,+1;",
          b"RECV, 1;", b"RECV,1_0;", b"RECV,%b;" % ARABIC_FIVE, b"RECV,1,1;", b";", b"RECV", b"\0",
          b"recv,1;", b"RECV,65535;", b"RECV,65536;", b"RECV,99999999999999999999;", b"RECV,1\n;",
          b"RECV,RECV,1;", b"RECV,1;;", b"RECV,\t1;", b"RECV,1\t;", b"RECV,\t;", b"RECV,1,;", b"RECV,,1;",
          b"RECV1,;", b"1RECV,;", b"RE1CV,2;", b"VCER,1;", b"RECV,1V;", b"RRECV,1;", b"RECV,R1;", b"ECV,1;RR",
          b"RECV,1;RECV,", b"RECV,1RECV,2;;", b"RECV,0000001;"]


def runs_of_requests(generator, count):
    """Usual and unusual requests: (bytes, whether all of them are complete RECVs of full batches)."""
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
    too_long[generator.randrange(len(too_long))] = b"RECV,%b%d;" % (b"0" * generator.choice([48, 49, 5000]),
                                                                    indices[0])
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


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("seed", range(12))
def test_run_of_requests_is_answered_as_they_are_one_by_one(kind, seed, kept):
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
                first = data[:data.find(b";") + 1]
                replies = replies_of(numbers, batch, kept)
                for single in (data, first, first):  # the second time, its index is remembered
                    reply = pipeline.answer_receive(single, replies)
                    if reply is not None:
                        assert (reply, len(single), 1) == plain_answers(single, batches, 1)
                    else:
                        assert kept or single.count(b";") != 1 or not whole or count > n // batch
                answered = pipeline.answer_receives(kind(data), replies, most)
                # At most as many as the bytes can hold of the shortest, so that it need not count them.
                expected = data[:most * len(b"RECV,0;")].count(b";")
                if answered is not None:
                    taken_fast += 1
                    assert answered == plain_answers(data, batches, expected or 1)
                    single, reply = first, pipeline.answer_receive(first, replies)  # now that it is encoded
                    assert (reply, len(single), 1) == plain_answers(single, batches, 1)
                elif expected:
                    assert not whole or count > n // batch, "a run of full batches was left to the slow path"
    assert taken_fast > 40


@pytest.mark.parametrize("data", [b"", b"RECV,", b"RECV,1", b"FIN;", b"RECV;", b"ECV,1;", b";RECV,1;",
                                  b"CONT,%b;" % ID])
def test_input_without_a_whole_recv_first_is_left_to_the_plain_path(data):
    assert pipeline.answer_receive(data, replies_of(b"\1" * 10, 5)) is None
    assert pipeline.answer_receives(data, replies_of(b"\1" * 10, 5), 10) is None


def test_indices_of_only_so_many_requests_are_remembered():
    replies = replies_of(b"\1" * 65535, 1)
    for index in range(2 * pipeline.REMEMBERED_MOST):
        assert pipeline.answer_receive(b"RECV,%d;" % index, replies) == b"NUM,1;"
    assert len(pipeline.remembered) == pipeline.REMEMBERED_MOST


@pytest.mark.parametrize("most", [2, 10, pipeline.RUN_MOST, pipeline.RUN_MOST + 1])
def test_run_of_more_requests_than_asked_for_is_answered(most):
    numbers = numbers_of(7, 100)
    data = b"RECV,3;" * 3000
    answered = pipeline.answer_receives(data, replies_of(numbers, 5), most)
    if most <= pipeline.RUN_MOST:
        assert answered == plain_answers(data, batches_of(numbers, 5), most)
    else:  # it is the caller's to ask for no more
        assert answered is None


@pytest.mark.parametrize("others", [0, 2, 60])
def test_unusual_indices_are_answered_as_by_the_plain_path(others):
    """Messages up to the longest are taken.

    A longer one is left to the plain path, even behind many short ones.
    """
    numbers = numbers_of(5, 10)
    batches = batches_of(numbers, 5)
    before = b"RECV,1;" * others
    fast = 0
    for zeros in range(1, protocol.LONGEST_INDEX + 3):
        data = before + b"RECV,%b1;" % (b"0" * zeros)
        answered = pipeline.answer_receives(data, replies_of(numbers, 5), 1000)
        fast += answered is not None
        if zeros < protocol.LONGEST_INDEX:
            assert answered in (None, plain_answers(data, batches, 1000))
        else:
            assert answered is None
            assert isinstance(split_requests(data)[0][-1], ProtocolError)
    assert fast >= 3  # 007 and its like, which cost nothing to understand


@pytest.mark.parametrize("digit", [b"0", b"9"])
@pytest.mark.parametrize("length", [49, 60, 5000])
def test_too_long_message_is_left_to_the_plain_path_and_refused(digit, length):
    too_long = b"RECV,%b;" % (digit * length)
    assert pipeline.answer_receives(b"RECV,0;" + too_long, replies_of(b"\1" * 10, 5), 1000) is None
    assert isinstance(split_requests(too_long)[0][0], ProtocolError)


# ---- a client's fast path


def plain_numbers(data, batch, most):
    """(numbers, bytes taken) of up to `most` NUMs of full batches at the beginning of data, one by one."""
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


OTHER_REPLIES = [b"ACK;", b"FAC,%b;" % CHECKSUM.encode(), b"ERR,x;", b"NUM,;", b"NUM;", b"NUM,101;",
                 b"NUM,-1;", b"NUM,1_0;", b"NUM, 5;", b"NUM,007;", b"NUM,%b;" % ARABIC_FIVE, b";", b"NUM",
                 b"\0", b"NUM,1:;", b"NUM,:1;", b"NUM,1;;", b"NUM,NUM,1;", b"NUM,1::1;"]


def runs_of_replies(generator, batch):
    count = generator.choice([1, 2, 5, 40])
    pieces = [text_of(numbers_of(generator.random(), batch)) for _ in range(count)]
    whole = b"".join(pieces)
    yield whole, True
    short = list(pieces)
    short[generator.randrange(count)] = text_of(numbers_of(7,
                                                           generator.choice([max(1, batch - 1), batch + 1])))
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
def test_run_of_batches_is_read_as_they_are_one_by_one(kind, seed):
    generator = random.Random(seed)
    taken_fast = 0
    for _ in range(25):
        batch = generator.choice([1, 2, 3, 5, 17])
        for data, whole in runs_of_replies(generator, batch):
            most = generator.choice([1, 2, 5, 39, 40, 41, 1000])
            plain = plain_numbers(data, batch, most)
            run = pipeline.split_numbers(kind(data), batch, most)
            if run is not None:
                taken_fast += 1
                assert run == plain
            else:
                assert not whole, "a run of full batches was left to the slow path"
    assert taken_fast > 30


@pytest.mark.parametrize("data", [b"", b"NUM,", b"NUM,1", b"ACK;", b"NUM;", b"UM,1;", b";NUM,1;"])
def test_input_without_a_whole_batch_first_is_left_to_the_plain_path(data):
    assert pipeline.split_numbers(data, 1, 10) is None


def test_fast_paths_of_server_and_client_fit_together():
    numbers = numbers_of(6, 1000)
    requests = protocol.encode_receives(0, 100)
    answers, taken, count = pipeline.answer_receives(requests, replies_of(numbers, 10), pipeline.RUN_MOST)
    assert (taken, count) == (len(requests), 100)
    assert pipeline.split_numbers(answers, 10, 100) == (numbers, len(answers))
