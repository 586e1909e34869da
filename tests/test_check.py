"""CHECK: each kind of fault once, through a proxy, with the figures that must come out.

The check, the proxy and the real server share one loop, on the fake clock.
"""

import errno
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import time

import pytest

from helpers import ROOT, fill_pipe, jump_until, pass_time
from programs import HOST, Liar, cut, hang, honest, instead, numbers_of, script
from proxy import DOWN, FIN, RST, UP, Plan, Proxy

from numseq import check, figures, lines, protocol
from numseq.check import Check
from numseq.fetching import parse_arguments
from numseq.errors import ConnectionLost, Refused
from numseq.writer import OUTPUT_FAILED, UNREAD
from numseq.serving import Server
from numseq.store_memory import MemoryStore
from numseq.transfer import WINDOW

SLOW = 0.02  # seconds that the proxy keeps what comes, so that a sequence takes some of the fake clock's time
TURNS_MOST = 300 * 1000
UNUSED_PORT = 1  # tcpmux: nobody listens there


def settings_of(port, *options):
    return parse_arguments(["CHECK", str(port)] + [str(option) for option in options], "client.py")


class World:
    """A check of a server behind a proxy. `plans` are for single connections; the others are only slow."""

    def __init__(self, loop):
        self.loop = loop
        self.plans = {}
        self.plan = lambda number: self.plans.get(number, Plan(delay=SLOW))
        self.server = Server(loop, MemoryStore(loop, lambda client_id: None))
        port = self.server.listen(HOST, 0)[0][1]
        self.proxy = Proxy(loop, HOST, port, lambda number: self.plan(number), keep=False)
        self.lines = []
        self.check = None
        self.end = None

    def run(self, *options, port=None):
        """Runs a check to its end; returns the last line."""
        self.begin(*options, port=port)
        return self.finish()

    def begin(self, *options, port=None):
        self.over = []
        self.check = Check(self.loop, settings_of(port or self.proxy.port, *options), self.lines.append,
                           lambda: self.over.append(True))

    def finish(self):
        self.turn_until(lambda: self.over)
        self.end = self.check.finish()
        return self.end

    def turn_until(self, predicate):
        jump_until(self.loop, predicate, TURNS_MOST)

    def of(self, kind):
        return [line for line in self.lines if line["type"] == kind]

    def drops(self):
        return [line for line in self.of("drop") if not line["expected"]]


@pytest.fixture
def world(loop):
    world = World(loop)
    yield world
    if world.end is None and world.check is not None:
        world.check.finish()
    world.proxy.close()
    world.server.close()


def causes(line):
    return {cause: count for cause, count in line["causes"].items() if count}


def sums_agree(world):
    """Whether the intervals add up to the whole."""
    names = figures.Tally.COUNTS
    return {name: sum(line[name] for line in world.of("interval")) for name in names} == {
        name: world.end[name] for name in names}


# ---- figures


def test_sound_link_has_every_sequence_verified_and_no_drop(world):
    end = world.run("--clients", 3, "--duration", 2, "-n", 100)
    assert (end["status"], end["drops"], end["expected_drops"], end["outages"]) == (0, 0, 0, 0)
    assert end["completed"] > 3
    assert end["verified"] == end["numbers"] == 100 * end["completed"]
    assert end["connections"] == end["completed"]
    assert end["mismatched"] == end["given_up"] == end["unfinished"] == 0
    assert causes(end) == {}
    assert sums_agree(world)


def test_round_trips_are_those_of_the_link(world):
    world.plan = lambda number: Plan(delay=0.05)
    trips = world.run("--clients", 1, "--duration", 3, "-n", 20, "--window", 1)["round_trips"]
    assert 0.099 <= trips["p50"] <= trips["longest"] <= 0.12
    assert trips["count"] > 15


