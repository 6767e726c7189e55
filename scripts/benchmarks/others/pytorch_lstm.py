"""PyTorch's LSTM and its product of matrices, for ../lstm.py.

usage: pytorch_lstm.py SETTINGS, in JSON: streams, window, embedding, widths. Each line of JSON on stdin names what is done and
the precision: {"do": "layers", "steps": n} or {"do": "product", "side": n}; the answer is its seconds.
"""

import json
import sys
import time

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


class Layers:
    """Forward and backward of LSTM layers alone."""

    def __init__(self, streams: int, window: int, embedding: int, widths: list[int], **_) -> None:
        self.lstm = torch.nn.LSTM(embedding, widths[0], len(widths), batch_first=True)
        self.x = torch.randn(streams, window, embedding, requires_grad=True)
        self.d_y = torch.randn(streams, window, widths[-1])

    def __call__(self, precision: str, steps: int) -> None:
        for _ in range(steps):
            self.lstm.zero_grad(set_to_none=True)
            self.x.grad = None
            with autocast(precision):
                y, _ = self.lstm(self.x)
            y.backward(self.d_y.to(y.dtype))


def product(precision: str, side: int) -> None:
    a = matrices[precision, side]
    torch.mm(a, a)


matrices: dict[tuple[str, int], torch.Tensor] = {}


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.manual_seed(0)
    does = {"layers": Layers(**settings), "product": product}
    for line in sys.stdin:
        command = json.loads(line)
        do = does[command.pop("do")]
        if do is product:
            key = command["precision"], command["side"]
            if key not in matrices:
                matrices[key] = torch.randn(key[1], key[1]).to(DTYPES[key[0]])
        start = time.perf_counter()
        do(**command)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
