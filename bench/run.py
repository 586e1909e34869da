#!/usr/bin/env python3
"""Measures the server on this machine and prints a table: python bench/run.py

Each figure stands beside a ceiling measured in the same run: bare recv and send of the same bytes on an epoll loop in
Python, without a protocol (bench/ceiling.py); a bare interpreter; randint. Both take turns, each time as a new process,
and the ratio is the median of those of the pairs. It takes about a minute and needs Linux, and no package.

"CPU" is the processor time of the server's process for one operation, so that the load, a process of its own, does
not count. The server is started as a user starts it, except that idle connections are given more time than a second
to be counted in.
"""

import argparse
import collections
import contextlib
import functools
import os
import platform
import resource
import select
import signal
import statistics
import subprocess
import sys
import time

from load import Failure, WARM_UP, memory

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
LOAD, CEILING, DRAWING = (os.path.join(HERE, name) for name in ("load.py", "ceiling.py", "drawing.py"))
SERVER = os.path.join(ROOT, "numseq", "server.py")

SECONDS_MOST = 110  # of the whole run: what takes longer is an error
LINE_SECONDS = 10  # in which a process has to say that it listens
LOAD_SECONDS = 40  # in which a load has to come to its end
FILES = 8192  # open files that are asked for, for the idle connections
FILES_RESERVED = 100  # of those, for all but the connections

WIDTHS = 56, 10, 10, 8  # of the table's columns, in characters

VERSION = ["-c", "import sys; print(sys.implementation.name, sys.version.split()[0])"]

# A bare interpreter, up to when it could say that it listens. It stays for its memory to be looked at.
BARE = ["-c", "import sys; print('ready', flush=True); sys.stdin.read()"]

Unit = collections.namedtuple("Unit", ["name", "size", "format"])
MICROSECONDS = Unit("us CPU", 1e-6, "%.3g")
MILLISECONDS = Unit("ms", 1e-3, "%.3g")
BYTES = Unit("bytes", 1, "%.0f")
MEGABYTES = Unit("MB", 1e6, "%.3g")

# `ours` and `ceiling` are functions of a Bench that return seconds or bytes. They are called in turns.
Figure = collections.namedtuple("Figure", ["name", "label", "unit", "pairs", "ours", "ceiling"])


class Interruption:
    """Ctrl-C and its kin as one KeyboardInterrupt, but never while a process starts: nobody knew yet whom to end."""

    def __init__(self):
        self.held = self.came = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._come)

    def _come(self, number, frame):
        again, self.came = self.came, True
        if not (again or self.held):
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def hold(self):
        """Puts it off."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.came:
            raise KeyboardInterrupt


class Bench:
    """How to run what is measured: with which interpreter, on which processors, how long."""

    def __init__(self, python, quick):
        self.interruption = Interruption()
        self.python = python
        self.quick = quick
        self.end = time.monotonic() + SECONDS_MOST
        # The server gets a processor of its own, and so does the load, which then need not sleep.
        self.processors = sorted(os.sched_getaffinity(0))[:2]

    def command(self, *arguments):
        return [self.python, *map(str, arguments)]

    @contextlib.contextmanager
    def running(self, command, processor, complaints=None):
        """Popen of a command on the first (0) or last (-1) of the processors; it is killed at the end.

        `complaints` is where its standard error goes, as Popen has it.
        """
        # In a session of its own it gets no Ctrl-C from the terminal: its end is ours to bring about.
        process = None
        try:
            with self.interruption.hold():
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints,
                                           bufsize=0, start_new_session=True)
            with contextlib.suppress(OSError):  # where that is not allowed
                os.sched_setaffinity(process.pid, {self.processors[processor]})
            yield process
        finally:
            if process is not None:
                end(process)

    def left(self, seconds):
        """That many seconds, or what is left of the whole run."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise Failure("not done in %d seconds" % SECONDS_MOST)
        return min(seconds, left)

    def first_line(self, process):
        """The first line (text) that a process says."""
        end = time.monotonic() + self.left(LINE_SECONDS)
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise Failure("a process that says nothing")
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                raise Failure("a process that ended with %s before it listened" % process.wait())
            line += data
        return line.decode("ascii")

    def output(self, command):
        """The number that a command prints; raises Failure with what it complains of."""
        with self.running(command, -1, subprocess.PIPE) as process:
            try:
                out, complaints = process.communicate(timeout=self.left(LOAD_SECONDS))
            except subprocess.TimeoutExpired:
                raise Failure("not done in time: %s" % os.path.basename(command[1])) from None
            if process.returncode:
                last_line = complaints.decode("ascii", "replace").strip().rpartition("\n")[2]
                raise Failure(last_line or "%s ended with %s" % (os.path.basename(command[1]), process.returncode))
            return float(out)

    def load(self, server, mode, **options):
        """What the load measures of a server (its command, arguments of the interpreter)."""
        with self.running(self.command(*server), 0) as process:
            port = self.first_line(process).rpartition(":")[2].strip()
            command = [sys.executable, LOAD, mode, port, str(process.pid)]
            for name, value in options.items():
                command += ["--" + name, str(value)]
            return self.output(command + ["--spin"] * (len(self.processors) > 1))

    def start(self, *arguments):
        """Seconds from the start of an interpreter to the first line that it says."""
        begin = time.perf_counter()
        with self.running(self.command(*arguments), 0) as process:
            self.first_line(process)
            return time.perf_counter() - begin

    def bare_memory(self):
        """Bytes of memory that a bare interpreter has had at most."""
        with self.running(self.command(*BARE), 0) as process:
            self.first_line(process)
            return memory(process.pid, "VmHWM")

    def drawing(self, way):
        return self.output(self.command(DRAWING, way))


