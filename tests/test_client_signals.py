"""Signals end a run with its state safe at any moment, and what was ignored stays ignored."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from helpers import ROOT, fill_pipe, run_python, turn_until
from programs import hang, honest, instead, numbers_of, script

from numseq import signals
from numseq.journal import load

NUMBERS = numbers_of(1, 23)
GOOD = honest(NUMBERS, 5)
RESULT = "The SUM of numbers is: %d\nChecksum (%s) is valid!\n" % (sum(NUMBERS),
                                                                   GOOD("FIN")[4:-1].decode("ascii"))
NEW = "NEW", 23
ENDINGS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM"),
           (signal.SIGHUP, 129, "ended by SIGHUP")]
each_signal = pytest.mark.parametrize("number, status, said", ENDINGS, ids=["SIGINT", "SIGTERM", "SIGHUP"])
HINT = "client.py: to go on: "
HANGS = instead(GOOD, RECV_3=hang)
pytestmark = [pytest.mark.usefixtures("no_signals"), pytest.mark.slow]


@pytest.fixture
def hanging(programs, liar, loop, tmp_path):
    """A function: a client (with options) that has three batches of five, and waits for more."""

    def start(*options, **keywords):
        server = liar(HANGS)
        client = programs.start_client(*NEW, server.port, "--timeout", 1000, *options, **keywords)
        turn_until(loop, lambda: has_batches(str(tmp_path / "numseq.state"), 3))
        turn_until(loop, lambda: "RECV,3" in server.heard())
        return client

    return start


def has_batches(path, count):
    """Whether a state is there that has so many batches."""
    return os.path.exists(path) and load(path).batches() == count


@pytest.fixture
def no_signals():
    """Forgets at the end which signals came."""
    yield
    del signals.arrived[:]


# ---- a run that is ended


@pytest.mark.parametrize("options", [(), ("-q",), ("-q", "--window", 1, "--retry", 5)])
@each_signal
def test_signal_ends_a_run_with_its_state_safe_and_a_hint(hanging, programs, liar, ended, number, status,
                                                          said, options):
    client = hanging(*options)
    client.process.send_signal(number)
    result = ended(client)
    first, second = result.err.splitlines()
    assert (result.status, first) == (status, "client.py: " + said)
    again = liar(GOOD)
    command = shlex.split(second[len(HINT):])[2:]
    command[command.index("CONTINUE") + 1] = again.port
    assert second.startswith(HINT) and ended(programs.start_client(*command, "-q"))[:2] == (0, RESULT)
    assert again.heard()[1:] == ["RECV,3", "RECV,4", "FIN"]


@each_signal
def test_signal_that_was_ignored_at_the_start_stays_ignored(hanging, loop, liar, ended, programs, number,
                                                            status, said):
    server = liar(HANGS)
    client = programs.start_client(*NEW, server.port, "-q", "--window", 1,
                                   preexec=lambda: signal.signal(number, signal.SIG_IGN))
    turn_until(loop, lambda: "RECV,3" in server.heard())
    client.process.send_signal(number)
    assert not is_caught(client, number)
    server.peers[0].say(GOOD("RECV,3"))
    turn_until(loop, lambda: "RECV,4" in server.heard())
    server.peers[0].say(GOOD("RECV,4"))
    turn_until(loop, lambda: "FIN" in server.heard())
    server.peers[0].say(GOOD("FIN"))
    assert ended(client) == (0, RESULT, "")


@each_signal
def test_first_process_of_a_container_is_ended_too(programs, liar, loop, ended, tmp_path, number, status,
                                                   said):
    """The kernel drops signals for process 1 that it has no handler for."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("only root can make a namespace of processes")
    if subprocess.call(["unshare", "--pid", "--fork", "true"], stderr=subprocess.DEVNULL):
        pytest.skip("no namespace of processes can be made here")
    server = liar(HANGS)
    code = (
        "import subprocess, sys; "
        "sys.exit(subprocess.call(['unshare', '--pid', '--fork', '--kill-child'] + sys.argv[1:]))"
    )
    client = programs.start_client(sys.executable, script("client")[0],
                                   *NEW, server.port, "-q", "--window", 1, run=("-c", code))
    turn_until(loop, lambda: "RECV,3" in server.heard())
    inner = descendant(client.process.pid, 2)
    os.kill(inner, number)
    result = ended(client)
    assert (result.status, result.err.splitlines()[0]) == (status, "client.py: " + said)
    assert load(str(tmp_path / "numseq.state")).batches() == 3


def descendant(pid, generations):
    """The only child of the only child of a process."""
    for _ in range(generations):
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            pid, = map(int, file.read().split())
    return pid


# ---- while it starts

MODULES = [
    "numseq", "numseq.errors", "numseq.signals", "numseq.fetching", "numseq.journal", "selectors",
    "numseq.loop", "numseq.transfer", "numseq.options", "argparse"
]
HOOK = """
import os, runpy, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == %r:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), %d)
sys.meta_path.insert(0, Hook())
for name in [name for name in sys.modules if name == %r]:
    del sys.modules[name]
sys.argv = %r
sys.path.insert(0, %r)
%s
"""
RUN_SCRIPT = "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
                         ids=["SIGINT", "SIGTERM"])
