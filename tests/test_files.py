"""Files are written whole, keep their mode and owner, and stay what they are."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from helpers import ROOT, needs_proc
from numseq import files

DATA = b"new " * 1000
OTHER_USER = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "target")


@pytest.fixture
def sticky(tmp_path):
    """A folder as /tmp is, which belongs to neither this user nor OTHER_USER."""
    folder = tmp_path / "sticky"
    folder.mkdir()
    os.chown(str(folder), OTHER_USER + 1, -1)
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def claimed():
    """A list of files to release at the end."""
    claimed = []
    yield claimed
    for file in claimed:
        files.release(file)


def get(path):
    with open(path, "rb") as file:
        return file.read()


def make(path, data=b"old", mode=0o644):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
    return os.stat(path)


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def failing(code, when=lambda *arguments: True, real=None):
    """A system call that fails with an error number."""

    def call(*arguments, **keywords):
        if when(*arguments):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **keywords)

    return call


# ---- whole files


def test_new_file_has_the_mode_that_the_umask_leaves(path):
    before = os.umask(0o027)
    try:
        files.put(path, DATA)
    finally:
        os.umask(before)
    assert (get(path), mode_of(path)) == (DATA, 0o640)
    assert os.listdir(os.path.dirname(path)) == ["target"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o666, 0o755])
def test_file_that_is_replaced_keeps_its_mode(path, mode):
    before = make(path, mode=mode)
    files.put(path, DATA)
    assert (get(path), mode_of(path)) == (DATA, mode)
    assert os.stat(path).st_ino != before.st_ino, "it was not replaced whole"
    assert os.listdir(os.path.dirname(path)) == ["target"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.ENOSYS])
def test_mode_that_cannot_be_kept_makes_it_written_in_place(path, monkeypatch, code):
    before = make(path)
    monkeypatch.setattr(os, "fchmod", failing(code))
    files.put(path, DATA)
    assert (get(path), os.stat(path).st_ino) == (DATA, before.st_ino)
    assert os.listdir(os.path.dirname(path)) == ["target"]


@needs_root
def test_file_that_is_replaced_keeps_its_owner_and_group(path):
    make(path)
    os.chown(path, OTHER_USER, OTHER_USER + 1)
    files.put(path, DATA)
    there = os.stat(path)
    assert (get(path), there.st_uid, there.st_gid) == (DATA, OTHER_USER, OTHER_USER + 1)


def test_owner_that_cannot_be_kept_makes_it_written_in_place(path, monkeypatch):
    before = make(path)
    real = os.fstat
    monkeypatch.setattr(os, "fchown", failing(errno.EPERM))
    monkeypatch.setattr(os, "fstat", lambda file: pretend_owner(real(file), before.st_ino))
    files.put(path, DATA)
    monkeypatch.undo()
    assert (get(path), os.stat(path).st_ino) == (DATA, before.st_ino)
    assert os.listdir(os.path.dirname(path)) == ["target"]


def pretend_owner(status, inode):
    """The status of a file, which is another user's if it is the one with that inode."""
    if status.st_ino != inode:
        return status
    return os.stat_result(tuple(status)[:4] + (OTHER_USER,) + tuple(status)[5:10])


def test_file_with_two_names_keeps_both(path):
    before = make(path)
    os.link(path, path + ".second")
    files.put(path, DATA)
    assert get(path + ".second") == DATA and os.stat(path).st_ino == before.st_ino


def test_file_with_extended_attributes_keeps_them(path):
    before = make(path)
    try:
        os.setxattr(path, "user.numseq", b"1")
    except (AttributeError, OSError):
        pytest.skip("this file system has no attributes")
    files.put(path, DATA)
    assert (get(path), os.getxattr(path, "user.numseq")) == (DATA, b"1")
    assert os.stat(path).st_ino == before.st_ino


def test_link_stays_a_link_and_its_target_is_replaced(tmp_path, path):
    (tmp_path / "folder").mkdir()
    make(str(tmp_path / "folder" / "real"))
    os.symlink("folder/real", path + ".inner")
    os.symlink("target.inner", path)
    files.put(path, DATA)
    assert os.path.islink(path) and os.path.islink(path + ".inner")
    assert get(str(tmp_path / "folder" / "real")) == DATA
    assert os.listdir(str(tmp_path / "folder")) == ["real"]


