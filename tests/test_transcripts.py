"""The programs as a user sees them: the exact transcripts, and the answers to wrong command lines."""

import errno
import hashlib
import itertools
import os
import re
import signal
import socket
import sys
import time
import uuid
import zipfile

import pytest
from programs import CLIENT_ID, HOST, ROOT, TRANSCRIPT_1, module, numbers_of, script

from helpers import fill_pipe, turn_until
from numseq import demo, shell
from numseq.serving import SESSION_TIMEOUT, Server
from numseq.store import MISSING
from numseq.store_memory import MemoryStore
from proxy import Proxy

RESET = "ERROR: [Errno %d] %s\n" % (errno.ECONNRESET, os.strerror(errno.ECONNRESET))
REFUSED = "ERROR: cannot connect to 127.0.0.1:{}: [Errno %d] %s\n" % (
    errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def batches_of(n, batch=5, client_id=CLIENT_ID):
    numbers = numbers_of(client_id, n)
    return [numbers[first:first + batch] for first in range(0, n, batch)]


def transcript(n, batch=5, client_id=CLIENT_ID, skipped=None):
    """The lines of a whole NEW, or of a CONTINUE that has `skipped` batches."""
    if skipped is None:
        yield "Sending message: 'INIT,%s,%d,%d;'\n" % (client_id, n, batch)
    else:
        yield "Sending message: 'CONT,%s;'\n" % client_id
    yield "Received: ACK;\n"
    yield "Requesting numbers\n"
    for index in range(skipped or 0):
        yield "Skipping chunk-nr: %d\n" % index
    for index, numbers in itertools.islice(enumerate(batches_of(n, batch, client_id)), skipped or 0, None):
        yield "Sending message: 'RECV,%d;'\n" % index
        yield "Received: NUM,%s;\n" % ":".join(map(str, numbers))
    everything = numbers_of(client_id, n)
    checksum = hashlib.md5(str(everything).encode("ascii")).hexdigest()
    yield "Sending message: 'FIN;'\n"
    yield "Received: FAC,%s;\n" % checksum
    yield "Closing the connection\n"
    yield "The SUM of numbers is: %d\n" % sum(everything)
    yield "Checksum (%s) is valid!\n" % checksum


# ---- the transcripts


TRANSCRIPT_2 = """\
Sending message: 'INIT,123e4567-e89b-12d3-a456-426614174000,5,5;'
Received: ERR,123e4567-e89b-12d3-a456-426614174000 already exist;
"""
TRANSCRIPT_4 = """\
Sending message: 'CONT,123e4567-e89b-12d3-a456-426614174000;'
Received: ACK;
Requesting numbers
Skipping chunk-nr: 0
Skipping chunk-nr: 1
Sending message: 'FIN;'
Received: FAC,9b14501c5359fb4eac96df9e874348b2;
Closing the connection
The SUM of numbers is: 531
Checksum (9b14501c5359fb4eac96df9e874348b2) is valid!
"""
TRANSCRIPT_5 = """\
Sending message: 'CONT,123e4567-e89b-12d3-a456-426614174000;'
Received: ERR,Client-id: 123e4567-e89b-12d3-a456-426614174000 does not exist;
"""
WITH_ID = "--client_id", CLIENT_ID


def test_new_sequence_prints_transcript_1_and_a_reused_id_prints_2(programs):
    server = programs.server()
    assert programs.client("NEW", 5, server.port, *WITH_ID) == (0, TRANSCRIPT_1, "")
    assert programs.client("NEW", 5, server.port, *WITH_ID) == (3, TRANSCRIPT_2, "")
    assert server.stop() == (0, "Listening on 127.0.0.1:%d\n" % server.port, "")


def test_continue_after_the_end_skips_all_even_after_a_refused_new(programs):
    server = programs.server()
    first = programs.client("NEW", 10, server.port, *WITH_ID)
    assert first == (0, "".join(transcript(10)), "")
    assert "NUM,6:41:81:68:68;" in first.out and "NUM,41:10:40:78:98;" in first.out
    assert programs.client("CONTINUE", server.port) == (0, TRANSCRIPT_4, "")
    assert programs.client("NEW", 5, server.port, *WITH_ID).out == TRANSCRIPT_2
    assert programs.client("CONTINUE", server.port) == (0, TRANSCRIPT_4, "")


@pytest.fixture
def proxy(loop):
    """A Proxy before a server in TEST_MODE, both on the test's loop and clock."""
    server = Server(loop, MemoryStore(loop, lambda client_id: None), test_mode=True)
    proxy = Proxy(loop, HOST, server.listen(HOST, 0)[0][1])
    yield proxy
    proxy.close()
    server.close()


def test_sequence_dropped_by_the_timeout_is_continued_to_its_end(programs, loop, clock, proxy):
    whole = "".join(transcript(10000))
    command = ("NEW", 10000, proxy.port, *WITH_ID)
    for index in 0, 1, 631, 1998:
        client = programs.start_client(*command)
        turn_until(loop, lambda: proxy.links and b"RECV,%d;" % index in proxy.links[-1].heard)
        clock.advance(SESSION_TIMEOUT)
        turn_until(loop, lambda: client.process.poll() is not None)
        ended = client.wait()
        assert (ended.status, ended.err) == (4, "client.py: to go on: %s CONTINUE %d\n" % (
            shell.join([sys.executable, script("client")[0]]), proxy.port))
        assert ended.out.endswith(RESET)
        said = ended.out[:-len(RESET)]
        assert said.splitlines()[-1].startswith("Sending message: ")
        assert whole.startswith(said), "not the transcript of the missing batches"
        arrived = int(re.findall(r"RECV,(\d+)", said)[-1])
        whole = "".join(transcript(10000, skipped=arrived))
        command = ("CONTINUE", proxy.port)
    client = programs.start_client(*command)
    turn_until(loop, lambda: client.process.poll() is not None)
    ended = client.wait()
    assert ended == (0, whole, "")
    assert ended.out.endswith("""\
Received: NUM,40:53:59:98:3;
Sending message: 'FIN;'
Received: FAC,589f9ca74cb5ea9a32eddd14840d5b64;
Closing the connection
The SUM of numbers is: 504721
Checksum (589f9ca74cb5ea9a32eddd14840d5b64) is valid!
""")


def test_batches_around_the_drop_are_those_of_transcript_3():
    assert batches_of(10000)[630] == [54, 94, 94, 19, 96]


def test_sequence_is_purged_after_its_retention_and_that_is_logged(programs):
    server = programs.server("--retention", 0.3)
    began = time.monotonic()
    assert programs.client("NEW", 5, server.port, *WITH_ID).status == 0
    said = server.wait_for("Purging")
    assert time.monotonic() - began >= 0.3
    assert said == "Listening on 127.0.0.1:%d\nPurging client info for: %s\n" % (server.port, CLIENT_ID)
    assert programs.client("CONTINUE", server.port) == (3, TRANSCRIPT_5, "")
    assert programs.client("NEW", 5, server.port, *WITH_ID) == (0, TRANSCRIPT_1, "")


def test_default_timeouts_are_1_and_30_seconds():
    from numseq import serving

    settings = serving.parse_arguments(["5000"], "server.py")
    assert (settings.session_timeout, settings.retention, settings.host) == (1, 30, HOST)


@pytest.mark.parametrize("n, batch", [(0, 5), (1, 5), (7, 3), (9, 3), (3, 65535), (101, 1)])
def test_other_counts_and_batches_have_the_same_transcript(programs, port, n, batch):
    client_id = str(uuid.uuid4())
    ended = programs.client("NEW", n, port, "--client-id", client_id, "--batch_size", batch)
    assert ended == (0, "".join(transcript(n, batch, client_id)), "")
    ended = programs.client("CONTINUE", port)
    assert ended == (0, "".join(transcript(n, batch, client_id, -(-n // batch))), "")


def test_id_in_upper_case_is_accepted(programs, port):
    client_id = str(uuid.uuid4()).upper()
    assert programs.client("NEW", 7, port, "--client_id",
                           client_id).out == "".join(transcript(7, 5, client_id))


def test_continue_agrees_with_its_new_without_test_mode(programs):
    server = programs.server(test_mode=False)
    other = programs.server(test_mode=False)
    results = []
    for each in server, other:
        ended = programs.client("NEW", 50, each.port, *WITH_ID)
        continued = programs.client("CONTINUE", each.port)
        assert ended.status == continued.status == 0
        assert ended.out.splitlines()[-2:] == continued.out.splitlines()[-2:]
        results.append(ended.out.splitlines()[-1])
    results.append("Checksum (%s) is valid!"
                   % hashlib.md5(str(numbers_of(CLIENT_ID, 50)).encode("ascii")).hexdigest())
    assert len(set(results)) == 3, "a sequence follows from its id"


def test_every_new_sequence_without_an_id_has_a_random_uuid(programs, port):
    names = [re.search("INIT,([^,]+),", programs.client("NEW", 1, port).out).group(1) for _ in range(2)]
    assert len(set(names)) == 2
    assert all(uuid.UUID(name).version == 4 and str(uuid.UUID(name)) == name for name in names)


# ---- how the programs are found


@pytest.fixture
def archive(tmp_path):
    """The package in a zip."""
    path = str(tmp_path / "numseq.zip")
    with zipfile.ZipFile(path, "w") as file:
        folder = os.path.join(ROOT, "numseq")
        for name in os.listdir(folder):
            if name.endswith(".py"):
                file.write(os.path.join(folder, name), "numseq/" + name)
    return path


@pytest.mark.parametrize("package", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_programs_run_as_modules_and_from_a_zip(programs, tmp_path, archive, package, zipped):
    path = archive if zipped else ROOT
    find = (lambda name: ("-m", "numseq", name)) if package else module
    server = programs.server(cwd=tmp_path, run=find("server"), variables={"PYTHONPATH": path})
    ended = programs.client("NEW", 5, server.port, *WITH_ID, run=find("client"), PYTHONPATH=path)
    assert ended == (0, TRANSCRIPT_1, "")
    assert server.stop().status == 0


@pytest.mark.parametrize("cwd, run", [
    (ROOT, ("numseq/client.py",)),
    (os.path.join(ROOT, "numseq"), ("client.py",)),
    (os.path.join(ROOT, "tests"), script("client")),
    (ROOT, ("numseq", "client")),
])
def test_client_runs_as_a_file_from_any_directory(programs, tmp_path, port, cwd, run):
    client_id = str(uuid.uuid4())
    state = tmp_path / "state"
    ended = programs.client("NEW", 5, port, "--client_id", client_id, "--state", state, run=run, cwd=cwd)
    assert ended == (0, "".join(transcript(5, 5, client_id)), "")
    assert state.exists()


# ---- what a person gets without the right arguments


@pytest.mark.parametrize("name", ["server", "client"])
def test_program_without_arguments_prints_its_usage_and_ends_with_2(programs, name):
    ended = programs.python(*script(name))
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.startswith("usage: %s.py " % name)


@pytest.mark.parametrize("run, beginning", [
    (script("server") + ("-h",), "usage: server.py "),
    (script("client") + ("--help",), "usage: client.py "),
    (script("client") + ("NEW", "-h"), "usage: client.py NEW "),
    (script("client") + ("CONTINUE", "-h"), "usage: client.py CONTINUE "),
    (("-m", "numseq", "-h"), "usage: python -m numseq "),
    (("-m", "numseq", "client", "-h"), "usage: python -m numseq client "),
])
def test_help_is_on_standard_output_and_ends_with_0(programs, run, beginning):
    ended = programs.python(*run, PYTHONPATH=ROOT)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(beginning)


@pytest.mark.parametrize("run", [
    script("server") + ("--version",),
    script("client") + ("--version",),
    script("client") + ("NEW", "--version"),
    ("-m", "numseq", "--version"),
])
def test_version_is_one_line(programs, run):
    import numseq

    assert programs.python(*run, PYTHONPATH=ROOT) == (0, "numseq %s\n" % numseq.__version__, "")


WRONG = [("server",) + arguments for arguments in [
    ("-1",), ("65536",), ("http",), ("+5000",), ("5_0",), ("\u0665",), ("",), ("5000", "6000"),
    ("5000", "--session-timeout", "0"), ("5000", "--session-timeout", "-1"),
    ("5000", "--session-timeout", "nan"), ("5000", "--retention", "inf"), ("5000", "--retention", "soon"),
    ("5000", "--retention"), ("5000", "-q", "-v"), ("5000", "--no-such-option"), ("5000", "--session", "1"),
]] + [("client",) + arguments for arguments in [
    ("FETCH", "5", "5000"), ("NEW",), ("NEW", "5"), ("CONTINUE",), ("CONTINUE", "5", "5000"), ("-q",),
    ("--",), ("NEW", "-1", "5000"), ("NEW", "65536", "5000"), ("NEW", "five", "5000"), ("NEW", "1_0", "5000"),
    ("NEW", " 5", "5000"), ("NEW", "\u0665", "5000"),
    ("NEW", "5", "0"), ("NEW", "5", "65536"), ("CONTINUE", "http"),
    ("NEW", "5", "5000", "--batch_size", "0"), ("NEW", "5", "5000", "--batch_size", "65536"),
    ("NEW", "5", "5000", "--client_id", "me"), ("NEW", "5", "5000", "--client_id", CLIENT_ID[:-1]),
    ("NEW", "5", "5000", "--client_id", CLIENT_ID.replace("-", "")),
    ("NEW", "5", "5000", "--window", "0"), ("NEW", "5", "5000", "--retry", "-1"),
    ("NEW", "5", "5000", "--timeout", "0"), ("CONTINUE", "5000", "--client_id", CLIENT_ID),
    ("CONTINUE", "5000", "--batch_size", "5"),
]]


@pytest.mark.parametrize("arguments", WRONG, ids=lambda arguments: ascii(" ".join(arguments)))
def test_wrong_command_line_gets_one_line_and_status_2(capsys, arguments):
    from numseq import fetching, serving

    name, rest = arguments[0], list(arguments[1:])
    program = {"client": fetching, "server": serving}[name]
    with pytest.raises(SystemExit) as ended:
        program.main(rest, name + ".py")
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith(name + ".py") and err.endswith(" -h)\n") and err.count("\n") == 1


def test_wrong_command_line_of_a_process_leaves_no_state(programs, tmp_path, port):
    ended = programs.client("NEW", 65536, port)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == ("client.py NEW: argument n: '65536' is not a number from 0 to 65535 "
                         "(see client.py NEW -h)\n")
    assert os.listdir(str(tmp_path)) == []


def test_unknown_command_of_the_package_gets_one_line_and_status_2(programs):
    ended = programs.python("-m", "numseq", "fetch", PYTHONPATH=ROOT)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)


def test_port_in_use_is_reported_in_one_line(programs, port):
    ended = programs.python(*(script("server") + (port,)))
    assert (ended.status, ended.out) == (1, "")
    assert re.match(r"server\.py: cannot listen on 127\.0\.0\.1:%d: .+\n\Z" % port, ended.err)


@pytest.fixture
def closed_port():
    """A port that nobody listens on, and that nobody else gets."""
    with socket.socket() as held:
        held.bind((HOST, 0))
        yield held.getsockname()[1]


def test_refused_connection_is_reported_in_one_line(programs, tmp_path, closed_port):
    assert programs.client("NEW", 5, closed_port) == (4, REFUSED.format(closed_port), "")
    assert os.listdir(str(tmp_path)) == [], "a state was left for a sequence that there is not"


@pytest.mark.parametrize("host", ["name.invalid", "\u00e9"])
def test_invalid_host_is_reported_in_one_line(programs, host):
    ended = programs.client("NEW", 5, 5000, "--host", host, PYTHONIOENCODING="utf-8")
    assert (ended.status, ended.err) == (4, "")
    assert ended.out.startswith("ERROR: cannot connect to %s:5000: [Errno " % ascii(host)[1:-1])
    assert ended.out.count("\n") == 1


def test_missing_state_is_reported_in_one_line(programs, port):
    assert programs.client("CONTINUE", port) == (
        2, "", "client.py: there is no state 'numseq.state' to continue from, begin with NEW\n")


# ---- the demonstration


# `python -m numseq`, which says on standard error when it waits for its reader for the first time.
SAYING_WHEN_IT_WAITS = """
import os, sys
from numseq import __main__, writer

look = writer.Patience.look

def say_and_look(patience):
    writer.Patience.look = look
    os.write(2, b"waiting\\n")
    look(patience)

writer.Patience.look = say_and_look
sys.exit(__main__.main())
"""


@pytest.mark.parametrize("run", [("-m", "numseq"), ("numseq",)])
def test_demo_shows_the_cut_and_ends_with_a_verified_checksum(programs, run):
    ended = programs.python(*run, cwd=ROOT)
    assert (ended.status, ended.err) == (0, "")
    said = ended.out.splitlines()
    at = said.index("(cutting the connection)")
    assert said[at - 1:at + 3] == [
        "  Sending message: 'RECV,4;'", "(cutting the connection)", "  " + RESET.strip(),
        "(20 of 40 numbers are here; continuing)"]
    assert said[at + 3].startswith("  Sending message: 'CONT,")
    assert "  Skipping chunk-nr: 3" in said
    assert re.match(r"Checksum \([0-9a-f]{32}\) is valid!\Z", said[-1])


def test_demo_ends_with_1_when_the_checksum_is_wrong(capfd, monkeypatch):
    class Forgetful(demo.MemoryStore):
        def open(self, client_id, done):
            done(None, MISSING)

    monkeypatch.setattr(demo, "MemoryStore", Forgetful)
    assert demo.main() == 1
    assert capfd.readouterr().out.splitlines()[-1].endswith("does not exist;")


def test_demo_ends_without_a_traceback_when_its_reader_leaves(programs):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = programs.python("-m", "numseq", cwd=ROOT, out=writing)
    finally:
        os.close(writing)
    assert (ended.status, ended.err) == (141, "")


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_demo_and_help_end_without_a_traceback_at_an_interrupt(programs, arguments):
    reading, writing = os.pipe()
    try:
        fill_pipe(writing)
        started = programs.start_client(*arguments, run=("-c", SAYING_WHEN_IT_WAITS), cwd=ROOT, out=writing)
        started.wait_for("waiting", which=1)
        started.process.send_signal(signal.SIGINT)
        assert started.wait() == (130, None, "waiting\n")
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_demo_reports_in_one_line_that_it_cannot_run(programs):
    with open("/dev/full", "wb") as full:
        ended = programs.python("-m", "numseq", cwd=ROOT, out=full)
    assert (ended.status, ended.err) == (
        74, "python -m numseq: standard output cannot be written: %s\n" % os.strerror(errno.ENOSPC))
