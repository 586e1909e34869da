"""A connection to Redis or Valkey that is kept up: to one of several hosts, with retries and limits.

`parse_url` gives the Place, `Client` the connection. Every request gets its replies, or None for a failure,
within ANSWER_SECONDS.
"""

import binascii
import collections
import os
import socket

from . import resp
from .addresses import PORT_MOST, format_endpoint, resolve
from .connect import Connector
from .store import ANSWER_SECONDS
from .stream import CLOSED as STREAM_CLOSED
from .stream import Stream

PORT = 6379  # the default port of Redis
ATTEMPT_SECONDS = 0.2  # limit of a reply and of a new connection: ANSWER_SECONDS has room for both, twice
WAIT_SECONDS = ANSWER_SECONDS - ATTEMPT_SECONDS  # limit of waiting to be sent; later, the reply would be late
IN_FLIGHT_MOST = 1024  # requests in flight: 10 ms of Redis's time
WAITING_MOST = 16384  # requests waiting to be sent: one per connection that a server may have
IDLE_SECONDS = 10.0  # seconds of silence until a PING checks the connection
BACKOFF_LEAST = 0.05  # seconds between two rounds of all hosts; doubled with each
BACKOFF_MOST = 5.0
SETTLED_SECONDS = 1.0  # losing a connection that lasted this long is not a failure of its host
HOSTS_MOST = 16  # in a URL
DB_MOST = 999999  # the highest number of a database

# A command as bytes, and a function that says whether a reply can be the answer to it.
Command = collections.namedtuple("Command", ["data", "fits"])

PING = Command(resp.encode(b"PING"), resp.PONG.__eq__)


def confirmed(*parts):
    """A command that is answered with OK."""
    return Command(resp.encode(*parts), resp.OK.__eq__)


# ---- where Redis is


# hosts: [(host, port)]; path: of a socket instead, or None; user, password: bytes or None; db: int
Place = collections.namedtuple("Place", ["hosts", "path", "user", "password", "db"])


