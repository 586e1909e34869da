"""A simulated network: the real client and the real server on one fake clock, and a link between them.

    with Network(Link(Way(delay=0.3), Way(delay=0.3, rate=9600)), seed=1) as network:
        outcome = network.fetch(1000)

Minutes of simulated time take milliseconds. The same seed gives the same link and the same jitter of the
client's pauses, so the same figures. TCP is modelled after Linux: the handshake with its retransmissions;
segments of up to MSS bytes, at least one per send; an initial congestion window of ten segments, slow start,
congestion avoidance and halving after a loss; cumulative and selective acknowledgements, fast retransmit and
retransmission timeouts; the receive window; FIN; RST, which drops unsent data in the sender's kernel, while
data that has arrived can still be read. Not modelled: delayed acknowledgements, tail loss probes, and
computing time.
"""

import bisect
import collections
import contextlib
import errno
import heapq
import itertools
import os
import random
import selectors
import socket as real_socket

from numseq import addresses, connect, protocol, stream, transfer
from numseq.errors import FetchError
from numseq.journal import Journal
from numseq.loop import READ, WRITE, Loop
from numseq.serving import Server
from numseq.store_memory import MemoryStore
from numseq.transfer import Fetch

MSS = 1448  # bytes of data in a full segment: an MTU of 1,500 less HEADERS
HEADERS = 52  # bytes of the IP and TCP headers, with timestamps
SYN_SIZE = 60  # bytes of a SYN or SYN-ACK
INITIAL_WINDOW = 10  # segments (RFC 6928)
RTO_FIRST, RTO_LEAST, RTO_MOST = 1.0, 0.2, 120.0  # seconds: bounds of the retransmission timeout
SYN_TRIES, SYN_ACK_TRIES, DATA_TRIES = 7, 6, 15  # transmissions, as by default in Linux
DUPLICATES = 3  # segments that have to arrive after a missing one before it counts as lost
RECEIVE_WINDOW = 65535  # bytes at first; it grows to twice the bytes received
SEND_BUFFER = 64 * 1024  # bytes, in addition to those in flight
BACKLOG = 1024  # connections to accept
TURNS_MOST = 300 * 1000  # turns of the loop in a run: more are a livelock
SERVER_ADDRESS, CLIENT_ADDRESS = "10.0.0.1", "10.0.0.2"
PORT = 5000
CLIENT_ID = b"123e4567-e89b-12d3-a456-426614174000"

Outcome = collections.namedtuple("Outcome", [
    "error",  # a FetchError or None
    "seconds",
    "connections",  # accepted by the server
    "wire",  # bytes on the link in both directions, with headers
    "share",  # share of the wire's bytes that were NUM messages, each counted once
    "brought",  # numbers received on each accepted connection
    "journal",
])


# ---- the link


class Way:
    """One direction of a link.

    delay    propagation delay in seconds
    rate     bits per second; None for no limit
    queue    bytes in the queue before packets are dropped; None for no limit
    loss     share of packets lost at random
    jitter   longest random additional delay in seconds; packets stay in order
    largest  size in bytes of the largest packet that passes; larger ones vanish silently
    """

    def __init__(self, delay=0.0, rate=None, queue=None, loss=0.0, jitter=0.0, largest=None):
        self.delay, self.rate, self.queue = delay, rate, queue
        self.loss, self.jitter, self.largest = loss, jitter, largest
        self.carried = 0  # bytes
        self._free = self._last = 0.0  # times when the transmitter is idle, and when the last packet arrives

    def send(self, network, size, arrive):
        """Sends a packet of this size (bytes); arrive() is called when it arrives, if it does."""
        chance = network.random
        if self.loss and chance.random() < self.loss or self.largest and size > self.largest:
            return
        sent = max(network.now, self._free)
        if self.rate:
            if self.queue is not None and (sent - network.now) * self.rate / 8 + size > max(self.queue, size):
                return
            sent += size * 8 / self.rate
            self._free = sent
        self.carried += size
        jitter = chance.random() * self.jitter if self.jitter else 0.0
        self._last = max(self._last, sent + self.delay + jitter)
        network.at(self._last, arrive)


class Link:
    """A link to an address, in both directions. `cut` is the share of connections reset within a second."""

    def __init__(self, up, down, cut=0.0):
        self.up, self.down, self.cut = up, down, cut
        self.swallows = False  # whether all packets are lost now


def symmetric(round_trip=0.0, cut=0.0, **options):
    """A Link with the same properties in both directions."""
    return Link(Way(round_trip / 2, **options), Way(round_trip / 2, **options), cut)


