"""Means over validation examples: exact, whatever the number of replicas, though the last batch is not full."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import DataError
from tests.trainer.objectives import FOUR, ONE, TWO, Scripted, Table, experiment, quiet, script
from trainer.exits import ConfigError
from trainer.hardware import Hardware
from trainer.trainer import Trainer

LAYOUTS = {
    "one": ONE,
    "two": TWO,
    "four": FOUR,
    "two_accumulation": Hardware(replicas=2, microbatch=1),
    "two_xla": Hardware(replicas=2, xla="on"),
}


def training():
    return script([[1, 1, 1]] * 4)


class Judged(Scripted):
    """Metrics of numbers in the data, of noise, of truths; NaN and infinity where there is no example."""

    def __init__(self, spec, count):
        super().__init__(spec)
        self._count = count

    def evaluate(self, batch, noise, step):
        number = noise.first + tf.range(noise.rows, dtype=tf.int64)
        outside = tf.where(number < self._count, tf.constant(0.0, noise.dtype), np.nan)
        return {
            "value": batch["loss"] + outside,
            "even": batch["number"] % 2 == 0,
            "huge": tf.where(number < self._count, batch["loss"] * 0, np.inf),
            "noise": tf.cast(noise("bits").bits() % 1024, noise.dtype),
            "weight": tf.reduce_sum(self.networks["only"].w) * tf.ones_like(batch["loss"]),
            "step": step * tf.ones_like(batch["number"]),
        }


@pytest.fixture(scope="module")
def evaluated():
    """What one device finds, by the number of examples."""

    @functools.cache
    def run(count):
        return evaluate(count, ONE)

    return run


def evaluate(count, hardware):
    # Whole numbers, whose sums are exact in any order.
    values = np.random.default_rng(count).integers(-1000, 1000, count).astype(np.float64)
    rows = {"loss": values, "number": np.arange(count), "gradient": np.zeros([count, 3])}
    wanted = experiment(
        functools.partial(Judged, count=count), training(), validation=Table(rows), steps=3
    )
    trainer = quiet(wanted, hardware)
    found = trainer.evaluate()
    assert trainer.evaluate() == found  # The noise of an evaluation is always the same.
    assert found["value"] == values.mean()
    assert found["even"] == (count + 1) // 2 / count
    assert (found["huge"], found["weight"], found["step"]) == (0.0, 0.0, 0.0)
    return found


@pytest.mark.parametrize(
    ("count", "layout"),
    [(7, layout) for layout in LAYOUTS] + [(1, "two"), (1, "four"), (8, "four")],
)
def test_means_are_exact_and_padding_does_not_count(count, layout, evaluated):
    assert evaluate(count, LAYOUTS[layout]) == evaluated(count)
    assert 0 < evaluated(count)["noise"] < 1024


def test_a_value_that_is_not_finite_is_told():
    """It belongs to a real example, so the mean is NaN."""
    rows = {"loss": [1.0, np.nan, 2.0], "gradient": np.zeros([3, 3])}
    found = quiet(experiment(Scripted, training(), validation=Table(rows))).evaluate()
    assert np.isnan(found["loss"])


def test_weights_and_step_are_those_of_now():
    """After two updates of -1 each, the three weights 1, 2, -3 have become -1, 0, -5."""
    rows = {"loss": np.ones(3), "number": np.arange(3), "gradient": np.zeros([3, 3])}
    source = script(*[[[1, 1, 1]] * 4] * 3)
    wanted = experiment(functools.partial(Judged, count=3), source, validation=Table(rows), steps=3)
    trainer = quiet(wanted, TWO)
    assert trainer.evaluate()["weight"] == 0.0
    trainer.run(trainer.data(0), 0, until=2)
    found = trainer.evaluate()
    assert (found["weight"], found["step"]) == (-6.0, 2.0)


@pytest.mark.parametrize(
    ("metric", "shape"),
    [(lambda loss: tf.reduce_mean(loss), "()"), (lambda loss: loss[:, tf.newaxis], "(4, 1)")],
    ids=["one number", "an axis too many"],
)
def test_a_metric_that_is_not_one_number_an_example_is_refused(metric, shape):
    class Odd(Scripted):
        def evaluate(self, batch, noise, step):
            return {"odd": metric(batch["loss"])}

    rows = {"loss": np.ones(5), "gradient": np.zeros([5, 3])}
    with pytest.raises(ConfigError) as error:
        quiet(experiment(Odd, training(), validation=Table(rows))).evaluate()
    assert str(error.value) == (
        f"evaluation metric odd has shape {shape}: expected one number an example, [4]"
    )


def test_nothing_to_evaluate_is_one_line():
    with pytest.raises(ConfigError) as error:
        quiet(experiment(Scripted, training())).evaluate()
    assert (
        str(error.value)
        == "there are no validation examples: set Experiment.validation, or compare samples by --features"
    )


def test_an_empty_validation_set_is_refused():
    rows = {"loss": np.ones(0), "gradient": np.zeros([0, 3])}
    with pytest.raises(
        ValueError, match="validation has no examples: give it some, or leave it out"
    ):
        experiment(Scripted, training(), validation=Table(rows))


def test_what_held_out_examples_lack_is_said_at_the_start():
    """If the objective needs it, which nothing but the objective knows."""
    with pytest.raises(DataError) as error:
        quiet(experiment(Scripted, training(), validation=Table({"gradient": np.zeros([3, 3])})))
    assert str(error.value) == (
        'held-out examples have no feature "loss", which Scripted evaluates with and training examples have: give '
        "Experiment.validation one that has it"
    )
    found = quiet(experiment(Scripted, training(), validation=Table({"loss": [1.0, 2.0, 6.0]})))
    assert found.evaluate() == {"loss": 3.0}


def test_a_mistake_of_an_objective_is_no_matter_of_the_data():
    class Odd(Scripted):
        def evaluate(self, batch, noise, step):
            return {"odd": batch["nothing"]}

    with pytest.raises(KeyError, match="nothing"):
        quiet(experiment(Odd, training(), validation=Table({"loss": [1.0]})))


class Spread(Scripted):
    """Numbers whose variance over the examples is asked for, which no mean of one number an example gives."""

    def evaluate(self, batch, noise, step):
        numbers = tf.stack([batch["loss"], -3 * batch["loss"]], 1)
        return {"moments": tf.stack([numbers, numbers**2], 1), "loss": batch["loss"]}

    def summary(self, means):
        first, second = means["moments"]
        assert first.shape == second.shape == (2,)
        return {
            "mean": means["loss"],
            "variance": second[0] - first[0] ** 2,
            "other": second[1] - first[1] ** 2,
        }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_summary_is_made_of_the_exact_means(layout):
    values = np.random.default_rng(3).integers(-50, 50, 7).astype(np.float64)
    rows = {"loss": values, "gradient": np.zeros([7, 3])}
    trainer = quiet(
        experiment(Spread, training(), validation=Table(rows)),
        LAYOUTS[layout],
    )
    with trainer.strategy.scope():
        assert trainer.evaluation.names() == ["mean", "other", "variance"]
    found = trainer.evaluate()
    assert found["mean"] == values.mean()
    np.testing.assert_allclose(found["variance"], values.var(), rtol=1e-12)
    np.testing.assert_allclose(found["other"], 9 * values.var(), rtol=1e-12)


class LastLoss:
    """As a baseline: the last loss of the training examples and the first of the held-out ones."""

    def __call__(self, source, validation):
        return {"last": source.read(tf.constant([3]))["loss"].numpy().item(), "n": len(validation)}

    def __repr__(self):
        return "LastLoss()"


def test_a_baseline_is_said_at_the_start():
    rows = {"loss": [1.0, 2.0, 3.0, 4.5], "gradient": np.zeros([4, 3])}
    wanted = experiment(Scripted, Table(rows), validation=Table(rows), baseline=LastLoss())
    notes = []
    trainer = Trainer(wanted, ONE, note=notes.append)
    assert trainer.baseline() == {"last": 4.5, "n": 4}
    trainer.train()
    assert notes[1] == "baseline: last 4.5000, n 4.0000 (LastLoss())"
    assert quiet(experiment(Scripted, Table(rows), validation=Table(rows))).baseline() == {}
