#!/usr/bin/env python3
"""The fastest a Python server can be: bare recv and send of the same bytes on epoll, without a protocol.

    python bench/ceiling.py BATCH WINDOW [keep]

Whatever is read, its first byte picks the answer, which was made beforehand: nothing is parsed, drawn,
checked, timed or told apart. It is well-formed, so that the load can be the same as a server's. One read has
to be one request, or one window of them. With `keep` it remembers every client.
"""

import hashlib
import os
import random
import select
import signal
import socket
import sys

READ_SIZE = 64 * 1024  # bytes of one recv, as in numseq
BACKLOG = 1024
LIFETIME = 60  # seconds after which it ends, if nobody has ended it
ID = slice(len("INIT,"), len("INIT,") + 36)  # where an INIT has its client's id
SEED_BYTES = 16  # of what is kept of a client


def answers_to(batch, window):
    """{first byte of a read: its answer}, with `batch` random numbers per NUM and `window` NUMs."""
    draw = random.Random(batch).randint
    numbers = [draw(0, 100) for _ in range(batch)]
    reply = b"NUM," + b":".join(b"%d" % number for number in numbers) + b";"
    checksum = hashlib.new("md5", str(numbers).encode("ascii")).hexdigest()
    return {b"I"[0]: b"ACK;", b"C"[0]: b"ACK;", b"R"[0]: reply * window,
            b"F"[0]: b"FAC,%b;" % checksum.encode("ascii")}


def listen():
    """A socket that listens on a free port."""
    listening = socket.socket()
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    listening.bind(("127.0.0.1", 0))
    listening.listen(BACKLOG)
    return listening


def serve(listening, answers, keep):
    """Answers what comes, and closes after a FIN.

    The sockets block: none is read before there is something.
    """
    epoll = select.epoll()
    epoll.register(listening.fileno(), select.EPOLLIN)
    last = b"F"[0]
    first = b"I"[0] if keep else None
    connections = {}
    kept = {}  # from client id to a seed: the least that a client can be remembered with
    while True:
        for number, _ in epoll.poll():
            connection = connections.get(number)
            if connection is None:
                number, _ = listening._accept()  # accept() makes objects that nobody needs here
                connections[number] = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, number)
                epoll.register(number, select.EPOLLIN)
                continue
            data = b""
            try:
                data = connection.recv(READ_SIZE)
                if data:
                    connection.sendall(answers[data[0]])
            except ConnectionError:
                pass
            if not data or data[0] == last:
                epoll.unregister(number)
                del connections[number]
                connection.close()
            elif data[0] == first:
                kept[data[ID]] = os.urandom(SEED_BYTES)


def main():
    signal.alarm(LIFETIME)
    listening = listen()
    print("Listening on %s:%d" % listening.getsockname(), flush=True)
    serve(listening, answers_to(*map(int, sys.argv[1:3])), "keep" in sys.argv)


if __name__ == "__main__":
    main()
