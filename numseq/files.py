"""Writing files without harm to what is there: the one place of the package that does it.

A file is put in place whole: written beside its target under a random hidden name, forced to the disk, and
renamed. Its mode and its owner stay as they were. Where that cannot be done (a bind mount, a directory that
is not writable, a file with several names) it is written in place. Devices, pipes, and the files that this
process was given are written to and never replaced.
"""

import errno
import os
import stat

LINKS_MOST = 40  # links followed one after the other, as many as Linux follows
NAMES_MOST = 16  # random names tried for a new file: a second one is needed once in 2 ** 48 times
TRIES_MOST = 4  # new beginnings where others create and remove the target meanwhile
NAME_BYTES = 6  # random bytes of a new file's name: short enough for every file system
MODE_NEW = 0o666  # as every program creates files; the umask takes away from it
MODE_PRIVATE = 0o600

# How existing files are opened. A link that is put there at the last moment is not followed, a pipe is not
# waited for.
CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND

# Why a file cannot be replaced by another though it may be written: its directory is not ours to write, or on
# another device or read-only (a bind mount), or it is itself a mount point.
NOT_REPLACEABLE = frozenset([errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV])
NOT_WRITABLE = frozenset([errno.EACCES, errno.EPERM, errno.EROFS])
# What network file systems without fsync or locks answer.
NOT_SUPPORTED = frozenset([errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])

# (device, inode) of each file that this process has locked, and its number. Locks of lockf belong to a
# process: they do not keep its threads apart, and closing any file of the same inode gives them up.
_locked = {}


# ---- where a path leads


def find(path):
    """The path (text) of the file that writing to `path` reaches, with the links at its end followed.

    A link, a file or a pipe that somebody else has put into a directory such as /tmp is refused, as Linux
    does with fs.protected_symlinks, fs.protected_regular and fs.protected_fifos. Raises OSError.
    """
    if not path or "\0" in path:
        raise _error(errno.ENOENT if not path else errno.EINVAL)
    for _ in range(LINKS_MOST):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return path
        directory = os.path.dirname(path) or os.curdir
        if not (stat.S_ISDIR(found.st_mode) or stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
            around = os.stat(directory)
            if (around.st_mode & stat.S_ISVTX and around.st_mode & stat.S_IWOTH
                    and found.st_uid not in (os.geteuid(), around.st_uid)):
                raise _error(errno.EACCES)
        if not stat.S_ISLNK(found.st_mode):
            return path
        path = os.path.join(directory, os.readlink(path))
    raise _error(errno.ELOOP)


def require_usable(path):
    """Raises OSError where no file can ever be at `path`: it is a directory, or its directory is missing."""
    if own_file(path) is not None:
        return
    target = find(path)
    directory, name = os.path.split(target)
    if os.path.isdir(target) or not name:
        raise _error(errno.EISDIR)
    if not stat.S_ISDIR(os.stat(directory or os.curdir).st_mode):
        raise _error(errno.ENOTDIR)


def require_writable(path):
    """Raises the OSError that writing to `path` would meet, as far as that can be told without doing it."""
    require_usable(path)
    if own_file(path) is not None:
        return
    target = find(path)
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        beside, file = _create_beside(target, MODE_PRIVATE)
        os.close(file)
        os.unlink(beside)
        return
    if stat.S_ISSOCK(mode):
        raise _error(errno.ENXIO)
    if stat.S_ISREG(mode):
        if not is_locked(target):  # or closing it would give the lock up
            os.close(os.open(target, os.O_WRONLY | CAREFULLY))
    elif not os.access(target, os.W_OK):
        raise _error(errno.EACCES)


def is_same(path, other):
    """Whether two paths are of one file, also of one that is not there yet."""
    try:
        places = [os.path.split(find(each)) for each in (path, other)]
        files = [_stat(os.path.join(*place)) for place in places]
        if None not in files:
            return os.path.samestat(*files)
        directories = [os.stat(directory or os.curdir) for directory, _ in places]
    except OSError:
        return False
    return files == [None, None] and places[0][1] == places[1][1] and os.path.samestat(*directories)


def own_file(path):
    """The number of the open file of this process that `path` names, or None.

    It is that of standard output or standard error where they go to the same file, pipe or terminal, whatever
    its name; or that of /dev/fd/3.
    """
    try:
        there = os.stat(path)
    except (OSError, ValueError):
        return None
    for file in (1, 2):
        try:
            # The null device behind a standard stream is nobody's in particular.
            if os.path.samestat(there, os.fstat(file)):
                return file if not stat.S_ISCHR(there.st_mode) or os.isatty(file) else None
        except OSError:  # closed
            pass
    directory, name = os.path.split(path)
    if os.path.realpath(directory) == "/proc/%d/fd" % os.getpid() and name.isdigit():
        return int(name)
    return None


def open_special(path):
    """The number of a device or pipe, opened for writing without waiting; None while nobody reads the pipe.

    Raises OSError.
    """
    target = find(path)
    try:
        return os.open(target, os.O_WRONLY | CAREFULLY)
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(target).st_mode):
            return None
        raise


