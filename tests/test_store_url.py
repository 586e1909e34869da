"""From --store or NUMSEQ_STORE to a store: what is chosen, what is refused in one line, and what is imported
for it."""

import os
import signal
import socket

import pytest

from helpers import run_python
from numseq.store import from_url
from programs import CLIENT_ID, HOST
from redis_servers import RealRedis, free_port

WRONG = [
    ("", 2), ("x", 2), ("memory", 2), ("memory:x", 2), ("file:", 2), ("file:a\0b", 2), ("sqlite:x", 2),
    ("rediss://host", 2),
    ("redis://", 2), ("redis://host:x", 2), ("redis+socket://host", 2), ("redis://user:sec%ret@host", 2),
    ("file:/nonexistent/x", 1), ("file:/", 1), ("file:/dev/null", 1), ("redis://no-such-host.invalid", 1),
    ("redis://:secret@no-such-host.invalid", 1),
]


@pytest.mark.parametrize("url, status", [(url, status) for url, status in WRONG if "\0" not in url])
def test_wrong_store_is_one_line_before_anything_is_listened_on(programs, url, status):
    ended = programs.python("-m", "numseq.server", "0", "--store", url, cwd=os.getcwd())
    assert ended.status == status
    assert ended.out == ""
    assert ended.err.count("\n") == 1 and "--store" in ended.err
    assert "secret" not in ended.err and "sec%ret" not in ended.err


@pytest.mark.parametrize("url, status", WRONG)
def test_wrong_store_raises_an_error_of_its_kind(loop, url, status):
    with pytest.raises(ValueError if status == 2 else OSError):
        from_url(url, loop, None)


def test_wrong_store_of_the_environment_is_named_by_its_variable(programs):
    ended = programs.python("-m", "numseq.server", "0", cwd=os.getcwd(), NUMSEQ_STORE="x")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.count("\n") == 1 and "NUMSEQ_STORE" in ended.err


def test_option_goes_before_the_environment(programs, tmp_path):
    server = programs.server("--store", "file:%s" % (tmp_path / "store"), variables={"NUMSEQ_STORE": "x"})
    assert server.stop().status == 0
    assert (tmp_path / "store").exists()


@pytest.mark.parametrize("options", [(), ("--store", "memory:"), ("--store", "file:/nonexistent")])
def test_reuse_port_is_refused_without_a_shared_store(programs, options):
    ended = programs.python("-m", "numseq.server", "0", "--reuse-port", *options, cwd=os.getcwd())
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.count("\n") == 1 and "--reuse-port" in ended.err


STORES = {"store_memory", "store_file", "store_redis", "redis_client", "resp"}


@pytest.mark.parametrize("url, modules", [
    ("memory:", {"store_memory"}), ("file:%s", {"store_memory", "store_file"}),
    ("redis://127.0.0.1:1", {"store_redis", "redis_client", "resp"}),
])
def test_nothing_is_imported_for_a_store_that_is_not_used(tmp_path, url, modules):
    url = url.replace("%s", str(tmp_path / "store"))
    printed = run_python("import sys\nfrom numseq import serving, store\nfrom numseq.loop import Loop\n"
                         "store.from_url(%r, Loop(), None)\n"
                         "print(*[name for name in sys.modules if name.startswith('numseq.')])" % url)
    assert {name[len("numseq."):] for name in printed.split()} & STORES == modules


# ---- whole programs


def test_a_sequence_outlives_a_server_that_is_killed(programs, tmp_path):
    """A file: what was acknowledged is there again, with the same numbers, without TEST_MODE too."""
    store = "file:%s" % (tmp_path / "store")
    server = programs.server("--store", store, test_mode=False)
    first = programs.client("NEW", "1000", server.port, "-q", "--output", "first", "--client_id", CLIENT_ID)
    assert first.status == 0
    server.process.send_signal(signal.SIGKILL)
    server.wait()
    os.unlink(str(tmp_path / "first"))
    server = programs.server("--store", store, test_mode=False)
    again = programs.client("CONTINUE", server.port, "-q")
    assert (again.status, again.out) == (0, first.out)
    refused = programs.client("NEW", "5", server.port, "--client_id", CLIENT_ID, "--state", "other")
    assert "already exist" in refused.out


@pytest.mark.slow
def test_a_second_server_on_the_same_file_says_so(programs, tmp_path):
    store = "file:%s" % (tmp_path / "store")
    programs.server("--store", store)
    ended = programs.python("-m", "numseq.server", "0", "--store", store, cwd=os.getcwd())
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.count("\n") == 1 and "another server" in ended.err


def test_the_next_server_waits_for_one_that_drains(programs, tmp_path):
    store = "file:%s" % (tmp_path / "store")
    first = programs.server("--store", store, session_timeout=1)
    with socket.create_connection((HOST, first.port)) as connection:
        connection.sendall(b"INIT,%s,5,5;" % CLIENT_ID.encode())
        assert connection.recv(100) == b"ACK;"
        first.process.terminate()
        second = programs.server("--store", store)
        assert first.wait().status == 0
    assert "does not exist" not in programs.client("NEW", "5", second.port, "--client_id", CLIENT_ID).out


def test_a_sequence_goes_on_at_another_server_of_the_fleet(programs, real_redis):
    first = programs.server("--store", real_redis.url, test_mode=False)
    second = programs.server(test_mode=False, variables={"NUMSEQ_STORE": real_redis.url})
    begun = programs.client("NEW", "1000", first.port, "-q", "--client_id", CLIENT_ID)
    assert begun.status == 0
    first.process.kill()
    first.wait()
    again = programs.client("CONTINUE", second.port, "-q")
    assert (again.status, again.out) == (0, begun.out)
    ended = second.stop()
    assert (ended.status, ended.err) == (0, "")


def test_servers_share_a_port_and_all_of_them_get_clients(programs, real_redis):
    real_redis.command("FLUSHALL")
    first = programs.server("--store", real_redis.url, "--reuse-port", "-v")
    port = first.port
    program = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "numseq", "server.py")
    second = programs.start_client(str(port), "--store", real_redis.url, "--reuse-port", "-v", run=(program,))
    second.wait_for("Listening on")
    for _ in range(100):
        assert programs.client("NEW", "5", port, "-q").status == 0
        if "open" in first.read(1) and "open" in second.read(1):
            break
    assert "open" in first.read(1) and "open" in second.read(1)


def test_a_server_without_its_redis_starts_and_says_so_and_recovers(programs):
    port = free_port()
    server = programs.server("--store", "redis://%s:%d" % (HOST, port))
    server.wait_for("Redis", 1)
    refused = programs.client("NEW", "5", server.port, "--client_id", CLIENT_ID)
    assert "cannot be kept now" in refused.out + refused.err
    redis = RealRedis(port=port)
    try:
        assert redis.port == port
        for attempt in range(50):
            if programs.client("NEW", "5", server.port, "-q", "--state", "state %d" % attempt).status == 0:
                break
        else:
            pytest.fail("it does not recover")
        assert server.stop().err.count("\n") == 1
    finally:
        redis.close()
