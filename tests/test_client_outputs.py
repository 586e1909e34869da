"""What the client writes reaches its reader whole, harms nothing that is there, and a failure is one line."""

import errno
import os
import re
import resource
import socket
import sys
import time

import pytest

from helpers import ROOT, fill_pipe, needs_proc, turn_until
from programs import CLIENT_ID, cut, hang, honest, instead, module, numbers_of, script

from numseq import shell
from numseq.console import plain

pytestmark = pytest.mark.slow
COUNT = 3000
NUMBERS = numbers_of(CLIENT_ID, COUNT)
SMALL = numbers_of(1, 23)
GOOD = honest(SMALL, 5)
LISTED = "".join("%d\n" % number for number in SMALL)
RESULT = "The SUM of numbers is: %d\nChecksum (%s) is valid!\n" % (sum(SMALL),
                                                                   GOOD("FIN")[4:-1].decode("ascii"))
NEW = "NEW", 23
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")


# ---- readers that are slow


def transcript():
    """All lines of a NEW of the NUMBERS, in batches of 5."""
    answer = honest(NUMBERS, 5)
    lines = ["Sending message: 'INIT,%s,%d,5;'" % (CLIENT_ID, COUNT), "Received: ACK;", "Requesting numbers"]
    for index in range(COUNT // 5):
        lines += [
            "Sending message: 'RECV,%d;'" % index, "Received: " + answer("RECV,%d" % index).decode("ascii")
        ]
    checksum = answer("FIN").decode("ascii")
    lines += ["Sending message: 'FIN;'", "Received: " + checksum, "Closing the connection",
              "The SUM of numbers is: %d" % sum(NUMBERS), "Checksum (%s) is valid!" % checksum[4:-1]]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("kind",
                         ["blocking pipe", "non-blocking pipe", "blocking socket", "non-blocking socket"])
@pytest.mark.parametrize("to_numbers", [False, True])
def test_slow_reader_of_the_output_gets_every_byte_with_status_0(programs, kind, to_numbers):
    reading, writing = os.pipe() if kind.endswith("pipe") else [each.detach() for each in socket.socketpair()]
    os.set_blocking(writing, not kind.startswith("non"))
    server = programs.server("--session-timeout", 15)
    options = ("-q", "--output", "-") if to_numbers else ("--timeout", 15)
    client = programs.start_client("NEW", COUNT, server.port, "--client_id", CLIENT_ID, *options, out=writing)
    os.close(writing)
    data = b""
    while True:
        some = os.read(reading, 700)
        data += some
        if not some:
            break
        time.sleep(0.0005)
    os.close(reading)
    assert client.wait().status == 0
    assert data.decode("ascii") == ("".join(
        "%d\n" % number for number in NUMBERS) if to_numbers else transcript())


def test_pipe_with_a_name_gets_every_byte_from_a_reader_who_comes_late(programs, liar, loop, tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    client = programs.start_client(*NEW, liar(GOOD).port, "-q", "--output", "pipe")
    turn_until(loop, lambda: "valid" in client.read(0))
    with open(str(tmp_path / "pipe")) as pipe:
        assert pipe.read() == LISTED
    assert client.wait() == (0, RESULT, "")


def test_reader_who_leaves_while_the_client_waits_for_it_ends_it_with_141(programs, liar, ended, loop):
    reading, writing = os.pipe()
    fill_pipe(writing)
    client = programs.start_client(*NEW, liar(GOOD).port, out=writing)
    os.close(writing)
    until = time.monotonic() + 0.3
    turn_until(loop, lambda: time.monotonic() > until)
    assert client.process.poll() is None
    os.close(reading)
    assert ended(client)[::2] == (141, "")


# ---- the program's own files


@needs_proc
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "log"])
@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_log_behind_standard_output_is_appended_to_and_never_replaced(run, liar, tmp_path, name, quiet):
    log = tmp_path / "log"
    log.write_text("an older line\n")
    inode = log.stat().st_ino
    with open(str(log), "ab") as out:
        result = run(liar(GOOD), *NEW, "--output", name, *quiet, out=out)
    assert result.status == 0 and result.err.endswith(RESULT)
    assert (log.read_text(), log.stat().st_ino) == ("an older line\n" + LISTED, inode)


