"""The process as the system sees it: memory, files, processor time. What a system does not tell is None."""

import os

# numbers of files that are tried one by one, where no folder lists those that are open
FILES_LOOKED_AT = 1024


def memory():
    """Bytes of physical memory that the process takes."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def files_open():
    """How many files the process has open."""
    for folder in "/proc/self/fd", "/dev/fd":
        try:
            return len(os.listdir(folder)) - 1  # less the one that reads the folder
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
    """How many files the process may have open."""
    try:
        most = os.sysconf("SC_OPEN_MAX")
    except (ValueError, OSError):
        return None
    return most if most > 0 else None


def raise_files_most(wanted):
    """Raises the soft limit of open files to `wanted`, or as near to it as the hard limit allows."""
    try:
        import resource
    except ImportError:  # small builds lack it: what is allowed already has to do
        return
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # a sandbox forbids it
        pass


def processor_seconds():
    """Seconds of processor time that the process has taken."""
    return sum(os.times()[:2])
