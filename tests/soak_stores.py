#!/usr/bin/env python3
"""Servers that are killed all the time, and sequences that outlive them: the part of soak.py for stores.

    python tests/soak.py --store file [--seconds 60] [--seed N] [--clients N]    one server
    python tests/soak.py --store redis [...]                                     three servers on one Redis

Each second a server is killed with SIGKILL and started again. Clients reach the servers through a proxy that
breaks their connections, and the servers reach Redis through another one. Client programs are killed, too.
The numbers are unpredictable, so a sequence that was lost and created again would not match its checksum.
Every sequence is fetched to its end, many of them twice; the purges are compared with when each sequence was
last used. Prints figures; the exit status is 0 if all of it held.
"""

import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
from time import monotonic

import soak
from programs import HOST, environment, script
from proxy import DOWN, FIN, RST, UP, Plan, Proxy
from redis_servers import RealRedis, free_port

from numseq import protocol
from numseq.errors import Refused
from numseq.journal import Journal
from numseq.loop import Loop
from numseq.store_file import SLOT_SIZE
from numseq.transfer import Fetch, new_id

FLEET = 3
RETENTION = 8.0  # seconds; longer than two pauses of a client that is out of luck
KILL_EACH = 1.0  # seconds
PASSED_MOST = 200  # times that a client is told to come later, before that counts as a failure
REFETCHED = 0.5  # the part of the sequences that are fetched a second time, after they were complete
REFETCHED_MOST = 2000  # numbers of such a sequence
REFETCH_WITHIN = RETENTION / 2  # seconds
LATE = 1.0  # seconds: a start takes a while, and so do some hundred purges on a busy machine
LEASE = 1.0  # seconds: a session's
TURN = 0.5  # seconds: the retention begins with the turn that ended the session, a long one on a busy machine
LINE = b"Purging client info for: "
SHOWN = 8  # digits of a client id that `-v` shows: the client's name here
Span = collections.namedtuple("Span", ["least", "most"])  # seconds
PASSING = frozenset([protocol.STORE_FAILED, protocol.TOO_MANY_CLIENTS, protocol.TOO_MANY_CONNECTIONS])


