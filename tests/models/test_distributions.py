"""Normal variables against SciPy."""

import numpy as np
import scipy.integrate
import scipy.stats
import tensorflow as tf

from models.distributions import Normal, standard_log_density

MEAN, DEVIATION = np.array([0.7, -1.2]), np.array([0.5, 1.6])


def normal():
    return Normal.of(tf.constant([[*MEAN, *(2 * np.log(DEVIATION))]]))


def test_divergence_against_integration():
    def integral(m, s):
        q, p = scipy.stats.norm(m, s), scipy.stats.norm()
        return scipy.integrate.quad(
            lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -20, 20, epsabs=1e-12, limit=200
        )[0]

    expected = [list(map(integral, MEAN, DEVIATION))]
    np.testing.assert_allclose(normal().divergence(), expected, rtol=1e-9)
    assert np.all(Normal(tf.zeros([2, 3]), tf.zeros([2, 3])).divergence() == 0)


def test_densities_against_scipy():
    x = np.random.default_rng(0).normal(size=(5, 2))
    expected = scipy.stats.norm(MEAN, DEVIATION).logpdf(x)
    np.testing.assert_allclose(normal().log_density(tf.constant(x)), expected, rtol=1e-12)
    expected = scipy.stats.norm().logpdf(x)
    np.testing.assert_allclose(standard_log_density(tf.constant(x)), expected, rtol=1e-12)


def test_draws_are_standard_numbers_moved():
    standard = tf.constant([[1.0, -2.0]], tf.float64)
    expected = [MEAN + DEVIATION * [1, -2]]
    np.testing.assert_allclose(normal().reparameterised(standard), expected, rtol=1e-12)


def test_without_gradient():
    mean, log_variance = tf.constant([0.5]), tf.constant([0.1])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([mean, log_variance])
        parameters = Normal(mean, log_variance)
        live = parameters.log_density(tf.constant([1.0]))
        still = parameters.without_gradient().log_density(tf.constant([1.0]))
    assert float(tape.gradient(live, mean)[0]) != 0
    assert tape.gradient(still, [mean, log_variance]) == [None, None]
    np.testing.assert_array_equal(live, still)
