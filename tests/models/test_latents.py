"""Two stochastic layers against NumPy and SciPy, and the gradients of their importance-weighted bound."""

import functools

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from models.bounds import ELBO, IWAE
from models.distributions import Normal, standard_log_density
from models.latents import StochasticLayer
from models.mlp import MLPDecoder, MLPEncoder
from models.vae import VAE
from tests.models.objective_checks import (
    build,
    check_builds_alike_twice,
    check_phase,
    check_rows_are_their_own,
    run_phase,
    variables,
)

ROWS, LOWER, UPPER, SAMPLES = 4, 3, 2, 5
SPEC = {"image": Feature((4, 4, 1), "float32")}


def two_layers(**arguments):
    narrow = functools.partial
    return VAE(
        SPEC,
        encoder=narrow(MLPEncoder, widths=(5,)),
        decoder=narrow(MLPDecoder, widths=(6,)),
        latent=LOWER,
        prior=functools.partial(
            StochasticLayer,
            latent=UPPER,
            encoder=narrow(MLPEncoder, widths=(7,)),
            decoder=narrow(MLPDecoder, widths=(8,)),
        ),
        **arguments,
    )


def images(dtype=tf.float64):
    return {"image": tf.cast(tf.random.stateless_uniform((ROWS, 4, 4, 1), (1, 2)), dtype)}


def network(weights, name, x):
    hidden = np.tanh(x @ weights[f"{name}/hidden_0/kernel"] + weights[f"{name}/hidden_0/bias"])
    return hidden @ weights[f"{name}/dense/kernel"] + weights[f"{name}/dense/bias"]


def reference(vae, x, epsilon, epsilon_upper):
    """NumPy's log p(x | z), log p(z | u), log p(u), log q(z | x), log q(u | z) by pixel and unit, of noise `[b, k, …]`."""
    weights = {path: v.numpy() for path, v in variables(vae).items()}
    mean, log_variance = np.split(network(weights, "encoder", x.reshape(len(x), 1, -1)), 2, 2)
    posterior = scipy.stats.norm(mean, np.exp(log_variance / 2))
    z = mean + np.exp(log_variance / 2) * epsilon
    upper_mean, upper_log_variance = np.split(network(weights, "prior/encoder", z), 2, 2)
    upper = scipy.stats.norm(upper_mean, np.exp(upper_log_variance / 2))
    u = upper_mean + np.exp(upper_log_variance / 2) * epsilon_upper
    below_mean, below_log_variance = np.split(network(weights, "prior/decoder", u), 2, 2)
    means = 1 / (1 + np.exp(-network(weights, "decoder", z)))
    pixels = x.reshape(len(x), 1, -1)
    return {
        "x|z": pixels * np.log(means) + (1 - pixels) * np.log(1 - means),
        "z|u": scipy.stats.norm(below_mean, np.exp(below_log_variance / 2)).logpdf(z),
        "u": scipy.stats.norm().logpdf(u),
        "q(z)": posterior.logpdf(z),
        "q(u)": upper.logpdf(u),
        "kl(u)": (np.exp(upper_log_variance) + upper_mean**2 - 1 - upper_log_variance) / 2,
    }


def log_weights(parts):
    return sum(parts[name].sum(2) for name in ("x|z", "z|u", "u")) - sum(
        parts[name].sum(2) for name in ("q(z)", "q(u)")
    )


def stream(name, shape, **arguments):
    return Noise(1, f"elbo/{name}", rows=ROWS, step=3, dtype=tf.float64, **arguments).normal(shape)


def test_elbo_against_numpy():
    vae = build(two_layers, "float64")
    x = images()["image"].numpy()
    epsilon = stream("posterior", [1, LOWER]), stream("prior/posterior", [1, UPPER])
    parts = {name: part[:, 0] for name, part in reference(vae, x, *epsilon).items()}
    loss, metrics, _, _ = run_phase(vae, vae.phases[0], images(), tf.float64)
    kl_1 = (parts["q(z)"] - parts["z|u"]).sum(1)
    kl_2 = parts["kl(u)"].sum(1)
    reconstruction = -parts["x|z"].sum(1)
    np.testing.assert_allclose(metrics["kl_1"], kl_1, rtol=1e-10)
    np.testing.assert_allclose(metrics["kl_2"], kl_2, rtol=1e-10)
    np.testing.assert_allclose(metrics["kl"], kl_1 + kl_2, rtol=1e-10)
    np.testing.assert_allclose(metrics["reconstruction"], reconstruction, rtol=1e-10)
    np.testing.assert_allclose(loss, reconstruction + kl_1 + kl_2, rtol=1e-10)


