"""Streams and listeners: sockets on the loop."""

import errno
import os
import socket
import struct
import subprocess

import pytest

from helpers import (ANY_PORT, Recorder, boom, echo, fill, interest, is_idle, needs_ipv6, read_from,
                     read_to_end, reset, run_python, spy_on, turn_until)
from numseq import addresses
from numseq import loop as reactor
from numseq import stream as module
from numseq.connect import connect
from numseq.loop import READ, REST_SECONDS, WRITE
from numseq.stream import Stream, listen

lesson = pytest.mark.lesson
SMALL = 4096  # kernel buffers that fill at once


# ---- accepting


class MadeQueue:
    """A queue of waiting connections: a call returns or raises the next outcome, or would block."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        outcome = self.outcomes.pop(0) if self.outcomes else errno.EAGAIN
        if isinstance(outcome, int):
            raise OSError(outcome, os.strerror(outcome))
        return outcome


class MadeConnection:
    """What is accepted; the policy does nothing to it."""


@lesson(1)
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_listener_rests_when_files_or_buffers_run_out(code):
    rests = []
    first = MadeConnection()
    waiting = MadeQueue(first, code, MadeConnection())
    assert list(module.accept(waiting, lambda error: rests.append(error.errno))) == [first]
    assert (rests, waiting.calls) == ([code], 2)


@lesson(2)
@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN])
def test_connection_gone_before_accept_does_not_stop_accepting(code):
    good = MadeConnection()
    waiting = MadeQueue(code, code, good)
    assert list(module.accept(waiting, boom)) == [good]


@lesson(3)
def test_accepts_and_failures_per_turn_are_bounded():
    """Failed accepts count as well."""
    crowd = MadeQueue(*[MadeConnection() for _ in range(1000)])
    assert 16 <= len(list(module.accept(crowd, boom))) <= 256
    failing = MadeQueue(*[errno.ECONNABORTED] * 1000)
    rests = []
    assert list(module.accept(failing, rests.append)) == []
    assert failing.calls <= 256 and [error.errno for error in rests] == [errno.ECONNABORTED]


@lesson(3)
def test_two_hundred_connects_leave_time_for_a_connected_client(loop, listener, client_of, make_pair):
    handler = Recorder(echo)
    _, peer = make_pair(handler)
    for _ in range(200):
        client_of(listener)
    begin = loop.turns
    while len(listener.accepted) < 200:
        served = handler.events.count("received")
        peer.send(b"x")
        loop.turn()
        assert handler.events.count("received") == served + 1
        assert loop.turns - begin < 10
    assert loop.turns - begin > 1


@lesson(1)
def test_listener_without_files_does_not_spin():
    """All files of the process are in use; later one is closed."""
    turns, waiting, served = run_python("""
import os, resource, socket
from numseq.loop import Loop
from numseq.stream import listen

loop = Loop()
accepted = []
listener, = listen(loop, "127.0.0.1", 0, accepted.append)
client = socket.create_connection(listener.address)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
loop.call_later(0.5, loop.stop)
loop.run()
print(loop.turns, len(accepted))
os.close(taken.pop())
loop.call_later(5, loop.stop)
while not accepted and loop.timers():
    loop.turn()
