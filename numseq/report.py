"""The report of a check: one self-contained HTML page, without scripts. No I/O."""

import math
import time

from . import figures
from .units import clock, counted, duration, micro_time, si, time_unit, whole

# Sizes are in CSS pixels.
WIDE, NARROW = 920, 380  # widths of the two versions of each plot; the page shows the one that fits
TICKS_MOST = 6  # ticks of an axis
NARROW_TICKS_MOST = 4  # ticks of the time axis on narrow screens, and of the histogram's height
LINES_MOST = 60  # with more marks of drops than this, vertical lines through the plot would hide it
BARS_PER_OCTAVE = 4
BARS_MOST = 64  # with more bars, pairs of them are merged
RATE_HEIGHT, LANE_HEIGHT, HISTOGRAM_HEIGHT = 220, 26, 170
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 40  # margins of a plot, with room for axis labels and titles
LABEL_HEIGHT = 15
LETTER = 6.2  # average width of a character, for placing labels

# The CSS class of the verdict, by exit status; "lost" for any other.
VERDICTS = {0: "sound", 1: "wrong", 4: "lost", 5: "wrong"}

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1d2733; --soft: #5d6a77;
  --line: #e2e6ea; --data: #2b6a94; --fill: #2b6a9424; --drop: #b8372f; --gap: #b8372f1c;
  --sound: #24704a; --lost: #96600c; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161b; --card: #191f26; --ink: #e3e8ed;
  --soft: #97a3af; --line: #2b333c; --data: #74b4da; --fill: #74b4da26; --drop: #f0857c; --gap: #f0857c24;
  --sound: #6fc497; --lost: #e0b062; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 3rem; background: var(--paper);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.05rem; font-weight: 500; margin: 0; color: var(--soft); overflow-wrap: anywhere; }
