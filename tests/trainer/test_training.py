"""The host loop: when it looks, saves, evaluates and stops, and that none of it changes what is learnt."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Mapping

import keras
import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.objective import Batch, Optimizer
from tests.contract.runs import assert_equal, results
from tests.trainer.objectives import (
    ONE,
    TWO,
    Regression,
    Scripted,
    Table,
    experiment,
    points,
    quiet,
    script,
    values,
)
from trainer import checkpoint, durable
from trainer.exits import CannotCreate, ConfigError, DataProblem, UsageError
from trainer.hardware import Hardware
from trainer.ledger import events
from trainer.metrics import MetricWriter
from trainer.preemption import Asked
from trainer.schedule import Pace
from trainer.trainer import Outcome
from trainer.verify import verify

LOOPS_OF_3 = Hardware(strategy="one_device", steps_per_loop=3)


def regression(**fields):
    """12 steps on 21 points, so that epochs end within batches; a row every 4 steps, evaluation on 7 points every 3."""
    usual = {"steps": 12, "log_every": 4, "checkpoint_every": 6, "evaluate_every": 3, "seed": 5}
    usual |= {"validation": points(7, seed=4), "best_metric": "error"}
    return experiment(Regression, points(21), **(usual | fields))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of `regression()` that nothing happened to."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert quiet(regression(), LOOPS_OF_3, workdir).train() is Outcome.DONE
    return results(workdir)


def by_step(run):
    return {step: metrics for step, _, metrics in run.rows}


def contents(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---------------------------------------------------------------------- when it stops


def test_done_is_done(tmp_path, undisturbed):
    """Started again it changes no byte; with fewer steps neither."""
    workdir = tmp_path / "run"
    assert quiet(regression(), LOOPS_OF_3, workdir).train() is Outcome.DONE
    assert json.loads((workdir / "DONE").read_text()) == {"steps": 12}
    assert_equal(results(workdir), undisturbed)
    before = contents(workdir)
    for steps in (12, 8):
        again = quiet(regression(steps=steps), LOOPS_OF_3, workdir)
        assert again.train() is Outcome.ALREADY_DONE
        assert again.snapshot().step == 12
    assert contents(workdir) == before
    # Killed after the last save and before it said so.
    (workdir / "DONE").unlink()
    assert quiet(regression(steps=8), LOOPS_OF_3, workdir).train() is Outcome.ALREADY_DONE
    assert not (workdir / "DONE").exists()
    assert quiet(regression(), LOOPS_OF_3, workdir).train() is Outcome.ALREADY_DONE
    assert json.loads((workdir / "DONE").read_text()) == {"steps": 12}


def test_a_run_that_was_to_be_longer_has_no_end(tmp_path):
    """Killed after rows of later steps than its last checkpoint's, which has none: nothing is called damaged."""
    plain = functools.partial(regression, evaluate_every=0, best_metric=None, validation=None)
    assert quiet(plain(), LOOPS_OF_3, tmp_path).train() is Outcome.DONE
    (tmp_path / "DONE").unlink()
    (tmp_path / "checkpoints/step-00000012.safetensors").unlink()
    assert list(by_step(results(tmp_path))) == [4, 8, 12]
    assert quiet(plain(steps=6), LOOPS_OF_3, tmp_path).train() is Outcome.ALREADY_DONE
    assert list(by_step(results(tmp_path))) == [4] and not (tmp_path / "DONE").exists()
    assert verify(tmp_path).problem is None


