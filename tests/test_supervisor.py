"""The service manager's protocols, with a test that plays the service manager: sockets passed, readiness,
watchdog."""

import os
import socket
import subprocess
import sys

import pytest

from helpers import ROOT
from service_manager import Notices, launch, passed_socket

from numseq.supervisor import FILES_MOST, NOTICE_MOST, READY_TRIES, Supervisor, listening_sockets

# What a program that was started so has been passed.
CHILD = """
import os, socket, sys
sys.path.insert(0, %r)
from numseq.supervisor import BadActivation, listening_sockets
try:
    for each in listening_sockets(os.environ):
        print(socket.AddressFamily(each.family).name, each.fileno(), each.getsockname()[1],
              each.gettimeout(), os.get_inheritable(each.fileno()))
except BadActivation as error:
    print("bad: %%s" %% error)
print(*sorted(name for name in os.environ if name.startswith("LISTEN_")))
""" % ROOT


def start(*passed, **variables):
    """The lines that CHILD prints when these sockets are passed to it."""
    arguments, keywords = launch(passed, ["-c", CHILD])
    done = subprocess.run([sys.executable] + arguments, stdout=subprocess.PIPE, universal_newlines=True,
                          check=True,
                          env=dict(os.environ, **variables), **keywords)
    return done.stdout.splitlines()


@pytest.fixture
def listening(sockets):
    sockets.append(passed_socket())
    return sockets[-1]


@pytest.fixture(params=[False, True], ids=["path", "abstract"])
def notices(request):
    notices = Notices(request.param)
    yield notices
    notices.close()


# ---- sockets that are passed


def test_passed_sockets_are_taken_in_their_order(listening, sockets):
    sockets.append(passed_socket("::1", socket.AF_INET6))
    assert start(listening, sockets[-1]) == [
        "AF_INET 3 %d 0.0 False" % listening.getsockname()[1],
        "AF_INET6 4 %d 0.0 False" % sockets[-1].getsockname()[1], ""]


def test_the_variables_of_the_activation_are_not_handed_on(listening):
    assert start(listening, LISTEN_FDNAMES="numseq")[-1] == ""


def test_sockets_meant_for_another_process_are_left_alone():
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}
    assert listening_sockets(environment) == []


def test_without_an_activation_there_are_no_sockets():
    assert listening_sockets({}) == []


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "\u00b2", str(FILES_MOST + 1), "9" * 100])
def test_a_count_of_files_that_is_none_is_told(listening, count):
    assert start(listening, LISTEN_FDS=count)[0] == "bad: LISTEN_FDS is not a number from 1 to 64"


def test_more_sockets_announced_than_passed_is_told(listening):
    assert start(listening, LISTEN_FDS="2")[-2].startswith("bad: file 4, which was passed, is no socket: ")


def plain_file(tmp_path):
    return open(str(tmp_path / "file"), "wb")


def datagram_socket(tmp_path):
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def socket_that_does_not_listen(tmp_path):
    return socket.socket()


def unix_socket(tmp_path):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    listening.listen(1)
    return listening


@pytest.mark.parametrize("make", [plain_file, datagram_socket, socket_that_does_not_listen, unix_socket])
def test_what_is_no_tcp_socket_that_listens_is_told(tmp_path, make):
    with make(tmp_path) as passed:
        assert start(passed)[0].startswith("bad: file 3, which was passed, is no ")


# ---- how the server is doing


def test_readiness_comes_with_a_status(loop, notices):
    environment = {"NOTIFY_SOCKET": notices.name}
    supervisor = Supervisor(environment)
    supervisor.ready(loop, lambda: "no connections")
    assert notices.read() == ["READY=1", "STATUS=no connections"]
    assert environment == {} and loop.timers() == 0
    supervisor.close()