h2 { font-size: 1rem; font-weight: 600; margin: 0 0 .15rem; }
p { margin: .2rem 0; }
.verdict { font-size: 1.7rem; line-height: 1.25; font-weight: 600; margin: .35rem 0 .5rem; }
.sound { color: var(--sound); } .wrong { color: var(--drop); } .lost { color: var(--lost); }
.soft { color: var(--soft); font-size: .875rem; }
.note { border-left: 3px solid var(--lost); padding-left: .7rem; margin: .5rem 0; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .75rem; margin: 1.4rem 0; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: .7rem .9rem .75rem; }
.tile b { display: block; font-size: 1.4rem; line-height: 1.3; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tile b.bad { color: var(--drop); }
section { padding: 1rem 1.1rem; margin: .9rem 0; }
svg { display: block; width: 100%; height: auto; margin-top: .6rem; }
svg.narrow { display: none; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.curve { stroke: var(--data); fill: none; stroke-width: 1.5; }
.area { fill: var(--fill); } .bar { fill: var(--data); }
.gap { fill: var(--gap); } .drop { fill: var(--drop); }
.cut { stroke: var(--drop); opacity: .3; } .mark { stroke: var(--soft); stroke-dasharray: 2 3; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; margin-top: .5rem;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
td.wrap { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
th.number, td.number { text-align: right; } tr:last-child td { border-bottom: 0; }
@media (max-width: 640px) { body { padding: 1.1rem .8rem 2rem; } .verdict { font-size: 1.35rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; } section { padding: .8rem; }
  .tile b { font-size: 1.15rem; }
  svg.wide { display: none; } svg.narrow { display: block; } .long td.wrap { white-space: nowrap; } }
@media print { :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --soft: #444;
  --line: #ccc; --data: #2b6a94; --fill: #2b6a9424; --drop: #b8372f; --gap: #b8372f1c;
  --sound: #24704a; --lost: #96600c; }
  body { padding: 0; max-width: none; font-size: 11pt; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  section, .tile { break-inside: avoid; } section.long { break-inside: auto; } tr { break-inside: avoid; }
  .table { overflow: visible; } table { font-size: 8.5pt; } th, td { padding-right: .6rem; }
  svg.wide { display: block; } svg.narrow { display: none; } }
"""


def page(start, end, kept):
    """The HTML page (ASCII text).

    start, end  the first and the last line of the check (dicts, see docs/check.md)
    kept        the Figures of the check
    """
    parts = [_head(start, end), _tiles(end), _rate_section(end, kept), _histogram_section(end, kept),
             _causes_section(end), _outages_section(kept), _drops_section(kept), _foot(start)]
    text = "".join(parts)
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


# ---- the parts of the page


def _head(start, end):
    title = "numseq check of %s" % ", ".join(start["servers"])
    verdict = '<p class="verdict %s">%s</p>' % (VERDICTS.get(end["status"], "lost"), _escape(end["verdict"]))
    settings = "%s, %s, %s: sequences of %s numbers in batches of %s, up to %s requests in flight each" % (
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(start["time"])), duration(end["seconds"]),
        counted(start["clients"], "client"), whole(start["n"]), whole(start["batch_size"]),
        whole(start["window"]))
    notes = "".join('<p class="note">%s</p>' % _escape(note) for note in end["notes"])
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<title>%s</title><style>%s</style></head>'
            '<body>\n<h1>%s</h1>\n%s\n<p class="soft">%s</p>\n%s\n'
            % (_escape(title), STYLE, _escape(title), verdict, _escape(settings), notes))


def _tiles(end):
    trips = end["round_trips"]
    told = [
        (whole(end["verified"]), "numbers verified", False),
        (whole(end["mismatched"]), "numbers mismatched", end["mismatched"]),
        (si(end["numbers_per_second"]), "numbers a second", False),
        (whole(end["completed"]), "sequences completed", False),
        (whole(end["given_up"]), "sequences given up", end["given_up"]),
        (whole(end["drops"]), "unexpected drops", end["drops"]),
        (whole(end["outages"]), "outages, %s" % duration(end["outage_seconds"]), end["outages"]),
        (micro_time(trips["p50"]), "median round trip", False),
    ]
    return '<div class="tiles">%s</div>\n' % "".join(
        '<div class="tile"><b%s>%s</b><span class="soft">%s</span></div>'
        % (' class="bad"' if bad else "", _escape(value), _escape(name)) for value, name, bad in told)


def _rate_section(end, kept):
    text = "Red ticks below are unexpected drops." if end["drops"] else "There was no unexpected drop."
    if end["outages"]:
        text += " Where the background is red, every client was without a connection."
    return _section("Numbers a second", text, _both(lambda width: _rate_plot(width, end["seconds"], kept)))


def _histogram_section(end, kept):
    trips = end["round_trips"]
    if not trips["count"]:
        return _section("Round trips", "No request was answered.")
    text = "%s: half within %s, 99 %% within %s, 99.9 %% within %s, the longest %s." % (
        counted(trips["count"], "request"), micro_time(trips["p50"]), micro_time(trips["p99"]),
        micro_time(trips["p999"]), micro_time(trips["longest"]))
    histogram = kept.total.round_trips
    return _section("Round trips", text, _both(lambda width: _histogram_plot(width, trips, histogram)))


def _causes_section(end):
    rows = [(cause, whole(count), figures.MEANINGS[cause]) for cause, count in end["causes"].items() if count]
    text = "%s made." % counted(end["connections"], "connection")
    if not rows:
        return _section("Connections", text + " Each one ended as it should.")
    return _section("Connections", text + " Lost, or not made:", _table(
        (("Cause", ""), ("Times", "number"), ("What it means", "wrap")), rows))


def _outages_section(kept):
    outages = kept.outages
    if not outages.count:
        return ""
    rows = [(clock(each.begin), duration(each.seconds)) for each in outages.all()]
    return _section("Outages", _said_omitted(outages, "While every client was without a connection."), _table(
        (("From", ""), ("Lasted", "")), rows), long=True)


def _drops_section(kept):
    drops = kept.kept_drops
    if not drops.count:
        return _section("Unexpected drops", "There was none.")
    rows = [(clock(drop.at), drop.cause, drop.phase, micro_time(drop.age), whole(drop.numbers),
             whole(drop.bytes), whole(drop.client), drop.error) for drop in drops.all()]
    columns = (("Time", ""), ("Cause", ""), ("While", ""), ("Age", "number"), ("Numbers", "number"),
               ("Bytes", "number"), ("Client", "number"), ("Error", "wrap"))
    return _section("Unexpected drops", _said_omitted(
        drops, "With the age of the connection, and what it had brought."), _table(columns, rows), long=True)


def _foot(start):
    text = "numseq %s. Times are from the beginning of the check." % start["numseq"]
    return '<p class="soft">%s</p>\n</body></html>\n' % _escape(text)


def _section(title, text, content="", long=False):
    return '<section%s><h2>%s</h2><p class="soft">%s</p>%s</section>\n' % (
        ' class="long"' if long else "", title, _escape(text), content)


def _table(columns, rows):
    """An HTML table; columns are (title, CSS class), rows are tuples of text."""
    cell = "<{0} class=\"{1}\">{2}</{0}>".format
    lines = ["".join(cell("th", kind, title) for title, kind in columns)]
    lines += ["".join(cell("td", kind, _escape(text)) for text, (_, kind) in zip(row, columns))
              for row in rows]
    return '<div class="table"><table>%s</table></div>' % "\n".join("<tr>%s</tr>" % line for line in lines)


def _said_omitted(kept, text):
    if kept.omitted():
        text += " The first %d and the last %d of %s." % (len(kept.first), len(kept.last), whole(kept.count))
    return text


# ---- plots


def _both(plot):
    """Two SVG elements, for wide and narrow screens, of plot(width), which returns (height, content)."""
    return "".join('<svg class="%s" viewBox="0 0 %d %d" role="img">%s</svg>' % ((name, width) + plot(width))
                   for name, width in (("wide", WIDE), ("narrow", NARROW)))


def _rate_plot(width, seconds, kept):
    """The plot of numbers per second over time, with outages and drops: (height, SVG content)."""
    series, drops = kept.numbers, kept.drops
    rates = [count / series.step for count in series.used(seconds)]
    covered = seconds - (len(rates) - 1) * series.step
    if len(rates) > 1 and covered < series.step / 2:  # the last slot is too short for a rate
        rates.pop()
    else:
        rates[-1] *= series.step / max(min(covered, series.step), 1e-9)
    right, bottom = width - RIGHT, TOP + RATE_HEIGHT
    ticks = nice_ticks(max(rates), TICKS_MOST)
    highest = max(ticks[-1], max(rates)) or 1

    def x(at):
        return LEFT + (right - LEFT) * min(at / seconds, 1) if seconds else LEFT

    def y(rate):
        return bottom - RATE_HEIGHT * rate / highest

    parts = ["<title>Numbers a second over time</title>"]
    for outage in kept.outages.all():
        begin, end = x(outage.begin), x(outage.begin + outage.seconds)
        parts.append(_bar(begin, TOP, max(end - begin, 1), RATE_HEIGHT, "gap",
                         "outage of %s" % duration(outage.seconds)))
    for tick in ticks:
        parts.append(_line("grid" if tick else "axis", LEFT, y(tick), right, y(tick)))
        parts.append(_label(LEFT - 7, y(tick) + 4, si(tick), "end"))
    steps = ["M%.1f %.1f" % (x(0), y(rates[0]))]
    for slot, rate in enumerate(rates):
        steps.append("V%.1fH%.1f" % (y(rate), x((slot + 1) * series.step)))
    path = "".join(steps)
    parts.append('<path class="area" d="%sV%.1fH%.1fZ"/>' % (path, bottom, x(0)))
    parts.append('<path class="curve" d="%s"/>' % path)
    lane = bottom + LANE_HEIGHT
    counts = [(slot, count) for slot, count in enumerate(drops.used(seconds)) if count]
    most = max([count for _, count in counts] or [1])
    for slot, count in counts:
        middle = x((slot + 0.5) * drops.step)
        if len(counts) <= LINES_MOST:
            parts.append(_line("cut", middle, TOP, middle, bottom))
        height = (LANE_HEIGHT - 8) * (0.4 + 0.6 * count / most)
        parts.append(_bar(middle - 0.8, lane - height, 1.6, height, "drop",
                         "%s at %s" % (counted(count, "drop"), clock(slot * drops.step))))
    parts.append(_label(LEFT - 7, lane - 4, "drops", "end"))
    parts.append(_line("axis", LEFT, lane, right, lane))
    unit, name = time_unit(seconds)
    for tick in nice_ticks(seconds / unit, TICKS_MOST if width == WIDE else NARROW_TICKS_MOST):
        if tick * unit <= seconds:
            parts.append(_line("axis", x(tick * unit), lane, x(tick * unit), lane + 4))
            parts.append(_label(x(tick * unit), lane + 17, "%g" % tick))
    parts.append(_label((LEFT + right) / 2, lane + 34, "time, %s" % name))
    return lane + BOTTOM, "".join(parts)


def _histogram_plot(width, trips, histogram):
    """The histogram of round trips, on a logarithmic axis: (height, SVG content)."""
    marks = [(name, trips[key]) for key, name in (
        ("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"), ("longest", "longest"))]
    first, shares = bars(histogram)
    per_octave = BARS_PER_OCTAVE
    while len(shares) > BARS_MOST:
        if first % 2:
            first, shares = first - 1, [0.0] + shares
        shares += [0.0] * (len(shares) % 2)
        first, shares, per_octave = first // 2, list(map(sum, zip(shares[::2], shares[1::2]))), per_octave / 2
    top = TOP + LABEL_HEIGHT * len(marks)
    right, bottom = width - RIGHT, top + HISTOGRAM_HEIGHT
    ticks = nice_ticks(max(shares), NARROW_TICKS_MOST)
    highest = max(ticks[-1], max(shares))

    def x(octaves):
        return LEFT + (right - LEFT) * (octaves * per_octave - first) / len(shares)

    def at(seconds):
        return min(max(x(math.log(max(seconds * figures.SCALE, 1e-9), 2)), LEFT), right)

    parts = ["<title>Round trips by how long they took</title>"]
    for tick in ticks:
        y = bottom - HISTOGRAM_HEIGHT * tick / highest
        parts.append(_line("grid" if tick else "axis", LEFT, y, right, y))
        parts.append(_label(LEFT - 7, y + 4, "%g %%" % tick, "end"))
    for number, share in enumerate(shares):
        begin, end = x((first + number) / per_octave), x((first + number + 1) / per_octave)
        if share:
            height = max(HISTOGRAM_HEIGHT * share / highest, 0.7)  # keeps a single round trip visible
            parts.append(_bar(begin + 0.5, bottom - height, max(end - begin - 1, 0.5), height, "bar",
                             "%.2g %%" % share))
    for row, (name, seconds) in enumerate(marks):
        place, y, text = at(seconds), TOP + LABEL_HEIGHT * row + 9, "%s %s" % (name, micro_time(seconds))
        parts.append(_line("mark", place, y - 8, place, bottom))
        fits = place + 5 + len(text) * LETTER < right
        parts.append(_label(place + (5 if fits else -5), y, text, "start" if fits else "end"))
    places, last = [], -math.inf
    for power in range(-1, 12):
        for digit in (1, 2, 5):
            value = digit * 10.0 ** power / figures.SCALE
            if first / per_octave <= math.log(value * figures.SCALE, 2) <= (first + len(shares)) / per_octave:
                places.append((digit, value))
    if len(places) > (8 if width == WIDE else 4):
        places = [each for each in places if each[0] == 1] or places
    for _, value in places:
        if at(value) - last > 44:
            last = at(value)
            parts.append(_line("axis", last, bottom, last, bottom + 4))
            parts.append(_label(last, bottom + 17, micro_time(value)))
    parts.append(_label((LEFT + right) / 2, bottom + 34, "round trip, logarithmic; height: share of all, %"))
    return bottom + BOTTOM, "".join(parts)


def bars(histogram):
    """The bars of a Histogram, each a quarter of an octave wide: (number of the first, [share in %]).

    Bar number i begins at 2 ** (i / BARS_PER_OCTAVE) microseconds.
    """
    shares = {}
    for bucket, count in histogram.items():
        begin, end = figures.bucket_start(bucket), figures.bucket_start(bucket + 1)
        begin = max(begin, 0.5)
        bar = math.floor(math.log(begin, 2) * BARS_PER_OCTAVE + 1e-9)
        while begin < end - 1e-9:  # distributes the bucket over the bars that it overlaps
            edge = min(2 ** ((bar + 1) / BARS_PER_OCTAVE), end)
            width = end - max(figures.bucket_start(bucket), 0.5)
            shares[bar] = shares.get(bar, 0.0) + 100 * count / histogram.count * (edge - begin) / width
            begin, bar = edge, bar + 1
    first = min(shares)
    return first, [shares.get(bar, 0.0) for bar in range(first, max(shares) + 1)]


def _bar(x, y, width, height, kind, title):
    """An SVG rectangle; the title is its tooltip."""
    return '<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"><title>%s</title></rect>' % (
        kind, x, y, width, height, title)


def _line(kind, x1, y1, x2, y2):
    return '<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>' % (kind, x1, y1, x2, y2)


def _label(x, y, text, anchor="middle"):
    return '<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>' % (x, y, anchor, _escape(text))


def nice_ticks(highest, most):
    """Ticks of an axis (list): 0, and up to `most` multiples of a round step, the last at least `highest`."""
    if not highest > 0:
        return [0, 1]
    step = 10.0 ** math.floor(math.log10(highest / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if step * factor * most >= highest * (1 - 1e-9))
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _escape(text):
    for char, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(char, name)
    return text
