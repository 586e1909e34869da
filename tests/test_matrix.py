"""Whole sessions between processes on every Python version here, and on imitations of other builds.

A session is a new sequence with its exact transcript, another one whose connection drops on the way, and its
continuation, which has to prove complete. Server and client both run on the build in question.
"""

import os
import pty
import re
import subprocess

import pytest

import builds
from builds import Build, in_bare_root, modules, newest, oldest, prepared, scripts, serving, session, told_by
from builds import unpredictable_session
from programs import CLIENT_ID

pytestmark = pytest.mark.slow

# ---- versions


@pytest.mark.parametrize("version", builds.VERSIONS, ids=lambda version: "%d.%d" % version)
def test_session_on_each_version_of_python(version, source, tmp_path):
    build = scripts(builds.python(version), source)
    session(build, build, tmp_path)
    unpredictable_session(build, tmp_path)


def test_session_of_the_oldest_server_with_the_newest_client(source, tmp_path):
    session(scripts(oldest(), source), modules(newest(), source), tmp_path)


def test_session_of_the_newest_server_with_the_oldest_client(source, tmp_path):
    session(modules(newest(), source), scripts(oldest(), source), tmp_path)


def test_enough_versions_are_installed_to_prove_anything():
    if len(builds.pythons()) < builds.VERSIONS_LEAST:
        builds.missing("there are only %d versions of Python here" % len(builds.pythons()))


# ---- Debian's builds, apart from the system: minimal ones, 32 bits, big-endian, PyPy

LACKING = ["asyncio", "uuid", "unittest"]  # in all minimal ones
PATH = "import sys; print(*sys.path, sep='\\n')"
PRESENT = """
import sys
for name in sys.argv[1:]:
    try:
        __import__(name)
    except ImportError:
        pass
    else:
        print(name)
"""


