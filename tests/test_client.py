"""The client's state machine against the real server and servers that misbehave, on one loop and clock."""

import errno
import os
import random
import select
import socket
import threading

import pytest
from helpers import WAIT_SECONDS, run_python, turn_until
from programs import CLIENT_ID, HOST, cut, end, hang, honest, instead, numbers_of

import numseq
from numseq import errors, fetching, files, protocol
from numseq.errors import ChecksumMismatch, ConnectionLost, ProtocolBroken, Refused, UsageError
from numseq.journal import Journal, load
from numseq.serving import Server
from numseq.store_memory import MemoryStore
from numseq.transfer import MOMENT, WINDOW, Fetch, new_id
from numseq.window import PROMPT_FLIGHT

N, BATCH = 23, 5  # five batches, and the last one is short
NUMBERS = numbers_of(1, N)
GOOD = honest(NUMBERS, BATCH)
RESET = "[Errno %d] %s" % (errno.ECONNRESET, os.strerror(errno.ECONNRESET))
SILENT = "no answer for 3 s"
NO_SERVER = "no numseq server: it says "
IDLE = 0.5  # seconds that pass a turn where a test waits for silence; every answer takes a turn or two
TOO_MANY = b"ERR,Too many connections;"


def some(count):
    return b":".join([b"1"] * count)


class Run:
    """A fetch on the test's loop, and all that came of it.

    With `watched`, `times` are those of the events.
    """

    def __init__(self, loop, port, begun, watched=False, host=HOST, **options):
        self.loop = loop
        self.times = []
        self.outcomes = []
        self.events = []
        self.fetch = Fetch(loop, host, port, begun, lambda fetch, error: self.outcomes.append(error),
                           watch=self._watch if watched else None, **options)

    def _watch(self, *event):
        self.events.append(event)
        self.times.append(self.loop.now)

    def wait(self, clock=None, step=0.01):
        """Turns the loop until it is over; with a clock, time goes on by `step` seconds a turn.

        Returns the error.
        """
        turn_until(self.loop, lambda: self.outcomes or (clock and clock.advance(step)))
        assert len(self.outcomes) == 1
        return self.outcomes[0]

    def said(self, name):
        return [text for event, text in self.events if event == name]


@pytest.fixture
def state(tmp_path):
    return str(tmp_path / "state")


@pytest.fixture
def begun(state):
    """An empty Journal for the good server's sequence."""
    return Journal(CLIENT_ID.encode("ascii"), N, BATCH, path=state)


@pytest.fixture
def run(loop, begun):
    """A function: a Run of a new sequence, or of what is in `journal`."""

    def start(server, journal=begun, **options):
        return Run(loop, server.port, journal, **options)

    return start


@pytest.fixture
def server(loop):
    """A function: the real Server on the loop, with its port."""
    servers = []

    def make(**options):
        made = Server(loop, MemoryStore(loop, forgotten=lambda client_id: None), **options)
        made.port = made.listen(HOST, 0)[0][1]
        servers.append(made)
        return made

    yield make
    for each in servers:
        each.close()


# Three ways to the same result: pipelined, one request at a time, and with a transcript.
WAYS = {"fast": dict(), "one at a time": dict(window=1), "watched": dict(watched=True)}


@pytest.fixture(params=sorted(WAYS))
def way(request):
    return WAYS[request.param]


@pytest.fixture(params=[None, 1], ids=["at once", "byte by byte"])
def drip(request):
    return request.param


# ---- what a good server says


def test_good_server_is_understood_however_its_answers_are_cut(run, liar, way, drip, begun, state):
    done = run(liar(GOOD, drip=drip), **way)
    assert done.wait() is None
    assert list(begun.numbers) == NUMBERS
    assert (done.fetch.sum, done.fetch.drops) == (sum(NUMBERS), 0)
    assert done.fetch.checksum == GOOD("FIN")[4:-1].decode("ascii")
    assert list(load(state).numbers) == NUMBERS and begun.kept


@pytest.mark.parametrize("n, batch", [(0, 1), (1, 1), (5, 5), (6, 5), (10, 5), (3, 65535), (2000, 1),
                                      (65535, 5), (65535, 65535)])
def test_sequence_of_the_real_server_arrives_complete(server, loop, n, batch):
    begun = Journal(CLIENT_ID.encode("ascii"), n, batch)
    done = Run(loop, server(test_mode=True).port, begun)
    assert done.wait() is None
    assert list(begun.numbers) == numbers_of(CLIENT_ID, n)