# ---- TCP


Segment = collections.namedtuple("Segment", ["kind", "sequence", "data", "end", "acknowledged", "selected"])
SYN, SYN_ACK, DATA, RST = "SYN", "SYN-ACK", "DATA", "RST"


class InFlight:
    """A segment in flight, not yet acknowledged."""

    def __init__(self, sequence, data, end):
        self.sequence, self.data, self.end = sequence, data, end  # end: whether it is the FIN
        self.next = sequence + len(data) + end
        self.sent = 0.0
        self.times = 0
        self.arrived = self.lost = False


class Socket:
    """One end of a connection, with the methods of a socket that numseq uses."""

    def __init__(self, network, family=real_socket.AF_INET, kind=None):
        self.network = network
        self.family, self.type = family, real_socket.SOCK_STREAM
        self.number = network.open_file(self)
        self.state = "new"  # then connecting, established, listening, over
        self.address = (CLIENT_ADDRESS, 40000 + self.number)
        self.peer = self.way = self.link = None
        self.closed = self.linger_abort = self.shut = False
        self.error = 0  # SO_ERROR
        self.received = bytearray()
        self.ended = False
        self.waiting = collections.deque()  # connections to accept
        self.backlog = {}  # half-open connections: {the client's socket: ours}
        self.output = bytearray()
        self.flight = []  # InFlight, in order
        self.next_sequence = self.expected = self.total_received = 0
        self.early = {}  # segments received out of order
        self.window, self.threshold, self.recovering = float(INITIAL_WINDOW), float("inf"), 0
        self.smooth, self.variance, self.backoff = None, 0.0, 1
        self.fin = None  # the InFlight of the FIN
        self.timer = None
        self.tries = 0

    # -- the interface of a socket

    def fileno(self):
        return -1 if self.closed else self.number

    def setblocking(self, flag):
        pass

    def setsockopt(self, level, option, value):
        if option == real_socket.SO_LINGER:
            self.linger_abort = True

    def getsockopt(self, level, option):
        error, self.error = self.error, 0
        return error

    def getsockname(self):
        return self.address

    def getpeername(self):
        if self.peer is None or self.state != "established":
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self.peer.address

    def bind(self, address):
        self.address = address[:2]

    def listen(self, backlog):
        self.state = "listening"
        self.network.listening[self.address] = self

    def connect_ex(self, address):
        self.state = "connecting"
        self.target = address[:2]
        self.link = self.network.link_to(address[0])
        self.way = self.link.up
        self._send_syn()
        return errno.EINPROGRESS

    def accept(self):
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.popleft(), None

    def recv(self, size):
        if self.received:
            data = bytes(self.received[:size])
            del self.received[:size]
            if self.peer is not None:
                self.network.at(self.network.now, self.peer._pump)  # the window has opened
            return data
        self._raise_error()
        if self.ended or self.state == "over":
            return b""
        raise BlockingIOError

    def send(self, data, flags=0):
        self._raise_error()
        if self.state != "established" or self.shut:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        room = self._room()
        if room <= 0:
            raise BlockingIOError
        taken = bytes(data[:room])
        self.output += taken
        self._pump()
        return len(taken)

    def shutdown(self, how):
        self._raise_error()
        if not self.shut:
            self.shut = True
            self._pump()

    def close(self):
        if self.closed:
            return
        self.closed = True
        self.network.close_file(self)
        if self.state == "listening":
            self.network.listening.pop(self.address, None)
        elif self.state == "connecting":
            self.state = "over"
        elif self.state == "established":
            if self.linger_abort or self.received:
                self._transmit(RST)
                self._drop()
            elif not self.shut:
                self.shut = True
                self._pump()

    # -- readiness, for the selector

    def ready(self):
        if self.state == "listening":
            return READ if self.waiting else 0
        if self.error:
            return READ | WRITE
        mask = READ if self.received or self.ended or self.state == "over" else 0
        if self.state == "established" and self._room() > 0 or self.state == "over":
            mask |= WRITE
        return mask

    def _room(self):
        on_way = sum(len(each.data) for each in self.flight)
        return SEND_BUFFER + int(self.window) * MSS - len(self.output) - on_way

    def _raise_error(self):
        if self.error:
            error, self.error = self.error, 0
            raise OSError(error, os.strerror(error))

    # -- sending

    def _transmit(self, kind, sequence=0, data=b"", end=False):
        selected = tuple(self.early) if kind is DATA else ()
        segment = Segment(kind, sequence, data, end, self.expected, selected)
        size = SYN_SIZE if kind in (SYN, SYN_ACK) else HEADERS + len(data)
        if self.link.swallows:
            return
        if kind is SYN:
            target, client = self.target, self
            self.way.send(self.network, size, lambda: self.network.arrived_syn(target, client))
        else:
            peer = self.peer
            self.way.send(self.network, size, lambda: peer._arrived(segment))

    def _send_syn(self):
        if self.state != "connecting":
            return
        if self.tries == SYN_TRIES:
            self.state, self.error = "over", errno.ETIMEDOUT
            return
        self.tries += 1
        self._transmit(SYN)
        self.network.at(self.network.now + RTO_FIRST * 2 ** (self.tries - 1), self._send_syn)

    def send_syn_ack(self):
        if self.state == "half open" and self.tries < SYN_ACK_TRIES:
            self.tries += 1
            self._transmit(SYN_ACK)
            self.network.at(self.network.now + RTO_FIRST * 2 ** (self.tries - 1), self.send_syn_ack)

    def _pump(self):
        """Sends what the windows allow, lost segments first."""
        if self.state != "established":
            return
        on_way = sum(not (each.arrived or each.lost) for each in self.flight)
        for each in self.flight:
            if each.lost and on_way < self.window:
                self._send_segment(each)
                on_way += 1
        peer = self.peer
        while self.output or self.shut and self.fin is None:
            if on_way >= self.window:
                break
            if self.output:
                room = max(RECEIVE_WINDOW, 2 * peer.total_received) - len(peer.received)
                if self.flight and self.next_sequence - self.flight[0].sequence >= room:
                    break
                segment = InFlight(self.next_sequence, bytes(self.output[:MSS]), False)
                del self.output[:MSS]
            else:
                segment = InFlight(self.next_sequence, b"", True)
                self.fin = segment
            self.next_sequence = segment.next
            self.flight.append(segment)
            self._send_segment(segment)
            on_way += 1
        self._set_timer()

    def _send_segment(self, segment):
        segment.sent = self.network.now
        segment.times += 1
        segment.lost = False
        self._transmit(DATA, segment.sequence, segment.data, segment.end)

    def _set_timer(self):
        if self.timer is None and self.flight:
            rto = RTO_FIRST if self.smooth is None else self.smooth + max(4 * self.variance, RTO_LEAST)
            self.timer = marker = object()
            due = min(rto * self.backoff, RTO_MOST)
            self.network.at(self.network.now + due, lambda: self._timed_out(marker))

    def _timed_out(self, marker):
        if self.timer is not marker or self.state != "established":
            return
        self.timer = None
        if not self.flight:
            return
        if self.flight[0].times >= DATA_TRIES:
            self._drop(errno.ETIMEDOUT)
            return
        self.threshold = max(self.window / 2, 2.0)
        self.window = 1.0
        self.backoff = min(self.backoff * 2, 64)
        self.recovering = self.next_sequence
        for each in self.flight:
            each.lost = not each.arrived
        self._pump()

    # -- receiving

    def _arrived(self, segment):
        if segment.kind is RST:
            if self.state == "connecting":
                self.state, self.error = "over", errno.ECONNREFUSED
            elif self.state in ("established", "half open"):
                self._drop(errno.ECONNRESET)
            return
        if self.state == "over":
            if not segment.kind is RST and (segment.data or segment.end):
                self._transmit(RST)
            return
        if segment.kind is SYN_ACK:
            if self.state == "connecting":
                self.state = "established"
                if self.tries > 2:
                    self.window = 1.0
            if self.closed:
                self._transmit(RST)
                self._drop()
            else:
                self._transmit(DATA)
            return
        if self.state == "half open":
            self._establish()
        self._take_acknowledgement(segment)
        if segment.data or segment.end:
            if self.closed and segment.data:
                self._transmit(RST)
                self._drop()
                return
            self._take_data(segment)

    def _establish(self):
        self.state = "established"
        if self.tries > 2:
            self.window = 1.0
        listener = self.network.listening.get(self.address)
        if listener is None or len(listener.waiting) >= BACKLOG:
            self._transmit(RST)
            self._drop()
            return
        listener.waiting.append(self)
        self.network.accepted.append(self)
        if self.link.cut and self.network.random.random() < self.link.cut:
            self.network.at(self.network.now + self.network.random.random(), self._cut)

    def _cut(self):
        for each in self, self.peer:
            if each.state == "established":
                each._drop(errno.ECONNRESET)

    def _take_data(self, segment):
        if segment.sequence >= self.expected:
            self.early[segment.sequence] = segment
        while self.expected in self.early:
            taken = self.early.pop(self.expected)
            self.expected += len(taken.data) + taken.end
            self.received += taken.data
            self.total_received += len(taken.data)
            self.ended = self.ended or taken.end
        self._transmit(DATA)

    def _take_acknowledgement(self, segment):
        acknowledged = 0
        while self.flight and self.flight[0].next <= segment.acknowledged:
            each = self.flight.pop(0)
            acknowledged += 1
            if each.times == 1 and not each.arrived:
                self._measure(self.network.now - each.sent)
        starts = [each.sequence for each in self.flight]
        for sequence in segment.selected:
            place = bisect.bisect_left(starts, sequence)
            if place < len(starts) and starts[place] == sequence:
                self.flight[place].arrived = True
        later = sum(each.arrived for each in self.flight)
        for each in self.flight:
            if each.arrived:
                later -= 1
            elif later >= DUPLICATES and each.times == 1:
                each.lost = True
                if each.sequence >= self.recovering:
                    self.threshold = self.window = max(self.window / 2, 2.0)
                    self.recovering = self.next_sequence
        if acknowledged:
            self.timer = None
            self.backoff = 1
            if self.window < 2 * (acknowledged + len(self.flight)):  # grows only while it is used
                self.window += acknowledged if self.window < self.threshold else acknowledged / self.window
        self._pump()

    def _measure(self, sample):
        if self.smooth is None:
            self.smooth, self.variance = sample, sample / 2
        else:
            self.variance += (abs(sample - self.smooth) - self.variance) / 4
            self.smooth += (sample - self.smooth) / 8

    def _drop(self, error=0):
        self.state, self.error = "over", error
        self.output.clear()
        self.flight = []
        self.timer = None


