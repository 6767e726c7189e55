"""The ELBO's parts in closed form, and the VAE's phase against NumPy and SciPy."""

import functools

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from models.bounds import ELBO, IWAE
from models.distributions import Normal
from models.grid_networks import ResidualDecoder, ResidualEncoder
from models.image_networks import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
)
from models.latents import Paths
from models.likelihoods import Gaussian
from models.mlp import MLPDecoder, MLPEncoder
from models.vae import VAE
from tests.models.objective_checks import (
    NOISE_DTYPE,
    build,
    check_builds_alike_twice,
    check_phase,
    check_rows_are_their_own,
    phase_function,
    run_phase,
    variables,
)

ROWS = 8
SPEC = {"image": Feature((8, 8, 1), "float32")}


def images(dtype=tf.float32):
    return {"image": tf.cast(tf.random.stateless_uniform((ROWS, 8, 8, 1), (1, 2)), dtype)}


def mlp(**arguments):
    return VAE(
        SPEC,
        encoder=functools.partial(MLPEncoder, widths=(5,)),
        decoder=functools.partial(MLPDecoder, widths=(6,)),
        latent=3,
        **arguments,
    )


def convolutional():
    return VAE(
        SPEC,
        encoder=functools.partial(ConvolutionalEncoder, width=4, stages=2, group=4, dropout=0.1),
        decoder=functools.partial(ConvolutionalDecoder, width=4, stages=2, group=4),
        latent=3,
        likelihood=Gaussian,
    )


@pytest.mark.parametrize("gaussian", [None, {}, {"scale": 0.2}])
def test_elbo_against_numpy_and_scipy(gaussian):
    likelihood = {} if gaussian is None else {"likelihood": functools.partial(Gaussian, **gaussian)}
    vae = build(lambda: mlp(bound=ELBO(beta=4.0), **likelihood), "float64")
    weights = {path: v for path, v in variables(vae).items()}
    batch = images(tf.float64)
    x = batch["image"].numpy().reshape(ROWS, 64)

    def network(name, x):
        kernel, bias = (weights[f"{name}/hidden_0/{p}"].numpy() for p in ("kernel", "bias"))
        hidden = np.tanh(x @ kernel + bias)
        return hidden @ weights[f"{name}/dense/kernel"] + weights[f"{name}/dense/bias"]

    mean, log_variance = np.split(np.asarray(network("encoder", x)), 2, axis=1)
    epsilon = Noise(1, "elbo/posterior", rows=ROWS, step=3, dtype=tf.float64).normal([3])
    z = mean + np.exp(log_variance / 2) * epsilon
    means = 1 / (1 + np.exp(-np.asarray(network("decoder", z))))
    if gaussian is None:
        likelihood = (x * np.log(means) + (1 - x) * np.log(1 - means)).sum(1)
    else:
        learnt = np.exp(-6 + np.log1p(np.exp(6)))
        likelihood = scipy.stats.norm(means, gaussian.get("scale", learnt)).logpdf(x).sum(1)
    kl = (-np.log(np.exp(log_variance / 2)) + (np.exp(log_variance) + mean**2) / 2 - 0.5).sum(1)

    loss, metrics, _, _ = run_phase(vae, vae.phases[0], batch, tf.float64)
    np.testing.assert_allclose(metrics["reconstruction"], -likelihood, rtol=1e-11)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-11)
    np.testing.assert_allclose(metrics["negative_elbo"], kl - likelihood, rtol=1e-11)
    np.testing.assert_allclose(loss, 4 * kl - likelihood, rtol=1e-11)
    held_out = vae.evaluate(
        batch, Noise(1, "elbo", rows=ROWS, step=3, dtype=tf.float64), tf.constant(3, tf.int64)
    )
    for name in ("reconstruction", "kl", "negative_elbo"):
        np.testing.assert_allclose(held_out[name], metrics[name], rtol=1e-12)
    np.testing.assert_allclose(held_out["squared_error"], ((x - means) ** 2).mean(1), rtol=1e-12)
    moments = np.stack([mean, mean**2], 1)
    np.testing.assert_allclose(held_out["active_units"], moments, rtol=1e-10, atol=1e-15)

    prior = Noise(2, "sample/latent", rows=5, dtype=tf.float64).normal([3]).numpy()
    samples = vae.sample(Noise(2, "sample", rows=5, dtype=tf.float64))
    expected = 1 / (1 + np.exp(-np.asarray(network("decoder", prior))))
    np.testing.assert_allclose(samples, expected.reshape(5, 8, 8, 1), rtol=1e-12)
    assert samples.numpy().min() >= 0 and samples.numpy().max() <= 1


