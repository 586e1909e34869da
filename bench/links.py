#!/usr/bin/env python3
"""How the client does on slow, long and lossy links, as a table: python bench/links.py

The real client and the real server run on a simulated network (tests/simulator.py), so that the figures are
the same on every machine and take a moment. Beside each stands the ideal: the same numbers in sessions of the
same length, sent by the server at once and without a request.
"""

import argparse
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

from numseq import connect, protocol, stream  # noqa: E402
from numseq.sequence import draw  # noqa: E402
from numseq.transfer import TIMEOUT  # noqa: E402
from simulator import CLIENT_ID, PORT, SERVER_ADDRESS, Network, symmetric  # noqa: E402

SESSION = 1.0  # seconds
SECONDS_MOST = 600.0  # of simulated time, after which a fetch counts as one that never ends
SEEDS = 10  # runs on a link where chance plays a part; the table has the mean

# (name, options of the link, numbers, batch)
LINKS = [
    ("loopback", dict(), 65535, 5),
    ("100 ms", dict(round_trip=0.1), 65535, 5),
    ("300 ms, one batch", dict(round_trip=0.3), 65535, 65535),
    ("600 ms", dict(round_trip=0.6), 5, 5),
    ("600 ms", dict(round_trip=0.6), 65535, 5),
    ("600 ms", dict(round_trip=0.6), 65535, 1000),
    ("1.5 s", dict(round_trip=1.5), 5, 5),
    ("10 s", dict(round_trip=10), 5, 5),
    ("1 kbit/s", dict(rate=1000), 20, 5),
    ("9.6 kbit/s", dict(rate=9600), 1000, 5),
    ("56 kbit/s", dict(rate=56000), 20000, 5),
    ("1 Mbit/s", dict(rate=1e6), 65535, 5),
    ("14.4 kbit/s, 700 ms, queue of 30 kB", dict(round_trip=0.7, rate=14400, queue=30000), 2000, 5),
    ("128 kbit/s, 600 ms, queue of 32 kB", dict(round_trip=0.6, rate=128000, queue=32000), 20000, 5),
    ("40 ms, 20 % of packets lost", dict(round_trip=0.04, loss=0.2), 65535, 1000),
    ("100 ms, 20 % of connections cut", dict(round_trip=0.1, cut=0.2), 65535, 5),
    ("20 ms, packets over 600 bytes vanish", dict(round_trip=0.02, largest=600), 1000, 5),
]
HEAD = "| %-36s | %7s | %6s | %8s | %11s | %8s | %8s |"
ROW = "| %-36s | %7d | %6d | %8.2f | %11.1f | %6.0f %% | %8s |"


class Pusher:
    """The server's side of the ideal: sends all that is missing at once, until its time is over."""

    def __init__(self, loop, ideal, connection):
        self.stream = stream.Stream(loop, connection, self)
        self.stream.write(b"ACK;" + ideal.missing())
        self.stream.close(expect_more=False)
        loop.call_later(SESSION, self.stream.abort)

    def received(self, stream):
        stream.input = b""

    def closed(self, stream, error):
        """Its time was over, or the client had everything."""


class Ideal:
    """A client that asks for nothing and connects again at once."""

    def __init__(self, network, n, batch, patience):
        numbers = draw(CLIENT_ID.decode("ascii"), 0, n)
        self.messages = [protocol.encode_batch(numbers[place:place + batch]) for place in range(0, n, batch)]
        self.messages.append(protocol.encode(protocol.FAC, b"0" * protocol.CHECKSUM_DIGITS))
        self.got = 0
        self._network = network
        self._patience = patience  # seconds of silence after which a connection is given up
        self._silence = None  # the timer that gives a connection up
        for listener in stream.listen(network.loop, SERVER_ADDRESS, PORT + 1, self._accepted):
            self._listener = listener
        self._connect()

    def missing(self):
        """The bytes of the messages that have not arrived."""
        return b"".join(self.messages[self.got:])

    def _accepted(self, connection):
        Pusher(self._network.loop, self, connection)

    def _connect(self):
        connect.connect(self._network.loop, SERVER_ADDRESS, PORT + 1, self)

    def connected(self, stream):
        """Waits for what comes."""
        self._stream = stream
        self._listen_on()

    def _listen_on(self):
        self._network.loop.cancel(self._silence)
        self._silence = self._network.loop.call_later(self._patience, self._stream.abort)

    def received(self, stream):
        self._listen_on()
        *messages, stream.input = bytes(stream.input).split(b";")
        self.got += len(messages) - (b"ACK" in messages)
        if self.done() or stream.ended:
            stream.abort()

    def closed(self, stream, error):
        self._network.loop.cancel(self._silence)
        if not self.done():
            self._connect()

    def done(self):
        """Whether all has arrived."""
        return self.got == len(self.messages)


def ideal_seconds(options, n, batch, seed):
    """Seconds of the ideal; SECONDS_MOST where it does not end before."""
    with Network(symmetric(**options), seed) as network:
        began = network.now
        ideal = Ideal(network, n, batch, TIMEOUT + 2 * options.get("round_trip", 0))
        while not ideal.done() and network.now - began < SECONDS_MOST:
            network.loop.turn()
        return network.now - began


def measure(options, n, batch, seeds):
    """(seconds, connections, share, seconds of the ideal): means; raises SystemExit where a fetch fails."""
    figures = []
    for seed in range(seeds):
        with Network(symmetric(**options), seed) as network:
            outcome = network.fetch(n, batch, seconds=SECONDS_MOST)
        if outcome.error is not None:
            sys.exit("%r, %d numbers: %s" % (options, n, outcome.error))
        ideal = ideal_seconds(options, n, batch, seed)
        figures.append((outcome.seconds, outcome.connections, outcome.share, ideal))
    return [sum(column) / len(figures) for column in zip(*figures)]


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Prints how the client does on simulated links.")
    parser.add_argument("--quick", action="store_true", help="one run a link, and small sequences")
    quick = parser.parse_args().quick
    print(HEAD % ("link", "numbers", "batch", "seconds", "connections", "share", "ideal"))
    print(HEAD % ("---", "---:", "---:", "---:", "---:", "---:", "---:"))
    for name, options, n, batch in LINKS:
        if quick:
            n = min(n, 1000)
        seeds = SEEDS if not quick and ("loss" in options or "cut" in options) else 1
        seconds, connections, share, ideal = measure(options, n, batch, seeds)
        print(ROW % (name, n, batch, seconds, connections, 100 * share,
                     "%.2f" % ideal if ideal < SECONDS_MOST else "never"), flush=True)


if __name__ == "__main__":
    main()