@pytest.mark.slow
def test_debian_builds_are_apart_from_the_system(debian_build):
    root = os.path.dirname(os.path.dirname(os.path.dirname(builds.program_of(debian_build))))
    paths = told_by(debian_build, PATH).split()
    assert paths and [path for path in paths if not path.startswith(root + os.sep)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minimal", "development"])
def test_debian_minimal_lacks_what_no_minimal_build_has(name, request):
    assert told_by(request.getfixturevalue(name), PRESENT, *LACKING) == ""


@pytest.mark.slow
def test_debian_builds_are_of_the_kinds_that_they_stand_for(minimal, development, i386, s390x, pypy):
    kind = ("import sys; print(sys.implementation.name, sys.maxsize.bit_length() + 1, sys.byteorder, "
            "*sys.version_info[:2])")
    assert [told_by(each, kind).split() for each in (minimal, i386, s390x)] == [
        ["cpython", "64", "little", "3", "11"],
        ["cpython", "32", "little", "3", "11"],
        ["cpython", "64", "big", "3", "11"],
    ]
    assert told_by(development, kind).split() == ["cpython", "64", "little", "3", "15"]
    assert told_by(pypy, kind).split()[:3] == ["pypy", "64", "little"]


@pytest.mark.slow
def test_session_on_debian_builds(debian_build, source, tmp_path):
    build = scripts(debian_build, source)
    session(build, build, tmp_path)
    unpredictable_session(build, tmp_path)


@pytest.mark.slow
def test_session_on_debian_builds_as_modules(debian_build, source, tmp_path):
    build = modules(debian_build, source)
    session(build, build, tmp_path)


@pytest.mark.slow
def test_session_of_debian_builds_with_the_newest_version_both_ways(debian_build, source, tmp_path):
    special, full = scripts(debian_build, source), scripts(newest(), source)
    session(special, full, tmp_path)
    session(full, special, tmp_path)


@pytest.fixture(params=["oldest", "newest"])
def interpreter(request):
    return {"oldest": oldest, "newest": newest}[request.param]()


HELP = [
    ("server", [], 2),
    ("server", ["-h"], 0),
    ("server", ["--version"], 0),
    ("server", ["--hots", "::1", "5000"], 2),
    ("client", [], 2),
    ("client", ["-h"], 0),
    ("client", ["--version"], 0),
    ("client", ["NEW", "-h"], 0),
    ("client", ["CONTINUE", "-h"], 0),
    ("client", ["RENEW", "5000"], 2),
    ("client", ["CONTINUE", "5000", "--states", "x"], 2),
]


def check_help(build, folder):
    """All that argparse does: help to the fixed width, and what is wrong in one line."""
    for name, arguments, status in HELP:
        ended, out, err = build.run(name, arguments, folder)
        told, other = (out, err) if status == 0 else (err, out)
        assert (ended, other) == (status, ""), (name, arguments, told, other)
        if "-h" in arguments or not arguments:
            assert told.startswith("usage: ") and "--version" in told
            assert max(map(len, told.splitlines())) <= 100
        else:
            assert told.count("\n") == 1, told


@pytest.mark.slow
def test_help_and_complaints_on_debian_builds(debian_build, source, tmp_path):
    check_help(scripts(debian_build, source), str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("version", builds.VERSIONS, ids=lambda version: "%d.%d" % version)
def test_help_and_complaints_on_each_version_of_python(version, source, tmp_path):
    check_help(scripts(builds.python(version), source), str(tmp_path))


@pytest.mark.parametrize("name", ["server", "client"])
def test_help_loads_nothing_that_small_builds_lack(name, interpreter, source, tmp_path):
    code = "for name in 'shutil', 'bz2', 'lzma', 'zlib', 'compression': sys.modules[name] = None"
    status, out, err = prepared(interpreter, source, code).run(name, ["-h"], str(tmp_path))
    assert (status, out[:6], err) == (0, "usage:", "")


# ---- what other builds lack, taken away from the oldest and the newest version here

OPENWRT = """
for name in ("unicodedata", "logging", "uuid", "_hashlib", "_ssl", "urllib", "pathlib"):
    sys.modules[name] = None
try:
    "localhost".encode("idna")
except LookupError:
    pass
else:
    sys.exit("the idna codec is there")
"""
ONLY_SELECT = """
import select
for name in ("epoll", "poll", "devpoll", "kqueue"):
    if hasattr(select, name):
        delattr(select, name)
import selectors
assert selectors.DefaultSelector is selectors.SelectSelector
"""
ONLY_POLL = """
import select
for name in ("epoll", "devpoll", "kqueue"):
    if hasattr(select, name):
        delattr(select, name)
import selectors
assert selectors.DefaultSelector is selectors.PollSelector
"""
# Before 3.9 hashlib.md5 has no `usedforsecurity`, and nothing is refused.
FIPS = """
import hashlib
sys.modules["_md5"] = sys.modules["_sha3"] = None
md5 = hashlib.md5
def refuse(data=b"", usedforsecurity=True):
    if usedforsecurity:
        raise ValueError("[digital envelope routines] unsupported")
    return md5(data, usedforsecurity=False)
if sys.version_info >= (3, 9):
    hashlib.md5 = refuse
"""
NO_ZLIB = """
sys.modules["zlib"] = None
"""


@pytest.mark.parametrize("code", [OPENWRT, ONLY_SELECT, ONLY_POLL],
                         ids=["openwrt", "only-select", "only-poll"])
def test_session_without_what_small_builds_lack(code, interpreter, source, tmp_path):
    build = prepared(interpreter, source, code)
    session(build, build, tmp_path)
    unpredictable_session(build, tmp_path)


@pytest.mark.parametrize("version", [(3, 8), (3, 9), max(builds.VERSIONS)], ids=["3.8", "3.9", "newest"])
def test_session_where_md5_is_refused_for_security(version, source, tmp_path):
    interpreter = newest() if version == max(builds.VERSIONS) else builds.python(version)
    if subprocess.call([interpreter, "-c", "import _hashlib"], stderr=subprocess.DEVNULL):
        pytest.skip("this build has no OpenSSL, and no md5 but its own")
    build = prepared(interpreter, source, FIPS)
    session(build, build, tmp_path)
    unpredictable_session(build, tmp_path)


def test_session_without_docstrings_and_asserts(interpreter, source, tmp_path):
    build = scripts(interpreter, source, "-OO")
    session(build, build, tmp_path)


@pytest.mark.parametrize("kind", ["modules", "files"])
def test_session_without_sources(kind, interpreter, tmp_path):
    source = builds.copy_package(str(tmp_path / "compiled"))
    subprocess.check_call([interpreter, "-m", "compileall", "-q", "-b", source])
    package = os.path.join(source, "numseq")
    for name in os.listdir(package):
        if name.endswith(".py"):
            os.unlink(os.path.join(package, name))
    if kind == "modules":
        build = modules(interpreter, source)
    else:
        build = Build(lambda name: [interpreter, os.path.join(package, name + ".pyc")])
    session(build, build, tmp_path)


# Yocto has it in python3-math.
NO_RANDOM = """
sys.modules["random"] = None
"""


@pytest.mark.slow
def test_session_without_the_module_random(interpreter, source, tmp_path):
    build = prepared(interpreter, source, NO_RANDOM)
    unpredictable_session(build, tmp_path)
    session(scripts(interpreter, source), build, tmp_path)  # with drops, so with pauses


def test_test_mode_without_the_module_random_is_refused_in_one_line(interpreter, source, tmp_path):
    build = prepared(interpreter, source, NO_RANDOM)
    status, out, err = build.run("server", [0], str(tmp_path), TEST_MODE="1")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "TEST_MODE" in err and "random" in err


@pytest.mark.slow
@pytest.mark.parametrize("module", ["select", "selectors", "_socket", "_signal", "struct"])
def test_python_without_an_essential_module_says_so_in_one_line(module, interpreter, source, tmp_path):
    start = "import runpy, sys; sys.modules[%r] = None; sys.argv = sys.argv[1:]; " \
            "runpy.run_path(sys.argv[0], run_name='__main__')" % module
    for path in ("numseq/server.py", "numseq/client.py", "numseq"):
        build = Build(lambda name: [interpreter, "-c", start, os.path.join(source, path)])
        status, out, err = build.run("", ["server", "0"] if path == "numseq" else ["0"], str(tmp_path))
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert err.startswith("numseq does not run on this Python: ") and module in err


def test_session_from_a_zip_where_nothing_can_be_decompressed(interpreter, pyz, tmp_path):
    build = prepared(interpreter, pyz, NO_ZLIB)
    session(build, build, tmp_path)


# ---- a root directory with nothing in it but the interpreter, its libraries and numseq


@pytest.fixture(scope="session")
def bare_root(minimal_folder, tmp_path_factory):
    """The path of a root directory without /dev, /etc, /proc and /tmp; programs run in its folder work."""
    if os.geteuid() != 0:
        builds.missing("only root can change the root directory")
    root = str(tmp_path_factory.mktemp("root"))
    builds.make_bare_root(minimal_folder, root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 1, 2)],
                         ids=["none", "stdin", "stdout", "stderr", "all"])
