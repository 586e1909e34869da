"""Records in a file: what is there again after the server has ended, in whatever way, and what a damaged file
costs."""

import collections
import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import tracemalloc

import pytest

from helpers import ROOT
from numseq import store_file
from numseq.store import EXISTS, FAILED, FULL, MISSING, RETENTION, Record
from numseq.store_file import SLOT_SIZE, FileStore, decode_slot, encode_slot
from stores import answer, id_of

RECORD = Record(b"0123456789abcdef", 10, 2)
TEXT = Record("text seed", 65535, 65535)
Opened = collections.namedtuple("Opened", ["store", "lines", "forgotten"])


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def start(loop, path):
    """A function: starts a server's store on the file; the one before it has ended, as by a kill."""
    started = []

    def start(**options):
        end()
        lines, forgotten = [], []
        started.append(FileStore(path, loop, forgotten.append, complain=lines.append, **options))
        return Opened(started[0], lines, forgotten)

    def end():
        while started:
            started.pop().close()

    yield start
    end()


def keep(store, client_id, record=RECORD):
    """Makes a record that nobody has open."""
    assert answer(store.create, client_id, record) == (record, None)
    answer(store.release, client_id)


def fill(start, count):
    """A file with the records of id_of(0) to id_of(count - 1)."""
    store = start().store
    for number in range(count):
        keep(store, id_of(number), Record(b"%016d" % number, number, 1))
    store.close()


def found(store, count):
    """Which of id_of(0) to id_of(count - 1) are there; each that is there has to be right."""
    there = set()
    for number in range(count):
        record, refusal = answer(store.open, id_of(number))
        if record is None:
            assert refusal is MISSING
        else:
            assert record == Record(b"%016d" % number, number, 1)
            answer(store.release, id_of(number))
            there.add(number)
    return there


def contents(path):
    with open(path, "rb") as file:
        return file.read()


def replace_contents(path, data):
    with open(path, "wb") as file:
        file.write(data)


# ---- slots


@pytest.mark.parametrize("client_id", [
    id_of(0), id_of(2 ** 48 - 1),
    b"12345678-1234-1234-1234-123456789012", b"ABCDEFAB-CDEF-ABCD-EFAB-CDEFABCDEFAB",
    b"aBcDeFaB-CdEf-aBcD-eFaB-cDeFaBcDeFaB", b"A0000000-0000-0000-0000-00000000000b",
    b"a0000000-0000-0000-0000-00000000000B",
])
@pytest.mark.parametrize("record", [
    RECORD, TEXT, Record(b"", 0, 1), Record("", 0, 1), Record(b"\0" * 24, 1, 65535),
    Record("x" * 24, 65535, 1),
])
def test_slot_holds_the_id_as_written_and_the_record(client_id, record):
    slot = encode_slot(client_id, record, 7, 2 ** 63)
    assert len(slot) == SLOT_SIZE
    assert decode_slot(b"x" * SLOT_SIZE + slot, SLOT_SIZE) == (2 ** 63, client_id, 7, record)


def test_seed_that_is_the_client_id_fits_a_slot():
    record = Record(id_of(5).upper().decode("ascii"), 5, 5)
    assert decode_slot(encode_slot(id_of(5).upper(), record, 1, 1), 0) == (1, id_of(5).upper(), 1, record)


