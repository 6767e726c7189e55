"""Runs of an experiment, and how two are compared."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from trainer.checkpoint import read
from trainer.cluster import Hardware
from trainer.experiment import Experiment
from trainer.trainer import Outcome, Trainer

ONE = Hardware(strategy="one_device")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
      rows: of metrics.jsonl without times: step -> metrics.
      weights: every variable of the last checkpoint by name.
      initial: every variable before the first step; empty if not known.
    """

    rows: Mapping[int, Mapping[str, float]]
    weights: Mapping[str, np.ndarray]
    initial: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def train(experiment: Experiment, hardware: Hardware, workdir: pathlib.Path) -> Run:
    """Trains to the end and reads what is in the workdir."""
    trainer = Trainer(experiment, hardware, workdir, note=lambda line: None)
    initial = trainer.snapshot().arrays
    assert trainer.train() is Outcome.DONE
    return dataclasses.replace(results(workdir), initial=initial)


def results(workdir: pathlib.Path) -> Run:
    """What is in the workdir of a finished run."""
    rows = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["step"]] = {n: v for n, v in row["metrics"].items() if not n.startswith("perf/")}
    last = sorted((workdir / "checkpoints").glob("step-*"))[-1]
    return Run(rows, read(last).arrays)


def assert_equal(one: Run, other: Run) -> None:
    """Equal to the bit."""
    assert one.rows == other.rows
    assert one.weights.keys() == other.weights.keys()
    for name, value in one.weights.items():
        np.testing.assert_array_equal(value, other.weights[name], err_msg=name)


def assert_close(one: Run, other: Run, *, losses: float, weights: float | None = None) -> None:
    """Equal up to the order of sums: |a - b| <= tolerance · max(1, |b|). The first values that differ are named."""
    assert one.rows.keys() == other.rows.keys()
    for step, metrics in one.rows.items():
        assert metrics.keys() == other.rows[step].keys()
        for name, value in metrics.items():
            expected = other.rows[step][name]
            assert abs(value - expected) <= losses * max(1, abs(expected)), (
                step,
                name,
                value,
                expected,
            )
    if weights is not None:
        assert one.weights.keys() == other.weights.keys()
        for name, value in one.weights.items():
            # Sums of metrics are compared above, as the rows they become.
            if not name.endswith("metric_sums"):
                error = np.abs(value - other.weights[name]) / np.maximum(
                    1, np.abs(other.weights[name])
                )
                assert np.max(error, initial=0) <= weights, (name, np.max(error))