def is_special(path):
    """Whether a device or a pipe is at `path`, which is to be written to and not replaced."""
    there = _stat(path)
    return there is not None and not stat.S_ISREG(there.st_mode) and not stat.S_ISDIR(there.st_mode)


# ---- whole files


def put(path, data):
    """Puts a regular file with data (bytes) at `path`: a reader sees the old or the new one, never a part.

    A file that is there keeps its mode and owner. Raises OSError.
    """
    for tries_left in reversed(range(TRIES_MOST)):
        target = find(path)
        old = _open_existing(target, os.O_WRONLY)
        try:
            place(target, old, data)
            return
        except FileExistsError:  # created at this moment by another
            if not tries_left:
                raise
        finally:
            if old is not None:
                os.close(old)  # where it was written in place, its OSError is one of the write


def place(target, old, data, private=False):
    """Makes data (bytes) the content of the file at `target` (as `find` has it).

    old      the number of the file that is there, open for writing, or None where there is none
    private  whether it is for its owner alone (mode 0600 from its first byte), locked, and stays open

    Returns the number of the private file, which is `old` where that was written in place; None for any
    other. Raises OSError; FileExistsError where another file has come to `target` meanwhile.
    """
    if old is None or _is_replaceable(old):
        try:
            return _place_new(target, old, data, private)
        except OSError as error:
            if old is None or error.errno not in NOT_REPLACEABLE:
                raise
    if private:
        make_private(old)
    overwrite(old, data)
    return old if private else None


def make_private(file):
    """Lets an open file (its number) be for its owner alone, where its file system has modes."""
    try:
        os.fchmod(file, MODE_PRIVATE)
    except OSError:
        pass


def overwrite(file, data):
    """Makes data (bytes) the content of an open file (its number), in place, and forces it to the disk.

    Raises OSError.
    """
    os.lseek(file, 0, os.SEEK_SET)
    os.ftruncate(file, 0)
    write_all(file, data)
    sync(file)


def write_all(file, data):
    """Writes all of data (bytes or bytearray) to an open file (its number). Raises OSError."""
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(file, view[written:])


def sync(file):
    """Forces an open file (its number) to the disk, where its file system can do that. Raises OSError."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def _place_new(target, old, data, private):
    """`place` by way of a new file and a rename."""
    beside, file = _create_beside(target, MODE_PRIVATE if private or old is not None else MODE_NEW)
    try:
        if private:
            lock(file)
        if old is not None:
            _take_after(file, old, private)
        write_all(file, data)
        sync(file)
        if not private:
            closing, file = file, None
            os.close(closing)  # some file systems report only now that there was no room
        _move(beside, target, old)
    except BaseException:
        if file is not None:
            release(file)
        _remove(beside)
        raise
    return file


def _take_after(file, old, private):
    """Gives a new file the owner and the mode of the old one.

    Raises PermissionError where that is not possible.
    """
    was, made = os.fstat(old), os.fstat(file)
    try:
        if (made.st_uid, made.st_gid) != (was.st_uid, was.st_gid):
            os.fchown(file, was.st_uid, was.st_gid)
        if not private:
            os.fchmod(file, stat.S_IMODE(was.st_mode))
    except OSError:  # not ours to do, or an owner that a container does not know
        raise _error(errno.EPERM) from None


def _move(beside, target, old):
    """Gives the new file its name, replacing `old` and nothing else."""
    if old is None:
        try:
            os.link(beside, target)  # unlike a rename, it refuses where there is something by now
            _remove(beside)
            return
        except OSError:  # it has come, or the file system has no links
            if os.path.lexists(target):
                raise _error(errno.EEXIST) from None
    elif not is_at(target, old):
        raise _error(errno.EEXIST)
    os.replace(beside, target)


def _create_beside(target, mode):
    """(path, number) of a new file in the target's directory, which is open for appending. Raises OSError."""
    directory = os.path.dirname(target)
    for tries_left in reversed(range(NAMES_MOST)):
        beside = os.path.join(directory, "." + "".join(map("{:02x}".format, os.urandom(NAME_BYTES))))
        try:
            return beside, os.open(beside, CREATE | CAREFULLY, mode)
        except FileExistsError:
            if not tries_left:
                raise


