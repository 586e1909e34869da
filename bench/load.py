#!/usr/bin/env python3
"""The load of the benchmark: the clients of one server on this machine, all in one process.

    python bench/load.py MODE PORT PID

It prints one number, of the server that listens on 127.0.0.1:PORT and is the process PID: seconds (of
processor time for each operation, or of waiting) or bytes. Every answer is checked; the first wrong one ends
it, with status 1. A server ends each connection after its second: what takes longer goes on with CONT.

Many clients act in waves: nobody sends before everybody has an answer. So all servers find their work
waiting. One that is faster than the load would sleep and wake for each message instead, which costs it more
than the message.
"""

import argparse
import hashlib
import itertools
import os
import random
import select
import socket
import sys
import time

N_MOST = 65535  # numbers of the longest sequence
READ_SIZE = 256 * 1024  # bytes of one recv
TOGETHER = 64  # connections that are opened together: no backlog is that short
VISITORS = 16  # clients that leave something behind, at once
WAIT = 0.1  # seconds of one wait where the load may sleep
DEADLINE = 90.0  # seconds of one phase, to end what hangs: a busy machine takes several times as long
SETTLE = 0.1  # seconds in which a server comes to rest before its memory is looked at
ATTEMPTS = 1000  # connections in a row that end before an answer; a busy machine can be late for several
# connections or clients before memory is looked at: then the interpreter has all it needs itself
WARM_UP = 500


class Failure(Exception):
    """What went wrong."""


# ---- what is known of a server's process


def processor_time(pid):
    """Seconds of processor time used by a process: the clock of clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def memory(pid, name="VmRSS"):
    """Bytes of memory that a process has (VmRSS) or has had at most (VmHWM)."""
    with open("/proc/%d/status" % pid) as status:
        for line in status:
            if line.startswith(name + ":"):
                return 1024 * int(line.split()[1])
    raise Failure("no %s of process %d" % (name, pid))


# ---- many clients


class Load:
    """All clients on one epoll loop. With `spin` it never sleeps, so that no server pays for waking it."""

    def __init__(self, port, pid, spin):
        self.port = port
        self.pid = pid
        self.wait = 0 if spin else WAIT
        self.operations = 0
        self.begun = 0  # sessions of Visitors
        self.most = None  # of those; None for any number
        self.ready = 0  # Askers that have their first ACK
        self.asking = False  # whether they go on to ask
        self.living = 0  # clients that are to act in each wave
        self._due = {}  # from client to what it does in the next wave
        self._epoll = select.epoll()
        self._clients = {}  # from file to client

    def connect(self, client):
        """A connection whose input goes to `client`."""
        connection = socket.create_connection(("127.0.0.1", self.port), DEADLINE)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients[connection.fileno()] = client
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return connection

    def later(self, client, act):
        """Has act() called once all others have something to do as well."""
        self._due[client] = act

    def forget(self, client):
        """Drops what a client was to do: its connection is over."""
        self._due.pop(client, None)

    def run_until(self, done):
        """Serves the clients until done() is true."""
        end = time.monotonic() + DEADLINE
        poll, clients, wait = self._epoll.poll, self._clients, self.wait
        while not done():
            for number, _ in poll(wait, 1024):
                clients[number].on_event()
            if self._due and len(self._due) == self.living:
                due, self._due = self._due, {}
                for act in due.values():
                    act()
            if time.monotonic() > end:
                raise Failure("not done in %d seconds" % DEADLINE)

    def run_for(self, seconds):
        """Serves the clients for that time; returns the server's processor time per operation, in seconds."""
        end = time.monotonic() + seconds
        operations, used = self.operations, processor_time(self.pid)
        self.run_until(lambda: time.monotonic() > end)
        if self.operations == operations:
            raise Failure("not an operation in %.1f seconds" % seconds)
        return (processor_time(self.pid) - used) / (self.operations - operations)


class Client:
    """One connection after the other."""

    def __init__(self, load):
        self.load = load
        self.ended_early = 0  # connections in a row
        load.living += 1
        self.connect()

    def connect(self):
        self.input = b""
        self.connection = self.load.connect(self)
        self.begin()

    def send(self, data):
        try:
            if self.connection.send(data) != len(data):
                raise Failure("a request that the kernel does not take whole")
        except ConnectionError:
            pass  # the next event tells

    def on_event(self):
        try:
            data = self.connection.recv(READ_SIZE)
        except BlockingIOError:
            return  # it was for a connection that had this number before
        except ConnectionError:
            data = b""
        if data:
            self.input += data
            self.received()
        else:
            self.connection.close()
            self.load.forget(self)
            self.ended()

    def retry(self):
        """Connects again after a connection that ended before its time."""
        self.ended_early += 1
        if self.ended_early > ATTEMPTS:
            raise Failure("%d connections ended before they got an answer" % self.ended_early)
        self.connect()


