"""A small GPT-2 that Hugging Face's `transformers` made and saved, in the folder gpt2, with what it says of some texts.

With the extra `reference` installed, `python -m tests.models.gpt2_reference` makes it again.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

FOLDER = pathlib.Path(__file__).parent / "gpt2"
ANSWERS = FOLDER / "answers.safetensors"
SIZES = {"vocab_size": 96, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 2}
START = 3
"""Tokens that the likeliest text goes on from."""


def model(**sizes: int) -> GPT2LMHeadModel:
    """Uneven in every weight, as trained: in biases and factors of norms too."""
    import torch
    import transformers

    config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    made = transformers.GPT2LMHeadModel(config).eval()
    chance = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in sorted(made.named_parameters()):
            value = 0.4 * chance.normal(size=weight.shape)
            factor = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
            weight.copy_(torch.from_numpy(value + factor))
    return made


def answers(made: GPT2LMHeadModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The tokens, int32 `[b, time]`; their "logits", float32 `[b, time, vocabulary]`; and "likeliest", int32 `[n]`, all that
    `generate` puts behind the first tokens of the first text."""
    import torch

    with torch.no_grad():
        logits = made(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
        start = torch.from_numpy(tokens[:1, :START].astype(np.int64))
        text = made.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_length=made.config.n_positions,
            do_sample=False,
        )
    likeliest = text[0, START:].numpy().astype(np.int32)
    return {"tokens": tokens, "logits": logits, "likeliest": likeliest}


def main() -> None:
    made = model(**SIZES)
    made.save_pretrained(FOLDER)
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], [4, 12], np.int32)
    safetensors.numpy.save_file(answers(made, tokens), ANSWERS)


if __name__ == "__main__":
    main()
