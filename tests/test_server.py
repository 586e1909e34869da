"""The server over real sockets, in this process, on a clock that moves when it is told."""

import contextlib
import errno
import hashlib
import os
import random
import re
import socket

import pytest

from helpers import read_from, read_to_end, turn_until
from numseq import protocol
from numseq import serving
from numseq.budget import WORK_SECONDS
from numseq.loop import READ
from numseq.replies import kept_bytes
from numseq.sequence import BLOCK, CHECKSUM_STEP
from numseq.serving import FAREWELLS_MOST, MESSAGES_MOST, Server, address_key, connections_limit
from numseq.serving import endpoint, where_raised
from numseq.session import FINISHING
from numseq.store import FAILED, FULL, RETENTION, Record
from numseq.store_memory import MemoryStore
from numseq.stream import LINGER_SECONDS, Stream
from stores import RefusingStore, SlowStore

ID = b"123e4567-e89b-12d3-a456-426614174000"
OTHER_ID = b"00000000-0000-4000-8000-00000000000f"
FOR_EVER = 10.0 ** 6  # seconds, where a test is not about the session's time


# ---- helpers


class Running:
    """A listening server, and what tests do with it."""

    def __init__(self, loop, options):
        self.loop = loop
        self.peers = []
        self.forgotten = []
        self.told = []
        self.store = options.pop("store", None)
        if self.store is None:
            self.store = MemoryStore(loop, self.forgotten.append)
        options.setdefault("test_mode", True)
        options.setdefault("session_timeout", FOR_EVER)
        self.server = Server(loop, self.store, self.told.append, **options)
        self.address, = self.server.listen("127.0.0.1", 0)

    def turn_until(self, predicate):
        turn_until(self.loop, predicate)

    def read_from(self, peer, count):
        return read_from(self.loop, peer, count)

    def read_to_end(self, peer):
        return read_to_end(self.loop, peer)

    def connect(self, receive_buffer=None):
        peer = socket.socket()
        self.peers.append(peer)
        if receive_buffer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer.settimeout(5)
        peer.connect(self.address)
        return peer

    def connected(self):
        """A connection that the server has accepted, and its session."""
        before = set(self.server.sessions)
        peer = self.connect()
        self.turn_until(lambda: len(self.server.sessions) > len(before))
        session, = self.server.sessions - before
        return peer, session

    def say(self, peer, data, answer):
        """Sends data, and checks that exactly the expected answer arrives."""
        peer.sendall(data)
        assert self.read_from(peer, len(answer)) == answer

    def send(self, peer, data):
        """Sends more than the kernel takes at once, while the server runs."""
        view = memoryview(data)

        def sent():
            nonlocal view
            with contextlib.suppress(BlockingIOError):
                while view:
                    view = view[peer.send(view[:64 * 1024]):]
            return not view

        peer.setblocking(False)
        self.turn_until(sent)

    def all_that_is_said(self, data):
        """Sends data on a new connection; returns all answers up to the end of input, and closes it."""
        peer = self.connect()
        self.send(peer, data)
        answer = self.read_to_end(peer)
        peer.close()
        return answer

    def read_messages(self, peer, count):
        """Reads `count` messages, and checks that nothing follows."""
        data = bytearray()

        def complete():
            with contextlib.suppress(BlockingIOError):
                data.extend(peer.recv(64 * 1024))
            return data.count(b";") >= count

        peer.setblocking(False)
        self.turn_until(complete)
        assert data.count(b";") == count and data.endswith(b";")
        return bytes(data)

    def hang_up(self, peer):
        """Closes a connection, and waits until the server has noticed."""
        count = len(self.server.sessions)
        peer.close()
        self.turn_until(lambda: len(self.server.sessions) < count)

    def pass_time(self, seconds):
        """Lets time pass on the loop's clock, as fast as it can."""
        self.loop.call_at(self.loop.poller.selector.clock() + seconds, self.loop.stop)
        self.loop.run()

    def turn(self, count):
        for _ in range(count):
            first = self.loop.turns
            self.turn_until(lambda: self.loop.turns > first)

    def close(self):
        for peer in self.peers:
            peer.close()
        self.server.close()


@pytest.fixture
def start(loop):
    """A function: starts a server with options of Server's."""
    servers = []

    def start_one(**options):
        servers.append(Running(loop, options))
        return servers[-1]

    yield start_one
    for each in servers:
        each.close()


@pytest.fixture
def running(start):
    """A server whose sessions live as long as a test likes, in TEST_MODE."""
    return start()


@pytest.fixture
def slow(start, loop):
    """A server whose store answers when it is told to."""
    forgotten = []
    running = start(store=SlowStore(MemoryStore(loop, forgotten.append)), session_timeout=1.0)
    running.forgotten = forgotten
    return running


def init(n=5, batch=5, client_id=ID):
    return b"INIT,%b,%d,%d;" % (client_id, n, batch)


def cont(client_id=ID):
    return b"CONT,%b;" % client_id


def error(what):
    return b"ERR,%b;" % what.encode()


def numbers_of(n, client_id=ID):
    draw = random.Random(client_id.decode()).randint
    return [draw(0, 100) for _ in range(n)]


def num(numbers):
    return b"NUM,%b;" % b":".join(b"%d" % number for number in numbers)


def nums(n, batch, client_id=ID):
    numbers = numbers_of(n, client_id)
    return [num(numbers[i:i + batch]) for i in range(0, n, batch)]


def fac(n, client_id=ID):
    return b"FAC,%b;" % hashlib.new("md5", str(numbers_of(n, client_id)).encode()).hexdigest().encode()


# ---- the table


def test_new_sequence_is_sent_exactly_as_specified(running):
    peer = running.connect()
    running.say(peer, b"INIT,%b,5,5;" % ID, b"ACK;")
    running.say(peer, b"RECV,0;", b"NUM,6:41:81:68:68;")
    running.say(peer, b"FIN;", b"FAC,f90b20dae8c9b7d7be2a5fb7cc856e8b;")
    assert running.read_to_end(peer) == b""


def test_sequence_is_continued_on_another_connection(running):
    peer = running.connect()
    running.say(peer, b"INIT,%b,10,5;" % ID, b"ACK;")
    running.say(peer, b"RECV,0;", b"NUM,6:41:81:68:68;")
    running.hang_up(peer)
    peer = running.connect()
    running.say(peer, b"CONT,%b;" % ID, b"ACK;")
    running.say(peer, b"RECV,1;", b"NUM,41:10:40:78:98;")
    running.say(peer, b"FIN;", b"FAC,9b14501c5359fb4eac96df9e874348b2;")
    assert running.read_to_end(peer) == b""


def test_long_sequence_is_that_of_the_transcripts(running):
    peer = running.connect()
    running.say(peer, b"INIT,%b,10000,5;" % ID, b"ACK;")
    running.say(peer, b"RECV,630;", b"NUM,54:94:94:19:96;")
    running.say(peer, b"RECV,1999;", b"NUM,40:53:59:98:3;")
    running.say(peer, b"FIN;", b"FAC,589f9ca74cb5ea9a32eddd14840d5b64;")


@pytest.mark.parametrize("n, batch", [(0, 1), (0, 65535), (1, 1), (1, 65535), (5, 2), (6, 3), (7, 7), (7, 8),
                                      (100, 1), (65535, 65535), (65535, 6000)])
def test_batches_and_the_checksum_come_in_the_order_asked_for(running, n, batch):
    batches = nums(n, batch)
    order = list(range(len(batches))) * 2
    random.Random(n).shuffle(order)
    answers = running.all_that_is_said(init(n, batch) + b"".join(b"RECV,%d;" % i for i in order) + b"FIN;")
    assert answers == b"ACK;" + b"".join(batches[i] for i in order) + fac(n)


def test_existing_id_is_refused_to_a_new_sequence(running):
    first = running.connect()
    running.say(first, init(), b"ACK;")
    assert running.all_that_is_said(init(7, 7)) == b"ERR,%b already exist;" % ID
    running.hang_up(first)
    assert running.all_that_is_said(init(7, 7)) == b"ERR,%b already exist;" % ID
    assert running.all_that_is_said(cont() + b"FIN;") == b"ACK;" + fac(5)


