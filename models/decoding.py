"""How texts are drawn from a network of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from models.beam_search import search
from models.categorical import draw, penalise
from models.objective import Noise, State
from models.token_network import Reader, read

LEAST, MOST = 1e-6, 1e6
"""Of what logits are divided by, and the least of `top_p`: beyond them float32 has no likeliest token left."""
OF_DRAWS = {"temperature": 1.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
"""What makes draws other than the network's distribution, with the values that leave it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Tokens are drawn one after the other, each fed back; or the likeliest texts are searched.

    A token's logits are first penalised, then divided by the temperature, then cut to the likeliest k, and these to the nucleus.

    Attributes:
      prompt: tokens that samples go on from, of which they do not contain any.
      length: tokens of a sample. One that is drawn begins with what it would be if it were shorter.
      temperature: below 1 the likely tokens become likelier.
      top_k: if given, samples are drawn from the k likeliest tokens.
      top_p: if given, from the fewest likeliest tokens that have together at least this probability (Holtzman et al. 2020).
      repetition_penalty: above 1, tokens of the prompt and those drawn before become less likely (Keskar et al. 2019).
      end: token with which a text ends; what follows it is filled up with it. None if none does.
      beams: if given, nothing is drawn: samples are the likeliest continuations which a search with so many beams finds, row
        i of the noise the one of number `noise.index[i]` modulo them. See `beam_search.search`.
      length_penalty: of the search, for texts that end.

    Raises:
      ValueError: if a number is out of range, or beams are given with what only draws need.
    """

    prompt: Sequence[int] = (0,)
    length: int = 200
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    end: int | None = None
    beams: int | None = None
    length_penalty: float = 0.6

    def __post_init__(self) -> None:
        if not self.prompt or min(self.prompt) < 0:
            raise ValueError(
                f"Decoding.prompt is {list(self.prompt)}: give one or more tokens, from 0 on"
            )
        if not self.length > 0:
            raise ValueError(f"Decoding.length is {self.length}: it must be positive")
        for name in ("temperature", "repetition_penalty"):
            if not LEAST <= getattr(self, name) <= MOST:
                raise ValueError(
                    f"Decoding.{name} is {getattr(self, name)}: it must be from {LEAST:g} to {MOST:g}"
                )
        for name in ("top_k", "beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Decoding.{name} is {value}: it must be None or at least 1")
        if self.top_p is not None and not LEAST <= self.top_p <= 1:
            raise ValueError(
                f"Decoding.top_p is {self.top_p}: it must be None, or from {LEAST:g} to 1"
            )
        if self.end is not None and self.end < 0:
            raise ValueError(f"Decoding.end is {self.end}: it must be None or a token, from 0 on")
        if not self.length_penalty >= 0:
            raise ValueError(
                f"Decoding.length_penalty is {self.length_penalty}: it must be at least 0"
            )
        changed = [name for name, value in OF_DRAWS.items() if getattr(self, name) != value]
        if self.beams and changed:
            raise ValueError(
                f"Decoding.beams is {self.beams} and {changed[0]} {getattr(self, changed[0])}: a search draws nothing, "
                f"leave out one of them ({changed[0]} is out at {OF_DRAWS[changed[0]]})"
            )

    def check(self, vocabulary: int) -> None:
        """Raises ValueError if the vocabulary has not so many tokens."""
        tokens = {"prompt": list(self.prompt)} | ({} if self.end is None else {"end": [self.end]})
        for name, value in tokens.items():
            if max(value) >= vocabulary:
                raise ValueError(
                    f"Decoding.{name} is {getattr(self, name)}: the tokens go from 0 to {vocabulary - 1}"
                )
        for name in ("top_k", "beams"):
            value = getattr(self, name)
            if value is not None and value > vocabulary:
                raise ValueError(
                    f"Decoding.{name} is {value}: it must be at most {vocabulary}, the size of the vocabulary"
                )

    def __call__(self, network: Reader, noise: Noise) -> tf.Tensor:
        """int32 `[noise.rows, length]`; row i depends on row i of the noise alone."""
        if self.beams is None:
            return self.go_on(network, noise, self.begin(network, noise), self.length)[0]
        found = search(
            network,
            self.prompt,
            length=self.length,
            beams=self.beams,
            end=self.end,
            length_penalty=self.length_penalty,
            dtype=noise.dtype,
        )
        return tf.gather(found, noise.index % self.beams)

    def begin(self, network: Reader, noise: Noise) -> State:
        """After the prompt: what `go_on` needs to draw the first token."""
        logits, of_network = read(network, self.prompt, noise.rows, self.length)
        state = {"place": tf.constant(0), "logits": logits, "network": of_network}
        if self.repetition_penalty != 1:
            seen = tf.reduce_any(tf.one_hot([self.prompt], logits.shape[1], True, False), 1)
            state["seen"] = tf.broadcast_to(seen, logits.shape)
        if self.end is not None:
            state["ended"] = tf.zeros([noise.rows], tf.bool)
        return state

    def go_on(
        self, network: Reader, noise: Noise, state: State, count: int
    ) -> tuple[tf.Tensor, State]:
        """Draws the next tokens, which are the same in parts as all at once.

        Args:
          network: as it began.
          noise: as it began, but not drawn from since.
          state: of `begin`, or after the tokens before.
          count: how many tokens; after the last of a sample follow zeros.

        Returns:
          int32 `[noise.rows, count]`, and the state after them.
        """
        token = noise("token")
        # By place, since row i of one draw of all would depend on the length; by a function, since one that runs eagerly would
        # draw from one stream several times.
        uniform_at = tf.function(lambda place: token.numbered(place).uniform(), autograph=False)
        stop = tf.minimum(state["place"] + count, self.length)

        def more(i: tf.Tensor, state: State, tokens: tf.TensorArray) -> tuple:
            logits, uniform = tf.cast(state["logits"], noise.dtype), uniform_at(state["place"])
            drawn = self._next(state, logits, uniform)
            logits, of_network = network(drawn[:, tf.newaxis], state["network"])
            after = {"place": state["place"] + 1, "logits": logits[:, 0], "network": of_network}
            if "seen" in state:
                after["seen"] = state["seen"] | tf.one_hot(drawn, logits.shape[2], True, False)
            if "ended" in state:
                after["ended"] = state["ended"] | (drawn == self.end)
            return i + 1, after, tokens.write(i, drawn)

        tokens = tf.TensorArray(tf.int32, count, element_shape=[noise.rows])
        _, state, tokens = tf.while_loop(
            lambda i, state, tokens: state["place"] < stop,
            more,
            (0, state, tokens),
            maximum_iterations=count,
        )
        # tf.transpose of integers writes an error of oneDNN's to stderr on CPUs without AVX-512.
        return tf.einsum("tb->bt", tokens.stack()), state

    def _next(self, state: State, logits: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """The next token of each row, int32 `[rows]`, by uniform numbers `[rows]`."""
        if "seen" in state:
            logits = penalise(logits, state["seen"], self.repetition_penalty)
        drawn = draw(logits, uniform, self.temperature, self.top_k, self.top_p)
        if "ended" in state:
            drawn = tf.where(state["ended"], self.end, drawn)
        return drawn
