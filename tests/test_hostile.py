"""Hostile peers against the server as a process. While each storm lasts, honest clients complete and memory is bounded.

    python tests/test_hostile.py        prints what each storm measured, as a table
"""

import collections
import os
import random
import resource
import socket
import threading
import time

import pytest

from conftest import fill
from programs import CLIENT_ID, HOST, ServerProgram

from numseq import protocol
from numseq.client import Fetch, new_id
from numseq.journal import Journal
from numseq.loop import Loop
from numseq.server import SESSION_TIMEOUT

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc to look at the server")
lesson = pytest.mark.lesson

N, BATCH = 500, 5  # what an honest client fetches
BEGUN = 50  # batches that the bystander has before the storm
PATIENCE = 5.0  # seconds that one socket operation may take
RETRIES = 50  # of an honest client that finds the server full
FILES = 128  # the limit of open files where a storm goes past it
QUIET_SECONDS = 0.5
QUIET_TICKS = 2  # of 10 ms: looking at the clock and forgetting a record are none, spinning is 50
SEED = 1

MIB = 1024  # KiB
# How much more memory the server may ever have had in a storm than before it, and why.
ENDLESS_MOST = 4 * MIB  # one read of 64 KiB is kept of each of ten, the rest is thrown away
RANDOM_MOST = 4 * MIB  # connections one by one
MUTATED_MOST = 8 * MIB  # besides, the records of those that were good, and the places of batches of many sizes
SLOW_MOST = 4 * MIB  # 200 connections of a few KiB
DEAF_MOST = 48 * MIB  # 40 times twice the mark of unsent output (256 KiB) and its sequence, and the copies of one turn
FLOOD_MOST = 4 * MIB  # as many connections as there may be files, of a few KiB each
GREEDY_MOST = 24 * MIB  # 32 sequences with their text in one turn, and 100,000 bytes for what 1,500 records take

Measured = collections.namedtuple("Measured", [
    "storm", "seconds", "connections", "megabytes", "honest", "slowest", "before", "grown", "bound", "ticks"])


# ---- hostile peers


class Attack:
    """What the storms are made of: plain sockets, and a count of what went through them."""

    def __init__(self, port):
        self.draw = random.Random(SEED)
        self.connections = 0
        self.bytes = 0
        self._address = HOST, port
        self._open = []

    def connect(self, receive_buffer=None):
        """A new connection."""
        peer = socket.socket()
        if receive_buffer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer.settimeout(PATIENCE)
        peer.connect(self._address)
        self.connections += 1
        self._open.append(peer)
        return peer

    def send(self, peer, data):
        """Sends all of it, unless the server has closed the connection; returns whether it has not."""
        try:
            peer.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        self.bytes += len(data)
        return True

    def answer(self, peer):
        """All that the server says to its end; the connection is closed then."""
        answer = bytearray()
        try:
            while True:
                some = peer.recv(1 << 20)
                if not some:
                    break
                answer += some
        except ConnectionResetError:
            pass
        peer.close()
        self._open.remove(peer)
        return bytes(answer)

    def say(self, data):
        """A connection that says so much and no more; returns the answer."""
        peer = self.connect()
        if self.send(peer, data):
            peer.shutdown(socket.SHUT_WR)
        return self.answer(peer)

    def close(self):
        for peer in self._open:
            peer.close()


def endless(attack):
    """A million bytes without a terminator; the reason gets through to the sender nevertheless."""
    for beginning in [b"", b"INIT,%b,5,5;" % new_id(), b"RECV,", b"INIT,%b,"] * 10:
        peer = attack.connect()
        attack.send(peer, beginning + b"x" * 1000000)
        assert attack.answer(peer).endswith(b"ERR,Message too long;")


def random_bytes(attack):
    """Bytes of any kind, also many terminators among them."""
    for number in range(400):
        data = bytes(attack.draw.choice([range(256), b"INITCONTRECVFIN0123456789-,;;;"][number % 2]) for _ in range(2000))
        assert attack.answer_of_one(data) if hasattr(attack, "answer_of_one") else attack.say(data).startswith(b"ERR,")
