"""Data that cannot be read for a while, or for good: what is tried again, what is saved, and that it changes no bit."""

from __future__ import annotations

import errno
import json
import logging
import os

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.arrays import numpy_rows
from input_pipeline.batches import DataError, MissingLibrary
from input_pipeline.retrying import DELAYS_SECONDS, retrying
from tests.contract.runs import assert_equal, results
from tests.trainer.objectives import ONE, TWO, Regression, Table, experiment, points, quiet
from trainer import checkpoint
from trainer.data_errors import data_problem
from trainer.exits import DataProblem, MissingPackage
from trainer.hardware import Hardware
from trainer.report import report

pytestmark = pytest.mark.usefixtures("short_delays")


class Storage(Table):
    """A table that some failures keep from being read.

    Attributes:
      bad: example -> how often it still fails, by which error.
    """

    def __init__(self, count: int):
        super().__init__(points(count)._table)
        self.bad: dict[int, list[int]] = {}

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        def rows(ids: np.ndarray, name: str) -> np.ndarray:
            try:
                return retrying(lambda: self._rows(ids, name), "shard-7")
            except OSError as error:
                raise DataError(f"shard-7 cannot be read ({error.strerror}): mend it") from None

        return {
            name: numpy_rows(
                lambda ids, name=name: rows(ids, name), ids, array.dtype, array.shape[1:]
            )
            for name, array in self._table.items()
        }

    def _rows(self, ids: np.ndarray, name: str) -> np.ndarray:
        for at in ids.tolist():
            if self.bad.get(at):
                number = self.bad[at].pop()
                raise OSError(number, os.strerror(number))
        return self._table[name][ids]

    def fail(self, position: int, errors: list[int]) -> None:
        """Makes the example at a position of the training fail so."""
        ids = regression(self).batches().ids(tf.constant([position], tf.int64))
        self.bad[int(ids[0])] = errors


def regression(source, **fields):
    """12 steps in one epoch."""
    usual = {"steps": 12, "log_every": 5, "checkpoint_every": 6, "seed": 5}
    return experiment(Regression, source, **(usual | fields))


FOR_GOOD = [errno.EIO] * 1000
ONE_OF_4 = Hardware(strategy="one_device", steps_per_loop=4)
TWO_OF_4 = Hardware(strategy="mirrored", replicas=2, steps_per_loop=4)


@pytest.mark.parametrize("hardware", [ONE_OF_4, TWO_OF_4], ids=["one", "two"])
def test_the_steps_before_bad_data_are_saved_and_no_bit_changes(hardware, tmp_path):
    """The first, a middle and the last example of a step fail, in the middle and at the edges of loops and of saves."""
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"
    quiet(
        regression(Storage(60), checkpoint_every=1, keep_checkpoints=20), hardware, undisturbed
    ).train()
    for step, row in ((0, 0), (3, 3), (4, 0), (6, 1), (7, 2), (11, 3)):
        source = Storage(60)
        source.fail(4 * step + row, list(FOR_GOOD))
        trainer = quiet(regression(source), hardware, workdir)
        with pytest.raises(Exception) as error:
            trainer.train()
        assert (
            str(data_problem(error.value)) == "shard-7 cannot be read (Input/output error): mend it"
        )
        assert (trainer.checkpoints.steps() or [0])[-1] == step
        if step:
            saved = trainer.checkpoints.find(str(step), print)
            whole = quiet(regression(Storage(60)), hardware, undisturbed).checkpoints.find(
                str(step), print
            )
            assert saved.arrays.keys() == whole.arrays.keys()
            for name, value in whole.arrays.items():
                np.testing.assert_array_equal(saved.arrays[name], value, err_msg=name)
    quiet(regression(Storage(60)), hardware, workdir).train()
    assert_equal(results(workdir), results(undisturbed))
    found = report(workdir)
    assert (found.state, found.steps_again) == ("done", 0)
    assert found.counts["start"] == 7
    assert found.counts["retry"] >= 6 * len(DELAYS_SECONDS)


