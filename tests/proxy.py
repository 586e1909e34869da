"""A proxy between the real client and the real server that breaks connections, on the test's loop.

What becomes of a connection is a Plan's to say, and each connection can have its own.
"""

from numseq.connect import connect
from numseq.stream import Stream, listen

UP, DOWN = "up", "down"  # from the client to the server, and back
RST, FIN = "RST", "FIN"


class Plan:
    """What becomes of a connection; by default it is left alone.

    cut      (direction, bytes): both sides are closed as soon as that many bytes have gone that way
    how      RST or FIN: what both sides get then
    vanish   (direction, bytes): from then on nothing is passed on either way, and nothing is closed
    delay    seconds that what has come waits; what comes meanwhile goes with it, so that many messages become
             one
    piece    bytes passed on at once, one piece a turn; None for all there is
    pieces   how many such pieces there are each way, before all there is; None for no others
    twice    whether the client's bytes go to the server over a second connection as well, whose answers are
             dropped
    """

    def __init__(self, cut=None, how=RST, vanish=None, delay=0, piece=None, pieces=None, twice=False):
        self.cut = cut
        self.how = how
        self.vanish = vanish
        self.delay = delay
        self.piece = piece
        self.pieces = pieces
        self.twice = twice

    def __repr__(self):
        return "Plan(%s)" % ", ".join("%s=%r" % each for each in sorted(vars(self).items()) if each[1])


class Proxy:
    """Listens on its own port and forwards to the server's. plan(number) returns each connection's Plan.

    `links` are the connections that are open; with `keep`, all there ever were, and what went through them.
    """

    def __init__(self, loop, host, port, plan=lambda number: Plan(), keep=True):
        self.loop = loop
        self.server = host, port
        self.keep = keep
        self.links = []
        self.connections = 0
        self.broken = 0  # how many of them were cut, or vanished, as planned
        self._plan = plan
        self._listener, = listen(loop, host, 0, self._accepted)
        self.port = self._listener.address[1]

    def _accepted(self, connection):
        link = Link(self, self._plan(self.connections))
        self.connections += 1
        self.links.append(link)
        link.begin(connection)

    def close(self):
        """Listens no more, and aborts what there is."""
        self._listener.close()
        for link in list(self.links):
            link.end(RST)


class Link:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy, plan):
        self.proxy = proxy
        self.plan = plan
        self.heard = bytearray()  # all that the client has sent, passed on or not
        self.vanished = False
        self.over = False
        self.lanes = {UP: Lane(self, UP), DOWN: Lane(self, DOWN)}
        self.ends = [End(self, reads=UP, writes=DOWN), End(self, reads=DOWN, writes=UP)]
        if plan.twice:
            self.ends.append(End(self, reads=None, writes=UP))

    def begin(self, connection):
        client, *others = self.ends
        client.connected(Stream(self.proxy.loop, connection, client))
        for end in others:
            end.connector = connect(self.proxy.loop, *self.proxy.server, handler=end)
        for lane in self.lanes.values():
            lane.follow_plan()

    def connecting(self):
        return any(end.connector is not None for end in self.ends)

    def vanish(self):
        """Nothing is passed on any more, and nothing is closed."""
        self.vanished = True
        self.proxy.broken += 1

    def cut(self):
        """The end that was planned."""
        self.proxy.broken += 1
        self.end(self.plan.how)

    def end(self, how):
        """The same end for everybody, once."""
        if not self.over:
            self.over = True
            for part in list(self.lanes.values()) + self.ends:
                part.end(how)
            if not self.proxy.keep:
                self.proxy.links.remove(self)


class End:
    """The handler of one connection of a link: reads the data of one direction and writes that of the other.

    What the server says on a second connection is for nobody.
    """

    def __init__(self, link, reads, writes):
        self.link = link
        self.reads = reads
        self.writes = writes
        self.stream = None
        self.connector = None  # while it is on its way

    def connected(self, stream):
        self.stream = stream
        self.connector = None
        self.link.lanes[UP].go_on()

    def received(self, stream):
        data, stream.input = bytes(stream.input), b""
        if self.reads is UP and self.link.proxy.keep:
            self.link.heard += data
        if self.link.vanished or self.reads is None:
            if stream.ended:
                stream.abort()  # the other ends are not told
            return
        self.link.lanes[self.reads].take(data, FIN if stream.ended else None)

    def closed(self, stream, error):
        self.stream = self.connector = None
        if self.link.vanished:
            if not any(end.stream or end.connector for end in self.link.ends):
                self.link.end(RST)
        elif self.reads is not None:
            self.link.lanes[self.reads].take(b"", RST if error else FIN)

    def end(self, how):
        if self.connector is not None:
            self.connector.abort()
        elif self.stream is not None:
            if how is FIN:
                self.stream.close()
            else:
                self.stream.abort()


class Lane:
    """One direction of a link: data read at one end waits here until the plan lets it be passed on."""

    def __init__(self, link, way):
        self.link = link
        self.way = way
        self.passed = 0  # bytes
        self.pieces = []  # the same, as they were written
        self._waiting = bytearray()
        self._ending = None  # how the reading has ended
        self._timer = None

    def take(self, data, ending=None):
        self._waiting += data
        self._ending = self._ending or ending
        self.go_on()

    def go_on(self):
        """Sees to it that what waits is passed on, once it may."""
        link = self.link
        stopped = link.over or link.vanished or link.connecting()
        if (self._waiting or self._ending) and self._timer is None and not stopped:
            if link.plan.delay or link.plan.piece:
                self._timer = link.proxy.loop.call_later(link.plan.delay, self._pass_on)
            else:
                self._pass_on()

    def _pass_on(self):
        self._timer = None
        data = bytes(self._waiting[:self._most()])
        del self._waiting[:len(data)]
        self.passed += len(data)
        if data and self.link.proxy.keep:
            self.pieces.append(data)
        for end in self.link.ends:
            if end.writes is self.way and end.stream is not None:
                end.stream.write(data)
                end.stream.settle()  # now: a reset that follows in this very turn would overtake it
        if data:
            self.follow_plan()
        if not self._waiting and self._ending and not self.link.vanished:
            self.link.end(self._ending)
        self.go_on()

    def _most(self):
        """How many bytes may be passed on together."""
        plan = self.link.plan
        in_pieces = plan.piece and (plan.pieces is None or self.passed < plan.piece * plan.pieces)
        most = plan.piece if in_pieces else len(self._waiting)
        for way, count in filter(None, (plan.cut, plan.vanish)):
            if way is self.way:
                most = min(most, count - self.passed)
        return most

    def follow_plan(self):
        """What is planned for when so many bytes have gone this way."""
        here = self.way, self.passed
        if self.link.plan.cut == here:
            self.link.cut()
        elif self.link.plan.vanish == here:
            self.link.vanish()

    def end(self, how):
        self.link.proxy.loop.cancel(self._timer)
        self._waiting.clear()