def test_slot_with_any_bit_flipped_is_invalid():
    slot = encode_slot(id_of(1), RECORD, 1, 1)
    for bit in range(SLOT_SIZE * 8):
        data = bytearray(slot)
        data[bit // 8] ^= 1 << bit % 8
        assert decode_slot(bytes(data), 0) is None


def test_zeros_and_random_bytes_are_not_valid_slots():
    draw = random.Random(1)
    assert decode_slot(bytes(SLOT_SIZE), 0) is None
    for _ in range(1000):
        assert decode_slot(bytes(draw.randrange(256) for _ in range(SLOT_SIZE)), 0) is None


@pytest.mark.parametrize("client_id, record", [(b"a", RECORD), (id_of(1), Record(b"x" * 25, 1, 1))])
def test_record_that_does_not_fit_a_slot_is_not_written(client_id, record):
    with pytest.raises(ValueError):
        encode_slot(client_id, record, 1, 1)


# ---- a server after the other


def test_records_are_there_again_after_a_restart(start):
    first = start().store
    answer(first.create, id_of(1), RECORD)
    keep(first, id_of(2), TEXT)
    keep(first, id_of(3), Record(id_of(3).decode("ascii"), 7, 3))
    second = start().store
    assert len(second) == 3
    assert answer(second.open, id_of(1)) == (RECORD, None)
    assert answer(second.open, id_of(2)) == (TEXT, None)
    assert answer(second.open, id_of(3)) == (Record(id_of(3).decode("ascii"), 7, 3), None)
    assert answer(second.create, id_of(2), RECORD) == (None, EXISTS)
    assert answer(second.open, id_of(4)) == (None, MISSING)


def test_every_record_has_its_whole_retention_after_a_restart(start, loop, clock):
    fill(start, 2)
    clock.advance(RETENTION - 1)
    opened = start()
    loop.call_later(RETENTION - 0.001, loop.stop)
    loop.run()
    assert opened.forgotten == []
    loop.run()
    assert opened.forgotten == [id_of(0), id_of(1)]


def test_waiting_for_the_lock_costs_no_retention(start, loop, clock, path, other_server):
    def sleep(seconds):
        clock.advance(4)
        other_server.stdin.close()
        other_server.wait()

    replace_contents(path, store_file._HEADER + encode_slot(id_of(0), RECORD, 1, 1))
    opened = start(sleep=sleep)
    started = clock()
    loop.run()
    assert opened.forgotten == [id_of(0)] and loop.now - started >= RETENTION


def test_what_was_forgotten_stays_so(start, loop):
    opened = start()
    keep(opened.store, id_of(0), Record(b"%016d" % 0, 0, 1))
    loop.run()
    assert opened.forgotten == [id_of(0)]
    assert found(start().store, 1) == set()


def test_slots_of_forgotten_records_are_used_again(start, loop, path):
    for _ in range(3):
        opened = start()
        for number in range(10):
            keep(opened.store, id_of(number))
        loop.run()
        assert len(opened.forgotten) == 10
    assert os.path.getsize(path) == 11 * SLOT_SIZE


@pytest.mark.parametrize("seed", range(5))
def test_records_survive_restarts_in_any_history(start, loop, seed):
    draw = random.Random(seed)
    store, expected = start().store, {}
    for step in range(400):
        client_id = id_of(draw.randrange(20))
        action = draw.choice(["create", "create", "forget", "restart"])
        if action == "create":
            record = Record(b"%016d" % step, step, 1)
            refusal = answer(store.create, client_id, record)[1]
            assert refusal is (EXISTS if client_id in expected else None)
            if refusal is None:
                answer(store.release, client_id)
                expected[client_id] = record
        elif action == "restart":
            store = start().store
        elif draw.random() < 0.2:
            loop.run()
            expected = {}
        assert len(store) == len(expected)
    for client_id, record in expected.items():
        assert answer(store.open, client_id) == (record, None)


def test_more_records_than_clients_allowed_are_all_kept(start):
    fill(start, 5)
    store = start(clients_most=3).store
    assert found(store, 5) == set(range(5))
    assert answer(store.create, id_of(9), RECORD) == (None, FULL)


def test_file_is_readable_by_its_owner_alone(start, path):
    start()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_file_becomes_private_if_others_can_read_it(start, path):
    fill(start, 1)
    os.chmod(path, 0o644)
    assert found(start().store, 1) == {0}
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_foreign_file_keeps_its_mode(start, path):
    replace_contents(path, b"somebody's file")
    os.chmod(path, 0o644)
    start()
    assert os.stat(path + ".bad").st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_file_of_another_user_in_a_sticky_directory_is_refused(start, path):
    replace_contents(path, b"")
    os.chown(path, 12345, -1)
    os.chown(os.path.dirname(path), 12346, -1)
    os.chmod(os.path.dirname(path), 0o1777)
    with pytest.raises(PermissionError):
        start()


def test_record_of_another_drawing_fails_and_the_line_names_it(start, loop):
    fill(start, 1)
    opened = start(drawing=2)
    assert answer(opened.store.open, id_of(0)) == (None, FAILED)
    assert answer(opened.store.create, id_of(0), RECORD) == (None, EXISTS)
    assert len(opened.lines) == 1 and id_of(0).decode("ascii") in opened.lines[0]
    assert found(start(drawing=1).store, 1) == {0}
    opened = start(drawing=2)
    loop.run()
    assert opened.forgotten == [id_of(0)]


# ---- writes, and only those


@pytest.fixture
def writes(monkeypatch):
    """[(offset, bytes)] of all writes."""
    writes, pwrite = [], os.pwrite

    def spy(file, data, offset):
        writes.append((offset, data))
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", spy)
    return writes


def test_creating_is_one_write_and_forgetting_is_one_write(start, loop, writes):
    store = start().store
    del writes[:]
    answer(store.create, id_of(1), RECORD)
    assert [offset for offset, _ in writes] == [SLOT_SIZE]
    for _ in range(3):
        answer(store.open, id_of(1))
        answer(store.release, id_of(1))
    answer(store.release, id_of(1))
    assert len(writes) == 1
    loop.run()
    assert writes[1:] == [(SLOT_SIZE, bytes(SLOT_SIZE))]


def test_a_refusal_writes_nothing(start, writes):
    store = start(clients_most=1).store
    keep(store, id_of(1))
    del writes[:]
    assert answer(store.create, id_of(1), RECORD) == (None, EXISTS)
    assert answer(store.create, id_of(2), RECORD) == (None, FULL)
    assert answer(store.open, id_of(2)) == (None, MISSING)
    assert writes == []


def test_record_is_in_the_file_before_the_answer(start, path):
    seen = []
    start().store.create(id_of(1), RECORD, lambda record, refusal: seen.append(contents(path)))
    assert seen[0][SLOT_SIZE:] == encode_slot(id_of(1), RECORD, 1, 1)


# ---- killed


class Killed(Exception):
    """Stands for the end of the process in the middle of a write."""


HISTORY = [("create", 1), ("create", 2), ("forget", 1), ("create", 3), ("create", 1), ("forget", 2),
           ("create", 4)]


def play(store, loop, told):
    """Plays HISTORY; told is the set of ids whose creation was answered and that were not forgotten."""
    for action, number in HISTORY:
        if action == "create":
            record = Record(b"%016d" % number, number, 1)
            store.create(id_of(number), record, lambda record, refusal, number=number: told.add(number))
        else:
            store.release(id_of(number), lambda: None)
            told.discard(number)  # from here on it may be there or not
            loop.run()


@pytest.mark.parametrize("size", [0, 1, 2, 16, 36, 59, 60, 61, 63, 64])
@pytest.mark.parametrize("kill_at", range(1, len(HISTORY) + 2))
def test_kill_in_a_write_loses_no_acknowledged_record(start, loop, monkeypatch, kill_at, size):
    pwrite, count = os.pwrite, [0]

    def dying(file, data, offset):
        count[0] += 1
        if count[0] == kill_at:
            if size:
                pwrite(file, data[:size], offset)
            raise Killed
        return pwrite(file, data, offset)

    told = set()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", dying)
        try:
            play(start().store, loop, told)
        except Killed:
            pass
    killed = [error for error in loop.errors if isinstance(error, Killed)]
    loop.errors[:] = [error for error in loop.errors if error not in killed]
    opened = start()
    there = found(opened.store, 10)
    assert told <= there
    assert len(opened.lines) <= 1
    keep(opened.store, id_of(9), Record(b"%016d" % 9, 9, 1))
    assert found(start().store, 10) == there | {9}


CHILD = """
import sys
sys.path.insert(0, %r)
from numseq.loop import Loop
from numseq.store import Record
from numseq.store_file import FileStore

class Clock:
    now = 0.0
    def __call__(self):
        return self.now

clock = Clock()
loop = Loop(clock)
store = FileStore(sys.argv[1], loop, lambda client_id: None)
for number in range(4):
    client_id = b"123e4567-e89b-12d3-a456-%%012x" %% number
    record = Record(b"%%016d" %% number, number, 1)
    store.create(client_id, record, lambda *answer: print("told", number, flush=True))
    if number == 1:
        store.release(client_id, lambda: None)
        print("released", number, flush=True)
        clock.now += 1000.0
        loop.turn()
print("end", flush=True)
""" % ROOT
SYSTEM_CALLS = "openat", "fcntl", "pread64", "pwrite64"  # those that have a part in what the file holds


@pytest.mark.slow
def test_kill_at_any_system_call_loses_no_acknowledged_record(start, path):
    """strace kills the process in the nth of each system call on the file, made or not, for every n."""
    try:
        subprocess.run(["strace", "-o", os.devnull, "true"], check=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("strace is not there, or may not trace")
    killed = 0
    for call, is_made in itertools.product(SYSTEM_CALLS, (False, True)):
        for number in range(1, 100):
            if os.path.exists(path):
                os.unlink(path)
            inject = "inject=%s:%ssignal=KILL:when=%d" % (call, "" if is_made else "error=EIO:", number)
            child = subprocess.run(
                ["strace", "-o", os.devnull, "-P", path, "-e", "trace=" + call, "-e", inject,
                 sys.executable, "-S", "-c", CHILD, path],
                stdout=subprocess.PIPE, universal_newlines=True)
            lines = child.stdout.split("\n")
            told = {int(line.split()[1]) for line in lines if line.startswith("told")}
            told -= {int(line.split()[1]) for line in lines if line.startswith("released")}
            opened = start()
            assert told <= found(opened.store, 4)
            assert opened.lines == []
            if "end" in lines:
                break
            assert child.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
            killed += 1
    assert killed >= 2 * len(SYSTEM_CALLS)


# ---- damaged


def test_truncation_costs_only_the_records_behind_it(start, path):
    fill(start, 4)
    whole = contents(path)
    for size in range(len(whole)):
        replace_contents(path, whole[:size])
        opened = start()
        assert found(opened.store, 4) == set(range(max(size // SLOT_SIZE - 1, 0)))
        assert opened.lines == []
        keep(opened.store, id_of(3 if size < 5 * SLOT_SIZE else 4), Record(b"%016d" % 3, 3, 1))
        assert 3 in found(start().store, 4)


def test_every_flipped_byte_costs_one_record_at_most(start, path):
    fill(start, 4)
    whole = contents(path)
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0xFF
        replace_contents(path, bytes(data))
        opened = start()
        expected = set(range(4)) - {place // SLOT_SIZE - 1}
        assert found(opened.store, 4) == expected
        assert len(opened.lines) == 1
        opened = start()
        assert found(opened.store, 4) == expected


@pytest.mark.parametrize("first, last", [(0, 1), (0, 2), (1, 3), (2, 5), (3, 5)])
def test_a_block_of_zeros_costs_only_the_records_in_it(start, path, first, last):
    """A file with a hole has to start: it is what is left by many a crash."""
    fill(start, 4)
    data = bytearray(contents(path))
    data[first * SLOT_SIZE:last * SLOT_SIZE] = bytes((last - first) * SLOT_SIZE)
    replace_contents(path, data)
    store = start().store
    assert found(store, 4) == set(range(4)) - set(range(first - 1, last - 1))


def test_a_file_of_zeros_is_an_empty_store(start, path):
    replace_contents(path, bytes(10 * SLOT_SIZE))
    opened = start()
    assert opened.lines == []
    fill(start, 4)
    assert found(start().store, 4) == set(range(4))


FOREIGN = [b"root:x:0:0:root:/root:/bin/bash\n" * 10, b"x", b"numseq store 2\n" + bytes(200), b"\xff" * 4096]


@pytest.mark.parametrize("data", FOREIGN)
def test_a_foreign_file_is_renamed_unchanged(start, path, data):
    replace_contents(path, data)
    opened = start()
    assert contents(path + ".bad") == data
    assert len(opened.lines) == 1 and path + ".bad" in opened.lines[0]
    fill(start, 2)
    assert found(start().store, 2) == {0, 1}


def test_file_put_aside_never_replaces_an_earlier_one(start, path):
    for number in range(store_file.ASIDE_MOST):
        replace_contents(path, b"foreign %d" % number)
        start()
    replace_contents(path, b"the last")
    with pytest.raises(OSError, match="delete"):
        start()
    assert contents(path) == b"the last"
    assert contents(path + ".bad") == b"foreign 0"
    assert contents(path + ".bad.9") == b"foreign 9"


@pytest.mark.parametrize("seed", range(10))
def test_random_damage_never_keeps_a_server_from_starting(start, path, seed):
    draw = random.Random(seed)
    fill(start, 20)
    whole = contents(path)
    for _ in range(20):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 10)):
            place, size = draw.randrange(len(data)), draw.choice([1, 4, 64, 512])
            size = len(data[place:place + size])
            data[place:place + size] = bytes(draw.randrange(256) for _ in range(size))
        replace_contents(path, data)
        store = start().store
        there = found(store, 20)
        keep(store, id_of(30), Record(b"%016d" % 30, 30, 1))
        assert found(start().store, 31) == there | {30}
        for name in os.listdir(os.path.dirname(path)):
            os.unlink(os.path.join(os.path.dirname(path), name))


def test_newer_slot_of_the_same_id_wins(start, path):
    start()
    header = contents(path)
    old, new = (encode_slot(id_of(1), Record(b"%d" % number, 1, 1), 1, number) for number in (1, 2))
    for slots in (old + new, new + old):
        replace_contents(path, header + slots)
        for _ in range(2):
            store = start().store
            assert answer(store.open, id_of(1)) == (Record(b"2", 1, 1), None)
            assert len(store) == 1


def test_serial_number_keeps_rising_after_a_restart(start, path):
    keep(start().store, id_of(1))
    keep(start().store, id_of(2))
    data = contents(path)
    first, second = (decode_slot(data, slot * SLOT_SIZE)[0] for slot in (1, 2))
    assert first < second


# ---- a disk that fails


@pytest.fixture
def fail(monkeypatch):
    """A function: from now on calls of os.<name> fail with the code, those for which `when(arguments)` is
    true."""

    def fail(name, code, when=lambda *arguments: True):
        function = getattr(os, name)

        def failing(*arguments):
            if when(*arguments):
                raise OSError(code, os.strerror(code))
            return function(*arguments)

        monkeypatch.setattr(os, name, failing)

    return fail


def test_create_without_memory_leaves_nothing(start, monkeypatch):
    store = start().store
    with monkeypatch.context() as patch:
        patch.setattr(store_file, "encode_slot", out_of_memory)
        with pytest.raises(MemoryError):
            store.create(id_of(1), RECORD, None)
    assert len(store) == 0
    keep(store, id_of(1))
    assert answer(store.open, id_of(1)) == (RECORD, None)


def out_of_memory(*_):
    raise MemoryError


def test_an_error_of_closing_is_told(loop, path, closing_fails):
    lines = []
    store = FileStore(path, loop, None, complain=lines.append)
    with closing_fails():
        store.close()
    store.close()
    assert len(lines) == 1 and os.strerror(errno.EDQUOT) in lines[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_creating_fails_while_the_file_cannot_be_written(start, fail, monkeypatch, code):
    opened = start()
    keep(opened.store, id_of(1))
    with monkeypatch.context():
        fail("pwrite", code)
        for number in range(2, 5):
            assert answer(opened.store.create, id_of(number), RECORD) == (None, FAILED)
        assert answer(opened.store.open, id_of(1)) == (RECORD, None)
        assert len(opened.lines) == 1 and os.strerror(code) in opened.lines[0]
        monkeypatch.undo()
    assert answer(opened.store.create, id_of(2), RECORD) == (RECORD, None)
    assert len(opened.store) == 2
    assert len(start().store) == 2


def test_each_outage_of_the_disk_is_reported_once(start, fail, monkeypatch):
    opened = start()
    for outage in range(1, 4):
        fail("pwrite", errno.ENOSPC)
        answer(opened.store.create, id_of(1), RECORD)
        answer(opened.store.create, id_of(1), RECORD)
        assert len(opened.lines) == outage
        monkeypatch.undo()
        keep(opened.store, id_of(10 + outage))


def test_a_partial_write_counts_as_a_full_disk(start, monkeypatch):
    opened = start()
    pwrite = os.pwrite
    for size in range(1, SLOT_SIZE):
        monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:size], offset))
        assert answer(opened.store.create, id_of(1), RECORD) == (None, FAILED)
        monkeypatch.undo()
    assert answer(opened.store.create, id_of(2), RECORD) == (RECORD, None)
    assert len(start().store) == 1


def test_a_record_that_cannot_be_cleared_is_forgotten_and_cleared_later(start, loop, fail, monkeypatch):
    opened = start()
    keep(opened.store, id_of(1))
    fail("pwrite", errno.EIO)
    loop.run()
    assert opened.forgotten == [id_of(1)]
    assert answer(opened.store.open, id_of(1)) == (None, MISSING)
    monkeypatch.undo()
    keep(opened.store, id_of(2))
    store = start().store
    assert answer(store.open, id_of(1)) == (None, MISSING)
    assert answer(store.open, id_of(2)) == (RECORD, None)


def test_slots_that_could_not_be_cleared_are_cleared_by_the_next_that_can(start, loop, fail, monkeypatch):
    opened = start()
    for number in range(5):
        keep(opened.store, id_of(number))
    fail("pwrite", errno.EIO)
    loop.run()
    monkeypatch.undo()
    for number in range(10, 15):
        answer(opened.store.create, id_of(number), RECORD)
    for number in range(10, 15):
        answer(opened.store.release, id_of(number))
    loop.run()
    assert len(opened.forgotten) == 10
    assert len(start().store) == 0


def test_an_older_record_never_comes_back_in_place_of_a_newer_one(start, loop, fail, monkeypatch):
    """Two cannot be cleared, one of them is created anew, and its forgetting is killed after one write."""
    opened = start()
    for number in (1, 2):
        keep(opened.store, id_of(number), Record(b"old", 1, 1))
    fail("pwrite", errno.EIO)
    loop.run()
    monkeypatch.undo()
    keep(opened.store, id_of(2), Record(b"new", 1, 1))
    left = [1]
    fail("pwrite", errno.EIO, lambda *arguments: not left or left.pop() and False)
    loop.run()
    monkeypatch.undo()
    assert answer(start().store.open, id_of(2)) in ((Record(b"new", 1, 1), None), (None, MISSING))


def test_an_unreadable_block_costs_only_the_records_in_it(start, fail):
    fill(start, 300)
    bad = 128 * SLOT_SIZE
    fail("pread", errno.EIO, lambda file, size, offset: offset <= bad < offset + size)
    opened = start()
    assert found(opened.store, 300) == set(range(127)) | set(range(191, 300))
    assert len(opened.lines) == 1 and "64 slots" in opened.lines[0]


def test_a_header_that_cannot_be_read_is_an_error(start, fail):
    fill(start, 1)
    fail("pread", errno.EIO)
    with pytest.raises(OSError):
        start()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOENT, errno.EMFILE])
