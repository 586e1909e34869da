"""Redis for tests: a real one as a process, and one on the loop of the test that does as it is told.

`ScriptedRedis` knows the few commands that numseq sends, on the test's clock, and lets a test change every
reply, keep it back, cut it, or send it in pieces. `RealRedis` is a redis-server (or valkey-server) on a free
port, killed at its end.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

from numseq import resp
from numseq.stream import Stream, listen

HOST = "127.0.0.1"
START_SECONDS = 20  # in which a redis-server has to listen
TIMEOUT = 10  # seconds for an answer to a test's own command
REQUIRED = "NUMSEQ_REQUIRE_REDIS"  # in the environment: where there is no redis-server, tests fail

OK = b"+OK\r\n"
NULL = b"$-1\r\n"


def bulk(value):
    return NULL if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def parse_command(data):
    """(parts, size) of the command at the beginning of data, or None where its end is not there."""
    lines, position = [], 0

    def line():
        nonlocal position
        end = data.find(b"\r\n", position)
        if end < 0:
            raise IndexError
        text, position = bytes(data[position:end]), end + 2
        return text

    try:
        for _ in range(int(line()[1:])):
            size = int(line()[1:])
            if len(data) < position + size + 2:
                return None
            lines.append(bytes(data[position:position + size]))
            position += size + 2
    except IndexError:
        return None
    return lines, position


class ScriptedRedis:
    """A Redis on the test's loop and clock.

    reply(parts, answer) may be set: what is sent for a command (its parts) instead of the right answer:
    bytes, or None for nothing at all. piece is how many bytes are sent per turn, cut_after how many are sent
    of all before a reset; delay is how many seconds each answer takes. commands has the parts of all
    commands, in order.
    """

    def __init__(self, loop, port=0, piece=None):
        self.loop = loop
        self.keys = {}  # from key to (value, when it expires)
        self.commands = []
        self.connections = []  # of all times
        self.reply = None
        self.piece = piece
        self.cut_after = None
        self.delay = 0
        self.is_replica = False
        self.port = port
        self.listen()

    @property
    def url(self):
        return "redis://%s:%d" % (HOST, self.port)

    def listen(self):
        self._listener, = listen(self.loop, HOST, self.port, self._accepted)
        self.port = self._listener.address[1]

    def stop(self):
        """As a process that was killed: nobody listens, and all connections are reset."""
        self._listener.close()
        self.cut()

    def cut(self):
        """Resets all connections."""
        for connection in self.open_connections():
            connection.stream.abort()

    def open_connections(self):
        return [connection for connection in self.connections if connection.stream is not None]

    def names(self):
        """The names of all commands so far, without the PINGs."""
        return [parts[0] for parts in self.commands if parts[0] != b"PING"]

    def value(self, key):
        """A key's value, or None."""
        value, expires = self.keys.get(key, (None, 0))
        if value is not None and expires <= self.loop.now:
            del self.keys[key]
            return None
        return value

    def _accepted(self, connection):
        self.connections.append(ScriptedConnection(self, connection))

    def answer(self, parts):
        """What Redis answers."""
        self.commands.append(parts)
        answer = getattr(self, "_" + parts[0].decode("ascii").lower())(*parts[1:])
        return answer if self.reply is None else self.reply(parts, answer)

    def _ping(self):
        return b"+PONG\r\n"

    def _auth(self, *login):
        return OK

    def _select(self, db):
        return OK

    def _get(self, key):
        return bulk(self.value(key))

    def _set(self, key, value, nx, px, milliseconds):
        if self.is_replica:
            return b"-READONLY You can't write against a read only replica.\r\n"
        if self.value(key) is not None:
            return NULL
        self.keys[key] = value, self.loop.now + int(milliseconds) / 1000
        return OK

    def _pexpire(self, key, milliseconds):
        if self.is_replica:
            return b"-READONLY You can't write against a read only replica.\r\n"
        value = self.value(key)
        if value is None:
            return b":0\r\n"
        self.keys[key] = value, self.loop.now + int(milliseconds) / 1000
        return b":1\r\n"