@pytest.mark.parametrize("first", [5, 6])
def test_more_steps_go_on_as_one_long_run(first, tmp_path, undisturbed):
    """Also from a step that is no boundary of the long run. Only its row at the end of the first part is one more."""
    notes = []
    assert quiet(regression(steps=first), LOOPS_OF_3, tmp_path).train() is Outcome.DONE
    longer = quiet(regression(), LOOPS_OF_3, tmp_path)
    longer._note = notes.append
    assert longer.train() is Outcome.DONE
    assert notes == [f"going on from step {first} on {longer.cluster.describe()}"]
    assert json.loads((tmp_path / "DONE").read_text()) == {"steps": 12}
    run = results(tmp_path)
    rows, expected = by_step(run), by_step(undisturbed)
    assert [step for step in rows if step not in expected] == ([5] if first == 5 else [])
    # The mean of steps 5 … 8 is whole, also where a row at the end of the first part came between.
    for step in expected.keys() - {first}:
        assert rows[step] == expected[step], step
    ended = rows[first]  # With the means until then, besides.
    assert expected.get(first, {}).items() <= ended.items() and "train/loss" in ended
    for name, value in undisturbed.weights.items():
        np.testing.assert_array_equal(run.weights[name], value, err_msg=name)


def test_sigterm_saves_at_the_end_of_the_loop_and_changes_no_bit(
    tmp_path, undisturbed, monkeypatch
):
    """The signal comes within a loop, from another thread, twice: at the row of step 4 and, after the restart, of step 9."""
    before = signal.getsignal(signal.SIGTERM)
    written, write = [], MetricWriter.write

    def interrupted(self, step, *args):
        write(self, step, *args)
        written.append(step)
        if written.count(step) == 1 and step in (4, 9):
            sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM))
            sender.start()
            sender.join()

    monkeypatch.setattr(MetricWriter, "write", interrupted)
    outcomes = []
    for saved in (4, 9, 12):
        trainer = quiet(regression(), LOOPS_OF_3, tmp_path)
        outcomes.append(trainer.train())
        assert trainer.checkpoints.steps()[-1] == trainer.snapshot().step == saved
        assert (tmp_path / "DONE").exists() == (saved == 12)
        assert signal.getsignal(signal.SIGTERM) is before
    assert outcomes == [Outcome.PREEMPTED, Outcome.PREEMPTED, Outcome.DONE]
    assert_equal(results(tmp_path), undisturbed)


def test_a_preempted_run_ends_when_its_save_is_on_the_disk(tmp_path, monkeypatch):
    """On all workers: the launcher ends the chief, which saves, as soon as another has ended."""
    trainer = quiet(regression(), LOOPS_OF_3, tmp_path)
    tmp_path.joinpath("checkpoints").mkdir()
    write, asked, stop = checkpoint.write, [], Asked()

    def slow(path, *rest):
        time.sleep(0.5)
        write(path, *rest)

    def any_worker(*flags):
        asked.append(trainer.checkpoints.steps())
        return flags

    monkeypatch.setattr(checkpoint, "write", slow)
    trainer.cluster.__dict__["any_worker"] = any_worker
    stop.ask()
    assert trainer.run(trainer.data(0), 0, stop=stop) is Outcome.PREEMPTED
    assert trainer.checkpoints.steps() == asked[-1] == [1] and asked[-2] == []


def test_sigterm_while_the_device_computes(tmp_path):
    """A timer sends it in the middle of one long loop: the loop ends, and then the run."""
    source = script(*[[[1, 1, 1]] * 4] * 2)
    slow = experiment(Scripted, source, steps=400_000, log_every=400_000, checkpoint_every=400_000)
    trainer = quiet(slow, Hardware(strategy="one_device", steps_per_loop=1500), tmp_path)
    trainer._run_steps(trainer.data(0), tf.constant(0))  # Traced, so that the timer meets steps.
    trainer._pace.steps = 1500
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert trainer.train() is Outcome.PREEMPTED
    (step,) = trainer.checkpoints.steps()
    assert step % 1500 == 0 and 0 < step < 400_000
    assert values(trainer)["only/w"][0].tolist() == [1 - step, 2 - step, -3 - step]