def test_unknown_id_cannot_be_continued(running):
    assert running.all_that_is_said(cont()) == b"ERR,Client-id: %b does not exist;" % ID
    assert running.all_that_is_said(init() + b"FIN;") == b"ACK;" + fac(5)


@pytest.mark.parametrize("index",
                         [b"2", b"3", b"1000", b"65534", b"65535", b"65536", b"99999999999999999999"])
def test_index_out_of_range_is_an_error_the_connection_survives(running, index):
    peer = running.connect()
    running.say(peer, init(10, 5), b"ACK;")
    for before in (b"", b"RECV,1;", b"RECV,0;RECV,1;"):
        answer = b"".join(nums(10, 5)[int(i)] for i in re.findall(b"[0-9]+", before))
        running.say(peer, before + b"RECV,%b;RECV,1;" % index,
                    answer + b"ERR,Invalid batch index requested: %b;" % index + nums(10, 5)[1])
    running.say(peer, b"FIN;", fac(10))


def test_empty_sequence_has_no_batch(running):
    assert running.all_that_is_said(init(0, 5) + b"RECV,0;FIN;") == (
        b"ACK;ERR,Invalid batch index requested: 0;FAC,%b;" % hashlib.new("md5", b"[]").hexdigest().encode())


@pytest.mark.parametrize("client_id", [ID.upper(), b"FFFFFFFF-ffff-4fff-bFFF-ffffffffFFFF"])
def test_id_keeps_its_upper_case_letters(running, client_id):
    assert running.all_that_is_said(init(5, 5, client_id) + b"RECV,0;FIN;") == (
        b"ACK;" + nums(5, 5, client_id)[0] + fac(5, client_id))
    assert running.all_that_is_said(init(5, 5, client_id)) == client_id.join([b"ERR,", b" already exist;"])
    assert running.all_that_is_said(cont(client_id) + b"FIN;") == b"ACK;" + fac(5, client_id)
    running.pass_time(RETENTION + 1)
    assert running.forgotten == [client_id]
    assert running.all_that_is_said(cont(client_id)) == b"ERR,Client-id: %b does not exist;" % client_id


def test_index_with_leading_zeros_is_the_same_batch(running):
    said = running.all_that_is_said(init(10, 5) + b"RECV,1;RECV,01;RECV,0001;FIN;")
    assert said == b"ACK;" + nums(10, 5)[1] * 3 + fac(10)


# ---- bad input: one ERR that arrives, then the end


BEFORE_INIT = [
    b";", b",;", b"\0;", b"NOPE;", b"init,%b,5,5;" % ID, b"INIT;", b"INIT,;", b"INIT,%b;" % ID,
    b"INIT,%b,5;" % ID, b"INIT,%b,5,5,5;" % ID, b"INIT,%b,65536,5;" % ID, b"INIT,%b,-1,5;" % ID,
    b"INIT,%b,5,0;" % ID, b"INIT,%b,5,65536;" % ID, b"INIT,%b,,5;" % ID, b"INIT,%b,5,;" % ID,
    b"INIT,%b,1_0,5;" % ID, b"INIT,%b, 5,5;" % ID, b"INIT,%b,+5,5;" % ID, b"INIT,%b,5,\xd9\xa5;" % ID,
    b"INIT,%b,5,1e1;" % ID, b"INIT,%b,5,5\n;" % ID, b"INIT," + ID[:-1] + b",5,5;",
    b"INIT,{%b},5,5;" % ID[1:-1], b"INIT," + ID.replace(b"-", b"") + b",5,5;",
    b"INIT," + b"x" * 36 + b",5,5;", b"CONT;", b"CONT,;", b"CONT," + ID[:-1] + b"g;", b"CONT,%b,;" % ID,
    b"\nCONT,%b;" % ID, b"RECV,0;", b"FIN;", b"ACK;", b"NUM,1;",
    b"GET / HTTP/1.1\r\nHost: example\r\nAccept: text/html;q=0.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01" * 20, b"\xff" * 54, b"I" * 54]
AFTER_INIT = [
    b";", b"NOPE;", b"RECV;", b"RECV,;", b"RECV,-1;", b"RECV,+1;", b"RECV, 0;", b"RECV,1_0;", b"RECV,0,0;",
    b"RECV,\xd9\xa5;", b"RECV,0\n;", b"RECV,x;", b"recv,0;", b"FIN,;", b"FIN,1;", b"FIN\n;",
    b"INIT,%b,5,5;" % OTHER_ID, b"INIT,%b,5,5;" % ID, b"CONT,%b;" % ID, b"CONT,%b;" % OTHER_ID, b"\xff" * 54,
    b"RECV," + b"0" * 60]


def one_error(answer):
    """Whether the answer is exactly one ERR with printable text."""
    return re.match(b"ERR,[ -:<-~]+;$", answer) is not None


@pytest.mark.parametrize("after", [b"", b"RECV,0;FIN;INIT,%b,5,5;" % OTHER_ID], ids=["", "and-more"])
@pytest.mark.parametrize("message", BEFORE_INIT)
def test_bad_first_message_gets_one_error_and_a_close(running, message, after):
    assert one_error(running.all_that_is_said(message + after))
    running.turn_until(lambda: not running.server.sessions)
    for client_id in (ID, OTHER_ID):
        assert running.all_that_is_said(cont(client_id)) == b"ERR,Client-id: %b does not exist;" % client_id


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("message", AFTER_INIT)
def test_bad_message_gets_one_error_and_a_close_and_the_sequence_is_kept(running, message, before):
    others = running.connect()
    running.say(others, init(7, 7, OTHER_ID), b"ACK;")
    answer = running.all_that_is_said(init(10, 5) + before * b"RECV,1;" + message + b"RECV,0;")
    expected = b"ACK;" + before * nums(10, 5)[1]
    assert answer.startswith(expected)
    assert one_error(answer[len(expected):])
    assert running.all_that_is_said(cont() + b"RECV,1;FIN;") == b"ACK;" + nums(10, 5)[1] + fac(10)
    running.say(others, b"RECV,0;FIN;", nums(7, 7, OTHER_ID)[0] + fac(7, OTHER_ID))


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("message", AFTER_INIT + [b"RECV,%b1;" % (b"0" * 60), b"RECV,%b;" % (b"9" * 5000)])
def test_bad_message_within_a_run_of_requests_gets_one_error(running, message, before):
    """Runs of requests take the fast path, which must not skip a bad one."""
    peer = running.connect()
    running.say(peer, init(10, 5) + b"RECV,0;", b"ACK;" + nums(10, 5)[0])
    peer.sendall(before * b"RECV,1;" + message + b"RECV,0;")
    answer = running.read_to_end(peer)
    assert answer.startswith(before * nums(10, 5)[1])
    assert one_error(answer[before * len(nums(10, 5)[1]):])
    assert running.all_that_is_said(cont() + b"FIN;") == b"ACK;" + fac(10)


@pytest.mark.parametrize("message, what", [
    (b"NOPE;", protocol.UNKNOWN_TYPE), (b"RECV,0;", protocol.TOO_EARLY), (b"FIN;", protocol.TOO_EARLY),
    (b"INIT,%b,65536,5;" % ID, protocol.INVALID_N), (b"INIT,%b,5,0;" % ID, protocol.INVALID_BATCH),
    (b"INIT,5,5;", protocol.INVALID_FIELDS), (b"CONT,5;", protocol.INVALID_ID),
    (b"I" * 54, protocol.TOO_LONG), (init() + b"RECV,x;", protocol.INVALID_INDEX),
    (init() + cont(), protocol.TOO_LATE), (init() + b"FIN,;", protocol.NO_CONTENT % "FIN")])
def test_error_says_what_is_wrong(running, message, what):
    assert running.all_that_is_said(message).endswith(error(what))


