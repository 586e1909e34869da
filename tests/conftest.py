"""Fixtures of the tests; plain helpers are in helpers.py, programs.py, builds.py and proxy.py."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import tracemalloc

import pytest

import builds
from helpers import (ANY_PORT, ROOT, SLOW_SECONDS, TEST_SECONDS, WAIT_SECONDS, Clock, Recorder, TimeSelector,
                     turn_until)
from numseq.loop import Loop, Signals
from numseq.stream import Listener, Stream, listen
from programs import HOST, SHARED_SECONDS, Liar, Programs, ServerProgram
from redis_servers import RealRedis


def pytest_configure(config):
    # A shell has its background jobs ignore SIGINT, as in `sh tests/run`, and the programs keep that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for marker in ("lesson(number): shows that a known mistake of reactors is not made; see docs/lessons.md",
                   "slow: takes seconds; `sh tests/run quick` leaves it out"):
        config.addinivalue_line("markers", marker)


# ---- the system


@pytest.fixture
def closing_fails(monkeypatch):
    """A context manager: within it, each file is closed, but with an error, as on a network file system."""
    real = os.close

    def close(file):
        real(file)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    @contextlib.contextmanager
    def fails():
        with monkeypatch.context() as patch:
            patch.setattr(os, "close", close)
            yield

    return fails


# ---- the loop and its sockets


@pytest.fixture(autouse=True)
def time_limit(request):
    """Fails a test that hangs."""
    seconds = SLOW_SECONDS if request.node.get_closest_marker("slow") else TEST_SECONDS

    def fail(number, frame):
        pytest.fail("not done in %d seconds" % seconds)

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Restores the handlers: a server's `main` leaves signals ignored, and programs inherit that."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def loop(clock):
    """A Loop on the fake clock.

    A test that expects `loop.errors` takes them out; any that are left fail it.
    """
    loop = Loop(clock, TimeSelector(clock))
    loop.errors = []
    loop.report = loop.errors.append
    yield loop
    for key in list(loop.poller.selector.get_map().values()):
        if isinstance(key.data, Listener):
            key.data.close()
        elif not isinstance(key.data, Signals):  # those are the loop's own
            key.data.abort()
    loop.close()
    assert loop.errors == []


@pytest.fixture
def sockets():
    """A list of sockets to be closed at the end of the test."""
    sockets = []
    yield sockets
    for each in sockets:
        each.close()


@pytest.fixture
def connected_sockets(sockets):
    """A function: two plain sockets connected by TCP; `buffers` is the size of their kernel buffers."""

    def connect(buffers=None):
        listening = socket.socket()
        here = socket.socket()
        sockets.extend([listening, here])
        for each in listening, here:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a small message is there at once
            if buffers:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        listening.bind(ANY_PORT)
        listening.listen(1)
        here.settimeout(WAIT_SECONDS)
        here.connect(listening.getsockname())
        there, _ = listening.accept()
        there.settimeout(WAIT_SECONDS)
        sockets.append(there)
        listening.close()
        return there, here

    return connect


@pytest.fixture
def make_pair(loop, connected_sockets):
    """A function: a Stream of `handler` (a new Recorder) and the plain socket at its other end."""

    def make(handler=None, buffers=None):
        connection, peer = connected_sockets(buffers)
        connection.setblocking(False)
        return Stream(loop, connection, Recorder() if handler is None else handler), peer

    return make


@pytest.fixture
def handler():
    """The Recorder of `pair`'s stream."""
    return Recorder()


@pytest.fixture
def pair(make_pair, handler):
    """(Stream, plain socket at its other end)"""
    return make_pair(handler)


@pytest.fixture
def forgotten():
    """[(client id, when)] of all records that a store forgot, in order."""
    return []


@pytest.fixture
def listener(loop):
    """A Listener on the loopback; `.accepted` are the sockets that came."""
    accepted = []
    listener, = listen(loop, *ANY_PORT, accepted=accepted.append)
    listener.accepted = accepted
    yield listener
    listener.close()
    for connection in accepted:
        connection.close()


@pytest.fixture
def client_of(sockets):
    """A function: a plain socket connected to a listener."""

    def connect(listener):
        client = socket.create_connection(listener.address[:2], timeout=WAIT_SECONDS)
        sockets.append(client)
        return client

    return connect