def test_session_in_a_bare_root_with_closed_standard_streams(closed, bare_root):
    assert sorted(os.listdir(bare_root)) == ["lib", "lib64", "source", "usr", "work"]
    build = in_bare_root(bare_root, closed=closed)
    session(build, build, os.path.join(bare_root, "work"))


@pytest.mark.slow
def test_help_in_a_bare_root(bare_root):
    check_help(in_bare_root(bare_root), None)


@pytest.fixture(params=["system", "bare"])
def root_build(request, source):
    """A Build on the whole system, and one in a bare root."""
    if request.param == "system":
        return scripts(newest(), source)
    return in_bare_root(request.getfixturevalue("bare_root"))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["-q"], ["-q", "--output", "-"]],
                         ids=["transcript", "result", "numbers"])
def test_client_whose_output_is_full_says_so_and_ends_with_74(arguments, root_build, tmp_path):
    with serving(root_build, tmp_path, TEST_MODE="1") as port, open("/dev/full", "wb") as full:
        new = ["NEW", 100, port, "--client_id", CLIENT_ID] + arguments
        status, _, err = root_build.run("client", new, tmp_path, stdout=full)
        lines = err.splitlines()
        assert (status, len(lines), "No space left" in lines[-1]) == (74, 1, True), err


@pytest.mark.slow
def test_client_whose_reader_leaves_ends_with_141_and_says_nothing(root_build, tmp_path):
    with serving(root_build, tmp_path, TEST_MODE="1") as port:
        process = root_build.start("client", ["NEW", 20000, port, "--retry", 1000], tmp_path)
        try:
            assert process.stdout.readline().startswith(b"Sending message: 'INIT,")
            process.stdout.close()
            err = process.stderr.read()
            assert (process.wait(builds.SECONDS_MOST), err) == (141, b"")
        finally:
            builds.end(process)


