#!/usr/bin/env python3
"""Measures the server on this machine beside others, and prints tables: python bench/run.py

The others are the same protocol on asyncio and on uvloop (bench/peer.py), and a bare loop that receives and
sends the same bytes without a protocol (bench/ceiling.py). All take turns, each time as a new process. It
needs Linux, and takes five minutes. How each figure is made is printed below its table. uvloop is measured
where the interpreter has it.

    python bench/run.py --table growth    # how cost grows, in another three minutes
    python bench/run.py --quick           # rough figures
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
LOAD, CEILING, PEER, TIMERS = (os.path.join(HERE, name)
                               for name in ("load.py", "ceiling.py", "peer.py", "timers.py"))
SERVER = os.path.join(ROOT, "numseq", "server.py")

# Generous, because they only end what hangs. A busy machine takes several times as long as an idle one.
SECONDS_MOST = 1200  # the whole run
LINE_SECONDS = 60  # from the start of a process to its first line
LOAD_SECONDS = 200  # one load
FILES = 8192  # open files that are asked for, for the idle connections
FILES_RESERVED = 100  # of those, for all but the connections

VERSION = ["-c", "import sys; print(sys.implementation.name, sys.version.split()[0])"]

# A bare interpreter, up to when it could say that it listens. It stays for its memory to be looked at.
BARE = ["-c", "import sys; print('ready', flush=True); sys.stdin.read()"]

Unit = collections.namedtuple("Unit", ["name", "size", "format"])
MICROSECONDS = Unit("us", 1e-6, "%.3g")
MILLISECONDS = Unit("ms", 1e-3, "%.3g")
BYTES = Unit("bytes", 1, "%.0f")
MEGABYTES = Unit("MB", 1e6, "%.3g")

# `columns` are functions of a Bench that return seconds or bytes, by the column's name. They are called in
# turns.
Figure = collections.namedtuple("Figure", ["name", "label", "unit", "rounds", "columns"])

# `ratio` are the names of two columns.
Table = collections.namedtuple("Table", ["title", "columns", "ratio", "figures", "notes"])


class Interruption:
    """Turns SIGINT, SIGTERM and SIGHUP into one KeyboardInterrupt, but not during a process start."""

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
    """How to run what is measured: with which interpreter, on which processors."""

    def __init__(self, python):
        self.interruption = Interruption()
        self.python = python
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
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                           stderr=complaints,
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
                raise Failure(last_line or "%s ended with %s"
                              % (os.path.basename(command[1]), process.returncode))
            return float(out)

    def load(self, server, mode, **options):
        """What the load measures of a server (its command, arguments of the interpreter)."""
        with self.running(self.command(*server), 0) as process:
            port = self.first_line(process).rpartition(":")[2].strip()
            command = [sys.executable, LOAD, mode, port, str(process.pid)]
            for name, value in options.items():
                command += ["--" + name, str(value)]
            return self.output(command + ["--spin"] * (len(self.processors) > 1))

    def compile(self):
        """Makes the package's byte code, where its folder can be written."""
        with self.running(self.command("-m", "compileall", "-q", os.path.dirname(SERVER)), 0) as process:
            process.wait(self.left(LINE_SECONDS))

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

    def timers(self, count):
        """Seconds for a timer that is set and cancelled beside `count` others."""
        return self.output(self.command(TIMERS, count))

    def has(self, module):
        """Whether the interpreter that is measured has a module."""
        with self.running(self.command("-c", "import " + module), 0, subprocess.DEVNULL) as process:
            return process.wait(self.left(LINE_SECONDS)) == 0


def end(process):
    """Kills a process and gives back what it took."""
    process.kill()
    process.wait()
    for pipe in process.stdin, process.stdout, process.stderr:
        if pipe is not None:
            pipe.close()


# ---- the figures


SERVERS = "numseq", "asyncio", "uvloop", "bare"


def loaded(name, label, unit, rounds, mode, columns=SERVERS, timeout=None, keep=(), **options):
    """A Figure of servers under the same load; `timeout` (seconds) is their session timeout."""
    commands = {
        "numseq": [SERVER, 0] + (["--session-timeout", timeout] if timeout else []),
        "asyncio": [PEER, "asyncio"] + ([timeout] if timeout else []),
        "uvloop": [PEER, "uvloop"] + ([timeout] if timeout else []),
        "bare": [CEILING, options.get("batch", 5), options.get("window", 1), *keep],
    }
    return Figure(name, label, unit, rounds, {
        column: functools.partial(Bench.load, server=commands[column], mode=mode, **options)
        for column in columns})