# ---- the network


class Selector:
    """Waits for simulated sockets; if none is ready, the clock jumps to the next event."""

    def __init__(self, network):
        self.network = network
        self.keys = {}  # by descriptor

    def register(self, file, events, data=None):
        key = selectors.SelectorKey(file, file.fileno(), events, data)
        self.keys[key.fd] = key
        return key

    def unregister(self, file):
        for number, key in self.keys.items():
            if key.fileobj is file:
                return self.keys.pop(number)
        raise KeyError(file)

    def modify(self, file, events, data=None):
        self.unregister(file)
        return self.register(file, events, data)

    def get_map(self):
        return self.keys

    def select(self, timeout):
        deadline = self.network.now + timeout
        while True:
            self.network.run_due()
            ready = []
            for key in self.keys.values():
                mask = self.network.files[key.fd].ready() & key.events
                if mask:
                    ready.append((key, mask))
            if ready or not self.network.advance(deadline):
                return ready

    def close(self):
        pass


class LookUp:
    """Looks a name up in the network's table, with a delay."""

    def __init__(self, loop, endpoint, done):
        self.endpoint = endpoint
        self._loop = loop
        found, seconds = loop.network.names.get(endpoint[0], (OSError(-2, "Name or service not known"), 0.0))
        loop.network.look_ups.append(endpoint[0])
        if isinstance(found, OSError):
            answer = None, found
        else:
            answer = [(real_socket.AF_INET, (address, endpoint[1])) for address in found], None
        self._timer = loop.call_later(seconds, lambda: done(self, *answer))

    def abort(self, error=None):
        self._loop.cancel(self._timer)


