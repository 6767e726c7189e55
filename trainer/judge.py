"""How good a model's samples are, in the eyes of a network: beside real pictures, in its features."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import zipfile

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

from input_pipeline.batches import Batches, Slice, Source
from models.sample_metrics import frechet_distance, kernel_distance, neighbourhoods
from trainer import durable
from trainer.exits import ConfigError, UsageError
from trainer.features import FeatureNet, Seen
from trainer.trainer import Trainer

MOST = 10_000
"""Pictures of a kind that are compared, if there are so many and no other number is asked for."""
SEARCHED = 100_000
"""Training pictures among which neighbours are searched."""
NEIGHBOURS = 5
"""By which neighbourhoods are measured, as Naeem et al. (2020) do."""
BATCH = 500
REPEATED = 20 * BATCH
"""Pictures of a stream in a row that were there before, after which there are no others."""


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
      UsageError: if it is not known how many training pictures there are, and none are held out and no count is given, or the
        count is of more than there are.
    """

    def __init__(self, net: FeatureNet, data: Trainer, count: int | None = None) -> None:
        if "image" not in data.batches.element_spec or data.objective.sample is None:
            raise ConfigError(
                f"{type(data.objective).__name__} draws no pictures, which --features compares: leave it out"
            )
        self._net = net
        self.name = net.name
        train, held_out = data.batches.examples, data.batches.validation
        if train is None and held_out is None and count is None:
            raise UsageError(
                "how many pictures the training source has is not known, and none are held out: compare them by lockstep "
                "evaluate --features=… --count=N, N at most half of the pictures"
            )
        self.count = count or MOST
        if held_out is not None:
            self.count = min(self.count, len(held_out))
        if train is not None:
            self.count = min(self.count, train // 2 if held_out is None else train)
        if self.count <= NEIGHBOURS:
            raise ConfigError(
                f"{self.count} pictures of a kind are too few to compare: take more than {NEIGHBOURS}"
            )
        training = _Pictures(data.batches)
        held = training if held_out is None else _Pictures(data.batches, held_out)
        yardstick, floor = held.take(self.count), training.take(self.count)
        if len(floor) < self.count:
            most = len(floor) if held_out else (len(yardstick) + len(floor)) // 2
            raise UsageError(
                f"the training source has too few pictures to compare {self.count:,} of each kind: give --count={most}, or less"
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


class _Pictures:
    """The pictures of a data set in random order, as people see them: those of training, or of another source.

    Of a stream, which begins again without a word, none comes twice: those that were there before are left out, and it has no
    more when for `REPEATED` pictures there was no other.
    """

    def __init__(self, batches: Batches, source: Source | None = None) -> None:
        self._decode = batches.source.decode
        shown = dataclasses.replace(
            batches,
            source=source or batches.source,
            transforms=batches.validation_transforms,
            validation=None,
            global_batch=BATCH,
            seed=0,
        )
        if shown.element_spec["image"].shape != batches.element_spec["image"].shape:
            shown = dataclasses.replace(shown, transforms=batches.transforms)
        self._data = iter(shown.training(Slice()))
        self._left: list[np.ndarray] = []
        self._seen: set[bytes] | None = set() if shown.examples is None else None

    def take(self, count: int) -> np.ndarray:
        """The next ones, uint8 `[count, height, width, channels]`, of a stream fewer if it has no more."""
        repeated = 0
        while len(self._left) < count and repeated < REPEATED:
            block = list(self._decode(next(self._data)["image"][0]))
            new = block if self._seen is None else list(filter(self._is_new, block))
            repeated = 0 if new else repeated + len(block)
            self._left += new
        taken, self._left = self._left[:count], self._left[count:]
        return np.array(taken)

    def _is_new(self, picture: np.ndarray) -> bool:
        assert self._seen is not None
        key = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def nearest(data: Trainer, pictures: np.ndarray, neighbours: int = 7) -> np.ndarray:
    """Each picture beside the training pictures nearest to it, pixel by pixel: a model that memorises shows twins.

    Args:
      data: the training whose pictures are searched, the first `SEARCHED` of them in its order.
      pictures: uint8 `[n, height, width, channels]`.
      neighbours: training pictures beside each.

    Returns:
      uint8 `[n, 1 + neighbours, height, width, channels]`.
    """
    known, count = _Pictures(data.batches), min(data.batches.examples or SEARCHED, SEARCHED)
    wanted = _flat(pictures)
    found = np.empty([len(pictures), 0, *pictures.shape[1:]], np.uint8)
    distances = np.empty([len(pictures), 0])
    for first in range(0, count, BATCH):
        block = known.take(min(BATCH, count - first))
        if not len(block):
            break
        further = euclidean_distances(wanted, _flat(block))
        near = np.argsort(further, 1, kind="stable")[:, :neighbours]
        # Of the best so far and the best of the block, the best.
        distances = np.concatenate([distances, np.take_along_axis(further, near, 1)], 1)
        found = np.concatenate([found, block[near]], 1)
        best = np.argsort(distances, 1, kind="stable")[:, :neighbours]
        distances = np.take_along_axis(distances, best, 1)
        found = found[np.arange(len(found))[:, np.newaxis], best]
    return np.concatenate([pictures[:, np.newaxis], found], 1)


def _flat(pictures: np.ndarray) -> np.ndarray:
    return pictures.reshape(len(pictures), -1).astype(np.float32)


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
