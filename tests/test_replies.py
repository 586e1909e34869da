"""The NUMs of a sequence: the same whether encoded at each request or kept, and in bounded memory."""

import random

import pytest

from messages import batches_of, numbers_of, text_of
from numseq import digits, replies
from numseq.replies import GROUP, KEPT_BATCH_MOST, KEPT_LEAST, KEPT_MOST, KEPT_NUMBERS_MOST, LONG_RUN
from numseq.replies import KeptReplies, Replies, kept_bytes
from numseq.sequence import Numbers

SEED = b"0123456789abcdef"
AROUND_BULK = [digits.BULK - 1, digits.BULK, digits.BULK + 1]


@pytest.fixture(params=["encoded each time", "kept"])
def make_replies(request):
    """make_replies(n, batch) returns the Replies of a sequence, of either kind, and the NUMs they have."""

    def make(n, batch):
        texts = [text_of(each) for each in batches_of(Numbers(SEED, n).slice(0, n), batch)][:n // batch]
        numbers = Numbers(SEED, n)
        if request.param == "kept":
            return KeptReplies(numbers, batch, n // batch), texts
        return Replies(numbers, batch), texts

    return make


@pytest.mark.parametrize("batch", [1, 2, 5, *AROUND_BULK, 300])
@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_batches_are_written_as_they_are_one_by_one(batch, count):
    batches = batches_of(numbers_of(batch, batch * count), batch)
    assert replies.encode_batches(b"".join(batches), batch) == b"".join(map(text_of, batches))


@pytest.mark.parametrize("n, batch", [
    (80, 5), (83, 5), (1000, 5), (1024, 1), (5003, 5), (8192, 8), (8191, 32), (512, 31)])
@pytest.mark.parametrize("seed", range(3))
def test_each_batch_is_the_same_alone_and_in_runs_of_any_length(make_replies, n, batch, seed):
    made, texts = make_replies(n, batch)
    draw = random.Random(seed)
    for _ in range(100):
        index = draw.randrange(len(texts))
        assert made.one(index) == texts[index]
        some = [draw.randrange(len(texts)) for _ in range(draw.choice([1, 2, 5, 30, 300]))]
        assert made.many([each * made.scale for each in some]) == b"".join(texts[each] for each in some)


@pytest.mark.parametrize("n, batch", [(80, 5), (83, 5), (1000, 999)])
@pytest.mark.parametrize("beyond", [0, 1, 1000])
def test_short_batch_and_one_past_the_end_are_left_to_others(make_replies, n, batch, beyond):
    made, texts = make_replies(n, batch)
    index = len(texts) + beyond
    assert made.one(index) is None
    for run in (0, index), (index,), (0,) * LONG_RUN + (index,):
        assert made.many([each * made.scale for each in run]) is None


@pytest.fixture
def encoded(monkeypatch):
    """The numbers of batches (list of int) that were encoded together, in the order of the calls."""
    counts = []

    def encode(numbers, batch, encode=replies.encode_batches):
        counts.append(len(numbers) // batch)
        return encode(numbers, batch)

    monkeypatch.setattr(replies, "encode_batches", encode)
    return counts


@pytest.mark.parametrize("length", [1, 2, 25])
def test_batch_is_encoded_once_and_with_its_neighbours(encoded, length):
    made = KeptReplies(Numbers(SEED, 5000), 5, 1000)
    for _ in range(2):
        for first in range(0, 1000, length):
            if length == 1:
                made.one(first)
            else:
                made.many([index * made.scale for index in range(first, first + length)])
    assert sum(encoded) == 1000
    assert len(encoded) == -(-1000 // (GROUP // 5))


def test_long_runs_are_kept_only_once_batches_are_requested_again(encoded):
    made = KeptReplies(Numbers(SEED, 5000), 5, 1000)
    runs = [range(first, first + 100) for first in range(0, 1000, 100)]
    for run in runs:
        made.many([index * made.scale for index in run])
    assert encoded == [100] * 10
    del encoded[:]
    for run in runs * 5:
        made.many([index * made.scale for index in run])
    assert sum(encoded) == 1000


def test_scattered_run_is_encoded_in_one_go(encoded):
    made = KeptReplies(Numbers(SEED, 5000), 5, 1000)
    made.many([index * made.scale for index in (3, 996, 500)])
    made.many([index * made.scale for index in (7, 300, 999)])
    assert encoded == [1000]


@pytest.mark.parametrize("n, batch", [(KEPT_NUMBERS_MOST, KEPT_BATCH_MOST), (KEPT_MOST, 1), (5000, 5),
                                      (1000, 5), (KEPT_LEAST * 5, 5)])
def test_kept_replies_take_no_more_than_is_counted_for_them(traced, n, batch):
    numbers = Numbers(SEED, n)
    numbers.slice(0, n)
    grown = traced()
    made = KeptReplies(numbers, batch, n // batch)
    for index in range(n // batch):
        made.one(index)
    assert n // batch * 33 < grown() <= kept_bytes(n, batch) + 1024  # the list and the object themselves


@pytest.mark.parametrize("n, batch", [(KEPT_LEAST * 5, 5), (KEPT_MOST * 5, 5), (KEPT_NUMBERS_MOST, 32)])
def test_replies_of_usual_sequences_are_kept(n, batch):
    assert n < kept_bytes(n, batch) < 100 * n


@pytest.mark.parametrize("n, batch", [(0, 1), (5, 5), (KEPT_LEAST * 5 - 1, 5), ((KEPT_MOST + 1) * 5, 5),
                                      (KEPT_NUMBERS_MOST + 1, 32), (5000, KEPT_BATCH_MOST + 1), (65535, 5),
                                      (65535, 65535)])
def test_replies_of_few_very_many_or_large_batches_are_not_kept(n, batch):
    assert kept_bytes(n, batch) == 0