def test_a_watchdog_hears_twice_in_its_period(loop, clock, notices):
    supervisor = Supervisor({"NOTIFY_SOCKET": notices.name, "WATCHDOG_USEC": "4000000",
                             "WATCHDOG_PID": str(os.getpid())})
    supervisor.ready(loop, lambda: "%d turns" % loop.turns)
    notices.read()
    began = clock()
    assert [notices.read()] == [["WATCHDOG=1", "STATUS=0 turns"]]
    loop.turn()
    assert clock() - began == 2 and notices.read() == ["WATCHDOG=1", "STATUS=1 turns"]
    supervisor.close()
    assert loop.timers() == 0


@pytest.mark.parametrize("variables", [
    {}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "-1"},
    {"WATCHDOG_USEC": "\u00b2"}, {"WATCHDOG_USEC": "9" * 400}, {"WATCHDOG_USEC": "9" * 5000},
    {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}])
def test_a_watchdog_that_is_not_meant_hears_nothing(loop, notices, variables):
    supervisor = Supervisor(dict(variables, NOTIFY_SOCKET=notices.name))
    supervisor.ready(loop, str)
    assert supervisor.watchdog is None and loop.timers() == 0
    supervisor.close()


def test_stopping_is_told_and_the_watchdog_goes_on(loop, notices):
    supervisor = Supervisor({"NOTIFY_SOCKET": notices.name, "WATCHDOG_USEC": "2000000"})
    supervisor.ready(loop, str)
    supervisor.stopping("3 sessions left")
    notices.wait_for("STOPPING=1")
    assert notices.heard[-1] == ["STOPPING=1", "STATUS=3 sessions left"]
    loop.turn()
    notices.wait_for("WATCHDOG=1")
    supervisor.close()
    assert loop.timers() == 0


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234", "/no/such/socket", "@no such",
                                  "/" + "x" * 200, "@" + "x" * 200])
def test_a_supervisor_that_cannot_be_told_costs_nothing(loop, name):
    supervisor = Supervisor({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"})
    assert supervisor.notify("READY=1") is False
    supervisor.ready(loop, str)
    supervisor.stopping("")
    supervisor.close()
    assert loop.timers() == 0


def test_a_supervisor_that_does_not_read_never_stops_the_server(loop, notices):
    supervisor = Supervisor({"NOTIFY_SOCKET": notices.name})
    sent = 0
    while supervisor.notify("STATUS=" + "x" * 500) and sent < 100000:
        sent += 1
    assert sent < 100000
    notices.read()
    assert supervisor.notify("STATUS=again")
    supervisor.close()


def test_readiness_is_told_although_the_queue_was_full(loop, notices):
    """At boot the supervisor is busy; it would end a server that never said that it is ready."""
    supervisor = Supervisor({"NOTIFY_SOCKET": notices.name, "WATCHDOG_USEC": "4000000"})
    sent = 0
    while supervisor.notify("STATUS=of others"):
        sent += 1
    supervisor.ready(loop, lambda: "no connections")
    for _ in range(sent):
        notices.read()
    loop.turn()
    assert notices.read() == ["READY=1", "STATUS=no connections"]
    assert notices.read()[0] == "WATCHDOG=1"
    supervisor.close()
    assert loop.timers() == 0


def test_a_supervisor_that_never_hears_is_not_told_for_ever(loop):
    supervisor = Supervisor({"NOTIFY_SOCKET": "/no/such/socket"})
    supervisor.ready(loop, str)
    for _ in range(READY_TRIES):
        loop.turn()
    assert loop.timers() == 0
    supervisor.close()


def test_a_status_that_is_long_or_not_ascii_is_cut_and_replaced(loop, notices):
    supervisor = Supervisor({"NOTIFY_SOCKET": notices.name})
    supervisor.ready(loop, lambda: "\u20ac" + "x" * 5000)
    data = "\n".join(notices.read())
    assert data.startswith("READY=1\nSTATUS=?xxx") and len(data) == NOTICE_MOST
    supervisor.close()