@pytest.mark.parametrize("flood", [b"x", b"RECV,0;", b"\0\xff;,"])
@pytest.mark.parametrize("before, expected", [(b"", b""), (init(), b"ACK;")], ids=["new", "open"])
def test_error_arrives_though_the_client_has_sent_megabytes(running, before, expected, flood):
    bad = b"NOPE;" + flood * (4 * 1024 * 1024 // len(flood))
    assert running.all_that_is_said(before + bad) == expected + error(protocol.UNKNOWN_TYPE)


def test_endless_message_is_refused_at_once_and_not_buffered(running, traced):
    peer, session = running.connected()
    peer.sendall(b"x" * 60)
    assert running.read_to_end(peer) == error(protocol.TOO_LONG)
    grown = traced()
    running.send(peer, b"x" * 4 * 1024 * 1024)
    running.turn(3)
    assert grown() < 512 * 1024


def test_client_that_does_not_hang_up_after_its_error_is_cut_off(running):
    peer, session = running.connected()
    peer.sendall(b"NOPE;")
    assert running.read_to_end(peer) == error(protocol.UNKNOWN_TYPE)
    running.pass_time(LINGER_SECONDS + 0.01)
    assert not running.server.sessions


def test_client_that_hangs_up_after_its_error_frees_its_place_at_once(running, clock):
    peer, session = running.connected()
    began = clock()
    peer.sendall(b"NOPE;")
    running.read_to_end(peer)
    running.hang_up(peer)
    assert clock() == began and not running.server.sessions


@pytest.mark.parametrize("before, expected", [(b"", b""), (init(), b"ACK;"),
                                              (init() + b"RECV,0;" * 3, b"ACK;" + nums(5, 5)[0] * 3)])
@pytest.mark.parametrize("rest", [b"R", b"RECV,0", b"FIN", b"\xff"])
def test_unfinished_message_at_the_end_of_input_gets_an_error(running, before, expected, rest):
    peer = running.connect()
    peer.sendall(before + rest)
    peer.shutdown(socket.SHUT_WR)
    assert running.read_to_end(peer) == expected + error(protocol.UNFINISHED)


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_never_stop_the_server(running, seed):
    """Most are refused. None raises an exception: the loop would report it, and the fixture would fail."""
    generator = random.Random(seed)
    for _ in range(40):
        peer = running.connect()
        data = bytearray(init(10, 5, b"%08x-0000-0000-0000-000000000000" % generator.getrandbits(32))
                         + b"RECV,0;" * 4 + b"FIN;")
        for _ in range(generator.randint(0, 6)):
            place = generator.randrange(len(data))
            replaced = slice(place, place + generator.randint(0, 3))
            data[replaced] = bytes([generator.choice(b";,0\0\xff\nR")]) * generator.randint(0, 2)
        cut = generator.randrange(len(data) + 1)
        peer.sendall(data[:cut])
        running.turn(1)
        peer.sendall(data[cut:])
        peer.shutdown(socket.SHUT_WR)
        for answer in re.findall(b"[^;]*;?", running.read_to_end(peer))[:-1]:
            protocol.parse_reply(answer[:-1])
            assert answer.endswith(b";")
    running.turn_until(lambda: not running.server.sessions)


# ---- pieces, pipelining, fairness, slow readers


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11])
def test_messages_in_small_pieces_are_answered_the_same(running, size):
    data = init(10, 5) + b"RECV,0;RECV,1;RECV,2;RECV,1;" + b"RECV,0;" * 5 + b"FIN;"
    peer = running.connect()
    for i in range(0, len(data), size):
        peer.sendall(data[i:i + size])
        running.turn(1)
    first, second = nums(10, 5)
    assert running.read_to_end(peer) == (
        b"ACK;" + first + second + b"ERR,Invalid batch index requested: 2;" + second + first * 5 + fac(10))


@pytest.mark.parametrize("cut", range(1, 8))
def test_run_of_requests_cut_anywhere_is_answered_whole(running, cut):
    peer = running.connect()
    running.say(peer, init(10, 5), b"ACK;")
    first, second = nums(10, 5)
    running.say(peer, b"RECV,0;RECV,1;" + b"RECV,0;"[:cut], first + second + (first if cut == 7 else b""))
    running.say(peer, b"RECV,0;"[cut:] + b"RECV,1;RECV," if cut < 7 else b"RECV,1;RECV,",
                (first if cut < 7 else b"") + second)
    running.say(peer, b"1;FIN;", second + fac(10))


@pytest.mark.parametrize("messages_most", [1, 2, 7, MESSAGES_MOST])
@pytest.mark.parametrize("n, batch", [(1000, 5), (40, 40)])
def test_more_requests_than_a_turn_answers_are_answered_in_order(start, messages_most, n, batch):
    running = start(messages_most=messages_most)
    batches = nums(n, batch)
    generator = random.Random(1)
    count = min(2000, 300 * messages_most)
    order = [generator.randrange(len(batches) + 1) if generator.random() < 0.01
             else generator.randrange(len(batches))
             for _ in range(count)]
    answers = [batches[i] if i < len(batches) else error(protocol.NO_SUCH_BATCH % i) for i in order]
    peer = running.connect()
    peer.sendall(init(n, batch) + b"".join(b"RECV,%d;" % i for i in order) + b"FIN;")
    assert running.read_to_end(peer) == b"ACK;" + b"".join(answers) + fac(n)


@pytest.mark.parametrize("messages", [b"RECV,0;", b"RECV,9;", b"RECV,0;RECV,9;"],
                         ids=["valid", "invalid", "mixed"])
def test_client_with_many_requests_does_not_delay_the_others(start, messages):
    running = start(messages_most=10)
    flooder, session = running.connected()
    running.say(flooder, init(5, 5), b"ACK;")
    flooder.sendall(messages * (7000 // len(messages)))
    running.turn_until(lambda: session.stream.input)
    other = running.connect()
    other.sendall(init(5, 5, OTHER_ID) + b"RECV,0;FIN;")
    turns = running.loop.turns
    assert running.read_to_end(other) == b"ACK;" + nums(5, 5, OTHER_ID)[0] + fac(5, OTHER_ID)
    assert running.loop.turns - turns < 20
    left = len(session.stream.input) // 7
    assert left > 500, "the flood ended too early for this test"
    running.turn(10)
    assert left - 100 <= len(session.stream.input) // 7 < left, "not at most ten a turn"


def test_client_that_does_not_read_is_read_no_more_and_costs_little(start, loop):
    loop.output_high = 32 * 1024
    running = start()
    peer = running.connect(receive_buffer=4096)
    running.turn_until(lambda: running.server.sessions)
    session, = running.server.sessions
    n, count = 5000, 2000
    answer = nums(n, n)[0]
    requests = memoryview(init(n, n) + count * b"RECV,0;" + b"FIN;")
    peer.setblocking(False)
    requests = requests[peer.send(requests):]
    running.turn_until(lambda: not session.stream.interest & READ)
    running.turn(10)
    assert -session.stream.room() <= len(answer) + 32 * 1024
    assert len(session.stream.input) <= loop.read_size
    assert not session.stream.interest & READ
    assert len(requests) == 0
    answers = running.read_to_end(peer)
    assert len(answers) == 4 + count * len(answer) + 37
    assert answers == b"ACK;" + count * answer + fac(n)


@pytest.mark.parametrize("batch", [20, 100, 400])
def test_unsent_output_of_small_batches_is_bounded_without_spinning(start, loop, batch):
    loop.output_high = 16 * 1024
    running = start()
    peer = running.connect(receive_buffer=16 * 1024)
    running.turn_until(lambda: running.server.sessions)
    session, = running.server.sessions
    answer = nums(batch, batch)[0]
    running.say(peer, init(batch, batch), b"ACK;")
    count = 6 * 1024 * 1024 // len(answer)  # more than the kernel takes
    requests = memoryview(count * b"RECV,0;")
    answers = bytearray()
    peer.setblocking(False)

    def send():
        nonlocal requests
        with contextlib.suppress(BlockingIOError):
            while requests:
                requests = requests[peer.send(requests[:16 * 1024]):]

    def receive():
        with contextlib.suppress(BlockingIOError):
            while True:
                answers.extend(peer.recv(64 * 1024))

    unsent = 0
    while unsent < 20:  # turns in a row: the kernel takes no more
        send()
        running.turn(1)
        assert -session.stream.room() <= loop.output_high + len(answer), "unsent output is over its bound"
        assert len(session.stream.input) <= 2 * loop.read_size
        assert requests or session.stream.input, "all was answered, so this shows nothing"
        unsent = unsent + 1 if session.stream.room() < loop.output_high else 0
    assert not loop.poller.selector.real.select(0), "the loop spins: a watched file is ready and not handled"
    running.turn_until(lambda: (send(), receive()) and len(answers) >= count * len(answer))
    assert answers == count * answer


@pytest.mark.parametrize("batch", [100, 5000])
@pytest.mark.parametrize("message", [b"RECV,0;", b"RECV,00;RECV,9;"], ids=["valid", "mixed"])
def test_client_that_asks_in_pieces_without_reading_is_read_no_more(start, loop, batch, message):
    loop.output_high = 16 * 1024
    running = start()
    peer = running.connect(receive_buffer=16 * 1024)
    running.turn_until(lambda: running.server.sessions)
    session, = running.server.sessions
    answer = nums(batch, batch)[0]
    if message != b"RECV,0;":
        answer += error(protocol.NO_SUCH_BATCH % 9)
    running.say(peer, init(batch, batch), b"ACK;")
    # requests at a time: enough to exceed the mark at once
    portion = 20000 // len(answer) + 1
    count = 0
    for _ in range(2000):
        peer.sendall(portion * message)
        count += portion
        running.turn(1)
        assert -session.stream.room() <= portion * len(answer) + loop.output_high
        if not session.stream.interest & READ:
            break
    assert not session.stream.interest & READ
    for _ in range(5):
        peer.sendall(portion * message)
        count += portion
        running.turn(1)
        assert -session.stream.room() <= portion * len(answer) + loop.output_high
    assert not loop.poller.selector.real.select(0), "the loop spins: a watched file is ready and not handled"
    assert running.read_from(peer, count * len(answer)) == count * answer
    running.say(peer, b"FIN;", fac(batch))


# ---- the session's time


SESSIONS = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"INI", id="unfinished"),
    pytest.param(init(), id="open"),
    pytest.param(init() + b"RECV,0;RECV", id="in-the-middle"),
    pytest.param(init(65535, 65535) + 200 * b"RECV,0;", id="unread"),
]


