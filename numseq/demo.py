"""A demonstration in one process, on one loop: a fetch whose connection is cut, continued and verified."""

from .journal import Journal
from .loop import Loop
from .output import Output
from .serving import Server
from .store_memory import MemoryStore
from .transfer import Fetch, new_id
from .writer import OutputFailed, report

HOST = "127.0.0.1"
NUMBERS = 40
BATCH = 5
CUT_AT = "RECV,4;"  # the connection is cut when this is sent: half of the batches are still missing
SECONDS_MOST = 20.0  # time limit, in case it hangs


def main(program="numseq"):
    """Runs the demonstration; returns 0 for a valid checksum, else 1, or the status of an OutputFailed.

    program  the program's name (text), for error messages
    """
    try:
        output = Output(program)
        try:
            return show(output)
        except OSError as error:  # no file is left, or no network is there
            output.complain(error)
            return 1
    except OutputFailed as error:
        return report(program, error)


def show(output):
    """Runs the demonstration on an Output; returns the exit status. Raises as an Output does."""
    loop = Loop()
    server = Server(loop, MemoryStore(loop, forgotten=lambda client_id: None))
    journal = Journal(new_id(), NUMBERS, BATCH)
    outcome = []

    def watch(event, detail):
        output.event(event, detail, "  ")
        if event == "sending" and detail == CUT_AT and not outcome:
            output.line("(cutting the connection)")
            for session in list(server.sessions):
                loop.call_later(0, session.stream.abort)

    def fetch(done, resume):
        return Fetch(loop, HOST, port, journal, done, resume, window=1, watch=watch)

    def first_ended(transfer, error):
        outcome.append(error)
        output.line("(%d of %d numbers are here; continuing)" % (len(journal.numbers), NUMBERS))
        fetch(second_ended, resume=True)

    def second_ended(transfer, error):
        outcome.append(error)
        output.result(transfer, error)
        loop.stop()

    port = server.listen(HOST, 0)[0][1]
    output.line("(a server listens on %s:%d, a client fetches %d numbers)" % (HOST, port, NUMBERS))
    loop.call_later(SECONDS_MOST, loop.stop)
    fetch(first_ended, resume=False)
    loop.run()
    server.close()
    loop.close()
    output.flush()
    return 0 if outcome[1:] == [None] and outcome[0] is not None else 1
