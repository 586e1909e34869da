"""The client as a process: its outputs, its exit statuses, and how it continues after a kill."""

import errno
import os
import pty
import random
import re
import signal
import stat
import sys
import time
import uuid

import pytest
from helpers import WAIT_SECONDS, turn_until
from programs import cut, end, hang, honest, instead, numbers_of, script

from numseq import fetching
from numseq import shell
from numseq.fetching import COMPLETE
from numseq.journal import load
from numseq.writer import OUTPUT_FAILED, UNREAD

pytestmark = pytest.mark.slow
NUMBERS = numbers_of(1, 23)
GOOD = honest(NUMBERS, 5)
RESULT = "The SUM of numbers is: %d\nChecksum (%s) is valid!\n" % (sum(NUMBERS),
                                                                   GOOD("FIN")[4:-1].decode("ascii"))
LISTED = "".join("%d\n" % number for number in NUMBERS)
NEW = "NEW", 23
WRONG_CHECKSUM = instead(GOOD, FIN=b"FAC," + b"0" * 32 + b";")
NOT_VALID = "The SUM of numbers is: %d\nChecksum (%s) is not valid!\n" % (sum(NUMBERS), "0" * 32)
RESET = "[Errno %d] %s" % (errno.ECONNRESET, os.strerror(errno.ECONNRESET))
PROGRESS = re.compile(r"\r\x1b\[K(\d+) %, (\d+) numbers/s, (waiting|\d+ s left), (\d+) drops")
ERASED = "\r\x1b[K"
COMMAND = shell.join([sys.executable, script("client")[0]])  # as the tests call the client


# ---- quiet


def test_quiet_prints_exactly_the_two_result_lines(run, liar):
    assert run(liar(GOOD), *NEW, "-q") == (0, RESULT, "")
    assert run(liar(GOOD), "CONTINUE", "--quiet") == (0, RESULT, "")


def test_quiet_mode_has_a_wide_window_and_any_mode_takes_one(programs, liar, loop):
    for options, expected in [((), 1), (("-q",), 5), (("-q", "--window", 2), 2), (("--window", 3), 3)]:
        server = liar(instead(GOOD, RECV=b"", FIN=b""))
        client = programs.start_client(*NEW, server.port, *options)
        turn_until(loop, lambda: len(server.heard()) >= 1 + expected)
        for _ in range(3):
            loop.turn()
        requests = ["RECV,%d" % index for index in range(expected)]
        assert server.heard()[1:] == requests + ["FIN"] * (expected == 5), options
        client.close()


# ---- --output


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_output_writes_one_number_a_line(run, liar, tmp_path, quiet):
    result = run(liar(GOOD), *NEW, "--output", "numbers", *quiet)
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith(RESULT)
    assert (tmp_path / "numbers").read_text() == LISTED
    assert sorted(os.listdir(str(tmp_path))) == ["numbers", "numseq.state"], "a temporary file is left"


@pytest.mark.parametrize("answers, status", [
    (instead(GOOD, INIT=b"ERR,no;"), 3), (instead(GOOD, RECV_3=cut), 4), (instead(GOOD, FIN=end), 4),
    (instead(GOOD, RECV_4=b"NUM,1;"), 5), (WRONG_CHECKSUM, 1),
])
def test_existing_output_stays_until_the_numbers_are_verified(run, liar, tmp_path, answers, status):
    (tmp_path / "numbers").write_text("the old ones")
    assert run(liar(answers), *NEW, "--output", "numbers").status == status
    assert (tmp_path / "numbers").read_text() == "the old ones"
    server = liar(GOOD)
    assert run(server, *(NEW if status == 3 else ("CONTINUE",)), "--output", "numbers").status == 0
    assert (tmp_path / "numbers").read_text() == LISTED