def test_link_to_nothing_makes_the_file_where_it_points(tmp_path, path):
    os.symlink("elsewhere", path)
    files.put(path, DATA)
    assert os.path.islink(path) and get(str(tmp_path / "elsewhere")) == DATA


def test_links_in_a_circle_are_an_error(path):
    os.symlink("target", path)
    with pytest.raises(OSError) as refused:
        files.put(path, DATA)
    assert refused.value.errno == errno.ELOOP


def test_files_of_the_user_with_similar_names_are_left_alone(tmp_path, path):
    names = ["target.%d" % os.getpid(), "target.1", ".target", "target~", "target.tmp"]
    for name in names:
        make(str(tmp_path / name))
    files.put(path, DATA)
    assert sorted(os.listdir(str(tmp_path))) == sorted(names + ["target"])
    assert all(get(str(tmp_path / name)) == b"old" for name in names)


def test_random_name_that_is_taken_is_left_alone(tmp_path, path, monkeypatch):
    values = [b"\0" * files.NAME_BYTES, b"\1" * files.NAME_BYTES]
    taken = str(tmp_path / ("." + "00" * files.NAME_BYTES))
    make(taken)
    monkeypatch.setattr(os, "urandom", lambda size: values.pop(0))
    files.put(path, DATA)
    assert (get(path), get(taken), values) == (DATA, b"old", [])


def test_longest_name_that_a_file_can_have_is_written(tmp_path):
    path = str(tmp_path / ("n" * 255))
    for data in b"first", b"second":
        files.put(path, data)
        assert get(path) == data


def test_data_is_forced_to_the_disk_before_the_rename(path, monkeypatch):
    make(path)
    calls = []
    for name in "fsync", "replace", "close":
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, name=name, real=real:
                            (calls.append(name), real(*arguments))[1])
    files.put(path, DATA)
    assert calls[:3] == ["fsync", "close", "replace"], "an error of close() is to be known before the rename"


@pytest.mark.parametrize("name", ["write", "fsync", "close", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_failure_leaves_the_old_file_and_nothing_beside_it(path, monkeypatch, name, code):
    make(path, mode=0o640)
    real = getattr(os, name)
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if name == "close":
            real(*arguments)
        if len(calls) == 1:
            raise OSError(code, os.strerror(code))
        return None if name == "close" else real(*arguments)

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError) as failed:
        files.put(path, DATA)
    monkeypatch.undo()
    assert failed.value.errno == code
    assert (get(path), mode_of(path), os.listdir(os.path.dirname(path))) == (b"old", 0o640, ["target"])


def test_file_system_without_fsync_is_written_all_the_same(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    files.put(path, DATA)
    assert get(path) == DATA


def test_file_system_without_links_is_written_all_the_same(path, monkeypatch):
    monkeypatch.setattr(os, "link", failing(errno.EACCES))
    files.put(path, DATA)
    assert get(path) == DATA and os.listdir(os.path.dirname(path)) == ["target"]


@pytest.mark.parametrize("code", sorted(files.NOT_REPLACEABLE))
@pytest.mark.parametrize("call", ["replace", "open"])
def test_file_that_cannot_be_replaced_is_written_in_place(path, monkeypatch, call, code):
    before = make(path, b"old " * 5000, 0o640)
    creates = (lambda path, flags, *rest: flags & os.O_CREAT) if call == "open" else lambda *arguments: True
    monkeypatch.setattr(os, call, failing(code, creates, getattr(os, call)))
    files.put(path, DATA)
    monkeypatch.undo()
    assert (get(path), mode_of(path), os.stat(path).st_ino) == (DATA, 0o640, before.st_ino)
    assert os.listdir(os.path.dirname(path)) == ["target"]


def test_failing_close_of_a_file_written_in_place_is_an_error(path, monkeypatch):
    before = make(path)
    monkeypatch.setattr(os, "replace", failing(errno.EBUSY))
    real = os.close

    def close(file):
        inode = os.fstat(file).st_ino
        real(file)
        if inode == before.st_ino:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "close", close)
    with pytest.raises(OSError) as failed:
        files.put(path, DATA)
    assert failed.value.errno == errno.EDQUOT


@needs_root
def test_bind_mount_is_written_in_place(tmp_path, path):
    before = make(path)
    make(str(tmp_path / "mounted"))
    code = ("import sys; sys.path.insert(0, %r); from numseq import files; "
            "files.require_writable(%r); files.put(%r, b'new')" % (ROOT, path, path))
    script = 'mount --bind "$0" "$1" && exec "$2" -c "$3"'
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script,
         str(tmp_path / "mounted"), path, sys.executable, code],
        stderr=subprocess.PIPE, universal_newlines=True)
    if "Operation not permitted" in ran.stderr or "permission denied" in ran.stderr:
        pytest.skip("nothing can be mounted here")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (get(str(
        tmp_path / "mounted")), get(path), os.stat(path).st_ino) == (b"new", b"old", before.st_ino)


