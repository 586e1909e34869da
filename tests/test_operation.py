"""The server as its operator sees it: under a supervisor, by its figures, in a container, and told to end at
any moment.

Real processes and real signals.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from helpers import ROOT, read_all, reset
from programs import HOST, Program, ServerProgram, module, numbers_of, script
from service_manager import Notices, launch, passed_socket

pytestmark = pytest.mark.slow
PATIENCE = 10.0  # seconds that one socket operation may take
ID = b"123e4567-e89b-12d3-a456-426614174000"
SESSION = b"INIT,%b,10,5;RECV,0;RECV,1;FIN;"
LONG = ("--session-timeout", "60")


def client_id(number):
    return b"%08d-0000-0000-0000-000000000000" % number


def is_served(say, port, number=0):
    """Whether a whole session goes through."""
    peer = say(port, SESSION % client_id(number))
    answer = read_all(peer)
    kinds = [message[:3] for message in (answer or b"").split(b";")]
    peer.close()
    return kinds == [b"ACK", b"NUM", b"NUM", b"FAC", b""]


# ---- under a supervisor


@pytest.fixture
def supervised(tmp_path, sockets):
    """A function: a server (a Program) with passed sockets and a Notices; (program, notices, port)."""
    started = []

    def start(*options, variables=(), notices=None, listening=None):
        listening = listening or passed_socket()
        sockets.append(listening)
        notices = notices or Notices()
        arguments, keywords = launch([listening], script("server") + ("0",) + options)
        program = Program(arguments, tmp_path, dict(variables, NOTIFY_SOCKET=notices.name), **keywords)
        started.append((program, notices))
        notices.wait_for("READY=1")
        return program, notices, listening.getsockname()[1]

    yield start
    for program, notices in started:
        program.close()
        notices.close()


def test_an_activated_server_listens_on_what_was_passed_and_nowhere_else(supervised, say):
    program, notices, port = supervised()
    assert program.wait_for("\n") == "Listening on %s:%d\n" % (HOST, port)
    ready, status = notices.heard[0]
    assert ready == "READY=1" and status.startswith("STATUS=0 connections of at most ")
    assert is_served(say, port)
    program.process.terminate()
    assert program.wait().status == 0


def test_an_activated_server_says_that_it_stops(supervised, say):
    program, notices, port = supervised(*LONG)
    peer = say(port, b"INIT,%b,5,5;" % ID)
    assert peer.recv(100) == b"ACK;"
    program.process.terminate()
    message = notices.wait_for("STOPPING=1")
    assert message[1].startswith("STATUS=1 connections of at most ")
    peer.sendall(b"FIN;")
    assert read_all(peer).startswith(b"FAC,")
    peer.close()
    assert program.wait().status == 0


def test_a_watchdog_is_kept_alive_while_the_server_is_idle(supervised):
    program, notices, port = supervised(variables={"WATCHDOG_USEC": "200000"})
    for _ in range(3):
        assert notices.wait_for("WATCHDOG=1")[1].startswith("STATUS=")
    program.process.terminate()
    assert program.wait().status == 0


def test_connections_between_two_servers_are_served_by_the_second(supervised, say):
    listening = passed_socket()
    program, notices, port = supervised(listening=listening)
    program.process.terminate()
    assert program.wait().status == 0
    peer = say(port, SESSION % ID)
    supervised(listening=listening)
    assert read_all(peer).startswith(b"ACK;NUM,")


def test_what_is_passed_and_cannot_be_used_is_told_in_one_line(tmp_path, sockets):
    sockets.append(socket.socket())
    arguments, keywords = launch([sockets[0]], script("server") + ("0",))
    program = Program(arguments, tmp_path, {}, **keywords)
    ended = program.wait()
    program.close()
    assert ended == (1, "", "server.py: file 3, which was passed, is no TCP socket that listens\n")


# ---- figures


def get(address, path):
    """(status, body) of an HTTP request."""
    try:
        with urllib.request.urlopen("http://%s%s" % (address, path), timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode("ascii")
    except urllib.request.HTTPError as error:
        return error.code, error.read().decode("ascii")


def figures(text):
    """{sample: value} of a text in the exposition format."""
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines()
            if line[0] != "#"}


@pytest.fixture
def metrics_port():
    with socket.socket() as free:
        free.bind((HOST, 0))
        return free.getsockname()[1]


def test_figures_are_those_of_what_happened(programs, say, metrics_port):
    server = programs.server("--metrics", "%s:%d" % (HOST, metrics_port))
    address = "%s:%d" % (HOST, metrics_port)
    assert get(address, "/healthz") == (200, "ok\n")
    assert is_served(say, server.port)
    refused = say(server.port, SESSION % client_id(0))
    assert read_all(refused).startswith(b"ERR,")
    refused.close()
    waiting = say(server.port, b"INIT,%b,5,5;" % ID)
    assert waiting.recv(100) == b"ACK;"
    status, body = get(address, "/metrics")
    found = figures(body)
    expected = {
        "numseq_connections": 1,
        "numseq_connections_accepted_total": 3,
        'numseq_sessions_ended_total{reason="finished"}': 1,
        'numseq_sessions_ended_total{reason="refused"}': 1,
        "numseq_messages_sent_total": 6,
        "numseq_numbers_sent_total": 10,
        'numseq_errors_sent_total{kind="exists"}': 1,
        "numseq_sequences": 2,
        "numseq_sequences_created_total": 2,
        'numseq_store_requests_total{outcome="answered"}': 2,
        'numseq_store_requests_total{outcome="exists"}': 1,
        "numseq_store_request_seconds_count": 3,
        "numseq_lines_dropped_total": 0,
        "numseq_internal_errors_total": 0,
    }
    assert status == 200
    assert {name: found[name] for name in expected} == expected
    assert found["numseq_turns_total"] == found["numseq_turn_seconds_count"] > 3
    assert found["process_resident_memory_bytes"] > 5e6 and found["process_open_fds"] > 5
    assert str(ID[:8], "ascii") not in body


def test_a_server_that_drains_is_not_healthy(programs, say, metrics_port):
    server = programs.server("--metrics", "%s:%d" % (HOST, metrics_port), *LONG)
    peer = say(server.port, b"INIT,%b,5,5;" % ID)
    assert peer.recv(100) == b"ACK;"
    server.process.terminate()
    while get("%s:%d" % (HOST, metrics_port), "/healthz") != (503, "ending\n"):
        pass
    peer.close()
    assert server.wait().status == 0


def test_metrics_that_cannot_be_listened_on_are_told(programs, port_in_use, tmp_path):
    ended = programs.python(*(script("server") + (0, "--metrics", "%s:%d" % (HOST, port_in_use))))
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("server.py: cannot listen on %s:%d: " % (HOST, port_in_use))


@pytest.fixture
def port_in_use(sockets):
    sockets.append(passed_socket())
    return sockets[-1].getsockname()[1]


@pytest.mark.parametrize("text", ["9100", ":9100", "::1:9100", "localhost:", "localhost:x",
                                  "localhost:65536"])
def test_metrics_address_that_is_none_is_told_in_one_line(programs, text):
    ended = programs.python(*(script("server") + (0, "--metrics", text)))
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)


def test_sigusr1_prints_the_figures_in_a_few_lines(programs, say):
    server = programs.server()
    assert is_served(say, server.port)
    server.process.send_signal(signal.SIGUSR1)
    text = server.wait_for("start time", 1)
    lines = text.splitlines()[1:]
    assert len(lines) < 12 and all(line.startswith("server.py: ") for line in lines)
    assert "sessions ended: 1 finished" in text and "numbers sent: 10" in text
    assert is_served(say, server.port, 1)


# ---- who it is


def test_verbose_names_the_peer_why_it_ended_and_the_start_of_its_id(programs, say):
    server = programs.server("-v", session_timeout=0.5)
    cases = [(SESSION % client_id(0), "00000000: finished"), (b"INIT,%b,5,5;" % client_id(1),
                                                              "00000001: time is up"),
             (SESSION % client_id(0), "00000000: refused"), (b"what;", "-: refused")]
    for data, words in cases:
        peer = say(server.port, data)
        name = "%s:%d " % peer.getsockname()
        while peer.recv(1000) and words != "00000001: time is up":
            pass
        peer.close() if "time" not in words else None
        server.wait_for(name + words, 1)
    assert "-0000-" not in server.read(1)


def test_verbose_tells_a_reset_from_an_end(programs, say):
    server = programs.server("-v", *LONG)
    for end, words in (reset, "reset"), (socket.socket.close, "closed"):
        peer = say(server.port, b"INIT,%b,5,5;" % client_id(len(words)))
        assert peer.recv(100) == b"ACK;"
        name = "%s:%d " % peer.getsockname()
        end(peer)
        server.wait_for("%s%08d: %s\n" % (name, len(words), words), 1)


def test_connections_per_address_leave_room_for_others(programs, say, sockets):
    server = programs.server("--connections-per-address", "3", *LONG)
    mine = [say(server.port, b"INIT,%b,5,5;" % client_id(number)) for number in range(3)]
    assert [peer.recv(100) for peer in mine] == [b"ACK;"] * 3
    assert read_all(say(server.port)) == b"ERR,Too many connections;"
    other = socket.socket()
    sockets.append(other)
    other.settimeout(PATIENCE)
    other.bind(("127.0.0.2", 0))
    other.connect((HOST, server.port))
    other.sendall(b"INIT,%b,5,5;" % client_id(5))
    assert other.recv(100) == b"ACK;"
    mine.pop().close()
    while not is_served(say, server.port, 6):
        pass


def test_test_mode_is_said_at_the_start(programs):
    warning = "server.py: TEST_MODE is set: whoever knows a client's id knows its numbers\n"
    assert programs.server().wait_for("\n", 1) == warning
    ended = programs.server(test_mode=False).stop()
    assert ended.err == ""


# ---- signals and the start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_at_any_moment_ends_with_0(tmp_path, number):
    for delay in (0.0, 0.0005, 0.002, 0.005, 0.01, 0.02):
        server = ServerProgram(cwd=tmp_path)
        server.process.send_signal(number)
        time.sleep(delay)
        try:
            server.process.send_signal(number)
        except ProcessLookupError:
            pass
        ended = server.wait()
        server.close()
        assert ended.status == 0, delay


@pytest.mark.parametrize("run", [script("server"), module("server"), ("-m", "numseq", "server")])
def test_a_signal_while_it_starts_ends_with_0(run, tmp_path):
    """As soon as the interpreter has come to the first line: the file that is run handles signals first."""
    code = ("import runpy, sys, os, signal\n"
            "sys.argv = %r\n"
            "sys.path.insert(0, %r)\n"
            "from numseq import signals\n"
            "plain = signals.exit_at_once\n"
            "signals.exit_at_once = lambda: (plain(), setattr(signals, 'exit_at_once', plain),"
            " os.kill(os.getpid(), signal.SIGTERM))\n"
            "runpy.%s\n") % (
                [run[-1] if run[0] != "-m" else "x"] + (["server"] if len(run) == 3 else []) + ["0"], ROOT,
                "run_path(%r, run_name='__main__')" % run[0] if run[0] != "-m" else
                "run_module(%r, run_name='__main__')" % run[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=str(tmp_path), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE,
                          timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_ignored_signals_stay_ignored(tmp_path, say):
    server = ServerProgram(cwd=tmp_path, preexec=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    server.process.send_signal(signal.SIGINT)
    assert is_served(say, server.port)
    assert server.stop().status == 0
    server.close()


@pytest.mark.parametrize("count", [1, 100])
def test_all_who_had_connected_before_a_signal_are_served(programs, say, count):
    server = programs.server()
    os.kill(server.process.pid, signal.SIGSTOP)
    peers = [say(server.port, SESSION % client_id(number)) for number in range(count)]
    server.process.terminate()
    os.kill(server.process.pid, signal.SIGCONT)
    answers = [read_all(peer) for peer in peers]
    assert [answer[:4] for answer in answers] == [b"ACK;"] * count
    for peer in peers:
        peer.close()
    assert server.wait().status == 0


def test_started_through_a_symbolic_link(programs, say, tmp_path):
    link = tmp_path / "numseq-here"
    link.symlink_to(os.path.join(ROOT, "numseq", "server.py"))
    server = programs.server(run=(str(link),))
    assert is_served(say, server.port)


def test_process_1_of_a_container_is_ended_by_sigterm(tmp_path):
    """With a /proc of its own, and unshared process ids."""
    can = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"],
                         stderr=subprocess.DEVNULL).returncode == 0 \
        if os.path.exists("/usr/bin/unshare") else False
    if not can:
        pytest.skip("no process namespace can be made here")
    # The shell is outside, and tells the process inside; as process 1 it has no default action for any
    # signal.
    out = tmp_path / "out"
    with out.open("wb") as file:
        child = subprocess.Popen(["unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
                                  sys.executable,
                                  os.path.join(ROOT, "numseq", "server.py"), "0"], stdout=file, stderr=file)
        while b"Listening" not in out.read_bytes():
            assert child.poll() is None, out.read_bytes()
            time.sleep(0.01)
        inside = int(subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(child.pid)]))
        os.kill(inside, signal.SIGTERM)
        assert child.wait(PATIENCE) == 0


# ---- few files, and missing ones


def limit_files(soft, hard=None):
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard or resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def test_soft_limit_of_files_is_raised(programs):
    import resource

    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048:
        pytest.skip("the hard limit is low")
    server = programs.server(preexec=lambda: limit_files(64))
    with open("/proc/%d/limits" % server.process.pid) as limits:
        soft = [int(line.split()[3]) for line in limits if line.startswith("Max open files")]
    assert soft[0] >= 2048


def test_what_the_limit_of_files_leaves_is_told_and_clamps(programs):
    server = programs.server("--connections", "5000", preexec=lambda: limit_files(200, 200))
    text = server.wait_for("ulimit -n", 1)
    assert "server.py: the limit of open files, 200, leaves room for 1" in text


def test_without_files_a_client_hears_why(programs, say):
    """The limit is lowered while the server runs; a spare file is kept for the last word."""
    import resource

    if not hasattr(resource, "prlimit"):
        pytest.skip("the limit of another process cannot be changed here")
    server = programs.server(*LONG)
    kept = [say(server.port, b"INIT,%b,5,5;" % client_id(number)) for number in range(3)]
    assert [peer.recv(100) for peer in kept] == [b"ACK;"] * 3
    open_now = len(os.listdir("/proc/%d/fd" % server.process.pid))
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (open_now, open_now))
    assert read_all(say(server.port, b"INIT,%b,5,5;" % client_id(9))) == b"ERR,Too many connections;"
    server.wait_for("cannot accept connections for now: [Errno 24] Too many open files\n", 1)
    kept.pop().close()
    while not is_served(say, server.port, 10):
        pass
    assert server.read(1).count("Too many open files") == 1


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_without_standard_streams_and_null_device_it_serves(tmp_path, say, closed):
    """In a root of its own there is no /dev, /proc or /etc; here they are only made to fail."""
    code = """
