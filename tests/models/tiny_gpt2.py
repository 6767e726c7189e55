"""A GPT-2 so small that tests make it: in memory, or in a folder as Hugging Face's `transformers` would leave it."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors.numpy
import tokenizers

END = 258
"""The token "<|endoftext|>" of the folder's tokenizer, its last."""
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 264,
    "n_positions": 64,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """As released, every weight uneven: "h.0.attn.c_attn.weight" `[inputs, outputs]` and so on, float64."""
    width, hidden = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    shapes = {"wte.weight": (config["vocab_size"], width)}
    shapes["wpe.weight"] = (config["n_positions"], width)
    for i in range(config["n_layer"]):
        block = {"ln_1": (), "ln_2": (), "attn.c_attn": (width, 3 * width)}
        block |= {"attn.c_proj": (width, width)}
        block |= {"mlp.c_fc": (width, hidden), "mlp.c_proj": (hidden, width)}
        for part, shape in block.items():
            shapes[f"h.{i}.{part}.weight"] = shape or (width,)
            shapes[f"h.{i}.{part}.bias"] = shape[-1:] or (width,)
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    chance = np.random.default_rng(seed)
    values = {name: 0.3 * chance.normal(size=shape) for name, shape in shapes.items()}
    return {
        name: value + (name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")))
        for name, value in values.items()
    }


class TinyGPT2:
    """In memory. Implements `models.gpt2.Weights`.

    Args:
      seed: of its weights.
      changes: of its configuration.
    """

    def __init__(self, seed: int = 0, **changes: object) -> None:
        self.place = "memory"
        self.config = CONFIG | changes
        self.tensors = tensors(self.config, seed)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def save(self, folder: pathlib.Path, dtype: str = "float32") -> None:
        """config.json, model.safetensors with the names of later versions, vocab.json and merges.txt."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config))
        arrays = {
            name if name == "lm_head.weight" else f"transformer.{name}": value.astype(dtype)
            for name, value in self.tensors.items()
        }
        safetensors.numpy.save_file(arrays, folder / "model.safetensors", {"format": "pt"})
        symbols = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: i for i, token in enumerate([*symbols, "th", "the", "<|endoftext|>"])}
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n", "utf-8")


def logits(model: TinyGPT2, text: np.ndarray) -> np.ndarray:
    """Of each next token of one text `[time]`, `[time, vocabulary]`, by NumPy."""
    w, heads, epsilon = model.tensors, model.config["n_head"], model.config["layer_norm_epsilon"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return y * w[f"{name}.weight"] + w[f"{name}.bias"]

    def product(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][text] + w["wpe.weight"][: len(text)]
    seen = np.tril(np.ones([len(text), len(text)], bool))
    for i in range(model.config["n_layer"]):
        qkv = product(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        query, key, value = np.moveaxis(qkv.reshape(len(text), 3, heads, -1), 0, 2)
        scores = np.where(seen, query @ key.swapaxes(1, 2) / np.sqrt(query.shape[2]), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = (weights @ value).swapaxes(0, 1).reshape(len(text), -1)
        x = x + product(y, f"h.{i}.attn.c_proj")
        y = product(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + product(y, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T
