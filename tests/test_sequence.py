"""The sequence: its numbers, and its checksum whichever way md5 is had."""

import hashlib
import importlib.util
import random
import sys
import threading

import pytest

from helpers import run_python

from numseq import sequence

CLIENT_ID = "123e4567-e89b-12d3-a456-426614174000"
LONGEST = 65535
BLOCK, WHOLE_MOST = sequence.BLOCK, sequence.WHOLE_MOST

# (n, sum, checksum) from the protocol's description.
FIGURES = [
    (5, 264, "f90b20dae8c9b7d7be2a5fb7cc856e8b"),
    (10, 531, "9b14501c5359fb4eac96df9e874348b2"),
    (10000, 504721, "589f9ca74cb5ea9a32eddd14840d5b64"),
]

# md5 of the first numbers of the seed of 16 bytes, 0 to 15. If they change, DRAWING has to change.
DRAWING_2 = {5: "26026889bb5991f6d32dab539a5637ed", LONGEST: "3e7de89886d58c16444473b54fbf33af"}

SEEDS = [b"", b"\0", b"\0" * 16, b"\xff" * 16, bytes(range(16)), CLIENT_ID.encode()]


def with_randint(seed, n):
    draw = random.Random(seed).randint
    return [draw(0, 100) for _ in range(n)]


