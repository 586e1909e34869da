"""Writes, replaces and locks the files of a client safely: its state, and its outputs.

A file is replaced atomically: the new one is written beside it under a random hidden name, forced to the
disk and renamed. Mode and owner are kept. If a file cannot be replaced (a bind mount, a read-only directory,
a file with several hard links) it is overwritten in place. Devices, pipes and files that this process has
inherited are written to and never replaced.

Throughout, `file` is a file descriptor (int) and `path` is text. `target` is a path as `find` returns it,
with the links at its end resolved.
"""

import errno
import os
import stat

LINKS_MOST = 40  # symbolic links followed in a row, as in Linux
NAMES_MOST = 16  # random names tried for a new file; a name is taken with a probability of 2 ** -48
TRIES_MOST = 4  # attempts while other processes create and remove the target
NAME_BYTES = 6  # random bytes in the name of a new file: short enough for every file system
MODE_NEW = 0o666  # the usual mode of new files, before the umask
MODE_PRIVATE = 0o600

# Flags for opening existing files: a link put there at the last moment is not followed, and opening a pipe
# does not wait for its other end.
CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND

# Errors of replacing a file that may still be writable in place: its directory is not writable, read-only or
# on another device (a bind mount), or the file itself is a mount point.
NOT_REPLACEABLE = frozenset([errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV])
NOT_WRITABLE = frozenset([errno.EACCES, errno.EPERM, errno.EROFS])
# Errors of fsync and lockf on file systems without them, such as some network file systems.
NOT_SUPPORTED = frozenset([errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])

# {(device, inode): descriptor} of the files that this process has locked. The table is needed because lockf
# locks belong to a process: they do not exclude other threads, and closing any descriptor of the same inode
# releases them.
_locked = {}


# ---- paths


def find(path):
    """The path (text) that `path` refers to, with the symbolic links at its end resolved. Raises OSError.

    A link, a file or a pipe of another user in a sticky world-writable directory such as /tmp is refused, as
    Linux does with fs.protected_symlinks, fs.protected_regular and fs.protected_fifos.
    """
    if not path:
        raise _error(errno.ENOENT)
    try:
        if b"\0" in os.fsencode(path):
            raise _error(errno.EINVAL)
    except UnicodeError:  # the file system's encoding lacks a character
        raise _error(errno.EILSEQ) from None
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
    """Raises OSError if there can be no file at `path`: it is a directory, or its directory is missing."""
    if own_file(path) is not None:
        return
    target = find(path)
    directory, name = os.path.split(target)
    if os.path.isdir(target) or not name:
        raise _error(errno.EISDIR)
    if not stat.S_ISDIR(os.stat(directory or os.curdir).st_mode):
        raise _error(errno.ENOTDIR)


def require_writable(path):
    """Raises the OSError that writing to `path` would raise, as far as it can be told in advance."""
    require_usable(path)
    own = own_file(path)
    if own is not None:
        os.write(own, b"")  # fails if it is open for reading only
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
        if not is_locked(target):  # closing the file would release the lock
            os.close(os.open(target, os.O_WRONLY | CAREFULLY))
    elif not os.access(target, os.W_OK):
        raise _error(errno.EACCES)


def is_same(path, other):
    """Whether two paths lead to the same file, even if it does not exist yet (bool)."""
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
    """The open descriptor of this process that `path` refers to (int), or None.

    That is standard output or standard error if it goes to the same file, pipe or terminal under any name; or
    3 for /dev/fd/3.
    """
    try:
        there = os.stat(path)
    except (OSError, ValueError):
        return None
    for file in (1, 2):
        try:
            # A device other than a terminal, such as /dev/null, may be opened again.
            if os.path.samestat(there, os.fstat(file)):
                return file if not stat.S_ISCHR(there.st_mode) or os.isatty(file) else None
        except OSError:  # closed
            pass
    directory, name = os.path.split(path)
    if os.path.realpath(directory) == "/proc/%d/fd" % os.getpid() and name.isdigit():
        return int(name)
    return None


def open_special(path):
    """Opens a device or a pipe for writing, without waiting; returns None while a pipe has no reader.

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
    """Whether `path` is a device or a pipe, which must not be replaced (bool)."""
    there = _stat(path)
    return there is not None and not stat.S_ISREG(there.st_mode) and not stat.S_ISDIR(there.st_mode)


# ---- replacing files


def put(path, data):
    """Replaces the regular file at `path` by one with data (bytes); a reader never sees a part of it.

    Mode and owner of an existing file are kept. Raises OSError.
    """
    for tries_left in reversed(range(TRIES_MOST)):
        target = find(path)
        old = _open_existing(target, os.O_WRONLY)
        try:
            place(target, old, data)
            return
        except FileExistsError:  # another process has just created it
            if not tries_left:
                raise
        finally:
            if old is not None:
                os.close(old)  # after a write in place, an error here is an error of the write


def place(target, old, data, private=False):
    """Makes data (bytes) the content of the file at `target`.

    old      descriptor of the existing file, open for writing; None if there is none
    private  whether the file is only for its owner (mode 0600 from its first byte), locked, and stays open

    Returns the descriptor of a private file, which is `old` if that was overwritten in place; otherwise None.
    Raises OSError; FileExistsError if another file has appeared at `target` meanwhile.
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
    """Sets the mode of a file to 0600, if its file system has modes."""
    try:
        os.fchmod(file, MODE_PRIVATE)
    except OSError:
        pass


