"""No number is lost or requested twice, however a proxy breaks the connections.

The real client, the proxy and the real server share one loop, on the fake clock.
"""

import os
import random

import pytest

from helpers import Recorder, jump_until
from programs import CLIENT_ID, HOST, numbers_of
from proxy import DOWN, FIN, RST, UP, Plan, Proxy

from numseq import protocol
from numseq.connect import connect
from numseq.transfer import TIMEOUT, Fetch, new_id
from numseq.errors import ConnectionLost
from numseq.journal import Journal, load
from numseq.serving import SESSION_TIMEOUT, Server
from numseq.store_memory import MemoryStore

lesson = pytest.mark.lesson
pytestmark = pytest.mark.slow
ID = CLIENT_ID.encode("ascii")
N, BATCH = 11, 3  # four batches, and the last one is short
RETRIES = 10  # connections without progress; few tests need more than one
RUNS_MOST = 10  # runs of a client
TURNS_MOST = 20000


class World:
    """A server, a proxy before it, and fetches of a sequence through the proxy."""

    def __init__(self, loop, state):
        self.loop = loop
        self.state = state
        self.forgotten = []
        self.store = MemoryStore(loop, self.forgotten.append)
        self.server = Server(loop, self.store, test_mode=True)
        self.proxy = Proxy(loop, HOST, self.server.listen(HOST, 0)[0][1], self._plan)
        self.journaled = []  # how many batches the file had when each connection came
        self._plans = iter(())

    def begin(self, *plans):
        """Begins a new sequence: the first connections get these plans, later ones are left alone."""
        self._plans = iter(plans)
        del self.proxy.links[:], self.journaled[:], self.forgotten[:]
        if os.path.exists(self.state):
            os.unlink(self.state)
        return Journal(ID, N, BATCH, path=self.state)

    def _plan(self, number):
        self.journaled.append(load(self.state).batches() if os.path.exists(self.state) else 0)
        return next(self._plans, None) or Plan()

    def turn_until(self, predicate):
        jump_until(self.loop, predicate, TURNS_MOST)

    def fetch(self, begun, resume=False, retry=RETRIES, window=1024):
        """One run of a client; returns (Fetch, error)."""
        errors = []
        fetched = Fetch(self.loop, HOST, self.proxy.port, begun, lambda fetch, error: errors.append(error),
                        resume, window, retry=retry)
        self.turn_until(lambda: errors)
        return fetched, errors[0]

    def fetch_in_one_run(self, begun, **options):
        """The client retries by itself."""
        fetched, error = self.fetch(begun, **options)
        assert error is None
        return fetched

    def fetch_in_many_runs(self, begun, **options):
        """Each run has one connection and continues from the file, or begins anew if there is none."""
        resume = False
        for _ in range(RUNS_MOST):
            fetched, error = self.fetch(begun, resume, retry=0, **options)
            if error is None:
                return fetched
            assert type(error) is ConnectionLost
            assert error.resumable is os.path.exists(self.state)
            resume = error.resumable
            begun = load(self.state) if resume else Journal(new_id(), begun.n, begun.batch, path=self.state)
        return pytest.fail("not done in %d runs" % RUNS_MOST)

    def check(self, fetched):
        """Checks that the numbers are right, none was requested twice, and nothing is left behind."""
        begun = fetched.journal
        assert list(begun.numbers) == numbers_of(begun.client_id.decode("ascii"), begun.n)
        assert bytes(load(self.state).numbers) == bytes(begun.numbers)
        assert fetched.checksum is not None  # as the server said it; the client has compared it
        for link, journaled in zip(self.proxy.links, self.journaled):
            asked = indexes(link.heard)
            assert asked == list(range(journaled, journaled + len(asked)))
        self.turn_until(lambda: not (self.server.sessions or len(self.store)))
        assert begun.client_id in self.forgotten
        assert len(set(self.forgotten)) == len(self.forgotten)
        assert self.loop.timers() == 0

    def close(self):
        self.proxy.close()
        self.server.close()