def compared(quick):
    """The table of the server beside others."""
    rounds, seconds = (1, 0.3) if quick else (5, 0.8)
    connections = idle_connections(500 if quick else 4000)
    clients = 2000 if quick else 20000
    trips = [loaded("roundtrip-%d" % count, f"round trip, connections: {count:,}", MICROSECONDS, rounds,
                    "round_trips", count=count, numbers=1000, seconds=seconds)
             for count in (1, 8, 32, 256, 1000)]
    return Table("Beside others", SERVERS, ("numseq", "uvloop"), trips + [
        loaded("pipelined", "request, 16 connections, 256 on the way", MICROSECONDS, rounds, "round_trips",
               count=16, window=256, numbers=5000, seconds=seconds),
        loaded("session-5", "session of 5 numbers, 16 at once", MICROSECONDS, rounds, "sessions",
               count=16, seconds=seconds),
        loaded("session-1000", "session of 1,000 numbers, 16 at once", MICROSECONDS, rounds, "sessions",
               count=16, batch=1000, seconds=seconds),
        loaded("stall", "longest wait behind a client of 65,535 numbers", MILLISECONDS, rounds, "stall",
               columns=SERVERS[:3], count=9),
        loaded("stall-whole", "... that takes all in one batch", MILLISECONDS, rounds, "stall",
               columns=SERVERS[:3], batch=65535, count=9),
        loaded("idle", f"an idle connection, of {connections:,}", BYTES, 1, "idle", timeout=60, numbers=5,
               count=connections),
        loaded("retained", f"a retained sequence, of {clients:,}", BYTES, 1, "retained", keep=["keep"],
               count=clients),
        Figure("peak", "peak memory, one client", MEGABYTES, min(rounds, 3), {
            "numseq": lambda bench: bench.load([SERVER, 0], "peak", window=256),
            "asyncio": lambda bench: bench.load([PEER, "asyncio"], "peak", window=256),
            "uvloop": lambda bench: bench.load([PEER, "uvloop"], "peak", window=256),
            "bare": Bench.bare_memory}),
        Figure("start", "start to listening", MILLISECONDS, 2 * rounds, {
            "numseq": lambda bench: bench.start(SERVER, 0),
            "asyncio": lambda bench: bench.start(PEER, "asyncio"),
            "uvloop": lambda bench: bench.start(PEER, "uvloop"),
            "bare": lambda bench: bench.start(*BARE)}),
    ], COMPARED_NOTES)


COMPARED_NOTES = """\
Each cell is the median of the rounds and, in parentheses, the least and the most of them; in each round the
columns take turns, and the last column is the median of the rounds' ratios. With one round there is no
spread.

- us: processor time, user and system, of the server's process for one operation. The load is a process of
  its own on another processor and is not counted; it polls without sleeping, so that nobody pays for waking
  it. Not counted either: interrupts, and what the kernel does for the server in the load's time, as
  delivering its bytes.
- round trip: one RECV of 5 of 1,000 numbers and its NUM, the same batches again and again. All connections
  send before any sends again, so that each server finds its work waiting. The opening of the connections is
  not counted; that they end after a second and go on with CONT is.
- request: as a round trip, with 256 RECVs in one write, of 5 of 5,000 numbers.
- session: connect, INIT, one RECV of all numbers, FIN, close, each as a new client.
- longest wait: of a RECV of another connection, sent right after the first RECV or the FIN of a client of
  65,535 numbers in batches of 5; median of nine clients. In elapsed time, the load's own included.
- bytes: growth of resident memory by their number; the kernel's sockets are not counted.
- peak memory: of a process that has served 65,535 numbers in windows of 256; bare: an interpreter that does
  nothing.
- start: from the start of the process to its first line, with byte code there; bare: the same interpreter.
- asyncio, uvloop: bench/peer.py. Its numbers are made as text when a sequence is created: not counted in a
  round trip.
- bare: an epoll loop in Python that sends answers made beforehand: nothing is parsed, drawn, checked or
  timed."""


