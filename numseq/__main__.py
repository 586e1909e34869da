"""`python -m numseq` runs the demonstration, `python -m numseq server|client ...` the programs."""

# run as a folder: let the package be found, and run it from there
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
    """Runs the server, the client or the demonstration; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    program = os.path.basename(sys.argv[0])
    if program == "__main__.py":
        program = "python -m numseq"
    command, rest = arguments[0] if arguments else "", arguments[1:]
    try:
        if not arguments:
            from .demo import main as run
        elif command == "server":
            from . import early

            early.handle_signals()  # before all that takes time to load
            from .server import main as run
        elif command == "client":
            from . import signals

            signals.catch()  # the same
            from .client import main as run
        else:
            return show(command, program)
    except (AttributeError, ImportError) as error:  # see docs/builds.md
        sys.stderr.write("numseq does not run on this Python: %s\n" % error)
        return 1
    return run(rest, "%s %s" % (program, command)) if arguments else run(program)


def server():
    """The command numseq-server; returns the exit status."""
    from . import early

    early.handle_signals()
    from .server import main as run

    return run()


def client():
    """The command numseq-client; returns the exit status."""
    from . import signals

    signals.catch()
    from .client import main as run

    return run()


def show(command, program):
    """Answers a command that runs nothing; returns the exit status."""
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
