"""Formats numbers and times (in seconds) for people. The docstrings give examples of the text returned."""


def whole(number):
    """1,234,567, of an int."""
    return "{:,}".format(number)


def counted(number, name):
    """2 clients, 1 client, of an int and a singular noun."""
    return "%s %s%s" % (whole(number), name, "" if number == 1 else "s")


def si(number):
    """1.25 M, 300 k, 7: three digits and an SI prefix."""
    for scale, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * scale:
            return ("%.3g%s" if number < 999.5 * scale else "%.0f%s") % (number / scale, name)
    return "%.3g" % number


def short_time(seconds, micro="us"):
    """21 us, 3.4 ms, 1.2 s, 2 min 5 s; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 0.9995e-3:
        return "%.3g %s" % (seconds * 1e6, micro)
    if seconds < 0.9995:
        return "%.3g ms" % (seconds * 1e3)
    return "%.3g s" % seconds if seconds < 100 else duration(seconds)


def micro_time(seconds):
    """As short_time, with the micro sign, for outputs that are not limited to ASCII."""
    return short_time(seconds, "\u00b5s")


def duration(seconds):
    """7.5 s, 10 min 5 s, 3 h 2 min, 41 d 3 h."""
    if seconds < 100:
        return "%.3g s" % seconds
    seconds = int(seconds + 0.5)
    for larger, name, smaller, small_name in (
            (86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= larger:
            rest = seconds % larger // smaller
            return "%d %s" % (seconds // larger, name) + (" %d %s" % (rest, small_name) if rest else "")


def clock(seconds):
    """4.21 s, 5:04.2, 1:02:03, 3 d 1:02:03: the time since the start of a check."""
    if seconds < 60:
        return "%.2f s" % seconds
    if seconds < 3600:
        tenths = int(seconds * 10)
        return "%d:%02d.%d" % (tenths // 600, tenths // 10 % 60, tenths % 10)
    left = int(seconds)
    text = "%d:%02d:%02d" % (left // 3600 % 24, left // 60 % 60, left % 60)
    return "%d d %s" % (left // 86400, text) if left >= 86400 else text


def time_unit(seconds):
    """The unit for a time axis of this length: (its seconds, its name)."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return unit, name
    return 1, "seconds"
