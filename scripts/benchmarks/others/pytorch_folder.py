"""PyTorch's folder of pictures, for ../input.py.

usage: pytorch_folder.py SETTINGS, in JSON: folder, batch, workers. Each line of JSON on stdin is {"seconds": n}, to read for so long;
the answer is how many images it read, its seconds, and those of the processor, the workers' too.
"""

import json
import sys
import time

import psutil
import torch
import torchvision


def processor_seconds() -> float:
    """Of this process and of those that it has started."""
    own = psutil.Process()
    times = (process.cpu_times() for process in (own, *own.children(recursive=True)))
    return sum(time.user + time.system for time in times)


def main() -> None:
    settings = json.loads(sys.argv[1])
    # As PyTorch's guides read a folder.
    data = torchvision.datasets.ImageFolder(settings["folder"], torchvision.transforms.ToTensor())
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=settings["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=settings["workers"],
        persistent_workers=True,
    )
    batches = (part for _ in iter(int, 1) for part in loader)
    for line in sys.stdin:
        seconds = json.loads(line)["seconds"]
        count, begin, processor = 0, time.perf_counter(), processor_seconds()
        while (passed := time.perf_counter() - begin) < seconds:
            next(batches)
            count += settings["batch"]
        print(json.dumps([count, passed, processor_seconds() - processor]), flush=True)


if __name__ == "__main__":
    main()