class Asker(Client):
    """A client of one sequence that always has a window of RECVs outstanding, once load.asking is true."""

    def __init__(self, load, windows, settings):
        self.windows = windows  # iterator of bytes: `size` RECVs, of batches of `batch` numbers
        self.size = settings.window
        self.batch = settings.batch
        self.id = new_id()
        self.opening = b"INIT,%b,%d,%d;" % (self.id, settings.numbers, settings.batch)
        super().__init__(load)

    def begin(self):
        self.open = False
        self.send(self.opening)

    def ask(self):
        self.send(next(self.windows))

    def received(self):
        if not self.open:
            self.opened()
        elif self.input.count(b";") >= self.size:
            check_batches(self.input, self.size, self.batch)
            self.load.operations += self.size
            self.input = b""
            self.ended_early = 0
            self.load.later(self, self.ask)

    def opened(self):
        if self.input != b"ACK;":
            raise Failure("%r for %r" % (self.input, self.opening))
        self.input = b""
        self.open = True
        if self.opening.startswith(b"INIT"):
            self.opening = b"CONT,%b;" % self.id
            self.load.ready += 1
        if self.load.asking:
            self.load.later(self, self.ask)

    def ended(self):
        """Its second is over: what was answered of the window counts, and the rest is lost."""
        self.load.operations += self.input.count(b";")
        self.retry()


class Visitor(Client):
    """Whole sessions, one after the other, each as a new client and up to the server's close."""

    def __init__(self, load, requests, size):
        self.requests = requests  # that follow the INIT
        self.size = size  # numbers of a sequence, all in one batch
        load.begun += 1
        super().__init__(load)

    def begin(self):
        self.replies = []
        self.send(b"INIT,%b,%d,%d;" % (new_id(), self.size, self.size))

    def received(self):
        if self.input.endswith(b";"):
            self.replies.append(self.input)
            self.input = b""
            if len(self.replies) <= len(self.requests):
                self.load.later(self, self.go_on)

    def go_on(self):
        self.send(self.requests[len(self.replies) - 1])

    def ended(self):
        if len(self.replies) <= len(self.requests):
            self.retry()
            return
        check_session(self.replies)
        self.ended_early = 0
        self.load.operations += 1
        if self.load.most is None or self.load.begun < self.load.most:
            self.load.begun += 1
            self.load.later(self, self.connect)
        else:
            self.load.living -= 1


# ---- one client that waits


class Caller:
    """A client of the longest sequence that waits for each answer."""

    def __init__(self, port, batch):
        self.port = port
        self.id = new_id()
        self.connection = None
        self.opening = b"INIT,%b,%d,%d;" % (self.id, N_MOST, batch)

    def ask(self, request, count):
        """The `count` answers to a request (bytes), as often as it takes, each time on a new connection."""
        for _ in range(ATTEMPTS):
            try:
                if self.connection is None:
                    self.open()
                return self.exchange(request, count)
            except ConnectionError:
                self.close()
        raise Failure("%d connections ended before they got an answer" % ATTEMPTS)

    def open(self):
        self.connection = socket.create_connection(("127.0.0.1", self.port), DEADLINE)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reply = self.exchange(self.opening, 1)
        if reply != b"ACK;":
            raise Failure("%r for %r" % (reply, self.opening))
        self.opening = b"CONT,%b;" % self.id

    def exchange(self, request, count):
        self.connection.sendall(request)
        reply = bytearray()
        while not (reply.endswith(b";") and reply.count(b";") >= count):
            data = self.connection.recv(READ_SIZE)
            if not data:
                raise ConnectionResetError("the server has closed")
            reply += data
        return bytes(reply)

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


# ---- messages


_ids = itertools.count(int.from_bytes(os.urandom(4), "big") << 32)


def new_id():
    """A client id (bytes) that no other load has."""
    return b"00000000-0000-4000-%04x-%012x" % divmod(next(_ids), 1 << 48)