def test_bytes_are_all_that_goes_each_way(world):
    world.proxy.keep = True
    end = world.run("--clients", 2, "--duration", 1, "-n", 50)
    assert end["bytes_sent"] == sum(len(link.heard) for link in world.proxy.links)
    assert end["bytes_received"] == sum(link.lanes[DOWN].passed for link in world.proxy.links)


@pytest.mark.parametrize("how, cause", [(RST, "reset"), (FIN, "end")])
def test_cut_connection_is_reported_with_its_phase_and_bytes(world, how, cause):
    world.plans[1] = Plan(cut=(DOWN, 200), how=how, delay=SLOW)
    end = world.run("--clients", 1, "--duration", 2, "-n", 200)
    assert (end["status"], end["drops"], end["expected_drops"]) == (0, 1, 0)
    assert causes(end) == {cause: 1}
    drop, = world.drops()
    assert (drop["cause"], drop["phase"], drop["bytes"], drop["client"]) == (cause, "receiving", 200, 0)
    assert 0 < drop["numbers"] < 200
    assert 0 < drop["age"] < 1
    assert drop["error"]
    assert end["connections"] == end["completed"] + 1
    assert sums_agree(world)


def test_silent_connection_is_reported_after_the_timeout(world):
    world.plans[0] = Plan(vanish=(DOWN, 200), delay=SLOW)
    end = world.run("--clients", 1, "--duration", 6, "-n", 200, "--timeout", 2)
    assert (end["status"], causes(end)) == (0, {"silence": 1})
    drop, = world.drops()
    assert (drop["phase"], drop["bytes"]) == ("receiving", 200)
    assert 2 <= drop["age"] < 2.5
    assert drop["error"] == "no answer for 2 s"


def test_end_of_the_session_is_expected(world):
    world.plan = lambda number: Plan(delay=0.05)
    end = world.run("--clients", 2, "--duration", 4, "-n", 100, "--window", 1)
    assert end["drops"] == 0
    assert end["expected_drops"] >= 2
    assert causes(end) == {"session": end["expected_drops"]}
    assert world.drops() == []
    assert all(1 <= line["age"] < 1.2 for line in world.of("drop"))
    assert (end["status"], end["completed"] > 0) == (0, True)


@pytest.mark.parametrize("session_timeout, cause", [(0.5, "session"), (1, "reset"), (10, "reset")])
def test_reset_is_expected_only_at_the_session_timeout(world, session_timeout, cause):
    world.server.session_timeout = 0.5
    world.plan = lambda number: Plan(delay=0.05)
    end = world.run("--clients", 1, "--duration", 3, "-n", 100, "--window", 1,
                    "--session-timeout", session_timeout)
    assert set(causes(end)) == {cause}


def test_resets_at_one_age_are_noticed(world):
    world.server.session_timeout = 0.5
    world.plan = lambda number: Plan(delay=0.05)
    end = world.run("--clients", 2, "--duration", 5, "-n", 100, "--window", 1)
    assert any(note.startswith("Connections are reset at an age of ") for note in end["notes"])


def test_drop_without_a_connection_has_nothing_of_the_one_before(world):
    """The INIT is lost, its CONT is denied, and the connection for the next INIT is refused."""

    def deny(peer):
        server.stop_listening()
        client_id = peer.heard[0].partition(",")[2]
        peer.stream.write(protocol.encode_error(protocol.DOES_NOT_EXIST.format(client_id)))

    server = Liar(world.loop, instead(honest([], 5), INIT=cut), instead(honest([], 5), CONT=deny))
    world.run("--clients", 1, "--duration", 1, "-n", 10, port=server.port)
    found = [(line["phase"], line["cause"], line["bytes"]) for line in world.drops()[:2]]
    assert found == [("opening", "reset", 0), ("connecting", "refused", 0)]