@needs_root
def test_writable_file_in_a_directory_that_is_not_is_written(path):
    make(path, mode=0o666)
    os.chmod(os.path.dirname(path), 0o755)
    for folder in [path]:
        while folder != "/":
            folder = os.path.dirname(folder)
            if not os.stat(folder).st_mode & stat.S_IXOTH:
                os.chmod(folder, os.stat(folder).st_mode | 0o011)
    run_as_other("files.require_writable(%r); files.put(%r, b'new')" % (path, path))
    assert get(path) == b"new"


@needs_root
def test_file_that_may_not_be_written_is_not_replaced(path):
    make(path, mode=0o444)
    os.chmod(os.path.dirname(path), 0o777)
    run_as_other(
        "import errno\nfor call in lambda: files.require_writable(%r), lambda: files.put(%r, b'new'):\n"
        "    try: call()\n    except PermissionError: continue\n    raise SystemExit('written')" %
        (path, path))
    assert get(path) == b"old"


def run_as_other(code):
    """Runs code in another interpreter as OTHER_USER, where `files` is imported already."""
    code = ("import os, sys; sys.path.insert(0, %r); from numseq import files; "
            "os.setgroups([]); os.setgid(%d); os.setuid(%d)\n" % (ROOT, OTHER_USER, OTHER_USER)) + code
    ran = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code],
                         stderr=subprocess.PIPE, universal_newlines=True, cwd="/")
    assert (ran.returncode, ran.stderr) == (0, "")


# ---- what others have put there


@needs_root
@pytest.mark.parametrize("exists", [True, False])
def test_link_of_another_in_a_sticky_directory_is_refused(sticky, path, exists):
    if exists:
        make(path, b"victim")
    link = str(sticky / "out.txt")
    os.symlink(path, link)
    os.lchown(link, OTHER_USER, -1)
    for call in files.put, lambda link, data: files.require_writable(link), lambda link, data: files.claim(
            link):
        with pytest.raises(PermissionError):
            call(link, DATA)
    assert get(path) == b"victim" if exists else not os.path.exists(path)


@needs_root
def test_own_link_in_a_sticky_directory_is_followed(sticky, path):
    os.symlink(path, str(sticky / "out.txt"))
    files.put(str(sticky / "out.txt"), DATA)
    assert get(path) == DATA


@needs_root
def test_link_of_the_directory_s_owner_is_followed(sticky, path):
    os.symlink(path, str(sticky / "out.txt"))
    os.lchown(str(sticky / "out.txt"), OTHER_USER + 1, -1)
    files.put(str(sticky / "out.txt"), DATA)
    assert get(path) == DATA


@needs_root
@pytest.mark.parametrize("create", [make, os.mkfifo])
def test_file_of_another_in_a_sticky_directory_is_refused(sticky, create):
    path = str(sticky / "out.txt")
    create(path)
    os.chown(path, OTHER_USER, -1)
    with pytest.raises(PermissionError):
        files.put(path, DATA)
    with pytest.raises(PermissionError):
        files.require_writable(path)


def test_link_that_comes_at_the_last_moment_is_not_followed(path, monkeypatch):
    make(path + ".victim")
    real = files.find

    def find(asked):
        found = real(asked)
        os.symlink(path + ".victim", path)
        return found

    monkeypatch.setattr(files, "find", find)
    with pytest.raises(OSError):
        files.put(path, DATA)
    assert get(path + ".victim") == b"old"


def test_file_that_comes_at_the_last_moment_is_not_lost(path, monkeypatch):
    """It is seen by the second try, and replaced as any other: with its mode."""
    real = os.link

    def link(source, target):
        monkeypatch.setattr(os, "link", real)
        make(target, mode=0o640)
        return real(source, target)

    monkeypatch.setattr(os, "link", link)
    files.put(path, DATA)
    assert (get(path), mode_of(path)) == (DATA, 0o640)


