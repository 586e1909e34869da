"""The server's command line: what is taken, and the one line that says what is not."""

import argparse
import math
import sys

import pytest

from helpers import run_python

from numseq import __version__, options, serving, store

ID = "123e4567-e89b-12d3-a456-426614174000"
NO_WHOLE_NUMBERS = ["", " ", "x", "1_0", " 5", "5 ", "+5", "-1", "5.0", "1e3", "0x10", "5\n", "\u0665",
                    "\u00b2", "5" * 50, "nan", "inf", "\udcff"]
NO_SECONDS = ["", " ", "x", "0", "0.0", "-0", "-1", "-0.5", "nan", "NaN", "inf", "-inf", "Infinity", "1e300",
              "1e400", "1e-400", "1000000001", "1_0", " 5", "5 ", "5\n", "0x10", "\u0665", "5s", "1e", "e",
              ".", "--5", "1.2.3"]


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """parse_arguments drops modules that it has read the command line with: other tests need them."""
    for name in {"argparse", "gettext", "numseq.options"} & set(sys.modules):
        monkeypatch.setitem(sys.modules, name, sys.modules[name])


def parse(*arguments):
    return serving.parse_arguments(list(arguments), "server.py")


@pytest.fixture
def refusal(capsys):
    """A function: the one line on standard error with which the arguments are refused."""

    def refuse(*arguments):
        with pytest.raises(SystemExit) as caught:
            parse(*arguments)
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == ""
        assert err.endswith("\n") and err.startswith("server.py: ")
        assert err[:-1].isprintable(), "not one line of plain text"
        return err

    return refuse


# ---- types


@pytest.mark.parametrize("text, value",
                         [("1", 1), ("007", 7), ("65535", 65535), ("65536", None), ("0", None), ("4", 4)])
def test_whole_numbers_keep_to_their_range(text, value):
    parse_it = options.number(1, 65535)
    if value is None:
        with pytest.raises(argparse.ArgumentTypeError):
            parse_it(text)
    else:
        assert parse_it(text) == value


