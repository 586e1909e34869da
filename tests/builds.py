"""The Python versions on this machine, ways to run the programs on them, and the session to complete."""

import contextlib
import functools
import glob
import hashlib
import os
import platform
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import time

import pytest

import debian
from helpers import ROOT, WAIT_SECONDS
from programs import CLIENT_ID, DUE, TRANSCRIPT_1

VERSIONS = [(3, minor) for minor in range(6, 16)]
REQUIRED = os.environ.get("NUMSEQ_REQUIRE_MATRIX") == "1"  # what is always there in CI may not be skipped
VERSIONS_LEAST = 4  # that may not be missing then

LARGE_ID = "00000000-0000-4000-8000-000000000000"
LARGE = 65535  # numbers: one request after the other, they take several times as long as SESSION_TIMEOUT
SESSION_TIMEOUT = 0.15  # seconds at first; where that is too short for a busy machine, it is doubled
LONG_TIMEOUT = 600  # seconds: no session is dropped, and no sequence forgotten
ATTEMPTS = 20  # sessions with other timeouts
SECONDS_MOST = WAIT_SECONDS  # one process, to end what hangs


def missing(reason):
    """Skips the test, or fails it where it is required."""
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


# ---- the Pythons


@functools.lru_cache(maxsize=None)
def pythons():
    """{(3, minor): path} of the interpreters on this machine, one of each version."""
    found = {}
    home = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    for path in sorted(glob.glob(os.path.join(home, "versions", "3.*", "bin", "python"))):
        _add_python(found, path)
    for version in VERSIONS:
        for folder in os.get_exec_path():
            path = os.path.join(folder, "python%d.%d" % version)
            # A shim runs another Python by what it finds around it, or none.
            if version not in found and os.path.basename(folder) != "shims" and os.access(path, os.X_OK):
                _add_python(found, path)
    found.setdefault(sys.version_info[:2], sys.executable)
    return {version: path for version, path in sorted(found.items()) if version in VERSIONS}


def _add_python(found, path):
    try:
        told = subprocess.check_output([path, "-I", "-S", "-c", "import sys; print(sys.version_info[:2])"],
                                       stderr=subprocess.DEVNULL, timeout=SECONDS_MOST)
    except (OSError, subprocess.SubprocessError):
        return
    found.setdefault(tuple(map(int, re.findall(rb"\d+", told))), path)


def python(version):
    """The path of the interpreter of a version, or the test is skipped."""
    if version not in pythons():
        pytest.skip("there is no Python %d.%d here" % version)
    return pythons()[version]


def oldest():
    return min(pythons().items())[1]


def newest():
    return max(pythons().items())[1]


# ---- Debian's builds, apart from the system


class Interpreter:
    """How a Python is started: command is a list of text, flags included; environment is what it needs."""

    def __init__(self, command, environment=None):
        self.command = list(command)
        self.environment = dict(environment or {})


