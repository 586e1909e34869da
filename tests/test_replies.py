"""The NUMs of a sequence: the same whether encoded at each request or kept, and in bounded memory."""

import random

import pytest

from messages import batches_of, numbers_of, text_of
from numseq import digits, replies
from numseq.replies import GROUP, KEPT_LEAST, KEPT_MOST, KEPT_NUMBERS_MOST, KeptReplies, Replies, kept_bytes
from numseq.sequence import Numbers

SEED = b"0123456789abcdef"
AROUND_BULK = [digits.BULK - 1, digits.BULK, digits.BULK + 1]


@pytest.fixture(params=["encoded each time", "kept"])
def make_replies(request):
    """make_replies(n, batch) returns the Replies of a sequence, of either kind, and the NUMs they have."""

    def make(n, batch):
        numbers = Numbers(SEED, n)
        texts = [text_of(each) for each in batches_of(numbers.slice(0, n), batch)][:n // batch]
        if request.param == "kept":
            return KeptReplies(Numbers(SEED, n), batch, n // batch), texts
        return Replies(Numbers(SEED, n), batch), texts

    return make


@pytest.mark.parametrize("batch", [1, 2, 5, *AROUND_BULK, 300])
@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_batches_are_written_as_they_are_one_by_one(batch, count):
    batches = batches_of(numbers_of(batch, batch * count), batch)
    assert replies.encode_batches(b"".join(batches), batch) == b"".join(map(text_of, batches))


@pytest.mark.parametrize("n, batch", [
    (80, 5), (83, 5), (1000, 5), (1024, 1), (5003, 5), (8192, 8), (8192, GROUP), (8192, GROUP - 1),
    (7000, 400)])
def test_each_batch_is_the_same_alone_and_among_others(make_replies, n, batch):
    made, texts = make_replies(n, batch)
    indices = list(range(len(texts)))
    random.Random(n).shuffle(indices)
    for index in indices:
        reply = made.one(index)
        assert reply in (None, texts[index])
        assert made.many((index * made.scale,)) == texts[index]
        assert made.one(index) == texts[index]
    some = indices[:7] + indices[:3]
    assert made.many(tuple(index * made.scale for index in some)) == b"".join(texts[index] for index in some)


@pytest.mark.parametrize("n, batch", [(80, 5), (83, 5), (1000, 999)])
@pytest.mark.parametrize("beyond", [0, 1, 1000])
def test_short_batch_and_one_past_the_end_are_left_to_others(make_replies, n, batch, beyond):
    made, texts = make_replies(n, batch)
    index = len(texts) + beyond
    try:
        assert made.one(index) is None
    except IndexError:
        pass
    assert made.many((0, index * made.scale)) is None


def test_batch_and_its_neighbours_are_encoded_once(monkeypatch):
    made = KeptReplies(Numbers(SEED, 5000), 5, 1000)
    calls = []
    encode = replies.encode_batches
    monkeypatch.setattr(replies, "encode_batches", lambda *arguments: calls.append(1) or encode(*arguments))
    for index in range(1000):
        made.many((index,))
    assert len(calls) == -(-1000 // (GROUP // 5))


def test_kept_replies_take_no_more_than_is_counted_for_them(traced):
    for n, batch in [(KEPT_NUMBERS_MOST, 8), (KEPT_MOST, 1), (5000, 5), (1000, 5), (KEPT_NUMBERS_MOST, 512)]:
        numbers = Numbers(SEED, n)
        numbers.slice(0, n)
        grown = traced()
        made = KeptReplies(numbers, batch, n // batch)
        made.many(tuple(range(n // batch)))
        assert n // batch * 33 < grown() <= kept_bytes(n, batch) + 1024  # the list and the object themselves
        del made


@pytest.mark.parametrize("n, batch", [(0, 1), (5, 5), (KEPT_LEAST * 5 - 1, 5), ((KEPT_MOST + 1) * 5, 5),
                                      (KEPT_NUMBERS_MOST + 1, 100), (65535, 5), (65535, 65535)])
def test_replies_of_few_or_very_many_batches_are_not_kept(n, batch):
    assert kept_bytes(n, batch) == 0
