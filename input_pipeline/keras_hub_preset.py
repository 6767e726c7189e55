"""Models of keras-hub, which is imported when one is needed."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras

from input_pipeline.batches import DataError, MissingLibrary


class KerasHubPreset:
    """A causal language model of keras-hub: GPT-2, Llama, Mistral, Gemma, Qwen and others. Implements
    `models.keras_hub_network.Preset`.

    Args:
      preset: the path of a folder, as `save_to_preset` leaves it, or a name that keras-hub knows, which it downloads.
    """

    def __init__(self, preset: str) -> None:
        self.place = os.path.expanduser(preset)

    def load(self) -> tuple[keras.Model, float]:
        """The model under the policy of precision in force, in which nothing is dropped; and the largest rate that it had.

        It maps "token_ids" and "padding_mask", integers `[b, time]`, to logits `[b, time, vocabulary]`.

        Raises:
          MissingLibrary: if keras-hub is not installed.
          DataError: if the preset is none of such a model, misses parts or is damaged.
        """
        models, folder = _library().models, pathlib.Path(self.place)
        if self.place.startswith((".", "/")) and not folder.is_dir():
            raise DataError(f"{folder} is no folder: name one that has a keras-hub preset")
        try:
            # Shapes without values, for what its architecture calls its rates.
            with keras.StatelessScope(initialize_variables=False):
                config = models.Backbone.from_preset(self.place, load_weights=False).get_config()
            rates = {name: rate for name, rate in config.items() if "dropout" in name and rate}
            backbone = models.Backbone.from_preset(
                self.place, dtype=keras.config.dtype_policy(), **dict.fromkeys(rates, 0.0)
            )
        except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
            said = str(error).strip().split("\n")[0]
            raise DataError(
                f"the preset {self.place} cannot be loaded ({said}): save it again by save_to_preset, or name another"
            ) from None
        return _causal(models, backbone, self.place), max(rates.values(), default=0.0)


def _causal(models: Any, backbone: keras.Model, place: str) -> keras.Model:
    """The backbone with the head of a language model."""
    kinds: list[Any] = [kind for kind in vars(models).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, models.CausalLM) and kind.backbone_cls is type(backbone):
            return kind(backbone=backbone, preprocessor=None)
    raise DataError(
        f"the preset {place} is a {type(backbone).__name__}, of which keras-hub has no causal language model: name another"
    )


def _library() -> Any:
    try:
        import keras_hub
    except ImportError:
        raise MissingLibrary(
            "presets need the library keras-hub, which is not installed: pip install keras-hub"
        ) from None
    return keras_hub