class Server:
    """A server process on a port that it keeps. heard(server, line) is called for each line that it prints.

    What it prints is read from time to time, so a line's own time is known as a Span: `printed`.
    open has the connections that have a sequence open here: the peer's address and the client's name.
    """

    def __init__(self, url, heard):
        self.url = url
        self.port = free_port()
        self.open = set()
        self._heard = heard
        # What it says of connections comes before what it purges later.
        self._files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
        self._read = [0, 0]
        self._looked = monotonic()
        self.printed = Span(self._looked, self._looked)
        self.start()

    def start(self):
        options = self.port, "-v", "--store", self.url, "--retention", RETENTION
        self.process = subprocess.Popen(
            [sys.executable] + [str(each) for each in script("server") + options], env=environment(),
            stdin=subprocess.DEVNULL, stdout=self._files[1], stderr=self._files[0])

    def kill(self):
        """Kills it; returns which connections had a sequence open then, at a time in the Span `printed`."""
        self.process.kill()
        self.process.wait()
        self.look()
        left, self.open = self.open, set()
        return left

    def look(self):
        """Reads what it has printed since the last look."""
        since, self._looked = self._looked, monotonic()
        read = [os.pread(file.fileno(), 1 << 20, start) for file, start in zip(self._files, self._read)]
        self.printed = Span(since, monotonic())
        for which, data in enumerate(read):
            data = data[:data.rfind(b"\n") + 1]
            self._read[which] += len(data)
            for line in data.splitlines():
                self._heard(self, line)

    def stop(self):
        """Ends it; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait()
        self.look()
        return status


def name_in(subject):
    """The client's name in what a line of a server's is about."""
    return subject.rpartition(b" ")[2]  # after the peer's address


class FleetProxy(Proxy):
    """A proxy before several servers: each connection goes to one of them."""

    def __init__(self, loop, servers, draw, plan):
        self._servers = servers
        self._draw = draw
        super().__init__(loop, HOST, None, plan, keep=False)

    @property
    def server(self):
        return HOST, self._draw.choice(self._servers).port

    @server.setter
    def server(self, value):
        pass


class StoreSoak:
    """All of it, on one loop."""

    plan = soak.Soak.plan
    begin_program = soak.Soak.begin_program

    def __init__(self, kind, seconds, seed, clients, folder):
        self.loop = Loop()
        self.loop.report = lambda error: self.counts.failures.append("internal error: %r" % error)
        self.draw = random.Random(seed)
        self.counts = soak.Counts()
        self.folder = folder
        self.calm = False
        self.fetches = set()
        self.programs = set()
        self.server_kills = self.passed = self.refetched = 0
        self.came_late = 0  # clients that were kept away for longer than the retention
        self.last_used = {}  # from a client's name to the Span in which it was last opened or closed
        self.started = monotonic()  # when a server was started the last time
        self.purges = {}  # from client id to the Spans between its last use and its purges
        self.redis = RealRedis() if kind == "redis" else None
        self.redis_proxy = None
        self.file = os.path.join(folder, "store")
        url = "file:" + self.file
        if self.redis:
            self.redis_proxy = Proxy(self.loop, HOST, self.redis.port, self.redis_plan, keep=False)
            url = "redis://%s:%d" % (HOST, self.redis_proxy.port)
        self.complaints = []  # of the servers
        self.servers = [Server(url, self.heard) for _ in range(FLEET if self.redis else 1)]
        self.proxies = [FleetProxy(self.loop, self.servers, self.draw, self.plan)]
        self._seconds = seconds
        self._clients = clients
        self._number = 0

    def redis_plan(self, number):
        """What becomes of the next connection of a server to Redis."""
        if self.calm:
            return Plan()
        place = self.draw.choice([UP, DOWN]), int(10 ** self.draw.uniform(2, 5))
        return Plan(**self.draw.choice([
            dict(cut=place, how=RST), dict(cut=place, how=FIN), dict(vanish=place),
            dict(delay=0.05, cut=place)]))

    def heard(self, server, line):
        """A line of a server's."""
        subject, _, event = line.partition(b": ")
        name = name_in(subject)
        if line.startswith(LINE):
            self.purges.setdefault(event, []).append(self.unused_for(event[:SHOWN], server.printed))
        elif len(name) == SHOWN:
            # A connection that was refused uses nothing, even while another one has the same sequence open.
            if event == b"open" or subject in server.open:
                self.last_used[name] = server.printed
            (server.open.add if event == b"open" else server.open.discard)(subject)
        elif not line.startswith(b"Listening on") and name != b"-" and b": Redis at " not in line:
            self.complaints.append(line)

    def unused_for(self, name, until):
        """The Span between the last use of a client's sequence and a time (a Span)."""
        if self.redis and name not in self.last_used:
            # A server that is killed between a create and its line leaves a record of unknown age.
            return Span(RETENTION, RETENTION)
        used = self.last_used.get(name, Span(0.0, 0.0))
        if not self.redis:  # after a start every record in a file has its whole retention
            used = Span(max(used.least, self.started), max(used.most, self.started))
        return Span(until.least - used.most, until.most - used.least)

    # ---- clients

    def begin_fetch(self):
        draw = self.draw
        journal = Journal(new_id(), draw.choice(soak.NUMBERS), draw.choice(soak.BATCHES))
        self.counts.fetches += 1
        Visit(self, journal, self.fetched)

    def fetched(self, visit):
        """The client has verified it: it may be fetched once more, and has to be the same."""
        if self.calm:
            return
        self.loop.call_later(0, self.begin_fetch)
        if visit.journal.n <= REFETCHED_MOST and self.draw.random() < REFETCHED:
            self.loop.call_later(self.draw.uniform(0, REFETCH_WITHIN), lambda: self.refetch(visit.journal))

    def refetch(self, journal):
        if self.calm:
            return
        self.counts.fetches += 1

        def compare(visit):
            self.refetched += 1
            if visit.journal.numbers != journal.numbers:
                name = journal.client_id.decode("ascii")
                self.counts.failures.append("%s: other numbers the second time" % name)

        Visit(self, Journal(journal.client_id, journal.n, journal.batch), compare, is_known=True)

    def passes(self, complaint):
        """Whether a client program was told to come later."""
        # A create that was given up may have been made nevertheless; then the client's own id exists.
        passes = any(text in complaint for text in PASSING) or "already exist" in complaint
        self.passed += passes
        return passes

    # ---- the course of it

    def look(self):
        for server in self.servers:
            server.look()
        for program in list(self.programs):
            program.look()
        if self.calm and not (self.fetches or self.programs):
            self.loop.stop()
        else:
            self.loop.call_later(soak.LOOK, self.look)

    def kill_one(self):
        """Kills a server and starts it again."""
        if not self.calm:
            server = self.draw.choice(self.servers)
            for subject in server.kill():
                self.last_used[name_in(subject)] = server.printed
            self.started = monotonic()
            server.start()
            self.server_kills += 1
            self.loop.call_later(KILL_EACH, self.kill_one)

    def run(self):
        for _ in range(self._clients):
            self.begin_fetch()
        for _ in range(soak.PROCESSES):
            self.begin_program()
        self.loop.call_later(KILL_EACH, self.kill_one)
        self.loop.call_later(self._seconds, self.calm_down)
        give_up = self.loop.call_later(self._seconds + 2 * soak.FINISH_SECONDS, self.give_up)
        self.look()
        self.loop.run()
        self.loop.cancel(give_up)
        # A lost release keeps a record for its lease too.
        end = self.loop.now + RETENTION + LEASE + LATE
        while self.left() and self.loop.now < end:
            self.loop.call_later(10 * soak.LOOK, self.loop.stop)
            self.loop.run()
            for server in self.servers:
                server.look()

    def calm_down(self):
        self.calm = True

    def give_up(self):
        self.counts.failures.append("%d fetches and %d programs do not end" % (
            len(self.fetches), len(self.programs)))
        self.loop.stop()

    def close(self):
        for visit in list(self.fetches):
            visit.fetch.cancel()
        for program in list(self.programs):
            program.close()
        for server in self.servers:
            status = server.stop()
            if status:
                self.counts.failures.append("a server ended with %s" % status)
        self.counts.failures += ["a server said %r" % line for line in self.complaints]
        for proxy in self.proxies + [self.redis_proxy]:
            if proxy:
                proxy.close()
        self.loop.close()

    def left(self):
        """How many records are left in the store."""
        if self.redis:
            return len(self.redis.command("KEYS", "numseq:*-*"))  # not the claims to announce a purge
        with open(self.file, "rb") as file:
            slots = file.read()[SLOT_SIZE:]
        places = range(0, len(slots), SLOT_SIZE)
        return sum(slots[first:first + SLOT_SIZE] != bytes(SLOT_SIZE) for first in places)


