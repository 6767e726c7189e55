"""Weights from outside the run: not in checkpoints, and missed when they are others."""

import dataclasses
import re

import numpy as np
import pytest
import safetensors.numpy

from tests.contract.families import gpt2_lora
from tests.contract.runs import ONE, assert_equal, results
from trainer.exits import ConfigError, Corrupted
from trainer.hardware import Hardware
from trainer.trainer import Trainer

FIELDS = {"steps": 2, "evaluate_every": 0, "best_metric": None, "checkpoint_every": 2}


def make(workdir, weights=0, **fields):
    experiment = gpt2_lora(weights, **(FIELDS | fields))
    return Trainer(experiment, ONE, workdir, note=lambda line: None)


def test_checkpoints_hold_what_is_learnt_alone(tmp_path):
    """Started again, the rest is as it was; with another model it is not started at all, and nothing is lost."""
    trainer = make(tmp_path)
    before = {v.path: v.numpy() for v in trainer.objective.network.variables}
    trainer.train()
    file = tmp_path / "checkpoints" / "step-00000002.safetensors"
    kept = safetensors.numpy.load_file(file)
    learnt = {v.path for v in trainer.objective.network.trainable_variables}
    assert {name for name in kept if name.startswith("network/")} == learnt
    assert len(learnt) == 2 * 4 and len(before) == 2 * 4 + 4 + 12
    for variable in trainer.objective.network.variables:
        moved = np.any(variable.numpy() != before[variable.path])
        assert moved == (variable.path in learnt), variable.path

    again = make(tmp_path)
    assert again.restore() == 2
    for one, other in zip(
        again.objective.network.variables, trainer.objective.network.variables, strict=True
    ):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)

    content = file.read_bytes()
    said = re.escape(str(file)) + " does not fit the pretrained weights, which nothing moves"
    with pytest.raises(ConfigError, match=said + ".*digest was [0-9a-f]{12} and is [0-9a-f]{12}; "):
        make(tmp_path, weights=1, steps=4).train()
    assert file.read_bytes() == content
    assert make(tmp_path, steps=4).restore() == 2


def test_a_flip_in_what_no_checkpoint_holds_is_found_and_read_anew(tmp_path):
    """Two replicas; the line names the weight, nothing is saved, and the next start is the one without a flip."""
    two = Hardware(strategy="mirrored", virtual_devices=4, replicas=2)

    def trainer(workdir, steps_per_loop=1):
        hardware = dataclasses.replace(two, steps_per_loop=steps_per_loop)
        return Trainer(gpt2_lora(0, **FIELDS), hardware, workdir, note=lambda line: None)

    flipped = trainer(tmp_path / "run")
    run_steps, variable = flipped._run_steps, flipped.step.frozen[0]

    def run(data, count):
        times = run_steps(data, count)
        part = flipped.strategy.experimental_local_results(variable.value)[1]
        part.assign(part + 1)
        return times

    flipped.__dict__["_run_steps"] = run
    with pytest.raises(
        Corrupted, match=f"pretrained/{variable.path} differs .* start again"
    ) as end:
        flipped.train()
    assert end.value.code == 75 and flipped.checkpoints.steps() == []
    trainer(tmp_path / "run").train()
    trainer(tmp_path / "undisturbed").train()
    assert_equal(results(tmp_path / "run"), results(tmp_path / "undisturbed"))
