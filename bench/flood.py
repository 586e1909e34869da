#!/usr/bin/env python3
"""What honest clients notice of one that asks for much: python bench/flood.py

A flood of 1,200 connections asks for the most that a few bytes can ask for, again and again, while sessions
of ten
numbers are timed, one after the other. Prints their times without the flood and with it. `--request recv` has
the
flood ask for all numbers in one batch instead of for a checksum. Needs Linux, and no package.
"""

import argparse
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SERVER = os.path.join(os.path.dirname(HERE), "numseq", "server.py")
HOST = "127.0.0.1"
FLOOD = 1200  # connections at once
PATIENCE = 10.0  # seconds that one socket operation may take
REQUESTS = {"fin": b"INIT,%b,65535,5;FIN;", "recv": b"INIT,%b,65535,65535;RECV,0;",
            "small": b"INIT,%b,8192,5;FIN;"}


def new_id(draw):
    text = "%032x" % draw.getrandbits(128)
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])).encode("ascii")


def flood(port, request):
    """Keeps so many connections asking, until it is killed."""
    draw = random.Random()
    selector = selectors.DefaultSelector()

    def begin():
        peer = socket.socket()
        peer.setblocking(False)
        peer.connect_ex((HOST, port))
        selector.register(peer, selectors.EVENT_WRITE)

    for _ in range(FLOOD):
        begin()
    while True:
        for key, mask in selector.select():
            peer = key.fileobj
            try:
                if mask & selectors.EVENT_WRITE:
                    peer.send(request % new_id(draw))
                    selector.modify(peer, selectors.EVENT_READ)
                elif peer.recv(65536):
                    continue
                else:
                    raise ConnectionResetError
            except OSError:
                selector.unregister(peer)
                peer.close()
                begin()


def honest(port, seconds, draw):
    """Sorted times (seconds) of whole sessions of ten numbers, and how many failed."""
    times, failed = [], 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        data = b""
        try:
            with socket.create_connection((HOST, port), PATIENCE) as peer:
                for request, answers in (b"INIT,%b,10,5;" % new_id(draw), 1), (b"RECV,0;", 2), (b"RECV,1;",
                                                                                                3), (b"FIN;",
                                                                                                     4):
                    peer.sendall(request)
                    while data.count(b";") < answers:
                        some = peer.recv(65536)
                        if not some:
                            raise ConnectionResetError
                        data += some
            times.append(time.monotonic() - began)
        except OSError:
            failed += 1
        time.sleep(0.01)
    return sorted(times), failed


def show(name, measured):
    times, failed = measured
    if times:
        print("%-16s %5d sessions, %3d failed; ms: p50 %.1f, p99 %.1f, longest %.1f" % (
            name, len(times), failed, *(1000 * times[min(int(share * len(times)), len(times) - 1)]
                                        for share in (0.5, 0.99, 1))))
    else:
        print("%-16s none of %d sessions went through" % (name, failed))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--request", choices=sorted(REQUESTS), default="fin")
    parser.add_argument("--server", default=SERVER, help="another server.py to measure")
    parser.add_argument("options", nargs="*", help="of the server")
    arguments = parser.parse_args()
    draw = random.Random()
    server = subprocess.Popen([sys.executable, arguments.server, "0", "--quiet"] + arguments.options,
                              stdout=subprocess.PIPE, env=dict(os.environ, PYTHONUNBUFFERED="1"))
    child = 0
    try:
        port = int(server.stdout.readline().rpartition(b":")[2])
        show("alone", honest(port, arguments.seconds / 2, draw))
        child = os.fork()
        if not child:
            flood(port, REQUESTS[arguments.request])
        time.sleep(1)
        show("with the flood", honest(port, arguments.seconds, draw))
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
