"""The client's state file: replaced as a whole, appended to, and read again in whatever condition it is."""

import binascii
import errno
import os

import pytest

from numseq import files, journal, protocol
from numseq.errors import UsageError
from numseq.journal import Journal

CLIENT_ID = b"123e4567-e89b-12d3-a456-426614174000"
NUMBERS = bytes([6, 41, 10, 68, 68, 41, 10, 40, 78, 98, 100, 0, 10])  # 10 is what a line ends with, too
N = len(NUMBERS)
BATCH = 5


opened = []  # journals to close at the end of the test


@pytest.fixture(autouse=True)
def closed():
    yield
    while opened:
        opened.pop().close()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "state")


@pytest.fixture
def complaints():
    return []


def begun(path, numbers=b"", complaints=None, n=N):
    """A Journal whose file is in place."""
    made = Journal(CLIENT_ID, n, BATCH, numbers, path, ignore if complaints is None else complaints.append)
    opened.append(made)
    made.begin()
    return made


def ignore(text):
    """For complaints that are not the test's."""


def load(path, complain=ignore):
    """`journal.load` for a run of its own, closed at the end of the test."""
    found = journal.load(path, complain, claim=True)
    opened.append(found)
    return found


def header(n=N, batch=BATCH, magic=b"numseq", version=b"1", client_id=CLIENT_ID):
    fields = b"%b %b %b %d %d " % (magic, version, client_id, n, batch)
    return fields + b"%08x\n" % binascii.crc32(fields)


def put(path, data):
    with open(path, "wb") as file:
        file.write(data)


def get(path):
    with open(path, "rb") as file:
        return file.read()


def refusal(path):
    with pytest.raises(UsageError) as refused:
        load(path)
    said = str(refused.value)
    assert repr(path) in said and "\n" not in said
    return said.replace(repr(path), "PATH")


def refuse_writes(monkeypatch, after, code=errno.ENOSPC):
    """Makes writes fail with ENOSPC after `count` more bytes."""
    real, left = os.write, [after]

    def write(file, data):
        if not left[0]:
            raise OSError(code, os.strerror(code))
        written = real(file, data[:left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)


# ---- written


def test_file_is_a_header_line_and_one_byte_a_number(path):
    made = begun(path, NUMBERS[:5])
    made.close()
    assert get(path) == header() + NUMBERS[:5]
    assert get(path).startswith(b"numseq 1 123e4567-e89b-12d3-a456-426614174000 13 5 ")


def test_longest_header_fits_what_is_read_for_it():
    assert len(header(protocol.N_MOST, protocol.BATCH_MOST)) <= journal.HEADER_MOST


def test_old_file_stays_until_the_new_one_is_whole(path, monkeypatch):
    put(path, b"the old one")
    seen = []
    real = os.replace

    def replace(source, target):
        seen.append((get(source), get(target)))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    begun(path, NUMBERS[:5]).close()
    assert seen == [(header() + NUMBERS[:5], b"the old one")]
    assert get(path) == seen[0][0]


@pytest.mark.parametrize("most", range(len(header()) + 5))
def test_failed_write_leaves_the_old_file_and_nothing_else(path, complaints, monkeypatch, most):
    put(path, b"the old one")
    refuse_writes(monkeypatch, most)
    made = begun(path, NUMBERS[:5], complaints)
    assert get(path) == b"the old one"
    assert os.listdir(os.path.dirname(path)) == ["state"], "a temporary file is left"
    assert not made.is_open() and not made.kept
    assert complaints == ["the state %r cannot be written, CONTINUE will not be possible: %s"
                          % (path, os.strerror(errno.ENOSPC))]


def test_numbers_are_appended_and_nothing_is_written_twice(path, monkeypatch):
    written = []
    made = begun(path)
    inode = os.stat(path).st_ino
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: (written.append(bytes(data)), real(file, data))[1])
    for numbers in NUMBERS[:5], b"", NUMBERS[5:10], NUMBERS[10:]:
        made.numbers += numbers
        made.flush()
        assert get(path) == header() + made.numbers, "received numbers are not in the file after the turn"
    made.flush()
    made.close()
    assert written == [NUMBERS[:5], NUMBERS[5:10], NUMBERS[10:]]
    assert os.stat(path).st_ino == inode


def test_short_writes_are_finished(path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:3]))
    made = begun(path, NUMBERS[:5])
    made.numbers += NUMBERS[5:]
    made.flush()
    made.close()
    assert get(path) == header() + NUMBERS


def test_nothing_is_written_without_a_path(tmp_path, complaints):
    made = begun(None, complaints=complaints)
    made.numbers += NUMBERS
    made.flush()
    made.drop_numbers()
    made.close()
    assert os.listdir(str(tmp_path)) == complaints == []
    assert not made.kept and not made.is_open()