def test_sigterm_in_the_last_loop_is_no_preemption(tmp_path, monkeypatch):
    write = MetricWriter.write

    def interrupted(self, step, *args):
        write(self, step, *args)
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # Where Python looks for signals.

    monkeypatch.setattr(MetricWriter, "write", interrupted)
    assert quiet(regression(), LOOPS_OF_3, tmp_path).train() is Outcome.DONE
    assert (tmp_path / "DONE").exists()


def test_training_in_a_thread_needs_no_signals(tmp_path, undisturbed):
    """Handlers belong to the main thread; a notebook or a server may train in another."""
    outcomes = []
    trainer = quiet(regression(), LOOPS_OF_3, tmp_path)
    thread = threading.Thread(target=lambda: outcomes.append(trainer.train()))
    thread.start()
    thread.join()
    assert outcomes == [Outcome.DONE]
    assert_equal(results(tmp_path), undisturbed)


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch, undisturbed):
    monkeypatch.chdir(tmp_path)
    trainer = quiet(regression(samples=4), LOOPS_OF_3)
    assert trainer.train() is Outcome.DONE
    assert list(tmp_path.iterdir()) == []
    for name, value in undisturbed.weights.items():
        np.testing.assert_array_equal(trainer.snapshot().arrays[name], value, err_msg=name)
    assert trainer.train() is Outcome.ALREADY_DONE
    # What is in memory goes on.
    trainer.experiment = dataclasses.replace(trainer.experiment, steps=14)
    assert trainer.train() is Outcome.DONE
    assert trainer.snapshot().step == 14


# ---------------------------------------------------------------------- loops


@pytest.mark.parametrize("steps_per_loop", [1, 7, 20])
def test_loops_of_any_length_give_the_same_bits(steps_per_loop, tmp_path, undisturbed):
    hardware = Hardware(strategy="one_device", steps_per_loop=steps_per_loop)
    assert quiet(regression(), hardware, tmp_path).train() is Outcome.DONE
    assert_equal(results(tmp_path), undisturbed)


@pytest.mark.parametrize("log_every", [1, 5, 100])
def test_looking_more_often_or_never_gives_the_same_weights(
    log_every, tmp_path, undisturbed, monkeypatch
):
    monkeypatch.setattr(MetricWriter, "samples", lambda self, step, decoded, classes: None)
    wanted = regression(log_every=log_every, checkpoint_every=5, sample_every=2, samples=3)
    quiet(wanted, LOOPS_OF_3, tmp_path).train()
    run = results(tmp_path)
    for name, value in undisturbed.weights.items():
        if name != "fit/metric_sums":  # Of the steps since metrics began anew.
            np.testing.assert_array_equal(run.weights[name], value, err_msg=name)
    logged = [step for step, row in by_step(run).items() if "train/loss" in row]
    assert logged == [*range(log_every, 12, log_every), 12]
    # A row is the mean of the steps since the one before: the same sum over all of them.
    sums = [
        sum((step - last) * rows[step]["train/loss"] for last, step in itertools.pairwise(steps))
        for rows, steps in ((by_step(run), [0, *logged]), (by_step(undisturbed), [0, 4, 8, 12]))
    ]
    assert sums[0] == pytest.approx(sums[1], rel=1e-13)


@pytest.mark.parametrize(
    ("fields", "steps_per_loop", "counts"),
    [
        # 25 steps, after one twice as many up to 7, cut at multiples of 10, 6 and 8: 1 3 6 8 10 12 16 18 20 24 25.
        (
            {"log_every": 10, "evaluate_every": 6, "checkpoint_every": 8},
            7,
            [1, 2, 3, 2, 2, 2, 4, 2, 2, 4, 1],
        ),
        # Cut at the end alone.
        (
            {"log_every": 100, "checkpoint_every": 100, "evaluate_every": 0},
            4,
            [1, 2, 4, 4, 4, 4, 4, 2],
        ),
        ({"log_every": 100, "checkpoint_every": 100, "evaluate_every": 0}, 100, [1, 2, 4, 8, 10]),
        (
            {"log_every": 100, "checkpoint_every": 100, "evaluate_every": 0, "sample_every": 9},
            100,
            [1, 2, 4, 2, 8, 1, 7],
        ),
        ({"log_every": 13, "checkpoint_every": 13, "evaluate_every": 13}, 100, [1, 2, 4, 6, 8, 4]),
    ],
)
def test_loops_are_cut_at_the_next_boundary(fields, steps_per_loop, counts):
    assert loops(steps_per_loop, **fields) == counts