@pytest.mark.parametrize("data", SESSIONS)
def test_session_is_reset_a_second_after_its_accept_whatever_it_does(start, loop, clock, data):
    running = start(session_timeout=1.0)
    peer, session = running.connected()
    accepted = clock()
    peer.sendall(data)
    running.turn(5)
    clock.advance(0.999)
    running.turn(2)
    assert session in running.server.sessions
    clock.advance(0.001)
    running.turn_until(lambda: session not in running.server.sessions)
    assert clock() == pytest.approx(accepted + 1)
    with pytest.raises(ConnectionResetError):
        while peer.recv(65536):
            pass


def test_client_that_is_busy_does_not_get_a_longer_session(start, loop, clock):
    running = start(session_timeout=1.0)
    peer, session = running.connected()
    accepted = clock()
    running.say(peer, init(10, 5), b"ACK;")
    with pytest.raises(ConnectionResetError):
        for _ in range(20):
            running.say(peer, b"RECV,1;", nums(10, 5)[1])
            clock.advance(0.125)
    assert accepted + 1 <= clock() <= accepted + 1.125


def test_client_that_floods_does_not_get_a_longer_session(start, loop, clock):
    running = start(session_timeout=1.0, messages_most=10)
    peer, session = running.connected()
    peer.sendall(init(10, 5) + b"RECV,1;" * 8000)
    running.turn(20)
    assert session in running.server.sessions
    clock.advance(1)
    running.turn(2)
    assert session not in running.server.sessions


def test_client_that_ended_its_input_does_not_get_a_longer_session(start, loop, clock):
    running = start(session_timeout=1.0)
    peer, session = running.connected()
    peer.sendall(init(65535, 65535) + 200 * b"RECV,0;")
    peer.shutdown(socket.SHUT_WR)
    running.turn(5)
    assert session in running.server.sessions
    clock.advance(1)
    running.turn(2)
    assert session not in running.server.sessions


def test_every_session_has_its_own_timeout(start, loop, clock):
    running = start(session_timeout=1.0)
    first, first_session = running.connected()
    clock.advance(0.6)
    second, second_session = running.connected()
    clock.advance(0.5)
    running.turn(2)
    assert running.server.sessions == {second_session}
    running.say(second, init(), b"ACK;")
    clock.advance(0.5)
    running.turn(2)
    assert not running.server.sessions


def test_sequence_can_be_continued_after_the_session_timeout(start, loop, clock):
    running = start(session_timeout=1.0)
    peer, session = running.connected()
    running.say(peer, init(10, 5) + b"RECV,0;", b"ACK;" + nums(10, 5)[0])
    running.pass_time(1)
    assert not running.server.sessions
    assert running.all_that_is_said(cont() + b"RECV,1;FIN;") == b"ACK;" + nums(10, 5)[1] + fac(10)


def test_ended_session_leaves_no_timer(start, loop):
    running = start(session_timeout=1.0)
    timers = loop.timers()
    for i in range(20):
        peer, session = running.connected()
        running.hang_up(peer)
    assert loop.timers() == timers


# ---- retention


def test_sequence_is_forgotten_after_its_retention_and_no_sooner(running, clock):
    assert running.all_that_is_said(init() + b"FIN;") == b"ACK;" + fac(5)
    running.turn_until(lambda: not running.server.sessions)
    running.pass_time(RETENTION - 0.01)
    assert running.all_that_is_said(cont() + b"FIN;") == b"ACK;" + fac(5)
    running.turn_until(lambda: not running.server.sessions)
    running.pass_time(RETENTION - 0.01)
    assert running.forgotten == []
    running.pass_time(0.02)
    assert running.forgotten == [ID]
    assert running.all_that_is_said(cont()) == b"ERR,Client-id: %b does not exist;" % ID
    assert running.all_that_is_said(init(7, 7) + b"FIN;") == b"ACK;" + fac(7)


def test_sequence_is_not_forgotten_while_a_connection_uses_it(running):
    peer = running.connect()
    running.say(peer, init(10, 5), b"ACK;")
    running.pass_time(3 * RETENTION)
    running.say(peer, b"RECV,1;FIN;", nums(10, 5)[1] + fac(10))
    assert running.forgotten == []


def test_retention_begins_when_the_last_connection_ends(running):
    first, second = running.connect(), running.connect()
    running.say(first, init(10, 5), b"ACK;")
    running.say(second, cont(), b"ACK;")
    running.say(first, b"RECV,0;", nums(10, 5)[0])
    running.say(second, b"RECV,1;", nums(10, 5)[1])
    running.hang_up(first)
    running.pass_time(2 * RETENTION)
    assert running.forgotten == []
    running.say(second, b"RECV,0;", nums(10, 5)[0])
    running.hang_up(second)
    running.pass_time(RETENTION - 1)
    assert running.forgotten == []
    running.pass_time(1.1)
    assert running.forgotten == [ID]


def test_refused_connections_do_not_prolong_the_retention(running):
    assert running.all_that_is_said(init() + b"FIN;") == b"ACK;" + fac(5)
    running.turn_until(lambda: not running.server.sessions)
    running.pass_time(RETENTION - 1)
    assert running.all_that_is_said(init()) == b"ERR,%b already exist;" % ID
    assert one_error(running.all_that_is_said(b"NOPE;"))
    running.pass_time(1.1)
    assert running.forgotten == [ID]


# ---- a store that takes its time


def test_requests_before_a_slow_store_answers_are_answered_in_order(slow):
    peer, session = slow.connected()
    peer.sendall(init(10, 5) + b"RECV,0;RECV,1;FIN;")
    slow.turn_until(lambda: slow.store.answers)
    slow.turn(3)
    with pytest.raises(BlockingIOError):
        peer.setblocking(False)
        peer.recv(1)
    slow.store.answer()
    assert slow.read_to_end(peer) == b"ACK;" + b"".join(nums(10, 5)) + fac(10)
    peer.close()
    slow.turn_until(lambda: not slow.server.sessions)
    assert slow.store.released == [ID]