def with_shake(seed, n):
    """Block by block: bytes of SHAKE128 of the seed and the block's number that are under 202, halved."""
    numbers = []
    for block in range(-(-n // 256)):
        stream = hashlib.shake_128(seed + bytes([block >> 8, block & 255])).digest(512)
        numbers += [byte // 2 for byte in stream if byte < 202][:256]
    return numbers[:n]


def md5_of_list(numbers):
    return hashlib.new("md5", str(list(numbers)).encode()).hexdigest()


# ---- numbers


@pytest.mark.parametrize("seed", ["", "x", "7", CLIENT_ID, CLIENT_ID.upper()])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 100, 748, 808, 868, 1616, 3333])  # 1,024 words give about 808
def test_text_seed_gives_the_numbers_that_randint_draws(seed, n):
    numbers = sequence.draw(seed, 0, n)
    assert list(numbers) == with_randint(seed, n)
    assert type(numbers) is bytes


def test_numbers_equal_randint_up_to_the_longest_sequence():
    assert list(sequence.draw(CLIENT_ID, 0, LONGEST)) == with_randint(CLIENT_ID, LONGEST)


@pytest.mark.parametrize("seed", SEEDS, ids=repr)
@pytest.mark.parametrize("n", [0, 1, 5, 127, 128, 129, 255, 256, 257, 1000, 1024, 1025, LONGEST])
def test_bytes_seed_gives_blocks_of_their_own_hash_streams(seed, n):
    """Another process or machine draws the same sequence from the seed."""
    numbers = sequence.draw(seed, 0, n)
    assert list(numbers) == with_shake(seed, n)
    assert type(numbers) is bytes


@pytest.mark.parametrize("n", sorted(DRAWING_2))
def test_numbers_of_a_drawing_version_never_change(n):
    assert sequence.DRAWING == 2
    assert hashlib.new("md5", sequence.draw(bytes(range(16)), 0, n)).hexdigest() == DRAWING_2[n]


@pytest.mark.parametrize("seed", [CLIENT_ID] + SEEDS, ids=repr)
@pytest.mark.parametrize("first", [0, 1, 5, 251, 255, 256, 257, 1024, 5000])
@pytest.mark.parametrize("size", [0, 1, 5, 256, 257, 3000])
def test_any_part_equals_that_part_of_the_whole_sequence(seed, first, size):
    whole = sequence.draw(seed, 0, 8000)
    assert sequence.draw(seed, first, first + size) == whole[first:first + size]


@pytest.mark.parametrize("seed", [CLIENT_ID] + SEEDS, ids=repr)
def test_every_small_count_is_a_prefix_of_the_same_sequence(seed):
    longest = sequence.draw(seed, 0, 400)
    for n in range(400):
        assert sequence.draw(seed, 0, n) == longest[:n]


def test_block_whose_first_bytes_give_too_few_numbers_is_complete():
    """Of 168 bytes, one in five gives fewer than 128 numbers; of 336, one in ten fewer than 256."""
    for i in range(1000):
        seed = b"%d" % i
        for n in 128, 256:
            assert list(sequence.draw(seed, 0, n)) == with_shake(seed, n)


@pytest.mark.parametrize("seed", [CLIENT_ID, b"\0" * 16])
def test_every_number_from_0_to_100_comes_up_about_equally_often(seed):
    numbers = sequence.draw(seed, 0, LONGEST)
    counts = [numbers.count(number) for number in range(101)]
    assert sum(counts) == LONGEST
    assert 500 < min(counts) and max(counts) < 800  # 649 on average; 25 is a standard deviation


def test_no_two_blocks_of_a_sequence_are_equal():
    numbers = sequence.draw(b"\0" * 16, 0, LONGEST)
    assert len({numbers[first:first + 20] for first in range(0, LONGEST, BLOCK)}) == 256


def test_upper_and_lower_case_of_an_id_are_different_seeds():
    assert sequence.draw(CLIENT_ID, 0, 20) != sequence.draw(CLIENT_ID.upper(), 0, 20)


def test_drawing_leaves_the_global_generator_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    for seed in (CLIENT_ID, sequence.unpredictable_seed()):
        sequence.draw(seed, 0, 1000)
    assert random.random() == expected


def test_unpredictable_seeds_are_wide_and_not_repeated():
    seeds = {sequence.unpredictable_seed() for _ in range(1000)}
    assert len(seeds) == 1000
    assert {len(seed) for seed in seeds} == {sequence.SEED_BYTES}
    assert sequence.SEED_BYTES >= 16


def test_unpredictable_seeds_of_many_threads_are_all_different():
    seeds = []

    def take():
        seeds.extend([sequence.unpredictable_seed() for _ in range(10000)])

    threads = [threading.Thread(target=take) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(set(seeds)) == 40000


def test_seed_does_not_follow_from_the_state_of_the_random_module():
    random.seed(5)
    first = sequence.unpredictable_seed()
    random.seed(5)
    assert sequence.unpredictable_seed() != first


# ---- numbers that are kept


@pytest.fixture
def drawn(monkeypatch):
    """[(block, count)] of every block that is drawn."""
    calls = []
    block = sequence.draw_block
    monkeypatch.setattr(sequence, "draw_block", lambda seed, number, count: (
        calls.append((number, count)), block(seed, number, count))[1])
    return calls


@pytest.mark.parametrize("seed", [b"\0" * 16, CLIENT_ID], ids=repr)
@pytest.mark.parametrize("n", [0, 1, 5, 256, 1024, 1025, 5000, LONGEST])
def test_slices_in_any_order_are_parts_of_the_same_sequence(seed, n):
    whole = sequence.draw(seed, 0, n)
    numbers = sequence.Numbers(seed, n)
    generator = random.Random(n)
    for size in [1, 5, 255, 256, 257, 4000, LONGEST] * 20:
        first = generator.randrange(n + 10)
        assert numbers.slice(first, first + size) == whole[first:first + size]
    assert numbers.slice(0, n) == whole


@pytest.mark.parametrize("size", [1, 2, 5, 255, 256, 257, 258, 520, LONGEST])
def test_slices_of_many_places_are_those_of_each(size):
    whole = sequence.draw(b"seed", 0, 20000)
    for places in [[0], [19999], [20000, 10 ** 9], [255, 256], [5, 5, 0], range(0, 20000, 997),
                   range(1000, 3000, 5), range(3000, 1000, -5)]:
        numbers = sequence.Numbers(b"seed", 20000)
        for drawn in range(2):
            assert numbers.slices(list(places), size) == [whole[place:place + size] for place in places]
            numbers.slice(0, 20000)


def test_slice_beyond_the_end_is_empty_and_draws_nothing(drawn):
    numbers = sequence.Numbers(b"seed", LONGEST)
    assert numbers.slice(10 ** 40, 10 ** 40 + LONGEST) == b""
    assert drawn == []


def test_slice_draws_each_block_that_it_touches_once(drawn):
    numbers = sequence.Numbers(b"seed", LONGEST)
    for first in (1024, 1100, 1279, 1279):
        numbers.slice(first, first + 5)
    assert sorted(drawn) == [(4, BLOCK), (5, BLOCK)]


@pytest.mark.parametrize("seed, n, sizes", [(b"seed", LONGEST, [BLOCK, 2 * BLOCK]), (b"seed", WHOLE_MOST, []),
                                            (CLIENT_ID, LONGEST, [LONGEST]), (CLIENT_ID, WHOLE_MOST, [])])
def test_bytes_of_long_sequences_are_told_as_they_are_drawn(seed, n, sizes):
    told = []
    numbers = sequence.Numbers(seed, n, told.append)
    for last in 5, 3 * BLOCK, 2 * BLOCK:
        numbers.slice(0, last)
    assert told == sizes


def test_last_block_is_drawn_up_to_the_end_of_the_sequence(drawn):
    sequence.Numbers(b"seed", 5 * BLOCK + 3).slice(5 * BLOCK, 5 * BLOCK + 1)
    assert drawn == [(5, 3)]


def test_short_sequence_draws_no_more_than_its_count(drawn):
    sequence.Numbers(b"seed", 5).slice(0, 5)
    assert drawn == [(0, 5)]


def test_slices_far_apart_draw_nothing_between_them(drawn):
    sequence.Numbers(b"seed", LONGEST).slices([60000, 10, 30000], 5)
    assert sorted(number for number, _ in drawn) == [0, 117, 234]


def test_each_block_is_drawn_once_however_often_it_is_asked_for(drawn):
    numbers = sequence.Numbers(b"seed", LONGEST)
    for _ in range(3):
        numbers.slices(range(0, LONGEST, 5), 5)
        numbers.slice(0, LONGEST)
    assert [number for number, _ in drawn] == list(range(256))


# ---- checksum


@pytest.mark.parametrize("n, total, checksum", FIGURES)
def test_sum_and_checksum_are_those_of_the_transcripts(n, total, checksum):
    numbers = sequence.draw(CLIENT_ID, 0, n)
    assert (sum(numbers), sequence.checksum(numbers)) == (total, checksum)


@pytest.mark.parametrize("first, numbers", [
    (0, [6, 41, 81, 68, 68]), (5, [41, 10, 40, 78, 98]),
    (5 * 630, [54, 94, 94, 19, 96]), (9995, [40, 53, 59, 98, 3])])
def test_batches_are_those_of_the_transcripts(first, numbers):
    assert list(sequence.draw(CLIENT_ID, first, first + 5)) == numbers


STEP = sequence.CHECKSUM_STEP


@pytest.mark.parametrize("numbers", [
    b"", b"\0", b"\x64", bytes([6, 41, 81]), bytes(range(101)), b"\0" * 1000, b"\x64" * 1000,
    sequence.draw("3", 0, STEP - 1), sequence.draw("4", 0, STEP), sequence.draw("5", 0, STEP + 1),
    sequence.draw("3", 0, LONGEST)], ids=lambda numbers: "%d numbers" % len(numbers))
def test_checksum_is_the_md5_of_the_text_of_the_list(numbers):
    assert sequence.checksum(numbers) == md5_of_list(numbers)


def test_checksum_does_not_depend_on_how_the_list_is_written():
    """A few numbers and many are written in different ways."""
    for n in range(140):
        numbers = sequence.draw(str(n), 0, n)
        assert sequence.checksum(numbers) == md5_of_list(numbers)


def test_every_small_change_changes_the_checksum():
    numbers = sequence.draw(CLIENT_ID, 0, 50)
    changed = {sequence.checksum(numbers[:i] + bytes([(numbers[i] + 1) % 101]) + numbers[i + 1:])
               for i in range(50)}
    changed |= {sequence.checksum(numbers), sequence.checksum(numbers[:-1]), sequence.checksum(numbers[::-1])}
    assert len(changed) == 53


@pytest.mark.parametrize("n, steps", [(0, 1), (1, 1), (STEP, 1), (STEP + 1, 2), (LONGEST, 8)])
def test_each_step_of_a_checksum_reads_a_bounded_part(n, steps):
    numbers = sequence.Numbers(b"seed", n)
    asked = []

    def read(first, last):
        asked.append((first, last))
        return numbers.slice(first, last)

    made = list(sequence.checksum_steps(read, n))
    assert made[:-1] == [None] * (steps - 1)
    assert made[-1].hex() == md5_of_list(sequence.draw(b"seed", 0, n))
    assert asked == [(first, min(first + STEP, n)) for first in range(0, n, STEP)]


def test_step_of_a_checksum_reads_nothing_ahead():
    asked = []
    steps = sequence.checksum_steps(lambda first, last: asked.append(first) or bytes(last - first), LONGEST)
    for count in range(1, 4):
        assert next(steps) is None
        assert len(asked) == count


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
    """A freshly loaded module."""
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
        assert again.checksum(again.draw(CLIENT_ID, 0, n)) == checksum
    monkeypatch.undo()
    for seed in SEEDS:
        assert list(again.draw(seed, 0, 100)) == with_shake(seed, 100)


def test_hashlib_is_not_used_where_the_builtin_hashes_are_present(monkeypatch):
    for name in OWN:
        pytest.importorskip(name)

    def refuse(*arguments, **keywords):
        raise AssertionError("hashlib was asked")

    for name in NAMES:
        monkeypatch.setattr(hashlib, name, refuse)
    again = load_again()
    assert again.checksum(again.draw(CLIENT_ID, 0, 5)) == FIGURES[0][2]
    assert len(again.draw(b"seed", 0, 5)) == 5


def test_loading_the_sequence_does_not_load_openssl():
    for name in OWN:
        pytest.importorskip(name)
    loaded = run_python("import random, sys\n"
                        "before = '_hashlib' in sys.modules\n"  # older versions load it with random
                        "import numseq.sequence\n"
                        "print(before or '_hashlib' not in sys.modules)")
    assert loaded == "True\n"