class ScriptedConnection:
    """One connection of a ScriptedRedis."""

    def __init__(self, server, connection):
        self.server = server
        self.commands = 0
        self._output = b""
        self._sent = 0
        self.stream = Stream(server.loop, connection, self)

    def received(self, stream):
        while self.stream is not None:
            found = parse_command(stream.input)
            if found is None:
                break
            parts, size = found
            stream.input = stream.input[size:]
            self.commands += 1
            answer = self.server.answer(parts)
            if answer is not None and self.stream is not None:
                if self.server.delay:
                    self.server.loop.call_later(self.server.delay, lambda answer=answer: self._say(answer))
                else:
                    self._say(answer)
        if stream.ended:
            stream.close()

    def _say(self, answer):
        if self.stream is None:
            return
        if self.server.cut_after is not None:
            answer = answer[:max(self.server.cut_after - self._sent, 0)]
            self._sent += len(answer)
            self.stream.write(answer)
            if self._sent >= self.server.cut_after:
                self.stream.close()
        elif self.server.piece is None:
            self.stream.write(answer)
        else:
            was_idle = not self._output
            self._output += answer
            if was_idle:
                self._say_piece()

    def _say_piece(self):
        if self.stream is not None and self._output:
            piece = self.server.piece
            self.stream.write(self._output[:piece])
            self._output = self._output[piece:]
            self.server.loop.call_later(0, self._say_piece)

    def closed(self, stream, error):
        self.stream = None


# ---- the real one


def find_server():
    """The path of a redis-server or a valkey-server; skips the test where there is none, or fails it if it is
    required."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            return path
    if os.environ.get(REQUIRED):
        pytest.fail("neither redis-server nor valkey-server is there, and %s is set" % REQUIRED)
    pytest.skip("neither redis-server nor valkey-server is there")


def free_port():
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        return listening.getsockname()[1]


class RealRedis:
    """A redis-server in a folder of its own. It keeps nothing on disk."""

    def __init__(self, *options, port=None):
        self._program = find_server()
        self._folder = tempfile.mkdtemp(prefix="numseq-redis-")
        self.path = os.path.join(self._folder, "socket")
        self.options = options
        self.port = port or free_port()
        self._connection = None
        self.start()

    @property
    def url(self):
        return "redis://%s:%d" % (HOST, self.port)

    def start(self):
        """Starts it, and waits until it answers. A port that somebody took meanwhile is changed for
        another."""
        end = time.monotonic() + START_SECONDS
        while True:
            self.process = subprocess.Popen(
                [self._program, "--port", str(self.port), "--bind", HOST, "--unixsocket", self.path,
                 "--save", "", "--appendonly", "no", "--dir", self._folder,
                 "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"] + list(self.options),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while self.process.poll() is None and time.monotonic() < end:
                try:
                    if not self.command("PING").startswith(b"LOADING"):  # NOAUTH is an answer too
                        return
                except (OSError, EOFError):
                    time.sleep(0.005)
            if time.monotonic() > end:
                self.process.kill()
                pytest.fail("%s does not start" % self._program)
            self.port = free_port()

    def command(self, *parts):
        """What it answers to a command (texts): bytes, an int, None, or a list."""
        if self._connection is None:
            self._connection = socket.create_connection((HOST, self.port), TIMEOUT).makefile("rwb")
        try:
            self._connection.write(resp.encode(*[str(part).encode() for part in parts]))
            self._connection.flush()
            return self._reply()
        except (OSError, EOFError):
            self.forget_connection()
            raise

    def _reply(self):
        line = self._connection.readline()
        if not line:
            raise EOFError
        kind, text = line[:1], line[1:-2]
        if kind == b"$":
            return None if text == b"-1" else self._connection.read(int(text) + 2)[:-2]
        if kind == b"*":
            return [self._reply() for _ in range(int(text))]
        return int(text) if kind == b":" else text

    def forget_connection(self):
        if self._connection is not None:
            try:
                self._connection.close()
            except OSError:
                pass
            self._connection = None

    def advance(self, seconds):
        """Lets time pass for all keys: their times to live become shorter."""
        for key in self.command("KEYS", "*"):
            key = key.decode("ascii")
            left = self.command("PTTL", key) - round(seconds * 1000)
            if left > 0:
                self.command("PEXPIRE", key, left)
            else:
                self.command("DEL", key)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.forget_connection()
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
