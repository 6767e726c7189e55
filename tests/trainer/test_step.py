"""One training step: what a bad update leaves alone, statistics, the order of phases, what is refused at build."""

from __future__ import annotations

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.layers import GhostBatchNorm
from models.objective import Average, Optimizer, Phase
from tests.trainer.objectives import (
    ONE,
    SGD,
    TWO,
    Script,
    Scripted,
    Weights,
    experiment,
    quiet,
    script,
    take,
    values,
)
from trainer.exits import ConfigError, Diverged, one_line
from trainer.hardware import Hardware
from trainer.step import Step

# ---------------------------------------------------------------------- bad updates

ADAM = Optimizer(rule=functools.partial(keras.optimizers.Adam, weight_decay=0.1), clip_norm=1.0)
PLANTED = {
    "NaN in the loss": ("loss", np.nan),
    "Inf in the loss": ("loss", np.inf),
    "NaN in one gradient": ("gradient", np.nan),
    "-Inf in one gradient": ("gradient", -np.inf),
}
LAYOUTS = {
    "two": TWO,
    "two_xla": Hardware(replicas=2, xla="on"),
    "two_accumulation": Hardware(replicas=2, microbatch=2),
}


def spoilt(feature, value, *, update, row):
    """The data of 3 updates of 8 examples, good but for one number."""
    chance = np.random.default_rng(0)
    rows = {name: chance.normal(size=[24, width]) for name, width in (("gradient", 3), ("x", 2))}
    rows["loss"] = chance.normal(size=24)
    rows[feature].reshape([24, -1])[update * 8 + row, 0] = value
    return rows


@pytest.mark.parametrize(
    ("planted", "layout"),
    [
        *((planted, "two") for planted in PLANTED),
        ("NaN in one gradient", "two_xla"),
        ("Inf in the loss", "two_accumulation"),
    ],
)
def test_a_bad_update_moves_nothing_on_any_replica(planted, layout):
    """One number of one example of the second replica, at step 1: all of that update is left out, and the step moves on."""
    rows = spoilt(*PLANTED[planted], update=1, row=6)
    objective = functools.partial(Scripted, optimizer=ADAM, average_decay=0.9)
    wanted = experiment(objective, Script(rows), steps=4, log_every=4, global_batch=8)
    trainer = quiet(wanted, LAYOUTS[layout])
    seen = take(trainer, 3)
    alike = {"only/w", "average/w", "norm/moving_mean", "norm/moving_variance"}
    alike |= {name for name in seen[0] if "optimizer/" in name} | {"only/metric_sums"}
    assert len(alike) == 9  # Two slots, iterations and Keras' own learning rate.
    assert seen[0].keys() - alike == {"step", "norm/gamma", "norm/beta", "only/bad_updates"}
    for name in alike:
        for before, after in zip(seen[1][name], seen[2][name], strict=True):
            np.testing.assert_array_equal(before, after, err_msg=name)
    moved = [name for name in alike if (seen[2][name][0] != seen[3][name][0]).any()]
    assert alike - {*moved} == {"only/optimizer/learning_rate"}
    for replica in range(2):
        assert [after["step"][replica] for after in seen] == [0, 1, 2, 3]
        bad = [after["only/bad_updates"][replica].tolist() for after in seen]
        assert bad == [[0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1]]
        assert seen[3]["only/optimizer/iteration"][replica] == 2


def test_a_gradient_that_one_replica_gets_wrong_is_skipped_by_all(monkeypatch):
    """Of good examples: the second replica computes NaN at step 1. The others' weights must not move either."""
    original = Step._phase_gradients

    def wrong(self, phase, metrics, statistics, batch, first, step, *args):
        gradients, *rest = original(self, phase, metrics, statistics, batch, first, step, *args)
        here = (first == 2) & (step == 1)
        spoilt = [tf.where(here, tf.constant(np.nan, g.dtype), g) for g in gradients]
        return spoilt, *rest

    monkeypatch.setattr(Step, "_phase_gradients", wrong)
    seen = take(quiet(experiment(Scripted, script(*[[[1, 0, 2]] * 4] * 4), steps=4), TWO), 3)
    for replica in range(2):
        weights = [after["only/w"][replica].tolist() for after in seen]
        assert weights == [[1, 2, -3], [0, 2, -5], [0, 2, -5], [-1, 2, -7]]
        assert seen[3]["only/bad_updates"][replica].tolist() == [0, 0, 1]