def test_refused_connections_are_told_and_are_an_outage(world):
    end = world.run("--clients", 2, "--duration", 5, "--retry", 2, port=UNUSED_PORT)
    assert set(causes(end)) == {"refused"}
    assert (end["connections"], end["completed"], end["status"]) == (0, 0, 4)
    assert end["given_up"] >= 2
    assert {line["phase"] for line in world.drops()} == {"connecting"}
    assert {(line["age"], line["bytes"]) for line in world.drops()} == {(0, 0)}
    assert (end["outages"], end["outage_list"][0]["begin"]) == (1, 0)
    assert end["outage_seconds"] >= 5
    assert end["period"] is None
    assert "No connection could be made." in end["notes"]


def test_err_of_the_server_is_a_refusal_with_its_text(world):
    liar = Liar(world.loop, instead(honest(numbers_of(1, 10), 5), INIT=b"ERR,Too many clients;"))
    end = world.run("--clients", 1, "--duration", 3, "-n", 10, "--retry", 0, port=liar.port)
    assert (end["status"], end["completed"]) == (4, 0)
    assert end["given_up"] >= 2
    assert {line["error"] for line in end["failure_list"]} == {"Too many clients"}
    assert len(end["failure_list"]) <= 5  # it does not begin again at once


@pytest.mark.parametrize("kind, cause", [
    (ConnectionResetError(errno.ECONNRESET, ""), "reset"),
    (BrokenPipeError(errno.EPIPE, ""), "reset"),
    (ConnectionAbortedError(errno.ECONNABORTED, ""), "reset"),
    (ConnectionRefusedError(errno.ECONNREFUSED, ""), "refused"),
    (TimeoutError(), "silence"),
    (OSError(errno.ETIMEDOUT, ""), "silence"),
    (socket.gaierror(socket.EAI_NONAME, ""), "lookup"),
    (OSError(errno.EADDRNOTAVAIL, ""), "local"),
    (OSError(errno.EMFILE, ""), "local"),
    (OSError(errno.EHOSTUNREACH, ""), "network"),
    (None, "end"),
])
def test_cause_of_a_drop_follows_from_what_ended_it(kind, cause):
    assert check.cause_of(ConnectionLost("lost", cause=kind)) == cause


def test_temporary_err_of_the_server_counts_as_refused():
    assert check.cause_of(Refused("Too many connections")) == "refused"


# ---- wrong numbers


def lying_by_one(numbers, at):
    wrong = list(numbers)
    wrong[at] = wrong[at] + 1 if wrong[at] < 100 else 99
    return instead(honest(wrong, 5), FIN=honest(numbers, 5)("FIN"))


@pytest.mark.slow
def test_server_that_lies_by_one_number_is_caught_every_time(world):
    numbers = numbers_of(7, 33)
    liar = Liar(world.loop, *[lying_by_one(numbers, at) for at in range(33)] + [honest(numbers, 5)])
    end = world.run("--clients", 1, "--duration", 1, "-n", 33, port=liar.port)
    assert (end["wrong"], end["mismatched"], end["status"]) == (33, 33 * 33, 1)
    assert end["completed"] > 0
    assert end["verified"] == 33 * end["completed"]
    assert end["verdict"].startswith("33 sequences arrived with wrong numbers")
    assert end["numbers"] == end["verified"] + end["mismatched"]


@pytest.mark.parametrize("reply", [b"NUM,1:2;", b"NUM,1:2:3:4:101;", b"HTTP/1.1 400 Bad Request\r\n;"])
def test_protocol_error_of_the_server_is_reported(world, reply):
    liar = Liar(world.loop, instead(honest(numbers_of(1, 10), 5), RECV_1=reply))
    end = world.run("--clients", 1, "--duration", 2, "-n", 10, port=liar.port)
    assert (end["status"], end["completed"], end["verified"]) == (5, 0, 0)
    assert end["broken"] >= 1
    assert "broke the protocol" in end["failure_list"][0]["error"]


# ---- over time