def _remove(path):
    try:
        os.unlink(path)
    except OSError:  # the disk has just failed, or somebody has tidied up
        pass


def _open_existing(target, flags):
    """The number of the regular file at `target`, opened, or None where there is none. Raises OSError."""
    try:
        file = os.open(target, flags | CAREFULLY)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def _is_replaceable(file):
    """Whether a new file can be the same to everybody: it has one name, and no access list or attributes."""
    if os.fstat(file).st_nlink > 1:
        return False
    try:
        names = os.listxattr(file)
    except (AttributeError, OSError):  # not on Linux, or a file system without
        return True
    # Those are the system's own, which a new file gets as well.
    return all(name.startswith("security.") for name in names)


# ---- locked files


def claim(path):
    """Opens the regular file at `path` for reading and appending, for this run alone.

    Returns (target, number): the path as `find` has it, and None for the number where there is no file.
    `release` ends it. Raises OSError; BlockingIOError where another run has claimed it.
    """
    for _ in range(TRIES_MOST):
        target = find(path)
        if is_locked(target):
            raise _error(errno.EAGAIN)
        file = _open_existing(target, os.O_RDWR | os.O_APPEND)
        if file is None:
            return target, None
        try:
            lock(file)
        except BaseException:
            os.close(file)
            raise
        if is_at(target, file):
            return target, file
        release(file)  # it was replaced before it was locked
    raise _error(errno.EAGAIN)


def open_claimed(path):
    """As `claim`, for a file that is there: (target, number, whether it is claimed).

    One that may only be read is not claimed. Raises OSError; FileNotFoundError where there is none,
    BlockingIOError where another run has claimed it.
    """
    try:
        target, file = claim(path)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        target = find(path)
        return target, open_to_read(target), False
    if file is None:
        raise _error(errno.ENOENT)
    return target, file, True


def open_to_read(target):
    """The number of the regular file at `target` (as `find` has it), opened for reading. Raises OSError."""
    file = _open_existing(target, os.O_RDONLY)
    if file is None:
        raise _error(errno.ENOENT)
    return file


def read(file, most):
    """What is in an open file (its number), at most so many bytes from where it stands. Raises OSError."""
    data = bytearray()
    while len(data) < most:
        some = os.read(file, most - len(data))
        if not some:
            break
        data += some
    return bytes(data)


def lock(file):
    """Locks an open file (its number), or does nothing where its file system has no locks. `release` ends it.

    Raises OSError; BlockingIOError where another process or thread has locked it.
    """
    key = _key(os.fstat(file))
    if _locked.setdefault(key, file) != file:
        raise _error(errno.EAGAIN)
    try:
        os.lockf(file, os.F_TLOCK, 0)
    except (AttributeError, OSError) as error:
        if isinstance(error, AttributeError) or error.errno in NOT_SUPPORTED:
            return
        del _locked[key]
        raise _error(errno.EAGAIN if error.errno == errno.EACCES else error.errno)  # POSIX leaves the choice


def release(file):
    """Closes an open file (its number), and gives its lock up.

    Raises OSError, which is one of the last write.
    """
    key = _key(os.fstat(file))
    if _locked.get(key) == file:
        del _locked[key]
    os.close(file)


def is_locked(target):
    """Whether this process has claimed the file that is at `target`."""
    there = _stat(target)
    return there is not None and _key(there) in _locked


def is_at(target, file):
    """Whether an open file (its number) still has the path `target`."""
    there = _stat(target)
    return there is not None and os.path.samestat(there, os.fstat(file))


def _key(status):
    return status.st_dev, status.st_ino


def _stat(path):
    """What is at `path`, with links followed, or None where nothing is."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _error(code):
    """The OSError of an error number; its class follows from that."""
    return OSError(code, os.strerror(code))