class Visit:
    """A fetch that comes again where it is told to come later. over(visit) is called once it is verified."""

    def __init__(self, owner, journal, over, is_known=False):
        self.owner = owner
        self.journal = journal
        self.passed = 0
        self._over = over
        self._is_known = is_known  # whether the server has acknowledged it
        owner.fetches.add(self)
        self._begin(is_known)

    def _begin(self, resume):
        draw = self.owner.draw
        windows = [window for window in soak.WINDOWS if self.journal.total() <= window * soak.TRIPS_MOST]
        self._resume = resume
        self.fetch = Fetch(self.owner.loop, HOST, self.owner.proxies[0].port, self.journal, self._ended,
                           resume=resume, window=draw.choice(windows), timeout=soak.TIMEOUT,
                           retry=soak.RETRIES)

    def _ended(self, fetch, error):
        owner, counts = self.owner, self.owner.counts
        counts.drops += fetch.drops
        if self.journal.numbers or getattr(error, "resumable", False):
            self._is_known = True
        if error is None:
            counts.verified += 1
            counts.numbers += self.journal.n
        elif self._may_come_again(str(error)) and isinstance(error, Refused) and self.passed < PASSED_MOST:
            self.passed += 1
            owner.passed += 1
            resume = self._is_known or str(error) != self._says(protocol.DOES_NOT_EXIST)
            owner.loop.call_later(owner.draw.uniform(0, 0.2), lambda: self._begin(resume))
            return
        elif self._came_late(str(error)):
            owner.came_late += 1
        else:
            counts.failures.append("%s: %s, after %d numbers of %d, unused for at most %.2f s" % (
                self.journal.client_id.decode("ascii"), error, len(self.journal.numbers), self.journal.n,
                self._unused_for()))
        owner.fetches.discard(self)
        if error is None:
            self._over(self)
        elif not owner.calm:
            owner.loop.call_later(0, owner.begin_fetch)

    def _came_late(self, text):
        """Whether the sequence is rightly gone: its pauses and its bad luck have added up to more than the
        retention."""
        return (text == self._says(protocol.DOES_NOT_EXIST) and self._unused_for() > RETENTION
                and self.journal.client_id[:SHOWN] in self.owner.last_used)

    def _unused_for(self):
        """How long its sequence was not used (seconds), at most."""
        now = monotonic()
        return self.owner.unused_for(self.journal.client_id[:SHOWN], Span(now, now)).most

    def _may_come_again(self, text):
        """A create that was given up may be made nevertheless, and late. So before the first ACK it may
        exist, or not."""
        return text in PASSING or not self._is_known and text in (
            self._says(protocol.ALREADY_EXISTS), self._says(protocol.DOES_NOT_EXIST))

    def _says(self, template):
        """What a server says of this client."""
        return template.format(self.journal.client_id.decode("ascii"))


