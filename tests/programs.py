"""Helpers for tests of whole programs: the server and the client as processes, and a server that misbehaves.

Every process writes its output to files, so it never waits for the test. A watchdog kills one that hangs.
"""

import collections
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from helpers import ROOT, SLOW_SECONDS, WAIT_SECONDS
from numseq.stream import Stream, listen

HOST = "127.0.0.1"
SECONDS = SLOW_SECONDS  # after which a process is killed because it hangs
SHARED_SECONDS = 1800  # the same for a server that all tests of a file use
SESSION_TIMEOUT = 600  # seconds: no session ends on a busy machine, unless a test is about that
RETENTION = 600  # seconds: no sequence is forgotten either
CLIENT_ID = "123e4567-e89b-12d3-a456-426614174000"
# A NEW of 5 numbers with CLIENT_ID, in TEST_MODE.
TRANSCRIPT_1 = """\
Sending message: 'INIT,123e4567-e89b-12d3-a456-426614174000,5,5;'
Received: ACK;
Requesting numbers
Sending message: 'RECV,0;'
Received: NUM,6:41:81:68:68;
Sending message: 'FIN;'
Received: FAC,f90b20dae8c9b7d7be2a5fb7cc856e8b;
Closing the connection
The SUM of numbers is: 264
Checksum (f90b20dae8c9b7d7be2a5fb7cc856e8b) is valid!
"""

# What a server says of how it was started: the numbers can be predicted, there are few files.
DUE = "TEST_MODE is set: ", "the limit of open files, "

Ended = collections.namedtuple("Ended", ["status", "out", "err"])


# ---- processes


def environment(measured=True, **variables):
    """This process's environment and the variables, without what would change the programs' behaviour.

    Coverage is not measured unless `measured`: a process killed while it writes its data leaves a damaged
    file.
    """
    inherited = {name: value for name, value in os.environ.items()
                 if name not in ("TEST_MODE", "PYTHONUNBUFFERED", "PYTHONPATH")
                 and (measured or not name.startswith("COVERAGE_"))}
    return dict(inherited, **variables)