def test_client_is_not_read_until_a_slow_store_answers(slow):
    peer, session = slow.connected()
    peer.sendall(cont())
    slow.turn_until(lambda: slow.store.answers)
    peer.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(100):
            peer.send(b"RECV,0;" * 10000)
            slow.turn(1)
    assert len(slow.store.answers) == 1
    assert not session.stream.interest & READ
    assert len(session.stream.input) <= slow.loop.read_size


def test_slow_refusal_reaches_the_client_and_ends_the_connection(slow):
    peer, session = slow.connected()
    peer.sendall(cont() + b"RECV,0;FIN;")
    slow.turn_until(lambda: slow.store.answers)
    slow.store.answer()
    assert slow.read_to_end(peer) == b"ERR,Client-id: %b does not exist;" % ID
    assert slow.store.released == []


def test_client_that_ended_its_input_gets_the_answer_of_a_slow_store(slow):
    peer, session = slow.connected()
    peer.sendall(init(10, 5) + b"RECV,0;FIN;")
    peer.shutdown(socket.SHUT_WR)
    slow.turn_until(lambda: slow.store.answers)
    slow.turn(2)
    slow.store.answer()
    assert slow.read_to_end(peer) == b"ACK;" + nums(10, 5)[0] + fac(10)


@pytest.mark.parametrize("message", [init(), init() + b"RECV,0;", init() + b"FIN;"])
def test_record_that_comes_after_its_client_has_gone_is_released(slow, message):
    peer, session = slow.connected()
    peer.sendall(message)
    slow.turn_until(lambda: slow.store.answers)
    peer.close()
    slow.pass_time(1.01)
    assert not slow.server.sessions
    assert slow.store.released == []
    slow.store.answer()
    assert slow.store.released == [ID]
    slow.pass_time(RETENTION + 0.1)
    assert slow.forgotten == [ID]


def test_refusal_that_comes_after_its_client_has_gone_is_ignored(slow):
    peer, session = slow.connected()
    peer.sendall(cont())
    slow.turn_until(lambda: slow.store.answers)
    slow.pass_time(1.01)
    assert not slow.server.sessions
    slow.store.answer()
    assert slow.store.released == []


@pytest.mark.parametrize("message", [init(), cont()])
@pytest.mark.parametrize("refusal, what",
                         [(FAILED, protocol.STORE_FAILED), (FULL, protocol.TOO_MANY_CLIENTS)])
@pytest.mark.parametrize("wrap", [lambda store: store, SlowStore], ids=["at-once", "later"])
def test_failing_store_is_an_error_for_the_client(start, message, refusal, what, wrap):
    running = start(store=wrap(RefusingStore(refusal)))
    peer = running.connect()
    peer.sendall(message + b"RECV,0;")
    if wrap is SlowStore:
        running.turn_until(lambda: running.store.answers)
        running.store.answer()
    assert running.read_to_end(peer) == error(what)


def test_full_store_refuses_new_clients_and_serves_known_ones(start, loop):
    running = start(store=MemoryStore(loop, lambda client_id: None, clients_most=1))
    assert running.all_that_is_said(init() + b"FIN;") == b"ACK;" + fac(5)
    assert running.all_that_is_said(init(5, 5, OTHER_ID)) == error(protocol.TOO_MANY_CLIENTS)
    assert running.all_that_is_said(cont() + b"FIN;") == b"ACK;" + fac(5)
    running.turn_until(lambda: not running.server.sessions)
    running.pass_time(RETENTION + 0.1)
    assert running.all_that_is_said(init(5, 5, OTHER_ID) + b"FIN;") == b"ACK;" + fac(5, OTHER_ID)


# ---- how many at once


def test_connection_over_the_limit_is_told_and_a_freed_place_is_reused(start):
    running = start(connections_most=2)
    first, second = running.connected()[0], running.connected()[0]
    assert running.all_that_is_said(b"") == error(protocol.TOO_MANY_CONNECTIONS)
    assert running.all_that_is_said(init(5, 5, OTHER_ID)) == error(protocol.TOO_MANY_CONNECTIONS)
    running.say(first, init(), b"ACK;")
    running.hang_up(second)
    assert running.all_that_is_said(init(5, 5, OTHER_ID) + b"FIN;") == b"ACK;" + fac(5, OTHER_ID)
    running.say(first, b"FIN;", fac(5))


def test_error_over_the_limit_arrives_though_the_client_sends_much(start):
    running = start(connections_most=1)
    running.connected()
    assert running.all_that_is_said(b"x" * 2 * 1024 * 1024) == error(protocol.TOO_MANY_CONNECTIONS)


def test_connections_being_refused_are_bounded_and_do_not_stay(start, loop):
    running = start(connections_most=1)
    first = running.connected()[0]
    peers = [running.connect() for _ in range(FAREWELLS_MOST + 10)]
    refused = [running.read_to_end(peer) for peer in peers]
    assert sorted(refused) == 10 * [b""] + FAREWELLS_MOST * [error(protocol.TOO_MANY_CONNECTIONS)]
    assert len(running.server.farewells) == FAREWELLS_MOST
    assert len(running.server.sessions) == 1
    running.pass_time(LINGER_SECONDS + 0.01)
    assert not running.server.farewells
    assert running.all_that_is_said(b"") == error(protocol.TOO_MANY_CONNECTIONS)
    running.say(first, init(), b"ACK;")


def test_refused_connections_that_hang_up_free_their_place_at_once(start, loop):
    running = start(connections_most=1)
    running.connected()
    for _ in range(FAREWELLS_MOST + 5):
        peer = running.connect()
        assert running.read_to_end(peer) == error(protocol.TOO_MANY_CONNECTIONS)
        peer.close()
        running.turn_until(lambda: not running.server.farewells)


def test_limit_of_connections_follows_from_the_limit_of_files(loop):
    assert 1 <= connections_limit(loop) <= serving.CONNECTIONS_MOST
    loop.poller.file_limit = 100
    assert 1 <= connections_limit(loop) < 100
    loop.poller.file_limit = 5
    assert connections_limit(loop) == 1


def test_many_clients_at_once_each_get_their_own_sequence(running):
    ids = [b"%08x-0000-0000-0000-000000000000" % i for i in range(40)]
    peers = [running.connect() for _ in ids]
    for client_id, peer in zip(ids, peers):
        peer.sendall(init(10, 3, client_id))
    for round in range(4):
        for client_id, peer in zip(ids, peers):
            expected = nums(10, 3, client_id)[round - 1] if round else b"ACK;"
            assert running.read_from(peer, len(expected)) == expected
            peer.sendall(b"RECV,%d;" % round)
    for client_id, peer in zip(ids, peers):
        peer.sendall(b"FIN;")
        assert running.read_to_end(peer) == nums(10, 3, client_id)[3] + fac(10, client_id)


def test_client_that_resets_its_connection_does_not_disturb_the_others(running):
    other = running.connect()
    running.say(other, init(10, 5, OTHER_ID), b"ACK;")
    for i in range(5):
        peer, session = running.connected()
        peer.sendall((cont() if i else init(10, 5)) + b"RECV,0;" * 50)
        running.turn(2)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        running.hang_up(peer)
    running.say(other, b"RECV,1;FIN;", nums(10, 5, OTHER_ID)[1] + fac(10, OTHER_ID))
    assert running.all_that_is_said(cont() + b"FIN;") == b"ACK;" + fac(10)


# ---- draining


def refused(address):
    with socket.socket() as peer:
        peer.settimeout(5)
        return peer.connect_ex(address) != 0


def test_drained_server_without_clients_ends_at_once(start, loop, clock):
    running = start(session_timeout=1.0)
    began = clock()
    loop.call_later(0.1, running.server.drain)
    loop.run()
    assert clock() == pytest.approx(began + 0.1)
    assert refused(running.address)


