#!/usr/bin/env python3
"""How long 65,535 numbers take to draw from a text, in bulk or one by one; they have to be the same.

    python bench/drawing.py bulk
    python bench/drawing.py randint

It prints seconds of processor time, the median of several seeds.
"""

import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from numseq.sequence import draw

N = 65535
SEEDS = ["123e4567-e89b-12d3-a456-42661417400%d" % i for i in range(5)]


def bulk(seed):
    return draw(seed, 0, N)


def randint(seed):
    one = random.Random(seed).randint
    return bytes([one(0, 100) for _ in range(N)])


WAYS = {"bulk": bulk, "randint": randint}


def seconds(way, seed):
    begin = time.process_time()
    way(seed)
    return time.process_time() - begin


def main():
    if bulk(SEEDS[0]) != randint(SEEDS[0]):
        sys.exit("drawing: the numbers differ")
    way = WAYS[sys.argv[1]]
    print(sorted(seconds(way, seed) for seed in SEEDS)[len(SEEDS) // 2])


if __name__ == "__main__":
    main()