def end(process):
    """Kills a process and gives back what it took."""
    process.kill()
    process.wait()
    for pipe in process.stdin, process.stdout, process.stderr:
        if pipe is not None:
            pipe.close()


# ---- the figures


def loaded(name, label, unit, pairs, mode, serve=(), keep=(), **options):
    """A Figure of the server and of the ceiling under the same load, with further options for each of them."""
    ceiling = [CEILING, options.get("batch", 5), options.get("window", 1), *keep]
    return Figure(name, label, unit, pairs,
                  functools.partial(Bench.load, server=[SERVER, 0, *serve], mode=mode, **options),
                  functools.partial(Bench.load, server=ceiling, mode=mode, **options))


def figures(quick):
    """The rows of the table."""
    pairs, seconds, churn_seconds = (1, 1.1, 0.4) if quick else (5, 1.5, 1.2)
    connections = max(1, min(500 if quick else 4000, files_limit() - FILES_RESERVED - WARM_UP))
    clients = 2000 if quick else 20000
    return [
        loaded("roundtrips", "round trip, 32 connections", MICROSECONDS, pairs, "round_trips",
               count=32, seconds=seconds),
        loaded("pipelined", "request, 16 connections with 256 each on the way", MICROSECONDS, pairs, "round_trips",
               count=16, window=256, seconds=seconds),
        loaded("sessions", "whole session, 16 at once", MICROSECONDS, pairs, "sessions",
               count=16, seconds=churn_seconds),
        loaded("idle", f"an idle connection, of {connections:,}", BYTES, 1, "idle", serve=["--session-timeout", 60],
               count=connections),
        loaded("retained", f"a retained client, of {clients:,}", BYTES, 1, "retained", keep=["keep"], count=clients),
        Figure("peak", "peak memory with one client (bare interpreter)", MEGABYTES, min(pairs, 3),
               lambda bench: bench.load([SERVER, 0], "peak", window=256), Bench.bare_memory),
        Figure("start", "start to listening (bare interpreter)", MILLISECONDS, 2 * pairs,
               lambda bench: bench.start(SERVER, 0), lambda bench: bench.start(*BARE)),
        Figure("drawing", "drawing 65,535 numbers (randint)", MILLISECONDS, min(pairs, 3),
               lambda bench: bench.drawing("bulk"), lambda bench: bench.drawing("randint")),
        loaded("stall", "longest stall, a client of 65,535 numbers", MILLISECONDS, pairs, "stall",
               batch=65535, count=9),
    ]


def files_limit():
    """How many files may be open, here and in what is started; it is raised as far as may be and is of use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    useful = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < useful:
        resource.setrlimit(resource.RLIMIT_NOFILE, (useful, hard))
        soft = useful
    return FILES if soft == resource.RLIM_INFINITY else soft


# ---- the table


def measure(bench, figure):
    """(label, numseq, ceiling, ratio) of a figure, as text: medians, and the median of the pairs' ratios."""
    pairs = [(figure.ours(bench), figure.ceiling(bench)) for _ in range(figure.pairs)]
    ours, ceiling = map(statistics.median, zip(*pairs))
    ratio = statistics.median(ours / max(ceiling, sys.float_info.min) for ours, ceiling in pairs)
    as_text = [figure.unit.format % (value / figure.unit.size) for value in (ours, ceiling)]
    return ("%s, %s" % (figure.label, figure.unit.name), *as_text, "%.2f" % ratio)


def print_row(cells):
    """A row of a Markdown table, at once, because the next takes its time."""
    aligned = [cells[0].ljust(WIDTHS[0])] + [cell.rjust(width) for cell, width in zip(cells[1:], WIDTHS[1:])]
    print("| " + " | ".join(aligned) + " |", flush=True)


def print_table(bench, names):
    """Measures the figures of those names, and prints them."""
    with bench.running(bench.command(*VERSION), 0) as process:
        version = bench.first_line(process).strip()
    print("%s on %s %s, %d processors\n" % (version, platform.system(), platform.machine(), os.cpu_count()))
    print_row(["figure", "numseq", "ceiling", "ratio"])
    print_row(["-" * WIDTHS[0]] + ["-" * (width - 1) + ":" for width in WIDTHS[1:]])
    for figure in figures(bench.quick):
        if figure.name in names:
            print_row(measure(bench, figure))


def main():
    names = [figure.name for figure in figures(True)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten seconds instead of a minute, for rough figures")
    parser.add_argument("--only", metavar="NAME", choices=names, action="append",
                        help="one figure (%s); may be given again" % ", ".join(names))
    parser.add_argument("--python", default=sys.executable, metavar="PROGRAM",
                        help="the interpreter that is measured (this one)")
    arguments = parser.parse_args()
    try:
        print_table(Bench(arguments.python, arguments.quick), arguments.only or names)
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")
    except (Failure, OSError) as error:
        sys.exit("bench: %s" % error)


if __name__ == "__main__":
    if not (sys.platform.startswith("linux") and hasattr(select, "epoll")):
        sys.exit("bench: this needs Linux, for its epoll and its /proc")
    main()