def check_serves_and_ends(build, process, port, folder):
    """A server process serves three clients, and after SIGTERM ends with 0 and without complaints."""
    for _ in range(3):
        assert build.run("client", ["NEW", 5, port, "-q"], folder)[0] == 0
    process.terminate()
    assert (process.wait(builds.SECONDS_MOST), builds.complaints(process.stderr.read())) == (0, [])


@pytest.mark.slow
def test_server_whose_output_is_full_goes_on(root_build, tmp_path):
    port = builds.free_port()
    with open("/dev/full", "wb") as full:
        process = root_build.start("server", [port, "--retention", "0.05"], tmp_path, stdout=full)
    try:
        builds.wait_until(lambda: builds.listens(port))
        check_serves_and_ends(root_build, process, port, tmp_path)
    finally:
        builds.end(process)


@pytest.mark.slow
def test_server_whose_reader_leaves_goes_on(root_build, tmp_path):
    process = root_build.start("server", [0, "--retention", "0.05"], tmp_path)
    try:
        port = int(process.stdout.readline().rsplit(b":", 1)[1])
        process.stdout.close()
        check_serves_and_ends(root_build, process, port, tmp_path)
    finally:
        builds.end(process)


@pytest.mark.slow
def test_terminal_that_others_share_is_never_made_non_blocking(root_build, tmp_path):
    ours, theirs = pty.openpty()
    try:
        process = root_build.start("server", [0], tmp_path, stdout=theirs, stderr=theirs)
        try:
            told = b""
            while not told.endswith(b"\n"):
                told += os.read(ours, 1000)
            assert told.startswith(b"Listening on ")
            assert os.get_blocking(theirs)
            process.terminate()
            assert process.wait(builds.SECONDS_MOST) == 0
            assert os.get_blocking(theirs)
        finally:
            builds.end(process)
    finally:
        os.close(ours)
        os.close(theirs)


# ---- surroundings

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_session_in_an_ascii_locale(interpreter, source, tmp_path):
    build = scripts(interpreter, source, environment=ASCII)
    session(build, build, tmp_path)


def test_session_in_an_ascii_locale_with_paths_that_are_not_ascii(interpreter, tmp_path):
    source = builds.copy_package(str(tmp_path / "quell\u00e9"))
    folder = tmp_path / "verzeichnis-\u00fc"
    folder.mkdir()
    build = scripts(interpreter, source, environment=ASCII)
    session(build, build, folder, "--state", "st\u00e4nd")
    assert (folder / "st\u00e4nd").exists()


