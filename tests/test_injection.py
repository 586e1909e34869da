"""Whatever a system call fails with, once or for a while, costs at most the connection at hand.

strace makes each system call of the loop fail in a server that runs, with each of the errors below: meanwhile
the
processor is idle, and afterwards an honest client is served, and no file is left open. What strace cannot
show in
every place is shown in process, in tests/test_loop.py, test_stream.py and test_server.py.
"""

import os
import resource
import shutil
import signal
import socket
import subprocess
import time

import pytest

from helpers import run_python
from programs import HOST, ServerProgram

ERRORS = ["EINTR", "EAGAIN", "ENOMEM", "ENOBUFS", "EMFILE", "EIO", "EINVAL", "EPERM"]
# Those of the loop while it serves. close() is not among them: where strace makes that fail, the file stays
# open.
CALLS = ["accept4", "ioctl", "epoll_ctl", "epoll_wait", "recvfrom", "sendto", "shutdown", "setsockopt",
         "write", "fcntl",
         "getpeername", "mmap", "brk"]
# The interpreter itself calls these again at EINTR, without end while it lasts; nothing written in Python
# sees that.
CALLED_AGAIN = ["accept4", "epoll_wait", "recvfrom", "sendto", "write", "setsockopt", "shutdown"]
ATTEMPTS = 3  # clients while a call fails
ATTEMPT_SECONDS = 0.3
IDLE_SECONDS = 0.4
# spinning is twice as many; strace adds to each call
IDLE_TICKS = 0.5 * IDLE_SECONDS * os.sysconf("SC_CLK_TCK")
PATIENCE = 10.0
SESSION = b"INIT,%08d-0000-0000-0000-000000000000,10,5;RECV,0;RECV,1;FIN;"


