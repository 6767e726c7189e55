"""Loss spikes: the run goes back and leaves out the examples, the same ones whatever else happens to it."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import tensorflow as tf

from tests.contract.runs import assert_equal, results
from tests.trainer.objectives import ONE, TWO, Scripted, experiment, quiet, script, values
from trainer.exits import ConfigError, Diverged
from trainer.hardware import Hardware
from trainer.rollback import LossSpike, RollBack, SpikeWatch
from trainer.trainer import Outcome

# ---------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("value", "before", "spike"),
    [
        # Mean 2, standard deviation 1: three of it above is 5.
        (5.0, [1.0, 3.0, 1.0, 3.0], False),
        (5.001, [1.0, 3.0, 1.0, 3.0], True),
        (-50.0, [1.0, 3.0, 1.0, 3.0], False),
        (math.inf, [1.0, 3.0, 1.0, 3.0], True),
        (math.nan, [1.0, 3.0, 1.0, 3.0], False),  # Every update of the row was skipped: that is counted elsewhere.
        (99.0, [1.0, 3.0, 1.0], False),  # Too few to judge by.
        (-0.9, [-2.0, -2.0, -1.0, -1.0], False),
        (0.1, [-2.0, -2.0, -1.0, -1.0], True),
    ],
)  # fmt: skip
def test_a_spike_is_far_above_the_rows_before(value, before, spike):
    rule = LossSpike(deviations=3.0, rows=4)
    assert bool(rule.describe(value, before)) == spike


def test_what_is_said_of_a_spike():
    assert LossSpike(rows=2).describe(9.0, [1.0, 2.0]) == (
        "train/loss is 9, and was 1.5 ± 0.5 in the 2 rows before"
    )


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"deviations": 0.0}, "LossSpike.deviations is 0.0: it must be above 0"),
        ({"deviations": math.nan}, "LossSpike.deviations is nan: it must be above 0"),
        ({"rows": 1}, "LossSpike.rows is 1: it must be at least 2"),
        ({"max_rollbacks": -1}, "LossSpike.max_rollbacks is -1: it must be at least 0"),
    ],
)
def test_a_wrong_rule_is_one_line(fields, line):
    with pytest.raises(ValueError) as error:
        LossSpike(**fields)
    assert str(error.value) == line


def watch(*happened, log_every, checkpoint_every):
    """A watch to which rows and saves of these steps happened, all good."""
    watch = SpikeWatch(LossSpike(rows=2), log_every=log_every, checkpoint_every=checkpoint_every)
    for kind, step in happened:
        if kind == "save":
            watch.saving(step, None)
        else:
            assert watch.see(step, {"train/loss": 1.0}) is None
    return watch


@pytest.mark.parametrize(
    ("log_every", "checkpoint_every", "happened", "found", "to", "shift"),
    [
        (2, 4, [("row", 2), ("row", 4), ("save", 4), ("row", 6)], 8, 4, 4),
        # The checkpoint of step 6 is of the window of the spike's row, steps 4 … 7.
        (4, 6, [("row", 4), ("save", 6)], 8, 0, 8),
        (4, 6, [("row", 4), ("save", 6), ("row", 8)], 12, 6, 6),
        # Saves between, of a best or before the run was preempted, count not.
        (4, 4, [("row", 4), ("save", 4), ("save", 5), ("save", 7)], 8, 4, 4),
        # Bad updates in a row are found at the end of a loop: the examples up to the next row are left out.
        (4, 4, [("row", 4), ("save", 4)], 5, 4, 4),
        (10, 2, [("save", 2), ("save", 8), ("row", 10), ("save", 10), ("save", 12)], 20, 10, 10),
    ],
)  # fmt: skip
def test_where_it_goes_back_to(log_every, checkpoint_every, happened, found, to, shift):
    one = watch(*happened, log_every=log_every, checkpoint_every=checkpoint_every)
    assert to in one.saving(found - 1 if (found - 1) % checkpoint_every else found + 1, None)
    with pytest.raises(RollBack) as back:
        one.back(found, "a spike")
    assert (back.value.to, back.value.step, back.value.reason, one.shift) == (
        to,
        found,
        "a spike",
        shift,
    )


def test_what_a_checkpoint_knows_comes_back():
    one = watch(("row", 2), ("row", 4), ("save", 4), ("row", 6), log_every=2, checkpoint_every=4)
    at_6 = json.loads(json.dumps(one.notes()))
    with pytest.raises(RollBack):
        one.back(8, "a spike")
    other = watch(log_every=2, checkpoint_every=4)
    other.restore(at_6)
    other.carry_over(one.notes())
    assert other.notes() == one.notes() and other.shift == 4


def test_a_checkpoint_it_went_back_to_stays_the_one_to_go_back_to():
    """When that of step 6 was saved it was not known that its window is good: the row of step 8 told."""
    one = watch(("row", 4), ("save", 6), log_every=4, checkpoint_every=6)
    at_6 = one.notes()
    assert one.see(8, {"train/loss": 1.0}) is None
    with pytest.raises(RollBack):
        one.back(12, "a spike")
    later = one.notes()
    one.restore(at_6)
    one.carry_over(later)
    assert one.saving(7, None) == {6} and one.shift == 6
    with pytest.raises(RollBack) as back:
        one.back(8, "another")
    assert back.value.to == 6 and one.shift == 8


# ---------------------------------------------------------------------- a run

SPIKE = 9
"""The step whose examples have a loss of 100; the others' are about 1."""


