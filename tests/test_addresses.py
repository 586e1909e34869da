"""Names, addresses and endpoints: how they are written."""

import socket

import pytest

from numseq.addresses import alternated, format_endpoint, parse_endpoint
from numseq.transfer import HOSTS_MOST

V4 = socket.AF_INET, ("10.0.0.1", 5000)
V4_TOO = socket.AF_INET, ("10.0.0.2", 5000)
V6 = socket.AF_INET6, ("::1", 5000, 0, 0)


@pytest.mark.parametrize("text, endpoint", [
    ("localhost", ("localhost", None)), ("localhost:5001", ("localhost", 5001)),
    ("10.0.0.1:1", ("10.0.0.1", 1)),
    ("::1", ("::1", None)), ("[::1]", ("::1", None)), ("[::1]:65535", ("::1", 65535)),
    ("[fe80::1%eth0]:5000", ("fe80::1%eth0", 5000)), ("[10.0.0.1]", ("10.0.0.1", None)),
])
def test_endpoint_is_host_and_port(text, endpoint):
    assert parse_endpoint(text) == endpoint
    if endpoint[1]:
        assert format_endpoint(*endpoint) == text


@pytest.mark.parametrize("text", ["", ":", ":5000", "a:", "a:b", "a:0", "a:65536", "a:-1", "a:+1", "a:\u0661",
                                  "[]", "[::1", "[::1]5000", "[::1]:", "[::1]:x", "a b", "a\n", "a:000001",
                                  "a\0b", "a\x7f", "[a\0]:1", "\xa0"])
def test_what_is_no_endpoint_is_refused(text):
    with pytest.raises(ValueError):
        parse_endpoint(text)


@pytest.mark.parametrize("host", ["", ":1", "[::1"])
def test_client_refuses_an_invalid_host_in_one_line(programs, host):
    ended = programs.client("NEW", 5, 5000, "--host", host)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "is not HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT" in ended.err


@pytest.mark.parametrize("command", [("NEW", 5), ("CONTINUE",), ("CHECK",)], ids=lambda words: words[0])
def test_more_hosts_than_a_fleet_has_are_refused_in_one_line(programs, command):
    hosts = ["--host=127.0.0.%d" % number for number in range(HOSTS_MOST + 1)]
    ended = programs.client(*command, 5000, *hosts)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "client.py: 1 to 16 hosts (see client.py -h)\n"


def test_client_takes_a_port_of_its_own_for_each_host(programs, port):
    ended = programs.client("NEW", 5, 1, "--host", "127.0.0.1", "--host", "127.0.0.1:%d" % port, "-q")
    assert (ended.status, ended.err) == (0, "")


def test_families_take_turns():
    assert alternated([V4, V4_TOO, V6]) == [V4, V6, V4_TOO]
    assert alternated([V6, V4, V4_TOO]) == [V6, V4, V4_TOO]
    assert alternated([V4]) == [V4]