@pytest.mark.parametrize(
    ("error", "problem"), [(DataError, DataProblem), (MissingLibrary, MissingPackage)]
)
def test_a_library_that_is_missing_is_no_bad_data(error, problem):
    """Also in tf.data's threads, of whose errors the text alone is left."""

    def read(at: np.ndarray) -> np.ndarray:
        raise error("tables need the library pandas: install it")

    data = tf.data.Dataset.range(1).map(lambda at: tf.numpy_function(read, [at], tf.int64))
    with pytest.raises(tf.errors.OpError) as of_tf_data:
        next(iter(data))
    with pytest.raises(error) as plain:
        read(np.zeros(1))
    for raised in (of_tf_data, plain):
        found = data_problem(raised.value)
        assert type(found) is problem
        assert str(found) == "tables need the library pandas: install it"


def test_storage_that_fails_for_a_moment_changes_nothing_but_the_time(tmp_path):
    source, notes = Storage(60), []
    for position, number in ((0, errno.ESTALE), (13, errno.ENOENT), (30, errno.ETIMEDOUT)):
        source.fail(position, [number] * 2)
    trainer = quiet(regression(source), ONE, tmp_path / "run")
    trainer._note = notes.append
    trainer.train()
    quiet(regression(Storage(60)), ONE, tmp_path / "undisturbed").train()
    assert_equal(results(tmp_path / "run"), results(tmp_path / "undisturbed"))
    tries = [note for note in notes if "trying again" in note]
    assert len(tries) == 6
    assert "shard-7 cannot be read (Stale file handle): trying again in 0.01 seconds" in tries
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    retries = [event for event in events if event["event"] == "retry"]
    assert {event["file"] for event in retries} == {"shard-7"}
    reasons = ["No such file or directory", "Stale file handle", "Connection timed out"]
    assert sorted(event["error"] for event in retries) == sorted(reasons * 2)
    assert logging.getLogger("input_pipeline.retrying").handlers == []


def test_no_half_step_is_left_where_data_fail():
    """Many failures at random steps of a model whose step takes long beside reading: all variables are of one whole step."""
    chance = np.random.default_rng(0)
    for hardware in (ONE, TWO):
        source = Storage(400)
        trainer = quiet(regression(source, steps=90, log_every=100, checkpoint_every=100), hardware)
        begin = trainer.snapshot().arrays
        for failing in chance.integers(1, 80, 8).tolist():
            seen = []
            for errors in ([], list(FOR_GOOD)):
                for name, variable in trainer.state.items():
                    variable.assign(begin[name])
                source.bad.clear()
                source.fail(4 * failing + int(chance.integers(4)), errors)
                if errors:
                    with pytest.raises(Exception, match="DataError: shard-7"):
                        trainer._run_steps(trainer.data(0), tf.constant(90))
                else:
                    trainer._run_steps(trainer.data(0), tf.constant(failing))
                seen.append(
                    {
                        name: [x.numpy() for x in trainer.strategy.experimental_local_results(v)]
                        for name, v in trainer.state.items()
                    }
                )
            for name, values in seen[0].items():
                np.testing.assert_array_equal(seen[1][name], values, err_msg=name)


def test_replicas_are_compared_before_what_came_before_bad_data_is_saved(tmp_path):
    """A bit flips in step 4 and the data of step 6 fail: what is saved is what was learnt without the flip."""
    source, workdir = Storage(60), tmp_path / "run"
    source.fail(6 * 4, FOR_GOOD)
    wanted = {"checkpoint_every": 100, "log_every": 100}
    trainer = quiet(regression(source, **wanted), TWO_OF_4, workdir)
    trainer._pace.steps = 4
    run_steps, flips = trainer._run_steps, [4]

    def run(data, count):
        times = run_steps(data, count)
        if int(trainer.step.number.numpy()) in flips:
            flips.clear()
            variable = trainer.strategy.experimental_local_results(trainer.state["network/kernel"])
            variable[1].assign(variable[1] + 1)
        return times

    trainer.__dict__["_run_steps"] = run
    with pytest.raises(Exception) as error:
        trainer.train()
    assert data_problem(error.value) and not flips
    events = [json.loads(line) for line in (workdir / "events.jsonl").open()]
    assert [(e["step"], e["to"]) for e in events if e["event"] == "rollback"] == [(6, 0)]
    assert trainer.checkpoints.steps() == [6]
    quiet(regression(Storage(60), **wanted, steps=6), TWO_OF_4, tmp_path / "undisturbed").train()
    kept, expected = (
        checkpoint.read(tmp_path / name / "checkpoints/step-00000006.safetensors").arrays
        for name in ("run", "undisturbed")
    )
    np.testing.assert_array_equal(kept["network/kernel"], expected["network/kernel"])
