"""Numbers to and from decimal text, many at once."""

import itertools
import random

import pytest

from numseq import digits

ALL = bytes(range(101))


def pad(numbers, separator):
    place = digits.place(separator)
    return digits.pad(numbers, place, len(place))


@pytest.mark.parametrize("separator", [b"", b":", b", ", b"<->"])
@pytest.mark.parametrize("numbers", [b"", b"\0", b"\x64", b"\x09\x0a\x63\x64\0", ALL, ALL[::-1]], ids=repr)
def test_padded_text_is_the_decimal_text_of_each_number_and_a_separator(numbers, separator):
    padded = pad(numbers, separator)
    assert digits.unpad(padded) == b"".join(b"%d%b" % (number, separator) for number in numbers)


def test_text_is_each_number_with_its_separators_for_any_count():
    write = digits.writer(b"<", b", ", b">")
    for count in range(len(ALL) + 1):
        numbers = ALL[len(ALL) - count:]
        assert write(numbers) == b"<" + b", ".join(b"%d" % number for number in numbers) + b">"
    assert 1 < digits.BULK < len(ALL), "one of the two paths was not tried"


@pytest.mark.parametrize("separator", [b":", b", "])
def test_every_number_has_the_same_width_so_that_a_run_is_a_slice(separator):
    width = len(digits.place(separator))
    padded = pad(ALL, separator)
    assert len(padded) == width * len(ALL)
    for number in ALL:
        assert digits.unpad(padded[width * number:width * (number + 1)]) == b"%d%b" % (number, separator)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7, 100])
def test_separators_repeat_and_are_cut_where_the_numbers_end(count):
    numbers, separators = (ALL * 2)[:count], [b":", b":", b";"]
    padded = digits.pad(numbers, b"".join(map(digits.place, separators)), len(digits.place(b":")))
    assert digits.unpad(padded) == b"".join(
        b"%d%b" % (number, separators[i % 3]) for i, number in enumerate(numbers))


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_unpad_gives_back_the_type_it_was_given(kind):
    assert type(digits.unpad(kind(pad(ALL, b":")))) is kind


def read(texts, scale=1):
    """The result of `read` for the texts, after a look that `read_plainly` gives the same."""
    text = b"".join(digits.TAB + each for each in texts)
    result = digits.read(text, len(texts), scale)
    assert result == digits.read_plainly(text, len(texts), scale) or len(texts) > digits.RUN
    return result


@pytest.mark.parametrize("scale", [1, 5, 65535])
def test_every_number_up_to_the_limit_is_read_alone_and_among_others(scale):
    numbers = list(range(digits.READ_MOST + 1))
    random.Random(scale).shuffle(numbers)
    position = 0
    for count in itertools.cycle([1, 2, 3, 7, 300, digits.RUN]):
        some = numbers[position:position + count]
        if not some:
            break
        assert read([b"%d" % number for number in some], scale) == tuple(scale * number for number in some)
        position += count


def test_leading_zeros_are_read_while_the_number_fits():
    assert read([b"0000012", b"00", b"0065535", b"7"]) == (12, 0, 65535, 7)


@pytest.mark.parametrize("text", [b"", b"65536", b"70000", b"99999", b"131072", b"9999999", b"00000001",
                                  b"12345678", b"1234567890123456", b"1_0", b" 5", b"5 ", b"5\n", b"\r5",
                                  b"+5", b"-1", b"1.0", b"a", b"F", b"0x1",
                                  b"\t", b"1\t", b"1\t2", b"\t\t", "\u0665".encode(),
                                  "\u00b2".encode("latin-1"), b"\0", b"5\0"])
def test_invalid_number_is_not_read_at_any_place(text):
    for texts in ([text], [b"5", text], [text, b"5"], [b"5"] * 9 + [text] + [b"5"] * 9):
        assert read(texts) is None


def test_more_numbers_than_lanes_are_not_read():
    assert read([b"5"] * digits.RUN) == (5,) * digits.RUN
    assert read([b"5"] * (digits.RUN + 1)) is None


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_count_is_not_read(count):
    assert digits.read(b"\t1\t2", count, 1) is digits.read_plainly(b"\t1\t2", count, 1) is None


def test_text_before_the_first_tab_is_not_read():
    assert digits.read(b"1\t2", 1, 1) is digits.read(b"1\t2", 2, 1) is None


def test_every_number_is_parsed_from_its_text():
    assert digits.parse([b"%d" % number for number in ALL]) == ALL
    assert digits.parse([]) == b""


def test_only_0_to_99_are_parsed_of_all_texts_of_two_bytes():
    accepted = set()
    for length in range(3):
        for values in itertools.product(range(256), repeat=length):
            try:
                digits.parse([bytes(values)])
            except KeyError:
                continue
            accepted.add(bytes(values))
    assert accepted == {b"%d" % number for number in range(100)}


@pytest.mark.parametrize("text", [b"101", b"1000", b"007", b"00", b"1_0", b" 5", b"5 ", b"5\n", b"+5", b"-1",
                                  b"-0", b"1.0", b"1e1", b"0x1", "\u0665".encode(),
                                  "\u00b2".encode("latin-1"), b"100\0",
                                  b"\x005"])
def test_number_outside_0_to_100_is_refused_at_any_place(text):
    for texts in ([text], [b"5", text], [text, b"5"]):
        with pytest.raises(KeyError):
            digits.parse(texts)


@pytest.mark.parametrize("seed", range(20))
def test_padding_splitting_and_parsing_gives_back_the_numbers(seed):
    generator = random.Random(seed)
    numbers = bytes(generator.randint(0, 100) for _ in range(generator.randint(1, 2000)))
    text = bytes(digits.unpad(pad(numbers, b":")))
    assert digits.parse(text[:-1].split(b":")) == numbers
