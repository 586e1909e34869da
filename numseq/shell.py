"""Command lines to be pasted into a POSIX shell."""

import os
import re
import sys

PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")  # words that need no quotes
SCRIPT_MOST = 128 * 1024  # bytes read of /proc/self/cmdline; nobody types a longer command line


def join(words):
    """The command line (text) of the words (list of text), in printable ASCII.

    The only exception are line feeds at the end of a word.
    """
    return " ".join(map(quote, words))


def quote(word):
    """A word (text, as in sys.argv), quoted for a POSIX shell.

    Characters other than printable ASCII become escapes of printf, so that any terminal and locale can show
    them. Line feeds at the end stay as they are, in quotes, because a command substitution drops them.
    """
    if PLAIN.fullmatch(word):
        return word
    text = word.rstrip("\n")
    ends = word[len(text):]
    data = os.fsencode(text)
    if all(32 <= byte < 127 for byte in data):
        return "'%s'" % word.replace("'", "'\\''")
    shown = "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\%" else "\\%03o" % byte
                    for byte in data)
    if shown[0] == "-":  # printf would take it as an option
        shown = "\\%03o" % ord("-") + shown[1:]
    return "\"$(printf '%s')\"" % shown + ("'%s'" % ends if ends else "")


def program_as_called(arguments, otherwise):
    """The words (list of text) that called this program, without its arguments.

    Examples: ["python", "numseq/client.py"], ["python", "-m", "numseq.client"], ["numseq-client"].

    arguments  the arguments after the program's name (list of text)
    otherwise  the program's name (text), returned if the process was not started with these arguments
    """
    words = _original_words()
    count = len(words) - len(arguments)
    if count < 1 or words[count:] != list(arguments):
        return [otherwise]
    words = words[:count]
    script = sys.argv[0]
    if script in words and _is_command(script):
        words = [os.path.basename(script)] + words[words.index(script) + 1:]
    return words


def _original_words():
    """The whole command line of this process, including the interpreter (list of text); [] if unknown."""
    words = getattr(sys, "orig_argv", None)  # since Python 3.10
    if words:
        return list(words)
    try:
        with open("/proc/self/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read(SCRIPT_MOST).split(b"\0")[:-1]]
    except OSError:
        return [sys.executable] + sys.argv if sys.executable else []


def _is_command(script):
    """Whether a shell finds this script by its name alone, in PATH."""
    name = os.path.basename(script)
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return os.path.samefile(path, script) if os.path.exists(script) else False
    return False
