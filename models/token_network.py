"""What a language model asks of its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from models.objective import Noise


class TokenNetwork(Protocol):
    """A Keras layer that says of each token of a text which the next one is.

    Its state is what it knows of the tokens so far, by name.
    """

    name: str
    variables: Sequence[keras.Variable]
    trainable_variables: Sequence[keras.Variable]
    pretrained: bool
    """Whether its weights come from outside the run."""
    context: int | None
    """Tokens of the longest text; None if there is no longest."""
    carry: Mapping[str, Sequence[int]]
    """Shapes for one text of the states that can be carried along streams, in the variable dtype; empty if there are none."""

    def start(self, rows: int, length: int) -> dict[str, tf.Tensor]:
        """The state of so many texts before their first tokens, with room for `length` tokens of each: `[rows, …]`, or scalars that
        all rows share, since a beam search moves rows."""

    def __call__(
        self,
        tokens: tf.Tensor,
        state: Mapping[str, tf.Tensor] | None = None,
        *,
        noise: Noise | None = None,
        training: bool = False,
    ) -> tuple[Any, Any]:
        """Logits of each next token.

        Args:
          tokens: int32 `[b, time]`.
          state: before the first token; None for the start, of texts that end with these tokens.
          noise: b rows, for dropout.
          training: whether to drop.

        Returns:
          Logits `[b, time, vocabulary]` in the compute dtype, and the state after the last token, by name.
        """


class Reader(Protocol):
    """What texts are drawn from: a `TokenNetwork`, or what stands for one."""

    def start(self, rows: int, length: int) -> Mapping[str, tf.Tensor]:
        """As that of a `TokenNetwork`."""

    def __call__(self, tokens: tf.Tensor, state: Mapping[str, tf.Tensor]) -> tuple[Any, Any]:
        """As that of a `TokenNetwork`."""


TokenNetworkFactory = Callable[..., Any]
"""`factory(vocabulary, noise=…, name=…)` makes a `TokenNetwork`."""


def read(
    network: Reader, prompt: Sequence[int], rows: int, length: int
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """What a network makes of a prompt, for texts that all go on from it.

    It is read once, whatever the rows, and only after its last token are there logits: those of all rows, places and tokens may
    not fit.

    Args:
      network: that reads it.
      prompt: one or more tokens.
      rows: how many texts.
      length: tokens of each after the prompt.

    Returns:
      Logits of the next token `[rows, vocabulary]`, and the state after the prompt.
    """
    *before, last = prompt
    state = network.start(1, len(prompt) + length)
    if before:
        _, state = network(tf.constant([before], tf.int32), state)
    logits, state = network(tf.constant([[last]], tf.int32), state)

    def of_all(x: tf.Tensor) -> tf.Tensor:
        return tf.broadcast_to(x, [rows, *x.shape[1:]]) if x.shape.rank else x

    return of_all(logits[:, -1]), {name: of_all(x) for name, x in state.items()}
