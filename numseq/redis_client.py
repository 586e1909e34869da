"""A connection to Redis or Valkey that is kept up: to one of several hosts, with retries and limits.

`parse_url` gives the Place, `Client` the connection. Every request gets its replies, or None for a failure,
within ANSWER_SECONDS.
"""

import binascii
import collections
import os

from . import resp
from .addresses import PORT_MOST, alternated, format_endpoint, numeric, resolve
from .connect import Connector, LookUp
from .store import ANSWER_SECONDS
from .stream import CLOSED as STREAM_CLOSED
from .stream import Stream
from .system import socket

PORT = 6379  # the default port of Redis
ATTEMPT_SECONDS = 0.2  # limit of a reply and of a new connection: ANSWER_SECONDS has room for both, twice
WAIT_SECONDS = ANSWER_SECONDS - ATTEMPT_SECONDS  # limit of waiting to be sent; later, the reply would be late
IN_FLIGHT_MOST = 1024  # requests in flight: 10 ms of Redis's time
WAITING_MOST = 16384  # requests waiting to be sent: one per connection that a server may have
IDLE_SECONDS = 10.0  # seconds of silence until a PING checks the connection
BACKOFF_LEAST = 0.05  # seconds between two rounds of all hosts; doubled with each
BACKOFF_MOST = 5.0
ADDRESS_SECONDS = 0.05  # from one address of a host to its next: within ATTEMPT_SECONDS, four are tried
SETTLED_SECONDS = 1.0  # losing a connection that lasted this long is not a failure of its host
HOSTS_MOST = 16  # in a URL
DB_MOST = 999999  # the highest number of a database
REASON_MOST = 200  # characters of Redis's error messages that are shown

# A command: its bytes, and a function that tells whether a reply can be the reply to it.
Command = collections.namedtuple("Command", ["data", "fits"])

PING = Command(resp.encode(b"PING"), resp.PONG.__eq__)


def confirmed(*parts):
    """A command whose reply is OK."""
    return Command(resp.encode(*parts), resp.OK.__eq__)


# ---- URLs

# hosts: [(host, port)]; path: of a Unix socket instead, or None; user, password: bytes or None; db: int
Place = collections.namedtuple("Place", ["hosts", "path", "user", "password", "db"])


def parse_url(url):
    """The Place for a URL (text).

        redis://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/DB]
        redis+socket://[USER:PASSWORD@]/PATH[?db=DB]

    Raises ValueError, whose text does not contain the password.
    """
    scheme, _, rest = url.partition("://")
    login, at, rest = rest.rpartition("@")
    user, colon, password = login.partition(":")
    if at and not (colon and password):
        raise ValueError("before the @ it has USER:PASSWORD, or :PASSWORD")
    user, password = (unquote(text) or None for text in (user, password))
    if scheme == "redis+socket":
        path, question, query = rest.partition("?")
        name, _, db = query.partition("=")
        if not path.startswith("/") or question and name != "db":
            raise ValueError("it is redis+socket:///PATH or redis+socket:///PATH?db=DB")
        return Place([], os.fsdecode(unquote(path)), user, password, _db(db if question else "0"))
    hosts, slash, db = rest.partition("/")
    hosts = [_host_and_port(text) for text in hosts.split(",")]
    if len(hosts) > HOSTS_MOST:
        raise ValueError("it has more than %d hosts" % HOSTS_MOST)
    return Place(hosts, None, user, password, _db(db or "0"))


def unquote(text):
    """Text as bytes, with each %XX replaced by its byte. Raises ValueError."""
    first, *others = text.encode("utf-8", "surrogateescape").split(b"%")
    try:
        return first + b"".join([binascii.unhexlify(part[:2].ljust(2, b"-")) + part[2:] for part in others])
    except ValueError:
        raise ValueError("a % is followed by two hex digits; one of its own is %25") from None


