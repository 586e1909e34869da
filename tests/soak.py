#!/usr/bin/env python3
"""Many clients through proxies that break their connections, for as long as one likes, and nothing left behind.

    python tests/soak.py [--seconds 60] [--seed N] [--clients N]

One server is a process, of which the memory and the open files are compared with those of the beginning; another runs
on the loop of the test, where its timers can be counted. Fetches on that loop go to either; client programs go to
the process, are killed, and go on from their state files. Prints figures; the exit status is 0 if all of it held.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from programs import HOST, ServerProgram, environment, script
from proxy import DOWN, FIN, RST, UP, Plan, Proxy

from numseq.client import Fetch, new_id
from numseq.journal import Journal
from numseq.loop import Loop
from numseq.server import Server
from numseq.store import MemoryStore

SECONDS = 60.0
CLIENTS = 64  # fetches at a time
PROCESSES = 3  # client programs at a time: each start takes a processor for a tenth of a second
RETENTION = 4.0  # seconds, so that the end can be waited for; a client that was cut off is back in two
TIMEOUT = 0.5  # seconds of silence that a client waits, so that one whose server vanished is back before that
RETRIES = 20  # without progress
FAULTY = 0.6  # the part of the connections that something is done to
KILLED = 0.7  # the part of the client programs' runs that are killed
KILL_WITHIN = 0.4  # seconds from a start, in which a client program is killed
RUNS_MOST = 8  # of a client program for a sequence; the last one is not killed
FINISH_SECONDS = 15.0  # in which what has begun comes to its end, once the time is up
SETTLE_SECONDS = RETENTION + 2.0  # in which all is forgotten
LOOK = 0.02  # seconds between two looks at the processes
KEPT_MOST = 8 * 1024  # KiB that the server's process may keep: the places of batches (1.8 MB), and gaps between objects
NUMBERS = (0, 1, 7, 100, 500, 2000, 10000, 65535)
BATCHES = (1, 5, 5, 5, 64, 1000, 65535)


class Counts:
    """What has happened."""

    def __init__(self):
        self.fetches = self.verified = self.numbers = self.drops = 0
        self.programs = self.program_runs = self.kills = self.programs_verified = 0
        self.failures = []


class Soak:
    """All of it, on one loop."""

    def __init__(self, seconds, seed, clients, folder):
        self.loop = Loop()
        self.loop.report = lambda error: self.counts.failures.append("internal error: %r" % error)
        self.draw = random.Random(seed)
        self.counts = Counts()
        self.folder = folder
        self.fetches = set()
        self.programs = set()
        self.calm = False  # once the time is up: nothing begins, and nothing breaks
        self.process = ServerProgram("--retention", RETENTION, "-q")
        self.store = MemoryStore(self.loop, lambda client_id: None, RETENTION)
        self.server = Server(self.loop, self.store, test_mode=True)
        ports = self.process.port, self.server.listen(HOST, 0)[0][1]
        self.proxies = [Proxy(self.loop, HOST, port, self.plan, keep=False) for port in ports]
        self._seconds = seconds
        self._clients = clients
        self._number = 0

    # ---- faults

    def plan(self, number):
        """What becomes of the next connection."""
        draw = self.draw
        if self.calm or draw.random() > FAULTY:
            return Plan()
        place = draw.choice([UP, DOWN, DOWN]), int(10 ** draw.uniform(0, 5)) - 1
        fault = draw.choice([
            dict(cut=place, how=RST), dict(cut=place, how=FIN), dict(cut=place, how=draw.choice([RST, FIN])),
            dict(vanish=place), dict(delay=draw.uniform(0, 0.2)), dict(piece=draw.choice([1, 3, 100, 1000])),
            dict(twice=True), dict(twice=True, cut=place),
        ])
        return Plan(**fault)

    # ---- clients

    def begin_fetch(self):
        draw = self.draw
        begun = Journal(new_id(), draw.choice(NUMBERS), draw.choice(BATCHES))
        self.counts.fetches += 1
        self.fetches.add(Fetch(self.loop, HOST, draw.choice(self.proxies).port, begun, self.fetched,
                               window=draw.choice([1, 8, 1024]), timeout=TIMEOUT, retry=RETRIES))

    def fetched(self, fetch, error):
        """The client has verified it, or says what is wrong."""
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

    # ---- the course of it

    def look(self):
        """After the processes, once in a while."""
        for program in list(self.programs):
            program.look()
        if self.calm and not (self.fetches or self.programs):
            self.loop.stop()
        else:
            self.loop.call_later(LOOK, self.look)

    def run(self):
        """Warms up, soaks, lets everything end, and checks what is left."""
        self.run_for(min(2.0, self._seconds / 3))
        before = self.settled()
        self.run_for(self._seconds - min(2.0, self._seconds / 3))
        after = self.settled()
        self.check(before, after)
        return before, after