@pytest.mark.parametrize("name, arguments, status", [
    ("server", ["\u00fc"], 2),
    ("server", ["0", "--host", "\u00fc"], 1),
    ("server", ["0", "--session-timeout", "\u0661"], 2),
    ("client", ["NEW", "5", "\u00fc"], 2),
    ("client", ["NEW", "\u0665", "5000"], 2),
    ("client", ["NEU\u00dc", "5", "5000"], 2),
    ("client", ["NEW", "5", "5000", "--client_id", "\u00fc"], 2),
    ("client", ["NEW", "5", "5000", "--host", "\u00fc"], 2),
    ("client", ["CONTINUE", "5000", "--state", "\u00fc"], 2),
])
def test_argument_that_is_not_ascii_is_refused_in_one_line(name, arguments, status, interpreter, source,
                                                           tmp_path):
    build = scripts(interpreter, source, environment=ASCII)
    ended, _, complaints = build.run(name, arguments, str(tmp_path))
    assert ended == status
    assert complaints.count("\n") <= 1 and "Traceback" not in complaints


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=["stdin", "stdout", "stderr", "all"])
def test_session_with_closed_standard_streams(closed, interpreter, source, tmp_path):
    build = scripts(interpreter, source, closed=closed)
    session(build, build, tmp_path)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="what a process has open cannot be seen here")
def test_no_socket_takes_the_number_of_a_closed_standard_stream(interpreter, source, tmp_path):
    build = scripts(interpreter, source, closed=(0, 1, 2))
    process = build.start("server", [builds.free_port()], str(tmp_path))
    files = "/proc/%d/fd/" % process.pid

    def opened(number):
        try:
            return os.readlink(files + str(number))
        except OSError:  # closed meanwhile
            return ""

    try:
        builds.wait_until(lambda: any(opened(number).startswith("socket:") for number in range(16)))
        assert [opened(number) for number in range(3)] == [os.devnull] * 3
    finally:
        builds.end(process)


def test_session_with_standard_input_from_a_file(interpreter, source, tmp_path):
    file = tmp_path / "input"
    file.write_bytes(b"not for them\n" * 1000)
    build = scripts(interpreter, source, stdin=str(file))
    session(build, build, tmp_path)