def test_posterior_means_of_each_layer():
    """That of the upper layer at the posterior mean of the lower one."""
    vae = build(two_layers, "float64")
    x = images()["image"].numpy()
    weights = {path: v.numpy() for path, v in variables(vae).items()}
    lower = network(weights, "encoder", x.reshape(len(x), -1))[:, :LOWER]
    upper = network(weights, "prior/encoder", lower)[:, :UPPER]
    noise = Noise(1, "evaluate", rows=ROWS, dtype=tf.float64)
    held_out = vae.evaluate(images(), noise, tf.constant(3, tf.int64))
    for name, mean in (("active_units_1", lower), ("active_units_2", upper)):
        np.testing.assert_allclose(held_out[name], np.stack([mean, mean**2], 1), rtol=1e-10)


@pytest.mark.parametrize("doubly", [False, True])
def test_importance_weighted_bound_against_scipy(doubly):
    bound = IWAE(samples=SAMPLES, doubly_reparameterised=doubly)
    vae = build(lambda: two_layers(bound=bound), "float64")
    x = images()["image"].numpy()
    epsilon = stream("posterior", [SAMPLES, LOWER]), stream("prior/posterior", [SAMPLES, UPPER])
    expected = log_weights(reference(vae, x, *(e.numpy() for e in epsilon)))
    loss, metrics, _, _ = run_phase(vae, vae.phases[0], images(), tf.float64)
    np.testing.assert_allclose(
        loss, np.log(SAMPLES) - scipy.special.logsumexp(expected, axis=1), rtol=1e-10
    )
    assert metrics == {}


def test_evaluation_by_many_samples_against_scipy():
    vae = build(lambda: two_layers(evaluation_samples=6, evaluation_chunk=3), "float64")

    @tf.function
    def evaluate(batch):
        noise = Noise(1, "elbo", rows=ROWS, step=3, dtype=tf.float64)
        return vae.evaluate(batch, noise, tf.constant(3, tf.int64))

    found = evaluate(images())
    x = images()["image"].numpy()
    expected = []
    for number in range(2):
        epsilon = (
            stream("importance/posterior", [3, LOWER], number=number),
            stream("importance/prior/posterior", [3, UPPER], number=number),
        )
        expected.append(log_weights(reference(vae, x, *(e.numpy() for e in epsilon))))
    expected = np.log(6) - scipy.special.logsumexp(np.concatenate(expected, 1), axis=1)
    np.testing.assert_allclose(found["negative_log_likelihood"], expected, rtol=1e-10)


def test_doubly_reparameterised_gradient():
    """The encoders' is Σ s_k² ∂log w_k/∂(z, u) · ∂(z, u)/∂φ (Tucker et al. 2019, eq. 8), the decoders' that of the bound.

    A second model of the same weights gives the densities, so that the first one's weights are reached by samples alone.
    """
    bounds = {
        "iwae": IWAE(samples=SAMPLES),
        "dreg": IWAE(samples=SAMPLES, doubly_reparameterised=True),
    }
    made = {name: build(lambda b=b: two_layers(bound=b), "float64") for name, b in bounds.items()}
    found = {}
    for name, vae in made.items():
        _, _, gradients, _ = run_phase(vae, vae.phases[0], images(), tf.float64)
        found[name] = dict(zip((v.path for v in vae.phases[0].variables), gradients, strict=True))
    sampler, densities = made.values()
    epsilon, epsilon_upper = (
        stream("posterior", [SAMPLES, LOWER]),
        stream("prior/posterior", [SAMPLES, UPPER]),
    )

    def of(layer, codes):
        outputs = layer(tf.reshape(codes, [-1, codes.shape[-1]]))
        return Normal.of(tf.reshape(outputs, [ROWS, SAMPLES, -1]))

    x = images()["image"]
    repeated = tf.repeat(tf.reshape(x, [ROWS, 1, 16]), SAMPLES, 1)
    encoders = [
        *sampler.encoder.trainable_variables,
        *sampler.prior.encoder.trainable_variables,
    ]
    with tf.GradientTape() as tape:
        z = of(sampler.encoder, repeated).reparameterised(epsilon)
        u = of(sampler.prior.encoder, z).reparameterised(epsilon_upper)
        logits = tf.reshape(densities.decoder(tf.reshape(z, [-1, LOWER])), [ROWS, SAMPLES, 4, 4, 1])
        log_w = densities.likelihood.log_probability(x, logits)
        for term in (
            of(densities.prior.decoder, u).log_density(z),
            standard_log_density(u),
            -of(densities.encoder, repeated).log_density(z),
            -of(densities.prior.encoder, z).log_density(u),
        ):
            log_w += tf.reduce_sum(term, 2)
        shares = tf.stop_gradient(tf.nn.softmax(log_w, 1))
        total = -tf.reduce_sum(shares**2 * log_w)
    expected = tape.gradient(total, [v.value for v in encoders])
    for variable, gradient in zip(encoders, expected, strict=True):
        np.testing.assert_allclose(found["dreg"][variable.path], gradient, rtol=1e-9, atol=1e-12)
        assert not np.allclose(found["iwae"][variable.path], gradient, rtol=1e-3)
    reached = {variable.path for variable in encoders}
    for path, gradient in found["iwae"].items():
        if path not in reached:
            np.testing.assert_allclose(found["dreg"][path], gradient, rtol=1e-9, atol=1e-12)


