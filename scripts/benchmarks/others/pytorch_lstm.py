"""PyTorch's LSTM and its product of matrices, for ../lstm.py.

usage: pytorch_lstm.py SETTINGS, in JSON: streams, window, vocabulary, embedding, widths, dropout, learning_rate, weight_decay.
Each line of JSON on stdin is something to do in a precision: {"do": "train", "steps": n}, {"do": "layers", "steps": n} or
{"do": "product", "side": n}; the answer is its seconds, and those of the processor. That of {"do": "try"} is whether there is an LSTM
of the precision.
"""

import json
import sys
import time

import torch


class LanguageModel(torch.nn.Module):
    """Embedding, LSTM layers, logits, with dropout on the inputs of each layer and of the logits."""

    def __init__(self, vocabulary: int, embedding: int, widths: list[int], dropout: float) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, embedding)
        self.dropout = torch.nn.Dropout(dropout)
        self.lstm = torch.nn.LSTM(
            embedding, widths[0], len(widths), dropout=dropout, batch_first=True
        )
        self.head = torch.nn.Linear(widths[-1], vocabulary)

    def forward(self, tokens: torch.Tensor, state: tuple | None) -> tuple[torch.Tensor, tuple]:
        y, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return self.head(self.dropout(y)), state


class Training:
    """A plain loop: the state carried, gradients clipped, AdamW, of which the fused kernel is the fastest."""

    def __init__(self, settings: dict) -> None:
        names = ("vocabulary", "embedding", "widths", "dropout")
        self.model = LanguageModel(**{name: settings[name] for name in names})
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
            fused=True,
        )
        shape = settings["streams"], settings["window"] + 1
        self.tokens = torch.randint(settings["vocabulary"], shape)
        self.state: tuple | None = None

    def step(self, precision: str) -> None:
        with autocast(precision):
            logits, state = self.model(self.tokens[:, :-1], self.state)
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), self.tokens[:, 1:].flatten()
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.state = tuple(part.detach() for part in state)


class Layers:
    """Forward and backward of LSTM layers alone."""

    def __init__(self, settings: dict) -> None:
        embedding, widths = settings["embedding"], settings["widths"]
        shape = settings["streams"], settings["window"]
        self.lstm = torch.nn.LSTM(embedding, widths[0], len(widths), batch_first=True)
        self.x = torch.randn(*shape, embedding, requires_grad=True)
        self.d_y = torch.randn(*shape, widths[-1])

    def step(self, precision: str) -> None:
        self.lstm.zero_grad(set_to_none=True)
        self.x.grad = None
        with autocast(precision):
            y, _ = self.lstm(self.x)
        y.backward(self.d_y.to(y.dtype))


class Products:
    """Of square matrices."""

    def __init__(self) -> None:
        self.matrices: dict[tuple[str, int], torch.Tensor] = {}

    def prepare(self, precision: str, side: int) -> None:
        if (precision, side) not in self.matrices:
            matrix = torch.randn(side, side).to(getattr(torch, precision))
            self.matrices[precision, side] = matrix

    def multiply(self, precision: str, side: int) -> None:
        torch.mm(self.matrices[precision, side], self.matrices[precision, side])


def works(precision: str) -> bool:
    """Whether there is an LSTM of that precision: of bfloat16 there was none on a processor with AVX2 alone."""
    try:
        with autocast(precision):
            torch.nn.LSTM(8, 8)(torch.zeros(1, 1, 8))
    except RuntimeError:
        return False
    return True


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.manual_seed(0)
    products, makers = Products(), {"train": Training, "layers": Layers}
    made: dict[tuple[str, str], Training | Layers] = {}
    for line in sys.stdin:
        command = json.loads(line)
        what, precision = command["do"], command["precision"]
        if what == "try":
            print(json.dumps(works(precision)), flush=True)
            continue
        if what == "product":
            products.prepare(precision, command["side"])
        elif (what, precision) not in made:
            made[what, precision] = makers[what](settings)
        start, processor = time.perf_counter(), time.process_time()
        if what == "product":
            products.multiply(precision, command["side"])
        else:
            for _ in range(command["steps"]):
                made[what, precision].step(precision)
        cost = time.perf_counter() - start, time.process_time() - processor
        print(json.dumps(cost), flush=True)


if __name__ == "__main__":
    main()
