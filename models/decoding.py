"""How texts are drawn from a network of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from models.categorical import draw
from models.objective import Noise
from models.token_network import TokenNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Tokens are drawn one after the other, each fed back.

    Attributes:
      prompt: tokens that samples go on from, of which they do not contain any.
      length: tokens of a sample.
      temperature: below 1 the likely tokens become likelier.
      top_k: if given, samples are drawn from the k likeliest tokens.

    Raises:
      ValueError: if a number is out of range.
    """

    prompt: Sequence[int] = (0,)
    length: int = 200
    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt or min(self.prompt) < 0:
            raise ValueError(
                f"Decoding.prompt is {list(self.prompt)}: give one or more tokens, from 0 on"
            )
        if self.temperature <= 0 or self.length < 1:
            raise ValueError(
                f"Decoding.temperature is {self.temperature} and length {self.length}: both must be positive"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Decoding.top_k is {self.top_k}: it must be None or at least 1")

    def check(self, vocabulary: int) -> None:
        """Raises ValueError if the vocabulary has not so many tokens."""
        if max(self.prompt) >= vocabulary:
            raise ValueError(
                f"Decoding.prompt is {list(self.prompt)}: the tokens go from 0 to {vocabulary - 1}"
            )
        if self.top_k is not None and self.top_k > vocabulary:
            raise ValueError(f"Decoding.top_k is {self.top_k}: it must be at most {vocabulary}")

    def __call__(self, network: TokenNetwork, noise: Noise) -> tf.Tensor:
        """int32 `[noise.rows, length]`; row i depends on row i of the noise alone."""
        uniform = tf.transpose(noise("token").uniform([self.length]))
        prompt = tf.tile(tf.constant([self.prompt], tf.int32), [noise.rows, 1])
        state = network.start(noise.rows, len(self.prompt) + self.length)
        logits, state = network(prompt, state)

        def more(
            t: tf.Tensor, logits: tf.Tensor, state: dict[str, tf.Tensor], tokens: tf.TensorArray
        ) -> tuple:
            drawn = draw(tf.cast(logits, noise.dtype), uniform[t], self.temperature, self.top_k)
            logits, state = network(drawn[:, tf.newaxis], state)
            return t + 1, logits[:, 0], state, tokens.write(t, drawn)

        tokens = tf.TensorArray(tf.int32, self.length, element_shape=[noise.rows])
        *_, tokens = tf.while_loop(
            lambda t, *_: t < self.length,
            more,
            (0, logits[:, -1], state, tokens),
            maximum_iterations=self.length,
        )
        return tf.transpose(tokens.stack())