def test_loops_that_take_long_have_few_steps(monkeypatch):
    monkeypatch.setattr("trainer.trainer.LONG", -1.0)
    assert loops(20, log_every=100, checkpoint_every=100, evaluate_every=0) == [1] * 25
    pace = Pace(20)
    for steps, long, then in (
        (1, False, 2),
        (2, False, 4),
        (3, False, 4),
        (4, True, 2),
        (2, False, 4),
        (1, True, 1),
    ):
        pace.took(steps, long)
        assert pace.steps == then


def loops(steps_per_loop, **fields):
    """How many steps each loop of 25 takes."""
    wanted = regression(steps=25, best_metric=None, **fields)
    trainer = quiet(wanted, Hardware(strategy="one_device", steps_per_loop=steps_per_loop))
    seen = []

    def pretended(data, count):
        seen.append(int(count))
        trainer.step.number.assign_add(int(count))
        return tf.zeros([int(count), 2], tf.float64)

    trainer.__dict__["_run_steps"] = pretended
    trainer.train()
    return seen


def test_a_loop_that_takes_another_number_of_steps_is_an_error():
    trainer = quiet(regression(), LOOPS_OF_3)
    trainer._pace.steps = 3
    run_steps = trainer._run_steps
    trainer.__dict__["_run_steps"] = lambda data, count: run_steps(data, count - 1)
    with pytest.raises(RuntimeError, match="the step is 2 after 3 steps from 0: expected 3"):
        trainer.train()


# ---------------------------------------------------------------------- rows


def test_a_row_has_what_it_should(tmp_path):
    """Two phases, of which the first makes two updates: 12 examples a step."""
    objective = functools.partial(Scripted, phases=("first", "second"), updates=2)
    source = script(*[[[3, 0, 4]] * 4] * 9, losses=np.arange(36.0))
    wanted = experiment(objective, source, steps=3, log_every=2)
    quiet(wanted, TWO, tmp_path).train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [(list(row), row["step"], row["examples"]) for row in rows] == [
        (["step", "examples", "seconds", "metrics"], 2, 24),
        (["step", "examples", "seconds", "metrics"], 3, 36),
    ]
    assert 0 < rows[0]["seconds"] < rows[1]["seconds"]
    metrics = rows[0]["metrics"]
    assert {name: value for name, value in metrics.items() if not name.startswith("perf/")} == {
        "train/first/gradient_norm": 5.0,
        "train/first/learning_rate": 1.0,
        # Updates read examples 0 … 7 and 12 … 19, and 8 … 11 and 20 … 23.
        "train/first/loss": 9.5,
        "train/first/skipped_updates": 0.0,
        "train/second/gradient_norm": 5.0,
        "train/second/learning_rate": 1.0,
        "train/second/loss": 15.5,
        "train/second/skipped_updates": 0.0,
    }
    assert {name for name in metrics if name.startswith("perf/")} == {
        "perf/data_wait_share",
        "perf/examples_per_second",
        "perf/step_seconds_p50",
        "perf/step_seconds_p90",
    }
    assert 0 <= metrics["perf/data_wait_share"] <= 1
    assert 0 < metrics["perf/step_seconds_p50"] <= metrics["perf/step_seconds_p90"]


def test_lines_for_people_have_rates(capsys, tmp_path):
    """Also those of an evaluation between two rows of the training."""
    quiet(regression(), LOOPS_OF_3, tmp_path).train()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/12")[0].split()[-1] for line in lines] == ["3", "4", "6", "8", "9", "12"]
    for line in lines:
        assert re.search(r" [\d,]+ examples/s ", line), line


