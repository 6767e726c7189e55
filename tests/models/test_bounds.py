"""What bounds make of a model's terms, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.bounds import ELBO, IWAE, Terms, log_mean_exp

KL = np.array(
    [[0.1, 0.9, 2.0], [0.3, 0.1, 0.0], [0.0, 0.4, 0.6], [0.2, 0.2, 0.2]],
)
RECONSTRUCTION = np.array([10.0, 20.0, 30.0, 40.0])


class Model:
    """Of known terms; the last unit belongs to an upper layer if there are two."""

    def __init__(self, layers=1):
        self.units = tf.constant(KL)
        self.layers = layers

    def terms(self, batch, noise, training):
        assert training
        parts = [self.units] if self.layers == 1 else tf.split(self.units, [2, 1], 1)
        return Terms(tf.constant(RECONSTRUCTION), parts, tf.zeros([4]))

    def log_weights(self, batch, noise, samples, paths, training, kl_weight=1.0):
        assert training and samples == 3
        return -tf.constant(RECONSTRUCTION)[:, tf.newaxis] - kl_weight * self.units


def loss(bound, model=None, step=0):
    noise = Noise(1, "elbo", rows=4, dtype=tf.float64)
    return bound.loss(model or Model(), {}, noise, tf.constant(step, tf.int64))


def test_kl_warmup_is_linear():
    bound = ELBO(beta=2.0, kl_warmup_steps=10)
    for step, weight in {0: 0, 5: 1, 10: 2, 50: 2}.items():
        np.testing.assert_allclose(
            loss(bound, step=step)[0], RECONSTRUCTION + weight * KL.sum(1), rtol=1e-15
        )
    np.testing.assert_allclose(loss(ELBO(beta=2.0))[0], RECONSTRUCTION + 2 * KL.sum(1), rtol=1e-15)


def test_kl_warmup_of_the_importance_weighted_bound():
    bound = IWAE(samples=3, kl_warmup_steps=10)
    for step, beta in ((0, 0.0), (5, 0.5), (10, 1.0), (15, 1.0)):
        expected = RECONSTRUCTION - np.log(np.exp(-beta * KL).mean(1))
        np.testing.assert_allclose(loss(bound, step=step)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
def test_free_bits_of_each_example(layers):
    """Each unit costs at least 0.25 nats, whichever layer it is of, before β; the metrics are of the true KL."""
    found, metrics = loss(ELBO(beta=2.0, free_bits=0.25), Model(layers))
    expected = [0.25 + 0.9 + 2, 0.3 + 0.25 + 0.25, 0.25 + 0.4 + 0.6, 0.75]
    np.testing.assert_allclose(found, RECONSTRUCTION + 2 * np.array(expected), rtol=1e-12)
    np.testing.assert_allclose(metrics["kl"], KL.sum(1), rtol=1e-12)
    np.testing.assert_allclose(metrics["negative_elbo"], RECONSTRUCTION + KL.sum(1), rtol=1e-12)
    layered = {"kl_1": KL[:, :2].sum(1), "kl_2": KL[:, 2]} if layers == 2 else {}
    assert metrics.keys() == {"negative_elbo", "reconstruction", "kl", *layered}
    for name, value in layered.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-12)


def test_free_bits_of_groups_of_examples():
    """Means of the first two examples: 0.2, 0.5, 1.0; of the last two: 0.1, 0.3, 0.4. All examples of a group bear the same."""
    model = Model()
    with tf.GradientTape() as tape:
        tape.watch(model.units)
        found, _ = loss(ELBO(free_bits=0.25, free_bits_examples=2), model)
        total = tf.reduce_sum(found)
    expected = np.repeat([0.25 + 0.5 + 1.0, 0.25 + 0.3 + 0.4], 2)
    np.testing.assert_allclose(found, RECONSTRUCTION + expected, rtol=1e-12)
    # A unit under λ is not pushed on; the others as without free bits.
    np.testing.assert_allclose(tape.gradient(total, model.units), [[0, 1, 1]] * 4, rtol=1e-12)


def test_without_free_bits_every_unit_is_pushed():
    model = Model()
    with tf.GradientTape() as tape:
        tape.watch(model.units)
        total = tf.reduce_sum(loss(ELBO(), model)[0])
    np.testing.assert_array_equal(tape.gradient(total, model.units), np.ones([4, 3]))


def test_log_mean_exp_of_large_numbers():
    found = log_mean_exp(tf.constant([[-1000.0, -1000.0 + np.log(3)], [700.0, -700.0]], tf.float64))
    np.testing.assert_allclose(found, [-1000 + np.log(2), 700 - np.log(2)], rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(kl_warmup_steps=-1), "kl_warmup_steps -1"),
        (lambda: ELBO(free_bits=-0.1), "free_bits -0.1: they must be at least 0"),
        (lambda: ELBO(free_bits_examples=4), "free_bits_examples is 4 and free_bits 0.0"),
        (lambda: ELBO(free_bits=1.0, free_bits_examples=0), "must be at least 1"),
        (lambda: loss(ELBO(free_bits=1.0, free_bits_examples=3)), "does not divide the batch of 4"),
        (lambda: IWAE(samples=0), "IWAE.samples is 0: it must be at least 1"),
        (lambda: IWAE(kl_warmup_steps=-1), "kl_warmup_steps is -1: it must be at least 0"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
