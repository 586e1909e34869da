"""numseq as a library: a call leaves nothing behind, whatever happens and wherever it is made."""

import ast
import errno
import inspect
import os
import signal
import threading

import pytest

from helpers import ROOT, needs_proc, turn_until
from programs import CLIENT_ID, HOST, cut, honest, instead, numbers_of

import numseq
from numseq import errors, files, transfer
from numseq.errors import ConnectionLost, FetchError, Refused, UsageError
from numseq.journal import load

NUMBERS = numbers_of(CLIENT_ID, 23)
GOOD = honest(NUMBERS, 5)
MISSING = b"ERR,Client-id: %s does not exist;" % CLIENT_ID.encode("ascii")


@pytest.fixture
def state(tmp_path):
    return str(tmp_path / "state")


@pytest.fixture
def call(loop):
    """A function: calls a function in a thread while the test's loop turns; returns or raises as it did."""

    def run(function):
        outcome = []

        def called():
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=called)
        thread.start()
        turn_until(loop, lambda: outcome)
        thread.join()
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return run


# ---- nothing is left

STRICT = ["-X", "dev", "-W", "error", "-c"]

LEAVES_NOTHING = """
import gc, os, signal, sys, warnings
import numseq
gc.disable()
port, handlers = %d, [signal.getsignal(n) for n in range(1, 32)]
def opened():
    paths = ["/proc/self/fd/" + n for n in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(path) for path in paths if os.path.exists(path))
def once():
    %s
once()
before = opened()
for _ in range(5):
    once()
assert opened() == before, (before, opened())
assert [signal.getsignal(n) for n in range(1, 32)] == handlers
assert signal.set_wakeup_fd(-1) == -1
print("nothing")
"""
RAISING = """
    import numseq.transfer
    real = numseq.transfer.%s
    def interrupted(*arguments):
        if %r.encode() in bytes(arguments[0]):
            raise %s
        return real(*arguments)
    numseq.transfer.%s = interrupted
    try:
        numseq.fetch(20, port, state="state", window=1)
    except (KeyboardInterrupt, SystemExit):
        pass
    else:
        raise AssertionError("not raised")
    finally:
        numseq.transfer.%s = real
"""
# What is called with the server's words when it says them.
CALLED = {"ACK": "protocol.parse_reply", "NUM": "split_numbers", "FAC": "protocol.parse_reply"}


@needs_proc
@pytest.mark.parametrize("code", [
    "numseq.fetch(20, port)", "numseq.fetch(20, port, state='state')", "numseq.fetch(0, port)",
    "numseq.fetch(20, port, window=1, batch_size=1)",
    "try: numseq.fetch(5, 1)\n    except numseq.ConnectionLost: pass",
    "try: numseq.fetch(5, port, host='no.such.host.invalid')\n    except numseq.ConnectionLost: pass",
    "try: numseq.fetch(5, port, state='missing/state')\n    except numseq.UsageError: pass",
    "numseq.fetch(20, port, state='state'); numseq.resume(port, state='state')",
    "try: numseq.fetch(65535, port, batch_size=1, window=1, max_time=0.01)\n"
    "    except numseq.ConnectionLost: pass",
] + [
    RAISING % (CALLED[at], at, what, CALLED[at], CALLED[at])
    for at in ("ACK", "NUM", "FAC")
    for what in ("KeyboardInterrupt", "SystemExit(3)")
])
def test_fetch_leaves_nothing_open_under_dev_mode(programs, port, code):
    result = programs.python(*STRICT, LEAVES_NOTHING % (port, code), PYTHONPATH=ROOT)
    assert result == (0, "nothing\n", "")


def test_server_that_says_more_after_the_end_leaves_nothing_open(liar, call, open_files):
    server = liar(instead(GOOD, FIN=GOOD("FIN") + b"ACK;more"))
    call(lambda: numseq.fetch(23, server.port, client_id=CLIENT_ID))
    before = open_files()
    for _ in range(3):
        assert call(lambda: numseq.fetch(23, server.port, client_id=CLIENT_ID)).numbers == NUMBERS
    turn_until(server.loop, lambda: all(peer.stream.handler is None for peer in server.peers))
    assert open_files() <= before