# ---- told before anything is done


@pytest.mark.parametrize("name, code", [
    ("", errno.ENOENT), (".", errno.EISDIR), ("folder", errno.EISDIR), ("folder/", errno.EISDIR),
    ("missing/", errno.EISDIR), ("missing/x", errno.ENOENT), ("file/x", errno.ENOTDIR),
    ("n" * 256, errno.ENAMETOOLONG), ("circle", errno.ELOOP), ("a\0b", errno.EINVAL),
    ("\ud800", errno.EILSEQ),
    ("to-missing", errno.ENOENT), ("to-folder", errno.EISDIR),
])
def test_impossible_path_is_not_usable(tmp_path, monkeypatch, name, code):
    monkeypatch.chdir(str(tmp_path))
    os.mkdir("folder")
    make("file")
    os.symlink("circle", "circle")
    os.symlink("missing/x", "to-missing")
    os.symlink("folder", "to-folder")
    before = sorted(os.listdir("."))
    for call in files.require_usable, files.require_writable:
        with pytest.raises(OSError) as refused:
            call(name)
        assert refused.value.errno == code
    assert sorted(os.listdir(".")) == before


def test_check_of_a_path_leaves_nothing_and_changes_nothing(tmp_path, path):
    files.require_writable(path)
    assert os.listdir(str(tmp_path)) == []
    before = make(path)
    files.require_writable(path)
    os.mkfifo(path + ".pipe")
    files.require_writable(path + ".pipe")
    files.require_writable(os.devnull)
    assert os.stat(path) == before and len(os.listdir(str(tmp_path))) == 2


@needs_proc
def test_file_of_this_process_that_is_only_read_is_told_before(path):
    make(path)
    with open(path, "rb") as file, open(path, "r+b") as both:
        files.require_writable("/proc/self/fd/%d" % both.fileno())
        with pytest.raises(OSError) as refused:
            files.require_writable("/proc/self/fd/%d" % file.fileno())
        assert refused.value.errno == errno.EBADF


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_directory_that_cannot_be_written_is_told_before(path, monkeypatch, code):
    monkeypatch.setattr(os, "open", failing(code, lambda path, flags, *rest: flags & os.O_CREAT, os.open))
    files.require_usable(path)
    with pytest.raises(OSError) as refused:
        files.require_writable(path)
    assert refused.value.errno == code


def test_same_file_is_seen_under_any_name(tmp_path, path):
    os.mkdir(path + ".folder")
    os.symlink("target.folder", path + ".way")
    os.symlink("target", path + ".link")
    assert files.is_same(path, path + ".link") and files.is_same(path,
                                                                 os.path.join(str(tmp_path), ".", "target"))
    assert files.is_same(path + ".folder/x", path + ".way/x")
    make(path)
    os.link(path, path + ".second")
    assert files.is_same(path, path + ".link") and files.is_same(path, path + ".second")
    for other in path + ".other", path + ".folder/target", "missing/x", "":
        assert not files.is_same(path, other)


def test_devices_and_pipes_are_special(path):
    assert files.is_special(os.devnull)
    os.mkfifo(path)
    assert files.is_special(path)
    os.symlink("target", path + ".link")
    assert files.is_special(path + ".link")
    for name in path + ".missing", os.path.dirname(path), __file__:
        assert not files.is_special(name)


def test_pipe_is_neither_replaced_nor_waited_for(path):
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError):
            files.put(path, DATA)
    finally:
        os.close(reading)
    assert stat.S_ISFIFO(os.stat(path).st_mode)


# ---- the files of this process itself


def own_file_of(path, stdout, prepare=""):
    """What `own_file` says of a path in another process with that standard output (an open file)."""
    code = ("import os, sys; sys.path.insert(0, %r); from numseq import files; %s\n"
            "sys.stderr.write(repr(files.own_file(%r)))" % (ROOT, prepare, path))
    return subprocess.run([sys.executable, "-B", "-c", code], stdout=stdout, stderr=subprocess.PIPE,
                          universal_newlines=True).stderr


@needs_proc
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", None])
def test_standard_output_is_known_under_all_its_names(path, name):
    with open(path, "ab") as log:
        assert own_file_of(name or path, log) == "1"


def test_pipe_behind_standard_output_is_known():
    assert own_file_of("/dev/stdout", subprocess.PIPE) == "1"