def test_each_interval_has_a_line_even_when_nothing_arrives(world):
    liar = Liar(world.loop, instead(honest([], 5), INIT=hang))
    world.run("--clients", 2, "--duration", 20, "--interval", 0.5, "--timeout", 4, "--retry", 100,
              port=liar.port)
    ends = [line["end"] for line in world.of("interval")]
    due = [0.5 * number for number in range(1, len(ends) + 1)]
    assert len(ends) >= 40
    assert ends[:39] == pytest.approx(due[:39], abs=0.05)
    assert {line["numbers"] for line in world.of("interval")} == {0}


def test_intervals_follow_one_another_without_a_gap(world):
    end = world.run("--clients", 1, "--duration", 3.3, "--interval", 0.7, "-n", 100)
    told = world.of("interval")
    assert [line["begin"] for line in told] == [0.0] + [line["end"] for line in told[:-1]]
    assert told[-1]["end"] == end["seconds"]


def test_stopped_machine_skips_intervals(world, clock):
    world.begin("--clients", 1, "--duration", 1000, "--retry", 1000, port=UNUSED_PORT)
    pass_time(world.loop, clock, 2.5)
    clock.advance(500)
    pass_time(world.loop, clock, 2)
    ends = [line["end"] for line in world.of("interval")]
    assert len(ends) <= 6
    assert ends[2] > 500
    assert world.of("interval")[2]["late"] > 499


def test_cuts_at_regular_intervals_are_noticed(world):
    def cut_all():
        for link in list(world.proxy.links):
            link.end(RST)
        timers.append(world.loop.call_later(4, cut_all))

    timers = [world.loop.call_later(2, cut_all)]
    world.begin("--clients", 2, "--duration", 35, "-n", 200, "--window", 2)
    end = world.finish()
    world.loop.cancel(timers[-1])
    assert end["period"] == pytest.approx(4, rel=0.05)
    assert any(note.startswith("Connections drop every ") for note in end["notes"])
    assert causes(end)["reset"] == end["drops"] >= 8


def test_outage_is_survived_and_reported_with_its_length(world):
    def vanish():
        world.plan = lambda number: Plan(vanish=(UP, 0))
        for link in world.proxy.links:
            link.vanish()

    def come_back():
        world.plan = lambda number: Plan(delay=SLOW)

    world.begin("--clients", 2, "--duration", 15, "-n", 200, "--timeout", 1, "--retry", 20)
    world.loop.call_later(4, vanish)
    world.loop.call_later(9, come_back)
    end = world.finish()
    assert (end["status"], end["outages"]) == (0, 1)
    outage, = end["outage_list"]
    assert outage["begin"] == pytest.approx(4, abs=0.2)
    assert 4.5 < outage["seconds"] < 8
    assert end["outage_seconds"] == outage["seconds"]
    assert max(line["outage"] for line in world.of("interval")) > 3
    assert set(causes(end)) == {"silence"}


def test_lines_of_drops_per_interval_are_limited_but_all_are_counted(world):
    world.plan = lambda number: Plan(cut=(DOWN, 0))
    end = world.run("--clients", 300, "--duration", 0.9, "--retry", 0, "-n", 10)
    assert end["drops"] >= 300
    assert len(world.drops()) == check.DROP_LINES_MOST


def test_unfinished_sequences_are_reported_and_are_no_failure(world):
    liar = Liar(world.loop, honest(numbers_of(1, 10), 5), instead(honest(numbers_of(1, 10), 5), RECV_1=hang))
    end = world.run("--clients", 1, "--duration", 1, "-n", 10, port=liar.port)
    assert (end["status"], end["completed"], end["unfinished"]) == (0, 1, 1)
    assert "1 sequence not finished when the time was over." in end["notes"]


def test_check_too_short_for_any_sequence_fails_and_says_so(world):
    liar = Liar(world.loop, instead(honest(numbers_of(1, 10), 5), RECV_1=hang))
    end = world.run("--clients", 1, "--duration", 1, "-n", 10, port=liar.port)
    assert (end["status"], end["verdict"]) == (4, "No sequence was completed.")
    assert "take a longer --duration or a smaller -n" in end["notes"][0]


