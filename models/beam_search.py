"""The likeliest continuations of a prompt, by beam search."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from models.token_network import Reader, read


def search(
    network: Reader,
    prompt: Sequence[int],
    *,
    length: int,
    beams: int,
    end: int | None = None,
    length_penalty: float = 0.6,
    dtype: tf.DType = tf.float32,
) -> tf.Tensor:
    """Continuations by the logarithm of their probability over `((5 + n) / 6) ** length_penalty`, n being their tokens up to the
    end (Wu et al. 2016, eq. 14): after each token those beams go on of which this is highest.

    Args:
      network: of tokens.
      prompt: one or more tokens.
      length: tokens of a continuation.
      beams: how many go on; at most the size of the vocabulary.
      end: the token after which a continuation has ended, and which fills it up to its length; None if none does, and then
        all have the same n.
      length_penalty: 0 compares probabilities, which favours the short.
      dtype: of their logarithms.

    Returns:
      int32 `[beams, length]`, all different, the highest first.
    """
    lowest = tf.constant(float("-inf"), dtype)
    logits, state = read(network, prompt, beams, length)

    def more(
        t: tf.Tensor,
        logits: tf.Tensor,
        log_p: tf.Tensor,
        lengths: tf.Tensor,
        ended: tf.Tensor,
        tokens: tf.Tensor,
        state: dict[str, tf.Tensor],
    ) -> tuple:
        vocabulary = logits.shape[-1]
        added = tf.nn.log_softmax(tf.cast(logits, dtype))
        if end is not None:
            only_end = tf.where(tf.range(vocabulary) == end, tf.zeros_like(lowest), lowest)
            added = tf.where(ended[:, tf.newaxis], only_end, added)
        log_p = log_p[:, tf.newaxis] + added
        lengths += tf.cast(~ended, lengths.dtype)
        normalised = log_p / ((5 + tf.cast(lengths, dtype)) / 6)[:, tf.newaxis] ** length_penalty
        places = tf.math.top_k(tf.reshape(normalised, [-1]), beams).indices
        parents, token = places // vocabulary, places % vocabulary
        log_p = tf.gather(tf.reshape(log_p, [-1]), places)
        lengths, ended, tokens = (tf.gather(x, parents) for x in (lengths, ended, tokens))
        if end is not None:
            ended |= token == end
        tokens = tf.where(tf.range(length) == t, token[:, tf.newaxis], tokens)
        # A state that all rows share, such as a position, has no rows.
        state = {name: tf.gather(x, parents) if x.shape.rank else x for name, x in state.items()}
        logits, state = network(token[:, tf.newaxis], state)
        return t + 1, logits[:, 0], log_p, lengths, ended, tokens, state

    # All beams are alike before the first token, so one counts.
    log_p = tf.where(tf.range(beams) == 0, tf.zeros_like(lowest), lowest)
    lengths, ended = tf.zeros([beams], tf.int32), tf.zeros([beams], tf.bool)
    tokens = tf.zeros([beams, length], tf.int32)
    *_, tokens, _ = tf.while_loop(
        lambda t, *_: t < length,
        more,
        (0, logits, log_p, lengths, ended, tokens, state),
        maximum_iterations=length,
    )
    return tokens