@pytest.mark.parametrize("files", [16, 32])
def test_session_with_a_low_limit_of_open_files(files, interpreter, source, tmp_path):
    build = scripts(interpreter, source, files=files)
    session(build, build, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("files", range(6, 13))
def test_server_with_very_few_open_files_serves_or_says_so(files, interpreter, source, tmp_path):
    build = scripts(interpreter, source, files=files)
    process = build.start("server", [0], str(tmp_path))
    try:
        told = process.stdout.readline()
        if told:
            port = int(told.rsplit(b":", 1)[1])
            assert scripts(interpreter, source).run("client", ["NEW", 5, port, "-q"], str(tmp_path))[0] == 0
            process.terminate()
            assert (process.wait(builds.SECONDS_MOST), b"Traceback" in process.stderr.read()) == (0, False)
        else:
            err = process.stderr.read().decode("ascii")
            assert (process.wait(builds.SECONDS_MOST), err.count("\n")) == (1, 1), err
    finally:
        builds.end(process)


HUNDRED = """
import sys
sys.path[:0] = sys.argv[1:2]
from numseq.journal import Journal
from numseq.loop import Loop
from numseq.transfer import Fetch, new_id

loop = Loop()
outcomes = []

def done(fetch, error):
    outcomes.append(error)
    if len(outcomes) == 100:
        loop.stop()

fetches = [Fetch(loop, "127.0.0.1", int(sys.argv[2]), Journal(new_id(), 1000, 5), done, retry=1000)
           for _ in range(100)]
loop.run()
loop.close()
print(outcomes.count(None), sum(len(each.journal.numbers) for each in fetches))
"""


@pytest.mark.slow
def test_hundred_fetches_at_once_with_32_open_files(interpreter, source, tmp_path):
    few = Build(lambda name: [interpreter, "-c", HUNDRED, source], files=32)
    with serving(scripts(interpreter, source), str(tmp_path)) as port:
        assert few.run("", [port], str(tmp_path)) == (0, "100 100000\n", "")


@pytest.mark.slow
def test_session_where_every_warning_is_an_error(interpreter, source, tmp_path):
    build = scripts(interpreter, source, "-X", "dev", "-W", "error")
    session(build, build, tmp_path)
    unpredictable_session(build, tmp_path)


def test_library_where_every_warning_is_an_error(interpreter, source, tmp_path):
    code = ("import sys; sys.path[:0] = sys.argv[1:2]; import numseq; "
            "print(len(numseq.fetch(9, int(sys.argv[2]))[0]))")
    library = Build(lambda name: [interpreter, "-X", "dev", "-W", "error", "-c", code, source])
    with serving(scripts(interpreter, source), str(tmp_path)) as port:
        assert library.run("", [port], str(tmp_path)) == (0, "9\n", "")


def test_library_refuses_impossible_paths_as_wrong_usage(interpreter, source):
    code = ("import sys; sys.path[:0] = sys.argv[1:]; import numseq\n"
            "for call in numseq.resume, lambda port, state: numseq.fetch(9, port, state=state):\n"
            "    for path in 'a\\0b', '\\ud800':\n"
            "        try: call(1, state=path)\n"
            "        except numseq.UsageError: print('refused')")
    said = subprocess.check_output([interpreter, "-c", code, source], universal_newlines=True)
    assert said.split() == ["refused"] * 4


def test_session_without_a_home_directory(interpreter, source, tmp_path):
    # In all other sessions HOME is not set at all.
    build = scripts(interpreter, source, environment={"HOME": "/nonexistent"})
    session(build, build, tmp_path)


# ---- a current directory in which nothing can be written


@pytest.fixture
def read_only(tmp_path):
    """A folder in which nobody can create a file."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    for candidate in (str(folder), "/proc"):  # root may write wherever it can be written at all
        try:
            os.close(os.open(os.path.join(candidate, "numseq-test"), os.O_WRONLY | os.O_CREAT))
        except OSError:
            return candidate
    pytest.skip("everything can be written here")


def test_session_in_a_read_only_directory_with_its_state_elsewhere(read_only, interpreter, source, tmp_path):
    build = scripts(interpreter, source, folder=read_only)
    session(build, build, tmp_path, "--state", tmp_path / "state")


def test_session_without_a_writable_state_is_reported_and_completes(read_only, interpreter, source, tmp_path):
    build = scripts(interpreter, source, folder=read_only)
    with serving(build, str(tmp_path), builds.SESSION_TIMEOUT, TEST_MODE="1") as port:
        new = ["NEW", builds.LARGE, port, "--client_id", builds.LARGE_ID, "--retry", 1000]
        status, out, err = build.run("client", new, str(tmp_path))
        assert "ERROR: [Errno " in out, "not dropped"
        assert (status, out.endswith(builds.proof(builds.LARGE_ID, builds.LARGE))) == (0, True)
        assert (err.count("\n"), "cannot be written" in err) == (1, True)
        status, out, err = build.run("client", ["CONTINUE", port], str(tmp_path))
        assert (status, out, "begin with NEW" in err) == (2, "", True)


def test_page_of_builds_names_tests_that_exist():
    tests = os.path.dirname(os.path.abspath(__file__))
    defined = set()
    for name in os.listdir(tests):
        if name.endswith(".py"):
            with open(os.path.join(tests, name), encoding="utf-8") as file:
                defined.update(re.findall(r"^def (test_\w+)", file.read(), re.MULTILINE))
    with open(os.path.join(builds.ROOT, "docs", "builds.md"), encoding="utf-8") as file:
        named = set(re.findall(r"`(test_\w+)`", file.read()))
    assert len(named) > 20 and named - defined == set()