def test_centred_on_the_mean_picture():
    """The encoder sees what differs from it, a decoder that gives zeros expects it, and the loss moves it."""
    vae = build(lambda: mlp(centred=True), "float64")
    for v in vae.decoder.variables:
        v.assign(tf.zeros_like(v))
    mean = np.random.default_rng(2).uniform(size=(8, 8, 1))
    mean[0, 0] = 0
    vae.centring.moving_mean.assign(mean)
    batch = images(tf.float64)
    x = batch["image"].numpy()
    _, metrics, _, moved = run_phase(vae, vae.phases[0], batch, tf.float64)
    encoded = vae.encoder(tf.constant(x - mean), training=False).numpy()
    log_variance = encoded[:, 3:]
    kl = (np.exp(log_variance) + encoded[:, :3] ** 2 - 1 - log_variance).sum(1) / 2
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-11)
    expected = np.maximum(mean, 1e-3)
    nats = -(x * np.log(expected) + (1 - x) * np.log(1 - expected)).sum((1, 2, 3))
    np.testing.assert_allclose(metrics["reconstruction"], nats, rtol=1e-11)
    found = moved["centring/moving_mean"]
    np.testing.assert_allclose(found, 0.999 * mean + 0.001 * x.mean(0), rtol=1e-12)
    samples = vae.sample(Noise(2, "sample", rows=2, dtype=tf.float64))
    np.testing.assert_allclose(samples, np.stack([expected] * 2), rtol=1e-11)


def test_a_unit_is_active_if_its_posterior_mean_varies():
    """A variance of 0.04, one of 0.0064 about a mean far from 0, none."""
    means = np.array([[0.2, 3.08, 1.0], [-0.2, 2.92, 1.0]])
    moments = np.stack([means, means**2], 1).mean(0)
    vae = mlp()
    assert vae.summary({"kl": np.array(2.5), "active_units": moments}) == {
        "kl": 2.5,
        "active_units": 1,
    }
    found = vae.summary({"active_units_1": moments, "active_units_2": moments[:, 1:]})
    assert found == {"active_units_1": 1, "active_units_2": 0}


def reference(vae, x, epsilon):
    """Of a Bernoulli VAE of one hidden layer, in float64: a function of weights and noise `[b, k, latent]` that gives
    log w_k `[b, k]`, from SciPy's densities."""
    weights = {path: v.numpy() for path, v in variables(vae).items()}

    def network(name, x):
        hidden = np.tanh(x @ weights[f"{name}/hidden_0/kernel"] + weights[f"{name}/hidden_0/bias"])
        return hidden @ weights[f"{name}/dense/kernel"] + weights[f"{name}/dense/bias"]

    x = x.reshape(len(x), 1, -1)
    mean, log_variance = np.split(network("encoder", x), 2, axis=2)
    deviation = np.exp(log_variance / 2)
    z = mean + deviation * epsilon
    means = 1 / (1 + np.exp(-network("decoder", z)))
    likelihood = (x * np.log(means) + (1 - x) * np.log(1 - means)).sum(2)
    prior = scipy.stats.norm().logpdf(z).sum(2)
    return likelihood + prior - scipy.stats.norm(mean, deviation).logpdf(z).sum(2)


def log_mean_exp(log_weights):
    return scipy.special.logsumexp(log_weights, axis=1) - np.log(log_weights.shape[1])