def test_message_torn_between_reads_does_not_hide_a_shorter_next_one(run, liar, loop, way):
    numbers = [50] * 11
    good = honest(numbers, 5)
    begun = Journal(CLIENT_ID.encode("ascii"), 11, 5)
    server = liar(instead(good, RECV=b"", FIN=b""))
    done = run(server, begun, **dict(way, window=3))
    turn_until(loop, lambda: "RECV,2" in server.heard())
    answers = b"".join(good("RECV,%d" % index) for index in range(3))
    cut_at = len(good("RECV,0")) * 2 - 2
    server.peers[0].say(answers[:cut_at])
    turn_until(loop, lambda: len(begun.numbers) == 5)
    server.peers[0].say(answers[cut_at:])
    turn_until(loop, lambda: server.heard()[-1] == "FIN")
    server.peers[0].say(good("FIN"))
    assert done.wait() is None


def test_transcript_sees_what_is_sent_and_received(run, liar):
    server = liar(GOOD)
    done = run(server, watched=True, window=2)
    assert done.wait() is None
    assert done.said("sending") == [message + ";" for message in server.heard()]
    assert done.said("received") == [GOOD(message).decode("ascii") for message in server.heard()]
    others = [name for name, _ in done.events if name not in ("sending", "received")]
    assert others == ["requesting", "closing"]


def test_client_closes_the_connection_in_good_order(run, liar, loop):
    server = liar(GOOD)
    assert run(server).wait() is None
    peer, = server.peers
    turn_until(loop, lambda: peer.stream.handler is None)
    assert peer.error is None, "a complete fetch ended with a reset"


# ---- what no server says: (where, what) gives (which error, how it is told, how many good numbers are kept)

TOO_EARLY = "unexpected reply"
NONSENSE = "unknown message type"
OVER = "numbers that are not 0 to 100"
LIES = [(dict([what]), ProtocolBroken, wrong, kept) for what, wrong, kept in [
    (("RECV_0", b"NUM," + some(6) + b";"), "6 numbers in batch 0, which has 5", 0),
    (("RECV_0", b"NUM," + some(4) + b";"), "4 numbers in batch 0, which has 5", 0),
    (("RECV_1", b"NUM," + some(6) + b";"), "6 numbers in batch 1, which has 5", 5),
    (("RECV_4", b"NUM," + some(5) + b";"), "5 numbers in batch 4, which has 3", 20),
    (("RECV_4", b"NUM," + some(2) + b";"), "2 numbers in batch 4, which has 3", 20),
    (("RECV_2", b"NUM,1:2:3:4:101;"), OVER, 10),
    (("RECV_2", b"NUM,1:2:3:4:1000;"), OVER, 10),
    (("RECV_2", b"NUM,1:2:3:4:-1;"), OVER, 10),
    (("RECV_2", b"NUM,1:2:3:4:05;"), OVER, 10),
    (("RECV_2", b"NUM,1:2:3:4:+5;"), OVER, 10),
    (("RECV_2", b"NUM,1:2:3:4: 5;"), OVER, 10),
    (("RECV_2", b"NUM,1:2:3:4:\xd9\xa5;"), OVER, 10),
    (("RECV_2", b"NUM,1:2:3:4:;"), OVER, 10),
    (("RECV_2", b"NUM,1:2::4:5;"), OVER, 10),
    (("RECV_2", b"NUM,;"), OVER, 10),
    (("RECV_2", b"NUM;"), OVER, 10),
    (("RECV_2", b"NUM,1:2:3:4:5:NUM,1:2:3:4:5;"), OVER, 10),
    (("RECV_2", b"\r\nNUM,1:2:3:4:5;"), NONSENSE, 10),
    (("RECV_2", b";"), NONSENSE, 10),
    (("RECV_2", b"num,1:2:3:4:5;"), NONSENSE, 10),
    (("RECV_2", bytes(range(256))), NONSENSE, 10),
    (("RECV_2", b"HTTP/1.1 400 Bad Request\r\nDate: now; or never"), NONSENSE, 10),
    (("RECV_2", b"ACK;"), TOO_EARLY, 10),
    (("RECV_2", b"FAC," + b"0" * 32 + b";"), TOO_EARLY, 10),
    (("RECV_4", GOOD("RECV,4") + b"NUM,1:2:3;"), TOO_EARLY, 23),
    (("INIT", b"ACK;ACK;"), TOO_EARLY, 0),
    (("INIT", b"NUM,1:2:3:4:5;"), TOO_EARLY, 0),
    (("INIT", b"FAC," + b"0" * 32 + b";"), TOO_EARLY, 0),
    (("INIT", b"ACK,1;"), "ACK takes no content", 0),
    (("INIT", b"SSH-2.0-OpenSSH_9.6\r\n;"), NO_SERVER + "SSH-2.0-OpenSSH_9.6", 0),
    (("FIN", b"NUM,1:2:3:4:5;"), TOO_EARLY, 23),
    (("FIN", b"ACK;"), TOO_EARLY, 23),
    (("FIN", b"FAC;"), "malformed checksum", 23),
    (("FIN", b"FAC," + b"0" * 31 + b";"), "malformed checksum", 23),
    (("FIN", b"FAC," + b"A" * 32 + b";"), "malformed checksum", 23),
]] + [(dict([what]), Refused, said, kept) for what, said, kept in [
    (("INIT", b"ERR,%s already exist;" % CLIENT_ID.encode("ascii")), CLIENT_ID + " already exist", 0),
    (("RECV_0", b"ERR,Invalid batch index requested: 0;"), "Invalid batch index requested: 0", 0),
    (("RECV_3", b"ERR,\x1b[2Jwhat\r\n\xff?;"), "?[2Jwhat????", 15),
    (("FIN", b"ERR,no;"), "no", 23),
    (("FIN", b"ERR;"), "", 23),
]] + [(dict([what]), ConnectionLost, said, kept) for what, said, kept in [
    (("INIT", end), "The server closed the connection", 0),
    (("RECV_0", end), "The server closed the connection", 0),
    (("RECV_3", end), "The server closed the connection", 15),
    (("FIN", end), "The server closed the connection", 23),
    (("INIT", cut), RESET, 0),
    (("RECV_0", cut), RESET, 0),
    (("FIN", cut), RESET, 23),
    (("INIT", hang), "no answer for 3 s", 0),
    (("RECV_0", hang), "no answer for 3 s", 0),
    (("FIN", hang), "no answer for 3 s", 23),
    (("FIN", b"FAC," + b"0" * 32), "no answer for 3 s", 23),
]]