import os, sys
real = os.open
def none(path, *rest, **more):
    if str(path).startswith(("/dev", "/proc", "/etc")):
        raise FileNotFoundError(2, "no such file")
    return real(path, *rest, **more)
os.open = none
for file in %r:
    os.close(file)
sys.path.insert(0, %r)
for name, file in ("stdin", 0), ("stdout", 1), ("stderr", 2):
    if file in %r:
        setattr(sys, name, None)
from numseq.serving import main
sys.exit(main(["%d"], "server.py"))
"""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    program = Program(["-c", code % (closed, ROOT, closed, port)], tmp_path, {})
    try:
        while True:
            try:
                assert is_served(say, port)
                break
            except ConnectionRefusedError:
                assert program.process.poll() is None, program.read(1)
                time.sleep(0.01)
        program.process.terminate()
        assert program.wait().status == 0
    finally:
        program.close()


def test_a_terminal_that_stops_background_writers_does_not_stop_it(tmp_path):
    """`stty tostop`, and not in the foreground: SIGTTOU would stop it at its first line."""
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    theirs, ours = pty.openpty()
    attributes = termios.tcgetattr(ours)
    attributes[3] |= termios.TOSTOP
    termios.tcsetattr(ours, termios.TCSANOW, attributes)
    code = """