def test_output_appears_whole_and_not_while_it_is_fetched(programs, liar, ended, loop, tmp_path):
    server = liar(instead(GOOD, FIN=b""))
    client = programs.start_client(*NEW, server.port, "--output", "numbers")
    turn_until(loop, lambda: server.heard()[-1:] == ["FIN"])
    assert "numbers" not in os.listdir(str(tmp_path))
    server.peers[0].say(GOOD("FIN"))
    assert ended(client).status == 0
    assert (tmp_path / "numbers").read_text() == LISTED


def test_output_follows_a_link_and_keeps_it(run, liar, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "target").write_text("the old ones")
    (tmp_path / "link").symlink_to(os.path.join("folder", "target"))
    assert run(liar(GOOD), *NEW, "--output", "link").status == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "target").read_text() == LISTED
    assert os.listdir(str(tmp_path / "folder")) == ["target"]


@pytest.mark.parametrize("link", [False, True])
def test_output_into_a_device_keeps_the_device(run, liar, tmp_path, link):
    path = os.devnull
    if link:
        path = "link"
        (tmp_path / path).symlink_to(os.devnull)
    assert run(liar(GOOD), *NEW, "--output", path).status == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_output_into_a_pipe_reaches_its_reader(programs, liar, ended, tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    reading = os.open(str(tmp_path / "pipe"), os.O_RDONLY | os.O_NONBLOCK)
    try:
        client = programs.start_client(*NEW, liar(GOOD).port, "--output", "pipe")
        assert ended(client).status == 0
        assert os.read(reading, 1000).decode("ascii") == LISTED
    finally:
        os.close(reading)


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_output_on_standard_output_is_the_numbers_alone(run, liar, quiet):
    result = run(liar(GOOD), *NEW, "--output", "-", *quiet)
    assert (result.status, result.out) == (0, LISTED)
    assert result.err.endswith(RESULT)
    assert (result.err == RESULT) is bool(quiet)


def test_output_on_standard_output_is_empty_after_a_failure(run, liar):
    result = run(liar(WRONG_CHECKSUM), *NEW, "--output", "-")
    assert (result.status, result.out) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_one_line_and_its_own_status(run, liar):
    result = run(liar(GOOD), *NEW, "-q", "--output", "/dev/full")
    assert result == (OUTPUT_FAILED, RESULT,
                      "client.py: '/dev/full' cannot be written: %s\n" % os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_failed_is_written_by_continue(run, liar, tmp_path):
    assert run(liar(GOOD), *NEW, "-q", "--output", "/dev/full").status == OUTPUT_FAILED
    server = liar(GOOD)
    assert run(server, "CONTINUE", "-q", "--output", "numbers").status == 0
    assert server.heard() == ["CONT," + load(str(tmp_path / "numseq.state")).client_id.decode("ascii"), "FIN"]
    assert (tmp_path / "numbers").read_text() == LISTED


CREATED = "numseq-test-output"  # nobody can create a file in /proc


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs /proc")
def test_output_in_an_unwritable_directory_is_told_before_anything_is_sent(run, liar, tmp_path):
    server = liar(GOOD)
    result = run(server, *NEW, "--output", "/proc/" + CREATED)
    assert (result.status, result.out) == (OUTPUT_FAILED, "")
    assert result.err.startswith("client.py: '/proc/%s' cannot be written: " % CREATED)
    assert result.err.count("\n") == 1
    assert server.peers == [] and os.listdir(str(tmp_path)) == []


# ---- refused in one line, before anything is sent


REFUSED = [
    (("--host", ""), "argument --host: '' is not HOST, HOST:PORT, "),
    (("--host", " "), "argument --host: ' ' is not HOST, HOST:PORT, "),
    (("--output", "missing/numbers"),
     "--output 'missing/numbers' cannot be used: " + os.strerror(errno.ENOENT)),
    (("--output", "."), "--output '.' cannot be used: " + os.strerror(errno.EISDIR)),
    (("--output", "folder"), "--output 'folder' cannot be used: " + os.strerror(errno.EISDIR)),
    (("--output", ""), "--output '' cannot be used: " + os.strerror(errno.ENOENT)),
    (("--output", "file/x"), "--output 'file/x' cannot be used: " + os.strerror(errno.ENOTDIR)),
    (("--output", "n" * 256),
     "--output '%s' cannot be used: %s" % ("n" * 256, os.strerror(errno.ENAMETOOLONG))),
    (("--state", "missing/state"), "the state 'missing/state' cannot be used: " + os.strerror(errno.ENOENT)),
    (("--state", "folder"), "the state 'folder' cannot be used: " + os.strerror(errno.EISDIR)),
    (("--state", ""), "the state '' cannot be used: " + os.strerror(errno.ENOENT)),
    (("--output", "x", "--state", "x"), "--output and --state are the same file: 'x'"),
    (("--output", "file", "--state", "./link"), "--output and --state are the same file: 'file'"),
    (("--output", "new", "--state", "to-new"), "--output and --state are the same file: 'new'"),
    (("--output", "file", "--state", "hard"), "--output and --state are the same file: 'file'"),
    (("--output", "numseq.state"), "--output and --state are the same file: 'numseq.state'"),
]


@pytest.mark.parametrize("options, said", REFUSED)
@pytest.mark.parametrize("command", ["NEW", "CONTINUE"])
def test_invalid_settings_are_refused_in_one_line_before_anything_is_sent(run, liar, tmp_path, command,
                                                                          options, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("the user's")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "to-new").symlink_to("new")
    os.link(str(tmp_path / "file"), str(tmp_path / "hard"))
    before = sorted(os.listdir(str(tmp_path)))
    server = liar(GOOD)
    result = run(server, *(NEW if command == "NEW" else ("CONTINUE",)), *options)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    if "--host" in options:
        assert said in result.err
    elif command == "NEW" or "--state" not in options[:1]:
        assert result.err == "client.py: %s\n" % said
    assert server.peers == []
    assert sorted(os.listdir(str(tmp_path))) == before and (tmp_path / "file").read_text() == "the user's"


@pytest.mark.parametrize("command", [NEW, ("CONTINUE",)], ids=["NEW", "CONTINUE"])
def test_state_that_is_the_file_behind_standard_output_is_refused(run, liar, tmp_path, command):
    assert run(liar(GOOD), *NEW).status == 0
    before = (tmp_path / "numseq.state").read_bytes()
    with open(str(tmp_path / "numseq.state"), "ab") as out:
        result = run(liar(GOOD), *command, out=out)
    said = "client.py: the state 'numseq.state' is the file that the output goes to\n"
    assert (result.status, result.err) == (2, said)
    assert (tmp_path / "numseq.state").read_bytes() == before


# ---- where nobody reads standard output, or it cannot be written


@pytest.mark.parametrize("lines", [0, 3])
def test_reader_that_leaves_early_ends_the_client_without_a_traceback(programs, port, tmp_path, lines):
    reading, writing = os.pipe()
    client = programs.start_client("NEW", 20000, port, out=writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        head = [file.readline() for _ in range(lines)]
    result = client.wait()
    assert (result.status, result.err) == (UNREAD, "") and UNREAD == 141
    assert head[1:2] in ([], [b"Received: ACK;\n"])
    assert "numseq.state" in os.listdir(str(tmp_path)) or not lines


def test_reader_gone_before_the_numbers_causes_no_traceback(programs, liar, ended):
    reading, writing = os.pipe()
    client = programs.start_client(*NEW, liar(GOOD).port, "-q", "--output", "-", out=writing)
    for file in writing, reading:
        os.close(file)
    assert ended(client).status == UNREAD
    assert client.read(1) == RESULT


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("options", [(), ("-q",), ("-q", "--output", "-")])
def test_full_standard_output_is_reported_in_one_line(programs, port, options):
    with open("/dev/full", "wb") as full:
        result = programs.client(*NEW, port, *options, out=full)
    assert result.status == OUTPUT_FAILED
    assert result.err.splitlines()[-1].endswith(os.strerror(errno.ENOSPC))
    assert "Traceback" not in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("options, status, files", [
    ((), 0, []), (("-q",), 0, []), (("--output", "numbers"), 0, ["numbers"]),
    (("--output", "/dev/full"), OUTPUT_FAILED, []),
])
@pytest.mark.parametrize("closed", [(1,), (1, 2), (0, 1, 2)])
def test_client_works_with_its_standard_streams_closed(
        programs, port, tmp_path, options, status, files, closed):
    result = programs.client("NEW", 23, port, *options, preexec=lambda: [os.close(file) for file in closed])
    assert result.status == status
    assert sorted(os.listdir(str(tmp_path))) == files + ["numseq.state"]
    assert load(str(tmp_path / "numseq.state")).batches() == 5
    assert "Traceback" not in result.err


@pytest.mark.parametrize("spoil", [
    lambda: os.close(1), lambda: os.dup2(os.open(os.devnull, os.O_RDONLY), 1),
], ids=["closed", "only read"])
def test_output_to_an_unusable_standard_output_is_refused_at_the_start(programs, liar, tmp_path, spoil):
    server = liar(GOOD)
    result = programs.client(*NEW, server.port, "--output", "-", preexec=spoil)
    said = "client.py: standard output cannot be written: %s\n" % os.strerror(errno.EBADF)
    assert (result.status, result.err) == (OUTPUT_FAILED, said)
    assert server.peers == [] and os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("closed", [False, True])
def test_full_standard_error_changes_nothing_else(programs, liar, ended, closed):
    if not (closed or os.path.exists("/dev/full")):
        pytest.skip("needs a device that is always full")
    with open(os.devnull if closed else "/dev/full", "wb") as full:
        client = programs.start_client(*NEW, liar(instead(GOOD, RECV_3=cut)).port, "-q", "--state",
                                       os.devnull, err=full,
                                       preexec=(lambda: os.close(2)) if closed else None)
        result = ended(client)
    assert result[:2] == (4, "")


@pytest.mark.parametrize("broken", [False, True])
def test_unwritable_transcript_ends_the_same_on_either_stream(programs, port, broken):
    if not (broken or os.path.exists("/dev/full")):
        pytest.skip("needs a device that is always full")
    reading, writing = os.pipe()
    with open("/dev/full" if not broken else os.devnull, "wb") as full:
        client = programs.start_client(*NEW, port, "--output", "-", err=writing if broken else full)
    for file in writing, reading:
        os.close(file)
    assert client.wait()[:2] == (UNREAD if broken else OUTPUT_FAILED, "")


# ---- exit statuses


STATUSES = {
    "complete": (GOOD, COMPLETE, RESULT, ""),
    "checksum": (WRONG_CHECKSUM, 1, NOT_VALID,
                 "client.py: these are not the server's numbers, so they were dropped; "
                 "CONTINUE fetches them again\n"
                 "client.py: to go on: {command} CONTINUE {port}\n"),
    "refused": (instead(GOOD, INIT=b"ERR,Too many clients;"), 3, "",
                "client.py: refused: Too many clients\n"),
    "lost": (instead(GOOD, RECV_3=cut), 4, "",
             "client.py: %s\nclient.py: to go on: {command} CONTINUE {port}\n" % RESET),
    "ended": (instead(GOOD, RECV_3=end), 4, "",
              "client.py: The server closed the connection\n"
              "client.py: to go on: {command} CONTINUE {port}\n"),
    "lost before there was anything": (
        instead(GOOD, INIT=cut), 4, "",
        "client.py: connected to 127.0.0.1:{port}, but never acknowledged: %s\n" % RESET),
    "silent": (instead(GOOD, RECV_3=hang), 4, "",
               "client.py: no answer for 1 s\nclient.py: to go on: {command} CONTINUE {port}\n"),
    "broken": (instead(GOOD, RECV_3=b"NUM,1:2:3;"), 5, "",
               "client.py: The server broke the protocol: 3 numbers in batch 3, which has 5\n"
               "client.py: to go on: {command} CONTINUE {port}\n"),
}


def timeout_of(name):
    """Seconds until the client gives up: short where the test waits for that, never reached elsewhere."""
    return 1 if name == "silent" else WAIT_SECONDS


@pytest.mark.parametrize("name", sorted(STATUSES))
def test_each_failure_has_its_status_and_its_line(run, liar, name):
    answers, status, out, err = STATUSES[name]
    server = liar(answers)
    result = run(server, *NEW, "-q", "--timeout", timeout_of(name))
    assert result == (status, out, err.format(command=COMMAND, port=server.port))


@pytest.mark.parametrize("name", sorted(STATUSES))
def test_transcript_ends_with_the_error_and_the_hint_is_on_stderr(run, liar, name):
    answers, status, out, err = STATUSES[name]
    server = liar(answers)
    result = run(server, *NEW, "--timeout", timeout_of(name))
    assert result.status == status
    assert [line for line in result.err.splitlines() if "to go on" in line] == [
        line for line in err.format(command=COMMAND, port=server.port).splitlines() if "to go on" in line]
    assert result.err.count("\n") == err.count("\n") - (status in (3, 4, 5))
    said = err.splitlines()[0][len("client.py: "):].split("never acknowledged: ")[-1] if err else ""
    last = {0: RESULT, 1: NOT_VALID, 3: "Received: ERR,Too many clients;\n"}.get(status, "ERROR: %s\n" % said)
    assert result.out.endswith(last)


@pytest.mark.parametrize("command", [("-h",), ("NEW", "-h"), ("CONTINUE", "-h")])
def test_help_lists_every_exit_status(programs, command):
    said = programs.client(*command).out
    assert [int(number) for number in re.findall(r"^  (\d+)  ", said, re.MULTILINE)] == [
        0, 1, 2, 3, 4, 5, 74, 129, 130, 141, 143]


def test_hint_names_the_options_needed_to_continue(run, liar, tmp_path):
    server = liar(instead(GOOD, RECV_3=cut))
    result = run(server, *NEW, "--host", "localhost", "--state", "my state", "--retry", 0)
    assert result.err == "client.py: to go on: %s CONTINUE %d --host localhost --state 'my state'\n" % (
        COMMAND, server.port)


def test_retry_survives_drops_and_shows_them_in_the_transcript_alone(run, liar):
    result = run(liar(instead(GOOD, INIT=end), instead(GOOD, RECV_2=cut), GOOD), *NEW, "--retry", 1)
    assert (result.status, result.err) == (0, "")
    assert result.out.count("ERROR: ") == 2 and result.out.endswith(RESULT)


# ---- interrupted


def test_interrupt_before_the_sequence_exists_gives_no_hint(programs, liar, ended, loop):
    server = liar(instead(GOOD, INIT=hang))
    client = programs.start_client(*NEW, server.port)
    turn_until(loop, lambda: server.heard())
    client.process.send_signal(signal.SIGINT)
    assert ended(client)[::2] == (130, "client.py: interrupted\n")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                            (signal.SIGHUP, 129)])
def test_signal_before_the_loop_runs_ends_the_run(monkeypatch, capfd, liar, loop, tmp_path, number, status):
    real = fetching.parse_arguments

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(fetching, "parse_arguments", interrupted)
    monkeypatch.chdir(str(tmp_path))
    server = liar(GOOD)
    assert fetching.main(["NEW", "5", str(server.port)], "client.py") == status
    for _ in range(3):
        loop.turn()
    assert server.peers == [] and capfd.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the handlers of before are not back"


# ---- progress


class Terminal:
    """A pseudo-terminal; `file` is the program's end."""

    def __init__(self):
        self._here, self.file = pty.openpty()
        os.set_blocking(self._here, False)
        self._text = ""

    def read(self):
        """The text written to it so far."""
        try:
            while True:
                self._text += os.read(self._here, 4096).decode("ascii")
        except OSError:
            return self._text

    def hang_up(self):
        """Closes both ends."""
        if self.file is not None:
            os.close(self._here)
            os.close(self.file)
        self.file = None


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    made.hang_up()


def test_progress_shows_on_a_terminal_in_quiet_mode_and_is_erased(programs, liar, ended, loop, terminal):
    server = liar(instead(GOOD, RECV_1=cut), instead(GOOD, RECV_3=b"", RECV_4=b"", FIN=b""), GOOD)
    client = programs.start_client(*NEW, server.port, "-q", "--window", 1, "--retry", 1, err=terminal.file,
                                   TERM="xterm")
    # Three of five batches have arrived, after a drop.
    turn_until(loop,
               lambda: [shown for shown in PROGRESS.findall(terminal.read()) if shown[0::3] == ("65", "1")])
    share, rate, left, drops = PROGRESS.findall(terminal.read())[-1]
    assert int(rate) > 0 and left.endswith(" s left")
    server.peers[1].say(GOOD("RECV,3"))
    turn_until(loop, lambda: server.heard()[-1] == "FIN")
    server.peers[1].say(GOOD("RECV,4") + GOOD("FIN"))
    assert ended(client)[:2] == (0, RESULT)
    said = terminal.read()
    assert said.endswith(ERASED)
    assert "".join(PROGRESS.sub("", said).split(ERASED)) == "", "something else was written to the terminal"


def test_client_that_was_stopped_reads_before_it_believes_its_timer(programs, liar, ended, loop):
    server = liar(instead(GOOD, INIT=b"", RECV=b"", FIN=b""))
    client = programs.start_client(*NEW, server.port, "-q", "--timeout", 1)
    turn_until(loop, lambda: server.heard()[-1:] == ["FIN"])
    client.process.send_signal(signal.SIGSTOP)
    server.peers[0].say(b"ACK;" + b"".join(GOOD("RECV,%d" % index) for index in range(5)) + GOOD("FIN"))
    for _ in range(3):
        loop.turn()
    time.sleep(1.5)
    client.process.send_signal(signal.SIGCONT)
    assert ended(client) == (0, RESULT, "")


def test_lost_terminal_does_not_end_the_fetch(programs, liar, ended, loop, terminal):
    server = liar(instead(GOOD, FIN=b""))
    client = programs.start_client(*NEW, server.port, "-q", err=terminal.file, TERM="xterm")
    turn_until(loop, lambda: PROGRESS.search(terminal.read()))
    terminal.hang_up()
    until = time.monotonic() + 0.2  # two times the pause between two looks
    turn_until(loop, lambda: time.monotonic() > until)
    server.peers[0].say(GOOD("FIN"))
    assert ended(client)[:2] == (0, RESULT)


def test_progress_before_any_number_says_waiting(programs, liar, ended, loop, terminal):
    client = programs.start_client(*NEW, liar(instead(GOOD, RECV=b"", FIN=b"")).port, "-q",
                                   err=terminal.file, TERM="xterm")
    turn_until(loop, lambda: PROGRESS.search(terminal.read()))
    assert PROGRESS.search(terminal.read()).groups() == ("0", "0", "waiting", "0")
    client.process.send_signal(signal.SIGINT)
    assert ended(client).status == 130
    last = terminal.read().split(ERASED)[-1]
    assert last.startswith("client.py: interrupted"), "the progress was not erased before the hint"


@pytest.mark.parametrize("options, on_terminal",
                         [((), True), (("-q", "--no-progress"), True), (("-q",), False)])
def test_progress_is_shown_only_on_a_terminal_in_quiet_mode(programs, liar, ended, loop, terminal, options,
                                                            on_terminal):
    server = liar(instead(GOOD, FIN=b""))
    client = programs.start_client(*NEW, server.port, *options, err=terminal.file if on_terminal else None,
                                   TERM="xterm")
    turn_until(loop, lambda: server.heard()[-1:] == ["FIN"])
    until = time.monotonic() + 0.3  # three times the pause between two looks
    turn_until(loop, lambda: time.monotonic() > until)
    server.peers[0].say(GOOD("FIN"))
    result = ended(client)
    assert result.status == 0
    assert (terminal.read() if on_terminal else result.err) == ""


# ---- the state


def test_unwritable_state_is_one_warning_and_the_fetch_goes_on(run, liar):
    assert run(liar(GOOD), *NEW, "-q", "--state", os.devnull) == (
        0, RESULT,
        "client.py: the state '/dev/null' cannot be written, CONTINUE will not be possible: "
        "not a regular file\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_fetch_goes_on_in_a_read_only_folder(run, liar, tmp_path):
    tmp_path.chmod(0o500)
    result = run(liar(GOOD), *NEW, "-q")
    tmp_path.chmod(0o700)
    assert result[:2] == (0, RESULT) and result.err.count("\n") == 1


def test_no_hint_is_given_without_a_state(run, liar):
    result = run(liar(instead(GOOD, RECV_3=cut)), *NEW, "--state", os.devnull)
    assert result.status == 4 and "to go on" not in result.err


def test_device_as_the_state_stays_a_device(run, liar):
    assert run(liar(GOOD), *NEW, "-q", "--state", os.devnull).status == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("data, wrong", [(b"", "damaged"), (b"numseq 2 whatever\n", "of another version")])
def test_damaged_state_is_reported_in_one_line_and_stays(programs, port, tmp_path, data, wrong):
    (tmp_path / "numseq.state").write_bytes(data)
    assert programs.client("CONTINUE", port) == (
        2, "", "client.py: the state 'numseq.state' is %s, begin with NEW\n" % wrong)
    assert (tmp_path / "numseq.state").read_bytes() == data


@pytest.mark.parametrize("theirs, status, said", [
    (honest(NUMBERS[::-1], 5), 1, "these are not the server's numbers, so they were dropped"),
    (honest(NUMBERS, 4), 5, "4 numbers in batch 3, which has 5"),
    (instead(GOOD, RECV=b"ERR,Invalid batch index requested: 3;"), 3,
     "refused: Invalid batch index requested: 3"),
])
def test_state_of_another_sequence_is_reported_in_one_line(run, liar, theirs, status, said):
    assert run(liar(instead(GOOD, RECV_3=cut)), *NEW, "-q", "--window", 1).status == 4
    result = run(liar(theirs), "CONTINUE", "-q", "--window", 1)
    assert result.status == status
    assert [line for line in result.err.splitlines() if "to go on" not in line] == [
        line for line in result.err.splitlines() if said in line] != []


def test_continue_fetches_numbers_with_a_wrong_checksum_anew(run, liar):
    assert run(liar(WRONG_CHECKSUM), *NEW, "-q").status == 1
    server = liar(GOOD)
    assert run(server, "CONTINUE", "-q") == (0, RESULT, "")
    assert server.heard()[1:] == ["RECV,%d" % index for index in range(5)] + ["FIN"]


def test_continue_is_not_promised_without_a_state(run, liar):
    result = run(liar(WRONG_CHECKSUM), *NEW, "-q", "--state", os.devnull)
    assert result.status == 1 and "they were dropped\n" in result.err
    assert result.err.count("CONTINUE") == result.err.count("CONTINUE will not be possible") == 1


def test_unacknowledged_new_sequence_leaves_the_earlier_state(run, liar, tmp_path):
    assert run(liar(instead(GOOD, RECV_3=cut)), *NEW, "-q").status == 4
    before = (tmp_path / "numseq.state").read_bytes()
    for answer in cut, end, b"ERR,no;", b"nonsense;":
        assert run(liar(instead(GOOD, INIT=answer)), "NEW", 5, "-q").status in (3, 4, 5)
        assert (tmp_path / "numseq.state").read_bytes() == before


def test_two_clients_with_different_states_run_side_by_side(programs, tmp_path):
    server = programs.server(session_timeout=0.1)
    names = [str(uuid.uuid4()) for _ in range(2)]
    command = ("-q", "--window", 4, "--retry", 1000)
    clients = [programs.start_client("NEW", 10000, server.port, "--client_id", name, "--state", name,
                                     *command)
               for name in names]
    results = [client.wait() for client in clients]
    for name, result in zip(names, results):
        assert result.status == 0
        assert result.out.startswith("The SUM of numbers is: %d\n" % sum(numbers_of(name, 10000)))
        assert list(load(str(tmp_path / name)).numbers) == numbers_of(name, 10000)
    assert sorted(os.listdir(str(tmp_path))) == sorted(names)


# ---- kill -9


COUNT = 20000


@pytest.mark.slow
def test_kill_at_any_moment_neither_loses_nor_repeats_numbers(programs, liar, ended, loop, tmp_path):
    """Kills a fetch again and again while it receives many batches per turn; the server records requests."""
    chance = random.Random(9)
    numbers = numbers_of(9, COUNT)
    state = str(tmp_path / "numseq.state")
    good = honest(numbers, 5)
    had = 0  # batches that are in the state
    kills = []
    while len(kills) < 14:
        server = liar(good)
        begin = ("CONTINUE",) if os.path.exists(state) else ("NEW", COUNT)
        client = programs.start_client(*begin, server.port, "-q", "--window", 64, measured=False)
        most = chance.choice([1, 2, chance.randint(3, 300)])
        turn_until(loop, lambda: len(server.heard()) >= most or client.process.poll() is not None)
        time.sleep(chance.uniform(0, 0.002))  # it goes on with what it was sent, up to any point
        client.process.kill()
        assert client.wait().status == -signal.SIGKILL, "it ended before the kill"
        turn_until(loop, lambda: server.peers[0].stream.handler is None)
        asked = [int(message[5:]) for message in server.heard() if message.startswith("RECV")]
        assert asked == list(range(had, had + len(asked))), "batches in the state were requested again"
        server.stop_listening()
        if os.path.exists(state):
            found = load(state)
            assert found.batches() >= had, "batches in the state are lost"
            assert list(found.numbers) == numbers[:len(found.numbers)]
            assert found.batches() <= had + len(asked)
            had = found.batches()
        kills.append(had)
    # Four of the draws above are longer than the window, so at least these make progress.
    assert len(set(kills)) >= 4
    server = liar(good)
    client = programs.start_client("CONTINUE", server.port, "-q", "--output", "numbers")
    assert ended(client).status == 0
    assert server.heard()[1:] == ["RECV,%d" % index for index in range(had, COUNT // 5)] + ["FIN"]
    assert [int(line) for line in (tmp_path / "numbers").read_text().split()] == numbers


@pytest.mark.parametrize("seed", range(6))
def test_continue_completes_and_verifies_after_a_kill(programs, port, tmp_path, seed):
    chance = random.Random(seed)
    client_id = str(uuid.uuid4())
    client = programs.start_client("NEW", COUNT, port, "--client_id", client_id, "--window", 8,
                                   measured=False)
    client.wait_for("INIT" if seed == 0 else "RECV")
    time.sleep(chance.uniform(0, 0.06))
    client.process.kill()
    said = client.wait().out
    state = str(tmp_path / "numseq.state")
    if not os.path.exists(state):
        assert "RECV" not in said, "a sequence was begun without a state"
        return
    batches = load(state).batches()
    last_asked = re.findall(r"RECV,(\d+);", said)[-1:]
    assert not last_asked or batches > int(last_asked[0]) - 8, "received batches are lost"
    more = programs.client("CONTINUE", port, "--retry", 100, "--window", 8)
    assert more.status == 0, more.err
    assert more.out.count("Skipping chunk-nr: ") >= batches
    assert re.findall(r"RECV,(\d+);", more.out)[:1] == [str(batches)][:batches < COUNT // 5]
    assert "The SUM of numbers is: %d\n" % sum(numbers_of(client_id, COUNT)) in more.out