@pytest.mark.parametrize("clients, window, n", [
    (1, WINDOW, 10000), (8, 512, 10000), (1000, 4, 200), (10000, 1, 20)])
def test_clients_share_the_requests_in_flight_and_the_numbers(world, clients, window, n):
    world.begin("--clients", clients)
    assert (world.lines[0]["window"], world.lines[0]["n"]) == (window, n)


def test_interval_too_short_for_the_clock_is_a_line_a_turn(world):
    world.plan = lambda number: Plan()  # the clock stands still while bytes are on their way
    end = world.run("--clients", 1, "--duration", 0.001, "--interval", 1e-320, "-n", 10)
    assert end["status"] == 0 and len(world.of("interval")) > 5


def test_nothing_is_left_on_the_loop_after_a_check(world):
    before = world.loop.timers()
    world.begin("--clients", 3, "--duration", 100)
    world.turn_until(lambda: world.check.kept.now.connections == 3)
    world.end = world.check.finish()
    assert world.end["unfinished"] == 3
    world.turn_until(lambda: not world.server.sessions and not len(world.server.store))  # they are forgotten
    assert world.loop.timers() == before


# ---- lines


@pytest.mark.parametrize("value", [
    None, True, False, 0, -7, 2 ** 60, 0.1, 1e-9, 1e300, "", "plain", "a \"quoted\" \\ text", "\n\t\0\x7f",
    "H\xe4user \u20ac \U0001f600", [], {}, [1, [2, None]], {"a": {"b": [True, 1.5, "x"]}},
])
def test_json_is_read_back_as_it_was(value):
    text = lines.to_json(value)
    assert json.loads(text) == value
    assert type(json.loads(text)) is type(value)
    assert text.isascii() and "\n" not in text


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_json_has_null_for_infinity_and_nan(value):
    assert lines.to_json(value) == "null"


def test_lines_of_a_check_are_objects_with_documented_names(world):
    world.plans[1] = Plan(cut=(DOWN, 200), delay=SLOW)
    world.run("--clients", 1, "--duration", 2, "-n", 200)
    with open(os.path.join(ROOT, "docs", "check.md"), encoding="utf-8") as file:
        documented = set(re.findall(r"`(\w+)`", file.read()))
    for line in world.lines + [world.end]:
        again = json.loads(lines.to_json(line))
        assert again == json.loads(json.dumps(line))
        assert set(again) <= documented
        for name in "causes", "round_trips":
            assert set(again.get(name, ())) <= documented
    assert [line["type"] for line in world.lines][0] == "start"
    assert {line["type"] for line in world.lines} == {"start", "interval", "drop"}


def test_text_has_a_line_for_each_interval_and_a_summary(world):
    world.plans[1] = Plan(cut=(DOWN, 200), delay=SLOW)
    end = world.run("--clients", 1, "--duration", 2, "-n", 200)
    told = [text for line in world.lines for text in lines.as_text(line)]
    assert len(told) == 2 + len(world.of("interval"))  # the settings, the names of the columns
    assert sum("reset 1" in text for text in told) == 1
    summary = "\n".join(lines.as_text(end))
    assert end["verdict"] in summary
    assert "1 unexpected: 1 reset" in summary
    assert "reset while receiving" in "\n".join(lines.details(world.check.kept))


def test_summary_names_the_first_and_the_last_of_many_drops():
    kept = figures.Figures(1)
    for number in range(100):
        kept.drop(figures.Drop(float(number), "reset", False, "receiving", 0.1, 10, 5, 0, "reset"))
    told = lines.details(kept)
    assert len(told) == 1 + 2 * lines.SHOWN_MOST + 1
    assert "... 80 more" in told[1 + lines.SHOWN_MOST]