@needs_proc
def test_file_that_was_handed_over_is_known_by_its_number(path):
    assert own_file_of("/dev/fd/7", subprocess.DEVNULL,
                       "os.dup2(os.open(%r, os.O_CREAT | os.O_WRONLY), 7)" % path) == "7"


@pytest.mark.parametrize("name", ["", "missing", __file__, "/dev/fd/99", "a\0b"])
def test_any_other_path_is_not_a_file_of_this_process(name):
    assert files.own_file(name) is None


# ---- claimed files


def test_claimed_file_cannot_be_claimed_again(path, claimed):
    make(path)
    target, file = files.claim(path)
    claimed.append(file)
    assert target == path and os.read(file, 10) == b"old"
    os.symlink("target", path + ".link")
    for name in path, path + ".link":
        with pytest.raises(BlockingIOError):
            files.claim(name)
    run = claim_elsewhere(path)
    assert run == "BlockingIOError", "a refused claim has given the lock up"


def claim_elsewhere(path):
    """What a claim comes to in another process."""
    code = (
        "import sys; sys.path.insert(0, %r); from numseq import files\n"
        "try: files.claim(%r)\nexcept OSError as error: print(type(error).__name__)\nelse: print('claimed')" %
        (ROOT, path))
    return subprocess.check_output([sys.executable, "-B", "-c", code], universal_newlines=True).strip()


def test_released_file_can_be_claimed_again(path, claimed):
    make(path)
    _, file = files.claim(path)
    files.release(file)
    assert claim_elsewhere(path) == "claimed"
    claimed.append(files.claim(path)[1])


def test_claim_of_a_missing_file_claims_nothing(path):
    assert files.claim(path) == (path, None)
    assert not os.path.exists(path)


def test_check_of_a_claimed_file_does_not_give_it_up(path, claimed):
    make(path)
    claimed.append(files.claim(path)[1])
    files.require_writable(path)
    assert claim_elsewhere(path) == "BlockingIOError"


def test_file_replaced_between_open_and_lock_is_not_mistaken(path, claimed, monkeypatch):
    make(path, b"first")
    real = os.lockf

    def lockf(file, command, size):
        monkeypatch.setattr(os, "lockf", real)
        make(path + ".new", b"second")
        os.replace(path + ".new", path)
        return real(file, command, size)

    monkeypatch.setattr(os, "lockf", lockf)
    _, file = files.claim(path)
    claimed.append(file)
    assert os.read(file, 10) == b"second"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EINVAL])
def test_file_system_without_locks_can_be_used(path, claimed, monkeypatch, code):
    make(path)
    monkeypatch.setattr(os, "lockf", failing(code))
    claimed.append(files.claim(path)[1])
    with pytest.raises(BlockingIOError):
        files.claim(path)  # another thread of this process is kept away all the same


def test_private_file_has_its_mode_from_the_first_byte(path, claimed, monkeypatch):
    modes = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: (modes.append(stat.S_IMODE(os.fstat(file).st_mode)),
                                                         real(file, data))[1])
    claimed.append(files.place(path, None, DATA, private=True))
    assert modes == [0o600] and mode_of(path) == 0o600
    assert claim_elsewhere(path) == "BlockingIOError", "it was not locked when it came into its place"


def test_private_file_that_replaces_one_is_private_and_locked(path, claimed):
    make(path, mode=0o644)
    target, old = files.claim(path)
    claimed.append(files.place(target, old, DATA, private=True))
    files.release(old)
    assert claim_elsewhere(path) == "BlockingIOError"  # first: reading it here would give the lock up
    assert (get(path), mode_of(path)) == (DATA, 0o600)


def test_private_file_written_in_place_is_private_and_locked(path, claimed):
    make(path, b"old " * 5000, 0o644)
    os.link(path, path + ".second")
    target, old = files.claim(path)
    claimed.append(old)
    assert files.place(target, old, DATA, private=True) == old
    os.write(old, b"more")
    assert claim_elsewhere(path) == "BlockingIOError"  # first: reading it here would give the lock up
    assert (get(path), mode_of(path)) == (DATA + b"more", 0o600)


def test_private_file_is_not_put_over_one_that_came_meanwhile(path, claimed):
    assert files.claim(path) == (path, None)
    make(path, b"another run's")
    with pytest.raises(FileExistsError):
        files.place(path, None, DATA, private=True)
    assert get(path) == b"another run's"
    assert os.listdir(os.path.dirname(path)) == ["target"]