def test_evaluations_are_in_the_rows_of_their_steps(undisturbed):
    evaluated = [step for step, row in by_step(undisturbed).items() if "eval/error" in row]
    logged = [step for step, row in by_step(undisturbed).items() if "train/loss" in row]
    assert (evaluated, logged) == ([3, 6, 9, 12], [4, 8, 12])
    assert list(by_step(undisturbed)) == [3, 4, 6, 8, 9, 12]


# ---------------------------------------------------------------------- the best


class Rated(Scripted):
    """Its evaluation metric "score" at a step is in a list."""

    SCORES = (np.nan, 5.0, 3.0, 4.0, 3.0, np.nan, 2.0, 7.0, 7.0, 6.0)

    def evaluate(self, batch, noise, step):
        return {"score": tf.gather(tf.constant(self.SCORES, tf.float64), step) + 0 * batch["loss"]}


def rated(**fields):
    source = script(*[[[1, 1, 1]] * 4] * 9)
    usual = {"validation": script([[1, 1, 1]] * 3), "best_metric": "score", "evaluate_every": 1}
    usual |= {"steps": 9, "log_every": 9, "checkpoint_every": 100, "keep_checkpoints": 1}
    return experiment(Rated, source, **(usual | fields))


@pytest.mark.parametrize(
    ("direction", "saved", "best"),
    [
        # Better than all before, not equal, and a number: that is saved.
        ("min", [1, 2, 6, 9], {"step": 6, "value": 2.0}),
        ("max", [1, 7, 9], {"step": 7, "value": 7.0}),
    ],
)
def test_the_best_is_saved_and_kept(direction, saved, best, tmp_path, monkeypatch):
    trainer, seen = quiet(rated(best_direction=direction), ONE, tmp_path), []
    save = trainer.checkpoints.save

    def watched(snapshot, *stay, **more):
        seen.append(snapshot.step)
        save(snapshot, *stay, **more)

    monkeypatch.setattr(trainer.checkpoints, "save", watched)
    assert trainer.train() is Outcome.DONE
    assert (seen, trainer.best) == (saved, best)
    assert trainer.checkpoints.steps() == [best["step"], 9]
    again = quiet(rated(best_direction=direction), ONE, tmp_path)
    assert again.restore("best") == best["step"]
    assert values(again)["only/w"][0][0] == 1 - best["step"]
    assert again.evaluate()["score"] == best["value"]


def test_the_best_is_remembered_by_a_run_that_goes_on(tmp_path):
    """Step 2 scores 3, which 4 and 5 after the restart do not beat and 6 does."""
    quiet(rated(steps=3), ONE, tmp_path).train()
    five = quiet(rated(steps=5), ONE, tmp_path)
    five.train()
    assert five.best == {"step": 2, "value": 3.0}
    assert five.checkpoints.steps() == [2, 5]
    nine = quiet(rated(), ONE, tmp_path)
    nine.train()
    assert nine.best == {"step": 6, "value": 2.0}
    assert nine.checkpoints.steps() == [6, 9]


def test_the_end_is_evaluated_too(tmp_path):
    quiet(rated(steps=5, evaluate_every=2), ONE, tmp_path).train()
    scores = {
        step: m["eval/score"] for step, m in by_step(results(tmp_path)).items() if "eval/score" in m
    }
    assert scores == {2: 3.0, 4: 3.0, 5: None}  # NaN


def test_without_a_best_metric_nothing_is_best(tmp_path):
    trainer = quiet(rated(best_metric=None), ONE, tmp_path)
    trainer.train()
    assert (trainer.best, trainer.checkpoints.steps()) == ({}, [9])
    with pytest.raises(UsageError) as error:
        trainer.restore("best")
    assert str(error.value) == (
        f"no best checkpoint in {tmp_path}/checkpoints: nothing was evaluated by a best_metric; "
        "choose last or one of 9"
    )