def failures(run, left):
    """What did not hold (texts)."""
    counts = run.counts
    wrong = list(counts.failures)
    # In Redis, if two servers had the sequence open and the last release was lost, the earlier one counts
    # (docs/stores.md).
    least = RETENTION - TURN - (LEASE if run.redis else 0.0)
    early = [times for times in run.purges.values() if times[0].most < least]
    late = [times for times in run.purges.values() if times[-1].least > RETENTION + LATE]
    for holds, what in (
        (counts.verified + run.came_late == counts.fetches, "not every fetch was verified"),
        (counts.programs_verified == counts.programs, "not every client program's sequence was verified"),
        (counts.drops and counts.kills and run.server_kills and run.refetched and run.purges,
         "nothing was dropped, killed, fetched twice or purged: that proves nothing"),
        (not early, "%d sequences were purged early: %s" % (len(early), early[:3])),
        (run.redis or not late, "%d sequences were purged late: %s" % (len(late), late[:3])),
        (run.redis or not twice(run), "%d purges were announced twice" % twice(run)),
        (left == 0, "%d sequences are kept for too long" % left),
    ):
        if not holds:
            wrong.append(what)
    return wrong


def twice(run):
    """How many purges were announced twice: two servers may do so where one could not reach Redis at a
    release."""
    return sum(len(times) > 1 for times in run.purges.values())


def figures(run, left):
    """What it did, as lines."""
    counts = run.counts
    lines = [
        "servers killed                     %d" % run.server_kills,
        "clients' connections               %d, of which %d were cut or vanished" % (
            run.proxies[0].connections, run.proxies[0].broken),
        "fetches verified                   %d of %d: %d numbers, %d drops survived, %d were second ones" % (
            counts.verified, counts.fetches, counts.numbers, counts.drops, run.refetched),
        "client programs verified           %d of %d: %d runs, %d killed" % (
            counts.programs_verified, counts.programs, counts.program_runs, counts.kills),
        "clients told to come later         %d; %d came later than the retention allows" % (
            run.passed, run.came_late),
        "purges announced                   %d of %d sequences, %d of them twice" % (
            len(run.purges), len(run.last_used), twice(run)),
        "seconds from last use to purge     %.2f (at most) to %.2f (at least)" % (
            min((times[0].most for times in run.purges.values()), default=0),
            max((times[-1].least for times in run.purges.values()), default=0)),
        "records left                       %d" % left,
    ]
    if run.redis_proxy:
        lines.insert(1, "servers' connections to Redis      %d, of which %d were cut or vanished" % (
            run.redis_proxy.connections, run.redis_proxy.broken))
    return lines


def main(kind, seconds, seed, clients):
    """Runs it and prints figures; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        run = StoreSoak(kind, seconds, seed, clients, folder)
        try:
            try:
                run.run()
                left = run.left()
            finally:
                run.close()
        finally:
            if run.redis:
                run.redis.close()
    print("\n".join(figures(run, left)))
    wrong = failures(run, left)
    for each in wrong:
        print("FAILED: " + each, file=sys.stderr)
    return 1 if wrong else 0