def test_busy_processor_of_the_check_is_reported_as_the_limit(world, monkeypatch):
    monkeypatch.setattr(check.time, "process_time", world.loop.poller.selector.clock)
    end = world.run("--clients", 1, "--duration", 2, "-n", 100)
    assert end["busy_seconds"] > 1.5
    assert any("own processor was the limit" in note for note in end["notes"])
    assert any("own processor 100 %" in text for line in world.of("interval") for text in lines.as_text(line))


# ---- the program


@pytest.fixture
def server(programs):
    return programs.server("-q")


def test_check_of_a_server_ends_with_0_and_its_summary(programs, server):
    ended = programs.client("CHECK", server.port, "--duration", 0.5, "-n", 500)
    assert (ended.status, ended.err) == (0, "")
    assert "\nAll sequences verified: " in ended.out


def test_check_without_a_server_ends_with_4(programs):
    ended = programs.client("CHECK", UNUSED_PORT, "--duration", 0.3, "--retry", 0)
    assert ended.status == 4
    assert "No connection could be made." in ended.out


def test_json_lines_of_the_program_are_read_back(programs, server):
    ended = programs.client("CHECK", server.port, "--duration", 0.5, "--interval", 0.1, "-n", 500, "--json")
    told = [json.loads(line) for line in ended.out.splitlines()]
    assert [line["type"] for line in told] == ["start"] + ["interval"] * (len(told) - 2) + ["end"]
    assert (told[0]["version"], told[-1]["status"], ended.status) == (1, 0, 0)


def test_max_time_ends_the_check_with_4_and_its_summary(programs, server):
    ended = programs.client("CHECK", server.port, "--duration", 1000, "--max-time", 0.5, "-n", 500)
    assert (ended.status, ended.err) == (4, "")
    assert "\nAll sequences verified: " in ended.out


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_ends_it_with_the_summary_so_far(programs, server, number, status):
    client = programs.start_client("CHECK", server.port, "--duration", 1000, "--interval", 0.05, "--json")
    client.wait_for('"interval"')
    client.process.send_signal(number)
    ended = client.wait()
    last = json.loads(ended.out.splitlines()[-1])
    assert (last["type"], ended.status, ended.err) == ("end", last["status"] if status == 0 else status, "")


def test_reader_that_goes_away_ends_it(programs, server):
    reading, writing = os.pipe()
    client = programs.start_client("CHECK", server.port, "--duration", 1000, "--interval", 0.05, out=writing)
    os.close(writing)
    assert os.read(reading, 10)
    os.close(reading)
    assert client.wait() == (UNREAD, None, "")


def test_reader_that_is_slow_gets_whole_objects_and_the_end(programs, server):
    reading, writing = os.pipe()
    client = programs.start_client("CHECK", server.port, "--duration", 1.5, "--interval", 0.001, "--json",
                                   out=writing)
    while select.select([], [writing], [], 0)[1]:  # it is full at last
        time.sleep(0.005)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = [json.loads(line) for line in pipe]
    assert (told[0]["type"], told[-1]["type"], client.wait().status) == ("start", "end", told[-1]["status"])


def test_report_is_written_beside_the_lines(programs, server, tmp_path):
    path = tmp_path / "report.html"
    assert programs.client("CHECK", server.port, "--duration", 0.3, "-n", 500, "--report", path).status == 0
    assert "<svg" in path.read_text()
    assert os.listdir(str(tmp_path)) == ["report.html"]


def test_unwritable_report_is_reported_before_the_check(programs, server):
    ended = programs.client("CHECK", server.port, "--duration", 1000, "--report", "missing/report.html")
    assert (ended.status, ended.out) == (OUTPUT_FAILED, "")
    assert "'missing/report.html' cannot be written" in ended.err


