#!/usr/bin/env python3
"""A soak test: for a given time, many clients fetch through proxies that break their connections.

All sequences have to be verified, and the servers may leak nothing.

    python tests/soak.py [--seconds 60] [--seed N] [--clients N] [--store memory]

One server is a process, whose memory and open files are compared before and after. Another runs on the loop
of the test, where its timers can be counted. Fetches on that loop use both servers; client programs use the
process, are killed, and continue from their state files. Prints statistics; the exit status is 0 if all
checks passed.
"""

import argparse
import collections
import os
import random
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from programs import HOST, ServerProgram, environment, script
from proxy import DOWN, FIN, RST, UP, Plan, Proxy

from numseq.transfer import Fetch, new_id
from numseq.journal import Journal
from numseq.loop import Loop
from numseq.serving import Server
from numseq.store_memory import MemoryStore

SECONDS = 60.0
CLIENTS = 64  # concurrent fetches
PROCESSES = 3  # concurrent client programs: each start takes a processor for 0.1 s
RETENTION = 8.0  # seconds: short enough to wait for, and long enough for two pauses of a client
TIMEOUT = 0.5  # seconds: a client whose connection vanished is back well within the retention
RETRIES = 20  # value of --retry
FAULTY = 0.6  # share of the connections with a fault
KILLED = 0.7  # share of the client programs' runs that are killed
KILL_WITHIN = 0.4  # seconds from the start of a client program in which it is killed
RUNS_MOST = 8  # runs of a client program per sequence; the last one is not killed
FINISH_SECONDS = 15.0  # limit for the fetches that are still running when the time is up
SETTLE_SECONDS = RETENTION + 2.0  # time until all records are purged
# Limit of all the time in addition to the requested one: two phases, before and after, and a reserve.
ENDS_SECONDS = 2 * (FINISH_SECONDS + SETTLE_SECONDS) + 10.0
LOOK = 0.02  # seconds between two polls of the processes
KEPT_MOST = 4 * 1024  # KiB that the server's process may grow by, because of fragmentation
PIECES = (1, 3, 100, 1000)  # bytes that a slow proxy forwards per turn
# Slow turns per connection, of 4 ms each. What a proxy has buffered when the server ends the session must not
# take longer than the retention, or the client is rightly told that the sequence does not exist.
PIECES_MOST = 200
NUMBERS = (0, 1, 7, 100, 500, 2000, 10000, 65535)
BATCHES = (1, 5, 5, 5, 64, 200, 1000)  # small enough for half of the broken connections to bring a batch
WINDOWS = (1, 8, 1024)
TRIPS_MOST = 250  # round trips per sequence: what a few slow connections can do
WARM_UP = 2.0  # seconds before the first measurement of the server, at most a third of the time

Left = collections.namedtuple("Left", ["memory", "files", "sessions", "records", "timers", "links"])


class Counts:
    """Counts of events, and the failures (list of text)."""

    def __init__(self):
        self.fetches = self.verified = self.numbers = self.drops = 0
        self.programs = self.program_runs = self.kills = self.programs_verified = 0
        self.failures = []


