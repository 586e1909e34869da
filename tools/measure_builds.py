#!/usr/bin/env python3
"""Measures memory and start on this machine's Pythons and Debian's builds: the table of docs/builds.md.

    .venv/bin/python tools/measure_builds.py [FOLDER]

Debian's builds are unpacked in FOLDER, by default where the tests keep them.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "tests"), ROOT]

import builds  # noqa: E402
import debian  # noqa: E402
from builds import Interpreter  # noqa: E402

RUNS = 5  # of each program; what is printed are medians
CACHE = os.path.join(ROOT, ".pytest_cache", "d", "debian")

# Prints the peak memory (KiB) and the CPU time (ns) of this process so far.
USED = """
with open("/proc/self/status") as status, open("/proc/self/schedstat") as spent:
    print([line.split()[1] for line in status if line.startswith("VmHWM")][0], spent.read().split()[0])
"""
CLIENT = """
import sys
sys.path[:0] = [sys.argv[1]]
from numseq.fetching import main
ended = main(sys.argv[2:], "client")
""" + USED + "sys.exit(ended)\n"


def bare(interpreter, source, folder):
    """(MB, ms) of an interpreter that does nothing."""
    return used(told(interpreter, folder, USED))


def client(interpreter, source, folder):
    """(MB, ms) of a client that fetches 5 numbers, until its end."""
    with builds.serving(builds.scripts(builds.newest(), source), folder) as port:
        return used(told(interpreter, folder, CLIENT, source, "NEW", "5", str(port), "-q").splitlines()[-1])


def server(interpreter, source, folder):
    """(MB, ms) of a server with a port alone: memory after one session, time until it listens."""
    build = builds.scripts(interpreter, source)
    process = build.start("server", [0], folder)
    try:
        port = int(process.stdout.readline().rsplit(b":", 1)[1])
        with open("/proc/%d/schedstat" % process.pid) as spent:
            nanoseconds = spent.read().split()[0]
        assert builds.scripts(builds.newest(), source).run("client", ["NEW", 5, port, "-q"], folder)[0] == 0
        with open("/proc/%d/status" % process.pid) as status:
            peak = [line.split()[1] for line in status if line.startswith("VmHWM")][0]
        return used("%s %s" % (peak, nanoseconds))
    finally:
        builds.end(process)


def told(interpreter, folder, code, *arguments):
    return subprocess.check_output(interpreter.command + ["-c", code] + list(arguments), cwd=folder,
                                   env=interpreter.environment, universal_newlines=True)


def used(text):
    peak, nanoseconds = map(int, text.split())
    return peak / 1024, nanoseconds / 1e6


def interpreters(cache):
    """{name: Interpreter} of what can be measured here."""
    found = {"CPython %d.%d" % version: Interpreter([path, "-S"])
             for version, path in builds.pythons().items()}
    for name in builds.DEBIAN:
        folder, reason = builds.unpacked(name, cache)
        emulator, emulator_missing = builds.unpacked("qemu", cache) if name == "s390x" else (None, None)
        if reason or emulator_missing:
            print("%s: %s" % (name, reason or emulator_missing), file=sys.stderr)
            continue
        if emulator:
            emulator = os.path.join(emulator, "usr", "bin", "qemu-s390x-static")
        _, architecture, packages = debian.FOLDERS[name]
        title = "Debian's `%s`%s" % (packages[0], "" if architecture == "amd64" else " on " + architecture)
        found[title] = builds.debian_python(name, folder, emulator)
    return found


def main():
    parser = argparse.ArgumentParser(description="Prints the memory table of docs/builds.md.")
    parser.add_argument("folder", nargs="?", default=CACHE, help="where Debian's builds are unpacked")
    cache = parser.parse_args().folder
    print("%s, %s. Memory is the peak in MB, time is CPU time in ms; medians of %d runs.\n"
          % (platform.system(), platform.machine(), RUNS))
    print("| build | bare interpreter: MB | server | client | bare interpreter: ms | server | client |\n"
          "|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        source = builds.copy_package(folder)
        for name, interpreter in interpreters(cache).items():
            columns = []
            for measure in (bare, server, client):
                measure(interpreter, source, folder)  # the first run compiles
                columns.append([statistics.median(each) for each in
                                zip(*(measure(interpreter, source, folder) for _ in range(RUNS)))])
            print("| %s | %s | %s |" % (name, " | ".join("%.1f" % column[0] for column in columns),
                                       " | ".join("%.0f" % column[1] for column in columns)), flush=True)


if __name__ == "__main__":
    main()
