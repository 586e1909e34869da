"""Debian's packages of any suite and architecture, unpacked in folders: nothing is installed.

The state of the system's apt stays as it is.

The mirror is the one that this machine's apt uses. What was unpacked once is there for all later runs.
"""

import contextlib
import fcntl
import glob
import os
import shutil
import subprocess
import tempfile

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
STABLE, DEVELOPMENT = "bookworm", "unstable"
SECONDS_MOST = 120  # of one step of apt

# name: (suite, architecture, packages). Each folder has the libraries too, so none of the system's is loaded.
LIBRARIES = ["libc6", "zlib1g", "libexpat1"]
FOLDERS = {
    "minimal": (STABLE, "amd64", ["python3.11-minimal", "libpython3.11-minimal"] + LIBRARIES),
    "i386": (STABLE, "i386", ["python3.11-minimal", "libpython3.11-minimal"] + LIBRARIES),
    "s390x": (STABLE, "s390x", ["python3.11-minimal", "libpython3.11-minimal"] + LIBRARIES),
    "pypy": (STABLE, "amd64", ["pypy3", "pypy3-lib", "libffi8", "libtinfo6", "libncursesw6", "libbz2-1.0",
                               "libgcc-s1"] + LIBRARIES),
    "development": (DEVELOPMENT, "amd64", ["python3.15-minimal", "libpython3.15-minimal", "libgcc-s1",
                                           "libzstd1"] + LIBRARIES),
    "qemu": (STABLE, "amd64", ["qemu-user-static"]),
}
# All that is unpacked of a package of which nearly nothing is needed: of 400 MB of emulators, one.
PARTS = {"qemu": ["./usr/bin/qemu-s390x-static"]}

APT_CONFIGURATION = """
Dir::State "{0}"; Dir::State::lists "{0}/lists"; Dir::State::status "{0}/status"; Dir::Cache "{0}/cache";
Dir::Etc::sourcelist "{0}/sources.list"; Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "{1}"; APT::Architectures {{ "{1}"; }}; Acquire::Languages "none";
Acquire::Retries "2"; Acquire::http::Timeout "20";
"""


class Unavailable(Exception):
    """Packages cannot be had here; the text says why."""


def unpacked(name, cache):
    """The folder with the packages of a name in FOLDERS, below the folder cache. Raises Unavailable."""
    folder = os.path.join(cache, name)
    if not os.path.exists(folder):
        os.makedirs(cache, exist_ok=True)
        with _locked(os.path.join(cache, "lock")), tempfile.TemporaryDirectory(dir=cache) as work:
            if not os.path.exists(folder):  # nobody else has just done it
                os.chmod(work, 0o755)  # apt fetches as another user
                _unpack(name, work)
                os.rename(os.path.join(work, "root"), folder)
    return folder


def _unpack(name, work):
    suite, architecture, packages = FOLDERS[name]
    _prepare_apt(work, suite, architecture)
    _apt(work, "update")
    _apt(work, "download", *packages)
    root = os.path.join(work, "root")
    os.mkdir(root)
    for package in sorted(glob.glob(os.path.join(work, "packages", "*.deb"))):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as content:
            subprocess.check_call(["tar", "-x", "-C", root] + PARTS.get(name, []), stdin=content.stdout)
        if content.returncode:
            raise Unavailable("%s cannot be unpacked" % os.path.basename(package))


def _prepare_apt(work, suite, architecture):
    """Makes a state of apt's own in work, for one suite and architecture."""
    for folder in "lists/partial", "cache/archives/partial", "packages":
        os.makedirs(os.path.join(work, folder))
    for file, text in (
        ("status", ""),
        ("sources.list", "deb [signed-by=%s] %s %s main\n" % (KEYS, _mirror(work), suite)),
        ("apt.conf", APT_CONFIGURATION.format(work, architecture)),
    ):
        with open(os.path.join(work, file), "w") as opened:
            opened.write(text)


def _mirror(work):
    """The address of Debian's archive, as this machine's apt is set up."""
    missing = [name for name in ("apt-get", "dpkg-deb", "tar") if shutil.which(name) is None]
    if missing or not os.path.exists(KEYS):
        raise Unavailable("%s is not here" % (missing + [KEYS])[0])
    lists = os.path.join(work, "system-lists")
    for command in (["apt-get"], ["apt-get", "-o", "Dir::State::lists=" + lists]):
        if len(command) > 1:  # apt tells of nothing before an update, which this is, in a folder of its own
            os.makedirs(os.path.join(lists, "partial"))
            _run(command + ["-q", "update"], work, must=False)  # other archives in its lists may not answer
        told = _run(command + ["indextargets", "--format", "$(ORIGIN) $(LABEL) $(SITE)"], work)
        sites = [line.split()[2] for line in told.splitlines() if line.startswith("Debian Debian ")]
        if sites:
            return sites[0]
    raise Unavailable("apt on this machine does not use Debian's archive")


def _apt(work, *arguments):
    _run(["apt-get", "-q"] + list(arguments), os.path.join(work, "packages"), os.path.join(work, "apt.conf"))


def _run(command, folder, configuration=None, must=True):
    """What a command of apt prints (text).

    Raises Unavailable where it fails and must not, and always after an update has failed.
    """
    if _failures:
        raise Unavailable(_failures[0])
    environment = dict(os.environ, LC_ALL="C", **({"APT_CONFIG": configuration} if configuration else {}))
    try:
        ran = subprocess.run(command, cwd=folder, env=environment, timeout=SECONDS_MOST,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        _failures.append("%s took too long" % " ".join(command))
        raise Unavailable(_failures[0]) from None
    said = ran.stdout.decode(errors="replace")
    if must and (ran.returncode or "\nErr:" in said):
        failed = "%s failed: %s" % (" ".join(command), (said.strip().splitlines() or [ran.returncode])[-1])
        if "update" in command:  # the network, as a rule: no need to wait for it once for each package
            _failures.append(failed)
        raise Unavailable(failed)
    return said


_failures = []  # why apt does not reach the archive


@contextlib.contextmanager
def _locked(path):
    """Keeps other processes of the tests, which run at the same time, from fetching the same."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