@pytest.mark.parametrize("doubly", [False, True])
def test_importance_weighted_bound_against_scipy(doubly):
    vae = build(lambda: mlp(bound=IWAE(samples=4, doubly_reparameterised=doubly)), "float64")
    batch = images(tf.float64)
    epsilon = Noise(1, "elbo/posterior", rows=ROWS, step=3, dtype=tf.float64).normal([4, 3])
    loss, metrics, _, _ = run_phase(vae, vae.phases[0], batch, tf.float64)
    expected = log_mean_exp(reference(vae, batch["image"].numpy(), epsilon.numpy()))
    np.testing.assert_allclose(loss, -expected, rtol=1e-11)
    assert metrics == {}


def test_doubly_reparameterised_gradient():
    """The decoder's is that of the bound; the encoder's Σ s_k² ∂log w_k/∂z · ∂z/∂φ with shares s (Tucker et al. 2019, eq. 8)."""
    bounds = {"iwae": IWAE(samples=4), "dreg": IWAE(samples=4, doubly_reparameterised=True)}
    made = {name: build(lambda b=b: mlp(bound=b), "float64") for name, b in bounds.items()}
    batch = images(tf.float64)
    found = {}
    for bound, vae in made.items():
        _, _, gradients, _ = run_phase(vae, vae.phases[0], batch, tf.float64)
        found[bound] = dict(zip((v.path for v in vae.phases[0].variables), gradients, strict=True))
    vae, x = made["dreg"], batch["image"]
    epsilon = Noise(1, "elbo/posterior", rows=ROWS, step=3, dtype=tf.float64).normal([4, 3])
    encoder = [v.value for v in vae.encoder.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        mean, log_variance = tf.split(vae.encoder(x), 2, 1)
        z = mean[:, tf.newaxis] + tf.exp(log_variance[:, tf.newaxis] / 2) * epsilon
        logits = vae.decoder(tf.reshape(z, [ROWS * 4, 3]))
        likelihood = vae.likelihood.log_probability(x, tf.reshape(logits, [ROWS, 4, 8, 8, 1]))
        fixed = Normal(*(tf.stop_gradient(p)[:, tf.newaxis] for p in (mean, log_variance)))
        ratio = vae.prior.log_ratio(fixed, z, None, Paths(), training=True)
        log_weights = likelihood + ratio
    slope = tape.gradient(log_weights, z)
    shares = tf.nn.softmax(log_weights, 1)
    expected = tape.gradient(z, encoder, output_gradients=-slope * shares[..., tf.newaxis] ** 2)
    for variable, gradient in zip(vae.encoder.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(found["dreg"][variable.path], gradient, rtol=1e-9, atol=1e-12)
        assert not np.allclose(found["iwae"][variable.path], gradient, rtol=1e-3)
    for variable in vae.decoder.trainable_variables:
        np.testing.assert_allclose(
            found["dreg"][variable.path], found["iwae"][variable.path], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("warmup", [0, 6])
def test_doubly_reparameterised_gradient_has_the_mean_of_the_bounds(warmup):
    """Of the encoder, over 8 × 2,048 draws, at the weights β of 1 and, half-way through the warm-up, 1/2: within 5 standard errors."""
    means, errors = {}, {}
    for doubly in (False, True):
        bound = IWAE(samples=3, doubly_reparameterised=doubly, kl_warmup_steps=warmup)
        vae = build(functools.partial(mlp, bound=bound), "float64")
        path = next(v.path for v in vae.encoder.trainable_variables if v.path.endswith("bias"))
        batch = {"image": tf.repeat(images(tf.float64)["image"][:1], 2048, 0)}
        which = [v.path for v in vae.phases[0].variables].index(path)
        run = phase_function(vae, vae.phases[0], tf.float64)
        drawn = [
            run(batch, tf.constant(3, tf.int64), tf.constant(2048 * n, tf.int64))[2][which] / 2048
            for n in range(8)
        ]
        means[doubly], errors[doubly] = np.mean(drawn, 0), np.std(drawn, 0, ddof=1) / 8**0.5
    error = np.hypot(errors[False], errors[True])
    assert np.all(np.abs(means[True] - means[False]) < 5 * error)
    assert np.any(np.abs(means[True]) > 20 * error)


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "xla"])
def test_negative_log_likelihood_in_chunks_against_scipy(jit):
    vae = build(lambda: mlp(evaluation_samples=12, evaluation_chunk=4), "float64")
    batch = images(tf.float64)

    @tf.function(jit_compile=jit)
    def evaluate(batch, first):
        noise = Noise(5, "evaluate", rows=batch["image"].shape[0], first=first, dtype=tf.float64)
        return vae.evaluate(batch, noise, tf.constant(0, tf.int64))

    found = evaluate(batch, tf.constant(0, tf.int64))
    stream = Noise(5, "evaluate/importance/posterior", rows=ROWS, dtype=tf.float64)
    # Each number is a stream of its own, so the same name may be drawn from once for each.
    epsilon = [
        Noise(5, stream.name, rows=ROWS, dtype=tf.float64).numbered(n).normal([4, 3])
        for n in range(3)
    ]
    epsilon = np.concatenate(epsilon, 1)
    assert len(np.unique(epsilon)) == epsilon.size
    expected = log_mean_exp(reference(vae, batch["image"].numpy(), epsilon))
    np.testing.assert_allclose(found["negative_log_likelihood"], -expected, rtol=1e-10)
    half = evaluate({"image": batch["image"][4:]}, tf.constant(4, tf.int64))
    for name in found:
        np.testing.assert_allclose(half[name], found[name][4:], rtol=1e-10)
    assert np.all(found["negative_log_likelihood"] < found["negative_elbo"] + 3)


def test_one_chunk_of_samples_is_in_memory_at_a_time():
    vae = build(lambda: mlp(evaluation_samples=12, evaluation_chunk=4), "float64")

    @tf.function
    def evaluate():
        noise = Noise(5, "evaluate", rows=ROWS, dtype=tf.float64)
        return vae.evaluate(images(tf.float64), noise, tf.constant(0, tf.int64))

    operations = evaluate.get_concrete_function().graph.get_operations()
    loops = [one for one in operations if one.type in ("While", "StatelessWhile")]
    assert [loop.get_attr("parallel_iterations") for loop in loops] == [1]


def test_negative_log_likelihood_is_near_the_integral():
    """With one latent, log p(x) = log ∫ p(x | z) p(z) dz on a fine grid."""
    vae = VAE(
        SPEC,
        encoder=functools.partial(MLPEncoder, widths=(5,)),
        decoder=functools.partial(MLPDecoder, widths=(6,)),
        latent=1,
        evaluation_samples=20_000,
        evaluation_chunk=1000,
    )
    vae = build(lambda: vae, "float64")
    batch = images(tf.float64)

    @tf.function
    def evaluate():
        noise = Noise(5, "evaluate", rows=ROWS, dtype=tf.float64)
        return vae.evaluate(batch, noise, tf.constant(0, tf.int64))["negative_log_likelihood"]

    grid = np.linspace(-8, 8, 4001)
    logits = tf.reshape(vae.decoder(tf.constant(grid[:, np.newaxis])), [1, 4001, 64])
    x = tf.reshape(batch["image"], [ROWS, 1, 64])
    likelihood = tf.reduce_sum(x * logits - tf.nn.softplus(logits), 2)
    joint = likelihood.numpy() + scipy.stats.norm().logpdf(grid)
    integral = scipy.special.logsumexp(joint, axis=1) + np.log(grid[1] - grid[0])
    np.testing.assert_allclose(evaluate(), -integral, atol=0.02)


@pytest.mark.parametrize("policy", NOISE_DTYPE)
@pytest.mark.parametrize("make", [mlp, convolutional])
def test_gradients_are_finite(make, policy):
    vae = build(make, policy)
    moved = check_phase(vae, vae.phases[0], images(NOISE_DTYPE[policy]), policy)
    norms = ["encoder/norm_1", "decoder/norm_0", "decoder/norm_1"]
    assert moved == (
        set()
        if make is mlp
        else {f"{norm}/moving_{s}" for norm in norms for s in ("mean", "variance")}
    )


@pytest.mark.parametrize("make", [mlp, convolutional])
def test_rows_depend_on_their_own_example_and_group(make):
    vae = build(make, "float64")
    check_rows_are_their_own(vae, vae.phases[0], images(tf.float64))


def test_builds_alike_twice():
    check_builds_alike_twice(convolutional)


def test_parameter_counts_by_hand():
    vae = build(lambda: VAE(SPEC, likelihood=Gaussian))
    count = {name: network.count_params() for name, network in vae.networks.items()}
    assert count == {
        "encoder": (64 * 200 + 200) + (200 * 200 + 200) + (200 * 32 + 32),
        "decoder": (16 * 200 + 200) + (200 * 200 + 200) + (200 * 64 + 64),
        "likelihood": 1,
    }
    assert len(vae.phases[0].variables) == 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent": 0}, "VAE.latent is 0"),
        ({"evaluation_samples": 120}, "the chunk must be at least 1 and divide the samples"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(SPEC, **arguments)


def test_networks_of_grids_are_refused():
    for arguments in ({"encoder": ResidualEncoder}, {"decoder": ResidualDecoder}):
        (name,) = arguments
        with pytest.raises(ValueError, match=rf"VAE\.{name} is a Residual.*, whose code is a grid"):
            build(lambda arguments=arguments: VAE(SPEC, **arguments))


@pytest.mark.parametrize("conditional", [False, True])
def test_pictures_are_decoded_means(conditional):
    """Reconstructions below their originals; ways begin and end at them; traversals of the latents that say most."""
    spec, batch = dict(SPEC), images(tf.float64)
    if conditional:
        spec["label"] = Feature((), "int32", cardinality=3)
        batch["label"] = tf.constant([0, 1, 2, 0, 0, 1, 2, 2])
    vae = build(
        lambda: VAE(
            spec,
            encoder=functools.partial(MLPEncoder, widths=(5,)),
            decoder=functools.partial(MLPDecoder, widths=(6,)),
            latent=3,
            conditional=conditional,
        ),
        "float64",
    )
    tables = vae.pictures(batch, Noise(1, "pictures", rows=ROWS, dtype=tf.float64))
    posterior = vae._posterior(batch, Noise(1, "x", rows=ROWS, dtype=tf.float64), training=False)
    mean = posterior.mean.numpy()

    def decoded(z, label):
        one_hot = np.eye(3)[label] if conditional else []
        logits = vae.decoder(tf.constant(np.concatenate([z, one_hot])[np.newaxis]))
        return scipy.special.expit(logits[0])

    labels = batch["label"].numpy() if conditional else np.zeros(ROWS, int)
    originals, reconstructions = tables["reconstructions"]
    np.testing.assert_array_equal(originals, batch["image"])
    for row in (0, 5):
        np.testing.assert_allclose(
            reconstructions[row], decoded(mean[row], labels[row]), rtol=1e-10
        )
    ways = tables["interpolations"]
    assert ways.shape == (ROWS // 2, 8, 8, 8, 1)
    np.testing.assert_allclose(ways[1, 0], decoded(mean[2], labels[2]), rtol=1e-10)
    np.testing.assert_allclose(ways[1, 7], decoded(mean[3], labels[2]), rtol=1e-10)
    chosen = np.argsort(-posterior.divergence().numpy().mean(0))
    assert tables["traversals"].shape == (3, 8, 8, 8, 1)
    for row, unit in enumerate(chosen):
        z = np.where(np.arange(3) == unit, 3.0, mean[0])
        np.testing.assert_allclose(tables["traversals"][row, 7], decoded(z, labels[0]), rtol=1e-10)