# architecture: (loader, folder of libraries)
LOADERS = {
    "amd64": ("ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
    "i386": ("ld-linux.so.2", "i386-linux-gnu"),
}
# In newer suites the first two are links to the others, and made by another package.
LIBRARY_FOLDERS = ["lib", "lib64", "usr/lib", "usr/lib64"]
APART = ["-P", "-s", "-S"]  # nothing from the current folder, no site-packages
# name: (program, flags, whether it has to be told where its own folder is)
DEBIAN = {
    "minimal": ("usr/bin/python3.11", APART, True),
    "development": ("usr/bin/python3.15", APART, True),
    "i386": ("usr/bin/python3.11", APART, True),
    "s390x": ("usr/bin/python3.11", APART, True),
    "pypy": ("usr/bin/pypy3", APART[1:], False),  # -P is of 3.11
}


@functools.lru_cache(maxsize=None)
def unpacked(name, cache):
    """(folder, None) with the packages of a name in debian.FOLDERS, or (None, why they are not there)."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return None, "Debian's builds are run on Linux on x86_64 alone"
    try:
        return debian.unpacked(name, cache), None
    except debian.Unavailable as error:
        return None, str(error)


def debian_python(name, folder, emulator=None):
    """The Interpreter of a name in DEBIAN, unpacked in folder; an emulator is the path of a program."""
    program, flags, told = DEBIAN[name]
    if emulator is not None:
        start = [emulator, "-L", folder]
    else:  # the loader of the folder's own libc, so that its libraries are taken and none of the system's
        loader, libraries = LOADERS[debian.FOLDERS[name][1]]
        found = [os.path.join(folder, each, loader) for each in LIBRARY_FOLDERS]
        paths = [os.path.join(folder, each, libraries) for each in LIBRARY_FOLDERS]
        start = [next(filter(os.path.exists, found)), "--library-path",
                 ":".join(filter(os.path.isdir, paths))]
    return Interpreter(start + [os.path.join(folder, program)] + flags,
                       {"PYTHONHOME": os.path.join(folder, "usr")} if told else {})


# Of Debian's minimal Python, all that it needs to run: paths below a folder of it.
BARE = ["usr/bin/python3.11", "usr/lib/python3.11", "lib64/ld-linux-x86-64.so.2"] + [
    "lib/x86_64-linux-gnu/" + name for name in ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1")]


def make_bare_root(folder, root):
    """Makes a root directory with Debian's minimal Python (unpacked in folder) and numseq alone."""
    for path in BARE:
        source, target = os.path.join(folder, path), os.path.join(root, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, target)
    copy_package(os.path.join(root, "source"))
    os.mkdir(os.path.join(root, "work"))


def in_bare_root(root, **keywords):
    """A Build that runs the files with root as the root directory."""
    interpreter = Interpreter(["/" + BARE[0]] + APART)
    return scripts(interpreter, "/source", root=root, folder="/work", **keywords)


def starts(interpreter):
    """Whether an Interpreter runs here."""
    try:
        return subprocess.call(interpreter.command + ["-c", ""], env=interpreter.environment,
                               stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def program_of(interpreter):
    """The path of the program of an Interpreter."""
    return next(part for part in interpreter.command if os.path.basename(part).startswith(("python", "pypy")))


def told_by(interpreter, code, *arguments):
    """What code prints (text) on an interpreter: a path, or an Interpreter."""
    interpreter = _as_interpreter(interpreter)
    return subprocess.check_output(interpreter.command + ["-c", code] + list(arguments),
                                   env=interpreter.environment, universal_newlines=True, timeout=SECONDS_MOST)


def _as_interpreter(interpreter):
    return interpreter if isinstance(interpreter, Interpreter) else Interpreter([interpreter])


# ---- ways to run the programs


def copy_package(folder):
    """Copies the package, and nothing else of the project, into folder; returns folder."""
    shutil.copytree(os.path.join(ROOT, "numseq"), os.path.join(folder, "numseq"),
                    ignore=shutil.ignore_patterns("__pycache__"))
    return folder


class Build:
    """A way to run the two programs.

    command(name)  the list of text that runs the server or the client, without the arguments
    environment    all that is in it, beside TEST_MODE
    folder         the current directory, if it has to be a certain one
    closed         the numbers of the standard streams that are closed
    files          the limit of open files
    stdin          the path of standard input
    root           the folder that becomes the root directory, for command, environment and folder too
    """

    def __init__(self, command, environment=None, folder=None, closed=(), files=None, stdin=os.devnull,
                 root=None):
        self.command = command
        self.environment = dict(environment or {})
        self.folder = folder
        self.closed = closed
        self.files = files
        self.stdin = stdin
        self.root = root

    def start(self, name, arguments, folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **variables):
        """The running process of the server or the client, with more variables in its environment."""

        def prepare():
            if self.root is not None:
                os.chroot(self.root)
                os.chdir(self.folder)
            if self.files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (self.files, self.files))
            for file in self.closed:
                os.close(file)

        with open(self.stdin, "rb") as stdin:
            return subprocess.Popen(self.command(name) + list(map(str, arguments)),
                                    cwd="/" if self.root else self.folder or folder,
                                    env=dict(self.environment, **variables), preexec_fn=prepare,
                                    stdin=stdin, stdout=stdout, stderr=stderr)

    def run(self, name, arguments, folder, **keywords):
        """(exit status, output, complaints) of the server or the client; keywords are those of `start`."""
        process = self.start(name, arguments, folder, **keywords)
        try:
            out, err = process.communicate(timeout=SECONDS_MOST)
        finally:
            end(process)
        return process.returncode, (out or b"").decode("ascii"), (err or b"").decode("ascii")


def _build(interpreter, flags, arguments, environment=None, **keywords):
    """A Build that runs an interpreter (a path or an Interpreter) with flags and arguments(name)."""
    interpreter = _as_interpreter(interpreter)
    return Build(lambda name: interpreter.command + list(flags) + arguments(name),
                 dict(interpreter.environment, **(environment or {})), **keywords)


def scripts(interpreter, source, *flags, **keywords):
    """A Build that runs the files: python numseq/server.py."""
    return _build(interpreter, flags, lambda name: [os.path.join(source, "numseq", name + ".py")], **keywords)


def modules(interpreter, source, *flags, environment=None, **keywords):
    """A Build that runs the modules: python -m numseq.server."""
    return _build(interpreter, flags, lambda name: ["-m", "numseq." + name],
                  dict(environment or {}, PYTHONPATH=source), **keywords)


def one_file(interpreter, path, *flags, **keywords):
    """A Build that runs the one file: python numseq.pyz server."""
    return _build(interpreter, flags, lambda name: [path, name], **keywords)


def prepared(interpreter, source, code, *flags, **keywords):
    """A Build that runs code first, such as takes modules away."""
    code = ("import sys\nsys.path[:0] = [%r]\n%s\nfrom numseq.__main__ import main\nsys.exit(main())\n"
            % (source, code))
    return _build(interpreter, flags, lambda name: ["-c", code, name], **keywords)


def end(process):
    """Kills a process if it still runs, and closes its pipes."""
    if process.poll() is None:
        process.kill()
        process.communicate()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


# ---- the session


@contextlib.contextmanager
def serving(build, folder, session_timeout=LONG_TIMEOUT, **variables):
    """The port of a server, which has to end with status 0 and nothing on standard error."""
    port = free_port() if 1 in build.closed else 0
    arguments = [port, "--session-timeout", session_timeout, "--retention", LONG_TIMEOUT]
    process = build.start("server", arguments, folder, **variables)
    try:
        if port:
            wait_until(lambda: listens(port))
        else:
            told = process.stdout.readline()
            assert told.startswith(b"Listening on 127.0.0.1:"), told + process.stderr.read()
            port = int(told.rsplit(b":", 1)[1])
        yield port
        process.terminate()
        out, err = process.communicate(timeout=SECONDS_MOST)
        assert (process.returncode, complaints(err)) == (0, []), (process.returncode, err)
    finally:
        end(process)


def complaints(err):
    """The lines of a server's standard error (bytes), without those about its settings."""
    return [line for line in err.decode("ascii").splitlines() if not any(due in line for due in DUE)]


def free_port():
    """A port that nobody listens on, for a server that cannot tell which it took."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_until(predicate):
    """Waits until predicate() is true; fails the test when that takes too long."""
    end = time.monotonic() + SECONDS_MOST
    while not predicate():
        assert time.monotonic() < end, "not true within %d s" % SECONDS_MOST
        time.sleep(0.01)


def listens(port):
    """Whether a server accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@functools.lru_cache(maxsize=None)
def proof(client_id, n):
    """The last lines of a complete sequence, computed as the protocol defines them."""
    draw = random.Random(client_id).randint
    numbers = [draw(0, 100) for _ in range(n)]
    checksum = hashlib.md5(str(numbers).encode("ascii")).hexdigest()
    return "The SUM of numbers is: %d\nChecksum (%s) is valid!\n" % (sum(numbers), checksum)


def session(server, client, folder, *options):
    """A new sequence; another one that is dropped on the way; its continuation, verified.

    `options` are the client's.

    The drop has to come after the first numbers and before the last. Where the session timeout is too short
    for that, as on a busy machine, or too long, all is done again with another one.
    """
    timeout = SESSION_TIMEOUT
    for _ in range(ATTEMPTS):
        with serving(server, str(folder), timeout, TEST_MODE="1") as port:
            factor = _try_session(port, client, str(folder), list(options))
        if factor is None:
            return
        timeout *= factor
    pytest.fail("no session timeout makes the drop come between the first numbers and the last")


def _try_session(port, client, folder, options):
    """Does what session() says; returns None, or by how much the session timeout has to change."""
    silent = 1 in client.closed
    small = client.run("client", ["NEW", 5, port, "--client_id", CLIENT_ID] + options, folder)
    if small[0] == 4:
        return 2
    assert small == (0, "" if silent else TRANSCRIPT_1, "")
    status, out, err = client.run("client", ["NEW", LARGE, port, "--client_id", LARGE_ID] + options, folder)
    if status == 0:
        return 0.5
    assert status == 4, err
    if not ("Received: NUM," in out or silent and _has_numbers(folder, LARGE_ID)):
        return 2
    assert silent or out.splitlines()[-1].startswith("ERROR: [Errno "), out[-200:]
    assert 2 in client.closed or "to go on: " in err and "Warning" not in err, err
    more = client.run("client", ["CONTINUE", port, "-q", "--retry", 1000] + options, folder)
    assert more == (0, "" if silent else proof(LARGE_ID, LARGE), "")
    return None


def _has_numbers(folder, client_id):
    """Whether the state of the sequence has numbers, for a client without standard output."""
    path = os.path.join(folder, "numseq.state")
    if not os.path.exists(path):
        return False
    with open(path, "rb") as file:
        header, _, numbers = file.read().partition(b"\n")
    return client_id.encode("ascii") in header and len(numbers) > 0


def unpredictable_session(build, folder):
    """A new sequence without TEST_MODE, and its continuation with the same result, both verified."""
    folder = str(folder)
    with serving(build, folder) as port:
        new = build.run("client", ["NEW", 1000, port, "-q"], folder)
        assert new[0] == 0 and new[1].endswith("is valid!\n") and not new[2], new
        assert build.run("client", ["CONTINUE", port, "-q"], folder) == new
