"""The start of a server: what it loads, and what becomes of a step that fails."""

import errno
import os
import resource
import signal
import socket
import subprocess
import sys

import pytest

from helpers import ROOT, run_python
from numseq import serving
from numseq.exporter import Exporter
from numseq.loop import Loop
from numseq.serving import Server, serve
from test_client_signals import HOOK, RUN_SCRIPT

HOST = "127.0.0.1"


def fail(error):
    """A function that takes anything and raises the error."""

    def raise_error(*arguments, **keywords):
        raise error

    return raise_error


def open_files():
    return sorted(os.listdir("/proc/self/fd"))


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]


NO_FILES = OSError(errno.EMFILE, "Too many open files")

# What is replaced by a failure, the command line, the environment, and what is told.
FAILURES = {
    "store": (serving, "from_url", NO_FILES, [], {}, "NUMSEQ_STORE: Too many open files"),
    "test mode": (serving.sequence, "draw", ImportError("No module named 'random'"), [], {"TEST_MODE": "1"},
                  "TEST_MODE is not possible here: No module named 'random'"),
    "test mode without files": (serving.sequence, "draw", NO_FILES, [], {"TEST_MODE": "1"},
                                "TEST_MODE is not possible here: [Errno 24] Too many open files"),
    "listening": (Server, "listen", NO_FILES, [], {},
                  "cannot listen on 127.0.0.1:0: [Errno 24] Too many open files"),
    "passed sockets": (serving, "listening_sockets", serving.BadActivation("file 3 is no socket"), [], {},
                       "file 3 is no socket"),
    "metrics": (Exporter, "listen", NO_FILES, ["--metrics", "localhost:1"], {},
                "cannot listen on localhost:1: [Errno 24] Too many open files"),
    "signals": (Loop, "on_signal", NO_FILES, [], {},
                "cannot listen on 127.0.0.1:0: [Errno 24] Too many open files"),
}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the open files are not listed here")
@pytest.mark.parametrize("name", FAILURES)
def test_start_that_fails_is_told_in_one_line_and_leaves_nothing_open(name, capfd, monkeypatch):
    place, attribute, error, options, environment, said = FAILURES[name]
    settings = serving.read_arguments(["0"] + options, "server.py")
    before = open_files(), handlers()
    with monkeypatch.context() as patch:
        patch.setattr(place, attribute, fail(error))
        assert serve(settings, "server.py", environment) == 1
    assert (open_files(), handlers()) == before
    assert capfd.readouterr() == ("", "server.py: %s\n" % said)


@pytest.mark.parametrize("arguments", [("server.py", "0"), ("__main__.py",), ("client.py", "NEW", "5", "1")])
def test_program_that_may_open_next_to_no_files_says_so_in_one_line(arguments, tmp_path):
    """The three standard streams and one more: enough to load modules, too few for a loop."""
    ended = subprocess.run([sys.executable, "-S", os.path.join(ROOT, "numseq", arguments[0]), *arguments[1:]],
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4)),
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                           cwd=str(tmp_path))
    assert ended.stderr.endswith(": [Errno 24] Too many open files\n")
    assert ended.stderr.count("\n") == 1 and ended.returncode in (1, 4)


def test_wrong_setting_that_only_the_start_finds_ends_with_2(capfd):
    settings = serving.read_arguments(["0", "--store", "memory:x"], "server.py")
    assert serve(settings, "server.py", {}) == 2
    assert capfd.readouterr() == ("", "server.py: --store: memory: has nothing behind it\n")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the open files are not listed here")
def test_server_that_has_ended_leaves_nothing_open(capfd, monkeypatch):
    settings = serving.read_arguments(["0", "--metrics", HOST + ":0"], "server.py")
    monkeypatch.setattr(Loop, "run", lambda loop: None)
    socket.getaddrinfo(HOST, 0)  # may leave files of its own open
    before = open_files()
    assert serve(settings, "server.py", {}) == 0
    assert open_files() == before
    out, err = capfd.readouterr()
    assert out.startswith("Listening on 127.0.0.1:") and err == ""


def test_limit_that_the_server_has_is_the_one_that_it_tells(capfd, monkeypatch):
    """The files that a start opens are reserved, and not counted once more."""
    limits = [101, 99]
    monkeypatch.setattr(serving, "connections_limit", lambda loop: limits.pop(0))
    monkeypatch.setattr(Loop, "run", lambda loop: None)
    settings = serving.read_arguments(["0", "--connections", "100"], "server.py")
    assert serve(settings, "server.py", {}) == 0
    assert capfd.readouterr().err == ""


def test_store_that_repeats_a_complaint_is_told_once(capfd, monkeypatch):
    complain = None
    really_open = serving.from_url

    def open_store(*arguments):
        nonlocal complain
        complain = arguments[-1]
        complain("a damaged file")
        return really_open(*arguments)

    def run(loop):
        for _ in range(3):
            complain("a damaged record")

    monkeypatch.setattr(serving, "from_url", open_store)
    monkeypatch.setattr(Loop, "run", run)
    assert serve(serving.read_arguments(["0"], "server.py"), "server.py", {}) == 0
    assert capfd.readouterr().err == "server.py: a damaged file\nserver.py: a damaged record\n"


@pytest.mark.parametrize("options, loaded", [
    ([], set()), (["--metrics", HOST + ":0"], {"argparse", "numseq.options", "numseq.exporter"}),
    (["-q"], {"argparse", "numseq.options"}),
])
def test_what_only_options_need_is_loaded_only_for_them(options, loaded):
    code = ("import sys\nfrom numseq import serving\n"
            "serving.Loop.run = lambda loop: None\n"
            "serving.main(%r, 'server.py')\n"
            "print(*sys.modules)" % (["0"] + options))
    late = {"argparse", "numseq.options", "numseq.exporter", "numseq.store_file", "numseq.store_redis"}
    assert late.intersection(run_python(code).split()) == loaded


FIRST = ["numseq", "numseq.errors", "numseq.signals"]  # loaded before signals can be handled
MODULES = FIRST + ["numseq.serving", "selectors", "numseq.loop", "numseq.store_memory"]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_while_a_module_is_loaded_ends_with_0_and_no_traceback(module, number):
    code = HOOK % (module, number, module, [os.path.join(ROOT, "numseq", "server.py"), "0"], ROOT, RUN_SCRIPT)
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    status = -number if module in FIRST and number == signal.SIGTERM else 0
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, b"", b"")