def test_a_best_metric_that_is_not_evaluated_is_refused_before_training():
    with pytest.raises(ConfigError) as error:
        quiet(rated(best_metric="scor"), TWO)
    assert str(error.value) == 'best_metric "scor" is not evaluated: choose one of score'


# ---------------------------------------------------------------------- restore


def test_restore_takes_any_checkpoint(tmp_path):
    wanted = rated(keep_checkpoints=9, checkpoint_every=2)
    quiet(wanted, ONE, tmp_path).train()
    trainer = quiet(wanted, TWO, tmp_path)
    assert trainer.checkpoints.steps() == [1, 2, 4, 6, 8, 9]
    for which, step in (("4", 4), ("best", 6), ("last", 9), ("1", 1)):
        assert trainer.restore(which) == step
        for replica in range(2):
            now = {name: each[replica] for name, each in values(trainer).items()}
            assert now["step"] == now["only/optimizer/iteration"] == step
            assert now["only/w"].tolist() == [1 - step, 2 - step, -3 - step]
    for which in ("3", "first", "-4", "²", ""):
        with pytest.raises(UsageError) as error:
            trainer.restore(which)
        assert str(error.value) == (
            f"no checkpoint {which} in {tmp_path}/checkpoints: choose last, best or one of 1, 2, 4, 6, 8, 9"
        )
    path = trainer.checkpoints.path(4)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataProblem) as error:
        trainer.restore("4")
    assert str(error.value).startswith(f"{path} ")
    assert str(error.value).endswith(": choose one of 1, 2, 6, 8, 9")


def test_restore_where_nothing_is(tmp_path):
    trainer = quiet(rated(), ONE, tmp_path)
    assert trainer.restore() == 0
    for which in ("best", "4"):
        with pytest.raises(UsageError) as error:
            trainer.restore(which)
        assert str(error.value) == (
            f"no checkpoint {which} in {tmp_path}/checkpoints: there is none at all yet"
        )


def test_everything_comes_back_on_every_replica(tmp_path):
    """Weights, slots, iterations, average, sums of metrics, counts, best and seconds, from one replica to two."""
    wanted = regression(steps=7)
    trained = quiet(wanted, ONE, tmp_path)
    trained.train()
    restored = quiet(wanted, TWO, tmp_path)
    assert restored.restore() == 7
    expected = values(trained)
    for name, each in values(restored).items():
        for value in each:
            np.testing.assert_array_equal(value, expected[name][0], err_msg=name)
    assert restored.best == trained.best != {}
    assert restored.snapshot().notes == trained.snapshot().notes


def test_a_checkpoint_of_another_model_is_refused_and_nothing_moves(tmp_path):
    quiet(regression(), ONE, tmp_path).train()
    other = quiet(experiment(Regression, points(21, dimensions=4), steps=12), ONE, tmp_path)
    before = other.snapshot().arrays
    with pytest.raises(ConfigError) as error:
        other.train()
    path = tmp_path / "checkpoints" / "step-00000012.safetensors"
    assert str(error.value) == (
        f"{path} does not fit the model: average/kernel is float64 (3, 1) there and float64 (4, 1) in the configuration; "
        "use the configuration it was made with, or another --workdir"
    )
    for name, value in other.snapshot().arrays.items():
        np.testing.assert_array_equal(value, before[name])


# ---------------------------------------------------------------------- damage