@needs_proc
def test_too_few_files_are_a_fetch_error_and_leave_nothing(programs, port):
    code = """
import os, resource, numseq
import numseq.transfer
opened = len(os.listdir("/proc/self/fd")) - 1
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for left in range(6):
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + left, hard))
    try:
        numseq.fetch(5, %d)
    except numseq.FetchError as error:
        assert error.status == 4 and "Too many open files" in str(error), error
        print("too few")
    else:
        print("enough")
""" % port
    result = programs.python(*STRICT, code, PYTHONPATH=ROOT)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("too few\ntoo few\n") and result.out.endswith("enough\n")


@needs_proc
def test_file_that_cannot_be_watched_is_a_fetch_error(programs, port):
    """select(2) watches no file with a number of 1,024 or more."""
    code = """
import os, resource, selectors
selectors.DefaultSelector = selectors.SelectSelector
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2000), hard))
opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
import numseq
try:
    numseq.fetch(5, %d)
except numseq.ConnectionLost as error:
    print(error)
for file in opened:
    os.close(file)
""" % port
    result = programs.python(*STRICT, code, PYTHONPATH=ROOT)
    assert (result.status, result.err) == (0, "") and os.strerror(errno.EMFILE) in result.out


# ---- wherever it is called


def test_fetch_in_many_threads_at_once_under_dev_mode(programs, port):
    code = """
import threading, numseq
results = []
threads = [threading.Thread(target=lambda: results.append(numseq.fetch(500, %d))) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
print(len({each.client_id for each in results}))
""" % port
    assert programs.python(*STRICT, code, PYTHONPATH=ROOT) == (0, "8\n", "")


def test_fetch_in_a_program_that_runs_asyncio(programs, port):
    code = """
import asyncio, signal, numseq
async def main():
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, came.set)
    here = numseq.fetch(500, %d)
    there = await loop.run_in_executor(None, numseq.fetch, 500, %d)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(came.wait(), 10)
    print(len(here.numbers), len(there.numbers))
asyncio.run(main())
""" % (port, port)
    assert programs.python(*STRICT, code, PYTHONPATH=ROOT) == (0, "500 500\n", "")


def test_interrupt_of_a_fetch_is_the_caller_s(programs, ended, loop, liar, tmp_path):
    server = liar(instead(GOOD, RECV_3=lambda peer: None))
    code = """
import sys, numseq
try:
    numseq.fetch(23, %d, client_id=%r, state="state", window=1, timeout=1000)
except KeyboardInterrupt:
    print("interrupted", flush=True)
""" % (server.port, CLIENT_ID)
    program = programs.start_client(*STRICT, code, run=(), PYTHONPATH=ROOT)
    turn_until(loop, lambda: "RECV,3" in server.heard())
    program.process.send_signal(signal.SIGINT)
    assert ended(program) == (0, "interrupted\n", "")
    assert load(str(tmp_path / "state")).batches() == 3


# ---- what goes wrong


@pytest.mark.parametrize("wrong, said", [
    (dict(host=""), "Invalid host: it is empty"), (dict(window=0), "Invalid window: at least 1"),
    (dict(timeout=0), "Invalid timeout: above 0"), (dict(timeout=-1), "Invalid timeout: above 0"),
    (dict(timeout=float("nan")), "Invalid timeout: above 0"), (dict(retry=-1), "Invalid retry: at least 0"),
    (dict(max_time=0), "Invalid max_time: above 0"),
    (dict(max_time=float("nan")), "Invalid max_time: above 0"),
])
def test_invalid_settings_are_refused(wrong, said):
    with pytest.raises(UsageError) as refused:
        numseq.fetch(5, 1, **wrong)
    assert str(refused.value) == said


@pytest.mark.parametrize("path, said", [
    ("missing/state", "cannot be used"), (".", "cannot be used"), ("", "cannot be used"),
    ("a\0b", "cannot be used"), (os.devnull, "not a regular file"),
])
def test_state_that_cannot_be_written_is_an_error_before_anything_is_sent(liar, call, monkeypatch, tmp_path,
                                                                          path, said):
    monkeypatch.chdir(str(tmp_path))
    server = liar(GOOD)
    with pytest.raises(UsageError) as refused:
        call(lambda: numseq.fetch(23, server.port, state=path))
    assert said in str(refused.value) and server.peers == []


