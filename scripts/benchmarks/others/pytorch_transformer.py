"""A small GPT (Radford et al. 2019) and its training loop in plain PyTorch, for ../transformer.py.

usage: pytorch_transformer.py SETTINGS, in JSON: train and validation, .npy files of token ids; vocabulary, layers, heads, width,
context, batch; steps, warmup, learning_rate, final_share, beta_2, weight_decay of AdamW and its cosine. Each line of JSON on
stdin is something to do: {"do": "train", "steps": n}, whose answer is its seconds and those of the processor, or
{"do": "evaluate"}, whose answer is the loss in nats over the whole validation part in windows of the context.
"""

import json
import math
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

STDDEV = 0.02
EVALUATED = 256
"""Windows at a time."""


class Block(nn.Module):
    """Pre-norm: causal attention, then two products with GELU between them, each added to what came in; no biases."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.feed_forward_out = nn.Linear(4 * width, width, bias=False)
        for product in (self.qkv, self.hidden):
            nn.init.normal_(product.weight, std=STDDEV)
        for product in (self.out, self.feed_forward_out):
            nn.init.normal_(product.weight, std=STDDEV / math.sqrt(2 * layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, time_, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(rows, time_, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(rows, time_, width))
        return x + self.feed_forward_out(F.gelu(self.hidden(self.feed_forward_norm(x))))


class GPT(nn.Module):
    """Embeddings of tokens and places, blocks, and logits whose weights are the embedding's."""

    def __init__(self, vocabulary: int, layers: int, heads: int, width: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(STDDEV * torch.randn(vocabulary, width))
        self.places = nn.Parameter(STDDEV * torch.randn(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads, layers) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Nats a token."""
        x = F.embedding(tokens, self.tokens) + self.places[: tokens.shape[1]]
        logits = F.linear(self.norm(self.blocks(x)), self.tokens)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Training:
    """Random windows, clipped gradients, AdamW that decays matrices only, a cosine after a warm-up."""

    def __init__(self, settings: dict) -> None:
        self.settings = settings
        self.text = torch.from_numpy(np.load(settings["train"]).astype(np.int64))
        names = ("vocabulary", "layers", "heads", "width", "context")
        self.model = GPT(**{name: settings[name] for name in names})
        weights = list(self.model.parameters())
        groups = [
            {
                "params": [w for w in weights if w.dim() > 1],
                "weight_decay": settings["weight_decay"],
            },
            {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
        ]
        betas = 0.9, settings["beta_2"]
        # The fused kernel is the fastest.
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings["learning_rate"], betas=betas, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.share)

    def share(self, step: int) -> float:
        """Of the learning rate, in that step."""
        warmup, last = self.settings["warmup"], self.settings["final_share"]
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / (self.settings["steps"] - warmup))
        return last + (1 - last) * (1 + math.cos(math.pi * done)) / 2

    def step(self) -> None:
        context = self.settings["context"]
        starts = torch.randint(len(self.text) - context, (self.settings["batch"], 1))
        windows = self.text[starts + torch.arange(context + 1)]
        loss = self.model(windows[:, :-1], windows[:, 1:])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()

    @torch.no_grad()
    def evaluate(self) -> float:
        text = torch.from_numpy(np.load(self.settings["validation"]).astype(np.int64))
        context = self.settings["context"]
        count = (len(text) - 1) // context
        inputs = text[: count * context].view(count, context)
        targets = text[1 : count * context + 1].view(count, context)
        pairs = zip(inputs.split(EVALUATED), targets.split(EVALUATED), strict=True)
        return sum(float(self.model(x, y)) * len(x) for x, y in pairs) / count


def main() -> None:
    torch.manual_seed(0)
    training = Training(json.loads(sys.argv[1]))
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "evaluate":
            print(json.dumps(training.evaluate()), flush=True)
            continue
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(command["steps"]):
            training.step()
        cost = time.perf_counter() - start, time.process_time() - processor
        print(json.dumps(cost), flush=True)


if __name__ == "__main__":
    main()
