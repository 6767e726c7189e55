"""Number formats, and float16's loss scale: by hand, on one replica and two."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.objective import Phase
from tests.trainer.objectives import (
    ONE,
    SGD,
    TWO,
    Script,
    Scripted,
    experiment,
    quiet,
    take,
    values,
)
from trainer import precision
from trainer.exits import Diverged
from trainer.precision import PRECISIONS, next_scale

LARGEST = 2.0**24


@pytest.mark.parametrize(
    ("scale", "good", "finite", "expected"),
    [
        (2.0**15, 0.0, True, (2.0**15, 1.0)),
        (2.0**15, 1998.0, True, (2.0**15, 1999.0)),
        (2.0**15, 1999.0, True, (2.0**16, 0.0)),
        (2.0**15, 1999.0, False, (2.0**14, 0.0)),
        (2.0**15, 0.0, False, (2.0**14, 0.0)),
        (2.0, 5.0, False, (1.0, 0.0)),
        (1.0, 5.0, False, (1.0, 0.0)),
        (1.0, 1999.0, True, (2.0, 0.0)),
        (LARGEST, 1999.0, True, (LARGEST, 0.0)),
    ],
)
def test_next_scale_by_hand(scale, good, finite, expected):
    new = next_scale(tf.constant(scale), tf.constant(good), tf.constant(finite))
    assert tuple(value.numpy() for value in new) == expected


def test_policies_and_what_losses_are_computed_in():
    before = keras.config.dtype_policy().name
    found = {}
    for name, format in PRECISIONS.items():
        with format.building():
            layer = keras.layers.Dense(1)
        found[name] = (layer.variable_dtype, layer.compute_dtype, format.loss_dtype.name)
    assert found == {
        "float32": ("float32", "float32", "float32"),
        "tf32": ("float32", "float32", "float32"),
        "float64": ("float64", "float64", "float64"),
        "bfloat16": ("float32", "bfloat16", "float32"),
        "float16": ("float32", "float16", "float32"),
    }
    assert [name for name, format in PRECISIONS.items() if format.scaled] == ["float16"]
    assert keras.config.dtype_policy().name == before


def test_a_policy_is_put_back_after_an_error():
    before = keras.config.dtype_policy().name
    with pytest.raises(KeyError), PRECISIONS["bfloat16"].building():
        raise KeyError
    assert keras.config.dtype_policy().name == before


# ---------------------------------------------------------------------- the scale in training


class Half(Scripted):
    """The gradient goes through float16 and overflows above 65504, as in a layer of that format."""

    def build(self, noise):
        super().build(noise)
        weight = self.networks["only"].w

        def loss(batch, noise, step):
            half = tf.cast(tf.convert_to_tensor(weight), tf.float16)
            rows = half[tf.newaxis] * tf.cast(batch["gradient"], tf.float16)
            return batch["loss"] + tf.cast(tf.reduce_sum(rows, 1), tf.float32), {}

        self.phases = [Phase(name="only", variables=[weight], loss=loss, optimizer=SGD)]


def halves(gradients, losses=None):
    """Data of updates of 4 examples, each of the given gradient (of 3 weights)."""
    gradients = np.repeat(np.asarray(gradients, np.float32), 4)
    losses = np.zeros(len(gradients)) if losses is None else np.repeat(losses, 4)
    rows = {"gradient": gradients[:, np.newaxis] * [1, 1, 1], "loss": losses}
    return Script({name: row.astype(np.float32) for name, row in rows.items()})


def scales(seen, replica):
    return [step["only/loss_scale"][replica].tolist() for step in seen]


def test_the_scale_falls_and_grows_on_both_replicas_alike(monkeypatch):
    """From 2^15. A gradient of 15, of which a replica sums half in float16, overflows at scales 2^15 and 2^14, not at 2^13."""
    monkeypatch.setattr(precision, "GROWTH_INTERVAL", 3)
    gradients = [15, 15, 15, 1, 1, 0.5, 0.5, 0.5]
    objective = functools.partial(Half, initial=[0.0, 0.0, 0.0])
    wanted = experiment(
        objective, halves(gradients), steps=9, log_every=9, precision="float16", max_bad_updates=1
    )
    seen = take(quiet(wanted, TWO), 8)
    for replica in range(2):
        assert scales(seen, replica) == [
            [2.0**15, 0.0],
            [2.0**14, 0.0],
            [2.0**13, 0.0],
            [2.0**13, 1.0],
            [2.0**13, 2.0],
            [2.0**14, 0.0],
            [2.0**14, 1.0],
            [2.0**14, 2.0],
            [2.0**15, 0.0],
        ]
        weights = [step["only/w"][replica][0].item() for step in seen]
        assert weights == [0, 0, 0, -15, -16, -17, -17.5, -18, -18.5]
        # Above scale 1 an overflow is skipped and counted, but ends no run, though max_bad_updates is 1.
        assert seen[8]["only/bad_updates"][replica].tolist() == [0, 0, 2]


def test_float32_products_have_all_of_its_bits_on_gpus_too_unless_asked():
    tf.config.experimental.enable_tensor_float_32_execution(True)
    objective, found = functools.partial(Half, initial=[0.0, 0.0, 0.0]), {}
    for name in ("float32", "tf32", "bfloat16"):
        quiet(experiment(objective, halves([1]), steps=1, log_every=1, precision=name), ONE)
        found[name] = tf.config.experimental.tensor_float_32_execution_enabled()
    assert found == {"float32": False, "tf32": True, "bfloat16": False}


def test_one_replica_alone_overflows():
    """Its rows are too large, the other's are not; both halve, and neither moves."""
    rows = np.ones([8, 3], np.float32)
    rows[3] = 60000
    source = Script({"gradient": rows, "loss": np.zeros(8, np.float32)})
    wanted = experiment(Half, source, steps=3, log_every=3, precision="float16")
    seen = take(quiet(wanted, TWO), 2)
    for replica in range(2):
        assert scales(seen, replica) == [[2.0**15, 0.0], [2.0**14, 0.0], [2.0**14, 1.0]]
        assert seen[1]["only/w"][replica].tolist() == [1, 2, -3]
        assert seen[2]["only/w"][replica].tolist() == [0, 1, -4]


def test_at_scale_1_bad_updates_count_towards_the_end(monkeypatch):
    """From 4: the updates of steps 2 and 3 halve it to 1, those of 4, 5 and 6 are bad in a row."""
    monkeypatch.setattr("trainer.update.INITIAL_SCALE", 4.0)
    source = halves([1] * 9, [0, 0, np.nan, np.nan, np.nan, np.nan, np.nan, 0, 0])
    wanted = experiment(Half, source, steps=9, log_every=9, precision="float16", max_bad_updates=3)
    trainer = quiet(wanted, TWO)
    trainer._pace.steps = 9
    with pytest.raises(
        Diverged, match="phase only diverged: 3 updates in a row from step 4 on had"
    ):
        trainer.train()
    for scale in values(trainer)["only/loss_scale"]:
        assert scale.tolist() == [1.0, 2.0]  # The two good updates after them.


def test_bfloat16_and_float32_have_no_scale():
    for name in ("bfloat16", "float32", "float64"):
        trainer = quiet(experiment(Scripted, halves([1]), precision=name))
        assert "only/loss_scale" not in trainer.state