@pytest.mark.parametrize("opened", [True, False])
def test_dropped_numbers_are_gone_from_memory_and_from_the_file(path, opened):
    made = begun(path, NUMBERS)
    if not opened:
        made.close()
    made.drop_numbers()
    assert bytes(made.numbers) == b"" and made.batches() == 0
    assert get(path) == header()
    made.numbers += NUMBERS[:5]
    made.flush()
    made.close()
    assert get(path) == header() + NUMBERS[:5], "the numbers fetched again are not kept"


def test_numbers_can_be_dropped_on_a_full_disk(path, complaints, monkeypatch):
    made = begun(path, NUMBERS, complaints)
    refuse_writes(monkeypatch, 0)
    made.drop_numbers()
    assert get(path) == header(), "CONTINUE would meet the wrong numbers again and again"
    assert made.kept and complaints == []


def test_file_that_cannot_be_truncated_is_reported(path, complaints, monkeypatch):
    def refuse(file, length):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "ftruncate", refuse)
    made = begun(path, NUMBERS, complaints)
    made.drop_numbers()
    assert len(complaints) == 1 and not made.kept and not made.numbers


@pytest.mark.parametrize("n, batch, numbers, batches, total", [
    (0, 5, 0, 0, 0), (1, 5, 0, 0, 1), (1, 5, 1, 1, 1), (13, 5, 10, 2, 3), (13, 5, 13, 3, 3),
    (10, 5, 10, 2, 2), (65535, 1, 65535, 65535, 65535), (5, 65535, 5, 1, 1),
])
def test_batches_are_counted_with_the_short_last_one(n, batch, numbers, batches, total):
    made = Journal(CLIENT_ID, n, batch, bytes(numbers))
    assert (made.batches(), made.total()) == (batches, total)


# ---- where it cannot be written


@pytest.mark.parametrize("fits", range(4))
def test_full_disk_is_reported_once_and_leaves_the_good_part(path, complaints, monkeypatch, fits):
    made = begun(path, NUMBERS[:5], complaints)
    assert made.kept
    refuse_writes(monkeypatch, fits)
    for numbers in NUMBERS[5:10], NUMBERS[10:]:
        made.numbers += numbers
        made.flush()
    assert not made.kept and not made.is_open()
    assert complaints == ["the state %r cannot be written, CONTINUE will go on from what is there: %s"
                          % (path, os.strerror(errno.ENOSPC))]
    assert bytes(made.numbers) == NUMBERS, "the fetch itself lost numbers"
    assert bytes(load(path).numbers) == NUMBERS[:5]


def test_disk_that_has_room_again_is_used_again(path, complaints, monkeypatch):
    made = begun(path, b"", complaints)
    with monkeypatch.context() as patch:
        refuse_writes(patch, 0)
        made.numbers += NUMBERS[:5]
        made.flush()
    assert not made.kept
    made.begin()
    assert made.kept and len(complaints) == 1
    made.numbers += NUMBERS[5:]
    made.flush()
    made.close()
    assert get(path) == header() + NUMBERS


@pytest.mark.parametrize("name", ["missing/state", "file/state", "folder"])
def test_unwritable_place_is_reported_once(tmp_path, complaints, name):
    (tmp_path / "folder").mkdir()
    put(str(tmp_path / "file"), b"")
    made = begun(str(tmp_path / name), complaints=complaints)
    made.begin()
    assert len(complaints) == 1 and "CONTINUE will not be possible: " in complaints[0]
    assert not made.kept
    assert sorted(os.listdir(str(tmp_path))) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_reported_once(tmp_path, complaints):
    tmp_path.chmod(0o500)
    begun(str(tmp_path / "state"), complaints=complaints)
    assert len(complaints) == 1 and complaints[0].endswith("CONTINUE will not be possible: "
                                                           + os.strerror(errno.EACCES))


def test_pipe_or_a_device_is_not_replaced(path, complaints):
    os.mkfifo(path)
    made = begun(path, complaints=complaints)
    assert not os.path.isfile(path), "root would lose /dev/null to --state /dev/null"
    assert complaints == ["the state %r cannot be written, CONTINUE will not be possible: not a regular file"
                          % path]
    assert not made.kept


# ---- read again


@pytest.mark.parametrize("length", range(N + 1))
def test_torn_tail_is_ignored_at_every_length(path, length):
    put(path, header() + NUMBERS[:length])
    found = load(path)
    whole = N if length == N else length // BATCH * BATCH
    assert bytes(found.numbers) == NUMBERS[:whole]
    assert (found.client_id, found.n, found.batch, found.path) == (CLIENT_ID, N, BATCH, path)
    assert found.kept and not found.is_open(), "reading changed the file"
    assert get(path) == header() + NUMBERS[:length]


