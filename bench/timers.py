#!/usr/bin/env python3
"""The cost of a timer that is set and cancelled, as most connections' are, beside COUNT waiting timers.

    python bench/timers.py COUNT

It prints seconds of processor time for each.
"""

import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from numseq.loop import Loop

ROUNDS = 50000  # timers that are set and cancelled
TOGETHER = 100  # of them wait at a time


def nothing():
    pass


def main():
    loop = Loop()
    draw = random.Random(1).random
    for _ in range(int(sys.argv[1])):
        loop.call_later(3600 + draw(), nothing)
    begin = time.process_time()
    for _ in range(ROUNDS // TOGETHER):
        for timer in [loop.call_later(3600 + draw(), nothing) for _ in range(TOGETHER)]:
            loop.cancel(timer)
    print((time.process_time() - begin) / ROUNDS)
    loop.close()


if __name__ == "__main__":
    main()