def test_metrics_leave_a_bad_update_out(tmp_path):
    """The mean over updates 0 and 2; a window of bad updates alone is null; all are counted."""
    losses = np.arange(24.0).reshape([6, 4])
    losses[1, 3], losses[3:5, 2] = np.nan, -np.inf
    source = script(*[[[3, 0, 4]] * 4] * 6, losses=losses)
    wanted = experiment(Scripted, source, steps=6, log_every=3, max_bad_updates=4)
    quiet(wanted, TWO, tmp_path / "a").train()
    first, second = rows(tmp_path / "a")
    assert first["train/loss"] == (losses[0].mean() + losses[2].mean()) / 2
    assert (first["train/gradient_norm"], first["train/learning_rate"]) == (5.0, 1.0)
    assert first["train/skipped_updates"] == 1.0
    assert (second["train/loss"], second["train/skipped_updates"]) == (losses[5].mean(), 3.0)
    losses[:3] = np.nan
    source = script(*[[[3, 0, 4]] * 4] * 6, losses=losses)
    wanted = experiment(Scripted, source, steps=3, log_every=3, max_bad_updates=4)
    quiet(wanted, TWO, tmp_path / "b").train()
    (row,) = rows(tmp_path / "b")
    assert (row["train/loss"], row["train/gradient_norm"]) == (None, None)
    assert row["train/skipped_updates"] == 3.0


def rows(workdir):
    return [json.loads(line)["metrics"] for line in (workdir / "metrics.jsonl").open()]


def test_bad_updates_in_a_row_are_counted_for_each_phase():
    """Phase "first" makes two updates a step and "second" one; (in a row, first of them, in all) by hand."""
    bad = {
        # step: (first's updates, second's)
        0: ((0, 0), 0),
        1: ((0, 1), 0),
        2: ((1, 0), 1),
        3: ((0, 1), 1),
        4: ((1, 1), 0),
    }
    expected = [
        ([0, 0, 0], [0, 0, 0]),
        ([1, 1, 1], [0, 0, 0]),
        ([0, 0, 2], [1, 2, 1]),
        ([1, 3, 3], [2, 2, 2]),
        ([3, 3, 5], [0, 0, 2]),
    ]
    flags = np.array([[*first, second] for first, second in bad.values()]).ravel()
    losses = np.where(flags[:, np.newaxis] * [0, 0, 0, 1], np.nan, 1.0)
    source = script(*[[[1, 1, 1]] * 4] * 15, losses=losses)
    objective = functools.partial(Scripted, phases=("first", "second"), updates=2)
    seen = take(quiet(experiment(objective, source, steps=6), TWO), 5)
    for step, (first, second) in enumerate(expected):
        for replica in range(2):
            assert seen[step + 1]["first/bad_updates"][replica].tolist() == first, step
            assert seen[step + 1]["second/bad_updates"][replica].tolist() == second, step
    # Each good update moved its weight by 1.
    assert seen[5]["first/w"][0].tolist() == [1 - 5, 2 - 5, -3 - 5]
    assert seen[5]["second/w"][0].tolist() == [1 - 3, 2 - 3, -3 - 3]


