"""The page of a check: one file that stands alone, whatever the check has seen."""

import html.parser
import re

import pytest

from numseq import report, units
from numseq.figures import KEPT, RESET, Drop, Figures, Outage

VOID = {"meta"}  # elements without an end
REACHES_OUT = re.compile(
    r"https?:|//|\burl\(|@import|<(?:script|link|img|iframe)|\b(?:src|href|on\w+)=", re.IGNORECASE)


def made(seconds=10.0, drops=(), outages=(), trips=(0.001,), rate=1000, **changes):
    """The page (text) of a check with these figures."""
    kept = Figures(1)
    for step in range(100):
        kept.receive(0, step * seconds / 100, 400)
        kept.progress(step * seconds / 100, int(rate * seconds / 100))
    for at in drops:
        kept.drop(Drop(at, RESET, False, "receiving", 0.25, 1234, 567, 0, "<b>reset</b> & \"gone\" \u20ac"))
    for each in outages:
        kept.outages.add(Outage(*each))
    for each in trips:
        kept.now.round_trips.add(each)
    kept.close_interval()
    end = kept.total.summary(seconds)
    end.update(status=0, seconds=seconds, outages=kept.outages.count,
               outage_seconds=sum(each[1] for each in outages),
               notes=["A note."], verdict="All is well.")
    end.update(changes)
    start = dict(servers=["[2001:db8::1]:5000"], time=0.0, clients=8, n=10000, batch_size=5, window=512,
                 numseq="1.0")
    return report.page(start, end, kept)


class Reader(html.parser.HTMLParser):
    """Checks that elements are nested as they should be, and collects them."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.found = []  # (name, attributes)
        self.texts = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.found.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.append(data)

    def count(self, name, kind=None):
        return sum(found == name and (kind is None or attributes.get("class") == kind)
                   for found, attributes in self.found)


MANY = [number * 3.6 for number in range(1000)]
SPREAD = [0.0001 * 1.01 ** number for number in range(1500)]
PAGES = {
    "10 seconds": lambda: made(),
    "10 minutes": lambda: made(600.0, drops=[30.0 * number for number in range(20)]),
    "many drops": lambda: made(3600.0, drops=MANY, outages=[(100.0, 95.0)], trips=SPREAD),
    "ten years": lambda: made(3.2e8, drops=[1e8], outages=[(1e8, 86400.0 * 400)]),
    "nothing": lambda: made(5.0, trips=(), rate=0),
    "no time": lambda: made(0.0, trips=()),
    "a microsecond": lambda: made(trips=(0.0, 1e-6)),
    "an hour for a round trip": lambda: made(trips=(1e-6, 3600.0)),
}


@pytest.fixture(params=sorted(PAGES))
def page(request):
    return PAGES[request.param]()


def test_page_is_well_formed_ascii(page):
    assert page.isascii()
    assert page.startswith("<!DOCTYPE html>")
    Reader(page)


def test_page_needs_no_script_and_nothing_beside_itself(page):
    assert REACHES_OUT.findall(page) == []


def test_no_figure_is_infinite_or_no_number(page):
    shown = Reader(page).texts + re.findall(r'"[^"]*"', page)
    assert re.findall(r"\b(?:nan|inf|None)\b", " ".join(shown)) == []


def test_plots_stay_within_their_frames(page):
    for width, height, svg in re.findall(r'viewBox="0 0 (\d+) (\d+)"[^>]*>(.*?)</svg>', page, re.DOTALL):
        for name, value in re.findall(r' (x|x1|x2|y|y1|y2)="([-\d.]+)"', svg):
            assert 0 <= float(value) <= float(width if name[0] == "x" else height)


def test_axes_have_units_and_plots_have_titles():
    text = " ".join(Reader(PAGES["10 minutes"]()).texts)
    for words in ("Numbers a second", "time, minutes", "Round trips", "round trip, logarithmic"):
        assert words in text


def test_each_burst_of_drops_is_marked_in_both_plots():
    reader = Reader(PAGES["10 minutes"]())
    assert reader.count("rect", "drop") == 2 * 20
    assert reader.count("line", "cut") == 2 * 20


def test_very_many_drops_are_marked_without_a_curtain_of_lines():
    reader = Reader(PAGES["many drops"]())
    assert 2 * 200 < reader.count("rect", "drop") <= 2 * 480
    assert reader.count("line", "cut") == 0
    assert reader.count("rect", "gap") == 2


def test_table_has_the_first_and_the_last_of_many_drops():
    page = PAGES["many drops"]()
    assert page.count("<b>reset") == 0
    assert page.count("&lt;b&gt;reset&lt;/b&gt; &amp; &quot;gone&quot; &#8364;") == 2 * KEPT
    assert "The first 100 and the last 100 of 1,000." in page


def test_page_of_many_drops_stays_small():
    assert len(PAGES["many drops"]()) < 200 * 1000


def test_page_follows_the_screen_the_colours_and_the_printer():
    page = PAGES["10 seconds"]()
    for words in ("prefers-color-scheme: dark", "@media print", "max-width: 640px", 'name="viewport"'):
        assert words in page


@pytest.mark.parametrize("status, kind", [(0, "sound"), (1, "wrong"), (4, "lost"), (5, "wrong")])
def test_verdict_has_the_colour_of_the_status(status, kind):
    assert '<p class="verdict %s">All is well.</p>' % kind in made(status=status)


def test_shares_of_the_bars_are_all_of_the_round_trips():
    kept = Figures(1)
    for number in range(1000):
        kept.now.round_trips.add(0.00001 * 1.01 ** number)
    first, shares = report.bars(kept.now.round_trips)
    assert sum(shares) == pytest.approx(100)
    assert max(shares[2:-2]) < 2 * min(shares[2:-2])  # equally many in each factor: no bar stands out


@pytest.mark.parametrize("highest, ticks", [
    (0, [0, 1]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (11, [0, 2, 4, 6, 8, 10, 12]),
    (7e5, [0, 2e5, 4e5, 6e5, 8e5])])
def test_ticks_are_round_numbers_that_enclose_the_highest(highest, ticks):
    assert report.nice_ticks(highest, 6) == pytest.approx(ticks)


# ---- words


@pytest.mark.parametrize("seconds, text", [
    (None, "-"), (0, "0 us"), (0.000021, "21 us"), (0.0009996, "1 ms"), (0.0123456, "12.3 ms"),
    (0.99999, "1 s"), (99, "99 s"), (3700, "1 h 1 min")])
def test_short_times_have_three_digits_and_a_unit(seconds, text):
    assert units.short_time(seconds) == text


@pytest.mark.parametrize("seconds, text", [
    (0, "0 s"), (7.5, "7.5 s"), (600, "10 min"), (605, "10 min 5 s"), (10920, "3 h 2 min"),
    (41.125 * 86400, "41 d 3 h")])
def test_durations_have_the_two_largest_units(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize("seconds, text", [
    (4.21, "4.21 s"), (304.29, "5:04.2"), (3723, "1:02:03"), (3 * 86400 + 3723, "3 d 1:02:03")])
def test_clock_counts_from_the_beginning(seconds, text):
    assert units.clock(seconds) == text


@pytest.mark.parametrize("number, text", [
    (0, "0"), (7, "7"), (1250000, "1.25 M"), (300000, "300 k"), (999999, "1 M"), (2.5e12, "2500 G")])
def test_large_numbers_have_three_digits_and_a_prefix(number, text):
    assert units.si(number) == text
