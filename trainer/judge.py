"""How good a model's samples are, in the eyes of a network: beside real pictures, in its features."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile

import numpy as np

from models.sample_metrics import frechet_distance, kernel_distance, neighbourhoods
from trainer import durable
from trainer.exits import ConfigError
from trainer.features import FeatureNet, Seen
from trainer.real_pictures import RealPictures
from trainer.trainer import Trainer

MOST = 10_000
"""Pictures of a kind that are compared, if there are so many and no other number is asked for."""
NEIGHBOURS = 5
"""By which neighbourhoods are measured, as Naeem et al. (2020) do."""


class Judge:
    """Compares pictures with those of a data set in the features of a network.

    The yardstick are held-out pictures; where there are none, half of the training pictures. Beside it the floor: what as many
    other training pictures have. All are taken at random, the same ones whatever the experiment's seed, as
    `Experiment.validation_transforms` make them; training pictures that these leave of another size than the model's, as
    `Experiment.transforms` do.

    Args:
      net: gives the features.
      data: the training whose data set and samples are compared.
      count: pictures of each kind; None for as many as there are, up to `MOST`.

    Raises:
      ConfigError: if the model has no pictures or draws none; if the network is not for such pictures; if they are too few to
        have neighbours.
    """

    def __init__(self, net: FeatureNet, data: Trainer, count: int | None = None) -> None:
        if not data.draws_pictures:
            raise ConfigError(
                f"{type(data.objective).__name__} draws no pictures, which --features compares: leave it out"
            )
        self._net = net
        self.name = net.name
        held_out = data.batches.validation
        training = RealPictures(data.batches, data.batches.source)
        wanted = count or MOST
        if held_out is None:
            both = training.take(2 * wanted)
            wanted = min(wanted, len(both) // 2)
            yardstick, floor = both[:wanted], both[wanted : 2 * wanted]
        else:
            yardstick = RealPictures(data.batches, held_out).take(wanted)
            floor = training.take(len(yardstick))
            yardstick = yardstick[: len(floor)]
        self.count = len(floor)
        if self.count <= NEIGHBOURS:
            raise ConfigError(
                f"{self.count} pictures of a kind are too few to compare: take more than {NEIGHBOURS}"
            )
        self._yardstick = self._remembered(yardstick).features
        self.floor = _metrics(self._yardstick, self._remembered(floor))

    def __call__(self, pictures: np.ndarray, classes: int | None = None) -> dict[str, float]:
        """Name -> value, of `count` pictures, uint8 `[count, height, width, channels]`.

        With `classes`, picture i is meant to show class i modulo them, and "recognised" is the share that does; of a network
        that knows as many.
        """
        seen = self._net(pictures)
        found = _metrics(self._yardstick, seen)
        if classes and seen.probabilities is not None and seen.probabilities.shape[1] == classes:
            meant = np.arange(len(pictures)) % classes
            found["recognised"] = float(np.mean(seen.probabilities.argmax(1) == meant))
        return found

    def _remembered(self, pictures: np.ndarray) -> Seen:
        """What the network sees, kept in its folder under a key of the pictures and of its weights."""
        key = hashlib.sha256(self._net.digest)
        key.update(pictures.tobytes())
        path = self._net.folder / "seen" / f"{key.hexdigest()}.npz"
        # What is damaged is seen once more.
        with (
            contextlib.suppress(OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile),
            np.load(path, allow_pickle=False) as kept,
        ):
            return Seen(**kept)
        seen = self._net(pictures)
        with contextlib.suppress(OSError):  # Another's folder may be read-only.
            path.parent.mkdir(exist_ok=True)
            file = io.BytesIO()
            np.savez(file, **{n: array for n, array in vars(seen).items() if array is not None})
            durable.write(path, file.getvalue())
        return seen


def _metrics(expected: np.ndarray, seen: Seen) -> dict[str, float]:
    near = neighbourhoods(expected, seen.features, NEIGHBOURS)
    found = {
        "frechet_distance": frechet_distance(expected, seen.features),
        "kernel_distance": kernel_distance(expected, seen.features),
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
    }
    if seen.probabilities is not None:
        count, classes = seen.probabilities.shape
        shares = np.bincount(seen.probabilities.argmax(1), minlength=classes) / count
        found |= {
            "confidence": float(seen.probabilities.max(1).mean()),
            "rarest_class": float(shares.min()),
            "commonest_class": float(shares.max()),
        }
    return found
