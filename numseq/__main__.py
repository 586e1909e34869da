"""`python -m numseq` runs the demonstration, `python -m numseq server|client ...` the programs."""

# When this directory is run as a script, import the package by its path and run it from there.
if __name__ == "__main__" and not __package__:
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    from numseq.__main__ import main

    sys.exit(main())

import os
import sys

USAGE = """usage: %(prog)s                       show a fetch whose connection is cut, in one process
       %(prog)s server PORT [...]     run the server
       %(prog)s client COMMAND [...]  run the client"""


def main(arguments=None):
    """Runs the server, the client or the demonstration; returns the exit status.

    arguments  the command line without the program's name (list of text); by default that of the process
    """
    try:
        return dispatch(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # the server and the client handle the signal themselves
        return 130


def dispatch(arguments):
    """Does the work of `main`, where arguments is a list of text."""
    program = os.path.basename(sys.argv[0])
    if program == "__main__.py":
        program = "python -m numseq"
    command, rest = arguments[0] if arguments else "", arguments[1:]
    load = LOADERS.get(command) if arguments else load_demo
    try:
        if load is None:
            return show(command, program)
        run = load()
    except (AttributeError, ImportError) as error:  # see docs/builds.md
        sys.stderr.write("numseq does not run on this Python: %s\n" % error)
        return 1
    return run(rest, "%s %s" % (program, command)) if arguments else run(program)


def load_server():
    """The server's `main`. Signals are handled before the slow imports."""
    from . import signals

    signals.exit_at_once()
    from .serving import main as run

    return run


def load_client():
    """The client's `main`. Signals are caught before the slow imports."""
    from . import signals

    signals.catch()
    from .fetching import main as run

    return run


def load_demo():
    """The demonstration's `main`."""
    from .demo import main as run

    return run


LOADERS = {"server": load_server, "client": load_client}


def server():
    """Entry point of the command numseq-server; returns the exit status."""
    return load_server()()


def client():
    """Entry point of the command numseq-client; returns the exit status."""
    return load_client()()


def show(command, program):
    """Prints help or version, or an error for an unknown command (text); returns the exit status."""
    from . import writer
    from .version import __version__

    usage = USAGE % {"prog": program}
    texts = {"-h": usage, "--help": usage, "--version": "numseq " + __version__}
    try:
        if command in texts:
            writer.put_text(sys.stdout, texts[command] + "\n")
            return 0
        writer.put_text(sys.stderr, "%s: unknown command %a, expected server or client (see %s -h)\n"
                        % (program, command, program))
    except writer.OutputFailed as error:
        if command in texts:
            return writer.report(program, error)
    return 2


if __name__ == "__main__":
    sys.exit(main())