def can_trace():
    strace = shutil.which("strace")
    if strace is None:
        return False
    return subprocess.run([strace, "-o", os.devnull, "-e", "inject=getppid:error=EPERM", "true"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


needs_strace = pytest.mark.skipif(not can_trace(), reason="there is no strace that may inject errors here")


class Numbers:
    """Ids that were not used before."""

    last = 0

    @classmethod
    def next(cls):
        cls.last += 1
        return cls.last


def session(port, seconds):
    """The answers of the server to a whole session (bytes); what failed is not told."""
    data = b""
    try:
        with socket.create_connection((HOST, port), seconds) as peer:
            peer.settimeout(seconds)
            peer.sendall(SESSION % Numbers.next())
            while True:
                some = peer.recv(65536)
                if not some:
                    return data
                data += some
    except OSError:
        return data


def is_whole(answers):
    return [message[:3] for message in answers.split(b";")] == [b"ACK", b"NUM", b"NUM", b"FAC", b""]


def serves(port, patience=PATIENCE):
    """Whether a whole session goes through, soon: a client that was refused comes again."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if is_whole(session(port, PATIENCE)):
            return True
        time.sleep(0.05)
    return False


def files(pid):
    return sorted(os.listdir("/proc/%d/fd" % pid))


def ticks(pid):
    with open("/proc/%d/stat" % pid) as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))


class Injection:
    """strace, attached to a process, that makes a call fail: the next time (once), or each time."""

    def __init__(self, pid, call, error, once):
        when = "1" if once else "1+"
        self._strace = subprocess.Popen(
            ["strace", "-f", "-o", os.devnull, "-p", str(pid), "-e", "trace=" + call,
             "-e", "inject=%s:error=%s:when=%s" % (call, error, when)], stderr=subprocess.PIPE)
        line = self._strace.stderr.readline()
        assert b"attached" in line, line

    def end(self):
        self._strace.send_signal(signal.SIGINT)
        self._strace.wait()
        self._strace.stderr.close()


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("once", [True, False], ids=["once", "persistently"])
@pytest.mark.parametrize("call", CALLS)
def test_a_system_call_that_fails_costs_the_connection_at_hand_at_most(call, once, tmp_path):
    server = ServerProgram("-v", cwd=tmp_path, session_timeout=1)
    pid = server.process.pid
    try:
        before = files(pid)
        assert serves(server.port)
        for error in ERRORS:
            injection = Injection(pid, call, error, once)
            try:
                for _ in range(1 if once else ATTEMPTS):
                    session(server.port, ATTEMPT_SECONDS)
                if not once and not (error == "EINTR" and call in CALLED_AGAIN):
                    # the sessions' time is over: nobody is there but who waits to be accepted
                    time.sleep(1.0)
                    spent = ticks(pid)
                    time.sleep(IDLE_SECONDS)
                    assert ticks(pid) - spent < IDLE_TICKS, error
            finally:
                injection.end()
            assert serves(server.port), error
            end = time.monotonic() + PATIENCE
            while files(pid) != before and time.monotonic() < end:
                time.sleep(0.02)
            assert files(pid) == before, error
        assert "Traceback" not in server.read(1)
        assert server.stop().status == 0
    finally:
        server.close()


# ---- memory


FLOOD_PATIENCE = 60.0  # seconds in which the server has dropped all of a flood, on a busy machine
FLOODED = 3000  # connections of a flood
# bytes of address space beyond what the server has at its start: it runs out after some hundred
ROOM = 6 * 1024 * 1024


def address_space(pid):
    with open("/proc/%d/statm" % pid) as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def flood(port):
    """Connects 3,000 times, asks for much, reads nothing; returns the sockets."""
    peers = []
    for number in range(FLOODED):
        peer = socket.socket()
        peer.setblocking(False)
        peer.bind(("127.0.0.%d" % (1 + number % 8), 0))
        peers.append(peer)
        peer.connect_ex((HOST, port))
        if number % 64 == 0:
            time.sleep(0.002)
    for number, peer in enumerate(peers):
        try:
            peer.send(b"INIT,%08d-1111-0000-0000-000000000000,60000,1000;" % number + b"RECV,0;" * 200)
        except OSError:
            pass
    return peers


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"),
                    reason="the limit of another process cannot be changed here")
def test_a_flood_that_takes_all_memory_leaves_the_server_alive(tmp_path):
    wanted = FLOODED + 200
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip("not so many files may be open here")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, before[0]), hard))
    server = ServerProgram(cwd=tmp_path, test_mode=False, session_timeout=2)
    try:
        pid = server.process.pid
        assert serves(server.port)
        most = address_space(pid) + ROOM
        resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
        peers = flood(server.port)
        time.sleep(0.5)
        for peer in peers:
            peer.close()
        assert serves(server.port, FLOOD_PATIENCE), server.read(1)
        assert server.stop().status == 0
    finally:
        server.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ---- in process


@pytest.mark.slow
def test_a_loop_without_memory_serves_again_when_there_is_some():
    """The limit is set in the process itself: allocations fail anywhere, and nothing but memory is in short
    supply."""
    served = run_python("""
import resource, socket, sys
from numseq.loop import Loop
from numseq.serving import Server
from numseq.store_memory import MemoryStore

loop = Loop()
errors = []
server = Server(loop, MemoryStore(loop, lambda client_id: None), session_timeout=0.5)
loop.report = server.report
port = server.listen("127.0.0.1", 0)[0][1]
peers = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
for number, peer in enumerate(peers):
    peer.send(b"INIT,%08d-0000-0000-0000-000000000000,65535,65535;" % number + b"RECV,0;" * 500)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (size + 200000, hard))
loop.call_later(2, loop.stop)
loop.run()
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
assert not server.sessions, len(server.sessions)
peer = socket.create_connection(("127.0.0.1", port))
peer.send(b"INIT,11111111-0000-0000-0000-000000000000,5,5;FIN;")
loop.call_later(1, loop.stop)
loop.run()
print(peer.recv(4) == b"ACK;", len(loop.poller.watched))
""")
    assert served.split() == ["True", "1"]