def gradients():
    """Of the examples of 40 steps, which tell them: w = w₀ - Σ gradients."""
    return np.random.default_rng(1).normal(size=[40, 1, 3]).repeat(4, 1)


def spiking(losses=None, **fields):
    """16 steps, a row every 2 and a checkpoint every 4, of which one is kept."""
    if losses is None:
        losses = np.random.default_rng(2).normal(1, 0.1, size=[40, 4])
        losses[SPIKE] = 100
    usual = {"steps": 16, "log_every": 2, "checkpoint_every": 4, "keep_checkpoints": 1}
    usual |= {"rollback": LossSpike(rows=3, max_rollbacks=2), "max_bad_updates": 3}
    return experiment(Scripted, script(*gradients(), losses=losses), **(usual | fields))


def events(workdir, kind):
    found = [json.loads(line) for line in (workdir / "events.jsonl").open()]
    return [event for event in found if event["event"] == kind]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that spiked once, and nothing else happened to; and its workdir."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert quiet(spiking(), ONE, workdir).train() is Outcome.DONE
    return results(workdir), workdir


def test_a_spike_goes_back_and_leaves_out_its_examples(undisturbed):
    """Row 10 spikes: back to step 8, which takes the examples of step 10; the rows are of what was kept."""
    run, workdir = undisturbed
    taken = [*range(8), *range(10, 18)]
    np.testing.assert_allclose(
        run.weights["only/w"], [1, 2, -3] - gradients()[taken, 0].sum(0), rtol=1e-13
    )
    assert [step for step, _, _ in run.rows] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert max(metrics["train/loss"] for _, _, metrics in run.rows) < 1.5
    (rollback,) = events(workdir, "rollback")
    assert (rollback["step"], rollback["to"]) == (10, 8)
    assert (
        rollback["reason"].startswith("train/loss is 50.")
        and "in the 3 rows before" in rollback["reason"]
    )


class Killed(BaseException):
    """As a kill leaves the run."""