class Soak:
    """The servers, proxies and clients of the test, on one loop."""

    def __init__(self, seconds, seed, clients, folder):
        self.loop = Loop()
        self.loop.report = lambda error: self.counts.failures.append("internal error: %r" % error)
        self.draw = random.Random(seed)
        self.counts = Counts()
        self.folder = folder
        self.fetches = set()
        self.programs = set()
        self.calm = False  # true when the time is up: no new clients, and no faults
        self.process = ServerProgram("--retention", RETENTION, "-q", seconds=seconds + ENDS_SECONDS,
                                     session_timeout=None)
        self.store = MemoryStore(self.loop, lambda client_id: None, RETENTION)
        self.server = Server(self.loop, self.store, test_mode=True)
        ports = self.process.port, self.server.listen(HOST, 0)[0][1]
        self.proxies = [Proxy(self.loop, HOST, port, self.plan, keep=False) for port in ports]
        self._seconds = seconds
        self._clients = clients
        self._number = 0

    # ---- faults

    def plan(self, number):
        """The Plan of the next connection: a random fault, or none."""
        draw = self.draw
        if self.calm or draw.random() > FAULTY:
            return Plan()
        place = draw.choice([UP, DOWN, DOWN]), int(10 ** draw.uniform(0, 5)) - 1
        fault = draw.choice([
            dict(cut=place, how=RST), dict(cut=place, how=FIN), dict(cut=place, how=draw.choice([RST, FIN])),
            dict(vanish=place), dict(delay=draw.uniform(0, 0.2)),
            dict(piece=draw.choice(PIECES), pieces=PIECES_MOST),
            dict(twice=True), dict(twice=True, cut=place),
        ])
        return Plan(**fault)

    # ---- clients

    def passes(self, complaint):
        """Whether a client program failed with an error that may pass; a store in memory has none."""
        return False

    def begin_fetch(self):
        draw = self.draw
        begun = Journal(new_id(), draw.choice(NUMBERS), draw.choice(BATCHES))
        windows = [window for window in WINDOWS if begun.total() <= window * TRIPS_MOST]
        self.counts.fetches += 1
        self.fetches.add(Fetch(self.loop, HOST, draw.choice(self.proxies).port, begun, self.fetched,
                               window=draw.choice(windows), timeout=TIMEOUT, retry=RETRIES))

    def fetched(self, fetch, error):
        """Counts the result of a fetch, and starts the next one."""
        counts = self.counts
        self.fetches.discard(fetch)
        counts.drops += fetch.drops
        if error is None and len(fetch.journal.numbers) == fetch.journal.n:
            counts.verified += 1
            counts.numbers += fetch.journal.n
        else:
            counts.failures.append("%s: %s" % (fetch.journal.client_id.decode("ascii"), error))
        if not self.calm:
            self.loop.call_later(0, self.begin_fetch)

    def begin_program(self):
        self._number += 1
        self.counts.programs += 1
        self.programs.add(ClientProgram(self, os.path.join(self.folder, "state.%d" % self._number)))

    # ---- the phases of the test

    def look(self):
        """Polls the processes; stops the loop when the time is up and all clients have ended."""
        for program in list(self.programs):
            program.look()
        if self.calm and not (self.fetches or self.programs):
            self.loop.stop()
        else:
            self.loop.call_later(LOOK, self.look)

    def run(self):
        """Runs the test after a warm-up; returns what was Left before and after it."""
        warm_up = min(WARM_UP, self._seconds / 3)
        self.run_for(warm_up)
        before = self.settled()
        self.run_for(self._seconds - warm_up)
        return before, self.settled()

    def run_for(self, seconds):
        """Runs clients for this time, and then waits until the last ones have ended."""
        self.calm = False
        for _ in range(self._clients):
            self.begin_fetch()
        for _ in range(PROCESSES):
            self.begin_program()
        timers = [self.loop.call_later(seconds, self.calm_down),
                  self.loop.call_later(seconds + FINISH_SECONDS, self.give_up)]
        self.look()
        self.loop.run()
        for timer in timers:
            self.loop.cancel(timer)

    def calm_down(self):
        self.calm = True

    def give_up(self):
        """Fails the test because clients have not ended in time."""
        self.counts.failures.append("%d fetches and %d programs do not end"
                                    % (len(self.fetches), len(self.programs)))
        self.loop.stop()

    def settled(self):
        """What is Left after the servers have purged their records."""
        self.loop.call_later(SETTLE_SECONDS, self.loop.stop)
        self.loop.run()
        process = "/proc/%d/" % self.process.process.pid
        with open(process + "status") as status:
            memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
        return Left(memory, len(os.listdir(process + "fd")), len(self.server.sessions), len(self.store),
                    self.loop.timers(), sum(len(proxy.links) for proxy in self.proxies))

    def close(self):
        """Ends everything; the server process has to exit with status 0 and an empty standard error."""
        for fetch in list(self.fetches):
            fetch.cancel()
        for program in list(self.programs):
            program.close()
        for proxy in self.proxies:
            proxy.close()
        self.server.close()
        self.loop.close()
        ended = self.process.stop()
        self.process.close()
        if (ended.status, ended.err) != (0, ""):
            self.counts.failures.append("the server ended with %s: %s" % (ended.status, ended.err))


