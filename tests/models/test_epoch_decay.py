"""The learning rate of each epoch."""

import pytest
import tensorflow as tf

from models.epoch_decay import EpochDecay


@pytest.mark.parametrize("jit", [False, True])
def test_by_hand(jit):
    """Two epochs of 3 steps at 8, then half of it and half of that."""
    rate = EpochDecay(initial_learning_rate=8.0, steps_per_epoch=3, constant_epochs=2)
    of_step = tf.function(rate, jit_compile=jit)
    rates = [float(of_step(tf.constant(step, tf.int64))) for step in range(12)]
    assert rates == pytest.approx([8] * 6 + [4] * 3 + [2] * 3, rel=1e-6)


def test_no_epoch_need_be_constant():
    rate = EpochDecay(
        initial_learning_rate=1.0, steps_per_epoch=1, constant_epochs=0, decay_rate=0.1
    )
    rates = [float(rate(tf.constant(step, tf.int64))) for step in range(3)]
    assert rates == pytest.approx([0.1, 0.01, 0.001], rel=1e-6)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"initial_learning_rate": -1.0}, "initial_learning_rate is -1.0: it must be at least 0"),
        ({"steps_per_epoch": 0}, "EpochDecay.steps_per_epoch is 0: it must be at least 1"),
        ({"constant_epochs": -1}, "constant_epochs is -1"),
        ({"decay_rate": -0.5}, "decay_rate is -0.5"),
    ],
)
def test_wrong_arguments(how, message):
    with pytest.raises(ValueError, match=message):
        EpochDecay(**{"initial_learning_rate": 1.0, "steps_per_epoch": 1} | how)
