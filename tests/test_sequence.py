"""The sequence: its numbers, and its checksum whichever way md5 is had."""

import hashlib
import importlib.util
import random
import sys

import pytest

from helpers import run_python

from numseq import sequence

CLIENT_ID = "123e4567-e89b-12d3-a456-426614174000"
ROUND = sequence.DRAW_WORDS * 202 // 256  # about as many numbers as come of one round of drawing

# Of the protocol's description: n, sum, checksum.
FIGURES = [
    (5, 264, "f90b20dae8c9b7d7be2a5fb7cc856e8b"),
    (10, 531, "9b14501c5359fb4eac96df9e874348b2"),
    (10000, 504721, "589f9ca74cb5ea9a32eddd14840d5b64"),
]


SEEDS = [b"", b"\0", b"\0" * 16, b"\xff" * 16, bytes(range(16)), CLIENT_ID.encode()]  # unpredictable ones are bytes


def with_randint(seed, n):
    draw = random.Random(seed).randint
    return [draw(0, 100) for _ in range(n)]


def with_shake(seed, n):
    """Each byte of SHAKE128 under 202, halved."""
    return [byte // 2 for byte in hashlib.shake_128(seed).digest(2 * n + 1000) if byte < 202][:n]


def md5_of_list(numbers):
    return hashlib.new("md5", str(list(numbers)).encode()).hexdigest()


# ---- numbers


@pytest.mark.parametrize("seed", ["", "x", "7", CLIENT_ID, CLIENT_ID.upper(), "ffffffff-ffff-ffff-ffff-ffffffffffff"])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 10, 100, ROUND - 60, ROUND, ROUND + 60, 2 * ROUND, 3333])
def test_text_seed_gives_the_numbers_that_randint_draws(seed, n):
    numbers = sequence.draw(seed, n)
    assert list(numbers) == with_randint(seed, n)
    assert type(numbers) is bytes


def test_numbers_equal_randint_up_to_the_longest_sequence():
    assert list(sequence.draw(CLIENT_ID, 65535)) == with_randint(CLIENT_ID, 65535)


@pytest.mark.parametrize("seed", SEEDS, ids=repr)
@pytest.mark.parametrize("n", [0, 1, 2, 5, 10, 63, 64, 100, 1000, 65535])
def test_bytes_seed_gives_the_numbers_of_its_hash_stream(seed, n):
    """Whoever keeps a seed, in another process or on another machine, gets the same sequence from it."""
    numbers = sequence.draw(seed, n)
    assert list(numbers) == with_shake(seed, n)
    assert type(numbers) is bytes


@pytest.mark.parametrize("seed", [CLIENT_ID] + SEEDS, ids=repr)
def test_every_small_count_is_a_prefix_of_the_same_sequence(seed):
    longest = sequence.draw(seed, 400)
    for n in range(400):
        assert sequence.draw(seed, n) == longest[:n]


def test_hash_stream_with_few_numbers_at_first_is_read_further():
    """Of all seeds, some give too few numbers at first: their sequences must not be short, or differ."""
    for i in range(3000):
        seed = b"%d" % i
        assert list(sequence.draw(seed, 40)) == with_shake(seed, 40)


@pytest.mark.parametrize("seed", [CLIENT_ID, b"\0" * 16])
def test_every_number_from_0_to_100_comes_up_about_equally_often(seed):
    numbers = sequence.draw(seed, 65535)
    counts = [numbers.count(number) for number in range(101)]
    assert sum(counts) == 65535
    assert 500 < min(counts) and max(counts) < 800  # 649 on average; 25 is a standard deviation


def test_upper_and_lower_case_of_an_id_are_different_seeds():
    assert sequence.draw(CLIENT_ID, 20) != sequence.draw(CLIENT_ID.upper(), 20)


def test_drawing_leaves_the_global_generator_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    for seed in (CLIENT_ID, sequence.unpredictable_seed()):
        sequence.draw(seed, 1000)
    assert random.random() == expected


def test_unpredictable_seeds_are_wide_and_not_repeated():
    seeds = {sequence.unpredictable_seed() for _ in range(1000)}
    assert len(seeds) == 1000
    assert {len(seed) for seed in seeds} == {sequence.SEED_BYTES}
    assert sequence.SEED_BYTES >= 16