class Program:
    """A process: `arguments` follow the interpreter. `out` and `err` are files, by default new ones.

    One that a test is going to kill is started with measured=False.
    """

    def __init__(self, arguments, cwd, variables, out=None, err=None, preexec=None, seconds=SECONDS,
                 measured=True, **keywords):
        self._files = [tempfile.TemporaryFile() if file is None else None for file in (out, err)]
        self.process = subprocess.Popen(
            [sys.executable] + [str(argument) for argument in arguments], cwd=str(cwd),
            env=environment(measured, **variables), stdin=subprocess.DEVNULL, preexec_fn=preexec,
            stdout=self._files[0] or out, stderr=self._files[1] or err, **keywords)
        self._watchdog = threading.Timer(seconds, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def read(self, which=0):
        """Its standard output (0) or error (1) so far, as text."""
        file = self._files[which]
        if file is None:
            return None
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("ascii")

    def wait_for(self, text, which=0):
        """Waits until its output contains the text; returns the output."""
        while text not in self.read(which):
            ended = self.process.poll() is not None
            if ended and text not in self.read(which):
                pytest.fail("it ended without %r:\n%s\n%s" % (text, self.read(0), self.read(1)))
            time.sleep(0.002)
        return self.read(which)

    def wait(self):
        """Waits for its end; returns the exit status and its outputs."""
        status = self.process.wait()
        self._watchdog.cancel()
        return Ended(status, self.read(0), self.read(1))

    def close(self):
        """Interrupts it if it still runs (a second time, because a server first waits for its sessions)."""
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                try:
                    self.process.wait(1)
                except subprocess.TimeoutExpired:
                    pass
        try:
            self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()
        self._watchdog.cancel()
        for file in self._files:
            if file is not None:
                file.close()


class ServerProgram(Program):
    """A server on a free port, in TEST_MODE unless told otherwise.

    None as session_timeout is the server's default.
    """

    def __init__(self, *options, cwd=ROOT, test_mode=True, run=None, variables=None, preexec=None,
                 seconds=SECONDS, session_timeout=SESSION_TIMEOUT):
        variables = dict(variables or {}, **({"TEST_MODE": "1"} if test_mode else {}))
        times = ("--retention", RETENTION)
        if session_timeout is not None:
            times += "--session-timeout", session_timeout
        super().__init__((run or script("server")) + (0,) + times + options, cwd, variables, preexec=preexec,
                         seconds=seconds)
        line = self.wait_for("\n").splitlines()[0]
        assert line.startswith("Listening on "), line
        self.port = int(line.rpartition(":")[2])

    def wait(self):
        """Waits for its end; returns its Ended, without the lines that are DUE."""
        ended = super().wait()
        lines = [line for line in ended.err.splitlines(True) if not any(due in line for due in DUE)]
        return ended._replace(err="".join(lines))

    def stop(self):
        """Sends SIGTERM; returns its Ended."""
        self.process.terminate()
        return self.wait()


def script(name):
    """The start of a command line that runs a program of the package as a file."""
    return (os.path.join(ROOT, "numseq", name + ".py"),)


def module(name):
    """The same, as a module."""
    return ("-m", "numseq." + name)


class Programs:
    """Starts programs in the test's own folder, and ends those that still run at the end of the test."""

    def __init__(self, folder):
        self.folder = folder
        self._started = []

    def _keep(self, program):
        self._started.append(program)
        return program

    def server(self, *options, **keywords):
        """A ServerProgram."""
        return self._keep(ServerProgram(*options, **keywords))

    def start_client(self, *arguments, run=script("client"), cwd=None, out=None, err=None, preexec=None,
                     measured=True, **variables):
        """A client (a Program) that runs."""
        return self._keep(Program(run + arguments, cwd or self.folder, variables, out, err, preexec,
                                  measured=measured))

    def client(self, *arguments, **keywords):
        """Runs a client to its end; returns an Ended."""
        return self.start_client(*arguments, **keywords).wait()

    def python(self, *arguments, cwd=None, out=None, **variables):
        """Runs the interpreter to its end; returns an Ended."""
        return self._keep(Program(arguments, cwd or self.folder, variables, out)).wait()

    def close(self):
        for program in self._started:
            program.close()


# ---- servers made to misbehave, on the test's loop


def cut(peer):
    """Resets the connection instead of answering."""
    peer.stream.abort()


def end(peer):
    """Closes the connection instead of answering."""
    peer.stream.close(expect_more=False)


def hang(peer):
    """Answers neither this nor any later message."""


def honest(numbers, batch):
    """A good server's answers: a function from a message (text) to the reply (bytes)."""

    def answer(message):
        kind, _, content = message.partition(",")
        if kind in ("INIT", "CONT"):
            return b"ACK;"
        if kind == "FIN":
            checksum = hashlib.md5(str(list(numbers)).encode("ascii")).hexdigest()
            return b"FAC,%b;" % checksum.encode("ascii")
        first = int(content) * batch
        return "NUM,{};".format(":".join(map(str, numbers[first:first + batch]))).encode("ascii")

    return answer


def instead(answer, **others):
    """The same answers but for some: to a type of messages, or to one as `RECV_1`.

    They are bytes, or a function of the Peer, which is called once what was said before is on its way, and
    has the last word.
    """

    def answer_otherwise(message):
        for name in message.replace(",", "_"), message.partition(",")[0]:
            if name in others:
                return others[name]
        return answer(message)

    return answer_otherwise


class Peer:
    """A connection of a Liar's, as the handler of its stream."""

    def __init__(self, liar, connection, answer):
        self.heard = []  # messages (text), without their terminators
        self.error = None
        self.liar = liar
        self._answer = answer
        self._last_word = None
        self._dripping = bytearray()
        self.stream = Stream(liar.loop, connection, self)

    def received(self, stream):
        *messages, rest = bytes(stream.input).split(b";")
        stream.input = rest
        replies = bytearray()
        for message in messages:
            self.heard.append(message.decode("ascii"))
            if self._last_word is None:
                reply = self._answer(self.heard[-1])
                if callable(reply):
                    self._last_word = reply
                else:
                    replies += reply
        self.say(replies)
        if stream.ended:
            stream.close(expect_more=False)

    def closed(self, stream, error):
        self.error = error

    def say(self, data):
        """Sends bytes, `drip` of them a turn, and then does what comes last."""
        dripping, self._dripping = bool(self._dripping), self._dripping + data
        if not dripping:
            self._drip()

    def _drip(self):
        most = self.liar.drip or len(self._dripping)
        self.stream.write(bytes(self._dripping[:most]))
        del self._dripping[:most]
        if self._dripping:
            self.liar.loop.call_later(0, self._drip)
        elif self._last_word:
            self.stream.settle()  # what was said before is sent before a reset
            self._last_word(self)


class Liar:
    """A server that answers as told: its nth connection as the nth of `answers`, or as the last."""

    def __init__(self, loop, *answers, port=0, drip=None):
        self.loop = loop
        self.drip = drip
        self.peers = []
        self._answers = answers
        self._listener, = listen(loop, HOST, port, self._accepted)
        self.port = self._listener.address[1]

    def _accepted(self, connection):
        answer = self._answers[min(len(self.peers), len(self._answers) - 1)]
        self.peers.append(Peer(self, connection, answer))

    def heard(self):
        """All messages of all connections, in order."""
        return [message for peer in self.peers for message in peer.heard]

    def stop_listening(self):
        self._listener.close()


def numbers_of(seed, n):
    """n numbers, 0 to 100 (a list), as the contract has them for a seed."""
    draw = random.Random(seed)
    return [draw.randint(0, 100) for _ in range(n)]
