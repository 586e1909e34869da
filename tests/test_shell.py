"""Command lines for a person: each shell that is here reads back exactly the words that were meant."""

import os
import shutil
import subprocess
import sys

import pytest

from numseq import shell

SHELLS = [[path] + options
          for name, options in [("sh", []), ("dash", []), ("bash", ["--posix"]), ("busybox", ["sh"])]
          for path in [shutil.which(name)]
          if path]
WORDS = [
    "plain", "a b", "it's", "''", '"', "$HOME", "`id`", "a\\b", "*", "~", "#", "!x", "a;b", "a&b", "(", "-x",
    "--a=b c", "\u00e9", "st\u00e4nd '$x' %d \\n", "tab\there", "line\nbreak", "ends\n", "\u00e9\n\n", "\n",
    "\x1b[31m", "\x7f", "%", "%s\u00e9", os.fsdecode(b"\xff\xfe raw"), "\u65e5\u672c", "a=b", "[x]", "{a,b}",
    "-\u00e9", "--a=\u00e9",
    "^", "1\x01", "",
]


@pytest.mark.parametrize("command", SHELLS, ids=lambda command: os.path.basename(command[0]))
def test_each_word_comes_back_as_it_was_from_a_shell(command):
    script = 'for word do printf "%s\\0" "$word"; done'
    line = "set -- %s\n%s" % (shell.join(WORDS), script)
    out = subprocess.check_output(command + ["-c", line], env={"LC_ALL": "C", "PATH": os.environ["PATH"]})
    assert [os.fsdecode(word) for word in out.split(b"\0")[:-1]] == WORDS


@pytest.mark.parametrize("word", WORDS)
def test_quoted_word_is_printable_ascii_but_for_line_feeds_at_its_end(word):
    quoted = shell.quote(word).replace("\n", "")
    assert quoted.isprintable() and quoted.encode("ascii")


def test_word_that_needs_no_quotes_has_none():
    for word in "numseq.state", "/tmp/a-b_c", "127.0.0.1", "[::1]"[1:-1], "a=b,c@d%e+f":
        assert shell.quote(word) == word


@pytest.fixture
def script(tmp_path):
    """A program that prints how it was called, with the words after the first two as its arguments."""
    path = tmp_path / "prog ram"
    path.write_text("#!%s\nimport sys\nsys.path.insert(0, %r)\nfrom numseq import shell\n"
                    "print(shell.program_as_called(sys.argv[1:], 'else'))\n"
                    % (sys.executable, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    path.chmod(0o755)
    return path


def run(words, **variables):
    return eval(subprocess.check_output(words, env=dict(os.environ, **variables), universal_newlines=True))


def test_program_run_by_an_interpreter_is_named_with_it(script):
    assert run([sys.executable, "-B", str(script), "NEW", "5"]) == [sys.executable, "-B", str(script)]
    assert run([sys.executable, "-B", str(script)]) == [sys.executable, "-B", str(script)]


def test_program_that_the_shell_finds_is_named_alone(script):
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    assert run([str(script), "NEW", "it's"], PATH=path) == ["prog ram"]


def test_program_that_the_shell_does_not_find_is_named_with_its_path(script):
    assert run([str(script), "NEW"])[-1] == str(script)


def test_another_program_of_the_same_name_is_not_mistaken(script, tmp_path):
    (tmp_path / "bin").mkdir()
    shutil.copy(str(script), str(tmp_path / "bin" / script.name))
    assert run([str(script), "NEW"], PATH=str(tmp_path / "bin"))[-1] == str(script)


def test_arguments_that_were_not_typed_leave_the_given_name():
    assert shell.program_as_called(["NEW", "never", "typed"], "numseq-client") == ["numseq-client"]


def test_command_line_is_known_without_orig_argv(monkeypatch):
    if not os.path.exists("/proc/self/cmdline"):
        pytest.skip("needs /proc")
    monkeypatch.delattr(sys, "orig_argv", raising=False)
    arguments = sys.argv[1:]
    assert shell.program_as_called(arguments, "else")[-1] != "else"