class Module:
    """Replaces the module `socket` in those modules of numseq that open connections."""

    def __init__(self, network):
        self._network = network
        self.gaierror = real_socket.gaierror

    def socket(self, family, kind):
        return Socket(self._network, family, kind)

    def getaddrinfo(self, host, port, type=0, flags=0):
        name = host.decode("ascii")
        if name.strip("0123456789."):
            raise real_socket.gaierror(real_socket.EAI_NONAME, "Name or service not known")
        return [(real_socket.AF_INET, type, 6, "", (name, port))]

    def __getattr__(self, name):
        return getattr(real_socket, name)


class Network:
    """A server at SERVER_ADDRESS, a link to it, and a clock: a context, in which numseq's modules use them.

    link      the Link to all addresses that are not in `links` ({address: Link})
    names     {host: ([address] or OSError, seconds of the look-up)}
    options   options of the Server
    """

    def __init__(self, link=None, seed=1, names=(), **options):
        self.now = 1000.0
        self.random = random.Random(seed)
        self.link = symmetric() if link is None else link
        self.links = {}
        self.names = dict(names)
        self.look_ups = []
        self.files = {}
        self.listening = {}
        self.accepted = []  # the server's sockets
        self._numbers = itertools.count(3)
        self._events = []
        self._order = itertools.count()
        self._jitter = random.Random(seed)  # of its own, so that retries do not change the link
        self._options = options
        self._patches = contextlib.ExitStack()

    def __enter__(self):
        sockets = Module(self)
        for module, name, value in ((addresses, "socket", sockets), (stream, "socket", sockets),
                                    (connect, "socket", sockets), (connect, "LookUp", LookUp),
                                    (transfer, "jitter", lambda: self._jitter.uniform(0.5, 1))):
            self._patches.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        self.loop = Loop(lambda: self.now, Selector(self))
        self.loop.network = self
        store = MemoryStore(self.loop, forgotten=lambda client_id: None)
        self.server = Server(self.loop, store, test_mode=True, **self._options)
        self.serve()
        return self

    def __exit__(self, *_):
        self.server.close()
        self.loop.close()
        self._patches.close()

    def serve(self):
        """Makes the server listen, also after it was closed."""
        self.server.listen(SERVER_ADDRESS, PORT)

    # -- events

    def at(self, when, callback):
        heapq.heappush(self._events, (when, next(self._order), callback))

    def run_due(self):
        """Runs the events that are due now."""
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()

    def advance(self, deadline):
        """Moves the clock to the next event, or to the deadline; returns whether an event came first."""
        if self._events and self._events[0][0] <= deadline:
            self.now = self._events[0][0]
            return True
        self.now = max(self.now, deadline)
        return False

    # -- files and addresses

    def open_file(self, file):
        number = next(self._numbers)
        self.files[number] = file
        return number

    def close_file(self, file):
        del self.files[file.number]

    def link_to(self, address):
        return self.links.get(address, self.link)

    def arrived_syn(self, target, client):
        """Answers a SYN with a SYN-ACK, or with RST if nobody listens."""
        listener = self.listening.get(target)
        if listener is None:
            client.link.down.send(self, HEADERS, lambda: client._arrived(Segment(RST, 0, b"", False, 0, ())))
            return
        ours = listener.backlog.get(client)
        if ours is None:
            ours = listener.backlog[client] = Socket(self)
            ours.address, ours.state = target, "half open"
            ours.link, ours.way, ours.peer = client.link, client.link.down, client
            client.peer = ours
            ours.send_syn_ack()
        elif ours.state in ("half open", "established"):
            ours._transmit(SYN_ACK)

    # -- runs

    def start(self, n, batch=5, journal=None, host=SERVER_ADDRESS, port=PORT, retry=20,
              done=lambda fetch, error: None, **options):
        """Starts a Fetch, and returns it."""
        journal = journal or Journal(CLIENT_ID, n, batch)
        return Fetch(self.loop, host, port, journal, done, retry=retry, **options)

    def fetch(self, n, batch=5, seconds=3600.0, **options):
        """Fetches n numbers; returns an Outcome. Raises AssertionError after a livelock."""
        results = []
        begun, carried, accepted = self.now, self._carried(), len(self.accepted)
        fetch = self.start(n, batch, done=lambda fetch, error: results.append(error), **options)
        brought = self._run(fetch.journal, lambda: results or self.now - begun > seconds, accepted)
        fetch.cancel()
        wire = self._carried() - carried
        payload = sum(len(protocol.encode_batch(bytes(fetch.journal.numbers[place:place + batch])))
                      for place in range(0, len(fetch.journal.numbers), batch))
        error = results[0] if results else FetchError("not done in %g s" % seconds)
        share = payload / wire if wire else 0.0
        connections = len(self.accepted) - accepted
        return Outcome(error, self.now - begun, connections, wire, share, brought, fetch.journal)

    def _run(self, journal, is_over, accepted):
        first = self.loop.turns
        brought, had = [], 0
        while not is_over():
            assert self.loop.turns - first < TURNS_MOST, "a livelock: %d turns" % TURNS_MOST
            self.loop.turn()
            while len(brought) < len(self.accepted) - accepted:
                brought.append(0)
            if len(journal.numbers) > had:
                brought[-1] += len(journal.numbers) - had
                had = len(journal.numbers)
        return brought

    def _carried(self):
        links = [self.link] + list(self.links.values())
        return sum(link.up.carried + link.down.carried for link in links)
