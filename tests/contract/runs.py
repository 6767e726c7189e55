"""Runs of an experiment, and how two are compared."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trainer.checkpoint import read, write
from trainer.experiment import Experiment
from trainer.hardware import Hardware
from trainer.trainer import Outcome, Trainer

INITIAL = "initial.safetensors"
ONE = Hardware(strategy="one_device")


class ContractBroken(AssertionError):
    """Two runs that must be the same are not."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
      rows: of metrics.jsonl in order, without times: (step, examples, metrics).
      weights: every variable of the last checkpoint by name.
      initial: every variable before the first step; none of a run by other means than `complete`.
    """

    rows: Sequence[tuple[int, int, Mapping[str, float]]]
    weights: Mapping[str, np.ndarray]
    initial: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def train(experiment: Experiment, hardware: Hardware, workdir: pathlib.Path) -> Run:
    """Trains to the end and reads what is in the workdir."""
    complete(experiment, hardware, workdir)
    return results(workdir)


def complete(
    experiment: Experiment,
    hardware: Hardware,
    workdir: pathlib.Path,
    prepare: Callable[[Trainer], None] = lambda trainer: None,
    note: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains to the end; the chief leaves the initial variables in the workdir as well."""
    trainer = Trainer(experiment, hardware, workdir, note=note)
    if trainer.cluster.chief:
        workdir.mkdir(parents=True, exist_ok=True)
        write(workdir / INITIAL, trainer.snapshot())
    prepare(trainer)
    assert trainer.train() is Outcome.DONE


def results(workdir: pathlib.Path) -> Run:
    """What is in the workdir of a finished run."""
    rows = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        metrics = {n: v for n, v in row["metrics"].items() if not n.startswith("perf/")}
        rows.append((row["step"], row["examples"], metrics))
    last = sorted((workdir / "checkpoints").glob("step-*"))[-1]
    initial = workdir / INITIAL
    return Run(rows, read(last).arrays, read(initial).arrays if initial.exists() else {})


def assert_equal(one: Run, other: Run) -> None:
    """Equal to the bit: rows of metrics, weights at the start and at the end."""
    _demand(one.rows == other.rows, "rows of metrics differ")
    for kind in ("weights", "initial"):
        _assert_same_arrays(getattr(one, kind), getattr(other, kind))


def assert_close(one: Run, other: Run, *, losses: float, weights: float | None = None) -> None:
    """Equal up to the order of sums: |a - b| <= tolerance · max(1, |b|). The first values that differ are named.

    Weights at the start are equal to the bit.
    """
    _demand([r[:2] for r in one.rows] == [r[:2] for r in other.rows], "rows of other steps")
    for (step, _, metrics), (_, _, expected) in zip(one.rows, other.rows, strict=True):
        _demand(metrics.keys() == expected.keys(), "rows of other metrics")
        for name, value in metrics.items():
            limit = losses * max(1, abs(expected[name]))
            _demand(abs(value - expected[name]) <= limit, (step, name, value, expected[name]))
    _assert_same_arrays(one.initial, other.initial)
    if weights is not None:
        _demand(one.weights.keys() == other.weights.keys(), "variables of other names")
        for name, value in one.weights.items():
            # Sums of metrics are compared above, as the rows they become.
            if not name.endswith("metric_sums"):
                scale = np.maximum(1, np.abs(other.weights[name]))
                error = np.max(np.abs(value - other.weights[name]) / scale, initial=0)
                _demand(error <= weights, (name, error))


def _assert_same_arrays(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    _demand(one.keys() == other.keys(), "variables of other names")
    for name in one:
        _demand(np.array_equal(one[name], other[name]), (name, one[name], other[name]))


def _demand(holds: bool, what: object) -> None:
    if not holds:
        raise ContractBroken(what)
