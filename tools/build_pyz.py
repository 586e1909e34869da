#!/usr/bin/env python3
"""Builds numseq.pyz, one file to copy to a device: a zip with a shebang that runs on Python 3.6 or later.

    python tools/build_pyz.py [numseq.pyz]

The same sources give the same bytes, whoever builds it, where and when. Nothing in it is compressed: some
small builds have no zlib. There are sources in it and no .pyc, which would tie it to one version of Python.
"""

import io
import os
import sys
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from numseq import files  # noqa: E402

PACKAGE = "numseq"
TARGET = "numseq.pyz"
SHEBANG = b"#!/usr/bin/env python3\n"
TIME = (1980, 1, 1, 0, 0, 0)  # of every file in it: the first that a zip can tell
UNIX = 3  # as the system that made it, so that the mode is read as one
FILE_MODE = 0o100644
TARGET_MODE = 0o755
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
    packed = io.BytesIO()
    packed.write(SHEBANG)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, TIME)
            entry.create_system = UNIX
            entry.external_attr = FILE_MODE << 16
            archive.writestr(entry, data)
    return packed.getvalue()


def main():
    """Writes the file that the command line names, whole or not at all."""
    target = sys.argv[1] if len(sys.argv) > 1 else TARGET
    files.put(target, pack(contents()))
    os.chmod(target, TARGET_MODE)


if __name__ == "__main__":
    main()
