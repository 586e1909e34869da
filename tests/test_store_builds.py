"""Whole sessions on a file and on Redis: old and new versions, and builds that lack much."""

import pytest

from builds import modules, newest, oldest, prepared, scripts, session, unpredictable_session
from test_matrix import ONLY_POLL, ONLY_SELECT, OPENWRT

pytestmark = pytest.mark.slow


@pytest.fixture(params=["file", "redis", "redis on a socket"])
def variables(request, tmp_path):
    """The environment that names a store, which is empty."""
    if request.param == "file":
        return {"NUMSEQ_STORE": "file:%s" % (tmp_path / "store")}
    redis = request.getfixturevalue("real_redis")
    redis.command("FLUSHALL")
    return {"NUMSEQ_STORE": redis.url if request.param == "redis" else "redis+socket://%s?db=1" % redis.path}


@pytest.mark.parametrize("interpreter", [oldest, newest])
def test_session_with_each_store_on_the_oldest_and_newest_version(interpreter, source, tmp_path, variables):
    build = scripts(interpreter(), source, environment=variables)
    session(build, build, tmp_path)
    unpredictable_session(build, tmp_path)


@pytest.mark.parametrize("code", [OPENWRT + ONLY_SELECT, OPENWRT + ONLY_POLL], ids=["select", "poll"])
@pytest.mark.parametrize("interpreter", [oldest, newest])
def test_session_with_each_store_without_what_small_builds_lack(
        interpreter, code, source, tmp_path, variables):
    lacking = code + "\nfor name in ('fcntl', 'mmap', 'ctypes', 'zlib'):\n    sys.modules[name] = None\n"
    build = prepared(interpreter(), source, lacking, environment=variables)
    session(build, build, tmp_path)


def test_session_with_each_store_on_debian_minimal(minimal, source, tmp_path, variables):
    build = modules(minimal, source, "-B", environment=variables)
    session(build, build, tmp_path)
