"""Whole sessions between processes on every Python version here, and on imitations of other builds.

A session is a new sequence with its exact transcript, another one whose connection drops on the way, and its
continuation, which has to prove complete. Server and client both run on the build in question.
"""

import os
import subprocess

import pytest

import builds
from builds import Build, modules, newest, oldest, prepared, scripts, serving, session, unpredictable_session

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


# ---- Debian's minimal build, apart from the system's

LACKING = ["asyncio", "uuid", "json", "unittest"]
APART = """
import sys
sys.path[:0] = sys.argv[1:]
import numseq.server, numseq.client, numseq.demo, numseq.options
for name in %r:
    try:
        __import__(name)
    except ImportError:
        continue
    print("there is", name)
print("\\n".join(sys.path))
""" % LACKING


def debian_module(debian, source):
    return modules(debian, source, "-P", "-s", "-S", "-B",
                   environment={"PYTHONHOME": os.path.dirname(os.path.dirname(debian))})


def test_debian_minimal_is_apart_from_the_system_library(debian, source):
    told = subprocess.check_output([debian, "-I", "-S", "-B", "-c", APART, source], env={},
                                   universal_newlines=True)
    root = os.path.dirname(os.path.dirname(os.path.dirname(debian)))
    assert [line for line in told.splitlines() if not line.startswith((root + os.sep, source))] == []


def test_debian_minimal_is_apart_when_it_runs_modules_too(debian, source):
    build = debian_module(debian, source)
    command = build.command("server")[:-2] + ["-c", APART]
    told = subprocess.check_output(command, env=build.environment, universal_newlines=True)
    root = os.path.dirname(os.path.dirname(os.path.dirname(debian)))
    assert [line for line in told.splitlines() if not line.startswith((root + os.sep, source))] == []


def test_session_on_debian_minimal(debian, source, tmp_path):
    build = scripts(debian, source, "-I", "-S", "-B")
    session(build, build, tmp_path)
    unpredictable_session(build, tmp_path)


def test_session_on_debian_minimal_as_modules(debian, source, tmp_path):
    build = debian_module(debian, source)
    session(build, build, tmp_path)


def test_session_of_debian_minimal_with_the_newest_version_both_ways(debian, source, tmp_path):
    minimal, full = scripts(debian, source, "-I", "-S", "-B"), scripts(newest(), source)
    session(minimal, full, tmp_path)
    session(full, minimal, tmp_path)


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


@pytest.fixture(params=["oldest", "newest"])
def interpreter(request):
    return {"oldest": oldest, "newest": newest}[request.param]()


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


def test_session_from_a_zip_where_nothing_can_be_decompressed(interpreter, pyz, tmp_path):
    build = prepared(interpreter, pyz, NO_ZLIB)
    session(build, build, tmp_path)


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
    ("client", ["NEW", "5", "5000", "--host", "\u00fc"], 4),
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