def test_signal_while_a_module_is_loaded_is_neither_lost_nor_a_traceback(tmp_path, liar, module, number,
                                                                         status):
    server = liar(GOOD)
    client = script("client")[0]
    code = HOOK % (module, number, module, [client, "NEW", "23", str(server.port)], ROOT, RUN_SCRIPT)
    ran = subprocess.run([sys.executable, "-c", code],
                         cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         universal_newlines=True, timeout=20)
    early = module in MODULES[:3]  # before there is anything that could take it
    assert ran.returncode == (-number if early and number == signal.SIGTERM else status)
    assert ran.stderr in ("", "client.py: %s\n" % dict((each[0], each[2]) for each in ENDINGS)[number])
    assert (ran.stdout, os.listdir(str(tmp_path))) == ("", [])


@pytest.mark.slow
@pytest.mark.parametrize("number, statuses", [(signal.SIGTERM, {143, -15}), (signal.SIGHUP, {129, -1}),
                                              (signal.SIGINT, None)])
def test_signal_in_the_first_moments_gives_no_traceback_of_ours(tmp_path, number, statuses):
    """Before its first line the interpreter is on its own: it reports an interrupt in its way or loses it."""
    for delay in range(60):
        process = subprocess.Popen(
            [sys.executable, "-I", "-S",
             script("client")[0], "NEW", "5", "1", "--retry", "100000"],
            cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            time.sleep(delay * 0.003)
            err = send_until_it_ends(process, number)
        finally:
            process.kill()
            process.wait()
        assert statuses is None or process.returncode in statuses, err
        assert re.search(rb'numseq/\w+\.py", line [1-9]', err) is None, err.decode()


def send_until_it_ends(process, number):
    """Sends a signal, again each time the process goes on for seconds; returns its standard error (bytes)."""
    for _ in range(10):
        process.send_signal(number)
        try:
            return process.communicate(timeout=6)[1]
        except subprocess.TimeoutExpired:
            pass
    pytest.fail("no signal ends it")


def test_nothing_is_caught_when_the_package_is_imported():
    said = run_python("import signal; before = [signal.getsignal(n) for n in (1, 2, 15)]\n"
                      "import numseq, numseq.fetching, numseq.transfer, numseq.__main__\n"
                      "print(before == [signal.getsignal(n) for n in (1, 2, 15)])")
    assert said == "True\n"


# ---- while nobody reads

# Without what site-packages may run at the start and the end: measuring coverage writes warnings.
ALONE = ("-I", "-S") + script("client")


def is_caught(program, number):
    """Whether a program has a handler for a signal by now."""
    caught = "SigCgt:"
    with open("/proc/%d/status" % program.process.pid) as file:
        mask, = [int(line[len(caught):], 16) for line in file if line.startswith(caught)]
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("options", [(), ("-q",), ("-q", "--output", "-"), ("--output", "-")])
@each_signal
def test_signal_ends_a_run_whose_output_nobody_reads(programs, liar, loop, tmp_path, number, status, said,
                                                     options, blocking):
    reading, writing = os.pipe()
    fill_pipe(writing)
    os.set_blocking(writing, blocking)
    try:
        stderr_is_full = options == ("--output", "-")
        server = liar(GOOD)
        client = programs.start_client(*NEW, server.port, *options, run=ALONE,
                                       **{"err" if stderr_is_full else "out": writing})
        turn_until(loop, lambda: is_caught(client, signal.SIGTERM))
        if "-q" in options:
            turn_until(loop, lambda: "FIN" in server.heard())
        until = time.monotonic() + 0.2
        turn_until(loop, lambda: time.monotonic() > until)
        assert client.process.poll() is None, "it did not wait for its reader"
        client.process.send_signal(number)
        turn_until(loop, lambda: client.process.poll() is not None)
        result = client.wait()
        assert result.status == status
        if not stderr_is_full:
            assert ("client.py: %s\n" % said) in result.err and "Traceback" not in result.err
            assert ("to go on" in result.err) is ("-q" in options)
    finally:
        os.close(reading)
        os.close(writing)


def test_signal_ends_a_run_that_waits_for_a_reader_of_its_pipe(programs, liar, loop, ended, tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    server = liar(GOOD)
    client = programs.start_client(*NEW, server.port, "-q", "--output", "pipe")
    turn_until(loop, lambda: "valid" in client.read(0))
    client.process.send_signal(signal.SIGTERM)
    result = ended(client)
    assert (result.status, result.err.count("\n")) == (143, 2) and result.err.endswith(" --output pipe\n")


def test_help_that_nobody_reads_is_ended_by_a_signal(programs, loop):
    reading, writing = os.pipe()
    fill_pipe(writing)
    try:
        client = programs.start_client("--help", out=writing, run=ALONE)
        turn_until(loop, lambda: is_caught(client, signal.SIGTERM))
        client.process.send_signal(signal.SIGTERM)
        assert client.wait()[::2] == (143, "")
    finally:
        os.close(reading)
        os.close(writing)


# ---- the room itself


def test_signals_are_remembered_in_their_order_and_not_without_end():
    taken = signals.catch()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.arrived == [signal.SIGTERM] + [signal.SIGINT] * (signals.ARRIVED_MOST - 1)
        assert sorted(signals.caught()) == sorted(signals.NUMBERS.values())
        assert signals.catch() == {}, "they are caught twice"
    finally:
        signals.restore(taken)
    assert signals.caught() == signals.arrived == []


def test_what_was_ignored_is_not_caught():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        taken = signals.catch()
        assert signal.SIGHUP not in taken and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signals.restore(taken)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_caught():
    assert run_python("import threading; from numseq import signals\ndone = []\n"
                      "thread = threading.Thread(target=lambda: done.append(signals.catch()))\n"
                      "thread.start(); thread.join(); print(done)") == "[{}]\n"