def test_seed_does_not_follow_from_the_state_of_the_random_module():
    random.seed(5)
    first = sequence.unpredictable_seed()
    random.seed(5)
    assert sequence.unpredictable_seed() != first


# ---- checksum


@pytest.mark.parametrize("n, total, checksum", FIGURES)
def test_sum_and_checksum_are_those_of_the_transcripts(n, total, checksum):
    numbers = sequence.draw(CLIENT_ID, n)
    assert (sum(numbers), sequence.checksum(numbers)) == (total, checksum)


@pytest.mark.parametrize("first, numbers", [
    (0, [6, 41, 81, 68, 68]), (5, [41, 10, 40, 78, 98]), (5 * 630, [54, 94, 94, 19, 96]), (9995, [40, 53, 59, 98, 3])])
def test_batches_are_those_of_the_transcripts(first, numbers):
    assert list(sequence.draw(CLIENT_ID, 10000)[first:first + 5]) == numbers


@pytest.mark.parametrize("numbers", [
    b"", b"\0", b"\x64", bytes([6, 41, 81]), bytes(range(101)), b"\0" * 1000, b"\x64" * 1000,
    sequence.draw("3", 65535)], ids=lambda numbers: "%d numbers" % len(numbers))
def test_checksum_is_the_md5_of_the_text_of_the_list(numbers):
    assert sequence.checksum(numbers) == md5_of_list(numbers)


def test_checksum_does_not_depend_on_how_the_list_is_written():
    """A few numbers and many are written in different ways."""
    for n in range(140):
        numbers = sequence.draw(str(n), n)
        assert sequence.checksum(numbers) == md5_of_list(numbers)


def test_every_small_change_changes_the_checksum():
    numbers = sequence.draw(CLIENT_ID, 50)
    changed = {sequence.checksum(numbers[:i] + bytes([(numbers[i] + 1) % 101]) + numbers[i + 1:]) for i in range(50)}
    changed |= {sequence.checksum(numbers), sequence.checksum(numbers[:-1]), sequence.checksum(numbers[::-1])}
    assert len(changed) == 53


# ---- where the hashes come from

OWN = ["_md5", "_sha3"]  # the interpreter's, without OpenSSL
NAMES = ["md5", "shake_128"]
REAL = {name: getattr(hashlib, name) for name in NAMES}


def plain(name):
    return REAL[name]


def under_fips(name):
    def function(data=b"", usedforsecurity=True):
        if usedforsecurity:
            raise ValueError("[digital envelope routines] unsupported")
        return REAL[name](data)

    return function


def before_the_keyword(name):
    return lambda data=b"": REAL[name](data)


def load_again():
    """The module as it is when it is loaded for the first time."""
    spec = importlib.util.spec_from_file_location("numseq.sequence_again", sequence.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("hashes", [plain, under_fips, before_the_keyword])
@pytest.mark.parametrize("missing", [["_md5"], ["_sha3"], OWN], ids=repr)
def test_hashlib_is_used_where_the_builtin_hashes_are_missing(monkeypatch, missing, hashes):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    for name in NAMES:
        monkeypatch.setattr(hashlib, name, hashes(name))
    again = load_again()
    for n, _, checksum in FIGURES:
        assert again.checksum(again.draw(CLIENT_ID, n)) == checksum
    monkeypatch.undo()
    for seed in SEEDS:
        assert list(again.draw(seed, 100)) == with_shake(seed, 100)


def test_hashlib_is_not_used_where_the_builtin_hashes_are_present(monkeypatch):
    for name in OWN:
        pytest.importorskip(name)

    def refuse(*arguments, **keywords):
        raise AssertionError("hashlib was asked")

    for name in NAMES:
        monkeypatch.setattr(hashlib, name, refuse)
    again = load_again()
    assert again.checksum(again.draw(CLIENT_ID, 5)) == FIGURES[0][2]
    assert len(again.draw(b"seed", 5)) == 5


def test_loading_the_sequence_does_not_load_openssl():
    for name in OWN:
        pytest.importorskip(name)
    loaded = run_python("import random, sys\n"
                        "before = '_hashlib' in sys.modules\n"  # older versions load it with random
                        "import numseq.sequence\n"
                        "print(before or '_hashlib' not in sys.modules)")
    assert loaded == "True\n"