@pytest.mark.parametrize("parse_it", [options.number(0, 10 ** 9), options.port, options.server_port])
@pytest.mark.parametrize("text", NO_WHOLE_NUMBERS, ids=ascii)
def test_invalid_whole_number_is_refused(parse_it, text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_it(text)


@pytest.mark.parametrize("parse_it, least", [(options.port, 0), (options.server_port, 1)])
def test_port_keeps_to_its_range(parse_it, least):
    assert parse_it(str(least)) == least
    assert parse_it("65535") == 65535
    for text in (str(least - 1), "65536"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_it(text)


@pytest.mark.parametrize("text, value", [
    ("1", 1.0), ("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("30", 30.0), ("1e3", 1000.0), ("1E-3", 0.001),
    ("1000000000", 1e9)])
def test_times_are_seconds_with_fractions(text, value):
    parsed = options.seconds(text)
    assert parsed == value and isinstance(parsed, float)


@pytest.mark.parametrize("text", NO_SECONDS, ids=ascii)
def test_time_that_is_not_above_0_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        options.seconds(text)


@pytest.mark.parametrize("text", [ID, ID.upper()])
def test_client_id_is_taken_as_it_is_written(text):
    assert options.client_id(text) == text.encode()


@pytest.mark.parametrize("text", ["", ID[:-1], ID + "0", "{%s}" % ID, ID.replace("-", ""), ID[:-1] + "g",
                                  ID[:-1] + "\u0665", ID[:-1] + "\udcff", ID[:-1] + "?", ID + "\n"],
                         ids=ascii)
def test_invalid_uuid_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        options.client_id(text)


@pytest.mark.parametrize("parse_it, text", [
    (options.port, "\x1b[2J\n"), (options.seconds, "\x1b[2J\n"), (options.client_id, "\x1b[2J\n"),
    (options.port, "\u0665"), (options.client_id, "\udcff%s")])
def test_errors_are_plain_text(parse_it, text):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse_it(text)
    assert all(" " <= character <= "~" for character in str(caught.value))


# ---- the server's arguments


def test_server_needs_only_a_port():
    settings = parse("5000")
    assert settings.port == 5000
    assert settings.host == "127.0.0.1"
    assert settings.session_timeout == serving.SESSION_TIMEOUT == 1.0
    assert settings.retention == store.RETENTION == 30.0
    assert settings.clients == store.CLIENTS_MOST
    assert settings.connections is None
    assert not settings.quiet and not settings.verbose


def test_every_setting_can_be_made():
    settings = parse("0", "--host", "::1", "--session-timeout", "0.25", "--retention", "1e2", "--connections",
                     "7", "--clients", "8", "--unsent", "2048", "--turn-bytes", "1024", "--turn-messages",
                     "1", "-v")
    assert (settings.port, settings.host) == (0, "::1")
    assert (settings.session_timeout, settings.retention) == (0.25, 100.0)
    assert (settings.connections, settings.clients, settings.unsent) == (7, 8, 2048)
    assert (settings.turn_bytes, settings.turn_messages, settings.verbose) == (1024, 1, True)
    assert parse("5000", "--quiet").quiet


def test_port_may_stand_anywhere():
    assert parse("--retention", "5", "5000").port == parse("5000", "--retention=5").port == 5000


@pytest.mark.parametrize("text", NO_WHOLE_NUMBERS[:-1] + ["65536", "70000"], ids=ascii)
def test_invalid_port_is_refused_in_one_line(refusal, text):
    assert "port" in refusal("--", text)


@pytest.mark.parametrize("option", ["--session-timeout", "--retention"])
@pytest.mark.parametrize("text", NO_SECONDS, ids=ascii)
def test_invalid_time_is_refused_in_one_line(refusal, option, text):
    assert option in refusal("5000", option + "=" + text)


@pytest.mark.parametrize("text", ["-1", "0", "nan", "1_0", ""])
def test_invalid_time_is_refused_as_a_separate_argument_too(refusal, text):
    assert "--retention" in refusal("5000", "--retention", text)


@pytest.mark.parametrize("option",
                         ["--connections", "--clients", "--unsent", "--turn-bytes", "--turn-messages"])
@pytest.mark.parametrize("text", ["0", "-1", "1_0", "1000000001", "", "1.5"])
def test_invalid_limit_is_refused_in_one_line(refusal, option, text):
    assert option in refusal("5000", option, text)


@pytest.mark.parametrize("option", ["--unsent", "--turn-bytes"])
def test_limit_below_the_longest_message_is_refused(refusal, option):
    assert option in refusal("5000", option, "1023")


@pytest.mark.parametrize("arguments", [
    ["5000", "--nope"], ["5000", "5001"], ["5000", "--retent", "5"], ["5000", "--session", "5"],
    ["5000", "--retention"], ["--retention", "5"], ["5000", "-q", "-v"], ["5000", "--quiet", "--verbose"],
    ["5000", "-x"], ["5000", "--quiet=1"]], ids=" ".join)
def test_unknown_arguments_are_refused_in_one_line(refusal, arguments):
    assert "-h" in refusal(*arguments)


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b[2J", "\x9b2J", "\u202e"], ids=ascii)
@pytest.mark.parametrize("arguments",
                         ["%s", "5000 %s", "5000 --retention %s", "5000 --%s", "5000 --quiet=%s"])
def test_control_characters_do_not_reach_the_terminal(refusal, arguments, text):
    refusal(*[argument.replace("%s", text) for argument in arguments.split(" ")])


# ---- help and version


def test_server_without_arguments_prints_its_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        parse()
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith("usage: server.py") and "--retention" in err and "TEST_MODE" in err


def test_help_goes_to_standard_output(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("-h")
    out, err = capsys.readouterr()
    assert caught.value.code == 0
    assert out.startswith("usage: server.py") and "30" in out
    assert err == ""


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--version")
    out, err = capsys.readouterr()
    assert caught.value.code == 0
    assert (out, err) == ("numseq %s\n" % __version__, "")


@pytest.mark.parametrize("arguments, status, stream", [
    ([], 2, "stderr"), (["x"], 2, "stderr"), (["--version"], 0, "stdout"), (["-h"], 0, "stdout")], ids=repr)
def test_program_ends_with_the_same_status_and_message(arguments, status, stream):
    code = ("import io, subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, 'numseq/server.py'] + %r, stdin=subprocess.DEVNULL,\n"
            "                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
            "out, err = child.communicate()\n"
            "print(child.returncode, 'stdout' * bool(out) + 'stderr' * bool(err), b'Traceback' in err)"
            % arguments)
    assert run_python(code) == "%d %s False\n" % (status, stream)


def test_seconds_are_finite_whatever_is_given():
    assert math.isfinite(options.SECONDS_MOST)
    assert options.seconds(str(options.SECONDS_MOST)) == options.SECONDS_MOST
