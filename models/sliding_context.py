"""Texts that are longer than the context of their network."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from models.token_network import TokenNetwork

RECENT, READ = "sliding_context/recent", "sliding_context/read"
"""Names of the state: the last tokens, int32 `[rows, context]`, and how many the network has read since it began, int32."""


class SlidingContext:
    """A network that draws on when its context is full: it begins again with the later half of what it has read.

    So a token beyond the context is predicted from those before it that are at least half of a context, and the cache of keys and
    values is made anew once in half a context. A `Reader`, called with one token at a time once the context may be full.

    Args:
      network: that reads.
      context: tokens of the longest text that it reads at once.
    """

    def __init__(self, network: TokenNetwork, context: int) -> None:
        self._network, self._context = network, context
        self._kept = context // 2

    def start(self, rows: int, length: int) -> dict[str, tf.Tensor]:
        """As of the network, whatever the length."""
        recent = {RECENT: tf.zeros([rows, self._context], tf.int32), READ: tf.zeros([], tf.int32)}
        return {**self._network.start(rows, self._context), **recent}

    def __call__(
        self, tokens: tf.Tensor, state: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        time, recent, read = tokens.shape[1], state[RECENT], state[READ]
        known = {name: x for name, x in state.items() if name not in (RECENT, READ)}
        full = read + time > self._context
        known = tf.cond(full, lambda: self._begin_again(recent), lambda: known)
        logits, known = self._network(tokens, known)
        return logits, {
            **known,
            RECENT: tf.concat([recent, tokens], 1)[:, -self._context :],
            READ: tf.where(full, self._kept, read) + time,
        }

    def _begin_again(self, recent: tf.Tensor) -> dict[str, tf.Tensor]:
        state = self._network.start(recent.shape[0], self._context)
        if self._kept:
            _, state = self._network(recent[:, -self._kept :], state)
        return state