def test_state_that_is_full_later_is_told_with_the_result(liar, call, monkeypatch, state):
    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server = liar(GOOD)
    monkeypatch.setattr(files, "write_all", full)
    result = call(lambda: numseq.fetch(23, server.port, client_id=CLIENT_ID, state=state))
    assert result.numbers == NUMBERS
    assert os.strerror(errno.ENOSPC) in result.state_error
    assert call(lambda: numseq.fetch(23, server.port, client_id=CLIENT_ID)).state_error is None


def test_state_that_is_full_later_makes_an_error_not_resumable(liar, call, monkeypatch, state):
    real, calls = files.write_all, []

    def full(file, data):
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, data)

    monkeypatch.setattr(files, "write_all", full)
    server = liar(instead(GOOD, RECV_3=cut))
    with pytest.raises(ConnectionLost) as lost:
        call(lambda: numseq.fetch(23, server.port, client_id=CLIENT_ID, state=state, window=1))
    assert not lost.value.resumable


@pytest.mark.slow
def test_state_of_another_fetch_is_refused(liar, call, loop, state):
    server = liar(instead(GOOD, RECV_3=lambda peer: None))
    first = threading.Thread(target=lambda: outcome.append(pytest.raises(
        ConnectionLost, numseq.fetch, 23, server.port, state=state, window=1, max_time=2)))
    outcome = []
    first.start()
    turn_until(loop, lambda: "RECV,3" in server.heard())
    for again in lambda: numseq.fetch(23, server.port, state=state), lambda: numseq.resume(server.port,
                                                                                           state=state):
        with pytest.raises(UsageError) as refused:
            call(again)
        assert "is in use by another run" in str(refused.value)
    turn_until(loop, lambda: outcome)
    first.join()


def test_path_objects_are_states_too(port, tmp_path):
    first = numseq.fetch(10, port, state=tmp_path / "state")
    assert numseq.resume(port, state=tmp_path / "state") == first


# ---- a limit for the whole


def test_fetch_is_given_up_after_max_time_whatever_arrives(loop, clock, liar, state):
    ended = []
    journal = transfer.Journal(CLIENT_ID.encode("ascii"), 23, 5, path=state)
    server = liar(instead(GOOD, RECV_3=lambda peer: None))
    fetch = transfer.Fetch(loop, HOST, server.port, journal, lambda fetch, error: ended.append(error),
                           window=1, timeout=1000, max_time=10)
    turn_until(loop, lambda: "RECV,3" in server.heard())
    clock.advance(9.9)
    turn_until(loop, lambda: True)
    loop.call_later(0, lambda: None)
    assert ended == []
    clock.advance(0.2)
    turn_until(loop, lambda: ended)
    error, = ended
    assert (type(error), str(error), error.resumable) == (ConnectionLost, "not complete after 10 s", True)
    assert len(fetch.journal.numbers) == 15 and loop.timers() <= 1


def test_max_time_counts_pauses_and_new_tries(loop, clock):
    ended = []
    journal = transfer.Journal(CLIENT_ID.encode("ascii"), 23, 5)
    transfer.Fetch(loop, "\u00e9", 1, journal, lambda fetch, error: ended.append(error),
                   retry=10 ** 9, max_time=100)
    began = clock.seconds
    while not ended:
        loop.turn()
    assert str(ended[0]) == "not complete after 100 s" and not ended[0].resumable
    assert clock.seconds - began <= 101
    assert loop.timers() == 0


def test_fetch_that_ends_in_time_leaves_no_timer(loop, liar):
    ended = []
    journal = transfer.Journal(CLIENT_ID.encode("ascii"), 23, 5)
    transfer.Fetch(loop, HOST, liar(GOOD).port,
                   journal, lambda fetch, error: ended.append(error), max_time=100)
    turn_until(loop, lambda: ended)
    assert ended == [None]
    turn_until(loop, lambda: loop.timers() == 0)


# ---- servers that cannot be meant


@pytest.mark.parametrize("retry", [0, 3])
def test_server_that_denies_every_init_is_left_at_once(liar, call, retry):
    server = liar(instead(GOOD, INIT=MISSING, CONT=MISSING))
    with pytest.raises(Refused) as refused:
        call(lambda: numseq.fetch(23, server.port, client_id=CLIENT_ID, retry=retry))
    assert (str(refused.value), len(server.peers)) == (MISSING[4:-1].decode("ascii"), 1)