def indexes(heard):
    """The indices of the RECVs in what a client has sent."""
    return [int(message[len(b"RECV,"):]) for message in bytes(heard).split(b";")
            if message.startswith(b"RECV,")]


@pytest.fixture
def world(loop, tmp_path):
    world = World(loop, str(tmp_path / "state"))
    yield world
    world.close()


@pytest.fixture(params=[1, 1024])
def window(request):
    return request.param


@pytest.fixture(params=["fetch_in_one_run", "fetch_in_many_runs"])
def fetch(request, world):
    """How a sequence is fetched over connections that break."""
    return getattr(world, request.param)


def offsets(way):
    """Every byte offset of one direction at which a connection can break."""
    numbers = bytes(numbers_of(CLIENT_ID, N))
    total = -(-N // BATCH)
    said = {
        UP: protocol.encode(protocol.INIT, ID, b"%d" % N, b"%d" % BATCH) + protocol.encode_receives(0, total)
        + b"FIN;",
        DOWN: b"".join([b"ACK;"]
                       + [protocol.encode_batch(numbers[first:first + BATCH]) for first in range(0, N, BATCH)]
                       + [b"FAC,%032d;" % 0]),
    }
    return range(len(said[way]) + 1)


def test_offsets_cover_the_whole_connection(world):
    """The loops below cover the bytes of one whole connection."""
    world.check(world.fetch_in_one_run(world.begin()))
    link, = world.proxy.links
    for way in UP, DOWN:
        assert link.lanes[way].passed == offsets(way)[-1]


@pytest.mark.parametrize("how", [RST, FIN])
@pytest.mark.parametrize("way", [UP, DOWN])
def test_cut_at_any_byte_neither_loses_nor_repeats_numbers(world, way, how, window, fetch):
    for offset in offsets(way):
        plan = Plan(cut=(way, offset), how=how)
        try:
            world.check(fetch(world.begin(plan), window=window))
            assert world.proxy.links[0].lanes[way].passed == offset
        except Exception as error:
            raise AssertionError(plan) from error
    assert world.proxy.broken == len(offsets(way))


@pytest.mark.parametrize("way", [UP, DOWN])
def test_peer_that_vanishes_at_any_byte_is_given_up(world, clock, way, window, fetch):
    """Neither side gets an error: only the client's timeout and the session timeout end it."""
    for offset in offsets(way):
        plan = Plan(vanish=(way, offset))
        begin = clock()
        try:
            fetched = fetch(world.begin(plan), window=window)
            assert TIMEOUT <= clock() - begin < TIMEOUT + SESSION_TIMEOUT or fetched.drops == 0
            world.check(fetched)
        except Exception as error:
            raise AssertionError(plan) from error
    assert world.proxy.broken == len(offsets(way))


@pytest.mark.parametrize("seed", range(5))
def test_repeated_cuts_neither_lose_nor_repeat_numbers(world, seed, window, fetch):
    """Every connection but the last breaks at a random place in a random way, unless it ends before."""
    draw = random.Random(seed)
    for _ in range(20):
        plans = [any_plan(draw) for _ in range(draw.randrange(1, RUNS_MOST))]
        world.check(fetch(world.begin(*plans), window=window))


def any_plan(draw):
    """A random Plan that breaks, sometimes delayed or in pieces."""
    way = draw.choice([UP, DOWN])
    place = way, draw.choice(offsets(way))
    breaks = dict(vanish=place) if draw.random() < 0.2 else dict(cut=place, how=draw.choice([RST, FIN]))
    return Plan(delay=draw.choice([0, 0, 0.001, 0.05]), piece=draw.choice([None, None, 1, 7]), **breaks)


@pytest.mark.parametrize("how", [RST, FIN])
@pytest.mark.parametrize("seed", range(5))
def test_long_sequence_arrives_whole_over_many_connections(world, seed, how, fetch):
    """Uses the fast paths of both sides: buffers full of messages."""
    draw = random.Random(seed)
    plans = [Plan(cut=(DOWN, draw.randrange(4, 12000)), how=how, piece=draw.choice([None, 997]))
             for _ in range(RUNS_MOST - 1)]
    begun = world.begin(*plans)
    begun.n, begun.batch = 20000, 5
    world.check(fetch(begun, window=300))


# ---- the other faults


@lesson(21)
def test_bytes_that_come_one_by_one_are_understood(world, window):
    world.check(world.fetch_in_one_run(world.begin(Plan(piece=1)), window=window))
    link, = world.proxy.links
    for way in UP, DOWN:
        assert len(link.lanes[way].pieces) == offsets(way)[-1]


def test_slow_path_is_slow_for_a_bounded_number_of_turns(world):
    """Otherwise a connection of the soak would still be passing data on after the retention."""
    world.check(world.fetch_in_one_run(world.begin(Plan(piece=2, pieces=5)), window=100))
    link, = world.proxy.links
    sizes = list(map(len, link.lanes[DOWN].pieces))
    assert sizes[:5] == [2] * 5
    assert max(sizes[5:]) > 2


@lesson(18)
def test_messages_that_arrive_together_are_all_answered(world):
    """Requests sent in several writes arrive in one read, and so do the answers."""
    begun = world.begin(Plan(delay=0.01))
    begun.n, begun.batch = 400, 1
    world.check(world.fetch_in_one_run(begun, window=100))
    link, = world.proxy.links
    for way in UP, DOWN:
        assert max(piece.count(b";") for piece in link.lanes[way].pieces) >= 50


@pytest.mark.parametrize("delay", [0.001, 0.1, 0.3])
def test_delay_that_uses_up_the_session_loses_no_numbers(world, delay, window, fetch):
    """A session has time for some round trips only; the next connection continues."""
    world.check(fetch(world.begin(*[Plan(delay=delay)] * RUNS_MOST), window=window))
    sessions = len(world.proxy.links)
    assert sessions == 1 or delay > 0.05


def test_delay_as_long_as_the_session_loses_no_numbers(world):
    """What a connection opens with needs no answer first."""
    world.check(world.fetch_in_one_run(world.begin(*[Plan(delay=SESSION_TIMEOUT)] * RUNS_MOST)))


@pytest.mark.parametrize("plan", [Plan(twice=True), Plan(twice=True, piece=1), Plan(twice=True, delay=0.01)],
                         ids=repr)
def test_bytes_that_arrive_twice_leave_the_sequence_unchanged(world, plan, window):
    """The second connection is refused or gets the same answers, and does not disturb the first."""
    world.check(world.fetch_in_one_run(world.begin(plan), window=window))
    assert len(world.proxy.links) == 1


def test_bytes_that_arrive_twice_leave_a_continued_sequence_unchanged(world, window, fetch):
    plans = [Plan(twice=True, cut=(DOWN, offset)) for offset in (20, 20, 20)]
    world.check(fetch(world.begin(*plans), window=window))
    assert len(world.proxy.links) == 4


def test_replayed_connection_neither_gets_nor_changes_a_sequence(world):
    """The replay is refused, because the id exists, and the sequence stays as it is."""
    begun = world.fetch_in_one_run(world.begin()).journal
    recorded = bytes(world.proxy.links[0].heard)
    replay = Recorder()
    replay.connected = lambda stream: stream.write(recorded)
    connect(world.loop, *world.proxy.server, handler=replay)
    world.turn_until(lambda: replay.data.endswith(b";"))
    assert replay.data == b"ERR,%b already exist;" % ID
    half = Journal(ID, N, BATCH, begun.numbers[:BATCH], world.state)
    del world.journaled[:], world.proxy.links[:]
    half.begin()
    world.check(world.fetch_in_one_run(half, resume=True))