def test_earlier_report_stays_until_the_check_is_over(programs, server, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("earlier")
    client = programs.start_client("CHECK", server.port, "--duration", 1000, "--interval", 0.05, "--report",
                                   path)
    client.wait_for("\n")
    assert path.read_text() == "earlier"
    client.process.send_signal(signal.SIGINT)
    client.wait()
    assert "<svg" in path.read_text()


def test_reader_of_a_pipe_gets_the_report_and_nothing_else(programs, server, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(str(path))
    client = programs.start_client("CHECK", server.port, "--duration", 0.1, "-n", 500, "--report", path)
    with open(str(path)) as pipe:
        page = pipe.read()
    assert client.wait().status == 0
    assert page.startswith("<!DOCTYPE html>") and "<svg" in page and page.count("DOCTYPE") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_report_that_fails_at_the_end_leaves_the_summary(programs, server):
    ended = programs.client("CHECK", server.port, "--duration", 0.1, "-n", 500, "--report", "/dev/full")
    assert (ended.status, ended.err.count("\n")) == (OUTPUT_FAILED, 1)
    assert "\nAll sequences verified: " in ended.out


def test_report_is_written_where_nobody_reads_the_lines(programs, server, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    path = tmp_path / "report.html"
    ended = programs.client("CHECK", server.port, "--duration", 1000, "--report", path, out=writing)
    os.close(writing)
    assert (ended.status, ended.err) == (UNREAD, "")
    assert "<svg" in path.read_text()


@pytest.fixture
def blocked(programs):
    """A function: a CHECK of a port (with options) whose standard output is a pipe that nobody reads."""
    ends = os.pipe()
    fill_pipe(ends[1])
    yield lambda port, *options: programs.start_client("CHECK", port, *options, out=ends[1])
    for file in ends:
        os.close(file)


def test_max_time_ends_it_where_nobody_reads(blocked, server):
    assert blocked(server.port, "--duration", 0.1, "--max-time", 0.5).wait() == (4, None, "")


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_ends_it_where_nobody_reads(blocked, number, status):
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        client = blocked(listener.getsockname()[1], "--duration", 1000)
        listener.accept()[0].close()
        client.process.send_signal(number)
        assert client.wait() == (status, None, "")


def test_signal_ends_it_where_nobody_reads_the_report(programs, server, tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    client = programs.start_client("CHECK", server.port, "--duration", 1000, "--report", "pipe")
    client.wait_for("\n")
    client.process.send_signal(signal.SIGTERM)
    ended = client.wait()
    assert (ended.status, ended.err) == (143, "") and "\n  sequences " in ended.out


@pytest.mark.parametrize("files", range(4, 10))
def test_too_few_files_are_one_line_or_drops(programs, server, files):
    ended = programs.client("CHECK", server.port, "--duration", 0.1, "--retry", 0, "-n", 10,
                            run=("-I", "-S") + script("client"),
                            preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)))
    assert ended.status in (0, 4) and "Traceback" not in ended.err
    assert ended.out or (ended.err.count("\n"), os.strerror(errno.EMFILE) in ended.err) == (1, True)


@pytest.mark.parametrize("wrong", [
    ["--clients", "0"], ["--duration", "0"], ["-n", "65536"], ["--interval", "x"]])
def test_wrong_options_are_refused_in_one_line(programs, wrong):
    ended = programs.client("CHECK", 5000, *wrong)
    assert ended.status == 2
    assert ended.err.count("\n") == 1


MEMORY = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from numseq.fetching import main
status = main(sys.argv[1:])
with open("/proc/self/status") as file:
    print([line for line in file if line.startswith("VmHWM")][0])
sys.exit(status)
"""


def test_eight_clients_on_debian_minimal_take_less_than_20_mb(server, minimal_folder, source):
    python = os.path.join(minimal_folder, "usr", "bin", "python3.11")
    command = ["env", "-i", python, "-I", "-S", "-B", "-c", MEMORY, source,
               "CHECK", str(server.port), "--duration", "2", "--clients", "8"]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=20)
    assert done.returncode == 0, done.stdout
    peak = int(re.search(rb"VmHWM:\s+(\d+) kB", done.stdout).group(1))
    assert peak < 20 * 1000, "%d kB" % peak