class ClientProgram:
    """A client program that is killed and continues from its state file, until its sequence is verified."""

    def __init__(self, soak, state):
        self.soak = soak
        self.runs = 0
        self._state = state
        self._n, self._batch = soak.draw.choice(NUMBERS), soak.draw.choice(BATCHES)
        self._run()

    def _run(self):
        """Starts NEW if there is no state file yet, else CONTINUE."""
        soak = self.soak
        self.runs += 1
        soak.counts.program_runs += 1
        port = soak.proxies[0].port
        if os.path.exists(self._state):
            command = ["CONTINUE", port]
        else:
            command = ["NEW", self._n, port, "--batch_size", self._batch]
        command += ["-q", "--state", self._state, "--timeout", TIMEOUT, "--retry", RETRIES]
        self._error = tempfile.TemporaryFile()
        self.process = subprocess.Popen([sys.executable]
                                        + [str(each) for each in script("client") + tuple(command)],
                                        cwd=soak.folder, env=environment(), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=self._error)
        killed = self.runs < RUNS_MOST and soak.draw.random() < KILLED
        self._kill_at = soak.loop.now + soak.draw.uniform(0, KILL_WITHIN) if killed else None

    def look(self):
        """Kills the process if it is time to; evaluates its result when it has ended."""
        soak, status = self.soak, self.process.poll()
        if status is None:
            if self._kill_at is not None and soak.loop.now >= self._kill_at:
                self._kill_at = None
                soak.counts.kills += 1
                self.process.kill()
            return
        self._error.seek(0)
        complaint = self._error.read().decode("ascii", "replace").strip()
        self._error.close()
        if status < 0 and not complaint or soak.passes(complaint):
            self._run()
            return
        soak.programs.remove(self)
        if status:
            soak.counts.failures.append("a client program ended with %d: %s" % (status, complaint))
        else:
            soak.counts.programs_verified += 1
        if not soak.calm:
            soak.begin_program()

    def close(self):
        self.process.kill()
        self.process.wait()
        self._error.close()


def failures(soak, before, after):
    """The failed checks (list of text)."""
    counts = soak.counts
    wrong = list(counts.failures)
    for holds, what in (
        (counts.verified == counts.fetches, "not every fetch was verified"),
        (counts.programs_verified == counts.programs, "not every client program's sequence was verified"),
        (counts.drops and counts.kills, "nothing was dropped, or nobody killed: that proves nothing"),
        (after.memory <= before.memory + KEPT_MOST, "the server keeps memory"),
        (after.files == before.files, "the server keeps files open"),
        (after[2:] == (0, 0, 0, 0), "sessions, records, timers or links are left"),
    ):
        if not holds:
            wrong.append(what)
    return wrong


def figures(soak, before, after):
    """Statistics of the run (list of lines)."""
    counts = soak.counts
    links = sum(proxy.connections for proxy in soak.proxies), sum(proxy.broken for proxy in soak.proxies)
    return [
        "connections through the proxies    %d, of which %d were cut or vanished" % links,
        "fetches verified                   %d of %d: %d numbers, %d drops survived" % (
            counts.verified, counts.fetches, counts.numbers, counts.drops),
        "client programs verified           %d of %d: %d runs, %d killed" % (
            counts.programs_verified, counts.programs, counts.program_runs, counts.kills),
        "server's memory, KiB               %d before, %d after" % (before.memory, after.memory),
        "server's open files                %d before, %d after" % (before.files, after.files),
        "left: sessions, records, timers    %d, %d, %d" % (after.sessions, after.records, after.timers),
    ]


def main():
    parser = argparse.ArgumentParser(
        description="Many clients over connections that break; nothing may be lost or left behind.")
    parser.add_argument("--seconds", type=float, default=SECONDS,
                        help="how long clients come and go (%(default)s)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="fetches at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the faults (a new one, which is printed)")
    parser.add_argument("--store", choices=["memory", "file", "redis"], default="memory",
                        help="of the servers; with file and redis they are killed (%(default)s)")
    settings = parser.parse_args()
    seed = random.randrange(2 ** 32) if settings.seed is None else settings.seed
    print("seed                               %d" % seed, flush=True)
    if settings.store != "memory":
        import soak_stores

        return soak_stores.main(settings.store, settings.seconds, seed, settings.clients)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(settings.seconds, seed, settings.clients, folder)
        try:
            before, after = soak.run()
        finally:
            soak.close()
    print("\n".join(figures(soak, before, after)))
    wrong = failures(soak, before, after)
    for each in wrong:
        print("FAILED: " + each, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