print(len(accepted))
""", stdin=subprocess.DEVNULL).split()
    assert int(turns) < 20
    assert (waiting, served) == ("0", "1")


@lesson(1)
def test_resting_listener_is_unwatched_and_returns_by_its_timer(loop, clock, listener, client_of,
                                                                monkeypatch):
    """A listener closed while it rests does not return."""
    starving = [True]
    plain_accept = module.accept

    def accept(take, exhausted):
        if starving:
            exhausted(MemoryError())
            return iter(())
        return plain_accept(take, exhausted)

    monkeypatch.setattr(module, "accept", accept)
    client_of(listener)
    turn_until(loop, lambda: not interest(loop, listener))
    assert loop.timers() == 1
    starving.clear()
    clock.advance(REST_SECONDS)
    turn_until(loop, lambda: listener.accepted)
    starving.append(True)
    client_of(listener)
    turn_until(loop, lambda: not interest(loop, listener))
    listener.close()
    assert loop.timers() == 0


@lesson(28)
def test_closed_listener_refuses_connections_and_keeps_accepted_ones(loop, listener, client_of):
    client = client_of(listener)
    turn_until(loop, lambda: listener.accepted)
    stream = Stream(loop, listener.accepted[0], Recorder(echo))
    listener.close()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        client_of(listener)
    client.send(b"x")
    assert read_from(loop, client, 1) == b"x"
    stream.abort()


def test_listener_closed_in_accepted_accepts_no_more(loop, client_of):
    accepted = []

    def only_one(connection):
        accepted.append(connection)
        listener.close()

    listener, = listen(loop, *ANY_PORT, accepted=only_one)
    client_of(listener)
    client_of(listener)
    loop.turn()
    assert is_idle(loop)
    assert len(accepted) == 1
    accepted[0].close()


@lesson(25)
def test_restart_succeeds_with_connections_in_time_wait(loop, listener, client_of):
    client = client_of(listener)
    turn_until(loop, lambda: listener.accepted)
    listener.accepted[0].close()  # who closes first keeps the port in TIME_WAIT
    assert client.recv(1) == b""
    client.close()
    listener.close()
    again, = listen(loop, listener.address[0], listener.address[1], boom)
    again.close()


def test_second_listener_on_a_port_is_refused(loop, listener):
    with pytest.raises(OSError) as caught:
        listen(loop, listener.address[0], listener.address[1], boom)
    assert caught.value.errno == errno.EADDRINUSE


@lesson(26)
@needs_ipv6
def test_both_families_share_the_port(loop, client_of):
    """Port 0 gives the IPv4 and the IPv6 socket the same free port."""
    accepted = []
    listeners = listen(loop, "", 0, accepted.append)
    assert len(listeners) == 2
    assert len({listener.address[1] for listener in listeners}) == 1
    port = listeners[0].address[1]
    for host, family in ("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6):
        with socket.create_connection((host, port), timeout=10):
            turn_until(loop, lambda: accepted)
            connection = accepted.pop()
            assert connection.family == family
            connection.close()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("missing", [0, 1])
def test_family_that_the_kernel_lacks_is_left_out(loop, monkeypatch, missing):
    plain = module.listening_socket
    calls = []

    def without_one(family, address, *options):
        calls.append(family)
        if len(calls) - 1 == missing:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return plain(family, address)

    monkeypatch.setattr(module, "listening_socket", without_one)
    monkeypatch.setattr(addresses, "resolve", lambda *_: [(socket.AF_INET, ANY_PORT)] * 2)
    listener, = listen(loop, "localhost", 0, boom)
    listener.close()


def test_address_that_cannot_be_bound_is_an_error(loop, monkeypatch):
    """Sockets that were bound before the failure are closed."""
    taken = socket.socket()
    taken.bind(ANY_PORT)
    taken.listen(1)
    monkeypatch.setattr(addresses, "resolve",
                        lambda *_: [(socket.AF_INET, ANY_PORT)] + [(socket.AF_INET, taken.getsockname())])
    with taken, pytest.raises(OSError):
        listen(loop, "localhost", taken.getsockname()[1], boom)
    assert len(loop.poller.selector.get_map()) == 0


def test_host_that_is_not_ascii_needs_no_codec(loop):
    with pytest.raises(OSError) as caught:
        listen(loop, "b\xfccher", 0, boom)
    handler = Recorder()
    connect(loop, "b\xfccher", 1, handler)
    turn_until(loop, lambda: handler.events)
    assert caught.value.errno == handler.error.errno == errno.EINVAL


@lesson(27)
def test_small_answers_do_not_wait_for_an_acknowledgement(loop, listener, client_of):
    """TCP_NODELAY is set at both ends; accepted sockets inherit it from the listener or get it set."""
    handler = Recorder()
    connect(loop, listener.address[0], listener.address[1], handler)
    turn_until(loop, lambda: listener.accepted and handler.stream)
    for file in listener.accepted[0].fileno(), handler.stream.fileno():
        with socket.socket(fileno=os.dup(file)) as end:
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_blocking(file)


# ---- streams: output


@lesson(4)
def test_writability_is_not_watched_when_all_was_sent(loop, pair):
    stream, peer = pair
    stream.write(b"hello")
    loop.turn()
    assert interest(loop, stream) == READ
    assert peer.recv(100) == b"hello"
    assert is_idle(loop)


@lesson(4)
def test_writability_is_watched_only_while_output_remains(loop, make_pair):
    stream, peer = make_pair(buffers=SMALL)
    data = bytes(range(256)) * 1000
    stream.write(data[:200000])
    stream.write(data[200000:])
    loop.turn()
    assert interest(loop, stream) & WRITE
    assert is_idle(loop)  # the kernel is full: waiting for it costs nothing
    assert read_from(loop, peer, len(data)) == data
    turn_until(loop, lambda: interest(loop, stream) == READ)
    assert is_idle(loop)


def test_writing_nothing_makes_no_system_call_and_no_event(loop, pair):
    stream, peer = pair
    stream.write(b"")
    assert not loop.attention
    stream.write(b"x")
    loop.turn()
    assert interest(loop, stream) == READ
    assert peer.recv(10) == b"x"


@lesson(27)
def test_writes_of_one_turn_go_out_in_one_send(loop, make_pair):
    """Writes in a handler go out in one send after it; a write from a timer goes out in another."""
    handler = Recorder(lambda stream: [stream.write(b"%d" % i) for i in range(5)] and None)
    stream, peer = make_pair(handler)
    spy = spy_on(stream)
    peer.send(b"?")
    loop.call_later(0, lambda: stream.write(b"!"))
    turn_until(loop, lambda: handler.events and not loop.attention)
    assert spy.sent == [b"01234", b"!"]
    assert peer.recv(10) == b"01234!"


def test_reply_sent_at_once_has_left_before_the_turn_ends(loop, make_pair):
    sent = []

    def reply(stream):
        stream.send(stream.input)
        stream.input = b""
        sent.append(peer.recv(100))

    stream, peer = make_pair(Recorder(reply))
    peer.send(b"?")
    turn_until(loop, lambda: sent)
    assert sent == [b"?"]
    assert not loop.attention
    assert interest(loop, stream) == READ


@pytest.mark.parametrize("count", [reactor.AT_ONCE_MOST, reactor.AT_ONCE_MOST + 1])
def test_single_replies_wait_for_each_other_in_a_crowded_turn(loop, make_pair, count):
    peers, sent = {}, []

    def reply(stream):
        stream.send(b"!")
        stream.input = b""
        try:
            peers[stream].setblocking(False)
            sent.append(peers[stream].recv(1))
        except BlockingIOError:
            pass

    for _ in range(count):
        stream, peer = make_pair(Recorder(reply))
        peers[stream] = peer
    for peer in peers.values():
        peer.send(b"?")
    loop.turn()
    assert len(sent) == (count if count <= reactor.AT_ONCE_MOST else 0)
    assert sent or all(peer.recv(1) == b"!" for peer in peers.values())


def test_reply_sent_at_once_goes_behind_what_was_written(loop, pair):
    stream, peer = pair
    stream.write(b"1")
    stream.send(b"2")
    stream.write(b"3")
    loop.turn()
    assert peer.recv(100) == b"123"


def test_rest_of_a_reply_sent_at_once_follows_when_the_peer_reads(loop, make_pair):
    stream, peer = make_pair(buffers=SMALL)
    data = bytes(range(256)) * 1000
    stream.send(data)
    assert 0 < loop.output_high - stream.room() < len(data)
    stream.write(b"end")
    assert read_from(loop, peer, len(data) + 3) == data + b"end"
    turn_until(loop, lambda: interest(loop, stream) == READ)
    assert is_idle(loop)


def test_reply_that_the_kernel_does_not_take_is_sent_later(loop, make_pair):
    stream, peer = make_pair(buffers=SMALL)
    filled = fill(stream._socket)
    stream.send(b"reply")
    assert stream.room() == loop.output_high - 5
    assert read_from(loop, peer, filled + 5).endswith(b"xreply")


def test_nothing_is_sent_at_once_after_the_last_words(loop, pair):
    stream, peer = pair
    stream.write(b"bye")
    stream.close()
    stream.send(b"more")
    loop.turn()  # all is sent, and the stream lingers
    spy = spy_on(stream)
    stream.send(b"more")
    assert spy.sent == []
    assert read_to_end(loop, peer) == b"bye"


def test_answers_of_many_streams_go_out_before_the_turn_ends(loop, make_pair):
    """At most SETTLE_AFTER streams wait to be flushed, so that unsent answers take bounded memory."""
    waiting = []

    def reply(stream):
        waiting.append(len(loop.attention))
        stream.write(stream.input)
        stream.input = b""

    peers = [make_pair(Recorder(reply))[1] for _ in range(3 * reactor.SETTLE_AFTER)]
    for peer in peers:
        peer.send(b"?")
    loop.turn()
    assert len(waiting) == len(peers)
    assert max(waiting) == reactor.SETTLE_AFTER - 1
    assert all(peer.recv(10) == b"?" for peer in peers)


def test_written_buffer_may_be_changed_afterwards(loop, make_pair):
    stream, peer = make_pair(buffers=SMALL)
    data = bytearray(b"a" * 200000)
    stream.write(data)
    data[:] = b"b" * len(data)
    assert b"b" not in read_from(loop, peer, 200000)


@lesson(17)
def test_output_sent_in_one_turn_is_bounded(loop, make_pair):
    stream, peer = make_pair()
    stream.write(b"x" * 30000000)
    took = []

    def drained():
        before = stream.room()
        try:
            while peer.recv(1 << 20, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            pass
        loop.turn()
        took.append(stream.room() - before)
        return stream.room() == loop.output_high

    peer.setblocking(False)
    turn_until(loop, drained)
    assert sum(took) > 10 * module.WRITE_SIZE
    assert max(took) <= module.WRITE_SIZE * 2  # `drained` is a turn, and so is what it is called from


def unread_requests(loop, stream, peer, requests):
    """Sends one-byte requests and reads no answers; returns the least room() seen."""
    rooms = []
    for _ in range(requests):
        peer.send(b"?")
        loop.turn()
        rooms.append(stream.room())
    return min(rooms)


@lesson(19)
def test_client_that_never_reads_takes_bounded_memory(loop, make_pair):
    answer = b"x" * 30000
    handler = Recorder(lambda stream: stream.write(answer * len(stream.input))
                       or setattr(stream, "input", b""))
    stream, peer = make_pair(handler, buffers=SMALL)
    least = unread_requests(loop, stream, peer, 200)
    assert least >= -len(answer)
    assert least < 0  # it did come to that
    assert interest(loop, stream) == WRITE
    assert is_idle(loop)
    assert read_from(loop, peer, 200 * len(answer)) == 200 * answer


@lesson(19)
def test_reading_stops_at_the_high_mark_and_resumes_at_the_low_one(loop, make_pair):
    handler = Recorder(lambda stream: stream.write(b"x" * 30000) or setattr(stream, "input", b""))
    stream, peer = make_pair(handler, buffers=SMALL)
    unread_requests(loop, stream, peer, 50)
    assert not interest(loop, stream) & READ
    while not interest(loop, stream) & READ:
        unsent = loop.output_high - stream.room()
        read_from(loop, peer, 1000)
    assert unsent < loop.output_high / 2


@lesson(10)
@lesson(19)
@pytest.mark.parametrize("size", [30000, 3000000])
def test_client_that_never_reads_does_not_make_its_handler_spin(loop, make_pair, size):
    """Input left in the buffer, and input in the kernel, wait until the client reads."""
    answers = []

    def answer_one(stream):
        answers.append(len(stream.input))
        stream.input = stream.input[1:]
        stream.write(b"x" * size)
        if stream.input:
            stream.resume()

    stream, peer = make_pair(Recorder(answer_one), buffers=SMALL)
    peer.send(b"?" * 20)
    turn_until(loop, lambda: loop.output_high - stream.room() > loop.output_high / 4)
    peer.send(b"?")
    assert is_idle(loop)
    assert stream.room() >= -size
    assert len(read_from(loop, peer, 21 * size)) == 21 * size
    turn_until(loop, lambda: sum(answers[-1:]) == 1)


# ---- streams: input


@lesson(17)
def test_flooder_does_not_delay_the_others(loop, make_pair):
    """A turn reads a bounded number of its bytes, and the others are served in the same turn."""
    sizes = []

    def swallow(stream):
        sizes.append((loop.turns, len(stream.input)))
        stream.input = b""

    _, flooder = make_pair(Recorder(swallow))
    others = [make_pair(Recorder(echo))[1] for _ in range(3)]
    for _ in range(10):
        fill(flooder)
        for other in others:
            other.send(b"x")
        loop.turn()
        for other in others:
            assert other.recv(10) == b"x"
    assert len({turn for turn, _ in sizes}) == len(sizes) == 10
    assert max(size for _, size in sizes) <= loop.read_size


@lesson(18)
def test_messages_left_in_the_buffer_need_no_more_input(loop, clock, make_pair):
    """The selector does not report them."""
    def one_a_turn(stream):
        turns.append(loop.turns)
        stream.write(bytes(stream.input[:1]))
        stream.input = stream.input[1:]
        if stream.input:
            stream.resume()

    turns = []
    begin = clock()
    _, peer = make_pair(Recorder(one_a_turn))
    peer.send(b"abcdefghij")
    for _ in range(10):
        loop.turn()
    assert peer.recv(100) == b"abcdefghij"
    assert clock() == begin  # nor was there a wait
    assert len(set(turns)) == 10
    assert is_idle(loop)
    assert len(turns) == 10


@lesson(5)
@lesson(18)
def test_messages_left_in_the_buffer_survive_the_end_of_input(loop, make_pair):
    def one_a_turn(stream):
        stream.write(bytes(stream.input[:1]))
        stream.input = stream.input[1:]
        if stream.input:
            stream.resume()
        elif stream.ended:
            stream.close()

    _, peer = make_pair(Recorder(one_a_turn))
    peer.send(b"abcdefghij")
    peer.shutdown(socket.SHUT_WR)
    assert read_to_end(loop, peer) == b"abcdefghij"


def test_new_input_stays_behind_what_is_left_in_the_buffer(loop, make_pair):
    def one_a_turn(stream):
        seen.append(bytes(stream.input[:1]))
        stream.input = stream.input[1:]
        if stream.input:
            stream.resume()

    seen = []
    _, peer = make_pair(Recorder(one_a_turn))
    peer.send(b"abc")
    loop.turn()
    peer.send(b"def")
    turn_until(loop, lambda: len(seen) == 6)
    assert b"".join(seen) == b"abcdef"


@lesson(9)
@lesson(18)
def test_stream_closed_before_its_resumption_is_not_called(loop, make_pair):
    handlers = [Recorder(lambda stream: stream.resume()), Recorder(lambda stream: stream.resume())]
    pairs = [make_pair(handler) for handler in handlers]
    for _, peer in pairs:
        peer.send(b"x")
    loop.turn()
    for stream, _ in pairs:
        stream.abort()
    assert is_idle(loop)
    for handler in handlers:
        assert handler.events == ["received", "closed"]


def test_paused_stream_is_not_read_until_resumed(loop, make_pair):
    handler = Recorder(lambda stream: stream.pause())
    stream, peer = make_pair(handler)
    peer.send(b"ab")
    turn_until(loop, lambda: handler.events)
    peer.send(b"cd")
    assert is_idle(loop)
    assert (handler.events, bytes(stream.input)) == (["received"], b"ab")
    handler.reply = None
    stream.resume()
    stream.resume()
    turn_until(loop, lambda: handler.data == b"abcd")
    assert is_idle(loop)


@lesson(20)
def test_endless_message_takes_bounded_memory(loop, make_pair):
    """The stream bounds its input, whatever the handler does."""
    sizes = []
    handler = Recorder(lambda stream: sizes.append(len(stream.input)))
    stream, peer = make_pair(handler)

    def flood():
        try:
            fill(peer)
        except OSError:  # the reset
            return True
        return False

    turn_until(loop, flood)
    assert sum(sizes) > module.INPUT_LIMIT
    assert max(sizes) <= module.INPUT_LIMIT + loop.read_size
    assert handler.closed_times == 1
    assert isinstance(loop.errors.pop(), ValueError)


@lesson(21)
def test_single_bytes_are_added_without_copying_the_buffer(loop, make_pair):
    """The buffer grows in place, so the cost of many small reads stays linear."""
    buffers = []

    def keep(stream):
        if not buffers or buffers[-1] is not stream.input:
            buffers.append(stream.input)

    handler = Recorder(keep)
    stream, peer = make_pair(handler)
    loop.read_size = 1
    data = bytes(range(256)) * 200
    peer.sendall(data)
    turn_until(loop, lambda: len(stream.input) == len(data), turns=len(data) + 10)
    assert handler.events.count("received") == len(data)
    assert len(buffers) <= 2
    assert bytes(stream.input) == data


# ---- streams: the end


@lesson(5)
def test_answer_is_sent_whole_after_the_end_of_input(loop, make_pair):
    """The peer has only closed its direction: the output is flushed, without a busy turn."""
    answer = bytes(range(256)) * 20000

    def answer_at_end(stream):
        if stream.ended:
            stream.write(answer)
            stream.close()

    handler = Recorder(answer_at_end)
    _, peer = make_pair(handler)
    peer.send(b"x")
    peer.shutdown(socket.SHUT_WR)
    assert read_to_end(loop, peer) == answer
    turn_until(loop, lambda: handler.closed_times)
    assert handler.error is None


@lesson(5)
def test_end_of_input_does_not_spin(loop, make_pair):
    """At the end of input a socket stays readable."""
    handler = Recorder()
    stream, peer = make_pair(handler)
    peer.shutdown(socket.SHUT_WR)
    turn_until(loop, lambda: stream.ended)
    assert is_idle(loop)
    assert handler.events == ["received"]
    stream.write(b"late")
    loop.turn()
    assert peer.recv(10) == b"late"
    stream.close()
    assert handler.closed_times == 1
    assert peer.recv(10) == b""


@lesson(5)
def test_reset_after_the_end_of_input_is_reported(loop, make_pair):
    """The rest of the answer was still to be sent."""
    handler = Recorder(lambda stream: stream.write(b"x" * 1000000))
    stream, peer = make_pair(handler, buffers=SMALL)
    peer.shutdown(socket.SHUT_WR)
    turn_until(loop, lambda: stream.ended)
    reset(peer)
    turn_until(loop, lambda: not interest(loop, stream))
    assert is_idle(loop)
    assert handler.events == ["received", "closed"]


@lesson(5)
def test_failed_send_after_the_end_of_input_is_reported(loop, make_pair):
    """No later read would report it."""
    handler = Recorder(lambda stream: stream.pause())
    stream, peer = make_pair(handler)
    peer.shutdown(socket.SHUT_WR)
    turn_until(loop, lambda: stream.ended)
    reset(peer)
    handler.reply = lambda stream: stream.write(b"answer")
    stream.resume()
    assert is_idle(loop)
    assert handler.events == ["received", "received", "closed"]
    assert isinstance(handler.error, OSError)


def close_with_error(stream):
    stream.write(b"ERR,too much;")
    stream.close()


@lesson(6)
@pytest.mark.parametrize("then", ["end", "more"])
def test_last_message_arrives_though_input_is_unread(loop, make_pair, then):
    """Closing a socket with unread input makes the kernel send a reset, which destroys data in flight."""
    handler = Recorder(close_with_error)
    _, peer = make_pair(handler)
    flood = fill(peer)
    assert flood > 1000000
    if then == "end":
        peer.shutdown(socket.SHUT_WR)
    turn_until(loop, lambda: "received" in handler.events)
    for _ in range(5 if then == "more" else 0):
        flood += fill(peer)
        loop.turn()
    assert read_to_end(loop, peer) == b"ERR,too much;"
    peer.close()
    turn_until(loop, lambda: handler.closed_times)
    assert handler.events == ["received", "closed"]


@lesson(6)
def test_last_message_arrives_behind_a_long_answer(loop, make_pair):
    """close() flushes all output, while input still arrives."""
    answer = b"x" * 3000000

    def last_answer(stream):
        stream.write(answer)
        stream.close()

    _, peer = make_pair(Recorder(last_answer))
    fill(peer)
    assert read_to_end(loop, peer) == answer


@lesson(6)
def test_closing_stream_waits_for_its_peer_until_a_deadline(loop, clock, pair, handler):
    stream, peer = pair
    stream.close()
    turn_until(loop, lambda: loop.turns > 5)
    assert handler.events == []
    assert peer.recv(10) == b""
    begin = clock()
    assert is_idle(loop)
    assert handler.closed_times == 1
    assert loop.timers() == 0
    assert loop.poller.selector.timeouts[-3] <= module.LINGER_SECONDS < clock() - begin


@lesson(6)
def test_closing_stream_discards_a_bounded_amount(loop, make_pair, monkeypatch):
    monkeypatch.setattr(module, "LINGER_BYTES", 1000000)
    handler = Recorder()
    stream, peer = make_pair(handler)
    stream.close()

    def flood():
        try:
            flooded.append(fill(peer))
        except OSError:
            return True
        return False

    flooded = []
    turn_until(loop, flood)
    assert handler.closed_times == 1
    assert loop.timers() == 0


@lesson(6)
def test_closing_stream_hands_on_no_input(loop, pair, handler):
    stream, peer = pair
    stream.close()
    peer.send(b"more")
    peer.close()
    turn_until(loop, lambda: handler.closed_times)
    assert handler.events == ["closed"]


def test_close_with_nothing_more_expected_does_not_wait(loop, make_pair):
    """With `expect_more=False` the socket is closed once all is sent."""
    handler = Recorder()
    stream, peer = make_pair(handler)
    stream.write(b"bye")
    stream.close(expect_more=False)
    loop.turn()
    assert handler.closed_times == 1
    assert peer.recv(10) == b"bye"
    assert peer.recv(10) == b""
    assert loop.timers() == 0


@pytest.mark.parametrize("expect_more", [False, True])
@pytest.mark.skipif(not module.MORE_FOLLOWS, reason="needs MSG_MORE and tcp_info of Linux")
def test_last_answer_and_the_end_share_a_segment(loop, make_pair, expect_more):
    """Linux puts the data and the FIN in one segment if the send says that more follows."""

    def segments_in():
        info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
        return struct.unpack_from("=I", info, 140)[0]  # tcpi_segs_in

    stream, peer = make_pair()
    before = segments_in()
    stream.write(b"bye")
    stream.close(expect_more)
    loop.turn()
    assert peer.recv(10) == b"bye"
    assert peer.recv(10) == b""
    assert segments_in() - before == 1


def test_close_with_nothing_more_expected_sends_all_output(loop, make_pair):
    answer = b"x" * 3000000
    handler = Recorder()
    stream, peer = make_pair(handler)
    stream.write(answer)
    stream.close(expect_more=False)
    assert read_to_end(loop, peer) == answer
    assert handler.closed_times == 1


@lesson(6)
def test_close_waits_for_the_peer_when_input_is_left(loop, make_pair):
    """Input that the handler left may mean that more is coming."""
    def last_words(stream):
        stream.write(b"bye")
        stream.close(expect_more=False)

    _, peer = make_pair(Recorder(last_words))
    fill(peer)
    assert read_to_end(loop, peer) == b"bye"


@lesson(7)
@pytest.mark.parametrize("send", [Stream.write, Stream.send])
def test_error_sent_by_the_peer_is_read_when_a_send_fails(loop, make_pair, send):
    """The peer closed with our data unread, so the send fails, but its ERR arrived before."""
    handler = Recorder()
    stream, peer = make_pair(handler)
    stream.write(b"upload")
    loop.turn()
    peer.send(b"ERR,no;")
    peer.close()
    spy = spy_on(stream)
    for _ in range(3):  # the peer resets at the first, the second fails
        send(stream, b"more")
        stream.settle()
    assert spy.errors
    turn_until(loop, lambda: handler.closed_times)
    assert handler.data == b"ERR,no;"
    assert handler.error.errno in (errno.EPIPE, errno.ECONNRESET)
    assert handler.events == ["received", "closed"]


@lesson(7)
def test_error_sent_by_the_peer_is_read_when_a_flush_fails(loop, make_pair):
    handler = Recorder()
    stream, peer = make_pair(handler, buffers=SMALL)
    stream.write(b"x" * 1000000)
    peer.send(b"ERR,no;")
    peer.close()
    turn_until(loop, lambda: handler.closed_times)
    assert handler.data == b"ERR,no;"
    assert isinstance(handler.error, OSError)
    assert stream.room() == loop.output_high


@lesson(8)
def test_stale_event_never_reaches_the_new_owner_of_a_file_number(loop, connected_sockets):
    """Both are readable in one turn; the first closes the other, and a new one gets its file number."""
    new_handler = Recorder()
    streams, new = [], []

    def replace_other(stream):
        stream.input = b""
        other, = set(streams) - {stream}
        number = other.fileno()
        other.abort()
        connection, _ = connected_sockets()
        for each in connection, _:
            if each.fileno() == number:
                each.setblocking(False)
                new.append(Stream(loop, each, new_handler))
        assert new

    handlers = []
    for _ in range(2):
        connection, peer = connected_sockets()
        connection.setblocking(False)
        handlers.append(Recorder(replace_other))
        streams.append(Stream(loop, connection, handlers[-1]))
        peer.send(b"x")
    loop.turn()
    assert loop.errors == []
    assert sorted(handler.events for handler in handlers) == [["closed"], ["received"]]
    assert new_handler.events == []
    assert is_idle(loop)
    assert new_handler.events == []


@lesson(9)
@pytest.mark.parametrize("first", ["close", "abort"])
@pytest.mark.parametrize("second", ["close", "abort"])
def test_closed_is_called_once(loop, pair, handler, first, second):
    stream, peer = pair
    getattr(stream, first)()
    getattr(stream, second)()
    peer.close()
    turn_until(loop, lambda: handler.closed_times)
    getattr(stream, first)()
    getattr(stream, second)()
    stream.resume()
    stream.write(b"x")
    assert is_idle(loop)
    assert handler.events == ["closed"]
    assert loop.timers() == 0


@lesson(9)
@pytest.mark.parametrize("way", ["close", "abort"])
@pytest.mark.parametrize("then", [None, "resume", "pause"])
def test_stream_closed_by_its_own_handler_is_left_alone(loop, make_pair, way, then):
    def close(stream):
        stream.write(b"x" * 1000)
        getattr(stream, way)()
        stream.write(b"y")
        if then:
            getattr(stream, then)()

    handler = Recorder(close)
    stream, peer = make_pair(handler)
    peer.send(b"x")
    peer.shutdown(socket.SHUT_WR)
    turn_until(loop, lambda: handler.closed_times)
    assert is_idle(loop)
    assert handler.events == ["received", "closed"]
    if way == "close":
        assert read_to_end(loop, peer) == b"x" * 1000


@lesson(9)
def test_socket_is_unregistered_before_it_is_closed(loop, pair, monkeypatch):
    """After the close its number would be -1, and a copy in a forked process would stay watched."""
    stream, peer = pair
    numbers = []
    plain = loop.poller.selector.unregister
    monkeypatch.setattr(loop.poller.selector, "unregister",
                        lambda watched: numbers.append(watched.fileno()) or plain(watched))
    stream.abort()
    assert numbers and numbers[0] >= 0


def test_abort_resets_the_connection_and_passes_its_error_on(loop, pair, handler):
    stream, peer = pair
    error = OSError(errno.ETIMEDOUT, "late")
    stream.abort(error)
    assert handler.error is error
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_reset_is_reported(loop, pair, handler):
    stream, peer = pair
    reset(peer)
    turn_until(loop, lambda: handler.closed_times)
    assert handler.error.errno == errno.ECONNRESET
    assert handler.events == ["closed"]


@lesson(10)
@pytest.mark.parametrize("owed", [0, 1000000])
def test_reset_of_a_paused_connection_does_not_spin(loop, make_pair, owed):
    """HUP and ERR are reported for every registered file. The reset is reported after the pause."""
    handler = Recorder(lambda stream: stream.pause())
    stream, peer = make_pair(handler, buffers=SMALL)
    peer.send(b"x")
    turn_until(loop, lambda: handler.events)
    stream.write(b"x" * owed)
    reset(peer)
    assert is_idle(loop)
    assert handler.events == ["received"]
    handler.reply = None
    stream.resume()
    turn_until(loop, lambda: handler.closed_times)
    assert handler.events == ["received", "received", "closed"]
    assert isinstance(handler.error, OSError)


@lesson(19)
@lesson(10)
def test_reset_of_a_connection_with_a_full_output_does_not_spin(loop, make_pair):
    """It is not read while its output is over the high mark."""
    handler = Recorder()
    stream, peer = make_pair(handler, buffers=SMALL)
    stream.write(b"x" * (loop.output_high * 2))
    loop.turn()
    assert interest(loop, stream) == WRITE
    reset(peer)
    turn_until(loop, lambda: handler.closed_times)
    assert is_idle(loop)
    assert isinstance(handler.error, OSError)


def test_deadline_of_lingering_is_no_reset_where_all_is_sent(loop, clock, pair):
    """What the kernel has still reaches a peer that takes its time."""
    stream, peer = pair
    stream.write(b"last words")
    stream.close()
    turn_until(loop, lambda: stream.state is module.LINGERING and not loop.attention)
    clock.advance(module.LINGER_SECONDS)
    turn_until(loop, lambda: stream.state is module.CLOSED)
    assert (peer.recv(100), peer.recv(100)) == (b"last words", b"")
