"""Hostile peers against the server as a process.

While each storm lasts, honest clients complete and memory is bounded.

    python tests/test_hostile.py        prints what each storm measured, as a table
"""

import collections
import os
import random
import resource
import socket
import sys
import threading
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:  # run as a file
    sys.path.insert(0, ROOT)

from helpers import WAIT_SECONDS, fill
from programs import CLIENT_ID, HOST, ServerProgram

from numseq import protocol
from numseq.transfer import Fetch, new_id
from numseq.journal import Journal
from numseq.loop import Loop
from numseq.pipeline import split_numbers
from numseq.serving import SESSION_TIMEOUT

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"),
                                reason="needs /proc to look at the server")
lesson = pytest.mark.lesson

N, BATCH = 500, 5  # what an honest client fetches
BEGUN = 50  # batches that the bystander has before the storm
RETRIES = 50  # of an honest client that finds the server full
FILES = 128  # the limit of open files where a storm goes past it
QUIET_SECONDS = 0.5
QUIET_TICKS = 2  # of 10 ms: timers and purges take none, spinning takes tens even on a busy machine
QUIET_ATTEMPTS = 20  # a busy machine can take a while to handle what the storm left behind
SEED = 1

MIB = 1024  # KiB
# How much more memory the server may take in a storm than before it, and why.
ENDLESS_MOST = 2 * MIB  # a read of 64 KiB; the rest is thrown away as it comes
RANDOM_MOST = 2 * MIB  # a connection at a time, of a few KiB
MUTATED_MOST = 4 * MIB  # besides, records of what was good by chance, and places of batches of many sizes
SLOW_MOST = 2 * MIB  # 200 connections of a few KiB
# 24 times: twice the mark of unsent output (256 KiB), a sequence and a read; and the copies of a turn
DEAF_MOST = 24 * MIB
FLOOD_MOST = 2 * MIB  # fewer connections than there may be files, of a few KiB
GREEDY_MOST = 8 * MIB  # 32 sequences and what is made of one at a time, and 1,300 records of 300 bytes

Measured = collections.namedtuple("Measured", [
    "storm", "seconds", "connections", "megabytes", "honest", "slowest", "before", "grown", "ticks"])


# ---- hostile peers


