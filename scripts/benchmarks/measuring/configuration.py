"""The training that a configuration describes, to be run a few steps at a time."""

from __future__ import annotations

import ast
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trainer import config_files
from trainer.catalogue import registry
from trainer.experiment import Experiment
from trainer.hardware import Hardware
from trainer.trainer import Trainer

NOTHING_BUT_STEPS = (
    "Experiment.evaluate_every=0",
    "Experiment.best_metric=None",
    "Experiment.sample_every=0",
    "Experiment.samples=0",
)
WITHOUT_END = "STEPS=1000000000"
CHARACTERS = 65
"""Of the vocabulary, as many as tinyshakespeare has."""


class Configuration:
    """A shipped configuration without its evaluations and samples.

    Args:
      name: of the configuration.
      parameters: that win over it.
    """

    def __init__(self, name: str, parameters: Sequence[str]) -> None:
        statements = config_files.read([name], [*NOTHING_BUT_STEPS, *parameters])
        self._names = registry()
        self._resolved = self._names.resolve(statements)

    def __getitem__(self, key: str) -> Any:
        """The value of a binding that is a literal."""
        return ast.literal_eval(self._resolved.bindings[key])

    def experiment(self) -> Experiment:
        return self._names.build(self._resolved)


def alone(experiment: Experiment, **hardware: Any) -> Trainer:
    """Trains it here on one device, in memory; `hardware` are further attributes of `Hardware`."""
    device = Hardware(strategy="one_device", **hardware)
    return Trainer(experiment, device, note=lambda _: None)


def side_by_side(global_batch: int) -> dict[str, int]:
    """The hardware's flags by which a CPU computes a microbatch on each core, as many as divide the batch."""
    cores = len(os.sched_getaffinity(0))
    count = max(n for n in range(1, cores + 1) if global_batch % n == 0)
    return {"intra_op_threads": 1, "microbatch": global_batch // count}


def stepping(trainer: Trainer) -> Callable[[int], None]:
    """The trainer's own loop; each call goes on for some steps."""
    data, done = trainer.data(0), 0

    def run(steps: int) -> None:
        nonlocal done
        trainer.run(data, done, until=done + steps)
        done += steps

    return run


def write_random_text(file: pathlib.Path, length: int = 1_000_000) -> None:
    """Characters for which nothing matters but how many there are."""
    characters = np.array([chr(ord("0") + i) for i in range(CHARACTERS)])
    drawn = np.random.default_rng(0).integers(0, CHARACTERS, length)
    file.write_text("".join(characters[drawn]))
