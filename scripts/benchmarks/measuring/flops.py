"""Floating-point operations of matrix products, a multiply-add counted as two."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

PASSES = 3
"""A training's products: forward, and one each for the gradients of inputs and weights."""


def lstm_layers(inputs: int, widths: Sequence[int]) -> int:
    """Of a time step of a sequence, forward and backward through LSTM layers: x W and h U of four gates each."""
    pairs = itertools.pairwise([inputs, *widths])
    return 2 * PASSES * sum(4 * units * (below + units) for below, units in pairs)


def lstm_language_model(embedding: int, widths: Sequence[int], vocabulary: int) -> int:
    """Of a token of training: the layers and the logits; an embedding is looked up."""
    return lstm_layers(embedding, widths) + 2 * PASSES * widths[-1] * vocabulary


def square_product(side: int) -> int:
    """Of a product of two matrices `[side, side]`."""
    return 2 * side**3