@pytest.mark.parametrize("hardware", [ONE, TWO], ids=["one", "two"])
def test_too_many_bad_updates_end_the_run_though_good_ones_follow(hardware, tmp_path):
    """Updates 7, 8, 9 are bad, 10 and 11 good, within one loop of 6 steps: what was saved at step 6 stays."""
    losses = np.ones([12, 4])
    losses[7:10, 1] = np.nan
    losses[1, 0] = np.inf
    objective = functools.partial(Scripted, phases=("fine", "spoilt"))
    # Positions: "fine" reads the even global batches, "spoilt" the odd ones.
    both = np.ones([24, 4])
    both[1::2] = losses
    source = script(*[[[1, 1, 1]] * 4] * 24, losses=both)
    wanted = experiment(
        objective, source, steps=12, log_every=12, checkpoint_every=6, max_bad_updates=3
    )
    trainer = quiet(wanted, hardware, tmp_path)
    with pytest.raises(Diverged) as error:
        trainer.train()
    assert str(error.value) == (
        "phase spoilt diverged: 3 updates in a row from step 7 on had a loss or gradient that is not finite; "
        "lower the learning rate or set Optimizer.clip_norm"
    )
    assert error.value.code == 70
    assert trainer.checkpoints.steps() == [6]
    assert not (tmp_path / "DONE").exists()
    again = quiet(wanted, hardware, tmp_path)
    assert again.restore() == 6
    assert values(again)["spoilt/w"][0].tolist() == [1 - 5, 2 - 5, -3 - 5]
    assert values(again)["spoilt/bad_updates"][0].tolist() == [0, 0, 1]


def test_two_in_a_row_are_not_three(tmp_path):
    """Good updates between: 1, 2 and 4, 5 and 7 are bad and the run goes on to the end."""
    losses = np.ones([9, 4])
    losses[[1, 2, 4, 5, 7], 0] = np.nan
    source = script(*[[[1, 1, 1]] * 4] * 9, losses=losses)
    wanted = experiment(Scripted, source, steps=9, log_every=9, max_bad_updates=3)
    trainer = quiet(wanted, TWO, tmp_path)
    trainer.train()
    assert values(trainer)["only/bad_updates"][0].tolist() == [0, 0, 5]
    assert values(trainer)["only/w"][1].tolist() == [1 - 4, 2 - 4, -3 - 4]


# ---------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    "hardware",
    [ONE, TWO, Hardware(strategy="one_device", microbatch=4), Hardware(replicas=2, microbatch=2)],
    ids=["one", "two", "accumulation", "two_accumulation"],
)
def test_moving_averages_are_the_mean_over_all_groups(hardware):
    """Ghost batch norm over 4 groups of 2 examples, after one and two updates, in NumPy."""
    x = np.random.default_rng(5).normal(
        2.0, 3.0, size=[2, 4, 2, 2]
    )  # [updates, groups, group, channels]
    source = script(*[[[1, 1, 1]] * 8] * 2, x=x.reshape([16, 2]))
    objective = functools.partial(Scripted, group=2, momentum=0.75)
    seen = take(quiet(experiment(objective, source, steps=3, global_batch=8), hardware), 2)
    mean, variance = np.zeros(2), np.ones(2)
    for update in range(2):
        mean = 0.75 * mean + 0.25 * x[update].mean(1).mean(0)
        variance = 0.75 * variance + 0.25 * x[update].var(1).mean(0)
        for ours in seen[update + 1]["norm/moving_mean"]:
            np.testing.assert_allclose(ours, mean, rtol=1e-13)
        for ours in seen[update + 1]["norm/moving_variance"]:
            np.testing.assert_allclose(ours, variance, rtol=1e-13)
    # The two phases of a step see the statistics that the phase before has left.
    both = functools.partial(objective, phases=("first", "second"))
    seen = take(quiet(experiment(both, source, steps=2, global_batch=8), hardware), 1)
    np.testing.assert_allclose(seen[1]["norm/moving_mean"][0], mean, rtol=1e-13)


def test_a_layer_called_twice_moves_twice():
    """Once a call, one after the other: 1 - 0.75² of the way from 0 to the mean."""

    class Twice(Scripted):
        def _loss(self, network):
            once = super()._loss(network)

            def loss(batch, noise, step):
                self._norm(batch["x"], training=True)
                return once(batch, noise, step)

            return loss

    x = np.arange(8.0).reshape([4, 2])
    objective = functools.partial(Twice, group=2, momentum=0.75)
    trainer = quiet(experiment(objective, script([[1, 1, 1]] * 4, x=x), steps=2), TWO)
    _, after = take(trainer, 1)
    for mean in after["norm/moving_mean"]:
        np.testing.assert_allclose(mean, (1 - 0.75**2) * x.mean(0), rtol=1e-14)


# ---------------------------------------------------------------------- metrics of any kind


