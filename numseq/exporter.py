"""Serves a server's figures to Prometheus, and its health, over HTTP.

The text is the exposition format 0.0.4.
"""

from .metrics import HISTOGRAM, SHOWN, number
from .stream import Stream, close_file, listen

CONNECTIONS_MOST = 8  # open at once: a collector or two and some browsers; further ones are closed
REQUEST_MOST = 4096  # bytes of a request; browsers send under 1,000, collectors under 300
REQUEST_SECONDS = 1.0  # seconds from accept to the end of the response

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(families):
    """The exposition text (bytes) of `metrics.families`, without those whose value is None."""
    lines = []
    for name, kind, text, label, value in families:
        if value is None:
            continue
        lines += ["# HELP %s %s" % (name, text), "# TYPE %s %s" % (name, kind)]
        if kind == HISTOGRAM:
            lines += samples(name, value)
        elif label:
            lines += ['%s{%s="%s"} %s' % (name, label, key, number(count)) for key, count in value.items()]
        else:
            lines.append("%s %s" % (name, number(value)))
    return "".join(line + "\n" for line in lines).encode("ascii")


def samples(name, histogram):
    """A histogram's lines: cumulative buckets, sum and count."""
    total = histogram.count()
    lines = ['%s_bucket{le="%s"} %d' % (name, number(2 ** place / 1e6), sum(histogram.counts[:place + 1]))
             for place in SHOWN]
    return lines + ['%s_bucket{le="+Inf"} %d' % (name, total), "%s_sum %s" % (name, number(histogram.sum)),
                    "%s_count %d" % (name, total)]


# ---- HTTP

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
           431: "Request Header Fields Too Large", 503: "Service Unavailable"}
HEAD_END = (b"\r\n\r\n", b"\n\n")
ABSOLUTE = b"http://"  # the beginning of a target with a host, as for a proxy (RFC 9112, 3.2.2)


def response(status, body, content_type="text/plain; charset=utf-8", head_only=False):
    """A whole HTTP response (bytes)."""
    head = "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n" % (
        status, REASONS[status], content_type, len(body), "Allow: GET, HEAD\r\n" if status == 405 else "")
    return head.encode("ascii") + (b"" if head_only else body)


def parse(data):
    """(method, path), both bytes, of a request (bytes); None if its head is incomplete. Raises ValueError."""
    if data.startswith(b"\r\n"):  # some clients send an empty line first (RFC 9112, 2.2)
        data = data[2:]
    if not any(end in data for end in HEAD_END):
        return None
    method, target, version = data.splitlines()[0].split(b" ")
    if not version.startswith(b"HTTP/1."):
        raise ValueError("not HTTP/1")
    if target[:len(ABSOLUTE)].lower() == ABSOLUTE:
        target = b"/" + target[len(ABSOLUTE):].partition(b"/")[2]
    return method, target.partition(b"?")[0]


class Exporter:
    """Serves GET /metrics and GET /healthz on the server's loop.

    figures() returns the families for `render`; trouble() returns why the server is unhealthy (text) or None.
    """

    def __init__(self, loop, figures, trouble):
        self.loop = loop
        self.figures = figures
        self.trouble = trouble
        self.scrapes = set()
        self._listeners = []

    def listen(self, host, port):
        """Listens on every address of host and port; returns the addresses. Raises OSError."""
        self._listeners = listen(self.loop, host, port, self._accepted)
        return [listener.address for listener in self._listeners]

    def answer(self, method, path):
        """The response (bytes) to a request."""
        head_only = method == b"HEAD"
        if method not in (b"GET", b"HEAD"):
            return response(405, b"GET or HEAD\n")
        if path == b"/metrics":
            return response(200, render(self.figures()), CONTENT_TYPE, head_only)
        if path == b"/healthz":
            trouble = self.trouble()
            body = ((trouble or "ok") + "\n").encode("ascii", "replace")
            return response(503 if trouble else 200, body, head_only=head_only)
        return response(404, b"/metrics or /healthz\n", head_only=head_only)

    def close(self):
        """Closes the listeners and aborts all connections."""
        for listener in self._listeners:
            listener.close()
        for scrape in list(self.scrapes):
            scrape.stream.abort()

    def _accepted(self, connection):
        if len(self.scrapes) >= CONNECTIONS_MOST:
            close_file(connection)
            return
        try:
            scrape = Scrape(self, connection)
        except OSError:  # the selector cannot watch it
            close_file(connection)
            return
        self.scrapes.add(scrape)


class Scrape:
    """One connection to the Exporter: one request and its response."""

    __slots__ = ("exporter", "stream", "_timer")

    def __init__(self, exporter, connection):
        self.exporter = exporter
        self._timer = exporter.loop.call_later(REQUEST_SECONDS, lambda: self.stream.abort())
        try:
            self.stream = Stream(exporter.loop, connection, self)
        except BaseException:
            exporter.loop.cancel(self._timer)
            raise

    def received(self, stream):
        try:
            request = parse(bytes(stream.input[:REQUEST_MOST]))
        except ValueError:
            answer = response(400, b"not an HTTP/1 request\n")
        else:
            if request is not None:
                answer = self.exporter.answer(*request)
            elif len(stream.input) >= REQUEST_MOST:
                answer = response(431, b"too long a request\n")
            elif stream.ended:
                answer = b""
            else:
                return
        stream.write(answer)
        stream.close()

    def closed(self, stream, error):
        self.exporter.loop.cancel(self._timer)
        self.exporter.scrapes.discard(self)

