#!/usr/bin/env python3
"""The server: keeps each client's sequence for a while and sends it over connections that drop.

    python numseq/server.py 5000

Only the start is here, because Python compiles the file that it runs each time. The rest is in serving.py.
"""

if __name__ == "__main__":  # signals first: see signals.py
    import sys

    try:
        if not globals().get("__package__"):
            import os  # run as a file: let the package be found, through symbolic links too

            sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
        from numseq import signals

        signals.exit_at_once()
        from numseq.serving import main
    except KeyboardInterrupt:  # before the signals were handled
        sys.exit(0)
    except (AttributeError, ImportError) as error:  # see docs/builds.md
        print("numseq does not run on this Python:", error, file=sys.stderr)
        sys.exit(1)
    sys.exit(main())
