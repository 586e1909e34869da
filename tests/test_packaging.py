"""The ready-made files for service managers: they are well formed, and their command lines are understood."""

import os
import shlex
import shutil
import subprocess

import pytest

from helpers import ROOT
from numseq import serving

SYSTEMD = os.path.join(ROOT, "packaging", "systemd")
OPENWRT = os.path.join(ROOT, "packaging", "openwrt", "etc")

# What procd's own functions would do: say what they were called with.
PROCD = """
config_load() { :; }
config_foreach() { "$1" main; }
config_get_bool() { eval "$1=${CONFIG_ENABLED-$4}"; }
config_get() { eval "$1=\\"\\${CONFIG_$3-$4}\\""; }
procd_open_instance() { echo "open $*"; }
procd_set_param() { printf '%s\\n' "$*"; }
procd_close_instance() { echo close; }
procd_add_reload_trigger() { echo "reload $*"; }
. "$1"
"$2"
"""


def lines_of(name):
    with open(os.path.join(SYSTEMD, name), encoding="utf-8") as file:
        return [line.strip() for line in file if "=" in line and not line.startswith("#")]


def server_arguments(words):
    """The settings that the server reads from a command line that runs numseq.pyz."""
    assert words[words.index("server") - 1].endswith("/numseq.pyz")
    known = vars(serving.parse_arguments(["0"], "numseq"))
    arguments = words[words.index("server") + 1:]
    if "store" not in known:  # before there are stores to choose from
        place = arguments.index("--store")
        del arguments[place:place + 2]
    return serving.parse_arguments(arguments, "numseq")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_units():
    done = subprocess.run(["systemd-analyze", "verify", "--man=no"] + [os.path.join(SYSTEMD, name)
                                                                       for name in os.listdir(SYSTEMD)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    assert [line for line in done.stdout.splitlines() if "numseq" in line
            and "not executable" not in line] == []


def test_the_service_runs_a_server_that_knows_all_its_options():
    command, = [line for line in lines_of("numseq.service") if line.startswith("ExecStart=")]
    settings = server_arguments(shlex.split(command[len("ExecStart="):]))
    assert settings.port == 5000 and settings.quiet


def test_the_service_expects_what_the_server_says():
    lines = lines_of("numseq.service")
    assert {"Type=notify", "WatchdogSec=10", "Requires=numseq.socket"} <= set(lines)


def test_the_service_is_started_again_for_ever():
    assert {"Restart=always", "RestartSec=1", "StartLimitIntervalSec=0"} <= set(lines_of("numseq.service"))


def test_the_socket_is_one_that_the_server_takes():
    lines = lines_of("numseq.socket")
    assert "ListenStream=5000" in lines and "Accept=yes" not in lines


def procd(function, **config):
    """The lines of what the script asks of procd."""
    environment = dict(os.environ, **{"CONFIG_" + name: value for name, value in config.items()})
    done = subprocess.run(["sh", "-e", "-c", PROCD, "sh", os.path.join(OPENWRT, "init.d", "numseq"),
                           function], env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_procd_runs_a_server_that_knows_all_its_options():
    lines = procd("start_service", port="5001", host="0.0.0.0", connections="7", store="redis://:secret@host")
    command, = [line for line in lines if line.startswith("command ")]
    settings = server_arguments(command.split())
    assert (settings.port, settings.host, settings.connections) == (5001, "0.0.0.0", 7)
    assert "env NUMSEQ_STORE=redis://:secret@host" in lines and "secret" not in command
    assert lines[0] == "open main" and lines[-1] == "close"
    assert {"limits nofile=1024 1024", "respawn 60 5 0", "stdout 1", "stderr 1"} <= set(lines)


def test_procd_does_not_start_what_is_disabled():
    assert procd("start_service", ENABLED="0") == []


def test_procd_starts_it_again_when_its_settings_change():
    assert procd("service_triggers") == ["reload numseq"]


def test_the_settings_of_procd_are_those_that_the_script_reads():
    with open(os.path.join(OPENWRT, "config", "numseq"), encoding="utf-8") as file:
        options = [line.split()[1] for line in file if line.strip().startswith("option")]
    with open(os.path.join(OPENWRT, "init.d", "numseq"), encoding="utf-8") as file:
        script = file.read()
    for name in options:
        assert " %s \"$1\" %s " % (name, name) in script


def test_the_init_script_can_be_executed():
    assert os.access(os.path.join(OPENWRT, "init.d", "numseq"), os.X_OK)
