"""Language models: each token of a text is predicted from those before it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from models.decoding import Decoding
from models.lstm_network import LSTMNetwork
from models.objective import Batch, Feature, Metrics, Noise, Optimizer, Phase, State
from models.sliding_context import SlidingContext
from models.token_network import Reader, TokenNetworkFactory

CLIPPED_ADAM = Optimizer(clip_norm=1.0)
DECODING = Decoding()


class LanguageModel:
    """Predicts each token of a window from those before it. Implements `objective.Objective`, `Carrying`, `Charted`,
    `Pretrained`, `Summarised` and `Writing`.

    Along streams of text a network's state is carried from a window to the next, if it has one, and the gradient is cut
    between them (truncated back-propagation through time; Zaremba et al. 2014). Else each window begins with nothing
    known, which its first tokens pay for.

    Texts that are drawn are read in parts where they are longer than the network's context, or, if its training began with
    nothing, than the windows: see `SlidingContext`.

    Args:
      element_spec: of the data, with integers "tokens" `[window + 1]` and their cardinality, the vocabulary.
      network: makes the network: `network(vocabulary, noise=…, name=…)`.
      decoding: how samples are drawn.
      optimizer: moves the network.
      gates: tokens of the first held-out window, its last, along which pictures beside the samples show what the network's
        gates do, at most the whole window; 0 for none.

    Raises:
      ValueError: if the data are no tokens, or the decoding does not fit them; from `build`, if windows or samples are longer
        than the network's context.
    """

    def __init__(
        self,
        element_spec: Mapping[str, Feature],
        *,
        network: TokenNetworkFactory = LSTMNetwork,
        decoding: Decoding = DECODING,
        optimizer: Optimizer = CLIPPED_ADAM,
        gates: int = 0,
    ):
        self.vocabulary = _vocabulary(element_spec)
        decoding.check(self.vocabulary)
        self.window = element_spec["tokens"].shape[0] - 1
        self.network_factory = network
        self.decoding = decoding
        self.optimizer = optimizer
        if gates < 0:
            raise ValueError(f"gates is {gates}: set it to a number of tokens, or to 0")
        self.gates = gates
        self.charts = self._charts if gates else None

    def build(self, noise: Noise) -> None:
        self.network = self.network_factory(self.vocabulary, noise=noise("network"), name="network")
        self.context = self._context()
        self._decoding(None)  # So that a prompt that does not fit shows before anything is trained.
        if self.gates and not hasattr(self.network, "charts"):
            raise ValueError(
                f"gates is {self.gates}, and {type(self.network).__name__} has no gates to show: set it to 0"
            )
        self.networks = {"network": self.network}
        self.pretrained = self.network.variables if self.network.pretrained else []
        self.notes = getattr(self.network, "notes", ())
        self.carry = self.network.carry
        self.phases = [
            Phase(
                name="next_token",
                variables=self.network.trainable_variables,
                loss=self.loss,
                optimizer=self.optimizer,
            )
        ]

    def loss(self, batch: Batch, noise: Noise, step: tf.Tensor) -> tuple[tf.Tensor, Metrics]:
        """-log p of a window's targets, in nats divided by the length of a window, `[b]`; the metrics are the share of targets
        that were the likeliest tokens, "accuracy", and the carried state."""
        nats, right, _, carried = self._predict(batch, noise, training=True)
        loss = tf.reduce_mean(nats, 1)
        return loss, {"accuracy": tf.reduce_mean(right, 1)} | carried

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """Of each place in a window, `[b, window]`: "nats", "right" and "targets", for `summary`; "characters", `[b]`, how many
        these stand for, if the data say so; "alone", ones `[b]`, if no state is carried; and the carried state."""
        nats, right, targets, carried = self._predict(batch, noise, training=False)
        metrics = {"nats": nats, "right": right, "targets": targets}
        if "characters" in batch:
            metrics["characters"] = tf.cast(batch["characters"], nats.dtype)
        if not carried:
            metrics["alone"] = tf.ones_like(nats[:, 0])
        return metrics | carried

    def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of all targets together: "loss" in nats a token, "perplexity", its exponential, "accuracy", the share of targets that
        were the likeliest token, and "nats_per_character" and "bits_per_character", if the data say how many characters the
        targets stand for.

        Of windows that begin with no state also the loss at places 1, 2, 4, … in nats, "loss_at_1" and so on.
        """
        nats, right, targets = means["nats"], means["right"], means["targets"]
        loss = nats.sum() / targets.sum()
        metrics = {
            "loss": loss,
            "perplexity": np.exp(loss),
            "accuracy": right.sum() / targets.sum(),
        }
        if "characters" in means:
            metrics["nats_per_character"] = nats.sum() / means["characters"]
            metrics["bits_per_character"] = metrics["nats_per_character"] / math.log(2)
        if "alone" in means:
            places = [2**i for i in range(len(nats).bit_length())]
            at = nats / targets
            metrics |= {f"loss_at_{place}": at[place - 1] for place in places}
        return metrics

    @property
    def end(self) -> int | None:
        return self.decoding.end

    def length(self, prompt: Sequence[int] | None = None) -> int:
        """Those of the decoding."""
        return self._decoding(prompt).length

    @property
    def streams(self) -> bool:
        """Unless it searches, since beams may be given up at any token."""
        return self.decoding.beams is None

    def sample(self, noise: Noise, prompt: Sequence[int] | None = None) -> tf.Tensor:
        """Tokens, int32 `[rows, length]`: see `Decoding`."""
        decoding = self._decoding(prompt)
        return decoding(self._reader(decoding), noise)

    def begin(self, noise: Noise, prompt: Sequence[int] | None = None) -> State:
        decoding = self._decoding(prompt)
        return decoding.begin(self._reader(decoding), noise)

    def go_on(
        self, noise: Noise, state: State, count: int, prompt: Sequence[int] | None = None
    ) -> tuple[tf.Tensor, State]:
        decoding = self._decoding(prompt)
        return decoding.go_on(self._reader(decoding), noise, state, count)

    def _charts(self, batch: Batch) -> tuple[tf.Tensor, dict[str, dict[str, tf.Tensor]]]:
        # The tokens before those that are shown are read too.
        tokens, shown = batch["tokens"][0, :-1], slice(-self.gates, None)
        charts = self.network.charts(tokens)
        return tokens[shown], {
            layer: {name: numbers[:, shown] for name, numbers in panels.items()}
            for layer, panels in charts.items()
        }

    def _decoding(self, prompt: Sequence[int] | None) -> Decoding:
        """With this prompt, or that of the configuration.

        Raises:
          ValueError: if the prompt is longer than the context, or no text of the vocabulary.
        """
        decoding, context = self.decoding, self.context
        if prompt is not None:
            decoding = dataclasses.replace(decoding, prompt=tuple(prompt))
            decoding.check(self.vocabulary)
        if context is not None and len(decoding.prompt) > context:
            said = f"the network's context is {context}"
            if context != self.network.context:
                said = f"the network was trained on windows of {context}"
            raise ValueError(
                f"the prompt has {len(decoding.prompt)} tokens, and {said}: give a prompt of {context} or less"
            )
        return decoding

    def _reader(self, decoding: Decoding) -> Reader:
        """The network, of whose context the text may be longer."""
        if self.context is None or len(decoding.prompt) + decoding.length <= self.context:
            return self.network
        return SlidingContext(self.network, self.context)

    def _predict(
        self, batch: Batch, noise: Noise, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """-log p of targets in nats, 1 where they were the likeliest, 1 where there are any, `[b, window]`; and what is carried."""
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits, state = self.network(
            inputs, self._state(batch), noise=noise("network"), training=training
        )
        logits = tf.cast(logits, noise.dtype)
        nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        right = tf.equal(tf.argmax(logits, 2, output_type=targets.dtype), targets)
        there = tf.ones_like(nats)
        if "targets" in batch:
            there = tf.sequence_mask(batch["targets"], targets.shape[1], noise.dtype)
        carried = {name: state[name] for name in self.carry if name in batch}
        return nats * there, tf.cast(right, noise.dtype) * there, there, carried

    def _context(self) -> int | None:
        """Tokens of the longest text that samples are drawn from at once, None if there is no longest.

        Raises:
          ValueError: if windows are longer than the network's context.
        """
        context = self.network.context
        if context is None:
            return None
        if self.window > context:
            raise ValueError(
                f"the network's context is {context}, and windows have {self.window} tokens: "
                "give a larger context or a smaller window"
            )
        # At places beyond the windows one whose training began with nothing has learnt nothing.
        return context if self.network.pretrained else self.window

    def _state(self, batch: Batch) -> dict[str, tf.Tensor] | None:
        """Of the network before a window, if it is carried: zero where a stream begins."""
        if not self.carry or not batch.keys() >= self.carry.keys():
            return None
        goes_on = ~batch["begins"][:, tf.newaxis]
        return {
            name: tf.where(goes_on, batch[name], tf.zeros_like(batch[name])) for name in self.carry
        }


def _vocabulary(element_spec: Mapping[str, Feature]) -> int:
    tokens = element_spec.get("tokens")
    if (
        tokens is None
        or tokens.cardinality is None
        or len(tokens.shape) != 1
        or tokens.shape[0] < 2
    ):
        raise ValueError(
            'a language model needs a feature "tokens" [window + 1] with its vocabulary\'s size as cardinality; '
            f"the data has {', '.join(f'{name}: {feature}' for name, feature in element_spec.items())}"
        )
    return tokens.cardinality
