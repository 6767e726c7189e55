"""A transformer of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from models.causal_attention import CausalAttention, Pair, later, rotation_table
from models.embedding import embed
from models.feed_forward import FeedForward
from models.initializers import Normal
from models.layers import Dropout
from models.lora import WEIGHTS, LoRA
from models.normalisation import EPSILON, Norm
from models.objective import Noise
from models.projection import child

STDDEV = 0.02


class TransformerNetwork(keras.layers.Layer):
    """Embedding, blocks of causal attention and feed-forward, logits of the next token (Radford et al. 2019, GPT-2).

    Normalisation comes before each part of a block and before the logits (pre-norm, Xiong et al. 2020). Weights start
    normal with standard deviation 0.02, those of the last product of each part with 0.02 / √(2 layers). By default it
    is GPT-2, of another size. Implements `models.token_network.TokenNetwork`.

    Args:
      vocabulary: number of tokens.
      noise: for the initial weights.
      name: of the network.
      layers: number of blocks.
      heads: of attention, each width / heads wide.
      width: of a token's vector.
      context: the longest text. Learned positions that no training window reaches stay as they started.
      feed_forward: width within the feed-forward part, 4 · width if None; with "swiglu", whose first product is twice as
        wide, 8/3 · width makes as many weights.
      activation: "gelu" or "swiglu": see `FeedForward`.
      positions: "learned", a vector added to each token's, or "rotary", angles by which queries and keys are turned.
      norm: "layer" or "rms": see `Norm`.
      use_bias: whether products and layer normalisation have biases; the logits have none.
      dropout: rate, on the vectors of tokens, the weights of attention, and what each part of a block adds.
      tied: whether the logits' weights are the embedding's (Press & Wolf 2017).
      epsilon: of normalisation: see `Norm`.
      lora: if given, nothing but the adaptations of the products that it names is trainable.

    Raises:
      ValueError: if a number is out of range, or a name unknown.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        noise: Noise,
        name: str,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        context: int = 256,
        feed_forward: int | None = None,
        activation: str = "gelu",
        positions: str = "learned",
        norm: str = "layer",
        use_bias: bool = True,
        dropout: float = 0.0,
        tied: bool = True,
        epsilon: float = EPSILON,
        lora: LoRA | None = None,
    ):
        super().__init__(name=name)
        hidden = 4 * width if feed_forward is None else feed_forward
        if min(layers, heads, width, context, hidden) < 1:
            raise ValueError(
                f"layers is {layers}, heads {heads}, width {width}, context {context} and feed_forward {hidden}: "
                "each must be at least 1"
            )
        if width % heads:
            raise ValueError(f"width is {width}, which {heads} heads cannot share: give a multiple")
        if positions not in ("learned", "rotary"):
            raise ValueError(f'positions is "{positions}": it must be "learned" or "rotary"')
        self.rotary = positions == "rotary"
        self.size = width // heads
        if self.rotary and self.size % 2:
            raise ValueError(
                f"width is {width}, so that each of {heads} heads has {self.size} numbers: rotary positions turn pairs"
            )
        self.vocabulary = vocabulary
        self.heads = heads
        self.width = width
        self.context = context
        self.tied = tied
        self.noise = noise
        self.lora = lora
        self.pretrained = False
        self.notes: Sequence[str] = ()
        self.carry: Mapping[str, Sequence[int]] = {}
        self.dropout = Dropout(dropout, "dropout")
        self.blocks = [
            Block(
                width,
                heads,
                hidden,
                activation,
                norm,
                noise(f"block_{i}"),
                f"block_{i}",
                stddev_out=STDDEV / math.sqrt(2 * layers),
                use_bias=use_bias,
                dropout=dropout,
                epsilon=epsilon,
                lora=lora,
            )
            for i in range(layers)
        ]
        self.norm = Norm(norm, "norm", use_bias=use_bias, epsilon=epsilon)
        self.build()

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        def weight(name: str, *shape: int) -> keras.Variable:
            return self.add_weight(
                name=name, shape=shape, initializer=Normal(self.noise(name), STDDEV)
            )

        self.table = weight("embedding", self.vocabulary, self.width)
        if not self.rotary:
            self.positions = weight("positions", self.context, self.width)
        shape = (None, None, self.width)
        for block in self.blocks:
            block.build(shape)
        self.norm.build(shape)
        if not self.tied:
            self.kernel = weight("kernel", self.width, self.vocabulary)
        if self.lora is not None:
            for variable in self.variables:
                variable.trainable = variable.name in WEIGHTS

    def start(self, rows: int, length: int) -> dict[str, tf.Tensor]:
        """Nothing known: "position" 0, scalar int32, and room for keys and values of each block, `[rows, heads, length, d]` in
        the compute dtype. Tokens beyond the length are lost.

        Raises:
          ValueError: if the length is more than the context.
        """
        self._check(length)
        shape = (rows, self.heads, length, self.size)
        state = {
            name: tf.zeros(shape, self.compute_dtype) for b in self.blocks for name in _names(b)
        }
        return state | {"position": tf.zeros([], tf.int32)}

    def call(
        self,
        tokens: tf.Tensor,
        state: Mapping[str, tf.Tensor] | None = None,
        *,
        noise: Noise | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Logits of each next token; and the state, if one was given, else {}."""
        time = tokens.shape[1]
        self._check(time)
        position = 0 if state is None else state["position"]
        keys = time if state is None else state[_names(self.blocks[0])[0]].shape[2]
        x = embed(tf.cast(self.table, self.compute_dtype), tokens)
        rotation = None
        if self.rotary:
            table = tf.constant(rotation_table(self.context, self.size), self.compute_dtype)
            rotation = tf.unstack(tf.slice(table, [0, position, 0], [2, time, self.size // 2]))
        else:
            x += tf.slice(tf.cast(self.positions, x.dtype), [position, 0], [time, self.width])
        x = self.dropout(x, **child(noise, "dropout", training))
        hidden = later(time, keys, position)
        after: dict[str, tf.Tensor] = {}
        for block in self.blocks:
            names = _names(block)
            cache = None if state is None else (state[names[0]], state[names[1]])
            x, new = block(
                x,
                hidden,
                rotation=rotation,
                cache=cache,
                position=position,
                **child(noise, block.name, training),
            )
            after |= dict(zip(names, new, strict=True))
        rows = tf.reshape(self.norm(x), [-1, self.width])
        kernel = tf.cast(self.table if self.tied else self.kernel, x.dtype)
        logits = tf.matmul(rows, kernel, transpose_b=self.tied)
        logits = tf.reshape(logits, [-1, time, self.vocabulary])
        return logits, {} if state is None else after | {"position": position + time}

    def _check(self, tokens: int) -> None:
        if tokens > self.context:
            raise ValueError(
                f"a text of {tokens} tokens is longer than the context of {self.name}, {self.context}: "
                "shorten the window, or prompt and length of samples, or give a larger context"
            )


class Block(keras.layers.Layer):
    """x + attention(norm(x)), and to that its feed_forward(norm(…)): arguments as of `TransformerNetwork` and its parts."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        activation: str,
        norm: str,
        noise: Noise,
        name: str,
        *,
        stddev_out: float,
        use_bias: bool,
        dropout: float,
        epsilon: float,
        lora: LoRA | None,
    ):
        super().__init__(name=name)
        products: dict[str, Any] = {
            "stddev": STDDEV,
            "stddev_out": stddev_out,
            "use_bias": use_bias,
            "lora": lora,
        }
        norms: dict[str, Any] = {"use_bias": use_bias, "epsilon": epsilon}
        self.attention_norm = Norm(norm, "attention_norm", **norms)
        self.attention = CausalAttention(
            width, heads, noise("attention"), "attention", dropout=dropout, **products
        )
        self.feed_forward_norm = Norm(norm, "feed_forward_norm", **norms)
        self.feed_forward = FeedForward(
            width, hidden, activation, noise("feed_forward"), "feed_forward", **products
        )
        self.dropouts = [Dropout(dropout, f"dropout_{i}") for i in range(2)]

    def build(self, input_shape: Sequence[int | None]) -> None:
        for layer in (
            self.attention_norm,
            self.attention,
            self.feed_forward_norm,
            self.feed_forward,
        ):
            layer.build(input_shape)

    def call(
        self,
        x: tf.Tensor,
        hidden: tf.Tensor,
        *,
        rotation: Pair | None = None,
        cache: Pair | None = None,
        position: int | tf.Tensor = 0,
        noise: Noise | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, Pair]:
        """As `CausalAttention.call`."""
        y, seen = self.attention(
            self.attention_norm(x),
            hidden,
            rotation=rotation,
            cache=cache,
            position=position,
            **child(noise, "weights", training),
        )
        x += self.dropouts[0](y, **child(noise, "attention", training))
        dropping = child(noise, "feed_forward", training)
        y = self.feed_forward(self.feed_forward_norm(x), **dropping)
        return x + self.dropouts[1](y, **dropping), seen


def _names(block: Block) -> tuple[str, str]:
    """Under which keys and values of a block are kept."""
    return f"{block.name}/keys", f"{block.name}/values"