def test_a_truncated_checkpoint_is_told_and_changes_no_bit(tmp_path, undisturbed):
    """The run of 12 steps was killed after 9; its last checkpoint is cut short, so it goes on from step 6."""
    quiet(regression(steps=9), LOOPS_OF_3, tmp_path).train()
    checkpoints = tmp_path / "checkpoints"
    steps = sorted(int(path.stem.removeprefix("step-")) for path in checkpoints.iterdir())
    last = checkpoints / "step-00000009.safetensors"
    last.write_bytes(last.read_bytes()[:-20])
    notes = []
    trainer = quiet(regression(), LOOPS_OF_3, tmp_path)
    trainer._note = notes.append
    assert trainer.train() is Outcome.DONE
    assert notes[0].startswith(f"{last} is damaged (")
    assert notes[0].endswith("falling back to the checkpoint before it")
    assert notes[1:] == [f"going on from step {steps[-2]} on {trainer.cluster.describe()}"]
    assert_equal(results(tmp_path), undisturbed)


def test_nothing_whole_ends_the_run_and_changes_nothing(tmp_path):
    quiet(regression(), LOOPS_OF_3, tmp_path).train()
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    ledger = tmp_path / "events.jsonl"
    before, told = contents(tmp_path), len(events(ledger))
    with pytest.raises(DataProblem, match="is whole: restore one from a backup, or remove"):
        quiet(regression(), LOOPS_OF_3, tmp_path).train()
    ours = {
        path: content for path, content in contents(tmp_path).items() if path.name != ledger.name
    }
    assert ours == {path: content for path, content in before.items() if path.name != ledger.name}
    damaged = [event["error"] for event in events(ledger)[told:]]
    assert len(damaged) == len(list((tmp_path / "checkpoints").iterdir()))
    assert all(line.endswith("falling back to the checkpoint before it") for line in damaged)


def test_a_full_disk_ends_the_run_and_it_goes_on_later(tmp_path, monkeypatch, undisturbed):
    """The second save fails; what the first has saved is the start of the next run, which ends with the same bits."""
    write = durable.write

    def full(path, data, *check):
        if path.name == "step-00000006.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data, *check)

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write", full)
        trainer = quiet(regression(), LOOPS_OF_3, tmp_path)
        with pytest.raises(CannotCreate) as error:
            trainer.train()
    assert str(error.value) == (
        f"the checkpoint of step 6 cannot be written to {tmp_path / 'checkpoints'} (No space left on device): "
        "make room or mend it and start again; the checkpoints before it are whole"
    )
    assert trainer.checkpoints.steps() == [3]
    assert quiet(regression(), LOOPS_OF_3, tmp_path).train() is Outcome.DONE
    assert_equal(results(tmp_path), undisturbed)


# ---------------------------------------------------------------------- samples


def test_samples_are_of_the_weights_as_they_stand(tmp_path, monkeypatch):
    """Drawn every 5 steps and at the end, by the same noise: only the weights, 1 - step, differ."""
    seen = {}
    monkeypatch.setattr(
        MetricWriter, "samples", lambda self, step, decoded, classes: seen.update({step: decoded})
    )
    source = script(*[[[1, 1, 1]] * 4] * 12)
    wanted = experiment(Scripted, source, steps=12, sample_every=5, samples=2)
    trainer = quiet(wanted, ONE, tmp_path)
    noise = trainer.sample(2)[:, 0]
    trainer.train()
    assert list(seen) == [5, 10, 12]
    for step, samples in seen.items():
        np.testing.assert_array_equal(samples[:, 0], noise * (1 - step))


def test_samples_that_cannot_be_decoded_lose_nothing(tmp_path):
    def decode(samples):
        raise RuntimeError("no picture")

    source = points(21)
    source.decode = decode
    wanted = experiment(Regression, source, steps=12, sample_every=5, samples=2)
    with pytest.raises(RuntimeError, match="no picture"):
        quiet(wanted, ONE, tmp_path).train()
    again = quiet(wanted, ONE, tmp_path)
    assert again.restore() == 5


def test_initial_weights_of_keras_own_initialisers_follow_the_seed():
    class Dense(Regression):
        def build(self, noise):
            super().build(noise)
            self.networks["more"] = keras.layers.Dense(3, name="more")
            self.networks["more"].build((None, 2))

    def weights(seed):
        trainer = quiet(experiment(Dense, points(9), seed=seed), ONE)
        return trainer.snapshot().arrays["more/kernel"]

    np.testing.assert_array_equal(weights(3), weights(3))
    assert (weights(3) != weights(4)).all()


