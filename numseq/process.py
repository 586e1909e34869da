"""Memory, open files and processor time of this process. Values that the system does not tell are None."""

import os

FILES_LOOKED_AT = 1024  # file numbers to try one by one if the system does not list the open ones


def memory():
    """The resident memory of the process in bytes (int)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def files_open():
    """The number of open files (int)."""
    for folder in "/proc/self/fd", "/dev/fd":
        try:
            return len(os.listdir(folder)) - 1  # without the one that reads the folder
        except OSError:
            pass
    return sum(map(_is_open, range(FILES_LOOKED_AT)))


def _is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def files_most():
    """The limit of open files (int), or None."""
    try:
        most = os.sysconf("SC_OPEN_MAX")
    except (ValueError, OSError):
        return None
    return most if most > 0 else None


def raise_files_most(wanted):
    """Raises the soft limit of open files to `wanted`, as far as the hard limit allows."""
    try:
        import resource
    except ImportError:  # small builds lack it: the limit stays as it is
        return
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # forbidden, as in a sandbox
        pass


def processor_seconds():
    """The processor time that the process has used (seconds)."""
    return sum(os.times()[:2])