@needs_proc
def test_file_that_the_parent_opened_is_written_to(programs, liar, ended, tmp_path):
    log = tmp_path / "log"
    log.write_text("an older line\n")
    code = ("import os, sys; os.dup2(os.open('log', os.O_WRONLY | os.O_APPEND), 7); "
            "os.execv(sys.executable, %s)")
    server = liar(GOOD)
    command = "[sys.executable, %r, 'NEW', '23', '%d', '-q', '--output', '/dev/fd/7']" % (script("client")[0],
                                                                                          server.port)
    client = programs.start_client("-c", code % command, run=())
    result = ended(client)
    assert result.status == 0 and log.read_text() == "an older line\n" + LISTED


def test_null_device_as_output_leaves_the_lines_where_they_belong(run, liar):
    assert run(liar(GOOD), *NEW, "-q", "--output", os.devnull) == (0, RESULT, "")
    with open(os.devnull, "wb") as null:
        assert run(liar(GOOD), *NEW, "-q", "--output", os.devnull, out=null)[::2] == (0, "")


# ---- the user's files


def test_files_of_the_user_with_similar_names_are_left_alone(run, liar, tmp_path):
    names = [
        name + ending
        for name in ("numbers", "numseq.state")
        for ending in (".1", "~", ".tmp", ".%d" % os.getpid())
    ]
    for name in names:
        (tmp_path / name).write_text("the user's")
    assert run(liar(GOOD), *NEW, "-q", "--output", "numbers").status == 0
    assert sorted(os.listdir(str(tmp_path))) == sorted(names + ["numbers", "numseq.state"])
    assert all((tmp_path / name).read_text() == "the user's" for name in names)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_output_keeps_its_mode_and_the_state_is_for_its_owner_alone(run, liar, tmp_path, mode):
    for name in "numbers", "numseq.state":
        (tmp_path / name).write_text("older")
        (tmp_path / name).chmod(mode)
    assert run(liar(GOOD), *NEW, "-q", "--output", "numbers").status == 0
    assert (tmp_path / "numbers").stat().st_mode & 0o777 == mode
    assert (tmp_path / "numseq.state").stat().st_mode & 0o777 == 0o600


def test_second_run_on_a_state_in_use_is_refused_and_harms_nothing(programs, run, liar, ended, loop,
                                                                   tmp_path):
    server = liar(instead(GOOD, RECV_3=hang))
    first = programs.start_client(*NEW, server.port, "-q", "--window", 1, "--timeout", 1000)
    turn_until(loop, lambda: "RECV,3" in server.heard())
    other = liar(GOOD)
    for again in NEW, ("CONTINUE",):
        result = run(other, *again, "-q")
        assert result == (2, "", "client.py: the state 'numseq.state' is in use by another run, "
                                 "name a different one for this run\n")
    assert other.peers == []
    server.peers[0].say(GOOD("RECV,3"))
    for message in "RECV,4", "FIN":
        turn_until(loop, lambda: message in server.heard())
        server.peers[0].say(GOOD(message))
    assert ended(first) == (0, RESULT, "")
    assert run(other, "CONTINUE", "-q")[:2] == (0, RESULT)


def test_state_that_is_removed_during_the_run_is_reported(programs, liar, ended, loop, tmp_path):
    server = liar(instead(GOOD, RECV_3=hang))
    client = programs.start_client(*NEW, server.port, "-q", "--window", 1, "--timeout", 1000)
    turn_until(loop, lambda: "RECV,3" in server.heard())
    (tmp_path / "numseq.state").unlink()
    client.process.terminate()
    assert ended(client)[::2] == (
        143, "client.py: the state 'numseq.state' cannot be written, CONTINUE will not be possible: "
             "another has removed or replaced it\nclient.py: ended by SIGTERM\n")


