"""URLs of Redis. The connection is tested with the store: tests/test_store_redis.py."""

import pytest

from numseq.redis_client import Place, parse_url


@pytest.mark.parametrize("url, place", [
    ("redis://host", Place([("host", 6379)], None, None, None, 0)),
    ("redis://host:7000/3", Place([("host", 7000)], None, None, None, 3)),
    ("redis://host/", Place([("host", 6379)], None, None, None, 0)),
    ("redis://a,b:1,[::1]:2,[fe80::1]/5",
     Place([("a", 6379), ("b", 1), ("::1", 2), ("fe80::1", 6379)], None, None, None, 5)),
    ("redis://:pass@host", Place([("host", 6379)], None, None, b"pass", 0)),
    ("redis://user:p%40ss%2Fw%3A%25@host", Place([("host", 6379)], None, b"user", b"p@ss/w:%", 0)),
    ("redis://user:p@ss@host", Place([("host", 6379)], None, b"user", b"p@ss", 0)),
    ("redis://:p%C3%A4ss@host", Place([("host", 6379)], None, None, "p\u00e4ss".encode(), 0)),
    ("redis+socket:///run/redis.sock", Place([], "/run/redis.sock", None, None, 0)),
    ("redis+socket:///run/r%20s.sock?db=7", Place([], "/run/r s.sock", None, None, 7)),
    ("redis+socket://:pw@/run/redis.sock", Place([], "/run/redis.sock", None, b"pw", 0)),
])
def test_url_says_where_redis_is(url, place):
    assert parse_url(url) == place


@pytest.mark.parametrize("url", [
    "redis:", "redis://", "redis:///1", "redis://host:", "redis://host:0", "redis://host:65536",
    "redis://host:x", "redis://host/x", "redis://host/-1", "redis://host/1/2", "redis://host/1?db=2",
    "redis://host/9999999", "redis://a,,b", "redis://a,", "redis://ho\nst",
    "redis://" + ",".join("h%d" % number for number in range(17)),
    "redis://[::1", "redis://[::1]x", "redis://[]:1", "redis://::1",
    "redis://secret@host", "redis://user:@host", "redis://:secret%4@host", "redis://:secret%zz@host",
    "redis+socket://", "redis+socket://host/x", "redis+socket:///x?db=", "redis+socket:///x?db=a",
    "redis+socket:///x?y=1", "redis+socket:///x?",
])
def test_wrong_url_is_an_error_without_the_password(url):
    with pytest.raises(ValueError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