def name_of(value):
    if isinstance(value, dict):
        (where, what), = value.items()
        return "%s %s" % (where, ascii(what)[:40] if isinstance(what, bytes) else what.__name__)
    return None


@pytest.mark.parametrize("lie, kind, said, kept", LIES, ids=name_of)
def test_wrong_reply_ends_with_its_error_and_keeps_the_good_numbers(
        run, liar, clock, way, drip, begun, state, lie, kind, said, kept):
    server = liar(instead(GOOD, **lie), drip=drip)
    done = run(server, **way)
    error = done.wait(clock if said == SILENT else None, IDLE)
    broken = kind is ProtocolBroken and not said.startswith(NO_SERVER)
    prefix = "The server broke the protocol: " if broken else ""
    if kind is ConnectionLost and "INIT" in lie:
        prefix = "connected to %s:%d, but never acknowledged: " % (HOST, server.port)
    expected = NO_SERVER + "S" if drip and said.startswith(NO_SERVER) else prefix + said
    assert (type(error), str(error)) == (kind, expected)
    assert list(begun.numbers) == NUMBERS[:kept]
    created = "INIT" not in lie or lie["INIT"] == b"ACK;ACK;"
    assert os.path.exists(state) is begun.kept is created
    if created:
        assert load(state).numbers == begun.numbers
    assert not begun.is_open(), "a file is left open for each fetch"
    assert error.resumable is (created and kind is not Refused)


@pytest.mark.parametrize("lie, kind", [(lie, kind) for lie, kind, _, _ in LIES[::4]], ids=name_of)
def test_numbers_kept_after_an_error_complete_with_a_good_server(run, liar, clock, lie, kind, begun, state):
    """They are not requested again."""
    assert isinstance(run(liar(instead(GOOD, **lie))).wait(clock, IDLE), kind)
    if not begun.kept:
        return
    found = load(state)
    batches = found.batches()
    server = liar(GOOD)
    assert run(server, found, resume=True).wait() is None
    assert list(load(state).numbers) == NUMBERS
    assert server.heard() == ["CONT," + CLIENT_ID] + ["RECV,%d" % index
                                                      for index in range(batches, 5)] + ["FIN"]


@pytest.mark.parametrize("watched", [False, True])
def test_batch_before_its_request_is_an_unexpected_reply(run, liar, watched, begun):
    server = liar(instead(GOOD, RECV_0=GOOD("RECV,0") + GOOD("RECV,1")))
    error = run(server, window=1, watched=watched).wait()
    assert str(error) == "The server broke the protocol: " + TOO_EARLY
    assert list(begun.numbers) == NUMBERS[:5]


def test_input_after_the_checksum_is_ignored(run, liar, way):
    server = liar(instead(GOOD, FIN=GOOD("FIN") + b"nonsense;" + GOOD("FIN")))
    assert run(server, **way).wait() is None


@pytest.mark.parametrize("where", ["INIT", "RECV_0", "FIN"])
@pytest.mark.parametrize("endless", [b"NUM," + b"1:" * 200000, b"ACK" * 140000, b"ERR," + b"x" * 400000])
def test_endless_message_is_given_up_before_its_end(run, liar, way, where, endless):
    done = run(liar(instead(GOOD, **{where: endless})), **way)
    assert str(done.wait()) == "The server broke the protocol: Message too long"