def windows_of(size, batch, numbers):
    """An endless iterator of windows (bytes) of `size` RECVs of random full batches of so many numbers."""
    batches = range(numbers // batch)
    different = max(16, 4096 // size)
    return itertools.cycle([receives(random.choice(batches) for _ in range(size)) for _ in range(different)])


def receives(indices):
    return b"".join(b"RECV,%d;" % index for index in indices)


def check_batches(data, count, batch):
    """Raises Failure unless data is that many NUMs of that many numbers each, by their count."""
    counts = data.count(b"NUM,"), data.count(b";"), data.count(b":"), data[-1:]
    if counts != (count, count, count * (batch - 1), b";"):
        raise Failure("wrong batches: %r" % data[:80])


def check_session(replies):
    """Raises Failure unless a session's replies are right, with the checksum of its numbers if it has any."""
    opened, numbers, checksum = replies[0], replies[1:-1], replies[-1]
    expected = checksum_of(numbers[0]) if numbers else checksum[4:-1]
    if opened != b"ACK;" or checksum != b"FAC,%b;" % expected or len(expected) != 32:
        raise Failure("a wrong session: %r" % b"".join(replies)[:120])


def checksum_of(reply):
    """The md5 (bytes, hex digits) of the text of the list of a NUM's numbers."""
    return hashlib.new("md5", b"[%b]" % reply[4:-1].replace(b":", b", ")).hexdigest().encode("ascii")


# ---- modes: each measures one figure, of `count` clients, connections or sessions


def round_trips(load, settings):
    """Processor seconds for a RECV, where each client has `window` of them outstanding."""
    windows = windows_of(settings.window, settings.batch, settings.numbers)
    askers = open_askers(load, settings.count, windows, settings)
    load.asking = True
    for asker in askers:
        if asker.open:  # else its second is over, and it asks once it has continued
            asker.ask()
    return load.run_for(settings.seconds)


def sessions(load, settings):
    """Processor seconds for a whole session, after `left` clients have come and gone."""
    if settings.left:
        leave(load, settings.left, settings)
        load.most = None
    for _ in range(settings.count):
        Visitor(load, [b"RECV,0;", b"FIN;"], settings.batch)
    return load.run_for(settings.seconds)


def idle(load, settings):
    """Bytes for an idle connection."""
    return growth(load, settings, lambda count: open_askers(load, count, None, settings))


def retained(load, settings):
    """Bytes for a client that is gone and not forgotten."""
    return growth(load, settings, lambda count: leave(load, count, settings))


def leave(load, count, settings):
    """That many clients come and go, and their sequences remain."""
    target = load.operations + count
    load.most = load.begun + count
    for _ in range(min(VISITORS, count)):
        Visitor(load, [b"FIN;"], settings.batch)
    load.run_until(lambda: load.operations == target)


def peak(load, settings):
    """Bytes of memory that the server has at most, while it serves one client the longest sequence."""
    caller = Caller(load.port, settings.batch)
    batches = range(-(-N_MOST // settings.batch))
    numbers = []
    for first in range(0, len(batches), settings.window):
        window = batches[first:first + settings.window]
        reply = caller.ask(receives(window), len(window))
        numbers.append(reply.replace(b";NUM,", b":")[4:-1])
    checksum = caller.ask(b"FIN;", 1)
    if checksum != b"FAC,%b;" % checksum_of(b"NUM,%b;" % b":".join(numbers)):
        raise Failure("a wrong checksum: %r" % checksum)
    return memory(load.pid, "VmHWM")


def stall(load, settings):
    """Seconds that a RECV waits at most behind one request of a client of the longest sequence.

    That request is the first RECV of a batch, or the FIN of a new connection, which draws the numbers again.
    The median of `count` such clients.
    """
    longest = []
    for _ in range(settings.count):
        waiting, busy = Caller(load.port, 5), Caller(load.port, settings.batch)
        waiting.open()
        waiting.exchange(b"RECV,0;", 1)
        waits = []
        for request in b"RECV,0;", b"FIN;":
            busy.open()
            busy.connection.sendall(request)
            begin = time.perf_counter()
            waiting.exchange(b"RECV,0;", 1)
            waits.append(time.perf_counter() - begin)
            busy.exchange(b"", 1)
            busy.close()
        waiting.close()
        longest.append(max(waits))
    return sorted(longest)[len(longest) // 2]


def open_askers(load, count, windows, settings):
    """That many clients with an open connection, once all have their ACK."""
    askers = []
    while len(askers) < count:
        together = min(TOGETHER, count - len(askers))
        target = load.ready + together
        askers += [Asker(load, windows, settings) for _ in range(together)]
        load.run_until(lambda: load.ready == target)
    return askers


def growth(load, settings, add):
    """Bytes by which the server grows for each of `count` that add(count) adds."""
    add(WARM_UP)
    time.sleep(SETTLE)
    before = memory(load.pid)
    add(settings.count)
    time.sleep(SETTLE)
    return (memory(load.pid) - before) / settings.count


MODES = {function.__name__: function for function in (round_trips, sessions, idle, retained, peak, stall)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("port", type=int)
    parser.add_argument("pid", type=int)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--window", type=int, default=1)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--numbers", type=int, default=N_MOST)
    parser.add_argument("--left", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--spin", action="store_true")
    settings = parser.parse_args()
    try:
        print(MODES[settings.mode](Load(settings.port, settings.pid, settings.spin), settings))
    except (Failure, OSError) as error:
        sys.exit("%s: %s" % (settings.mode, error))


if __name__ == "__main__":
    main()