# ---- how to go on

ODD = ["plain", "with space", "it's", "-dash", "$HOME", "line\nbreak", "st\u00e4nd", "a;b&c", "*", "\\back"]


@pytest.mark.parametrize("name", ODD)
def test_hint_goes_on_when_it_is_pasted_into_a_shell(programs, liar, ended, tmp_path, name):
    server = liar(instead(GOOD, RECV_3=cut), GOOD)
    client = programs.start_client(*NEW, server.port, "--state=" + name, "--output=" + name + ".out", "-q",
                                   "--window", 1, "--host", "localhost")
    status, out, err = ended(client)
    hint = re.search("^client.py: to go on: (.*)$", err, re.MULTILINE | re.DOTALL).group(1)
    assert status == 4 and " --host localhost " in hint
    shell_run = programs.start_client(
        "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1], shell=True))", hint, run=())
    result = ended(shell_run)
    assert (result.status, result.out.endswith(RESULT)) == (0, True), result.err
    assert (tmp_path / (name + ".out")).read_text() == LISTED


def test_hint_repeats_the_options_that_matter_and_no_others(run, liar):
    server = liar(instead(GOOD, RECV_3=cut))
    result = run(server, *NEW, "--retry", 0, "--timeout", 2, "--window", 1)
    assert result.err.endswith("client.py CONTINUE %d\n" % server.port)
    server = liar(*[instead(GOOD, RECV_3=cut)] * 2)
    result = run(server, *NEW, "--retry", 1, "--output", "-", "--state", "s")
    assert result.err.endswith("client.py CONTINUE %d --state s --output - --retry 1\n" % server.port)
    hosts = "--host", "127.0.0.1", "--host", "localhost"
    result = run(liar(instead(GOOD, RECV_3=cut)), *NEW, *hosts)
    assert result.err.endswith(" --host 127.0.0.1 --host localhost\n"), "one of the servers is missing"


@pytest.mark.parametrize("called", [
    script("client"), module("client"), ("-m", "numseq", "client"), (os.path.join(ROOT, "numseq"), "client"),
    ("-B",) + script("client"),
])
def test_hint_names_the_program_as_it_was_called(run, liar, called):
    server = liar(instead(GOOD, RECV_3=cut))
    result = run(server, *NEW, "-q", run=called, PYTHONPATH=ROOT)
    assert result.err.splitlines()[-1].endswith(
        ": to go on: %s CONTINUE %d" % (shell.join((sys.executable,) + called), server.port))


@pytest.mark.parametrize("name", ["cli\u00ebnt", "a\nb", os.fsdecode(b"\xff")], ids=ascii)
def test_program_with_an_odd_name_has_a_hint_of_one_line(run, liar, tmp_path, name):
    os.symlink(*script("client"), str(tmp_path / name))
    result = run(liar(instead(GOOD, RECV_3=cut)), *NEW, "-q", run=(name,))
    assert (result.status, result.err.count("\n")) == (4, 2)
    assert result.err.splitlines()[1].startswith("%s: to go on: " % plain(name))


# ---- limits


@pytest.mark.parametrize("options", [(), ("-q",)])
def test_run_is_ended_after_max_time_with_its_state_safe(run, liar, tmp_path, options):
    server = liar(instead(GOOD, RECV_3=hang))
    result = run(server, *NEW, "--max-time", 0.5, "--timeout", 1000, "--window", 1, *options)
    assert result.status == 4
    assert "not complete after 0.5 s" in (result.err if options else result.out)
    assert ("to go on: " in result.err) is (tmp_path / "numseq.state").exists()


def test_max_time_counts_while_nobody_reads(programs, liar, ended):
    reading, writing = os.pipe()
    fill_pipe(writing)
    client = programs.start_client(*NEW, liar(GOOD).port, "--max-time", 0.5, out=writing)
    result = ended(client)
    for file in reading, writing:
        os.close(file)
    assert result[::2] == (4, "client.py: not complete after 0.5 s\n")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "", "x"])
