"""What a training's input holds in memory, in a process of its own.

usage: resident.py FOLDER BATCH BATCHES. Prints MiB that reading so many batches of a packed folder adds to the process: its own
memory, and that of the file, which the system takes back when it needs it. Linux says which is which.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from input_pipeline.batches import Batches, Slice
from input_pipeline.images import Images
from input_pipeline.packed import Packed

KINDS = {"RssAnon": "own", "RssFile": "mapped"}


def resident() -> dict[str, float]:
    """MiB of each kind."""
    with open("/proc/self/status") as status:
        lines = (line.split() for line in status)
        return {
            KINDS[words[0][:-1]]: int(words[1]) / 1024 for words in lines if words[0][:-1] in KINDS
        }


def main() -> None:
    folder, batch, batches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # TensorFlow's own memory is there before.
    next(iter(Batches(Images(np.zeros([batch, 1, 1], np.uint8)), batch).training(Slice())))
    before = resident()
    data = iter(Batches(Packed(folder), batch).training(Slice()))
    for _ in range(batches):
        next(data)
    print(json.dumps({kind: amount - before[kind] for kind, amount in resident().items()}))


if __name__ == "__main__":
    main()
