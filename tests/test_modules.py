"""The modules of the standard library that each command loads, as docs/builds.md lists them."""

import os
import re

import pytest

import builds
from builds import Build, Interpreter, newest, oldest, serving
from helpers import ROOT

# A row of the table: | what | `module` `module` ... |
ROW = re.compile(r"^\| ([^|]+) \| ((?:`\w+` ?)+)\|$", re.MULTILINE)
HASHES = frozenset(["_md5", "_sha3"])  # extensions that come in a package of their own

# Runs a command of the package, and writes to a file what was loaded beyond a bare interpreter.
LOADED = """
import sys
bare = set(sys.modules)
file, source, command = sys.argv[1:4]
sys.path[:0] = [source]
sys.argv = [command] + sys.argv[4:]
from numseq.__main__ import main
try:
    status = main(([command] if command else []) + sys.argv[1:])
finally:
    loaded = {name.partition(".")[0] for name in set(sys.modules) - bare}
    with open(file, "w") as opened:
        opened.write(" ".join(loaded))
sys.exit(status)
"""


@pytest.fixture(scope="session")
def listed():
    """{what: set of modules} of the table."""
    with open(os.path.join(ROOT, "docs", "builds.md"), encoding="utf-8") as file:
        return {what.strip(): set(re.findall(r"\w+", names)) for what, names in ROW.findall(file.read())}


@pytest.fixture(scope="session")
def loaded(source, tmp_path_factory):
    """A function: {what: set of modules} of an interpreter. It runs each command once."""
    return lambda interpreter: load_all(interpreter, source, tmp_path_factory.mktemp("loaded"))


def load_all(interpreter, source, folder):
    interpreter = interpreter if isinstance(interpreter, Interpreter) else Interpreter([interpreter, "-S"])
    file = str(folder / "loaded")

    def command(name):
        return interpreter.command + ["-c", LOADED, file, source, name]

    # The server's own file is written when it ends, after those of its clients.
    build = Build(command, interpreter.environment)
    found = {}

    def run(what, name, arguments):
        status, _, err = build.run(name, arguments, str(folder))
        assert (status, err) == (0, ""), err
        found[what] = content()

    def content():
        with open(file) as opened:
            return {name for name in opened.read().split() if name in HASHES or name[0] != "_"} - {"numseq"}

    with serving(build, str(folder)) as port:
        run("`client NEW`", "client", ["NEW", 1000, port])
        run("`client CHECK`", "client", ["CHECK", port, "--duration", "0.2"])
        run("`client CONTINUE`", "client", ["CONTINUE", port, "-q", "--output", "numbers"])
    found["`server` with options"] = content()
    with serving(build, str(folder), TEST_MODE="1") as port:
        builds.wait_until(lambda: build.run("client", ["NEW", 1000, port, "-q"], str(folder))[0] == 0)
    found["`TEST_MODE=1 server` with options"] = content()
    server = build.start("server", ["0"], str(folder))
    try:
        port = int(server.stdout.readline().rsplit(b":", 1)[1])
        assert build.run("client", ["NEW", 1000, port, "-q"], str(folder))[0] == 0
        server.terminate()
        assert server.wait(builds.SECONDS_MOST) == 0
    finally:
        builds.end(server)
    found["`server PORT`"] = content()
    run("`python -m numseq`", "", [])
    run("`client -h`", "client", ["NEW", "-h"])
    return found


# The rows of the table that say what each command loads.
ROWS = {
    "`server PORT`": ["every command", "the server, where it is there"],
    "`server` with options": ["every command", "the server, where it is there", "options"],
    "`TEST_MODE=1 server` with options": ["every command", "the server, where it is there", "options",
                                          "`TEST_MODE`"],
    "`client NEW`": ["every command", "options", "the client"],
    "`client CHECK`": ["every command", "options", "the client"],
    "`client CONTINUE`": ["every command", "options", "the client"],
    "`client -h`": ["every command", "options", "the client"],
    "`python -m numseq`": ["every command", "the client"],
}


def beyond_the_table(found, listed):
    """{what: modules} that were loaded and are not in the table."""
    beyond = {what: names - set().union(*(listed[row] for row in ROWS[what]))
              for what, names in found.items()}
    return {what: names for what, names in beyond.items() if names}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minimal", "development", "i386"])
def test_commands_load_what_the_table_says_on_debian_builds(name, loaded, listed, request):
    assert beyond_the_table(loaded(request.getfixturevalue(name)), listed) == {}


@pytest.mark.slow
def test_commands_load_what_the_table_says_and_all_of_it(loaded, listed):
    found = [loaded(oldest()), loaded(newest())]
    assert [beyond_the_table(each, listed) for each in found] == [{}, {}]
    for row, names in listed.items():
        seen = set().union(*(each[what] for each in found for what, rows in ROWS.items() if row in rows))
        assert names - seen <= NEWEST_ALONE, row


NEWEST_ALONE = frozenset(["abc", "io"])  # from 3.15 on
