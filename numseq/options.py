"""Common parts of the command lines of server and client: the parser and the types of arguments.

An argument type is a function from text to a value. It raises argparse.ArgumentTypeError for wrong text.
"""

import argparse
import math
import sys

from . import console, protocol, signals, writer
from .addresses import PORT_MOST, parse_endpoint
from .version import __version__

VERSION = "numseq " + __version__
SECONDS_MOST = 10 ** 9  # 31 years: longer than any machine runs, and a float still has fractions of seconds
HELP_WIDTH = 100  # characters per line
COUNT_MOST = 10 ** 9  # limit of counts that have no limit of their own


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Formats the help to a fixed width, and keeps the line breaks of descriptions.

    Without a given width, argparse loads shutil and its decompressors, to ask for the terminal's.
    """

    def __init__(self, prog, **keywords):  # newer versions of argparse pass more than prog
        super().__init__(prog, **dict(keywords, width=HELP_WIDTH))


class Version(argparse.Action):
    """The action of --version: prints the version and exits."""

    def __init__(self, option_strings, dest, **keywords):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS,
                         help="show program's version number and exit")

    def __call__(self, parser, namespace, values, option_string=None):
        parser.put(VERSION + "\n", sys.stdout)
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line, and whose options cannot be abbreviated."""

    def __init__(self, **keywords):
        if sys.version_info >= (3, 14):
            keywords["color"] = False  # colours load dataclasses and more, even without a terminal
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **keywords)

    def error(self, message):
        """Prints the message, with a reference to -h, in one line and exits with status 2."""
        self.exit(2, console.plain("%s: %s (see %s -h)" % (self.prog, message, self.prog)) + "\n")

    def exit(self, status=0, message=None):
        """Exits with the status, after writing the message (text or None) to standard error."""
        if message:
            self.put(message, sys.stderr)
        raise SystemExit(status)

    def print_help(self, file=None):
        """Writes the help to `file`: sys.stderr, or sys.stdout by default."""
        self.put(self.format_help(), sys.stdout if file is None else file)

    def put(self, text, stream):
        """Writes text to sys.stdout or sys.stderr; argparse would hide a failure, or show a traceback."""
        try:
            writer.put_text(stream, text)
        except writer.Stopped:
            raise SystemExit(128 + signals.arrived[0]) from None
        except writer.OutputFailed as error:
            if stream is sys.stdout:
                raise SystemExit(writer.report(self.prog, error)) from None

    def add_version(self):
        """Adds --version."""
        self.add_argument("--version", action=Version)


def number(least, most):
    """An argument type: an integer from least to most, in ASCII digits."""

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
    """An argument type: HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT (text, unchanged)."""
    try:
        parse_endpoint(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("%a is not HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT: %s"
                                         % (text, error)) from None
    return text


port = number(0, PORT_MOST)
server_port = number(1, PORT_MOST)


def endpoint(text):
    """An argument type: HOST:PORT or [ADDRESS]:PORT, as (host, port), text and int."""
    host, colon, number = text.rpartition(":")
    if not colon or not host or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise argparse.ArgumentTypeError("%a is not HOST:PORT or [ADDRESS]:PORT" % text)
    return host, port(number)
