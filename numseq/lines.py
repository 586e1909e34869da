"""Formats the lines of CHECK as JSON and as text for people. No I/O.

A line is a dict with a "type", see docs/check.md.
"""

from .figures import SESSION
from .units import clock, counted, duration, short_time, si, whole

SHOWN_MOST = 10  # entries per list in the summary from its beginning, and from its end; --report has more
MISSING_JSON = b'{"type": "missing", "lines": %d}\n'  # replaces lines dropped because the reader was slow

HEADER = "%10s %10s %9s %8s %8s %6s %9s %9s %9s" % (
    "time", "numbers/s", "bytes/s", "conns", "expected", "drops", "p50", "p99", "longest")
FAILURES = ("wrong", "wrong"), ("broken", "broken"), ("given_up", "given up")
ROW = "%10s %10s %9s %8d %8d %6d %9s %9s %9s%s"


def to_json(value):
    """The JSON (ASCII text) of None, bool, int, float, text, lists, tuples and dicts.

    Infinite floats and NaN become null. The module json is not used, because small builds of Python lack it.
    """
    if isinstance(value, dict):
        return "{%s}" % ", ".join("%s: %s" % (to_json(name), to_json(each)) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return "[%s]" % ", ".join(map(to_json, value))
    if isinstance(value, str):
        return '"%s"' % "".join(map(_escaped, value))
    if isinstance(value, float):
        return repr(value) if abs(value) < float("inf") else "null"  # false for NaN as well
    return "null" if value is None else repr(value).lower()


def _escaped(char):
    if char in '"\\':
        return "\\" + char
    if " " <= char <= "~":
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join("\\u%02x%02x" % (units[i], units[i + 1]) for i in range(0, len(units), 2))


def as_json(line):
    """A line (dict) as JSON (list of one text)."""
    return [to_json(line)]


def as_text(line):
    """A line (dict) for people (list of text), which is empty for a drop: the intervals count them."""
    return TEXTS[line["type"]](line)


def _start_text(line):
    return ["Checking %s for %s: %s, %s numbers a sequence, %s in a batch, %s in flight" % (
        ", ".join(line["servers"]), duration(line["duration"]), counted(line["clients"], "client"),
        whole(line["n"]), whole(line["batch_size"]), counted(line["window"], "request")), HEADER]


def _interval_text(line):
    trips = line["round_trips"]
    remarks = ["%s %d" % each for each in line["causes"].items() if each[1] and each[0] != SESSION]
    remarks += ["%s %d" % (name, line[key]) for key, name in FAILURES if line[key]]
    if line["outage"]:
        remarks.append("nothing for %s" % duration(line["outage"]))
    if line["busy"]:
        remarks.append("own processor %.0f %%" % (100 * line["processor"]))
    return [ROW % (clock(line["end"]), si(line["numbers_per_second"]), si(line["bytes_received_per_second"]),
                   line["connections"], line["expected_drops"], line["drops"], short_time(trips["p50"]),
                   short_time(trips["p99"]), short_time(trips["longest"]),
                   "  " * bool(remarks) + ", ".join(remarks))]


def _end_text(line):
    trips = line["round_trips"]
    causes = ", ".join("%s %s" % (whole(count), cause) for cause, count in line["causes"].items()
                       if count and cause != SESSION)
    rows = [
        ("sequences", "%s completed, %s wrong, %s broken, %s given up, %s unfinished" % tuple(
            whole(line[name]) for name in ("completed", "wrong", "broken", "given_up", "unfinished"))),
        ("numbers", "%s verified, %s mismatched, %s a second" % (
            whole(line["verified"]), whole(line["mismatched"]), si(line["numbers_per_second"]))),
        ("bytes", "%s received, %s sent" % (si(line["bytes_received"]), si(line["bytes_sent"]))),
        ("connections", "%s made, %s ended with their session, as expected" % (
            whole(line["connections"]), whole(line["expected_drops"]))),
        ("drops", "%s unexpected%s" % (whole(line["drops"]), ": " + causes if causes else "")),
        ("outages", "%s, %s" % (whole(line["outages"]), duration(line["outage_seconds"]))),
        ("round trips", "p50 %s, p99 %s, p99.9 %s, longest %s" % tuple(
            short_time(trips[name]) for name in ("p50", "p99", "p999", "longest"))),
    ]
    return ["", line["verdict"]] + ["  %-12s %s" % row for row in rows] + line["notes"]


TEXTS = {
    "start": _start_text,
    "interval": _interval_text,
    "drop": lambda line: [],
    "end": _end_text,
}


def details(kept):
    """The lists of drops, outages and failures in the summary (list of text), from the Figures `kept`."""
    lines = []
    for name, found, write in (
            ("Unexpected drops:", kept.kept_drops, _drop_text),
            ("Outages:", kept.outages, _outage_text),
            ("Failures:", kept.failures, _failure_text)):
        if found.count:
            shown = ["  " + write(each) for each in found.all()]
            left = found.count - 2 * SHOWN_MOST
            if left > 0:
                shown[SHOWN_MOST:-SHOWN_MOST] = ["  ... %s more" % whole(left)]
            lines += [name] + shown
    return lines


def _outage_text(outage):
    return "%s  for %s" % (clock(outage.begin), duration(outage.seconds))


def _failure_text(failure):
    return "%s  %s" % (clock(failure.at), failure.error)


def _drop_text(drop):
    return "%s  %s while %s, age %s, %s bytes: %s" % (
        clock(drop.at), drop.cause, drop.phase, short_time(drop.age), whole(drop.bytes), drop.error)
