"""Host names, addresses and endpoints: from text to the addresses of sockets, and back."""

import collections
import errno

from .system import socket

PORT_MOST = 65535  # the highest port of TCP


def resolve(host, port, flags=0):
    """[(family, address)] of host (text; empty for every address of this machine) and port, without repeats.

    An IPv6 address may be in brackets. Blocks unless flags has AI_NUMERICHOST. Raises OSError if host has no
    address or is not ASCII.
    """
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        # As bytes: text would need the idna codec, which small builds lack, even for 127.0.0.1.
        name = host.encode("ascii") or None
    except UnicodeError:
        raise OSError(errno.EINVAL, "a host name has to be ASCII") from None
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)
    # A name that is twice in /etc/hosts has the same address twice, and listening on it twice fails.
    return list(collections.OrderedDict.fromkeys((family, address) for family, _, _, _, address in found))


def numeric(host, port):
    """`resolve` for a numeric address, without a look-up; None for a name. Raises OSError if not ASCII."""
    try:
        return resolve(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return None


def alternated(addresses):
    """[(family, address)] with the families alternating, because one family may be unreachable."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    pairs = zip(first, others)
    shorter = min(len(first), len(others))
    return [each for pair in pairs for each in pair] + first[shorter:] + others[shorter:]


def parse_endpoint(text):
    """(host, port) of HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT (text); port is None if it is missing.

    An IPv6 address without a port needs no brackets. Raises ValueError.
    """
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or rest and colon != ":":
            raise ValueError("no closing bracket, or something other than a port after it")
    elif not colon or ":" in host:
        host, colon = text, ""
    # Zero bytes are not printable either: getaddrinfo would take "127.0.0.1\0.example" for 127.0.0.1.
    if not host or " " in host or not host.isprintable():
        raise ValueError("no host")
    if not colon:
        return host, None
    if not (0 < len(port) <= 5 and set(port) <= set("0123456789") and 1 <= int(port) <= PORT_MOST):
        raise ValueError("no port")
    return host, int(port)


def format_endpoint(host, port):
    """HOST:PORT or [ADDRESS]:PORT (text)."""
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)