@pytest.mark.parametrize("hardware", [ONE, Hardware(replicas=2, microbatch=1)], ids=["one", "many"])
def test_metrics_may_be_truths_whole_numbers_and_of_any_precision(hardware, tmp_path):
    class Various(Scripted):
        def _loss(self, network):
            plain = super()._loss(network)

            def loss(batch, noise, step):
                value, _ = plain(batch, noise, step)
                metrics = {
                    "positive": value > 0,
                    "whole": tf.cast(value, tf.int32),
                    "half": tf.cast(value, tf.float16),
                }
                return tf.cast(value, tf.float32), metrics

            return loss

    source = script([[1, 1, 1]] * 4, losses=[1.0, -2.0, 3.0, 4.0])
    quiet(experiment(Various, source), hardware, tmp_path).train()
    (row,) = rows(tmp_path)
    assert {name: row[f"train/{name}"] for name in ("loss", "positive", "whole", "half")} == {
        "loss": 1.5,
        "positive": 0.75,
        "whole": 1.5,
        "half": 1.5,
    }


# ---------------------------------------------------------------------- refused at build


class Broken(Scripted):
    """A right objective, to be spoilt: `spoil` is given it when it is built."""

    def __init__(self, spec, spoil, **fields):
        super().__init__(spec, **fields)
        self._spoil = spoil

    def build(self, noise):
        super().build(noise)
        self._spoil(self)


def changed(phase, **fields):
    return dataclasses.replace(phase, **fields)


def metric_of(make):
    def spoil(objective):
        phase = objective.phases[0]

        def loss(batch, noise, step):
            value, _ = phase.loss(batch, noise, step)
            return value, {"odd": make(value)}

        objective.phases = [changed(phase, loss=loss)]

    return spoil


def loss_of(make):
    def spoil(objective):
        phase = objective.phases[0]
        objective.phases = [
            changed(phase, loss=lambda *args: (make(phase.loss(*args)[0]), {})),
        ]

    return spoil


def candidate():
    """What a sampled softmax draws."""
    zero = tf.zeros([1, 1], tf.int64)
    return tf.random.log_uniform_candidate_sampler(zero, 1, 1, True, 5).sampled_candidates[0]


def does_not_read(objective):
    objective.phases = [changed(objective.phases[0], reads=False)]


def no_phases(objective):
    objective.phases = []


def two_of_a_name(objective):
    objective.phases = [*objective.phases, *objective.phases]


def reuses_often(objective):
    first = objective.phases[0]
    objective.phases = [first, changed(first, name="second", reads=False, updates=2)]


def stray_variable(objective):
    stray = Weights([1.0, 1.0, 1.0], "stray")
    phase = objective.phases[0]
    objective.phases = [changed(phase, variables=[*phase.variables, stray.w])]


def stray_average(objective):
    phase = objective.phases[0]
    average = Average(source=objective.networks["only"], copy=Weights([1, 1, 1], "copy"), decay=0.5)
    objective.phases = [changed(phase, average=average)]


def stray_statistics(objective):
    norm, phase = GhostBatchNorm(1, "stray"), objective.phases[0]
    norm.build((None, 3))

    def loss(batch, noise, step):
        norm(batch["gradient"], training=True)
        return phase.loss(batch, noise, step)

    objective.phases = [changed(phase, loss=loss)]


def same_names(objective):
    class Pair(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="pair")
            self.parts = [Weights([0.0], "part"), Weights([1.0], "part")]

    objective.networks["pair"] = Pair()


def of_keras(objective):
    objective.networks["norm"] = keras.layers.BatchNormalization(name="norm")
    objective.networks["norm"].build((None, 3))


