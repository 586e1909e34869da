#!/usr/bin/env python3
"""The same protocol on asyncio, for comparison: a Protocol per connection, and one write for each read.

    python bench/peer.py asyncio
    python bench/peer.py uvloop

It checks what it has to, keeps a client's sequence, ends a connection after a second, and does no more. The
texts of the numbers are made when a sequence is created, from os.urandom and not by randint, which would cost
more than all its requests.
"""

import asyncio
import hashlib
import os
import signal
import sys

SESSION_TIMEOUT = 1.0  # seconds a connection lives
RETENTION = 30.0  # seconds a sequence is kept after its last connection
BACKLOG = 1024
LIFETIME = 60  # seconds after which it ends, if nobody has ended it
MESSAGE_MOST = 54  # bytes of the longest request
N_MOST = 65535

TEXTS = ["%d" % (byte % 101) for byte in range(256)]  # a little uneven, which does not matter here


class Sequence:
    """A client's numbers, as text each."""

    __slots__ = ("texts", "batch", "connections", "timer")

    def __init__(self, n, batch):
        self.texts = [TEXTS[byte] for byte in os.urandom(n)]
        self.batch = batch
        self.connections = 0
        self.timer = None

    def checksum(self):
        text = "[%s]" % ", ".join(self.texts)
        return hashlib.new("md5", text.encode("ascii")).hexdigest()


class Connection(asyncio.Protocol):
    """One connection: its unfinished message, and the sequence that it has open."""

    def __init__(self, loop, timeout, kept):
        self.loop = loop
        self.timeout = timeout
        self.kept = kept  # from client id to Sequence
        self.input = b""
        self.sequence = self.client_id = None

    def connection_made(self, transport):
        self.transport = transport
        self.timer = self.loop.call_later(self.timeout, transport.abort)

    def data_received(self, data):
        *messages, self.input = (self.input + data).split(b";")
        replies = []
        over = False
        try:
            for message in messages:
                reply, over = self.answer(*message.decode("ascii").split(","))
                replies.append(reply)
                if over:
                    break
            if len(self.input) > MESSAGE_MOST:
                raise ValueError("too long")
        except (TypeError, ValueError):
            replies.append("ERR,Invalid message;")
            over = True
        if replies:
            self.transport.write("".join(replies).encode("ascii"))
        if over:
            self.transport.close()

    def connection_lost(self, error):
        self.timer.cancel()
        sequence = self.sequence
        if sequence is not None:
            sequence.connections -= 1
            if not sequence.connections:
                sequence.timer = self.loop.call_later(RETENTION, self.kept.pop, self.client_id)

    def answer(self, kind, *fields):
        """(reply, whether the connection is over); ValueError or TypeError for a wrong message."""
        sequence = self.sequence
        if sequence is None:
            return self.open(kind, *fields)
        if kind == "RECV":
            index, = map(int, fields)
            batch = sequence.batch
            if not 0 <= index * batch < len(sequence.texts):
                return "ERR,Invalid batch index requested: %d;" % index, False
            return "NUM,%s;" % ":".join(sequence.texts[index * batch:index * batch + batch]), False
        if kind == "FIN" and not fields:
            return "FAC,%s;" % sequence.checksum(), True
        raise ValueError(kind)

    def open(self, kind, client_id, n=None, batch=None):
        sequence = self.kept.get(client_id)
        if kind == "INIT":
            n, batch = int(n), int(batch)
            if len(client_id) != 36 or not 0 <= n <= N_MOST or not 1 <= batch <= N_MOST:
                raise ValueError(kind)
            if sequence is not None:
                return "ERR,%s already exist;" % client_id, True
            sequence = self.kept[client_id] = Sequence(n, batch)
        elif kind == "CONT":
            if sequence is None:
                return "ERR,Client-id: %s does not exist;" % client_id, True
            if sequence.timer is not None:
                sequence.timer.cancel()
                sequence.timer = None
        else:
            raise ValueError(kind)
        self.sequence, self.client_id = sequence, client_id
        sequence.connections += 1
        return "ACK;", False


async def serve(timeout):
    loop = asyncio.get_running_loop()
    kept = {}
    server = await loop.create_server(lambda: Connection(loop, timeout, kept), "127.0.0.1", 0,
                                      backlog=BACKLOG)
    print("Listening on %s:%d" % server.sockets[0].getsockname(), flush=True)
    await server.serve_forever()


def main():
    signal.alarm(LIFETIME)
    timeout = float(sys.argv[2]) if len(sys.argv) > 2 else SESSION_TIMEOUT
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.install()
    asyncio.run(serve(timeout))


if __name__ == "__main__":
    main()
