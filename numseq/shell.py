"""Command lines that a person can paste into a POSIX shell as they are."""

import os
import re
import sys

PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")  # what no shell changes
SCRIPT_MOST = 128 * 1024  # bytes read of /proc/self/cmdline: longer ones are not typed by hand


def join(words):
    """A command line (text, printable ASCII but for line feeds at the end of a word) of the words (text)."""
    return " ".join(map(quote, words))


def quote(word):
    """A word (text, as in sys.argv) so that a POSIX shell takes it as it is.

    What is not printable ASCII is written by printf, which every terminal and every locale can show. A
    command substitution loses line feeds at its end, so these stay as they are, in quotes.
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
    return "\"$(printf '%s')\"" % shown + ("'%s'" % ends if ends else "")


def program_as_called(arguments, otherwise):
    """The words (list of text) before the `arguments` in the command line of this process.

    arguments  what followed the program's name (list of text)
    otherwise  the program's name (text), where the process was not started with these arguments

    ["python", "numseq/client.py"], ["python", "-m", "numseq.client"], ["numseq-client"].
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
    """All words of this process's command line, the interpreter's among them; [] where nobody knows."""
    words = getattr(sys, "orig_argv", None)  # since 3.10
    if words:
        return list(words)
    try:
        with open("/proc/self/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read(SCRIPT_MOST).split(b"\0")[:-1]]
    except OSError:
        return [sys.executable] + sys.argv if sys.executable else []


def _is_command(script):
    """Whether a shell finds the script by its name alone."""
    name = os.path.basename(script)
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return os.path.samefile(path, script) if os.path.exists(script) else False
    return False