BROKEN = {
    "Keras' batch norm": (
        of_keras,
        "norm is Keras' BatchNormalization, whose statistics depend on the number of replicas: use "
        "models.layers.GhostBatchNorm",
    ),
    "TensorFlow's random numbers": (
        loss_of(lambda loss: loss + tf.random.normal(loss.shape, dtype=loss.dtype)),
        "the loss of phase only draws by TensorFlow's RandomStandardNormal, whose numbers depend on the layout: "
        "draw from `noise` instead",
    ),
    "candidates of TensorFlow's": (
        loss_of(lambda loss: loss + tf.cast(candidate(), loss.dtype)),
        "the loss of phase only draws by TensorFlow's LogUniformCandidateSampler, whose numbers depend on the layout: "
        "draw from `noise` instead",
    ),
    "random numbers within a condition": (
        loss_of(
            lambda loss: tf.cond(
                loss[0] > 0, lambda: tf.random.uniform(loss.shape, dtype=loss.dtype), lambda: loss
            )
        ),
        "the loss of phase only draws by TensorFlow's RandomUniform, whose numbers depend on the layout: "
        "draw from `noise` instead",
    ),
    "a metric that is one number": (
        metric_of(tf.reduce_mean),
        "odd of phase only has shape (): expected one number an example, [4]",
    ),
    "a metric with an axis too many": (
        metric_of(lambda loss: loss[:, tf.newaxis]),
        "odd of phase only has shape (4, 1): expected one number an example, [4]",
    ),
    "a loss that is one number": (
        loss_of(tf.reduce_mean),
        "loss of phase only has shape (): expected one number an example, [4]",
    ),
    "the first phase does not read": (
        does_not_read,
        "the first phase of a step must read examples",
    ),
    "no phases": (no_phases, "the first phase of a step must read examples"),
    "two phases of one name": (
        two_of_a_name,
        "two phases are named only: give each its own name, by which its noise and its state go",
    ),
    "a phase reuses examples twice": (
        reuses_often,
        "phase second makes 2 updates on the same examples: one that does not read makes 1",
    ),
    "a variable of no network": (
        stray_variable,
        "phase only moves stray/w, which belongs to none of the objective's networks: no checkpoint would hold it",
    ),
    "an average of no network": (
        stray_average,
        "phase only moves copy/w, which belongs to none of the objective's networks: no checkpoint would hold it",
    ),
    "statistics of no network": (
        stray_statistics,
        "the loss of phase only assigns to a variable that belongs to none of the objective's networks: "
        "no checkpoint would hold it",
    ),
    "two variables of one name": (
        same_names,
        "two variables are named pair/part/w: give each layer its own name, by which checkpoints keep it",
    ),
}


@pytest.mark.parametrize("hardware", [ONE, Hardware(replicas=2, microbatch=1)], ids=["one", "two"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_objective_is_refused_in_one_line(name, hardware):
    spoil, line = BROKEN[name]
    if hardware is not ONE:
        line = line.replace("[4]", "[1]").replace("(4, 1)", "(1, 1)")
    source = script([[1, 1, 1]] * 4)
    with pytest.raises(ConfigError) as error:
        quiet(experiment(functools.partial(Broken, spoil=spoil), source), hardware)
    assert str(error.value) == line


@pytest.mark.parametrize("hardware", [ONE, Hardware(replicas=2, microbatch=1)], ids=["one", "two"])
def test_a_variable_without_influence_is_named(hardware):
    def spoil(objective):
        objective.networks["idle"] = Weights([1.0], "idle")
        phase = objective.phases[0]
        objective.phases = [
            Phase(
                name="only",
                variables=[*phase.variables, objective.networks["idle"].w],
                loss=phase.loss,
                optimizer=SGD,
            )
        ]

    source = script([[1, 1, 1]] * 4)
    with pytest.raises(ConfigError) as error:
        quiet(experiment(functools.partial(Broken, spoil=spoil), source), hardware).train()
    assert str(error.value) == "phase only moves idle/w, but its loss does not depend on it"


def test_what_a_layer_says_stays_one_line():
    """Keras adds a heading, bold letters and the layer's arguments to it."""
    source = script([[1, 1, 1]] * 6, x=np.zeros([6, 2]))
    with pytest.raises(ValueError) as error:
        quiet(experiment(functools.partial(Scripted, group=4), source, global_batch=6))
    assert len(str(error.value).splitlines()) > 5
    assert one_line(error.value) == (
        '"norm" normalises groups of 4 examples, which does not divide the batch of 6; '
        "choose a group that divides the batch of a replica and the microbatch"
    )