def test_longest_valid_message_is_not_too_long(run, liar):
    numbers = [100] * protocol.N_MOST
    begun = Journal(CLIENT_ID.encode("ascii"), protocol.N_MOST, protocol.BATCH_MOST)
    assert run(liar(honest(numbers, protocol.BATCH_MOST), drip=3001), begun).wait() is None
    assert list(begun.numbers) == numbers


@pytest.mark.parametrize("wrong", ["first", "last"])
def test_numbers_with_a_wrong_checksum_are_dropped_and_fetched_anew(run, liar, way, wrong, begun, state):
    place = 0 if wrong == "first" else N - 1
    others = NUMBERS[:place] + [(NUMBERS[place] + 1) % 101] + NUMBERS[place + 1:]
    done = run(liar(instead(honest(others, BATCH), FIN=GOOD("FIN"))), **way)
    error = done.wait()
    checksum = GOOD("FIN")[4:-1].decode("ascii")
    assert (type(error), str(error)) == (ChecksumMismatch, "Checksum (%s) is not valid!" % checksum)
    assert error.resumable and done.fetch.checksum == checksum and done.fetch.sum == sum(others)
    found = load(state)
    assert len(found.numbers) == len(begun.numbers) == 0
    assert run(liar(GOOD), found, resume=True).wait() is None
    assert list(load(state).numbers) == NUMBERS


def test_result_is_the_same_with_and_without_a_transcript(run, liar, clock, loop):
    """Random mixes of good and bad replies, cut at random: the fast path must behave as the plain one."""
    chance = random.Random(4)
    good = [GOOD("RECV,%d" % index) for index in range(5)]
    odd = [b"NUM,1;", b"NUM,1:2:3:4:5;", b"NUM,1:2:3:4:500;", b"ERR,no;", b";", b"NUM,1:2:3", b"ACK;",
           b"FAC,0;"]
    kinds = set()
    for _ in range(120):
        stream = good[:chance.randrange(6)]
        stream += chance.choices(odd, k=chance.randrange(3)) + good[:chance.randrange(3)]
        complete = stream[:5] == good
        answers = instead(GOOD, RECV=b"", RECV_0=b"".join(stream), FIN=GOOD("FIN") if complete else b"")
        results = []
        drip = chance.choice([None, 1, 7, 33])
        for watched in False, True:
            begun = Journal(CLIENT_ID.encode("ascii"), N, BATCH)
            error = run(liar(answers, drip=drip), begun, watched=watched).wait(clock, IDLE)
            results.append((type(error), str(error), bytes(begun.numbers)))
        assert results[0] == results[1], stream
        kinds.add(results[0][0])
    assert kinds >= {ProtocolBroken, Refused, ConnectionLost, type(None)}, "the random cases cover too little"


# ---- silence


@pytest.mark.parametrize("timeout", [0.25, 3, 60])
def test_silence_is_given_up_after_the_timeout_and_not_before(run, liar, loop, clock, timeout):
    server = liar(instead(GOOD, RECV_3=hang))
    done = run(server, timeout=timeout, window=1)
    turn_until(loop, lambda: server.heard()[-1:] == ["RECV,3"])
    clock.advance(timeout * 0.99)
    turns = loop.turns
    turn_until(loop, lambda: loop.turns > turns + 2)
    assert done.outcomes == []
    clock.advance(timeout * 0.02)
    assert str(done.wait()) == "no answer for %g s" % timeout


def test_server_that_is_slow_but_not_silent_is_waited_for(run, liar, clock):
    done = run(liar(GOOD, drip=1), timeout=0.5)
    assert done.wait(clock, 0.1) is None
    assert clock.seconds - 1000 > 5


def test_connecting_counts_as_silence(loop, clock, begun, sockets):
    listening = socket.socket()
    sockets.append(listening)
    listening.bind((HOST, 0))
    listening.listen(0)
    waiting = None
    while waiting is None and len(sockets) < 64:  # until its backlog is full, and the next one gets no answer
        knocking = socket.socket()
        sockets.append(knocking)
        knocking.setblocking(False)
        knocking.connect_ex(listening.getsockname())
        waiting = None if select.select([], [knocking], [], 0.02)[1] else knocking
    assert waiting is not None, "the kernel takes every connection"
    done = Run(loop, listening.getsockname()[1], begun)
    loop.turn()
    turns = loop.turns
    clock.advance(2.9)
    turn_until(loop, lambda: loop.turns > turns + 3)
    assert done.outcomes == []
    clock.advance(0.2)
    error = done.wait()
    place = "%s:%d" % (HOST, listening.getsockname()[1])
    assert (type(error), str(error)) == (ConnectionLost, "cannot connect to %s: no answer for 3 s" % place)
    assert not error.resumable
    assert not loop.poller.selector.get_map(), "the abandoned connection is still open"


# ---- the window