@pytest.mark.slow
def test_server_that_loses_and_denies_every_init_is_left_after_the_tries(loop, clock, liar):
    ended = []
    journal = transfer.Journal(CLIENT_ID.encode("ascii"), 23, 5)
    server = liar(instead(GOOD, INIT=cut, CONT=MISSING))
    transfer.Fetch(loop, HOST, server.port, journal, lambda fetch, error: ended.append(error), retry=3)
    turn_until(loop, lambda: clock.advance(0.01) or ended)
    assert isinstance(ended[0], FetchError) and len(server.peers) < 50


def test_error_of_a_server_is_cut(liar, call):
    server = liar(instead(GOOD, INIT=b"ERR," + b"x" * 200000 + b";"))
    with pytest.raises(Refused) as refused:
        call(lambda: numseq.fetch(23, server.port))
    assert str(refused.value) == "x" * transfer.SAID_MOST + "..."


@pytest.mark.parametrize("message, whole", [
    (b"NUM," + b"100:" * 60000 + b"1", True), (b"NUM,1", True), (b"ERR,no", True),
    (b"ERR," + b"x" * 1000, False), (b"NUM," + b"x" * 1000, False), (b"NUM,1:" + b"\x1b" * 1000, False),
])
def test_replies_are_shown_whole_where_they_are_numbers(message, whole):
    shown = transfer.shown(message)
    assert (len(shown) == len(message)) is whole and len(shown) <= max(len(message), transfer.SAID_MOST + 3)


# ---- its types


def stub():
    with open(os.path.join(ROOT, "numseq", "__init__.pyi")) as file:
        return ast.parse(file.read())


@pytest.mark.parametrize("name", ["fetch", "resume"])
def test_stub_has_the_parameters_of_the_function(name):
    function, = [node for node in stub().body if isinstance(node, ast.FunctionDef) and node.name == name]
    real = inspect.signature(getattr(transfer, name))
    arguments = function.args
    assert [each.arg for each in arguments.args + arguments.kwonlyargs] == list(real.parameters)
    offered = inspect.signature(getattr(numseq, name)).parameters.values()
    assert [each.arg for each in arguments.args] == [
        each.name for each in offered if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert not (arguments.vararg or arguments.kwarg or arguments.defaults)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults):
        assert (default is None) is (real.parameters[argument.arg].default
                                     is inspect.Parameter.empty), argument.arg
    for each in arguments.kwonlyargs:
        parameter = real.parameters[each.arg]
        assert ("Optional" in ast.unparse(each.annotation)) is (parameter.default is None), each.arg
        if parameter.default not in (None, inspect.Parameter.empty):
            assert type(parameter.default).__name__ in ast.unparse(each.annotation), each.arg
    assert ast.unparse(function.returns) == "Result"


def test_stub_has_every_public_name_and_no_other():
    nodes = [node for node in stub().body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {node.target.id if isinstance(node, ast.AnnAssign) else node.name for node in nodes}
    assert names == set(numseq.__all__) | {"Result", "__all__"}


def test_stub_has_the_classes_as_they_are():
    classes = {node.name: node for node in stub().body if isinstance(node, ast.ClassDef)}
    result = classes.pop("Result")
    fields = [node.target.id for node in result.body if isinstance(node, ast.AnnAssign)]
    assert tuple(fields) == transfer.Result._fields
    properties = [node.name for node in result.body if isinstance(node, ast.FunctionDef)]
    assert all(hasattr(transfer.Result, name) for name in properties) and properties == ["state_error"]
    for name, node in classes.items():
        real = getattr(errors, name)
        assert [base.id for base in node.bases] == [real.__mro__[1].__name__]
    attributes = [node.target.id for node in classes["FetchError"].body if isinstance(node, ast.AnnAssign)]
    assert all(hasattr(FetchError("text"), name)
               for name in attributes) and attributes == ["status", "resumable"]


def test_package_says_that_it_has_types():
    assert os.path.exists(os.path.join(ROOT, "numseq", "py.typed"))
