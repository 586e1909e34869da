"""Host names, addresses and endpoints: from text to what a socket takes, and back to text."""

import collections
import errno
import socket

PORT_MOST = 65535  # the highest port of TCP


def resolve(host, port, flags=0):
    """[(family, address)] of host (text; empty for every address of this machine) and port, each once.

    An IPv6 address may stand in brackets. The host goes in as bytes: as text it needs the idna codec, which
    small builds lack, even for 127.0.0.1. Raises OSError where there is none, also for a host that is not
    ASCII. It blocks, unless the flags say AI_NUMERICHOST.
    """
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        name = host.encode("ascii") or None
    except UnicodeError:
        raise OSError(errno.EINVAL, "a host name has to be ASCII") from None
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)
    # A name that stands twice in /etc/hosts has its address twice, which nobody can listen on.
    return list(collections.OrderedDict.fromkeys((family, address) for family, _, _, _, address in found))


def numeric(host, port):
    """`resolve` for an address, without a look-up; None for a name. Raises OSError for neither."""
    try:
        return resolve(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return None


def alternated(addresses):
    """[(family, address)] with the families in turns: one of them may lead nowhere."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    pairs = zip(first, others)
    shorter = min(len(first), len(others))
    return [each for pair in pairs for each in pair] + first[shorter:] + others[shorter:]


def parse_endpoint(text):
    """(host, port) of HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT (text); port is None where there is none.

    An IPv6 address may also stand alone without brackets. Raises ValueError.
    """
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or rest and colon != ":":
            raise ValueError("no closing bracket, or something else than a port after it")
    elif not colon or ":" in host:
        host, colon = text, ""
    if not host or len(host.split()) != 1 or host.strip() != host:
        raise ValueError("no host")
    if not colon:
        return host, None
    if not (0 < len(port) <= 5 and set(port) <= set("0123456789") and 1 <= int(port) <= PORT_MOST):
        raise ValueError("no port")
    return host, int(port)


def format_endpoint(host, port):
    """HOST:PORT or [ADDRESS]:PORT (text)."""
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)