@pytest.mark.parametrize("window", [1, 7])
@pytest.mark.parametrize("watched", [False, True])
def test_requests_in_flight_stay_within_the_window_and_are_refilled(loop, run, liar, window, watched):
    total = 40
    begun = Journal(CLIENT_ID.encode("ascii"), total, 1)
    good = honest(NUMBERS * 2, 1)
    server = liar(instead(good, RECV=b"", FIN=b""))
    run(server, begun, window=window, watched=watched)

    def asked():
        return sum(message.startswith("RECV") for message in server.heard())

    for answered in range(total):
        # The window is refilled once half of it is free.
        turn_until(loop, lambda: asked() == total or asked() - answered > window // 2)
        assert asked() - answered <= window
        if not answered:
            assert asked() == min(window, total)
        server.peers[0].say(good("RECV,%d" % answered))
        turn_until(loop, lambda: len(begun.numbers) == answered + 1)
    turn_until(loop, lambda: server.heard()[-1] == "FIN")
    assert server.heard()[1:-1] == ["RECV,%d" % index for index in range(total)]


def test_default_window_sends_its_requests_at_once(loop, run, liar):
    begun = Journal(CLIENT_ID.encode("ascii"), 65535, 5)
    server = liar(instead(GOOD, RECV=b""))
    run(server, begun)
    turn_until(loop, lambda: len(server.heard()) == 1 + PROMPT_FLIGHT)
    assert 100 < PROMPT_FLIGHT <= WINDOW


# ---- coming back: --retry


NOT_ASCII = "[Errno %d] a host name has to be ASCII" % errno.EINVAL


def test_diagnosis_names_the_server_that_was_connected(run, liar, clock):
    """It is followed by another, which is tried first then."""

    def leave(peer):
        server.stop_listening()
        peer.stream.abort()

    server = liar(instead(GOOD, INIT=leave))
    hosts = ["%s:%d" % (HOST, port) for port in (server.port, 1)]  # nobody listens on port 1
    error = run(server, host=hosts, retry=1).wait(clock)
    assert str(error).startswith("connected to %s, but never acknowledged: cannot connect to %s"
                                 % tuple(hosts)), error


def test_pauses_double_from_50_ms_to_5_s_with_jitter(loop, clock, begun, monkeypatch):
    """The name lookup fails at once, so only the pauses take time."""
    draw = random.Random(1).randrange
    monkeypatch.setattr(os, "urandom", lambda count: bytes(draw(256) for _ in range(count)))
    pauses = []
    for _ in range(20):
        run = Run(loop, 1, begun, host="\u00e9", retry=12, watched=True)
        while not run.outcomes:
            loop.turn()
        assert isinstance(run.outcomes[0], ConnectionLost)
        seconds = run.times[-1] - run.times[0]
        assert seconds == pytest.approx(12 * 3, abs=MOMENT), "each retry stands for the timeout"
        pauses.append([after - before for before, after in zip(run.times, run.times[1:])][:-1])
    for index, tried in enumerate(zip(*pauses)):
        full = min(0.05 * 2 ** index, 5)
        assert 0.5 * full <= min(tried) + 1e-6 and max(tried) <= full + 1e-6
        assert min(tried) < 0.7 * full and max(tried) > 0.8 * full, "no jitter"


def test_failed_name_lookup_ends_the_fetch_without_a_retry(loop, clock, begun):
    run = Run(loop, 1, begun, host="\u00e9", watched=True)
    assert run.outcomes == [], "the caller has to have the fetch in hand first"
    run.wait(clock)
    assert run.said("error") == ["cannot connect to \u00e9:1: " + NOT_ASCII]
    assert loop.timers() == 0, "something goes on after the end"


@pytest.mark.slow
@pytest.mark.parametrize("retry", [0, 2])
def test_refused_connection_is_tried_again_up_to_the_limit(loop, clock, begun, sockets, retry):
    held = socket.socket()
    sockets.append(held)
    held.bind((HOST, 0))
    run = Run(loop, held.getsockname()[1], begun, retry=retry, watched=True)
    error = run.wait(clock)
    refused = "cannot connect to %s:%d: [Errno %d] %s" % (
        HOST, held.getsockname()[1], errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    assert (type(error), str(error)) == (ConnectionLost, refused)
    assert set(run.said("error")) == {refused}
    assert (len(run.said("error")) > retry and clock.seconds - 1000 >= 3 * retry) if retry else len(
        run.said("error")) == 1
    assert not error.resumable, "nothing was created"


def test_server_that_comes_up_late_is_reached(loop, clock, begun, liar):
    gone = liar(GOOD)
    gone.stop_listening()
    run = Run(loop, gone.port, begun, retry=100, watched=True)
    turn_until(loop, lambda: clock.advance(0.01) or len(run.said("error")) == 3)
    liar(GOOD, port=gone.port)
    assert run.wait(clock) is None
    assert run.fetch.drops == len(run.said("error"))


@pytest.mark.parametrize("retry", [1, 3])
def test_progress_resets_the_retries_and_nothing_is_asked_for_twice(run, liar, clock, way, retry, begun):
    cuts = [instead(GOOD, **{"RECV_%d" % index: cut}) for index in range(1, 5)] + [instead(GOOD, FIN=cut)]
    server = liar(*cuts, GOOD)
    done = run(server, retry=retry, **dict(way, window=1))
    assert done.wait(clock) is None
    assert list(begun.numbers) == NUMBERS
    assert done.fetch.drops == 5
    assert [peer.heard[1:] for peer in server.peers] == [
        ["RECV,0", "RECV,1"], ["RECV,1", "RECV,2"], ["RECV,2", "RECV,3"],
        ["RECV,3", "RECV,4"] + ([] if "watched" in way else ["FIN"]), ["RECV,4", "FIN"], ["FIN"]]


@pytest.mark.slow
def test_retries_run_out_without_progress(run, liar, clock, begun):
    server = liar(instead(GOOD, RECV_2=cut))
    done = run(server, retry=4, window=1)
    error = done.wait(clock)
    assert (type(error), error.resumable) == (ConnectionLost, True)
    assert clock.seconds - 1000 >= 4 * 3, "retries times the timeout"
    assert done.fetch.drops == len(server.peers) >= 5
    assert list(begun.numbers) == NUMBERS[:10]


def test_cut_window_is_asked_for_again_without_what_arrived(run, liar, clock, begun):
    server = liar(instead(GOOD, RECV_3=end), GOOD)
    assert run(server, retry=1).wait(clock) is None
    assert server.peers[1].heard == ["CONT," + CLIENT_ID, "RECV,3", "RECV,4", "FIN"]


def test_new_connection_continues_from_the_state(run, liar, clock, state, monkeypatch):
    placed = []
    real = files.place
    monkeypatch.setattr(files, "place", lambda target, *rest, **more:
                        (placed.append(target), real(target, *rest, **more))[1])
    cuts = [instead(GOOD, **{"RECV_%d" % index: cut}) for index in (1, 2)]
    assert run(liar(*cuts, GOOD), retry=1, window=1).wait(clock) is None
    assert placed == [state]
    assert list(load(state).numbers) == NUMBERS


def test_torn_message_is_asked_for_again_as_a_whole(run, liar, clock, begun):
    server = liar(instead(GOOD, RECV_2=GOOD("RECV,2")[:-3], RECV_3=end), GOOD)
    assert run(server, retry=1, window=4).wait(clock) is None
    assert server.peers[1].heard[1] == "RECV,2"
    assert list(begun.numbers) == NUMBERS


INIT = "INIT,%s,%d,%d" % (CLIENT_ID, N, BATCH)
CONT = "CONT," + CLIENT_ID
MISSING = b"ERR,Client-id: %s does not exist;" % CLIENT_ID.encode("ascii")


@pytest.mark.parametrize("answer", [cut, end, hang])
def test_unanswered_init_that_arrived_is_not_created_twice(run, liar, clock, answer, begun):
    server = liar(instead(GOOD, INIT=answer), GOOD)
    assert run(server, retry=1).wait(clock, 0.1) is None
    assert [peer.heard[0] for peer in server.peers] == [INIT, CONT]
    assert list(begun.numbers) == NUMBERS


def test_init_that_never_arrived_is_sent_again_once_that_is_known(run, liar, clock, begun):
    server = liar(instead(GOOD, INIT=cut), instead(GOOD, CONT=MISSING), GOOD)
    assert run(server, retry=1).wait(clock) is None
    assert [peer.heard[0] for peer in server.peers] == [INIT, CONT, INIT]


FAILED = b"ERR,The sequence cannot be kept now;"
EXISTS = b"ERR,%s already exist;" % CLIENT_ID.encode("ascii")


def test_init_that_the_store_failed_may_have_been_carried_out(run, liar, clock, begun):
    server = liar(instead(GOOD, INIT=FAILED), instead(GOOD, CONT=FAILED), GOOD)
    assert run(server, retry=5).wait(clock) is None
    assert [peer.heard[0] for peer in server.peers] == [INIT, CONT, CONT]
    assert list(begun.numbers) == NUMBERS


def test_init_that_the_store_carried_out_late_is_continued(run, liar, clock, begun):
    server = liar(instead(GOOD, INIT=FAILED), instead(GOOD, CONT=MISSING), instead(GOOD, INIT=EXISTS), GOOD)
    assert run(server, retry=5).wait(clock) is None
    assert [peer.heard[0] for peer in server.peers] == [INIT, CONT, INIT, CONT]
    assert list(begun.numbers) == NUMBERS


def test_server_that_denies_each_message_in_turn_ends_the_fetch(run, liar, clock):
    server = liar(instead(GOOD, INIT=cut), *[instead(GOOD, INIT=EXISTS, CONT=MISSING)] * 50)
    error = run(server, retry=5).wait(clock)
    assert type(error) is errors.Forgotten
    assert len(server.peers) == 4


def test_sequence_that_the_server_has_forgotten_is_not_begun_again(run, liar, clock, begun):
    server = liar(instead(GOOD, RECV_2=cut), instead(GOOD, CONT=MISSING))
    error = run(server, retry=5, window=1).wait(clock)
    said = "the server has forgotten the sequence %s: begin with NEW" % CLIENT_ID
    assert (type(error), str(error), error.status, error.advises) == (errors.Forgotten, said, 3, True)
    assert len(server.peers) == 2
    assert list(begun.numbers) == NUMBERS[:10], "the good numbers are not kept"


@pytest.mark.parametrize("retry", [0, 2])
def test_too_many_connections_are_waited_out(run, liar, clock, retry):
    server = liar(*[instead(GOOD, INIT=TOO_MANY, CONT=TOO_MANY)] * 2 + [instead(GOOD, CONT=MISSING), GOOD])
    error = run(server, retry=retry).wait(clock)
    if retry:
        assert error is None
    else:
        assert (type(error), str(error)) == (Refused, "Too many connections")
        assert len(server.peers) == 1


def test_connection_limit_of_the_real_server_is_waited_out(server, loop, clock):
    crowded = server(connections_most=1, test_mode=True, session_timeout=1000)
    runs = [Run(loop, crowded.port, Journal(new_id(), 200, 5), retry=1000, window=1) for _ in range(4)]
    turn_until(loop, lambda: clock.advance(0.01) or all(run.outcomes for run in runs))
    assert [run.outcomes for run in runs] == [[None]] * 4
    assert sum(run.fetch.drops for run in runs) > 0, "the limit was never reached"


@pytest.mark.parametrize("said", [b"ERR,no;", b"nonsense;"])
def test_permanent_errors_are_not_tried_again(run, liar, clock, said):
    server = liar(instead(GOOD, RECV_1=said))
    assert run(server, retry=100).wait(clock) is not None
    assert len(server.peers) == 1


def test_refused_new_sequence_keeps_the_earlier_state(server, loop, state):
    real = server(test_mode=True)
    earlier = Journal(CLIENT_ID.encode("ascii"), N, BATCH, path=state)
    assert Run(loop, real.port, earlier).wait() is None
    again = Journal(CLIENT_ID.encode("ascii"), N + 1, BATCH, path=state)
    error = Run(loop, real.port, again).wait()
    assert (type(error), str(error)) == (Refused, CLIENT_ID + " already exist")
    assert list(load(state).numbers) == numbers_of(CLIENT_ID, N)


# ---- many at once, and the end of one


def test_many_fetches_share_a_loop_with_sessions_that_end_too_early(server, loop, clock):
    real = server(session_timeout=0.3)
    chance = random.Random(7)
    runs = [Run(loop, real.port, Journal(new_id(), chance.randrange(2000), chance.randint(1, 9)),
                retry=1000, window=chance.choice([1, 16, 1024])) for _ in range(20)]
    turn_until(loop, lambda: clock.advance(0.003) or all(run.outcomes for run in runs))
    assert [run.outcomes for run in runs] == [[None]] * len(runs)
    assert sum(run.fetch.drops for run in runs) > 10, "the sessions lived too long for this test"
    assert all(len(run.fetch.journal.numbers) == run.fetch.journal.n for run in runs)


@pytest.mark.parametrize("phase", ["connecting", "INIT", "RECV_2", "pausing"])
def test_cancelled_fetch_calls_back_no_more_and_leaves_its_state(run, liar, loop, clock, phase, begun, state):
    server = liar(instead(GOOD, **{phase: hang, "RECV_3": cut}))
    done = run(server, retry=5, window=1, watched=True)
    if phase == "pausing":
        turn_until(loop, lambda: done.fetch.drops)
    elif phase != "connecting":
        turn_until(loop, lambda: server.heard() and server.heard()[-1].startswith(phase.replace("_", ",")))
    if phase == "connecting":
        loop.turn()
    done.fetch.cancel()
    done.fetch.cancel()
    events = list(done.events)
    turns = loop.turns
    clock.advance(100)
    turn_until(loop, lambda: loop.turns > turns + 5)
    assert done.outcomes == [] and done.events == events
    assert not begun.is_open() and len(begun.numbers) == {"RECV_2": 10, "pausing": 15}.get(phase, 0)
    if phase in ("RECV_2", "pausing"):
        assert load(state).numbers == begun.numbers


def test_nothing_is_left_on_the_loop_after_the_end(run, liar, loop, clock):
    server = liar(GOOD)
    assert run(server).wait() is None
    server.stop_listening()
    turn_until(loop, lambda: not loop.poller.selector.get_map())
    assert loop.timers() == 0


# ---- the errors


@pytest.mark.parametrize("kind, status", [
    (ChecksumMismatch, 1), (UsageError, 2), (Refused, 3), (ConnectionLost, 4), (ProtocolBroken, 5)])
def test_each_exit_status_has_its_exception(kind, status):
    assert issubclass(kind, errors.FetchError) and kind.__mro__[1] is errors.FetchError
    error = kind("a line", True)
    assert (error.status, str(error), error.resumable,
            kind("a line").resumable) == (status, "a line", True, False)
    assert getattr(numseq, kind.__name__) is kind and kind.__name__ in numseq.__all__
    assert "  %d    " % status in fetching.STATUSES


# ---- as a library


def loaded_by(statement):
    """The names of the modules that a statement loads into a fresh interpreter."""
    return set(run_python("import sys; before = set(sys.modules); %s\n"
                          "print(*set(sys.modules) - before)" % statement).split())


def test_importing_the_package_loads_only_its_errors():
    assert loaded_by("import numseq") == {"numseq", "numseq.errors", "numseq.version"}


def test_client_loads_neither_argparse_nor_the_server():
    unwanted = {"argparse", "asyncio", "ssl", "threading", "numseq.serving", "numseq.store", "numseq.options"}
    assert not unwanted & loaded_by("import numseq.fetching")


def test_fetch_returns_the_numbers_with_their_sum_checksum_and_id(port):
    client_id = new_id().decode("ascii")
    result = numseq.fetch(1000, port, client_id=client_id)
    assert type(result.numbers) is list
    assert result.numbers == numbers_of(client_id, 1000)
    assert (result.sum, result.client_id) == (sum(result.numbers), client_id)
    assert result.checksum == honest(result.numbers, 5)("FIN")[4:-1].decode("ascii")
    assert result == (result.numbers, result.sum, result.checksum, result.client_id)


@pytest.mark.parametrize("options", [dict(), dict(batch_size=1), dict(batch_size=65535), dict(window=1)])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_fetch_takes_any_count_and_batch_size(port, n, options):
    result = numseq.fetch(n, port, **options)
    assert len(result.numbers) == n
    assert result.numbers == numbers_of(result.client_id, n)


def test_fetch_can_be_called_in_many_threads(port):
    results = []
    threads = [threading.Thread(target=lambda: results.append(numseq.fetch(500, port))) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(WAIT_SECONDS)
    assert len({result.client_id for result in results}) == 4
    assert all(result.numbers == numbers_of(result.client_id, 500) for result in results)


def test_resume_continues_from_a_state_file(port, state):
    first = numseq.fetch(100, port, state=state)
    assert numseq.resume(port, state=state) == first


@pytest.mark.parametrize("wrong, said", [
    (dict(n=-1), "Invalid count of numbers: 0 to 65535"),
    (dict(n=65536), "Invalid count of numbers: 0 to 65535"),
    (dict(batch_size=0), "Invalid batch size: 1 to 65535"),
    (dict(batch_size=65536), "Invalid batch size: 1 to 65535"),
    (dict(client_id="me"), "Invalid client id"),
    (dict(client_id="\u0661" + CLIENT_ID[1:]), "Invalid client id"),
    (dict(port=0), "Invalid port: 1 to 65535"),
    (dict(port=65536), "Invalid port: 1 to 65535"),
    (dict(port=-1), "Invalid port: 1 to 65535"),
])
def test_invalid_arguments_are_refused_before_anything_is_sent(wrong, said):
    with pytest.raises(UsageError) as refused:
        numseq.fetch(**dict(dict(n=5, port=1), **wrong))
    assert (str(refused.value), refused.value.status) == (said, 2)


def test_resume_without_a_state_is_refused(state):
    with pytest.raises(UsageError):
        numseq.resume(1, state=state)


def test_fetch_raises_the_error_that_ended_it(programs, state):
    server = programs.server(session_timeout=0.05)
    for _ in range(100):  # on a busy machine a session can end before its sequence is acknowledged
        with pytest.raises(ConnectionLost) as lost:
            numseq.fetch(65535, server.port, batch_size=1, window=1, state=state)
        if lost.value.resumable:
            break
    assert lost.value.resumable, "its state is there"
    with pytest.raises(ConnectionLost) as lost:
        numseq.fetch(65535, server.port, batch_size=1, window=1)
    assert not lost.value.resumable, "there is no state to resume from"
    assert numseq.resume(server.port, state=state, retry=1000).sum == sum(
        numbers_of(load(state).client_id.decode("ascii"), 65535))
    taken = load(state).client_id.decode("ascii")
    with pytest.raises(Refused) as refused:
        numseq.fetch(5, server.port, client_id=taken, retry=1000)
    assert str(refused.value) == taken + " already exist"
    server.stop()
    with pytest.raises(ConnectionLost):
        numseq.fetch(5, server.port)