def test_max_time_that_is_no_time_is_refused_in_one_line(programs, text):
    result = programs.client("NEW", 5, 5000, "--max-time", text)
    assert (result.status, result.err.count("\n")) == (2, 1)


def test_error_of_a_server_is_cut_on_the_terminal(run, liar):
    server = liar(instead(GOOD, INIT=b"ERR," + b"x" * 200000 + b";"))
    for options in (), ("-q",):
        result = run(server, *NEW, *options)
        assert result.status == 3 and 200 < len(result.out + result.err) < 600


@pytest.mark.parametrize("files", range(4, 10))
def test_too_few_files_are_one_line_and_no_traceback(programs, port, files):
    result = programs.client(*NEW, port, "-q", run=("-I", "-S") + script("client"),
                             preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)))
    assert result.status in (0, 4, 74) and "Traceback" not in result.err
    assert result.status == 0 or (result.err.count("\n"), os.strerror(errno.EMFILE)
                                  in result.err) == (1, True), result.err


# ---- what cannot be written


@needs_full
@pytest.mark.parametrize("arguments", [
    script("client") + ("--help",), script("client") + ("NEW", "--help"), script("client") + ("--version",),
    script("server") + ("--help",), script("server") + ("--version",),
    ("-m", "numseq", "--help"), ("-m", "numseq", "--version"),
])
def test_help_that_cannot_be_written_is_one_line_and_status_74(programs, arguments):
    with open("/dev/full", "wb") as full:
        result = programs.python(*arguments, out=full, PYTHONPATH=ROOT)
    assert (result.status, result.err.count("\n")) == (74, 1)
    assert result.err.endswith("standard output cannot be written: %s\n" % os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "arguments", [script("client") +
     ("--help",), script("server") + ("--help",), ("-m", "numseq", "-h")])
def test_help_that_nobody_reads_ends_with_141_and_no_word(programs, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    result = programs.python(*arguments, out=writing, PYTHONPATH=ROOT)
    os.close(writing)
    assert result[::2] == (141, "")


@needs_full
def test_usage_error_that_cannot_be_written_has_its_status_all_the_same(programs):
    with open("/dev/full", "wb") as full:
        client = programs.start_client("NEW", "x", "y", err=full)
        assert client.wait().status == 2


# ---- every status


STATUSES = {
    0: (GOOD, ()),
    1: (instead(GOOD, FIN=b"FAC," + b"0" * 32 + b";"), ()), 2: (GOOD, ("--output", "missing/numbers")),
    3: (instead(GOOD, INIT=b"ERR,no;"), ()), 4: (instead(GOOD, INIT=cut), ()),
    5: (instead(GOOD, RECV_3=b"nonsense;"), ()), 74: (GOOD, ("--output", "/dev/full")),
    129: (instead(GOOD, RECV_3=hang), ()), 130: (instead(GOOD, RECV_3=hang), ()), 141: (GOOD, ()),
    143: (instead(GOOD, RECV_3=hang), ()),
}


def test_table_of_statuses_in_the_readme_is_complete():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        table = file.read().partition("| the client exits with |")[2].partition("\n\n")[0]
    assert sorted(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE))) == sorted(STATUSES)


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_every_status_of_the_readme_is_reached(programs, liar, ended, loop, status):
    if status == 74 and not os.path.exists("/dev/full"):
        pytest.skip("needs a device that is always full")
    answers, options = STATUSES[status]
    server = liar(answers)
    reading, writing = os.pipe()
    client = programs.start_client(*NEW, server.port, "-q", "--window", 1, *options,
                                   out=writing if status == 141 else None)
    for file in reading, writing:
        os.close(file)
    if status in (129, 130, 143):
        turn_until(loop, lambda: "RECV,3" in server.heard())
        client.process.send_signal(status - 128)
    assert ended(client).status == status