@pytest.fixture
def traced():
    """A function: starts tracing memory; returns a function that gives the bytes allocated since then."""

    def start():
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        return lambda: tracemalloc.get_traced_memory()[0] - before

    yield start
    tracemalloc.stop()


@pytest.fixture
def open_files():
    """A function: how many files this process has open."""
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        pytest.skip("open files cannot be counted here")
    return lambda: len(os.listdir(folder))


# ---- programs


@pytest.fixture
def say(sockets):
    """A function: connects to a port, sends the data and returns the socket."""

    def connect(port, data=b""):
        peer = socket.create_connection((HOST, port), WAIT_SECONDS)
        sockets.append(peer)
        peer.sendall(data)
        return peer

    return connect


@pytest.fixture
def programs(tmp_path):
    """A Programs whose clients run in tmp_path."""
    started = Programs(tmp_path)
    yield started
    started.close()


@pytest.fixture
def liar(loop):
    """A function: a Liar on the test's loop."""
    return lambda *answers, **options: Liar(loop, *answers, **options)


@pytest.fixture
def ended(loop):
    """A function: turns the test's loop until a program has ended; returns its Ended."""

    def wait(program):
        turn_until(loop, lambda: program.process.poll() is not None)
        return program.wait()

    return wait


@pytest.fixture
def run(programs, ended):
    """A function: runs a client against a server on the test's loop to its end; returns its Ended.

    The server's port goes where the command has it.
    """

    def run_client(server, *arguments, **options):
        before = 2 if arguments[0] == "NEW" else 1
        return ended(programs.start_client(*arguments[:before], server.port, *arguments[before:], **options))

    return run_client


@pytest.fixture(scope="module")
def port():
    """The port of a server in TEST_MODE that all tests of a file share.

    Its standard error has to stay empty.
    """
    server = ServerProgram(seconds=SHARED_SECONDS)
    yield server.port
    ended = server.stop()
    server.close()
    assert (ended.status, ended.err) == (0, "")


@pytest.fixture(scope="module")
def real_redis():
    """A RealRedis that all tests of a file share."""
    server = RealRedis()
    yield server
    server.close()


# ---- builds


@pytest.fixture(scope="session")
def debian_folder(request, tmp_path_factory):
    """A function: the folder of a name in debian.FOLDERS, fetched once for all runs; or skips the test."""
    cache = getattr(request.config, "cache", None)
    below = str(tmp_path_factory.getbasetemp() if cache is None else cache.mkdir("debian"))

    def get(name):
        folder, reason = builds.unpacked(name, below)
        if reason is not None:
            builds.missing(reason)
        return folder

    return get


@pytest.fixture(scope="session")
def minimal_folder(debian_folder):
    """A folder with Debian's minimal Python and its libraries."""
    return debian_folder("minimal")


@pytest.fixture(scope="session")
def minimal(minimal_folder):
    """Debian's minimal Python (an Interpreter)."""
    return builds.debian_python("minimal", minimal_folder)


@pytest.fixture(scope="session")
def development(debian_folder):
    """The minimal Python of Debian's development suite (an Interpreter)."""
    return builds.debian_python("development", debian_folder("development"))


@pytest.fixture(scope="session")
def i386(debian_folder):
    """A Python of 32 bits (an Interpreter), run without an emulator."""
    interpreter = builds.debian_python("i386", debian_folder("i386"))
    if not builds.starts(interpreter):
        builds.missing("this kernel runs no programs of 32 bits")
    return interpreter


@pytest.fixture(scope="session")
def s390x(debian_folder):
    """A big-endian Python (an Interpreter), emulated."""
    emulator = os.path.join(debian_folder("qemu"), "usr", "bin", "qemu-s390x-static")
    return builds.debian_python("s390x", debian_folder("s390x"), emulator)


@pytest.fixture(scope="session")
def pypy(debian_folder):
    """PyPy (an Interpreter)."""
    return builds.debian_python("pypy", debian_folder("pypy"))


@pytest.fixture(scope="session", params=list(builds.DEBIAN))
def debian_build(request):
    """Each of Debian's builds in turn (an Interpreter)."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A folder with the package and nothing else."""
    return builds.copy_package(str(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="session")
def pyz(tmp_path_factory):
    """The path of a freshly built numseq.pyz."""
    path = str(tmp_path_factory.mktemp("one-file") / "numseq.pyz")
    subprocess.check_call([sys.executable, os.path.join(ROOT, "tools", "build_pyz.py"), path])
    return path