# ---------------------------------------------------------------------- for people


def test_describe_says_what_would_run(tmp_path):
    wanted = regression(global_batch=8)
    trainer = quiet(wanted, Hardware(replicas=2, microbatch=2), tmp_path / "run")
    *lines, last = trainer.describe().split("\n")
    assert lines == [
        "network: 4 weights",
        "average: 4 weights",
        "cluster: MirroredStrategy, 2 × CPU, XLA off",
        "batch: 8 examples = 2 replicas × 2 microbatch × 2 accumulation",
        "step: 8 examples, 12 steps; a pass over all 21 takes 2.6",
    ]
    assert last.startswith("first compiled step: ") and last.endswith(" seconds")
    assert not (tmp_path / "run").exists()


def test_an_optimizer_may_be_shared_by_experiments():
    """The same `Optimizer` builds two trainers in one process, whose state has the same names."""
    optimizer = Optimizer(learning_rate=0.5)
    names = [
        list(quiet(experiment(lambda spec: Regression(spec, optimizer=optimizer), points(9))).state)
        for _ in range(2)
    ]
    assert names[0] == names[1]
    assert "fit/optimizer/network_kernel_momentum" in names[0]


class Pictured(Regression):
    """Shows the first of each example's numbers beside its noise, as pictures of one pixel."""

    def sample(self, noise: Noise) -> tf.Tensor:
        return noise("x").uniform([1, 1, 1])

    def pictures(self, batch: Batch, noise: Noise) -> Mapping[str, tf.Tensor]:
        pair = [batch["x"][:, 0], noise("beside").uniform()]
        return {"pairs": tf.reshape(tf.stack(pair, 1), [-1, 2, 1, 1, 1])}


class Pixels(Table):
    def decode(self, samples: np.ndarray) -> np.ndarray:
        return np.rint(np.clip(samples, 0, 1) * 255).astype(np.uint8)


def test_of_few_held_out_examples_each_is_pictured_once():
    x = np.linspace(0, 1, 48, dtype=np.float32).reshape([16, 3])
    few = Pixels({"x": x[:3], "y": x[:3, 0]})
    source = Pixels({"x": x, "y": x[:, 0]})
    table = quiet(experiment(Pictured, source, global_batch=8, validation=few)).pictures()["pairs"]
    np.testing.assert_array_equal(table[:, 0, 0, 0, 0], np.rint(x[:3, 0] * 255))


@pytest.mark.parametrize("held_out", [True, False])
def test_pictures_of_an_objective_are_written(held_out, tmp_path):
    """Of held-out examples, else of the first that are trained on, beside the samples; the animations at the end."""
    x = np.linspace(0, 1, 48, dtype=np.float32).reshape([16, 3])
    source = Pixels({"x": x, "y": x[:, 0]})
    fields = {"steps": 2, "samples": 4, "sample_every": 1, "global_batch": 8}
    if held_out:
        fields |= {"validation": Pixels({"x": 1 - x, "y": x[:, 0]})}
    trained = quiet(experiment(Pictured, source, **fields), workdir=tmp_path)
    trained.train()
    table = trained.pictures()["pairs"]
    assert table.shape == (8, 2, 1, 1, 1)
    ids = np.arange(8) if held_out else trained.batches.ids(tf.range(8, dtype=tf.int64))
    shown = (1 - x if held_out else x)[ids, 0]
    np.testing.assert_array_equal(table[:, 0, 0, 0, 0], np.rint(shown * 255))
    assert len(set(table[:, 1].ravel())) > 4
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step-00000001-pairs.png",
        "step-00000001.png",
        "step-00000002-pairs.png",
        "step-00000002.png",
        "training-pairs.gif",
        "training.gif",
    ]