def test_drained_server_lets_running_sessions_end(start, loop, clock):
    running = start(session_timeout=1.0)
    peer, session = running.connected()
    running.say(peer, init(10, 5) + b"RECV,0;", b"ACK;" + nums(10, 5)[0])
    began = clock()
    loop.call_later(0.1, running.server.drain)
    loop.call_later(0.2, lambda: (peer.sendall(b"RECV,1;FIN;"), peer.shutdown(socket.SHUT_WR)))
    loop.run()
    assert clock() == pytest.approx(began + 0.2)
    assert running.read_to_end(peer) == nums(10, 5)[1] + fac(10)
    assert refused(running.address)


def test_drained_server_waits_for_the_session_timeout_at_most(start, loop, clock):
    running = start(session_timeout=1.0)
    peer, session = running.connected()
    running.say(peer, init(), b"ACK;")
    accepted = clock()
    loop.call_later(0.1, running.server.drain)
    loop.run()
    assert clock() == pytest.approx(accepted + 1)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_server_drained_twice_ends_at_once(start, loop, clock):
    running = start(session_timeout=1.0)
    peer, session = running.connected()
    began = clock()
    loop.call_later(0.1, running.server.drain)
    loop.call_later(0.3, running.server.drain)
    loop.run()
    assert clock() == pytest.approx(began + 0.3)
    assert session in running.server.sessions
    running.server.close()
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_drained_server_waits_for_connections_being_refused(start, loop, clock):
    running = start(session_timeout=1.0, connections_most=1)
    first, session = running.connected()
    over = running.connect()
    running.turn_until(lambda: running.server.farewells)
    running.hang_up(first)
    began = clock()
    loop.call_later(0.1, running.server.drain)
    loop.call_later(0.2, over.close)
    loop.run()
    assert clock() == pytest.approx(began + 0.2)


def test_drained_server_waits_until_a_slow_store_has_its_records_back(slow, loop, clock):
    peer, session = slow.connected()
    peer.sendall(init())
    slow.turn_until(lambda: slow.store.answers)
    slow.store.answer()
    assert slow.read_from(peer, 4) == b"ACK;"
    slow.store.slow_release = True
    began = clock()
    loop.call_later(0.1, slow.server.drain)
    loop.call_later(0.2, peer.close)
    loop.call_later(3.0, slow.store.answer)
    loop.run()
    assert clock() == pytest.approx(began + 3)


def test_drained_server_releases_the_record_of_a_client_that_left(slow, loop, clock):
    """In a shared store nobody else would release it."""
    slow.server.session_timeout = 0.2
    peer, session = slow.connected()
    peer.sendall(init())
    slow.turn_until(lambda: slow.store.answers)
    loop.call_later(0.1, slow.server.drain)
    loop.call_later(0.4, slow.store.answer)  # the session is over at 0.2
    loop.run()
    assert slow.store.released == [ID]


def test_closed_server_resets_its_clients_and_leaves_nothing_behind(start, loop):
    running = start(session_timeout=1.0, connections_most=3)
    peers = [running.connected()[0] for _ in range(3)]
    running.connect()
    running.turn_until(lambda: running.server.farewells)
    running.say(peers[0], init(65535, 65535), b"ACK;")
    peers[0].sendall(b"RECV,0;" * 50)
    running.turn(3)
    running.server.close()
    for peer in peers:
        with pytest.raises(ConnectionResetError):
            while peer.recv(65536):
                pass
    assert not running.server.sessions and not running.server.farewells
    assert len(loop.poller.selector.get_map()) == 0
    assert refused(running.address)


# ---- end of input


@pytest.mark.parametrize("n, batch, count", [(10, 5, 1), (10, 5, 5000), (65535, 65535, 20)])
def test_client_that_has_ended_its_input_gets_all_its_answers(running, n, batch, count):
    peer = running.connect()
    data = init(n, batch) + count * b"RECV,0;"
    running.send(peer, data)
    peer.shutdown(socket.SHUT_WR)
    assert running.read_to_end(peer) == b"ACK;" + count * nums(n, batch)[0]
    running.turn_until(lambda: not running.server.sessions)


def test_client_that_ends_without_a_message_is_closed(running):
    peer, session = running.connected()
    peer.shutdown(socket.SHUT_WR)
    assert running.read_to_end(peer) == b""
    assert not running.server.sessions


def test_nothing_is_answered_after_the_checksum(running):
    assert running.all_that_is_said(init() + b"FIN;FIN;RECV,0;NOPE;") == b"ACK;" + fac(5)


def test_checksum_arrives_though_the_client_goes_on_sending(running):
    assert running.all_that_is_said(init() + b"FIN;" + b"x" * 1024 * 1024) == b"ACK;" + fac(5)


# ---- numbers


def test_test_mode_derives_a_sequence_from_its_id(start):
    answers = [start().all_that_is_said(init(50, 50) + b"RECV,0;FIN;") for _ in range(2)]
    assert answers[0] == answers[1] == b"ACK;" + nums(50, 50)[0] + fac(50)


def test_sequence_does_not_follow_from_its_id_without_test_mode(start):
    answers = [start(test_mode=False).all_that_is_said(init(50, 50) + b"RECV,0;FIN;") for _ in range(2)]
    assert len({nums(50, 50)[0], answers[0][4:-37], answers[1][4:-37]}) == 3


def test_sequence_is_the_same_while_kept_without_test_mode(start):
    running = start(test_mode=False)
    first = running.all_that_is_said(init(50, 5) + b"".join(b"RECV,%d;" % i for i in range(10)) + b"FIN;")
    assert running.all_that_is_said(cont() + b"".join(b"RECV,%d;" % i for i in range(10)) + b"FIN;") == first
    batches = [protocol.parse_reply(message)[1] for message in first.split(b";")[1:-2]]
    numbers = [number for batch in batches for number in batch]
    assert len(numbers) == 50 and len(set(numbers)) > 10
    assert first.endswith(b"FAC,%b;" % hashlib.new("md5", str(numbers).encode()).hexdigest().encode())


def test_reused_id_gets_another_sequence_without_test_mode(start):
    running = start(test_mode=False)
    first = running.all_that_is_said(init(50, 50) + b"RECV,0;FIN;")
    running.turn_until(lambda: not running.server.sessions)
    running.pass_time(RETENTION + 0.1)
    assert running.all_that_is_said(init(50, 50) + b"RECV,0;FIN;") != first