def interrupted(workdir, hardware, kills=(), stops=()):
    """Runs until it ends, killed when it first is at these steps after so many rollbacks, or preempted there: (rollbacks, step)."""
    todo = {moment: "kill" for moment in kills} | {moment: "stop" for moment in stops}
    while True:
        trainer = quiet(spiking(), hardware, workdir)
        run_steps = trainer._run_steps
        stop = {"set": False}
        trainer.cluster.__dict__["any_worker"] = lambda *flags, stop=stop: (
            flags if len(flags) > 1 else (stop["set"],)
        )

        def run(data, count, trainer=trainer, run_steps=run_steps, stop=stop):
            here = (trainer._guard.spikes.shift // 2, int(trainer.step.number.numpy()))
            if todo.get(here) == "kill":
                del todo[here]
                raise Killed
            times = run_steps(data, count)
            here = (trainer._guard.spikes.shift // 2, int(trainer.step.number.numpy()))
            stop["set"] = todo.get(here) == "stop"
            if stop["set"]:
                del todo[here]
            return times

        trainer.__dict__["_run_steps"] = run
        try:
            if trainer.train() is Outcome.DONE:
                assert not todo
                return
        except Killed:
            continue


def test_a_flip_after_it_went_back_and_before_the_next_save(tmp_path, undisturbed):
    """It goes back to the same checkpoint twice: as one that was killed there, it finds the spike again."""
    quiet(spiking(), TWO, tmp_path / "good").train()
    trainer = quiet(spiking(), TWO, tmp_path / "flipped")
    data, starts = trainer.data, []

    def flipped(step):
        starts.append(step)
        if len(starts) == 2:
            weight = trainer.strategy.experimental_local_results(trainer.state["only/w"])[1]
            weight.assign(weight * 2)
        return data(step)

    trainer.data = flipped
    assert trainer.train() is Outcome.DONE
    assert starts == [0, 8, 8, 8]
    assert_equal(results(tmp_path / "flipped"), results(tmp_path / "good"))
    assert [e["step"] for e in events(tmp_path / "flipped", "rollback")] == [10, 12, 10]


LOOPS_OF_1 = Hardware(strategy="one_device", steps_per_loop=1)


@pytest.mark.parametrize(
    ("kills", "stops"),
    [
        # Right after it went back, before anything is saved.
        ([(1, 8)], []),
        # Also before it, in the same window.
        ([(0, 9), (1, 9)], []),
        # A checkpoint between the one to go back to and the spike, which prunes what is not needed; then killed.
        ([(1, 10)], [(0, 9)]),
        ([(0, 9)], [(0, 3), (0, 7), (1, 9), (1, 13)]),
    ],
)
def test_kills_and_preemptions_change_no_bit(kills, stops, tmp_path, undisturbed):
    interrupted(tmp_path, LOOPS_OF_1, kills, stops)
    assert_equal(results(tmp_path), undisturbed[0])


def test_other_layouts_and_loops_leave_out_the_same(tmp_path, undisturbed):
    run, _ = undisturbed
    quiet(spiking(), TWO, tmp_path).train()
    two = results(tmp_path)
    np.testing.assert_allclose(two.weights["only/w"], run.weights["only/w"], rtol=1e-13)
    assert [row[:2] for row in two.rows] == [row[:2] for row in run.rows]


@pytest.mark.parametrize("steps_per_loop", [1, 20])
def test_bad_updates_in_a_row_go_back_too(steps_per_loop, tmp_path):
    """Steps 8, 9 and 10 are bad, which a loop of one step sees at step 11 and any other at 12: both leave out 8 … 11."""
    losses = np.ones([40, 4])
    losses[8:11, 1] = np.nan
    hardware = Hardware(strategy="one_device", steps_per_loop=steps_per_loop)
    trainer = quiet(spiking(losses), hardware, tmp_path)
    assert trainer.train() is Outcome.DONE
    taken = [*range(8), *range(12, 20)]
    np.testing.assert_allclose(
        values(trainer)["only/w"][0], [1, 2, -3] - gradients()[taken, 0].sum(0), rtol=1e-13
    )
    assert values(trainer)["only/bad_updates"][0].tolist() == [0, 0, 0]
    (rollback,) = events(tmp_path, "rollback")
    assert rollback["to"] == 8 and rollback["reason"].startswith(
        "phase only diverged: 3 updates in a row"
    )


def test_more_spikes_than_the_budget_end_the_run(tmp_path):
    """Also when it is started again: what it went back before is counted in the checkpoints."""
    losses = np.random.default_rng(2).normal(1, 0.1, size=[40, 4])
    losses[9:] = 100
    for _ in range(2):
        with pytest.raises(Diverged) as error:
            quiet(spiking(losses), ONE, tmp_path).train()
        assert str(error.value).startswith("step 10: train/loss is 100, and was ")
        assert str(error.value).endswith(
            " in the 3 rows before, after 2 rollbacks (LossSpike.max_rollbacks): lower the learning rate, or set "
            "Optimizer.clip_norm"
        )
    assert [(e["step"], e["to"]) for e in events(tmp_path, "rollback")] == [(10, 8)] * 4


def test_the_best_of_before_is_still_there(tmp_path):
    """A best evaluation of what is given up does not push out the one before it."""

    class Rated(Scripted):
        def evaluate(self, batch, noise, step):
            scores = tf.constant([9.0] * 5 + [5.0, 9.0, 9.0, 9.0, 3.0] + [9.0] * 9, tf.float64)
            return {"score": tf.gather(scores, step) + 0 * batch["loss"]}

    # It is better at step 9 only in the first try: the second takes loops that evaluate 9 as well, so it is found again.
    wanted = spiking(best_metric="score", evaluate_every=1, validation=script([[1, 1, 1]] * 3))
    wanted = experiment(
        Rated, wanted.source, **{n: getattr(wanted, n) for n in ("steps", "log_every", "checkpoint_every", "keep_checkpoints", "rollback", "best_metric", "evaluate_every", "validation")}
    )  # fmt: skip
    trainer, seen = quiet(wanted, ONE, tmp_path), []
    data = trainer.data

    def watched(step):
        seen.append((step, trainer.checkpoints.steps(), dict(trainer.best)))
        return data(step)

    trainer.data = watched
    trainer.train()
    assert seen[1] == (8, [5, 8], {"step": 5, "value": 5.0})
    assert trainer.best == {"step": 9, "value": 3.0}
    assert trainer.checkpoints.steps() == [9, 16]


def test_a_metric_that_no_row_has_is_refused():
    with pytest.raises(ConfigError) as error:
        quiet(spiking(rollback=LossSpike(metric="loss")))
    assert str(error.value) == (
        'LossSpike.metric is "loss", which no row has: choose one of train/loss, train/gradient_norm, train/learning_rate'
    )


def test_without_a_workdir_there_is_nothing_to_go_back_to():
    with pytest.raises(ConfigError, match="goes back to checkpoints: give a workdir"):
        quiet(spiking()).train()


def test_skips_are_recorded_when_the_host_looks(tmp_path, monkeypatch):
    """With their phase and number, once each: a restart does not tell them again."""
    monkeypatch.setattr("trainer.trainer.LONG", math.inf)
    losses = np.ones([24, 4])
    losses[[2, 4, 6, 17], 2] = np.nan  # Even ones are read by "first".
    objective = functools.partial(Scripted, phases=("first", "second"))
    source = script(*[[[1, 1, 1]] * 4] * 24, losses=losses)
    for steps in (6, 12):
        wanted = experiment(objective, source, steps=steps, log_every=3, checkpoint_every=3)
        trainer = quiet(wanted, TWO, tmp_path)
        trainer._pace.steps = 3
        trainer.train()
    told = [(e["step"], e["phase"], e["updates"]) for e in events(tmp_path, "skip")]
    assert told == [(3, "first", 2), (6, "first", 1), (9, "second", 1)]