def growth(quick):
    """The table of how the server's cost grows.

    Each figure is the server's own; there is nothing to divide by.
    """
    rounds, seconds = (1, 0.3) if quick else (5, 0.8)
    alone = dict(columns=SERVERS[:1])

    def trips(label, count, numbers):
        return loaded("%d-of-%d" % (count, numbers), label, MICROSECONDS, rounds, "round_trips",
                      count=idle_connections(count), numbers=numbers, seconds=seconds, timeout=60, **alone)

    connections = 1, 8, 32, 256, 1000, 4000
    left = 0, 1000 if quick else 10000, 2000 if quick else 50000
    return Table("Growth", SERVERS[:1], None, [
        trips(f"round trip of 1,000 numbers, connections: {count:,}", count, 1000) for count in connections
    ] + [
        trips(f"round trip of {numbers:,} numbers, connections: {count:,}", count, numbers)
        for count in (32, 1000) for numbers in (5, 10000, 65535)
    ] + [
        loaded("left-%d" % count, f"session of 5 numbers, {count:,} sequences retained", MICROSECONDS, rounds,
               "sessions", count=16, seconds=seconds, left=count, **alone) for count in left
    ] + [
        Figure("timers-%d" % count, f"a timer set and cancelled, {count:,} others", MICROSECONDS, rounds, {
            "numseq": lambda bench, count=count: bench.timers(count)}) for count in (0, 1000, 100000)
    ], GROWTH_NOTES)


GROWTH_NOTES = """\
As in the other table, except that connections last: no CONT is counted. What a request draws is counted: at
first nearly each one of a long sequence draws a block of 256 numbers. A timer is set and cancelled in a
loop without connections."""


TABLES = {"compared": compared, "growth": growth}


def idle_connections(count):
    """That many, or as many as the limit of open files allows."""
    return max(1, min(count, files_limit() - FILES_RESERVED - WARM_UP))


def files_limit():
    """The limit of open files, here and in child processes, raised as far as allowed and useful."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    useful = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < useful:
        resource.setrlimit(resource.RLIMIT_NOFILE, (useful, hard))
        soft = useful
    return FILES if soft == resource.RLIM_INFINITY else soft


# ---- the tables


def measure(bench, figure, table, columns):
    """The cells of a figure's row, as text: its label, each column of the table, and the ratio."""
    measured = [column for column in table.columns if column in columns and column in figure.columns]
    rounds = [{column: figure.columns[column](bench) for column in measured} for _ in range(figure.rounds)]

    def cell(column):
        if column not in measured:
            return "-"
        values = sorted(each[column] / figure.unit.size for each in rounds)
        text = figure.unit.format % statistics.median(values)
        if len(values) == 1:
            return text
        return text + " (%s-%s)" % (figure.unit.format % values[0], figure.unit.format % values[-1])

    cells = ["%s, %s" % (figure.label, figure.unit.name)] + [cell(column) for column in table.columns]
    if table.ratio:
        ours, other = table.ratio
        ratios = [each[ours] / max(each[other], sys.float_info.min) for each in rounds if other in each]
        cells.append("%.2f" % statistics.median(ratios) if ratios else "-")
    return cells


def print_row(cells):
    """A row of a Markdown table, at once, because the next takes its time."""
    print("| " + " | ".join(cells) + " |", flush=True)


def print_table(bench, table, names):
    """Measures the figures of those names, and prints them and how they are made."""
    bench.compile()
    columns = {column for column in table.columns if column != "uvloop" or bench.has("uvloop")}
    with bench.running(bench.command(*VERSION), 0) as process:
        version = bench.first_line(process).strip()
    print("%s: %s on %s %s, %d processors\n" % (
        table.title, version, platform.system(), platform.machine(), os.cpu_count()))
    header = ["figure", *table.columns] + (["%s / %s" % table.ratio] if table.ratio else [])
    print_row(header)
    print_row(["---"] + ["--:"] * (len(header) - 1))
    for figure in table.figures:
        if figure.name in names:
            print_row(measure(bench, figure, table, columns))
    print("\n" + table.notes)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, default="compared", help="which table (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one short round of each figure")
    parser.add_argument("--only", metavar="NAME", action="append", help="one figure; may be given again")
    parser.add_argument("--python", default=sys.executable, metavar="PROGRAM",
                        help="the interpreter that is measured (this one)")
    arguments = parser.parse_args()
    table = TABLES[arguments.table](arguments.quick)
    names = [figure.name for figure in table.figures]
    unknown = set(arguments.only or ()).difference(names)
    if unknown:
        parser.error("no figure %s; there are %s" % (", ".join(sorted(unknown)), ", ".join(names)))
    try:
        print_table(Bench(arguments.python), table, arguments.only or names)
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")
    except (Failure, OSError) as error:
        sys.exit("bench: %s" % error)


if __name__ == "__main__":
    if not (sys.platform.startswith("linux") and hasattr(select, "epoll")):
        sys.exit("bench: this needs Linux, for its epoll and its /proc")
    main()
