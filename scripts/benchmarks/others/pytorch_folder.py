"""PyTorch's folder of pictures, in a process of its own: it and TensorFlow cannot always be loaded into one.

usage: pytorch_folder.py FOLDER BATCH WORKERS. For each line of seconds on stdin it prints images a second over that time.
"""

import sys
import time

import torch
import torchvision


def main() -> None:
    folder, batch, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # As PyTorch's guides read a folder.
    data = torchvision.datasets.ImageFolder(folder, torchvision.transforms.ToTensor())
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
    )
    batches = (part for _ in iter(int, 1) for part in loader)
    for line in sys.stdin:
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < float(line):
            next(batches)
            count += batch
        print(count / passed, flush=True)


if __name__ == "__main__":
    main()
