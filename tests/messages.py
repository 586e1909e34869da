"""Messages as samples for the tests: good ones, bad ones, and any bytes at all."""

import random

from numseq import protocol
from numseq.protocol import ProtocolError

ID = b"123e4567-e89b-12d3-a456-426614174000"
CHECKSUM = "f90b20dae8c9b7d7be2a5fb7cc856e8b"
ARABIC_FIVE = "\u0665".encode()

REQUESTS = [
    (b"INIT,%b,5,5;" % ID, (b"INIT", (ID, 5, 5))),
    (b"INIT,%b,0,1;" % ID, (b"INIT", (ID, 0, 1))),
    (b"INIT,%b,65535,65535;" % ID.upper(), (b"INIT", (ID.upper(), 65535, 65535))),
    (b"CONT,%b;" % ID, (b"CONT", ID)),
    (b"CONT,%b;" % ID.upper(), (b"CONT", ID.upper())),
    (b"CONT,FFFFFFFF-ffff-FFFF-ffff-FFFFFFFFFFFF;", (b"CONT", b"FFFFFFFF-ffff-FFFF-ffff-FFFFFFFFFFFF")),
    (b"RECV,0;", (b"RECV", 0)),
    (b"RECV,65534;", (b"RECV", 65534)),
    (b"RECV,99999999999999999999;", (b"RECV", 99999999999999999999)),
    (b"FIN;", (b"FIN", None)),
]
REPLIES = [
    (b"ACK;", (b"ACK", None)),
    (b"NUM,0;", (b"NUM", b"\0")),
    (b"NUM,6:41:81:68:68;", (b"NUM", bytes([6, 41, 81, 68, 68]))),
    (b"NUM,100:0:100;", (b"NUM", bytes([100, 0, 100]))),
    (b"FAC,%b;" % CHECKSUM.encode(), (b"FAC", CHECKSUM)),
    (b"ERR,%b already exist;" % ID, (b"ERR", "%s already exist" % ID.decode())),
    (b"ERR,a, b: c;", (b"ERR", "a, b: c")),
    (b"ERR,;", (b"ERR", "")),
]


def split(data, longest, parse):
    """The messages in data up to the first wrong one (then its ProtocolError), and the remaining bytes."""
    found = []
    position = 0
    while True:
        try:
            end = protocol.find_end(data, position, longest)
            if end < 0:
                return found, bytes(data[position:])
            found.append(parse(bytes(data[position:end])))
        except ProtocolError as error:
            return found + [error], bytes(data[position:])
        position = end + 1


def split_requests(data):
    return split(data, protocol.LONGEST_REQUEST, protocol.parse_request)


def split_replies(data):
    return split(data, protocol.LONGEST_REPLY, protocol.parse_reply)


def mutations(seed, messages, count):
    """Messages with some bytes changed, dropped, doubled or cut off, and random bytes."""
    generator = random.Random(seed)
    alphabet = b";,:-0123456789INITCONTRECVFNUMAKE\0\t\n \xff\xd9\xa5"
    for _ in range(count):
        data = bytearray(b"".join(generator.choice(messages)[0] for _ in range(generator.randint(0, 4))))
        for _ in range(generator.choice([0, 1, 1, 2, 8])):
            place = generator.randint(0, len(data))
            byte = generator.choice([generator.choice(alphabet), generator.randrange(256)])
            length = generator.choice([0, 1, 1, 5])
            data[place:place + length] = generator.choice([b"", bytes([byte]), bytes([byte]) * 2,
                                                           bytes(data[:place])])
        yield bytes(data[:generator.choice([len(data), generator.randint(0, len(data))])])
        yield bytes(generator.choice(alphabet) for _ in range(generator.randint(0, 80)))
        yield bytes(generator.randrange(256) for _ in range(generator.randint(0, 80)))


def numbers_of(seed, n):
    generator = random.Random(seed)
    return bytes(generator.choice([0, 9, 10, 99, 100, generator.randint(0, 100)]) for _ in range(n))


def batches_of(numbers, batch):
    return [numbers[i:i + batch] for i in range(0, len(numbers), batch)]


def text_of(numbers):
    return b"NUM," + b":".join(b"%d" % number for number in numbers) + b";"