def test_draws_against_numpy():
    vae = build(two_layers, "float64")
    weights = {path: v.numpy() for path, v in variables(vae).items()}

    def normal(name, units):
        return Noise(2, f"sample/latent/{name}", rows=7, dtype=tf.float64).normal([units]).numpy()

    mean, log_variance = np.split(network(weights, "prior/decoder", normal("upper", UPPER)), 2, 1)
    z = mean + np.exp(log_variance / 2) * normal("lower", LOWER)
    expected = 1 / (1 + np.exp(-network(weights, "decoder", z)))
    found = vae.sample(Noise(2, "sample", rows=7, dtype=tf.float64))
    np.testing.assert_allclose(found, expected.reshape(7, 4, 4, 1), rtol=1e-11)


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "xla"])
@pytest.mark.parametrize(
    "bound",
    [ELBO(free_bits=0.1, free_bits_examples=2), IWAE(samples=3, doubly_reparameterised=True)],
    ids=["elbo", "dreg"],
)
def test_gradients_are_finite(bound, jit):
    vae = build(lambda: two_layers(bound=bound), "mixed_bfloat16")
    assert check_phase(vae, vae.phases[0], images(tf.float32), "mixed_bfloat16", jit) == set()


def test_rows_depend_on_their_own_example_and_group():
    for bound in (ELBO(free_bits=0.1, free_bits_examples=2), IWAE(samples=3)):
        vae = build(lambda bound=bound: two_layers(bound=bound), "float64")
        check_rows_are_their_own(vae, vae.phases[0], images())


def test_builds_alike_twice():
    check_builds_alike_twice(two_layers)


def test_parameter_counts_by_hand():
    vae = build(two_layers)
    count = {name: network.count_params() for name, network in vae.networks.items()}
    assert count == {
        "encoder": (16 * 5 + 5) + (5 * 6 + 6),
        "decoder": (3 * 6 + 6) + (6 * 16 + 16),
        "prior": (3 * 7 + 7) + (7 * 4 + 4) + (2 * 8 + 8) + (8 * 6 + 6),
    }
    assert len(vae.phases[0].variables) == 16


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"StochasticLayer\.latent is 0"):
        StochasticLayer(3, noise=Noise(1, "init", rows=1), name="prior", latent=0)


def test_traversals_are_of_the_upper_layer():
    """Whose units go from -3 to 3, the one that says most first; the lower one is the mean given them."""
    vae = build(two_layers, "float64")
    batch, noise = images(), Noise(1, "pictures", rows=ROWS, dtype=tf.float64)
    table = vae.pictures(batch, noise)["traversals"]
    weights = {path: v.numpy() for path, v in variables(vae).items()}
    x = batch["image"].numpy().reshape(ROWS, -1)
    mean = np.split(network(weights, "encoder", x), 2, 1)[0]
    upper_mean, upper_log_variance = np.split(network(weights, "prior/encoder", mean), 2, 1)
    divergence = (np.exp(upper_log_variance) + upper_mean**2 - 1 - upper_log_variance) / 2
    assert table.shape == (UPPER, 8, 4, 4, 1)
    for row, unit in enumerate(np.argsort(-divergence.mean(0))):
        for column, value in ((0, -3.0), (7, 3.0)):
            u = np.where(np.arange(UPPER) == unit, value, upper_mean[0])
            z = np.split(network(weights, "prior/decoder", u[np.newaxis]), 2, 1)[0]
            expected = scipy.special.expit(network(weights, "decoder", z)).reshape(4, 4, 1)
            np.testing.assert_allclose(table[row, column], expected, rtol=1e-10)
