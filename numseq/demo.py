"""A demonstration in one process, on one loop: a fetch whose connection is cut, continued and verified."""

import sys

from .journal import Journal
from .loop import Loop
from .output import TRANSCRIPT, OutputFailed, put_line, put_result, status_without_output
from .server import Server
from .store_memory import MemoryStore
from .transfer import Fetch, new_id

HOST = "127.0.0.1"
NUMBERS = 40
BATCH = 5
CUT_AT = "RECV,4;"  # the connection is cut once this is sent: half of the batches are missing then
SECONDS_MOST = 20.0  # ends the demonstration if it hangs


def main(program="numseq"):
    """Prints the demonstration; returns 0 for a valid checksum, else 1, or the status of failed output."""
    try:
        return show()
    except (BrokenPipeError, OutputFailed) as error:
        return status_without_output(error, program)


def show():
    """Runs it; returns the exit status. Raises BrokenPipeError and OutputFailed."""
    loop = Loop()
    server = Server(loop, MemoryStore(loop, forgotten=lambda client_id: None))
    journal = Journal(new_id(), NUMBERS, BATCH)
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
        return Fetch(loop, HOST, port, journal, done, resume, window=1, watch=watch)

    def first_ended(transfer, error):
        outcome.append(error)
        say("(%d of %d numbers are here; continuing)" % (len(journal.numbers), NUMBERS))
        fetch(second_ended, resume=True)

    def second_ended(transfer, error):
        outcome.append(error)
        put_result(sys.stdout, transfer, error)
        loop.stop()

    port = server.listen(HOST, 0)[0][1]
    say("(a server listens on %s:%d, a client fetches %d numbers)" % (HOST, port, NUMBERS))
    loop.call_later(SECONDS_MOST, loop.stop)
    fetch(first_ended, resume=False)
    loop.run()
    server.close()
    loop.close()
    return 0 if outcome[1:] == [None] and outcome[0] is not None else 1
