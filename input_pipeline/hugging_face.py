"""Models in folders of Hugging Face's form: a configuration, and tensors in safetensors."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401 - gives NumPy the name bfloat16, which safetensors looks up
import numpy as np
import safetensors

from input_pipeline.batches import DataError
from input_pipeline.reading import read_utf8

TENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class HuggingFaceFolder:
    """A model as `save_pretrained` of Hugging Face's `transformers` leaves it: config.json, and model.safetensors or several
    such files with model.safetensors.index.json. Implements `models.gpt2.Weights`.

    Pickles such as pytorch_model.bin are not read, since they can run code.

    Args:
      path: of the folder.

    Raises:
      DataError: if something is missing or cannot be read.
    """

    def __init__(self, path: str) -> None:
        folder = pathlib.Path(os.path.expanduser(path))
        self.place = path
        if not folder.is_dir():
            raise DataError(f"{path} is no folder: name one that has config.json and {TENSORS}")
        self.config: Mapping[str, Any] = _read_json(folder / "config.json")
        self._files: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in _files(folder):
            with _open(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no mapping
                    self._files[name] = file
                    self.shapes[name] = tuple(tensors.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """A tensor, in the dtype that it was saved in.

        Raises:
          DataError: if its file cannot be read any more.
        """
        with _open(self._files[name]) as tensors:
            return tensors.get_tensor(name)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / TENSORS).exists():
        return [folder / TENSORS]
    if (folder / INDEX).exists():
        names = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise DataError(f"{folder / INDEX} has no weight_map: save the model again")
        if not all(isinstance(name, str) for name in names.values()):
            raise DataError(
                f"{folder / INDEX} has a weight_map of no file names: save the model again"
            )
        return [folder / pathlib.Path(name).name for name in sorted(set(names.values()))]
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise DataError(
            f"{folder} has {pickles[0]}, a pickle, which could run any code and is not read: save the model as {TENSORS}, by "
            "save_pretrained of Hugging Face's transformers where you trust the file"
        )
    raise DataError(f"{folder} has no {TENSORS}: save the model there by save_pretrained")


def _open(file: pathlib.Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="numpy")
    except OSError as error:
        reason = error.strerror or "there is no such file"
        raise DataError(f"{file} cannot be read ({reason}): save the model again") from None
    except safetensors.SafetensorError as error:
        raise DataError(f"{file} is damaged ({error}): save the model again") from None


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    text = read_utf8(file)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{file} is no JSON ({error}): save the model again") from None
    if not isinstance(value, dict):
        raise DataError(f"{file} holds no JSON object: save the model again")
    return value