def test_a_file_that_cannot_be_opened_is_an_error(start, fail, code):
    fail("open", code)
    with pytest.raises(OSError) as caught:
        start()
    assert caught.value.errno == code


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_path_that_is_not_a_regular_file_is_an_error(start, path, make):
    make(path)
    with pytest.raises(OSError):
        start()


def test_store_works_again_once_a_full_disk_has_room(start, loop, path, tmp_path):
    """For real, on a file system of a few pages."""
    os.mkdir(path + ".mount")
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", path + ".mount"]
    if subprocess.call(mount, stderr=subprocess.DEVNULL):
        pytest.skip("nothing can be mounted here")
    lines, forgotten = [], []
    store = None
    try:
        file = path + ".mount/store"
        store = FileStore(file, loop, forgotten.append, complain=lines.append)
        created = 0
        while answer(store.create, id_of(created), RECORD)[1] is None:
            created += 1
        assert answer(store.create, id_of(created), RECORD) == (None, FAILED)
        assert len(lines) == 1
        answer(store.release, id_of(0))
        loop.run()
        assert forgotten == [id_of(0)]
        assert answer(store.create, id_of(created), RECORD) == (RECORD, None)
        assert answer(store.create, id_of(created + 1), RECORD) == (None, FAILED)
        store.close()
        store = FileStore(file, loop, forgotten.append)
        assert len(store) == created
    finally:
        if store is not None:
            store.close()
        subprocess.call(["umount", path + ".mount"])