@pytest.mark.parametrize("length", range(N + 1))
def test_continuing_after_a_torn_tail_counts_nothing_twice(path, length):
    put(path, header() + NUMBERS[:length])
    found = load(path)
    found.begin()
    found.numbers += NUMBERS[len(found.numbers):]
    found.flush()
    found.close()
    assert get(path) == header() + NUMBERS


@pytest.mark.parametrize("length", range(len(header())))
def test_torn_header_is_damaged(path, length):
    put(path, header()[:length])
    assert refusal(path) == "the state PATH is damaged, begin with NEW"


@pytest.mark.parametrize("place", range(len(header())))
@pytest.mark.parametrize("change", [0x01, 0x0F, 0x20, 0x80, 0xFF])
def test_wrong_byte_anywhere_in_the_header_is_reported(path, place, change):
    data = bytearray(header() + NUMBERS)
    data[place] ^= change
    put(path, data)
    version = len(b"numseq ")
    wrong = "of another version" if place in (version, version + 1) else "damaged"
    assert refusal(path) == "the state PATH is %s, begin with NEW" % wrong


@pytest.mark.parametrize("data, wrong", [
    (header(version=b"2"), "of another version"),
    (header(version=b"10") + NUMBERS, "of another version"),
    (b"numseq\n", "of another version"),
    (b"", "damaged"),
    (b"\n", "damaged"),
    (b"\0" * 1000, "damaged"),
    (header(magic=b"Numseq"), "damaged"),
    (header(client_id=b"me"), "damaged"),
    (header(client_id=CLIENT_ID.replace(b"-", b"_")), "damaged"),
    (header(n=protocol.N_MOST + 1), "damaged"),
    (header(n=-1), "damaged"),
    (header(batch=0), "damaged"),
    (header(batch=protocol.BATCH_MOST + 1), "damaged"),
    (header() + bytes([101]), "damaged"),
    (header() + NUMBERS[:-1] + bytes([255]), "damaged"),
    (header() + NUMBERS + b"\0", "damaged"),
    (header(n=0) + b"\0", "damaged"),
    (header(n=protocol.N_MOST) + bytes(protocol.N_MOST + 1), "damaged"),
    (header() + bytes(10 * protocol.N_MOST), "damaged"),
])
def test_impossible_state_is_reported(path, data, wrong):
    put(path, data)
    assert refusal(path) == "the state PATH is %s, begin with NEW" % wrong


@pytest.mark.parametrize("n", [0, protocol.N_MOST])
def test_shortest_and_the_longest_state_can_be_read(path, n):
    made = Journal(CLIENT_ID, n, BATCH, bytes(n), path)
    made.begin()
    made.close()
    assert len(load(path).numbers) == n


def test_missing_state_is_reported(path):
    assert refusal(path) == "there is no state PATH to continue from, begin with NEW"


@pytest.mark.parametrize("name, code", [(".", errno.EISDIR), ("file/state", errno.ENOTDIR)])
def test_unreadable_state_is_reported(tmp_path, name, code):
    put(str(tmp_path / "file"), b"")
    path = os.path.join(str(tmp_path), name)
    assert refusal(path) == "the state PATH cannot be read: " + os.strerror(code)


def test_state_that_was_read_reports_to_the_given_function(path, complaints, monkeypatch):
    begun(path, NUMBERS[:5]).close()
    found = load(path, complaints.append)
    found.begin()
    refuse_writes(monkeypatch, 0)
    found.numbers += NUMBERS[5:10]
    found.flush()
    assert complaints == ["the state %r cannot be written, CONTINUE will go on from what is there: %s"
                          % (path, os.strerror(errno.ENOSPC))]
    monkeypatch.undo()
    assert get(path) == header() + NUMBERS[:5]


# ---- for its owner alone, and for one run at a time


@pytest.mark.parametrize("before", [None, 0o600, 0o644, 0o666])
def test_state_is_for_its_owner_alone_whatever_was_there(path, before):
    if before is not None:
        put(path, b"something")
        os.chmod(path, before)
    begun(path, NUMBERS[:5]).close()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_state_that_is_continued_becomes_its_owner_s_alone(path):
    put(path, header() + NUMBERS[:5])
    os.chmod(path, 0o644)
    load(path).begin()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_state_that_is_continued_stays_the_same_file(path):
    put(path, header() + NUMBERS[:7])
    inode = os.stat(path).st_ino
    found = load(path)
    found.begin()
    assert (get(path), os.stat(path).st_ino) == (header() + NUMBERS[:5], inode)


IN_USE = "the state PATH is in use by another run, name a different one for this run"


def test_second_run_on_a_state_is_refused_until_the_first_is_over(path):
    first = begun(path, NUMBERS[:5])
    assert refusal(path) == IN_USE
    with pytest.raises(UsageError) as refused:
        Journal(CLIENT_ID, N, BATCH, path=path).claim()
    assert str(refused.value).replace(repr(path), "PATH") == IN_USE
    first.close()
    assert bytes(load(path).numbers) == NUMBERS[:5]