import fcntl, os, subprocess, sys, termios
os.setsid()
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
child = subprocess.Popen(sys.argv[1:], preexec_fn=os.setpgrp)
sys.exit(child.wait())
"""
    child = subprocess.Popen([sys.executable, "-c", code, sys.executable, os.path.join(ROOT, "numseq",
                                                                                       "server.py"), "0"],
                             stdin=ours, stdout=ours, stderr=subprocess.DEVNULL)
    os.close(ours)
    text = b""
    while b"Listening on " not in text:
        text += os.read(theirs, 1000)
    inside = subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(child.pid)], universal_newlines=True)
    os.kill(int(inside), signal.SIGTERM)
    assert child.wait(PATIENCE) == 0
    os.close(theirs)



# ---- restarts


def knows_file_store():
    done = subprocess.run([sys.executable, os.path.join(ROOT, "numseq", "server.py"), "-h"],
                          stdout=subprocess.PIPE)
    return b"file:PATH" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not knows_file_store(), reason="there is no store that outlives a server yet")
def test_restarts_behind_an_activated_socket_lose_no_sequence(supervised, programs,
                                                                                tmp_path):
    """A client fetches 65,535 numbers, a request at a time, while the server is started anew five times."""
    options = ("-v", "--session-timeout", "0.2", "--store", "file:" + str(tmp_path / "sequences"))
    listening = passed_socket()
    program, notices, port = supervised(*options, listening=listening, variables={"TEST_MODE": "1"})
    client = programs.start_client("NEW", 65535, port, "--client_id", ID.decode(), "--batch_size", 1,
                                   "--quiet", "--window", 1, "--retry", 20,
                                   "--output", str(tmp_path / "numbers"))
    for _ in range(5):
        program.wait_for(ID[:8].decode() + ": open", 1)
        assert client.process.poll() is None, client.read(1)
        program.process.terminate()
        assert program.wait().status == 0
        program, notices, port = supervised(*options, listening=listening, variables={"TEST_MODE": "1"})
    ended = client.wait()
    assert ended.status == 0, ended
    assert "reset" not in program.read(1)
    with open(str(tmp_path / "numbers")) as file:
        assert [int(line) for line in file] == numbers_of(ID.decode(), 65535)