# ---- two servers


HOLDER = """
import sys
sys.path.insert(0, %r)
from numseq.store_file import open_locked
file = open_locked(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
""" % ROOT


@pytest.fixture
def other_server(path):
    """Another process that has the file locked, until its standard input is closed."""
    with subprocess.Popen([sys.executable, "-S", "-c", HOLDER, path],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"locked\n"
        yield child
        child.kill()


def test_a_second_server_on_the_file_gives_up_after_five_seconds(start, other_server):
    pauses = []
    with pytest.raises(OSError, match="another server"):
        start(sleep=pauses.append)
    assert sum(pauses) == pytest.approx(store_file.LOCK_SECONDS)


def test_a_second_server_waits_for_one_that_ends(start, other_server):
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            other_server.stdin.close()
            other_server.wait()

    opened = start(sleep=sleep)
    assert len(pauses) == 3
    assert answer(opened.store.create, id_of(1), RECORD) == (RECORD, None)


def test_a_file_that_was_put_aside_meanwhile_is_not_taken(start, path, other_server):
    def sleep(seconds):
        if not os.path.exists(path + ".bad"):
            os.rename(path, path + ".bad")
            other_server.stdin.close()
            other_server.wait()

    keep(start(sleep=sleep).store, id_of(1))
    assert len(contents(path)) == 2 * SLOT_SIZE
    assert contents(path + ".bad") == b""


def test_a_file_that_is_put_aside_just_before_the_lock_is_not_taken(start, path, monkeypatch):
    lockf = os.lockf

    def late(*arguments):
        if not os.path.exists(path + ".bad"):
            os.rename(path, path + ".bad")
        lockf(*arguments)

    monkeypatch.setattr(os, "lockf", late)
    keep(start(sleep=lambda seconds: None).store, id_of(1))
    assert len(contents(path)) == 2 * SLOT_SIZE
    assert contents(path + ".bad") == b""


# ---- limits


def test_more_clients_than_slots_are_refused(start):
    with pytest.raises(ValueError):
        start(clients_most=store_file.SLOTS_MOST)


def test_creating_fails_when_all_slots_are_in_use(start, monkeypatch):
    monkeypatch.setattr(store_file, "SLOTS_MOST", 4)
    opened = start(clients_most=3)
    for number in range(3):
        assert answer(opened.store.create, id_of(number), RECORD) == (RECORD, None)
    monkeypatch.setattr(store_file, "SLOTS_MOST", 3)
    store = start(clients_most=2).store
    assert len(store) == 2
    assert answer(store.create, id_of(5), RECORD) == (None, FULL)


def test_a_record_from_the_file_takes_less_than_300_bytes(start):
    count = 12000  # where dicts have just grown: the worst of it
    fill(start, count)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        store = start().store
        used, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(store) == count
    assert (used - before) / count < 300
    assert (peak - before) / count < 400


def test_closed_store_unlocks_the_file(start, path):
    store = start().store
    store.close()
    with subprocess.Popen([sys.executable, "-S", "-c", HOLDER, path],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"locked\n"
        child.stdin.close()
