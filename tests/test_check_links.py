"""CHECK on links that are simulated: what it tells of a link is what the link was made to be."""

import socket

import pytest

from simulator import PORT, SERVER_ADDRESS, TURNS_MOST, Link, Network, Way, symmetric

from numseq.check import Check
from numseq.fetching import parse_arguments

pytestmark = pytest.mark.slow


def run(network, *options, host=SERVER_ADDRESS):
    """Runs a check on the network; returns its last line."""
    arguments = ["CHECK", str(PORT), "--host", host] + [str(option) for option in options]
    over, lines = [], []
    settings = parse_arguments(arguments, "client.py")
    check = Check(network.loop, settings, lines.append, lambda: over.append(True))
    first = network.loop.turns
    while not over:
        assert network.loop.turns - first < TURNS_MOST
        network.loop.turn()
    return check.finish()


def causes(end):
    return {cause: count for cause, count in end["causes"].items() if count}


@pytest.mark.parametrize("round_trip", [0.02, 0.3, 1.5])
def test_round_trip_of_a_long_link_is_measured(round_trip):
    with Network(symmetric(round_trip)) as network:
        end = run(network, "--clients", 4, "--duration", 60, "-n", 100, "--window", 8)
    assert (end["status"], end["drops"], end["wrong"]) == (0, 0, 0)
    assert round_trip <= end["round_trips"]["p50"] <= round_trip * 1.1 + 0.05
    assert set(causes(end)) <= {"session"}


def test_resets_by_the_link_are_distinguished_from_session_ends():
    with Network(symmetric(0.05, cut=0.2)) as network:
        end = run(network, "--clients", 4, "--duration", 120, "-n", 500, "--window", 4)
    found = causes(end)
    assert (end["status"], set(found)) == (0, {"reset", "session"})
    assert end["drops"] == found["reset"]
    made, cut = end["connections"], found["reset"]
    assert 0.1 < cut / made < 0.2  # of the fifth that is cut, some are cut after their end


def test_link_that_loses_packets_loses_no_number():
    with Network(symmetric(0.05, loss=0.02)) as network:
        end = run(network, "--clients", 4, "--duration", 60, "-n", 1000)
    assert (end["status"], end["wrong"], end["broken"], end["given_up"]) == (0, 0, 0, 0)
    assert end["verified"] == 1000 * end["completed"] > 10000
    assert end["round_trips"]["longest"] > 0.2  # a retransmission


@pytest.mark.parametrize("seconds", [5, 20])
def test_outage_of_a_link_is_measured(seconds):
    with Network(symmetric(0.05)) as network:
        begin = network.now + 10
        network.at(begin, lambda: setattr(network.link, "swallows", True))
        network.at(begin + seconds, lambda: setattr(network.link, "swallows", False))
        end = run(network, "--clients", 4, "--duration", 60, "-n", 500)
    assert (end["status"], end["outages"], set(causes(end)) - {"session"}) == (0, 1, {"silence"})
    assert end["outage_list"][0]["begin"] == pytest.approx(10, abs=0.5)
    assert seconds - 0.5 <= end["outage_list"][0]["seconds"] <= seconds + 6


def test_packets_too_large_for_the_link_are_silence_and_given_up():
    with Network(Link(Way(0.01), Way(0.01, largest=600))) as network:
        end = run(network, "--clients", 1, "--duration", 60, "-n", 1000, "--batch_size", 500, "--retry", 3)
    assert (end["status"], end["completed"]) == (4, 0)
    assert "silence" in causes(end) or "session" in causes(end)
    assert end["given_up"] >= 1


@pytest.mark.parametrize("clients", [1, 20])
def test_name_is_looked_up_once_for_all_sequences(clients):
    with Network(symmetric(0.02), names={"server": ([SERVER_ADDRESS], 1.0)}) as network:
        end = run(network, "--clients", clients, "--duration", 5, "-n", 20, host="server")
    assert end["completed"] > 2 * clients
    assert network.look_ups == ["server"]


def test_unknown_host_name_is_reported():
    with Network(names={"nowhere": (socket.gaierror(socket.EAI_NONAME, "unknown"), 0.1)}) as network:
        end = run(network, "--clients", 1, "--duration", 10, "--retry", 1, host="nowhere")
    assert (end["status"], set(causes(end))) == (4, {"lookup"})
