"""The zipapp and the packages: built, inspected, and run where nothing else is installed."""

import glob
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import builds
from builds import ROOT, Build, one_file, session

from numseq import journal, shell
from programs import CLIENT_ID

BUILD_PYZ = os.path.join("tools", "build_pyz.py")
SECONDS_MOST = 100  # seconds of one step that asks the package index


def project_files():
    """The paths of all files of the project, from its root, as a clean clone has them."""
    try:
        told = subprocess.check_output(["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"], cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no clone")
    return sorted(path for path in told.decode().split("\0") if path
                  and os.path.exists(os.path.join(ROOT, path)))


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A function: a fresh copy of the project, whose files have other modification times."""

    def copy():
        folder = str(tmp_path_factory.mktemp("clone"))
        for path in project_files():
            target = os.path.join(folder, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(os.path.join(ROOT, path), target)
        return folder

    return copy


# ---- the one file


def content(path):
    with open(path, "rb") as file:
        return file.read()


def test_same_sources_give_the_same_zipapp(pyz, clone, tmp_path):
    copy = clone()
    for path in glob.glob(os.path.join(copy, "numseq", "*")):
        os.utime(path, (1e9, 1e9))
        os.chmod(path, 0o600)
    os.mkdir(os.path.join(copy, "numseq", "__pycache__"))
    open(os.path.join(copy, "numseq", "__pycache__", "server.cpython-36.pyc"), "wb").close()
    for number, (root, interpreter) in enumerate(
            [(ROOT, builds.newest()), (copy, sys.executable), (copy, builds.oldest())]):
        again = str(tmp_path / str(number))
        subprocess.check_call([interpreter, os.path.join(root, BUILD_PYZ), again], cwd=str(tmp_path))
        assert content(again) == content(pyz)


@pytest.mark.parametrize("argument, status, said", [
    ("--help", 0, ""), ("-x", 2, "-x"), ("missing/x", 1, "build_pyz.py: cannot write 'missing/x': "),
    (".", 1, "build_pyz.py: cannot write '.': "),
])
def test_build_takes_no_option_for_a_file_and_has_no_traceback(tmp_path, argument, status, said):
    ran = subprocess.run([sys.executable, os.path.join(ROOT, BUILD_PYZ), argument], cwd=str(tmp_path),
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert ran.returncode == status
    assert said in ran.stderr and "Traceback" not in ran.stderr
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.slow
def test_debian_builds_make_the_same_zipapp(debian_build, pyz, tmp_path):
    again = str(tmp_path / "again")
    subprocess.check_call(debian_build.command + [os.path.join(ROOT, BUILD_PYZ), again], cwd=str(tmp_path),
                          env=debian_build.environment)
    assert content(again) == content(pyz)


def test_zipapp_is_what_zipfile_makes_of_the_same(pyz, tmp_path):
    made = tmp_path / "made"
    with zipfile.ZipFile(pyz) as archive, made.open("wb") as file:
        assert archive.testzip() is None
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as again:
            for entry in archive.infolist():
                again.writestr(entry, archive.read(entry))
    assert made.read_bytes() == content(pyz)


def test_zipapp_has_the_sources_uncompressed_and_nothing_else(pyz):
    names = ["numseq/" + name for name in os.listdir(os.path.join(ROOT, "numseq")) if name.endswith(".py")]
    with zipfile.ZipFile(pyz) as archive:
        assert archive.namelist() == sorted(names + ["__main__.py"])
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert all(archive.read(name) == content(os.path.join(ROOT, name)) for name in names)


def test_zipapp_is_named_numseq_pyz_by_default(tmp_path):
    subprocess.check_call([sys.executable, os.path.join(ROOT, BUILD_PYZ)], cwd=str(tmp_path))
    assert os.listdir(str(tmp_path)) == ["numseq.pyz"]


@pytest.mark.slow
@pytest.mark.parametrize("version", builds.VERSIONS, ids=lambda version: "%d.%d" % version)
def test_session_from_the_zipapp(version, pyz, tmp_path):
    build = one_file(builds.python(version), pyz)
    session(build, build, tmp_path)


@pytest.mark.slow
def test_session_from_the_zipapp_on_debian_builds(debian_build, pyz, tmp_path):
    build = one_file(debian_build, pyz)
    session(build, build, tmp_path)


def test_zipapp_alone_does_the_main_job(pyz, tmp_path):
    out = subprocess.check_output([pyz], cwd=str(tmp_path), universal_newlines=True)  # by its first line
    assert out.endswith("is valid!\n")
    out = subprocess.check_output([builds.oldest(), pyz], cwd=str(tmp_path), universal_newlines=True)
    assert out.endswith("is valid!\n")


def test_hint_names_the_one_file_as_it_was_called(pyz, tmp_path):
    kept = journal.Journal(CLIENT_ID.encode("ascii"), 5, 5, path=str(tmp_path / "numseq.state"))
    kept.begin()
    kept.close()
    ran = subprocess.run([sys.executable, pyz, "client", "CONTINUE", "1", "-q"],
                         cwd=str(tmp_path),
                         stderr=subprocess.PIPE,
                         universal_newlines=True)
    assert ran.returncode == 4
    assert ran.stderr.endswith("to go on: %s CONTINUE 1\n" % shell.join([sys.executable, pyz, "client"]))


# ---- what pip makes of it


def venv(folder):
    """The interpreter of a fresh environment with nothing in it, not even pip."""
    subprocess.check_call([sys.executable, "-m", "venv", "--without-pip", folder])
    return os.path.join(folder, "bin", "python")


def run_pip(*arguments):
    """Runs pip; skips the test where there is none, or it does not reach the package index."""
    try:
        ran = subprocess.run([sys.executable, "-m", "pip", "--quiet"]
                             + [str(argument) for argument in arguments],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS_MOST)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer")
    said = ran.stdout.decode(errors="replace")
    if "No module named pip" in said:
        pytest.skip("there is no pip here")
    if "No matching distribution found for setuptools" in said:
        pytest.skip("the package index cannot be reached for setuptools")
    assert ran.returncode == 0, said


@pytest.fixture(scope="session")
def packages(clone, tmp_path_factory):
    """(wheel, sdist): their paths, built from a clean copy."""
    folder = str(tmp_path_factory.mktemp("packages"))
    python = venv(os.path.join(folder, "environment"))
    run_pip("--python", python, "install", "setuptools", "wheel")
    subprocess.check_call([python, "setup.py", "--quiet", "sdist", "--dist-dir", folder, "bdist_wheel",
                           "--dist-dir", folder], cwd=clone(), stderr=subprocess.DEVNULL)
    (wheel,), (sdist,) = glob.glob(os.path.join(folder, "*.whl")), glob.glob(os.path.join(folder, "*.tar.gz"))
    return wheel, sdist


@pytest.mark.slow
def test_wheel_has_the_package_and_no_tests(packages):
    wheel, _ = packages
    expected = ["numseq/" + name for name in os.listdir(os.path.join(ROOT, "numseq"))
                if name.endswith((".py", ".pyi", ".typed"))]
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(name for name in archive.namelist() if ".dist-info/" not in name) == sorted(expected)
    assert os.path.basename(wheel).endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_sdist_has_the_whole_project(packages):
    _, sdist = packages
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    # files for the clone and its CI
    expected = [path for path in project_files() if not path.startswith(".")]
    assert [path for path in expected if path not in names] == []
    assert [name for name in names if name.endswith((".pyc", ".pyz"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["clone", "sdist", "wheel"])
def test_both_commands_run_once_installed_from(what, request, tmp_path):
    if what == "clone":
        package = request.getfixturevalue("clone")()
    else:
        package = request.getfixturevalue("packages")[what == "sdist"]
    python = venv(str(tmp_path / "environment"))
    run_pip("--python", python, "install", "--no-deps", package)
    commands = os.path.join(os.path.dirname(python), "numseq-")
    build = Build(lambda name: [commands + name])
    session(build, build, tmp_path)
    out = subprocess.check_output([python, "-m", "numseq", "--version"], cwd=str(tmp_path),
                                  universal_newlines=True)
    assert out.startswith("numseq ")