def _host_and_port(text):
    """(host, port) of HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        fine = bracket and (not port or port.startswith(":"))
        port = port[1:] if port else str(PORT)
    else:
        host, colon, port = text.partition(":")
        fine = True
        port = port if colon else str(PORT)
    fine = fine and host and host.isprintable() and is_number(port, len(str(PORT_MOST)))
    if not fine or not 0 < int(port) <= PORT_MOST:
        raise ValueError("%a is not HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT" % text)
    return host, int(port)


def _db(text):
    if not is_number(text, len(str(DB_MOST))):
        raise ValueError("%a is not the number of a database" % text)
    return int(text)


def is_number(text, digits_most):
    """Whether text is a number in ASCII; isdigit() alone takes superscripts, which int() refuses."""
    return len(text) <= digits_most and text.encode("ascii", "replace").isdigit()


# ---- the connection

# The reactions to errors of Redis. Errors in ANSWERS concern only their request; all others are unexpected.
NEXT = "this host cannot serve: try the next one"
DENIED = "somebody has to change the configuration"
REACTIONS = {
    b"READONLY": NEXT, b"NOREPLICAS": NEXT, b"LOADING": NEXT, b"BUSY": NEXT, b"MISCONF": NEXT,
    b"MASTERDOWN": NEXT, b"CLUSTERDOWN": NEXT, b"TRYAGAIN": NEXT,
    b"NOAUTH": DENIED, b"WRONGPASS": DENIED, b"NOPERM": DENIED, b"MOVED": DENIED, b"ASK": DENIED,
}
TOO_MANY_CLIENTS = b"ERR max number of clients"  # as NEXT; its code is that of most errors
ANSWERS = frozenset([b"OOM", b"WRONGTYPE"])
HINTS = {
    b"NOAUTH": "the URL needs a password", b"MOVED": "a cluster needs a proxy before it",
    b"ASK": "a cluster needs a proxy before it",
}

# The states of a client.
GAP = "gap"  # at the start and after losing a connection: each host is tried once, requests wait
UP = "up"
DOWN = "down"  # all hosts have failed and are tried with back-off: requests fail at once
CLOSED = "closed"

# The kinds of an outage other than those of the codes in DENIED.
AWAY = b"away"
OTHER_ERROR = b"other"


class _Request:
    """Commands that are sent together. done(replies) is called once, with None if there are no replies."""

    __slots__ = ("commands", "again", "done", "asked", "sent", "tries", "replies")

    def __init__(self, commands, again, done, now):
        self.commands = commands
        self.again = again  # the commands to send in the second attempt
        self.done = done
        self.asked = now
        self.sent = None
        self.tries = 0
        self.replies = []


class Client:
    """A connection to one of several hosts, established again whenever it is lost.

    Every request ends within ANSWER_SECONDS. If a reply is late, the connection is aborted, because the next
    request would get that reply; the request is then sent once more on a new connection.

    Names are looked up at the start, and again while no host can be used: their addresses may have changed.

    complain(text) is called with one line per outage. Raises OSError if a host's name cannot be looked up.
    """

    def __init__(self, loop, place, complain):
        self.state = GAP
        self._loop = loop
        self._complain = complain
        self._places = [look_up(host, port) for host, port in place.hosts] or [(place.path, None)]
        self._greeting = greeting(place)
        self._current = 0  # index of the current place
        self._failed = 0  # number of places that have failed in a row
        self._backoff = BACKOFF_LEAST
        self._told = set()  # kinds of complaints in this outage
        self._look_up = None  # the LookUp in progress
        self._names = []  # [(endpoint, known)] still to be looked up in this round
        self._link = None  # a Stream; while connecting, a Connector
        self.up_since = loop.now  # when the state last became UP (seconds)
        self._is_proven = False  # whether this connection has carried a reply to a request
        self._connected_at = self._heard_at = loop.now
        self._in_flight = collections.deque()  # requests without their replies, in the order of sending
        self._waiting = collections.deque()  # requests not sent yet
        self._late_timer = None  # for the first deadline of all requests
        self._late_at = None  # when that is (seconds)
        # Limits an attempt to connect, a pause between attempts, or a silence. The loop starts the first
        # attempt: until then its clock stands still, however long the look-ups above took.
        self._link_timer = loop.call_later(0, self._connect)

    def ask(self, commands, done, again=None):
        """Sends commands (a tuple); calls done(replies) with the list of their replies, or None if it fails.

        The replies may include errors of ANSWERS. `again` has the commands to send instead of the same ones
        if the connection was lost before the replies came.
        """
        if self.state in (DOWN, CLOSED) or len(self._waiting) >= WAITING_MOST:
            done(None)
            return
        request = _Request(commands, again or commands, done, self._loop.now)
        if self.state is not UP:
            self._end_late_by(self._loop.now + WAIT_SECONDS)
        self._waiting.append(request)  # last, so that nothing has changed if memory runs out
        if self.state is UP:
            self._send()

    def close(self):
        """Closes the connection after one last send, and ends all requests with None."""
        self.state = CLOSED
        link, self._link = self._link, None
        if self._look_up is not None:
            self._look_up.abort()
        if isinstance(link, Stream):
            link.close(expect_more=False)
            if link.state is not STREAM_CLOSED:
                link.settle()
        if link is not None:
            link.abort()
        self._loop.cancel(self._link_timer)
        requests = list(self._in_flight) + list(self._waiting)
        self._in_flight.clear()
        self._waiting.clear()
        self._fail(requests)
        self._loop.cancel(self._late_timer)

    # ---- requests

    def _send(self):
        """Sends waiting requests, up to IN_FLIGHT_MOST."""
        while self._waiting and self.state is UP and len(self._in_flight) < IN_FLIGHT_MOST:
            self._write(self._waiting.popleft())

    def _write(self, request):
        if request.tries:
            request.commands = request.again
            request.replies = []
        request.tries += 1
        request.sent = self._loop.now
        self._in_flight.append(request)
        try:
            self._end_late_by(self._loop.now + ATTEMPT_SECONDS)
            self._link.write(b"".join([command.data for command in request.commands]))
        except MemoryError:  # whether it was written is unknown, so whose the next reply is, too
            self._link.abort()

    def _end_late_by(self, when):
        """Has `_end_late` called no later than `when` (seconds)."""
        if self._late_timer is None or when < self._late_at:
            timer, self._late_timer = self._late_timer, self._loop.call_at(when, self._end_late)
            self._late_at = when
            self._loop.cancel(timer)

    def _end_late(self):
        """Handles requests that are late: in flight without a reply, or waiting for too long."""
        self._late_timer = None
        now = self._loop.now
        if self._in_flight and self._in_flight[0].sent + ATTEMPT_SECONDS <= now:
            self._lose("does not answer", moves_on=True)
        late = []
        while self._waiting and self._waiting[0].asked + WAIT_SECONDS <= now:
            late.append(self._waiting.popleft())
        self._fail(late)
        if self._in_flight:
            self._end_late_by(self._in_flight[0].sent + ATTEMPT_SECONDS)
        if self._waiting:
            self._end_late_by(self._waiting[0].asked + WAIT_SECONDS)

    def _fail(self, requests):
        for request in requests:
            self._loop.guard(None, lambda: request.done(None))

    def _take(self, reply):
        """Adds a reply to the first request in flight; returns whether it was its last one.

        Raises RespError if it cannot be its reply.
        """
        request = self._in_flight[0]
        command = request.commands[len(request.replies)]
        if reply[0] == resp.ERROR:
            # At once: Redis may close after one error, although the greeting has several commands.
            if self.state is not UP or resp.error_code(reply[1]) not in ANSWERS:
                self._refused(request, reply[1])
                return True
        elif not command.fits(reply):
            raise resp.RespError("%a is no answer to a command" % (reply,))
        request.replies.append(reply)
        if len(request.replies) < len(request.commands):
            return False
        self._in_flight.popleft()
        if self.state is UP:
            self._is_proven = True
            self._failed = 0
            self._backoff = BACKOFF_LEAST
            self._told.clear()
        request.done(request.replies)
        return True

    def _refused(self, request, error):
        """Handles an error that concerns the connection, not only this request."""
        code = resp.error_code(error)
        reason = "says %a" % error[:REASON_MOST].decode("ascii", "replace")
        if code in HINTS:
            reason += " (%s)" % HINTS[code]
        if REACTIONS.get(code) is NEXT or error.startswith(TOO_MANY_CLIENTS):
            self._lose(reason, moves_on=True, failures=1)
            return
        if self.state is not UP or code in REACTIONS:  # any other error of the greeting is a wrong database
            self._backoff = BACKOFF_MOST
        self._in_flight.popleft()
        self._lose(reason, failures=HOSTS_MOST, kind=code if code in REACTIONS else OTHER_ERROR)
        request.done(None)

    # ---- the connection

    def connected(self, stream):
        """Called by the Connector. Sends the greeting as the first request, with no second attempt."""
        self._link = stream
        self._heard_at = self._connected_at = self._loop.now
        request = _Request(self._greeting, self._greeting, self._greeted, self._loop.now)
        request.tries = 1
        self._write(request)

    def received(self, stream):
        """Called by the Stream."""
        data, position = stream.input, 0
        self._heard_at = self._loop.now
        # A request that is made meanwhile, by a callback, has not been sent: nothing here is its reply.
        expected = len(self._in_flight)
        try:
            while expected:
                found = resp.parse(data, position)
                if found is None:
                    break
                reply, position = found
                expected -= self._take(reply)
                if self._link is not stream:
                    return
            if position < len(data) and not expected:
                raise resp.RespError("unexpected reply")
        except resp.RespError as error:
            self._lose("breaks the protocol: %s" % error)
            return
        stream.input = data[position:]
        if stream.ended:
            self._lose("has closed the connection")
        elif self._waiting:
            self._send()

    def closed(self, stream, error):
        """Called by the Stream or the Connector."""
        if stream is None or stream is self._link:
            self._lose(failure(error) if error else "has closed the connection")

    def _connect(self):
        """Connects to the current place."""
        if self._in_flight:  # memory ran out in `_lose`
            left = list(self._in_flight)
            self._in_flight.clear()
            self._fail(left)
        self._is_proven = False
        self._set_link_timer(ATTEMPT_SECONDS, lambda: self._lose("does not answer"))
        name, known = self._places[self._current]
        if known is not None:
            self._link = Connector(self._loop, known, self, known, ADDRESS_SECONDS)
            return
        try:
            self.connected(connect_to_path(self._loop, name, self))
        except (OSError, ValueError) as error:
            self._lose(failure(error))

    def _greeted(self, replies):
        """Called with the replies to the greeting, or None if the connection was lost."""
        if replies is not None:
            self.state = UP
            self.up_since = self._loop.now
            self._set_link_timer(IDLE_SECONDS, self._ping_if_idle)
            self._send()

    def _ping_if_idle(self):
        """Sends a PING after IDLE_SECONDS of silence, to notice a peer that has vanished."""
        rest = self._heard_at + IDLE_SECONDS - self._loop.now
        self._set_link_timer(rest if rest > 0 else IDLE_SECONDS, self._ping_if_idle)
        if rest <= 0:
            self.ask((PING,), lambda replies: None)

    def _lose(self, reason, moves_on=False, failures=0, kind=AWAY):
        """Gives up the connection, or the attempt to connect, and decides what follows.

        A connection that has proven good is established again at once: at the next place if moves_on is set,
        otherwise at the same. Any other one, and a failed attempt, count as a failure of the place.
        `failures` is the least number of failures to count.
        """
        self._set_link_timer(self._backoff, self._connect)  # replaced below, unless memory runs out
        link, self._link = self._link, None
        was_up = self.state is UP
        if was_up:
            self.state = GAP
        if link is not None:
            link.abort()
        lost = [request for request in self._in_flight if request.done != self._greeted]
        self._in_flight.clear()
        self._waiting.extendleft(reversed([request for request in lost if request.tries == 1]))
        failed = [request for request in lost if request.tries > 1]
        if was_up and (self._is_proven or self._loop.now - self._connected_at >= SETTLED_SECONDS):
            self._failed = failures
        else:
            self._failed += max(failures, 1)
            moves_on = True
        name = self._places[self._current][0]
        self._current = (self._current + moves_on) % len(self._places)
        if self._failed < len(self._places):
            self._connect()
            self._fail(failed)
            return
        self._failed = 0
        self.state = DOWN
        if kind not in self._told:
            self._told.add(kind)
            self._complain("Redis at %s %s; no sequence can be opened until it can be used" % (name, reason))
        # Between half and all of it, so that a fleet does not come back in step: by the clock's last digits.
        self._set_link_timer(self._backoff * (1 - self._loop.clock() * 1e4 % 1 / 2), self._connect)
        self._backoff = min(2 * self._backoff, BACKOFF_MOST)
        failed += self._waiting
        self._waiting.clear()
        self._fail(failed)  # after all of the above, because the callbacks may call `ask`
        if self._look_up is None:
            self._names = [(endpoint, known) for _, known in self._places for endpoint in known or ()
                           if numeric(*endpoint) is None]
            self._look_up_next()

    def _look_up_next(self):
        """Looks up one name after the other, each in a child process; new addresses replace the old ones."""
        self._look_up = None
        if self._names and self.state is DOWN:
            endpoint, known = self._names.pop()

            def looked_up(look_up, found, error):
                if found:
                    known[endpoint] = alternated(found)
                self._look_up_next()

            self._look_up = LookUp(self._loop, endpoint, looked_up, may_block=False)

    def _set_link_timer(self, delay, callback):
        timer, self._link_timer = self._link_timer, self._loop.call_later(delay, callback)
        self._loop.cancel(timer)


def failure(error):
    """An exception as the reason (text) of an outage."""
    return "failed: %s" % (getattr(error, "strerror", None) or error)


def greeting(place):
    """The first commands on a connection. The reply to PING tells whether this host can serve."""
    commands = []
    if place.password is not None:
        login = [place.user] if place.user is not None else []
        commands.append(confirmed(b"AUTH", *login, place.password))
    if place.db:
        commands.append(confirmed(b"SELECT", b"%d" % place.db))
    return tuple(commands + [PING])


def look_up(host, port):
    """(name, {(host, port): addresses}) for a host. Raises OSError, whose text has the name."""
    name = format_endpoint(host, port)
    try:
        return name, {(host, port): resolve(host, port)}
    except OSError as error:
        raise OSError(error.errno, "%a: %s" % (name, error.strerror or error)) from None


def connect_to_path(loop, path, handler):
    """A Stream connected to a Unix socket, which takes no time. Raises OSError or ValueError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        connection.connect(path)
        return Stream(loop, connection, handler)
    except BaseException:
        connection.close()
        raise