def test_state_can_be_looked_at_while_a_run_uses_it(path):
    begun(path, NUMBERS[:5])
    assert bytes(journal.load(path).numbers) == NUMBERS[:5]


def test_state_is_claimed_from_the_moment_it_is_read(path):
    begun(path, NUMBERS[:5]).close()
    load(path)
    assert refusal(path) == IN_USE


def test_new_run_claims_the_earlier_state_and_leaves_it_until_it_begins(path):
    begun(path, NUMBERS[:5]).close()
    made = Journal(CLIENT_ID, N, BATCH, path=path)
    opened.append(made)
    made.claim()
    assert refusal(path) == IN_USE
    made.close()
    assert bytes(load(path).numbers) == NUMBERS[:5] and not made.kept


def test_second_of_two_runs_that_begin_at_once_keeps_no_state(path, complaints):
    runs = [Journal(CLIENT_ID, N, BATCH, path=path, complain=complaints.append) for _ in range(2)]
    opened.extend(runs)
    for run in runs:
        run.claim()
    for run in runs:
        run.begin()
        run.numbers += NUMBERS[:5]
        run.flush()
    assert [run.kept for run in runs] == [True, False]
    assert complaints == [
        "the state %r cannot be written, CONTINUE will not be possible: another run uses it" % path
    ]
    assert get(path) == header() + NUMBERS[:5]


@pytest.mark.parametrize("what", ["removed", "replaced", "unreachable"])
def test_state_that_was_taken_away_is_told_at_the_end(path, complaints, what):
    made = begun(path, NUMBERS[:5], complaints)
    os.unlink(path)
    if what == "replaced":
        put(path, b"another's")
    elif what == "unreachable":  # its directory was moved, and a file is there now
        os.rmdir(os.path.dirname(path))
        put(os.path.dirname(path), b"another's")
    made.close()
    assert not made.kept
    assert complaints == ["the state %r cannot be written, CONTINUE will not be possible: "
                          "another has removed or replaced it" % path]


def test_error_of_the_close_is_one_of_the_write(path, complaints, closing_fails):
    made = begun(path, NUMBERS[:5], complaints)
    with closing_fails():
        made.close()
    assert not made.kept and len(complaints) == 1 and os.strerror(errno.EDQUOT) in complaints[0]


def test_numbers_that_were_not_flushed_are_written_by_the_close(path):
    made = begun(path)
    made.numbers += NUMBERS[:5]
    made.close()
    assert get(path) == header() + NUMBERS[:5]


@pytest.mark.parametrize("name", ["missing/state", ".", "", "n" * 256])
def test_path_that_cannot_be_a_state_is_refused_before_anything_is_sent(tmp_path, monkeypatch, name):
    monkeypatch.chdir(str(tmp_path))
    with pytest.raises(UsageError) as refused:
        Journal(CLIENT_ID, N, BATCH, path=name).claim()
    assert str(refused.value).startswith("the state %a cannot be used: " % name)


def test_device_as_a_state_is_complained_of_before_anything_is_sent(complaints):
    made = Journal(CLIENT_ID, N, BATCH, path=os.devnull, complain=complaints.append)
    made.claim()
    assert complaints == [
        "the state %r cannot be written, CONTINUE will not be possible: not a regular file" % os.devnull
    ]


def test_unwritable_directory_is_complained_of_before_anything_is_sent(path, complaints, monkeypatch):
    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "require_writable", refuse)
    Journal(CLIENT_ID, N, BATCH, path=path, complain=complaints.append).claim()
    assert len(complaints) == 1 and complaints[0].endswith(os.strerror(errno.EROFS))


def test_state_that_may_only_be_read_can_be_continued_without_keeping_more(path, complaints, monkeypatch):
    put(path, header() + NUMBERS[:5])
    real = os.open

    def open_read_only(path, flags, *mode):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", open_read_only)
    found = load(path, complaints.append)
    assert bytes(found.numbers) == NUMBERS[:5] and complaints == []
    found.begin()
    assert complaints == ["the state %r cannot be written, CONTINUE will go on from what is there: %s"
                          % (path, os.strerror(errno.EROFS))]


def test_pipe_as_a_state_is_not_waited_for(path):
    os.mkfifo(path)
    assert refusal(path) == "the state PATH cannot be read: not a regular file"


def test_no_file_stays_open_after_the_close(path, open_files):
    before = open_files()
    for _ in range(2):
        begun(path, NUMBERS[:5]).close()
        found = load(path)
        found.begin()
        found.close()
        with pytest.raises(UsageError):
            load(os.path.dirname(path))
    assert open_files() == before