def overwrite(file, data):
    """Overwrites a file with data (bytes) in place, and forces it to the disk. Raises OSError."""
    os.lseek(file, 0, os.SEEK_SET)
    os.ftruncate(file, 0)
    write_all(file, data)
    sync(file)


def write_all(file, data):
    """Writes all of data (bytes or bytearray) to a file. Raises OSError."""
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(file, view[written:])


def sync(file):
    """Forces a file to the disk, if its file system supports that. Raises OSError."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def _place_new(target, old, data, private):
    """`place` by a new file and a rename."""
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
            os.close(closing)  # some file systems report a full disk only here
        _move(beside, target, old)
    except BaseException:
        if file is not None:
            release(file)
        _remove(beside)
        raise
    return file


def _take_after(file, old, private):
    """Gives a new file the owner and the mode of the old one. Raises PermissionError if it cannot."""
    was, made = os.fstat(old), os.fstat(file)
    try:
        if (made.st_uid, made.st_gid) != (was.st_uid, was.st_gid):
            os.fchown(file, was.st_uid, was.st_gid)
        if not private:
            os.fchmod(file, stat.S_IMODE(was.st_mode))
    except OSError:  # not permitted, or the owner has no id in this container
        raise _error(errno.EPERM) from None


def _move(beside, target, old):
    """Renames the new file to `target`, which must still be the file `old`, or absent if that is None."""
    if old is None:
        try:
            os.link(beside, target)  # unlike a rename, it fails if the target exists
            _remove(beside)
            return
        except OSError:  # the target exists by now, or the file system has no hard links
            if os.path.lexists(target):
                raise _error(errno.EEXIST) from None
    elif not is_at(target, old):
        raise _error(errno.EEXIST)
    os.replace(beside, target)


def _create_beside(target, mode):
    """Creates a file in the target's directory, for appending: (path, descriptor). Raises OSError."""
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
    except OSError:  # the disk has failed, or another process has removed it
        pass


def _open_existing(target, flags):
    """Opens the regular file at `target`: its descriptor, or None if there is none. Raises OSError."""
    try:
        file = os.open(target, flags | CAREFULLY)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def _is_replaceable(file):
    """Whether a new file can take a file's place without a loss: no other hard links, ACLs or attributes."""
    if os.fstat(file).st_nlink > 1:
        return False
    try:
        names = os.listxattr(file)
    except (AttributeError, OSError):  # not on Linux, or not supported by the file system
        return True
    # The system sets attributes such as security.selinux on the new file as well.
    return all(name.startswith("security.") for name in names)


# ---- locking files


def claim(path):
    """Opens the regular file at `path` for reading and appending, and locks it until `release`.

    Returns (target, descriptor); the descriptor is None if there is no file. Raises OSError; BlockingIOError
    if another run has locked it.
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
    """As `claim`, for an existing file: (target, descriptor, whether it is locked).

    A read-only file is not locked. Raises OSError; FileNotFoundError if there is no file, BlockingIOError if
    another run has locked it.
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
    """Opens the regular file at `target` for reading; returns its descriptor. Raises OSError."""
    file = _open_existing(target, os.O_RDONLY)
    if file is None:
        raise _error(errno.ENOENT)
    return file


def read(file, most):
    """Up to `most` bytes of a file, from its current position (bytes). Raises OSError."""
    data = bytearray()
    while len(data) < most:
        some = os.read(file, most - len(data))
        if not some:
            break
        data += some
    return bytes(data)


def lock(file):
    """Locks a file until `release`; does nothing if its file system has no locks.

    Raises OSError; BlockingIOError if another process or thread has locked it.
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
    """Closes a file, which releases its lock. Raises OSError, which is an error of the last write."""
    key = _key(os.fstat(file))
    if _locked.get(key) == file:
        del _locked[key]
    os.close(file)


def is_locked(target):
    """Whether this process has locked the file at `target` (bool)."""
    there = _stat(target)
    return there is not None and _key(there) in _locked


def is_at(target, file):
    """Whether `file` is still the file at `target` (bool)."""
    there = _stat(target)
    return there is not None and os.path.samestat(there, os.fstat(file))


def _key(status):
    return status.st_dev, status.st_ino


def _stat(path):
    """The os.stat_result of `path`, with links followed, or None if nothing is there or can be reached."""
    try:
        return os.stat(path)
    except OSError:
        return None


def _error(code):
    """The OSError for an error number, in its subclass such as FileNotFoundError."""
    return OSError(code, os.strerror(code))
