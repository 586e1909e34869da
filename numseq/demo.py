"""The main job in one process, on one loop: a fetch whose connection is cut on the way, and that goes on and verifies."""

import sys

from .client import TRANSCRIPT, Fetch, OutputFailed, new_id, put_line, without_output
from .journal import Journal
from .loop import Loop
from .server import Server
from .store import MemoryStore

HOST = "127.0.0.1"
NUMBERS = 40
BATCH = 5
CUT_AT = "RECV,4;"  # the connection is cut once this was sent: half of the batches are missing then
SECONDS_MOST = 2.5  # it ends by itself


def main(program="numseq"):
    """Shows it on standard output; returns 0 if the checksum held, else 1, or what without output is the status."""
    try:
        return show()
    except (BrokenPipeError, OutputFailed) as error:
        return without_output(error, program)


def show():
    """Shows it; returns the exit status. Raises BrokenPipeError and OutputFailed."""
    loop = Loop()
    server = Server(loop, MemoryStore(loop, forgotten=lambda client_id: None))
    begun = Journal(new_id(), NUMBERS, BATCH)
    outcome = []

    def say(text):
        put_line(sys.stdout, text)

    def watch(event, detail):
        say("  " + TRANSCRIPT[event] % detail)
        if event == "sending" and detail == CUT_AT and not outcome:
            say("(cutting the connection)")
            for session in list(server.sessions):
                loop.call_later(0, session.stream.abort)

    def fetch(done, resume):
        return Fetch(loop, HOST, port, begun, done, resume, window=1, watch=watch)

    def first_ended(fetched, error):
        outcome.append(error)
        say("(%d of %d numbers are here; continuing)" % (len(begun.numbers), NUMBERS))
        fetch(second_ended, resume=True)

    def second_ended(fetched, error):
        outcome.append(error)
        if fetched.checksum is not None:
            say("The SUM of numbers is: %d" % fetched.sum)
            say("Checksum (%s) is %s!" % (fetched.checksum, "valid" if error is None else "not valid"))
        loop.stop()

    port = server.listen(HOST, 0)[0][1]
    say("(a server listens on %s:%d, a client fetches %d numbers)" % (HOST, port, NUMBERS))
    loop.call_later(SECONDS_MOST, loop.stop)
    fetch(first_ended, resume=False)
    loop.run()
    server.close()
    loop.close()
    return 0 if outcome[1:] == [None] and outcome[0] is not None else 1