def test_drawn_numbers_are_bounded_and_drawn_again_the_same(start, monkeypatch, traced):
    size = 65535  # a byte a number
    monkeypatch.setattr(serving, "DRAWN_MOST", 3 * size)
    running = start(test_mode=False)
    ids = [b"%08x-0000-0000-0000-000000000000" % i for i in range(12)]
    peers = [running.connect() for _ in ids]
    requests = b"".join(b"RECV,%d;" % (block * BLOCK // 5) for block in range(256))  # one in each block
    answers = []
    grown = traced()
    for client_id, peer in zip(ids, peers):
        peer.sendall(init(65535, 5, client_id) + requests)
        answers.append(running.read_messages(peer, 257))
    running.turn(3)
    assert grown() < 5 * size, "12 sequences were drawn, of which 3 may stay"
    assert len(set(answers)) == 12
    for answer, client_id, peer in zip(answers, ids, peers):
        peer.sendall(requests + b"FIN;")
        again = running.read_to_end(peer)
        assert again.startswith(answer[4:])
        assert running.all_that_is_said(cont(client_id) + b"FIN;") == b"ACK;" + again[-37:]


def test_replies_are_kept_in_bounded_memory_and_the_same_for_all_clients(start, monkeypatch, traced):
    n, batch, clients = 1000, 5, 12
    monkeypatch.setattr(serving, "KEPT_BYTES_MOST", 3 * kept_bytes(n, batch))
    running = start()
    ids = [b"%08x-0000-0000-0000-000000000000" % i for i in range(clients)]
    peers = [running.connect() for _ in ids]
    for client_id, peer in zip(ids, peers):
        running.say(peer, init(n, batch, client_id), b"ACK;")
    expected = [nums(n, batch, client_id) for client_id in ids]
    grown = traced()
    for first, second, third in [(0, 199, 100), (7, 8, 9)]:
        for texts, peer in zip(expected, peers):
            running.say(peer, b"RECV,%d;RECV,%d;" % (first, second), texts[first] + texts[second])
            running.say(peer, b"RECV,%d;" % third, texts[third])
        assert 2 * kept_bytes(n, batch) < grown() < 6 * kept_bytes(n, batch), "3 of 12 may be kept"
    running.hang_up(peers[0])
    running.say(running.connect(), cont(ids[0]) + b"RECV,1;RECV,2;", b"ACK;" + b"".join(expected[0][1:3]))
    assert grown() < 6 * kept_bytes(n, batch)


@pytest.mark.parametrize("n, batch", [(10, 5), (1000, 5), (5000, 5), (20000, 5)])
def test_reply_to_a_single_request_does_not_wait_for_the_end_of_the_turn(start, monkeypatch, n, batch):
    running = start(test_mode=False)
    peer = running.connect()
    running.say(peer, init(n, batch), b"ACK;")
    monkeypatch.setattr(Stream, "write", None)
    peer.sendall(b"RECV,1;")
    assert running.read_from(peer, 4) == b"NUM,"


def test_replies_are_kept_only_while_there_are_few_sessions(start, monkeypatch):
    monkeypatch.setattr(serving, "KEEPING_MOST", 1)
    running = start()
    assert running.server.may_keep(1000)
    running.say(running.connect(), init(1000, 5), b"ACK;")
    assert running.server.may_keep(1000)
    second = running.connect()
    running.say(second, init(1000, 5, OTHER_ID), b"ACK;")
    assert not running.server.may_keep(1000)
    running.say(second, b"RECV,3;RECV,4;", b"".join(nums(1000, 5, OTHER_ID)[3:5]))


def test_sequence_evicted_in_the_middle_of_a_run_is_drawn_again(start, monkeypatch):
    monkeypatch.setattr(serving, "DRAWN_MOST", 1)
    running = start()
    first, second = running.connect(), running.connect()
    running.say(first, init(2000, 5), b"ACK;")
    running.say(second, init(2000, 5, OTHER_ID), b"ACK;")
    for i in range(5):
        running.say(first, b"RECV,%d;RECV,399;" % i, nums(2000, 5)[i] + nums(2000, 5)[399])
        running.say(second, b"RECV,%d;RECV,399;" % i,
                    nums(2000, 5, OTHER_ID)[i] + nums(2000, 5, OTHER_ID)[399])
    running.say(first, b"FIN;", fac(2000))
    running.say(second, b"FIN;", fac(2000, OTHER_ID))


def test_others_are_answered_between_the_steps_of_a_checksum(start):
    running = start(test_mode=False)
    long, short = running.connect(), running.connect()
    running.say(long, init(65535, 5), b"ACK;")
    running.say(short, init(5, 5, OTHER_ID), b"ACK;")
    long.sendall(b"FIN;")
    running.turn_until(lambda: any(session.phase is FINISHING for session in running.server.sessions))
    begin = running.loop.turns
    answered = 0
    while any(session.phase is FINISHING for session in running.server.sessions):
        short.sendall(b"RECV,0;")
        running.read_messages(short, 1)
        answered += 1
    assert running.loop.turns - begin >= 65535 // CHECKSUM_STEP
    assert answered > 2
    assert len(running.read_to_end(long)) == len(b"FAC,;") + 32


def test_requests_before_fin_are_answered_before_its_checksum(start):
    answer = start().all_that_is_said(init(20000, 5) + b"RECV,3;RECV,9999;FIN;RECV,0;")
    assert answer == (b"ACK;" + nums(20000, 5)[3] + b"ERR,Invalid batch index requested: 9999;" + fac(20000))


def test_client_gone_before_its_checksum_costs_nothing_more(start):
    running = start()
    peer = running.connect()
    running.say(peer, init(65535, 5), b"ACK;")
    peer.sendall(b"FIN;")
    running.turn_until(lambda: any(session.phase is FINISHING for session in running.server.sessions))
    session, = running.server.sessions
    session.stream.abort()
    running.turn(3)
    assert running.loop.timers() == 1, "only the store's"
    assert running.all_that_is_said(cont() + b"FIN;") == b"ACK;" + fac(65535)


def test_time_that_is_up_before_the_checksum_ends_a_session_once(start, clock):
    running = start(session_timeout=1.0)
    peer = running.connect()
    running.say(peer, init(65535, 5), b"ACK;")
    peer.sendall(b"FIN;")
    running.turn_until(lambda: any(session.phase is FINISHING for session in running.server.sessions))
    clock.advance(1.1)
    running.turn(3)
    assert not running.server.sessions
    assert running.loop.timers() == 1, "only the store's"
    assert running.all_that_is_said(cont() + b"FIN;") == b"ACK;" + fac(65535)


def test_drawn_numbers_go_with_their_connection(start, traced):
    running = start()
    grown = traced()
    for i in range(5):
        peer, session = running.connected()
        del session
        client_id = b"%08x-0000-0000-0000-000000000000" % i
        draw = random.Random(client_id.decode()).randint
        running.say(peer, init(65535, 3, client_id) + b"RECV,0;",
                    b"ACK;" + num([draw(0, 100) for _ in range(3)]))
        running.hang_up(peer)
    assert grown() < 2 * 65535


# ---- listening and telling


def test_port_in_use_is_an_error_and_leaves_nothing_behind(start, loop):
    running = start()
    second = Server(loop, MemoryStore(loop, None))
    with pytest.raises(OSError):
        second.listen("127.0.0.1", running.address[1])
    second.close()
    assert running.all_that_is_said(init() + b"FIN;") == b"ACK;" + fac(5)


@pytest.mark.parametrize("address, text", [
    (("127.0.0.1", 5000), "127.0.0.1:5000"), (("::1", 5000, 0, 0), "[::1]:5000"), (("", 0), ":0")])
def test_address_is_printed_in_the_usual_notation(address, text):
    assert endpoint(address) == text


def test_log_lines_are_plain_text_that_names_the_client(running):
    running.all_that_is_said(init() + b"FIN;")
    running.all_that_is_said(b"\x1b[2J\r\n;")
    running.all_that_is_said(b"INIT,\x1b[2J\r\n,5,5;")
    running.turn_until(lambda: not running.server.sessions)
    assert [line for line in running.told if " %s: " % ID[:8].decode() in line]
    assert not [line for line in running.told if ID.decode() in line]
    assert all(line.isprintable() for line in running.told)


def test_server_runs_without_a_log(loop, start):
    running = start()
    running.server.tell = None
    assert running.all_that_is_said(init() + b"FIN;") == b"ACK;" + fac(5)
    assert one_error(running.all_that_is_said(b"NOPE;"))


def test_record_holds_the_seed_and_not_the_sequence(start, loop):
    records = []

    class Watched(MemoryStore):
        def create(self, client_id, record, done):
            records.append(record)
            super().create(client_id, record, done)

    running = start(store=Watched(loop, lambda client_id: None))
    running.all_that_is_said(init(65535, 9) + b"RECV,0;FIN;")
    assert records == [Record(ID.decode(), 65535, 9)]


def test_connections_do_not_leak_files(running, open_files):
    before = open_files()
    for data in (init() + b"FIN;", b"NOPE;", cont() + b"RECV,9;FIN;", cont() + b"RECV") * 5:
        peer = running.connect()
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        running.read_to_end(peer)
        peer.close()
    running.turn_until(lambda: not (running.server.sessions or running.server.farewells))
    assert open_files() == before


# ---- under an operator


def tick(loop, clock, seconds):
    """Makes each reading of the loop's clock take so long."""

    def read():
        clock.advance(seconds)
        return clock()

    loop.clock = read


def test_requests_for_many_numbers_at_once_are_spread_over_turns(start, loop, clock):
    running = start()
    peers = [running.connected()[0] for _ in range(12)]
    for i, peer in enumerate(peers):
        running.say(peer, init(60000, 60000, b"%08x-0000-0000-0000-000000000000" % i), b"ACK;")
    tick(loop, clock, WORK_SECONDS / 4)
    drawn = []
    plain, running.server.drawn = running.server.drawn, lambda session, size: (drawn.append(loop.turns),
                                                                               plain(session, size))
    for peer in peers:
        peer.sendall(b"RECV,0;")
    running.turn_until(lambda: len(drawn) == len(peers))
    assert max(drawn.count(turn) for turn in set(drawn)) <= 5


@pytest.mark.parametrize("n, batch", [(10, 5), (1000, 5), (5000, 5), (20000, 5)])
def test_a_cheap_request_is_answered_while_costly_ones_wait(start, loop, clock, n, batch):
    running = start(test_mode=False)
    peers = [running.connected()[0] for _ in range(12)]
    for i, peer in enumerate(peers):
        running.say(peer, init(60000, 60000, b"%08x-0000-0000-0000-000000000000" % i), b"ACK;")
    cheap, _ = running.connected()
    running.say(cheap, init(n, batch), b"ACK;")
    tick(loop, clock, WORK_SECONDS)
    for peer in peers:
        peer.sendall(b"RECV,0;")
    running.turn(1)  # those that still wait come first in each later turn, and spend its budget
    cheap.sendall(b"RECV,0;")
    before = loop.turns
    assert running.read_from(cheap, 4) == b"NUM,"
    assert loop.turns - before <= 2


def test_init_without_random_bytes_is_refused_and_the_next_is_served(start, monkeypatch):
    running = start(test_mode=False)

    def fail(size):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", fail)
        assert running.all_that_is_said(init()) == b"ERR,The sequence cannot be kept now;"
    assert running.all_that_is_said(init() + b"FIN;").startswith(b"ACK;FAC,")
    assert running.server.figures.errors["failed"] == 1


def test_answers_arrive_although_the_client_says_more_after_fin(running):
    peer = running.connect()
    peer.sendall(init() + b"RECV,0;FIN;")
    running.turn_until(lambda: running.server.figures.messages == 3)
    running.turn(3)
    peer.sendall(b"abc")
    running.turn(3)
    peer.shutdown(socket.SHUT_WR)
    assert running.read_to_end(peer) == b"ACK;" + nums(5, 5)[0] + fac(5)


def test_no_memory_for_a_session_costs_that_connection(running, monkeypatch):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(serving, "Session", fail)
        assert running.read_to_end(running.connect()) == b""
    assert running.server.figures.refused["no_memory"] == 1
    running.loop.poller.selector.clock.advance(1)
    assert running.all_that_is_said(init() + b"FIN;") == b"ACK;" + fac(5)


def test_a_connection_that_cannot_be_watched_is_refused(running, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(serving, "Session", fail)
        assert running.read_to_end(running.connect()) == b""
    assert running.server.figures.refused["not_watched"] == 1
    assert running.all_that_is_said(init() + b"FIN;") == b"ACK;" + fac(5)


def test_a_record_for_whose_release_there_is_no_memory_is_released_later(running, monkeypatch):
    plain = running.store.release

    def fail(*_):
        raise MemoryError

    peer, session = running.connected()
    running.say(peer, init(), b"ACK;")
    monkeypatch.setattr(running.store, "release", fail)
    peer.close()
    running.turn_until(lambda: not running.server.sessions)
    assert running.server.requests.in_flight == 1
    monkeypatch.setattr(running.store, "release", plain)
    running.loop.call_later(RETENTION + 5, running.loop.stop)
    running.loop.run()
    assert running.forgotten == [ID]
    assert running.server.requests.in_flight == 0


def test_a_refusal_without_memory_leaves_nothing(start, monkeypatch):
    def fail(*_):
        raise MemoryError

    running = start(connections_most=1)
    running.connected()
    with monkeypatch.context() as patch:
        patch.setattr("numseq.stream.Stream.write", fail)
        assert running.read_to_end(running.connect()) == b""
    assert not running.server.farewells


@pytest.mark.parametrize("place, name", [(protocol, "encode"), (Server, "finished")])
def test_a_session_without_memory_for_its_end_leaves_nothing(running, monkeypatch, place, name):
    def fail(*_):
        raise MemoryError

    peer, session = running.connected()
    running.say(peer, init(), b"ACK;")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        peer.sendall(b"FIN;")
        running.turn_until(lambda: running.loop.errors)
    del running.loop.errors[:]
    assert not (running.server.sessions or running.server.farewells)
    running.loop.call_later(RETENTION + 5, running.loop.stop)
    running.loop.run()
    assert running.forgotten == [ID]


def test_a_record_is_released_although_its_address_cannot_be_counted(start, monkeypatch):
    def fail(*_):
        raise MemoryError

    running = start(connections_per_address=5)
    peer, session = running.connected()
    running.say(peer, init(), b"ACK;")
    with monkeypatch.context() as patch:
        patch.setattr(serving, "address_key", fail)
        peer.close()
        running.turn_until(lambda: running.loop.errors)
    del running.loop.errors[:]
    running.loop.call_later(RETENTION + 5, running.loop.stop)
    running.loop.run()
    assert running.forgotten == [ID]


def test_a_store_that_fails_makes_the_server_unhealthy_until_it_answers(start, clock):
    running = start(store=RefusingStore(FAILED))
    assert running.server.trouble() is None
    running.all_that_is_said(init())
    assert running.server.trouble() == "the store does not answer"
    running.store.refusal = FULL
    running.all_that_is_said(init())
    assert running.server.trouble() is None


def test_the_same_complaint_is_written_once_a_minute(loop, clock):
    said = []
    server = Server(loop, MemoryStore(loop, None), complain=said.append)
    for _ in range(5):
        server.complain("no files")
    server.complain("no memory")
    clock.advance(61)
    loop.call_later(0, loop.stop)
    loop.run()
    server.complain("no files")
    assert said == ["no files", "no memory", "no files"]


def test_an_exception_nobody_expected_is_counted_and_told(loop):
    said = []
    server = Server(loop, MemoryStore(loop, None), complain=said.append)
    for error in MemoryError(), OSError(errno.EIO, "bad"), ValueError("x"):
        server.report(error)
    assert said == ["out of memory: connections are dropped",
                    "the system refuses: [Errno %d] bad" % errno.EIO,
                    "internal error: ValueError"]
    assert server.figures.internal_errors == 3


@pytest.mark.parametrize("address, key", [
    (("127.0.0.1", 1), "127.0.0.1"),
    (("2001:db8:1:2:3:4:5:6", 1, 0, 0), bytes.fromhex("20010db800010002")),
    (("2001:db8:1:2::", 1, 0, 0), bytes.fromhex("20010db800010002")),
    (("fe80::1%eth0", 1, 0, 2), bytes.fromhex("fe80000000000000")),
    (("::ffff:10.0.0.1", 1, 0, 0), b"\0" * 10 + b"\xff\xff\x0a\0\0\1")])
def test_a_limit_per_address_counts_an_ipv6_network_as_one(address, key):
    assert address_key(address) == key


def test_an_address_with_a_scope_is_written_with_it():
    name = socket.if_nameindex()[0]
    assert endpoint(("fe80::1", 5000, 0, name[0])) == "[fe80::1%%%s]:5000" % name[1]
    assert endpoint(("fe80::1%eth9", 5000, 0, 1)) == "[fe80::1%eth9]:5000"
    assert endpoint(("fe80::1", 5000, 0, 99999)) == "[fe80::1%99999]:5000"
    assert endpoint(None) == "-"


def test_a_session_whose_time_is_up_while_its_checksum_is_made_ends_once(start, loop, clock):
    running = start(session_timeout=1.0)
    peer, session = running.connected()
    running.say(peer, init(65535, 5), b"ACK;")
    peer.sendall(b"FIN;")
    running.turn_until(lambda: session.phase == "finishing")
    clock.advance(1)
    running.turn_until(lambda: not running.server.sessions)
    running.turn(20)
    assert running.server.figures.ended["time is up"] == 1 and running.server.figures.ended["finished"] == 0
    assert running.all_that_is_said(cont() + b"FIN;") == b"ACK;" + fac(65535)


def test_an_unexpected_exception_is_told_with_its_place_and_no_id():
    try:
        {}[ID]
    except KeyError as error:
        assert re.fullmatch(r"KeyError in test_server\.py, line \d+", where_raised(error))
