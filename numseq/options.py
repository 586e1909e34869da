"""What the command lines of server and client have in common."""

import argparse
import math
import sys

from . import console, protocol, signals, writer
from .stream import PORT_MOST, parse_endpoint
from .version import __version__

VERSION = "numseq " + __version__
SECONDS_MOST = 10 ** 9  # 31 years: longer than any machine runs, and far from where floats lose fractions
HELP_WIDTH = 100  # characters
COUNT_MOST = 10 ** 9  # the limit of counts that have no limit of their own

RawDescription = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes options by their full names alone."""

    def __init__(self, **keywords):
        super().__init__(allow_abbrev=False, **keywords)

    def error(self, message):
        """Prints the message and where to find help in one line, and exits with status 2."""
        self.exit(2, console.plain("%s: %s (see %s -h)" % (self.prog, message, self.prog)) + "\n")

    def _print_message(self, message, file=None):
        """Writes help, the version or an error; argparse would hide a failure, or show a traceback."""
        if not message:
            return
        try:
            writer.put_text(file or sys.stderr, message)
        except writer.Stopped:
            raise SystemExit(128 + signals.arrived[0]) from None
        except writer.OutputFailed as error:
            if file is sys.stdout:
                raise SystemExit(writer.report(self.prog, error)) from None

    def _get_formatter(self):
        # With a width given, argparse does not load shutil to ask the terminal for its own.
        return self.formatter_class(prog=self.prog, width=HELP_WIDTH)

    def add_version(self):
        """Adds --version."""
        self.add_argument("--version", action="version", version=VERSION)


def number(least, most):
    """An argument type: a whole number (int) from least to most, in ASCII digits."""

    def parse(text):
        try:
            return protocol.parse_number(text.encode("ascii"), least, most)
        except ValueError:
            raise argparse.ArgumentTypeError("%a is not a number from %d to %d"
                                             % (text, least, most)) from None

    return parse


def seconds(text):
    """An argument type: seconds (float) above 0."""
    try:
        value = float(text) if set(text) <= set("0123456789.eE+-") else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value <= SECONDS_MOST:
        raise argparse.ArgumentTypeError("%a is not a time in seconds, above 0 and up to %d"
                                         % (text, SECONDS_MOST))
    return value


def client_id(text):
    """An argument type: a UUID (bytes)."""
    data = text.encode("ascii", "replace")
    if not protocol.is_id(data):
        raise argparse.ArgumentTypeError("%a is not a UUID such as 123e4567-e89b-12d3-a456-426614174000"
                                         % text)
    return data


def host(text):
    """An argument type: HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT, as it is written (text)."""
    try:
        parse_endpoint(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("%a is not HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT: %s"
                                         % (text, error)) from None
    return text


port = number(0, PORT_MOST)
server_port = number(1, PORT_MOST)


def endpoint(text):
    """An argument type: HOST:PORT or [ADDRESS]:PORT, as (host, port)."""
    host, colon, number = text.rpartition(":")
    if not colon or not host or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise argparse.ArgumentTypeError("%a is not HOST:PORT or [ADDRESS]:PORT" % text)
    return host, port(number)
