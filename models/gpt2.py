"""GPT-2 with its released weights, or others of its form (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from models import pretrained_tokens
from models.lora import WEIGHTS, LoRA
from models.objective import Noise
from models.transformer_network import TransformerNetwork

# Variables of `TransformerNetwork` -> tensors as Hugging Face names them, which are laid out alike.
WHOLE = {
    "embedding": "wte.weight",
    "positions": "wpe.weight",
    "norm/gamma": "ln_f.weight",
    "norm/beta": "ln_f.bias",
}
OF_BLOCK = {
    "attention_norm/gamma": "ln_1.weight",
    "attention_norm/beta": "ln_1.bias",
    "attention/qkv/kernel": "attn.c_attn.weight",
    "attention/qkv/bias": "attn.c_attn.bias",
    "attention/out/kernel": "attn.c_proj.weight",
    "attention/out/bias": "attn.c_proj.bias",
    "feed_forward_norm/gamma": "ln_2.weight",
    "feed_forward_norm/beta": "ln_2.bias",
    "feed_forward/hidden/kernel": "mlp.c_fc.weight",
    "feed_forward/hidden/bias": "mlp.c_fc.bias",
    "feed_forward/out/kernel": "mlp.c_proj.weight",
    "feed_forward/out/bias": "mlp.c_proj.bias",
}
HEAD = "lm_head.weight"
PREFIX = "transformer."
"""Of all names but the head's, in files of later versions."""
MASKS = (".attn.bias", ".attn.masked_bias")
"""How names of tensors end that early files have and no model needs."""
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
"""What other values of config.json would make another model of; the first is meant where it says nothing."""


class Weights(Protocol):
    """A model as it was saved: see `input_pipeline.hugging_face`."""

    place: str
    """Where it was, for messages."""
    config: Mapping[str, Any]
    """Contents of config.json."""
    shapes: Mapping[str, Sequence[int]]
    """Of its tensors, by name."""

    def read(self, name: str) -> np.ndarray:
        """A tensor."""


def gpt2(
    vocabulary: int,
    *,
    noise: Noise,
    name: str,
    weights: Weights,
    dropout: float = 0.1,
    lora: LoRA | None = None,
) -> TransformerNetwork:
    """GPT-2 with these weights, to be trained further, whole or by low-rank adaptation.

    Args:
      vocabulary: number of tokens of the data, which must be encoded by the model's own tokenizer. If the model has more, which
        some have for the sake of a round number, the others are left out.
      noise: for what is added to the weights.
      name: of the network.
      weights: of the model.
      dropout: rate, wherever GPT-2 drops; the rates of its configuration are not read.
      lora: if given, all weights of the model stay, and a change of low rank is learnt of some; else all are learnt.

    Raises:
      ValueError: if it is another architecture, a tensor is missing, unknown or of another shape, or there are more tokens in the
        data than in the model.
    """
    config = weights.config
    _check(config, weights.place)
    size = config["vocab_size"]
    notes = pretrained_tokens.check(vocabulary, size, weights.place)
    network = TransformerNetwork(
        vocabulary,
        noise=noise,
        name=name,
        layers=config["n_layer"],
        heads=config["n_head"],
        width=config["n_embd"],
        context=config["n_positions"],
        feed_forward=config.get("n_inner"),
        epsilon=config.get("layer_norm_epsilon", 1e-5),
        dropout=dropout,
        tied=config.get("tie_word_embeddings", True),
        lora=lora,
    )
    network.pretrained = True
    network.notes = notes
    _load(network, weights, size)
    return network


def _check(config: Mapping[str, Any], place: str) -> None:
    kind = config.get("model_type")
    if kind != "gpt2":
        raise ValueError(f'config.json in {place} says model_type {kind!r}: it must be "gpt2"')
    for name in SIZES:
        value = config.get(name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"config.json in {place} says {name} {value!r}: it must be a number from 1 on"
            )
    for name, allowed in FIXED.items():
        value = config.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(
                f"config.json in {place} says {name} {value!r}: it must be {' or '.join(map(repr, allowed))}"
            )


def _load(network: TransformerNetwork, weights: Weights, size: int) -> None:
    """Fills the network's variables but those of adaptations."""
    names = {n.removeprefix(PREFIX): n for n in weights.shapes if not n.endswith(MASKS)}
    if network.tied:
        names.pop(HEAD, None)  # Some files have it twice.
    for variable in network.variables:
        path = variable.path.removeprefix(f"{network.name}/")
        if path.rpartition("/")[2] in WEIGHTS:
            continue
        name = _name(path)
        # The axis of tokens is the first of both, and is cut.
        there = list(variable.shape)[:: -1 if path == "kernel" else 1]
        if path in ("embedding", "kernel"):
            there[0] = size
        if name not in names:
            raise ValueError(
                f"the weights in {weights.place} have no tensor {PREFIX if name != HEAD else ''}{name}, which "
                "config.json asks for: save the model again"
            )
        full = names.pop(name)
        if list(weights.shapes[full]) != there:
            raise ValueError(
                f"the tensor {full} in {weights.place} is {list(weights.shapes[full])}, and config.json asks for {there}: "
                "save the model again"
            )
        value = weights.read(full)
        if path in ("embedding", "kernel"):
            value = value[: network.vocabulary]
        variable.assign((value.T if path == "kernel" else value).astype(variable.dtype))
    if names:
        raise ValueError(
            f"the weights in {weights.place} have a tensor {names[min(names)]}, which is no part of the GPT-2 of config.json: "
            "save a language model without other heads"
        )


def _name(path: str) -> str:
    """The tensor of a variable, without the prefix."""
    if path == "kernel":
        return HEAD
    block, _, rest = path.partition("/")
    if block.startswith("block_"):
        return f"h.{block.removeprefix('block_')}.{OF_BLOCK[rest]}"
    return WHOLE[path]
