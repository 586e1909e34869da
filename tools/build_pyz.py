#!/usr/bin/env python3
"""Builds numseq.pyz, one file to copy to a device: a zip with a shebang that runs on Python 3.6 or later.

    python tools/build_pyz.py [numseq.pyz]

The same sources give the same bytes, whoever builds it, where, when and on which Python. Nothing in it is
compressed: some small builds have no zlib. There are sources in it and no .pyc, which would tie it to one
version of Python.

The archive is written by hand, because zipfile needs shutil, which the smallest builds lack. The format is
that of PKWARE's APPNOTE.TXT.
"""

import argparse
import binascii
import os
import struct
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from numseq import files  # noqa: E402

PACKAGE = "numseq"
TARGET = "numseq.pyz"
SHEBANG = b"#!/usr/bin/env python3\n"
FILE_MODE = 0o100644
TARGET_MODE = 0o755

VERSION = 20  # of the format: 2.0, which every reader knows
UNIX = 3  # as the system that made it, so that the mode is read as one
STORED = 0  # the method of compression: none
TIME, DATE = 0, 1 << 5 | 1  # midnight on the first of January 1980, the first day that a zip can tell
# Version needed, flags, method, time, date, checksum, size packed and not, lengths of name and extra field.
COMMON = struct.Struct("<5H3L2H")
# Length of the comment, disk, internal and external attributes, where the file's header is.
DIRECTORY_ENTRY = struct.Struct("<3H2L")
# Four numbers of disks and entries, size of the directory and where it is, length of the comment.
END = struct.Struct("<4H2LH")

MAIN = b"""import sys

from numseq.__main__ import main

sys.exit(main())
"""


def contents():
    """{name: bytes} of the files to go in."""
    found = {"__main__.py": MAIN}
    for name in os.listdir(os.path.join(ROOT, PACKAGE)):
        if name.endswith(".py"):
            with open(os.path.join(ROOT, PACKAGE, name), "rb") as file:
                found[PACKAGE + "/" + name] = file.read()
    return found


def pack(files):
    """The file to run (bytes) that holds the files ({name: bytes})."""
    packed = bytearray(SHEBANG)
    directory = bytearray()
    for name, data in sorted(files.items()):
        path = name.encode("ascii")
        common = COMMON.pack(VERSION, 0, STORED, TIME, DATE, binascii.crc32(data), len(data), len(data),
                             len(path), 0)
        directory += b"PK\1\2" + bytes([VERSION, UNIX]) + common
        directory += DIRECTORY_ENTRY.pack(0, 0, 0, FILE_MODE << 16, len(packed)) + path
        packed += b"PK\3\4" + common + path + data
    end = END.pack(0, 0, len(files), len(files), len(directory), len(packed), 0)
    return bytes(packed + directory + b"PK\5\6" + end)


def main():
    """Writes the file that the command line names, whole or not at all; returns the exit status."""
    parser = argparse.ArgumentParser(description="Builds one file to copy to a device, with all of numseq.")
    parser.add_argument("target", nargs="?", default=TARGET, help="the file to write (%(default)s)")
    target = parser.parse_args().target
    try:
        files.put(target, pack(contents()))
        os.chmod(target, TARGET_MODE)
    except OSError as error:
        sys.stderr.write("build_pyz.py: cannot write %r: %s\n" % (target, error.strerror))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
