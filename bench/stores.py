#!/usr/bin/env python3
"""What each store costs: whole sessions of a server, and records alone, in memory, in a file and in Redis.

    python bench/stores.py [--rounds 5] [--seconds 1]

The servers are measured in turns, one second each, and the median of all rounds is printed with the least and
the most. A session is a client that connects, creates a sequence, reads it and is closed, 16 at once. Redis
is one process of its own on a socket; without a redis-server or valkey-server that column is left out.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

import load as sessions

from numseq.loop import Loop
from numseq.store import Record, from_url

CLIENTS = 16  # at once
CLIENTS_MOST = 1000 * 1000  # sequences that a server may keep: as many as the rounds leave behind
NUMBERS = 5  # of a sequence, in one batch
RECORDS = 20000  # of the rows that create and release records alone
RECORDS_TOGETHER = 64  # requests in flight
START_SECONDS = 10
MICRO = 1e6


class TimedVisitor(sessions.Visitor):
    """A visitor that remembers how long each of its sessions took."""

    times = []

    def connect(self):
        self.began = time.perf_counter()
        super().connect()

    def ended(self):
        self.times.append(time.perf_counter() - self.began)
        super().ended()


class Redis:
    """A Redis process on a socket."""

    def __init__(self, folder):
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        self.path = os.path.join(folder, "redis")
        command = [program, "--port", "0", "--unixsocket", self.path, "--save", "", "--dir", folder]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        end = time.monotonic() + START_SECONDS
        while not os.path.exists(self.path) and time.monotonic() < end:
            time.sleep(0.01)


class Server:
    """A numseq server."""

    def __init__(self, url):
        options = ["0", "-q", "--store", url, "--clients", str(CLIENTS_MOST)]
        command = [sys.executable, "-m", "numseq.server"] + options
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True)
        self.port = int(self.process.stdout.readline().rpartition(":")[2])


def measure_sessions(server, redis, seconds):
    """(us of the server's CPU, us of Redis's CPU, ms of the 99th percentile of a session) for each
    session."""
    work = sessions.Load(server.port, server.process.pid, spin=False)
    del TimedVisitor.times[:]
    for _ in range(CLIENTS):
        TimedVisitor(work, [b"RECV,0;", b"FIN;"], NUMBERS)
    used = sessions.processor_time(redis.pid) if redis else 0
    own = work.run_for(seconds)
    used = (sessions.processor_time(redis.pid) - used) / work.operations if redis else 0
    for client in list(work._clients.values()):
        client.connection.close()
    return own * MICRO, used * MICRO, statistics.quantiles(TimedVisitor.times, n=100)[98] * 1000


def measure_records(url, redis):
    """(us of this process's CPU, us of Redis's CPU) to create and release a record, with some in flight."""
    loop = Loop()
    store = from_url(url, loop, lambda client_id: None, clients_most=CLIENTS_MOST)
    record = Record(os.urandom(16), NUMBERS, NUMBERS)
    left = [RECORDS, RECORDS]  # to be created, to be released

    def begin():
        if left[0]:
            left[0] -= 1
            client_id = sessions.new_id()

            def created(made, refusal):
                if made is None:
                    raise sessions.Failure(refusal)
                store.release(client_id, released)

            store.create(client_id, record, created)

    def released():
        left[1] -= 1
        if not left[1]:
            loop.stop()
        elif left[1] >= RECORDS_TOGETHER:
            loop.call_later(0, begin)

    while hasattr(store, "is_up") and not store.is_up():
        loop.turn()
    used = time.process_time(), sessions.processor_time(redis.pid) if redis else 0
    for _ in range(RECORDS_TOGETHER):
        loop.call_later(0, begin)
    loop.run()
    own = time.process_time() - used[0]
    others = sessions.processor_time(redis.pid) - used[1] if redis else 0
    store.close()
    loop.close()
    return own / RECORDS * MICRO, others / RECORDS * MICRO


def shown(values):
    """The median of values, with the least and the most."""
    return "%.4g (%.4g-%.4g)" % (statistics.median(values), min(values), max(values))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    settings = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="numseq-bench-")
    redis, servers = None, []
    try:
        urls = {"memory": "memory:", "file": "file:%s/store" % folder}
        if shutil.which("redis-server") or shutil.which("valkey-server"):
            redis = Redis(folder)
            urls["redis"] = "redis+socket://%s" % redis.path
        servers = {name: Server(url) for name, url in urls.items()}
        results = {name: [] for name in urls}
        for _ in range(settings.rounds):
            for name in urls:
                results[name].append(measure_sessions(
                    servers[name], redis if name == "redis" else None, settings.seconds))
        records = {name: [] for name in urls}
        urls["file"] = "file:%s/records" % folder
        for _ in range(settings.rounds):
            for name, url in urls.items():
                records[name].append(measure_records(url, redis if name == "redis" else None))
        columns = [list(zip(*results[name])) + list(zip(*records[name])) for name in urls]
        rows = [("whole session, us CPU of the server", 0), ("of Redis", 1),
                ("99th percentile of a session, ms", 2),
                ("create and release a record, us CPU", 3), ("of Redis", 4)]
        print("| figure | %s |\n| --- | %s |" % (" | ".join(urls), " | ".join("---:" for _ in urls)))
        for label, row in rows:
            cells = [shown(column[row]) if any(column[row]) else "" for column in columns]
            print("| %s | %s |" % (label, " | ".join(cells)))
    finally:
        for server in list(servers.values()) if servers else []:
            server.process.terminate()
            server.process.wait()
        if redis:
            redis.process.kill()
            redis.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