class Attack:
    """Plain sockets for a storm, and counts of connections and bytes sent."""

    def __init__(self, port):
        self.draw = random.Random(SEED)
        self.connections = 0
        self.sent = 0
        self._address = HOST, port
        self._open = set()

    def connect(self, buffers=None):
        """A new connection; `buffers` is the size of this side's kernel buffers (bytes)."""
        peer = socket.socket()
        if buffers:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        peer.settimeout(WAIT_SECONDS)
        peer.connect(self._address)
        self.connections += 1
        self._open.add(peer)
        return peer

    def send(self, peer, data, whole=True):
        """Sends all of it, or what the kernel takes; returns False if the server has closed."""
        try:
            if whole:
                peer.sendall(data)
            self.sent += len(data) if whole else fill(peer, data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def answer(self, peer):
        """Everything that the server still sends; closes the connection."""
        answer = bytearray()
        try:
            while True:
                some = peer.recv(1 << 20)
                if not some:
                    break
                answer += some
        except ConnectionResetError:
            pass
        peer.close()
        self._open.remove(peer)
        return bytes(answer)

    def say(self, data):
        """Sends data on a new connection and ends its input; returns the types of the answers."""
        peer = self.connect()
        if self.send(peer, data):
            peer.shutdown(socket.SHUT_WR)
        answer = self.answer(peer)
        assert not answer or answer.endswith(b";"), answer
        return [protocol.parse_reply(message)[0] for message in answer.split(b";")[:-1]]

    def close(self):
        for peer in self._open:
            peer.close()


def endless(attack):
    """A million bytes without a terminator from each of ten connections. Each sender gets the reason."""
    for _ in range(4):
        peers = [attack.connect() for _ in range(10)]
        for number, peer in enumerate(peers):
            beginning = (b"", b"INIT,", b"INIT,%b,5,5;RECV," % new_id())[number % 3]
            attack.send(peer, beginning + b"1" * 1000000)
        for peer in peers:
            assert attack.answer(peer).endswith(b"ERR,Message too long;")


def random_bytes(attack):
    """Random bytes, of all values and of those in messages."""
    for number in range(400):
        kinds = (bytes(range(256)), b"INITCONTRECVFIN0123456789-,;;;")[number % 2]
        assert attack.say(bytes(attack.draw.choice(kinds) for _ in range(1000)))[-1] == protocol.ERR


def mutated(attack):
    """Every kind of message cut at every byte, and thousands of mutated ones."""
    for session in SESSIONS:
        for end in range(len(session)):
            answers = attack.say(session[:end])
            assert end == 0 or session[end - 1:end] == b";" or answers[-1] == protocol.ERR, session[:end]
    for _ in range(MUTATIONS):
        data = mutate(attack.draw, attack.draw.choice(SESSIONS))
        answers = attack.say(data)
        assert answers or not data, data
        assert protocol.ERR not in answers[:-1] or b"RECV" in data, data


SESSIONS = [
    b"INIT,%b,5,5;RECV,0;FIN;" % CLIENT_ID.encode("ascii"),
    b"CONT,%b;RECV,0;RECV,99;FIN;" % CLIENT_ID.encode("ascii"),
    b"INIT,00000000-0000-0000-0000-000000000000,65535,65535;RECV,0;FIN;",
    b"RECV,0;",
    b"FIN;",
]
MUTATIONS = 3000


def mutate(draw, data):
    """The data with one to three random changes."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        draw.choice([
            lambda: data.insert(start, draw.randrange(256)),
            lambda: data.insert(start, draw.choice(b",;-0159aF")),
            lambda: data.__setitem__(slice(start, start + 1), bytes([draw.randrange(256)])),
            lambda: data.__delitem__(slice(start, start + 1)),
            lambda: data.__delitem__(slice(start, end)),
            lambda: data.__setitem__(slice(start, start), data[start:end]),
            lambda: data.extend(draw.choice(SESSIONS)),
        ])()
    return bytes(data)


def slow(attack):
    """200 connections that send single bytes, until their session times out."""
    said = {attack.connect(): b"INIT,%b,5,5;" % new_id() + b"RECV,0;" * 20 for _ in range(200)}
    end = time.monotonic() + WAIT_SECONDS
    position = 0
    while said and time.monotonic() < end:
        for peer, data in list(said.items()):
            if not attack.send(peer, data[position:position + 1]):
                del said[peer]
        position += 1
        time.sleep(0.02)
    assert not said, "a slow writer still has its session"


def deaf(attack):
    """24 connections that request all numbers again and again and never read."""
    asking = {attack.connect(buffers=4096) for _ in range(24)}
    for peer in asking:
        attack.send(peer, b"INIT,%b,65535,65535;" % new_id())
    end = time.monotonic() + WAIT_SECONDS
    while asking and time.monotonic() < end:
        asking = {peer for peer in asking if attack.send(peer, b"RECV,0;" * 1000, whole=False)}
        time.sleep(0.02)
    assert not asking, "a reader that does not read still has its session"


def flood(attack):
    """More idle connections than the server may have files, for longer than the session timeout."""
    for _ in range(2):
        for _ in range(FILES):
            attack.connect()
        time.sleep(0.6 * SESSION_TIMEOUT)


def greedy(attack):
    """Sequences of 65,535 numbers: some are only begun, some read, some finished."""
    for _ in range(40):
        peers = [attack.connect() for _ in range(32)]
        for number, peer in enumerate(peers):
            ask = (b"", b"", b"", b"", b"", b"", b"RECV,0;", b"FIN;")[number % 8]
            attack.send(peer, b"INIT,%b,65535,65535;" % new_id() + ask)
            peer.shutdown(socket.SHUT_WR)
        for peer in peers:
            assert attack.answer(peer).startswith(b"ACK;")


# ---- those whom it must not cost anything


class Honest(threading.Thread):
    """Fetches one sequence after the other, until told to stop. It tries again when the server is full.

    With `strict`, a session that was acknowledged and breaks before its end counts as a failure. That is only
    asked where the session timeout is long, because on a busy machine a session can take more than a second.
    """

    def __init__(self, port, strict):
        super().__init__(daemon=True)
        self.strict = strict
        self.seconds = []  # that each took
        self.failures = []
        self._port = port
        self._stopping = threading.Event()

    def run(self):
        while not (self._stopping.is_set() and self.seconds or self.failures):
            begin = time.monotonic()
            error = fetch(Journal(new_id(), N, BATCH), self._port, self._watch, retry=RETRIES,
                          timeout=WAIT_SECONDS)
            self.seconds.append(time.monotonic() - begin)
            if error is not None:
                self.failures.append(error)

    def _watch(self, event, text):
        if event == "sending":
            self._acknowledged = not text.startswith(("INIT", "CONT"))
        elif event == "error" and self._acknowledged and self.strict:
            self.failures.append(text)

    def stop(self):
        self._stopping.set()
        self.join(3 * WAIT_SECONDS)
        assert not self.is_alive()


def fetch(begun, port, watch=None, **options):
    """Fetches a sequence to its end, or gives up after 2 * WAIT_SECONDS; returns the error."""
    loop = Loop()
    errors = ["nothing came of it"]

    def done(fetch, error):
        errors.append(error)
        loop.stop()

    fetched = Fetch(loop, HOST, port, begun, done, watch=watch, **options)
    loop.call_later(2 * WAIT_SECONDS, loop.stop)
    loop.run()
    fetched.cancel()
    loop.close()
    return errors[-1]


class Bystander:
    """A client that begins before the storm and continues after it."""

    def __init__(self, attack):
        peer = attack.connect()
        attack.send(peer, b"INIT,%b,%d,%d;" % (CLIENT_ID.encode("ascii"), N, BATCH)
                    + protocol.encode_receives(0, BEGUN))
        peer.shutdown(socket.SHUT_WR)
        ack, answers = attack.answer(peer).split(b";", 1)
        numbers, _ = split_numbers(answers, BATCH, BEGUN)
        self.journal = Journal(CLIENT_ID.encode("ascii"), N, BATCH, numbers)

    def check(self, port):
        assert self.journal.batches() == BEGUN
        assert fetch(self.journal, port, resume=True) is None


class Watched(ServerProgram):
    """A server whose memory and processor time are read from /proc."""

    def memory(self):
        """Its peak memory (KiB)."""
        with open("/proc/%d/status" % self.process.pid) as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

    def ticks(self):
        """The processor time it has used (ticks of 10 ms)."""
        with open("/proc/%d/stat" % self.process.pid) as stat:
            fields = stat.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


# ---- the storms

# `session_timeout` is in seconds. Storms that last until their sessions time out have the short one.
Storm = collections.namedtuple("Storm", ["rage", "memory", "options", "files", "session_timeout"])
LONG = 600

STORMS = {
    "endless messages": Storm(endless, ENDLESS_MOST, (), None, LONG),
    "random bytes": Storm(random_bytes, RANDOM_MOST, (), None, LONG),
    "mutated messages": Storm(mutated, MUTATED_MOST, (), None, LONG),
    "slow writers": Storm(slow, SLOW_MOST, (), None, SESSION_TIMEOUT),
    "readers that do not read": Storm(deaf, DEAF_MOST, (), None, SESSION_TIMEOUT),
    "connections over the limit": Storm(flood, FLOOD_MOST, (), FILES, SESSION_TIMEOUT),
    "connections over the files": Storm(flood, FLOOD_MOST, ("--connections", 10 * FILES), FILES,
                                        SESSION_TIMEOUT),
    "INITs of 65,535 numbers": Storm(greedy, GREEDY_MOST, (), None, LONG),
}


def measure(name):
    """Runs one storm against a server of its own; returns a Measured. Raises AssertionError."""
    storm = STORMS[name]
    limit = storm.files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (storm.files, storm.files)))
    server = Watched(*storm.options, preexec=limit, session_timeout=storm.session_timeout)
    attack = Attack(server.port)
    honest = Honest(server.port, strict=storm.session_timeout == LONG)
    try:
        bystander = Bystander(attack)
        before = server.memory()
        begin = time.monotonic()
        honest.start()
        storm.rage(attack)
        honest.stop()
        seconds = time.monotonic() - begin
        attack.close()
        grown = server.memory() - before
        ticks = ticks_at_rest(server)
        bystander.check(server.port)
        ended = server.stop()
    finally:
        attack.close()
        server.close()
    assert honest.failures == [], honest.failures
    assert (ended.status, ended.err) == (0, "")
    return Measured(name, seconds, attack.connections, attack.sent / 1e6, len(honest.seconds),
                    max(honest.seconds), before, grown, ticks)


def ticks_at_rest(server):
    """The processor time (ticks) in QUIET_SECONDS, once it is low or after QUIET_ATTEMPTS."""
    for _ in range(QUIET_ATTEMPTS):
        begin = server.ticks()
        time.sleep(QUIET_SECONDS)
        ticks = server.ticks() - begin
        if ticks <= QUIET_TICKS:
            break
    return ticks


def check(measured):
    assert measured.honest
    assert measured.grown <= STORMS[measured.storm].memory
    assert measured.ticks <= QUIET_TICKS


@lesson(1)
@lesson(6)
@lesson(17)
@lesson(19)
@lesson(20)
@lesson(29)
@pytest.mark.slow
@pytest.mark.parametrize("name", STORMS)
def test_storm_costs_neither_sessions_nor_memory_nor_idle_time(name):
    check(measure(name))


# ---- limits


@pytest.fixture
def serve():
    """A function: an Attack on a server with these options."""
    servers = []

    def start(*options):
        server = Watched(*options)
        attack = Attack(server.port)
        servers.append((server, attack))
        return attack

    yield start
    for server, attack in servers:
        attack.close()
        ended = server.stop()
        server.close()
        assert (ended.status, ended.err) == (0, "")


def open_session(attack):
    """(connection, client id) of a session that was just begun."""
    peer, client_id = attack.connect(), new_id()
    attack.send(peer, b"INIT,%b,5,5;" % client_id)
    assert peer.recv(100) == b"ACK;"
    return peer, client_id


@lesson(29)
def test_connection_over_the_limit_is_told_and_its_place_is_freed(serve):
    attack = serve("--connections", 2)
    (first, _), _ = open_session(attack), open_session(attack)
    assert attack.answer(attack.connect()) == b"ERR,Too many connections;"
    attack.send(first, b"FIN;")
    assert attack.answer(first).startswith(b"FAC,")
    open_session(attack)


def test_client_over_the_limit_is_told_and_the_others_keep_their_place(serve):
    attack = serve("--clients", 2)
    ids = [open_session(attack)[1] for _ in range(2)]
    assert attack.say(b"INIT,%b,5,5;" % new_id()) == [protocol.ERR]
    for client_id in ids:
        assert attack.say(b"CONT,%b;FIN;" % client_id) == [protocol.ACK, protocol.FAC]


@pytest.mark.parametrize("options", [("--unsent", 1024), ("--turn-bytes", 1024), ("--turn-messages", 1)])
def test_lowest_limit_serves_a_well_behaved_client(serve, options):
    attack = serve(*options)
    answers = attack.say(b"INIT,%b,5000,5;" % new_id() + b"RECV,7;" * 1000)
    assert answers == [protocol.ACK] + [protocol.NUM] * 1000
    answers = attack.say(b"INIT,%b,65535,65535;RECV,0;RECV,0;FIN;" % new_id())
    assert answers == [protocol.ACK, protocol.NUM, protocol.NUM, protocol.FAC]


HEADS = ("storm", "seconds", "connections", "MB sent", "honest", "slowest ms", "KiB before", "KiB more",
         "bound", "ticks after")
ROW = "{:28}{:>9}{:>13}{:>9}{:>8}{:>12}{:>12}{:>10}{:>8}{:>13}"


def main():
    """Prints the figures; raises AssertionError if a bound is exceeded."""
    print(ROW.format(*HEADS))
    for name in STORMS:
        measured = measure(name)
        print(ROW.format(name, "%.1f" % measured.seconds, measured.connections, "%.1f" % measured.megabytes,
                         measured.honest, "%.0f" % (measured.slowest * 1000), measured.before, measured.grown,
                         STORMS[name].memory, measured.ticks), flush=True)
        check(measured)


if __name__ == "__main__":
    main()