def parse_url(url):
    """The Place of redis://[USER:PASSWORD@]HOST[:PORT][,...][/DB] or
    redis+socket://[USER:PASSWORD@]/PATH[?db=DB].

    Raises ValueError, whose text has nothing of the password in it.
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
    """Text with its %XX as the bytes that they stand for."""
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
    fine = fine and host and host.isprintable() and port.isdigit() and len(port) <= len(str(PORT_MOST))
    if not fine or not 0 < int(port) <= PORT_MOST:
        raise ValueError("%a is not HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT" % text)
    return host, int(port)


def _db(text):
    if not (text.isdigit() and len(text) <= len(str(DB_MOST))):
        raise ValueError("%a is not the number of a database" % text)
    return int(text)


# ---- the connection


# What an error of Redis means for the connection. Others are answers to the request alone (ANSWERS), or
# unexpected.
NEXT = "this host cannot serve: the next one may"
DENIED = "somebody has to change the configuration"
REACTIONS = {
    b"READONLY": NEXT, b"NOREPLICAS": NEXT, b"LOADING": NEXT, b"BUSY": NEXT, b"MISCONF": NEXT,
    b"MASTERDOWN": NEXT, b"CLUSTERDOWN": NEXT, b"TRYAGAIN": NEXT,
    b"NOAUTH": DENIED, b"WRONGPASS": DENIED, b"NOPERM": DENIED, b"MOVED": DENIED, b"ASK": DENIED,
}
ANSWERS = frozenset([b"OOM", b"WRONGTYPE"])
HINTS = {
    b"NOAUTH": "the URL needs a password", b"MOVED": "a cluster needs a proxy before it",
    b"ASK": "a cluster needs a proxy before it",
}

# The states of a client.
GAP = "gap"  # at the start and after a connection was lost, while each host is tried once: requests wait
UP = "up"
DOWN = "down"  # all hosts have failed, and are tried again and again: requests fail at once
CLOSED = "closed"

AWAY = b"away"  # the kind of an outage that is none of DENIED


class _Request:
    """Commands that are sent together; done(replies) is called once, with None where there is no answer."""

    __slots__ = ("commands", "again", "done", "asked", "sent", "tries", "replies")

    def __init__(self, commands, again, done, now):
        self.commands = commands
        self.again = again  # the commands of the second try
        self.done = done
        self.asked = now
        self.sent = None
        self.tries = 0
        self.replies = []


class Client:
    """One connection to one of several hosts, made again whenever it is lost.

    A request is answered within ANSWER_SECONDS. A connection on which an answer is late is aborted, because
    the next request would get that answer; then the request is sent once more on another one.

    complain(text) takes one line an outage. Raises OSError where a host's name cannot be looked up.
    """

    def __init__(self, loop, place, complain):
        self.state = GAP
        self._loop = loop
        self._complain = complain
        self._places = [look_up(host, port) for host, port in place.hosts] or [(place.path, None)]
        self._greeting = greeting(place)
        self._current = 0  # which of the places
        self._failed = 0  # places that have failed one after the other
        self._backoff = BACKOFF_LEAST
        self._told = set()  # what was complained of in this outage
        self._link = None  # a Stream, or a Connector before it
        self._is_proven = False  # whether this connection has answered a request
        self._connected_at = loop.now
        self._heard_at = loop.now
        self._in_flight = collections.deque()  # sent and not answered, in this order
        self._waiting = collections.deque()  # to be sent
        self._look_timer = None  # for the first deadline of a request, and when that is
        self._look_at = None
        self._link_timer = None  # ends an attempt to connect, a pause before the next, or a silence
        self._connect()

    def ask(self, commands, done, again=None):
        """Sends commands (a tuple); done(replies) gets the list of their replies, or None for no answer.

        An error is among the replies where it is one of ANSWERS. `again` are the commands to send where the
        answer was lost, instead of the same.
        """
        if self.state in (DOWN, CLOSED) or len(self._waiting) >= WAITING_MOST:
            done(None)
            return
        self._waiting.append(_Request(commands, again or commands, done, self._loop.now))
        if self.state is UP:
            self._send()
        else:
            self._look_by(self._loop.now + WAIT_SECONDS)

    def close(self):
        """Sends what the kernel takes at once, and answers every request with None."""
        self.state = CLOSED
        link, self._link = self._link, None
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
        self._loop.cancel(self._look_timer)

    # ---- requests

    def _send(self):
        """Sends what waits, as far as it may be in flight."""
        while self._waiting and self.state is UP and len(self._in_flight) < IN_FLIGHT_MOST:
            self._write(self._waiting.popleft())

    def _write(self, request):
        if request.tries:
            request.commands = request.again
            request.replies = []
        request.tries += 1
        request.sent = self._loop.now
        self._in_flight.append(request)
        self._link.write(b"".join([command.data for command in request.commands]))
        self._look_by(self._loop.now + ATTEMPT_SECONDS)

    def _look_by(self, when):
        """Has `_look` called, at the latest at this time."""
        if self._look_timer is None or when < self._look_at:
            self._loop.cancel(self._look_timer)
            self._look_at = when
            self._look_timer = self._loop.call_at(when, self._look)

    def _look(self):
        """Looks whether the first request in flight, or the first that wait, are late."""
        self._look_timer = None
        now = self._loop.now
        if self._in_flight and self._in_flight[0].sent + ATTEMPT_SECONDS <= now:
            self._lose("does not answer", moves_on=True)
        late = []
        while self._waiting and self._waiting[0].asked + WAIT_SECONDS <= now:
            late.append(self._waiting.popleft())
        self._fail(late)
        if self._in_flight:
            self._look_by(self._in_flight[0].sent + ATTEMPT_SECONDS)
        if self._waiting:
            self._look_by(self._waiting[0].asked + WAIT_SECONDS)

    def _fail(self, requests):
        for request in requests:
            self._loop.guard(None, lambda: request.done(None))

    def _take(self, reply):
        """A reply is that of the first request in flight. Raises RespError where it cannot be."""
        request = self._in_flight[0]
        command = request.commands[len(request.replies)]
        if reply[0] != resp.ERROR and not command.fits(reply):
            raise resp.RespError("%a is no answer to a command" % (reply,))
        request.replies.append(reply)
        if len(request.replies) < len(request.commands):
            return
        error = next((value for kind, value in request.replies if kind == resp.ERROR), None)
        if error is not None and (resp.error_code(error) not in ANSWERS or self.state is not UP):
            self._refused(request, error)
            return
        self._in_flight.popleft()
        if self.state is UP:
            self._is_proven = True
            self._failed = 0
            self._backoff = BACKOFF_LEAST
            self._told.clear()
        request.done(request.replies)

    def _refused(self, request, error):
        """An error that is not about this request alone."""
        code = resp.error_code(error)
        reason = "says %a" % error.decode("ascii", "replace")
        if code in HINTS:
            reason += " (%s)" % HINTS[code]
        if REACTIONS.get(code) is NEXT:
            self._lose(reason, moves_on=True, failures=1)
            return
        if self.state is not UP or code in REACTIONS:  # while greeting, others are of a wrong database
            self._backoff = BACKOFF_MOST
        self._in_flight.popleft()
        self._lose(reason, failures=HOSTS_MOST, kind=code)
        request.done(None)

    # ---- the connection

    def connected(self, stream):
        """What Connector calls: the greeting is the first request, and is not sent again elsewhere."""
        self._link = stream
        self._heard_at = self._connected_at = self._loop.now
        request = _Request(self._greeting, self._greeting, self._greeted, self._loop.now)
        request.tries = 1
        self._write(request)

    def received(self, stream):
        """What Stream calls."""
        data, position = stream.input, 0
        self._heard_at = self._loop.now
        try:
            while self._in_flight:
                found = resp.parse(data, position)
                if found is None:
                    break
                reply, position = found
                self._take(reply)
                if self._link is not stream:
                    return
            if position < len(data) and not self._in_flight:
                raise resp.RespError("a reply to nothing")
        except resp.RespError as error:
            self._lose("breaks the protocol: %s" % error)
            return
        stream.input = data[position:]
        if stream.ended:
            self._lose("has closed the connection")
        elif self._waiting:
            self._send()

    def closed(self, stream, error):
        """What Stream and Connector call."""
        if stream is None or stream is self._link:
            self._lose(error.strerror or str(error) if error else "has closed the connection")

    def _connect(self):
        """Tries the current place."""
        self._is_proven = False
        self._set_link_timer(ATTEMPT_SECONDS, lambda: self._lose("does not answer"))
        name, known = self._places[self._current]
        if known is not None:
            self._link = Connector(self._loop, known, self, known)
            return
        try:
            self.connected(connect_to_path(self._loop, name, self))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._set_link_timer(0, lambda: self._lose(reason))  # not within __init__

    def _greeted(self, replies):
        """The answer to the greeting, unless the connection was lost."""
        if replies is not None:
            self.state = UP
            self._set_link_timer(IDLE_SECONDS, self._ask_for_life)
            self._send()

    def _ask_for_life(self):
        """Sends a PING where nothing was heard for so long: a peer that has vanished says nothing."""
        rest = self._heard_at + IDLE_SECONDS - self._loop.now
        self._set_link_timer(rest if rest > 0 else IDLE_SECONDS, self._ask_for_life)
        if rest <= 0 and not self._in_flight:
            self.ask((PING,), lambda replies: None)

    def _lose(self, reason, moves_on=False, failures=0, kind=AWAY):
        """Gives up the connection, or the attempt at one, and decides what follows.

        A connection that has proven to be good is made again at once: at the next place where it moves_on.
        One that has not, and an attempt, count as a failure of the place. failures are those that count in
        any case.
        """
        link, self._link = self._link, None
        if link is not None:
            link.abort()
        was_up = self.state is UP
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
            self.state = GAP if was_up else self.state
            self._connect()
            self._fail(failed)
            return
        self._failed = 0
        self.state = DOWN
        if kind not in self._told:
            self._told.add(kind)
            self._complain("Redis at %s %s; no sequence can be opened until it can be used" % (name, reason))
        self._set_link_timer(self._backoff * (0.5 + os.urandom(1)[0] / 512), self._connect)
        self._backoff = min(2 * self._backoff, BACKOFF_MOST)
        failed += self._waiting
        self._waiting.clear()
        self._fail(failed)  # at the end: what is called may ask again

    def _set_link_timer(self, delay, callback):
        self._loop.cancel(self._link_timer)
        self._link_timer = self._loop.call_later(delay, callback)


def greeting(place):
    """The commands with which a connection begins. The PING says whether this host can serve at all."""
    commands = []
    if place.password is not None:
        login = [place.user] if place.user is not None else []
        commands.append(confirmed(b"AUTH", *login, place.password))
    if place.db:
        commands.append(confirmed(b"SELECT", b"%d" % place.db))
    return tuple(commands + [PING])


def look_up(host, port):
    """(name, {(host, port): addresses}) of a host. Raises OSError, whose text names it."""
    name = format_endpoint(host, port)
    try:
        return name, {(host, port): resolve(host, port)}
    except OSError as error:
        raise OSError(error.errno, "%a: %s" % (name, error.strerror or error)) from None


def connect_to_path(loop, path, handler):
    """A Stream on a connection to a socket in the file system, which is made at once. Raises OSError,
    ValueError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        connection.connect(path)
        return Stream(loop, connection, handler)
    except BaseException:
        connection.close()
        raise
