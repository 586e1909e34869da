"""Very large and very small times and counts: on the command lines, in timers and in selectors."""

import selectors
import socket
import subprocess
import sys

import pytest

import builds
from builds import ROOT, scripts
from helpers import WAIT_SECONDS
from numseq import loop as loop_module
from numseq.loop import WAIT_LIMIT
from programs import CLIENT_ID, TRANSCRIPT_1

DAY = 86400.0  # seconds
LONGEST_WAIT = (2 ** 31 - 1) / 1000  # seconds: what poll takes, in milliseconds and 32 bits; 24.8 days
HUGE = 10 ** 9  # seconds: as much as the command lines take

SELECTORS = [getattr(selectors, name) for name in ("EpollSelector", "PollSelector", "DevpollSelector",
                                                   "KqueueSelector", "SelectSelector")
             if hasattr(selectors, name)]


# ---- timers


@pytest.mark.parametrize("days", [24, 25, 50, 365])
def test_timer_beyond_the_longest_wait_fires_when_due(days, loop, clock):
    began = clock()
    came = []
    loop.call_later(days * DAY, lambda: came.append(clock() - began))
    for _ in range(days + 1):  # once for each time that the wait was cut short
        loop.turn()
    assert came == [pytest.approx(days * DAY)]
    assert max(loop.poller.selector.timeouts) <= WAIT_LIMIT


def test_timer_at_infinity_never_fires_and_delays_no_others(loop, clock):
    came = []
    loop.call_later(float("inf"), lambda: came.append("never"))
    loop.call_later(HUGE, lambda: came.append("last"))
    loop.call_later(1, lambda: came.append("first"))
    loop.turn()
    assert came == ["first"]
    loop.turn()
    clock.advance(HUGE)
    loop.turn()
    assert came == ["first", "last"]
    assert max(loop.poller.selector.timeouts) <= WAIT_LIMIT


def test_longest_wait_fits_the_32_bits_of_poll():
    assert WAIT_LIMIT < LONGEST_WAIT


@pytest.mark.parametrize("kind", SELECTORS, ids=lambda kind: kind.__name__)
def test_every_selector_takes_the_longest_wait(kind):
    here, there = socket.socketpair()
    there.send(b"!")
    with here, there, kind() as selector:
        selector.register(here, selectors.EVENT_READ)
        assert len(selector.select(WAIT_LIMIT)) == 1


@pytest.mark.parametrize("kind", SELECTORS, ids=lambda kind: kind.__name__)
def test_loop_on_any_selector_turns_with_a_timer_of_31_years(kind):
    loop = loop_module.Loop(selector=kind())
    here, there = socket.socketpair()
    there.send(b"!")
    loop.call_later(HUGE, lambda: None)

    class Watched:
        interest = 0
        seen = 0

        def fileno(self):
            return here.fileno()

        def on_events(self, mask):
            self.seen += 1
            here.recv(1)

    watched = Watched()
    with here, there:
        loop.watch(watched, loop_module.READ)
        loop.turn()
        loop.watch(watched, 0)
    loop.close()
    assert watched.seen == 1


# ---- command lines

WRONG_SECONDS = ["0", "-0", "0.0", "-1", "-1e300", "nan", "NaN", "inf", "-inf", "infinity", "1e300", "1e400",
                 "1e-400", "1000000001", "", " 1", "1_0", "0x1", "1e", "9" * 5000]
WRONG_COUNTS = ["-1", "1.5", "1e3", "nan", "inf", "", " 1", "+1", "1_0", "9" * 5000]
SECONDS_OPTIONS = [("serving", ["0"], "--session-timeout"), ("serving", ["0"], "--retention"),
                   ("fetching", ["NEW", "5", "1"], "--timeout"), ("fetching", ["CONTINUE", "1"], "--timeout")]
COUNT_OPTIONS = [("serving", ["0"], "--connections"), ("serving", ["0"], "--clients"),
                 ("serving", ["0"], "--unsent"), ("serving", ["0"], "--turn-bytes"),
                 ("serving", ["0"], "--turn-messages"), ("fetching", ["NEW", "5", "1"], "--retry"),
                 ("fetching", ["NEW", "5", "1"], "--window"), ("fetching", ["NEW", "5", "1"], "--batch_size")]


# Runs many command lines in one process. Each one's errors are on standard error, followed by its status.
EACH = """
import sys
from numseq.%s import main
for arguments in %r:
    try:
        status = main(arguments, "prog")
    except SystemExit as exit:
        status = exit.code
    sys.stderr.write("status %%s\\n" %% status)
"""


def outcomes(name, command_lines):
    """[(exit status, complaints)] of command lines."""
    ran = subprocess.run([sys.executable, "-c", EACH % (name, command_lines)], cwd=ROOT,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True,
                         timeout=WAIT_SECONDS)
    assert ran.returncode == 0, ran.stderr
    found, said = [], []
    for line in ran.stderr.splitlines():
        if line.startswith("status "):
            found.append((line[len("status "):], said))
            said = []
        else:
            said.append(line)
    return found


@pytest.mark.parametrize("name, before, option, texts",
                         [each + (WRONG_SECONDS,) for each in SECONDS_OPTIONS]
                         + [each + (WRONG_COUNTS,) for each in COUNT_OPTIONS])
def test_invalid_time_or_count_is_refused_in_one_line(name, before, option, texts):
    command_lines = [before + [option + "=" + text] for text in texts]
    found = outcomes(name, command_lines)
    assert len(found) == len(texts)
    for command_line, (status, said) in zip(command_lines, found):
        assert (status, len(said)) == ("2", 1), command_line
        assert said[0].startswith("prog") and option in said[0]


@pytest.mark.parametrize("which", [builds.oldest, builds.newest], ids=["oldest", "newest"])
@pytest.mark.parametrize("seconds", ["1e9", "2147484", "4294968.5", "1e-300"])
def test_server_runs_with_the_longest_and_the_shortest_timeouts(seconds, which, tmp_path):
    server = scripts(which(), ROOT, environment={"PYTHONDONTWRITEBYTECODE": "1"})
    process = server.start("server", ["0", "--session-timeout", seconds, "--retention", seconds],
                           str(tmp_path))
    try:
        port = int(process.stdout.readline().rsplit(b":", 1)[1])
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS) as connection:
                connection.sendall(b"CONT,%s;" % CLIENT_ID.encode("ascii"))
                assert connection.recv(4) == b"ERR,"
        except ConnectionError:
            assert float(seconds) < 1, "it was reset before its time"
        assert process.poll() is None
        process.terminate()
        out, err = process.communicate(timeout=WAIT_SECONDS)
        assert (process.returncode, err) == (0, b"")
    finally:
        builds.end(process)


def test_client_runs_with_a_timeout_of_31_years(tmp_path):
    build = scripts(sys.executable, ROOT, environment={"PYTHONDONTWRITEBYTECODE": "1"})
    with builds.serving(build, str(tmp_path), TEST_MODE="1") as port:
        new = ["NEW", 5, port, "--client_id", CLIENT_ID, "--timeout", HUGE]
        status, out, err = build.run("client", new, str(tmp_path))
    assert (status, out) == (0, TRANSCRIPT_1)
