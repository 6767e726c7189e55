"""Adversarial losses in closed form, the GAN's phases against NumPy, and its networks' sizes."""

import functools

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from models import image_networks
from models.augmentation import augment
from models.diversity import diversity
from models.gan import GAN
from models.gan_losses import HINGE, LEAST_SQUARES, NON_SATURATING, WASSERSTEIN
from models.grid_networks import ResidualDecoder, ResidualEncoder
from models.image_networks import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    leaky_relu,
)
from models.mlp import MLPDecoder, MLPEncoder
from models.resnet_networks import ResNetDiscriminator, ResNetGenerator
from tests.models.objective_checks import (
    NOISE_DTYPE,
    WAYS,
    build,
    check_builds_alike_twice,
    check_phase,
    check_rows_are_their_own,
    phase_function,
    phase_runner,
    run_phase,
    variables,
)

ROWS = 8


def spec(*shape):
    return {"image": Feature(shape, "float32")}


def images(dtype=tf.float32, shape=(8, 8, 1)):
    return {"image": tf.cast(tf.random.stateless_uniform((ROWS, *shape), (1, 2)), dtype)}


def convolutional(loss="non_saturating", penalty=None, **arguments):
    """8×8 images, two stages, ghost groups of 4 (none in a discriminator with a penalty) and dropout."""
    return GAN(
        spec(8, 8, 1),
        generator=functools.partial(ConvolutionalDecoder, width=4, stages=2, group=4),
        discriminator=functools.partial(
            ConvolutionalEncoder,
            width=4,
            stages=2,
            group=0 if penalty else 4,
            dropout=0.2,
        ),
        latent=4,
        loss=loss,
        penalty=penalty,
        **arguments,
    )


CRITIC = {"loss": "wasserstein", "penalty": "wgan_gp"}


def conditional(**arguments):
    """Everything at once on 8×8 images of 3 classes: see `test_layouts.py`, which trains it."""
    options = {
        "generator": functools.partial(ResNetGenerator, width=8, group=4),
        "discriminator": functools.partial(
            ResNetDiscriminator, width=8, spectral=True, stddev_group=4
        ),
        "latent": 4,
        "loss": "hinge",
        "penalty": "r1",
        "penalty_every": 3,
        "augmentation": ("colour", "translation", "cutout"),
    } | arguments
    labelled = spec(8, 8, 1) | {"label": Feature((), "int32", cardinality=3)}
    return GAN(labelled, conditional=True, **options)


def labelled_images(dtype=tf.float32):
    return images(dtype) | {"label": tf.constant([0, 2, 1, 1, 2, 0, 1, 2], tf.int32)}


def linear(loss, **arguments):
    """G(z) = tanh(zV + c) and D(x) = xw + b on 2×3 pictures, for closed forms."""
    return GAN(
        spec(2, 3, 1),
        generator=functools.partial(MLPDecoder, widths=()),
        discriminator=functools.partial(MLPEncoder, widths=()),
        latent=4,
        loss=loss,
        **arguments,
    )


# Losses


def test_non_saturating_loss():
    sigmoid = 1 / (1 + np.exp(-np.array([-2.0, 0.0, 3.0])))
    logits = tf.constant([-2.0, 0.0, 3.0], tf.float64)
    np.testing.assert_allclose(NON_SATURATING.real(logits), -np.log(sigmoid), rtol=1e-12)
    np.testing.assert_allclose(NON_SATURATING.fake(logits), -np.log(1 - sigmoid), rtol=1e-12)
    np.testing.assert_allclose(NON_SATURATING.generator(logits), -np.log(sigmoid), rtol=1e-12)
    assert np.isfinite(NON_SATURATING.fake(tf.constant([1e4]))[0])


def test_hinge_loss():
    output = tf.constant([-2.0, 0.0, 0.5, 3.0])
    np.testing.assert_allclose(HINGE.real(output), [3, 1, 0.5, 0])
    np.testing.assert_allclose(HINGE.fake(output), [0, 1, 1.5, 4])
    np.testing.assert_allclose(HINGE.generator(output), [2, 0, -0.5, -3])


def test_wasserstein_loss():
    output = tf.constant([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(WASSERSTEIN.real(output), [2, 0, -3])
    np.testing.assert_allclose(WASSERSTEIN.fake(output), [-2, 0, 3])
    np.testing.assert_allclose(WASSERSTEIN.generator(output), [2, 0, -3])


def test_least_squares_loss():
    output = tf.constant([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(LEAST_SQUARES.real(output), [4.5, 0.5, 2])
    np.testing.assert_allclose(LEAST_SQUARES.fake(output), [2, 0, 4.5])
    np.testing.assert_allclose(LEAST_SQUARES.generator(output), [4.5, 0.5, 2])


# The objective against NumPy


def softplus(x):
    return np.logaddexp(0, x)


LINEAR_LOSSES = {
    "non_saturating": (lambda o: softplus(-o), softplus, lambda o: softplus(-o), 0),
    "hinge": (lambda o: np.maximum(0, 1 - o), lambda o: np.maximum(0, 1 + o), np.negative, 0),
    "least_squares": (
        lambda o: (o - 1) ** 2 / 2,
        lambda o: o**2 / 2,
        lambda o: (o - 1) ** 2 / 2,
        0.5,
    ),
    "wasserstein": (np.negative, np.positive, np.negative, None),
}


@pytest.mark.parametrize("penalty", [None, "wgan_gp", "r1", "dragan"])
@pytest.mark.parametrize("loss", LINEAR_LOSSES)
def test_phases_of_a_linear_gan(loss, penalty):
    gan = build(lambda: linear(loss, penalty=penalty, penalty_weight=7.0), "float64")
    values = {path: v.numpy() for path, v in variables(gan).items()}
    w, b = values["discriminator/dense/kernel"], values["discriminator/dense/bias"]
    v, c = values["generator/dense/kernel"], values["generator/dense/bias"]
    batch = images(tf.float64, (2, 3, 1))
    real_loss, fake_loss, generator_loss, boundary = LINEAR_LOSSES[loss]

    def outputs(phase):
        z = Noise(1, f"{phase}/latent", rows=ROWS, step=3, dtype=tf.float64).normal([4])
        return np.tanh(z @ v + c) @ w[:, 0] + b

    discriminator, generator = gan.phases
    real = (2 * batch["image"].numpy().reshape(ROWS, 6) - 1) @ w[:, 0] + b
    fake = outputs("discriminator")
    expected = real_loss(real) + fake_loss(fake)
    norm = np.linalg.norm(w)
    expected_penalty = norm**2 / 2 if penalty == "r1" else (norm - 1) ** 2
    if penalty:
        expected += 7 * expected_penalty
    result, metrics, _, moved = run_phase(gan, discriminator, batch, tf.float64)
    np.testing.assert_allclose(result, expected, rtol=1e-10)
    np.testing.assert_allclose(metrics["real_output"], real, rtol=1e-12)
    np.testing.assert_allclose(metrics["fake_output"], fake, rtol=1e-12)
    np.testing.assert_allclose(metrics["real_loss"], real_loss(real), rtol=1e-12)
    np.testing.assert_allclose(metrics["fake_loss"], fake_loss(fake), rtol=1e-12)
    assert ("gradient_penalty" in metrics) == bool(penalty)
    if penalty:
        np.testing.assert_allclose(metrics["gradient_penalty"], expected_penalty, rtol=1e-9)
    assert ("accuracy" in metrics) == (boundary is not None)
    if boundary is not None:
        share = ((real > boundary).astype(float) + (fake < boundary)) / 2
        np.testing.assert_array_equal(metrics["accuracy"], share)
    assert not moved
    result, metrics, _, _ = run_phase(gan, generator, batch, tf.float64)
    fake = outputs("generator")
    np.testing.assert_allclose(result, generator_loss(fake), rtol=1e-12)
    np.testing.assert_allclose(metrics["fake_output"], fake, rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_evaluate_and_sample_use_the_averaged_generator(decay):
    gan = build(lambda: linear("hinge", average_decay=decay), "float64")
    values = variables(gan)
    name = "generator_average" if decay else "generator"
    assert ("generator_average" in gan.networks) == bool(decay)
    kernel = values[f"{name}/dense/kernel"]
    kernel.assign(3 * kernel)
    z = Noise(5, "evaluate/latent", rows=ROWS, dtype=tf.float64).normal([4]).numpy()
    image = np.tanh(z @ kernel.numpy() + values[f"{name}/dense/bias"].numpy())
    noise = Noise(5, "evaluate", rows=ROWS, dtype=tf.float64)
    samples = gan.sample(noise).numpy()
    assert samples.shape == (ROWS, 2, 3, 1) and samples.min() >= 0 and samples.max() <= 1
    np.testing.assert_allclose(samples.reshape(ROWS, 6), (image + 1) / 2, atol=1e-14)
    w = values["discriminator/dense/kernel"].numpy()[:, 0]
    batch = images(tf.float64, (2, 3, 1))
    real = (2 * batch["image"].numpy().reshape(ROWS, 6) - 1) @ w
    metrics = gan.evaluate(
        batch, Noise(5, "evaluate", rows=ROWS, dtype=tf.float64), tf.constant(0, tf.int64)
    )
    np.testing.assert_allclose(metrics["real_output"], real, rtol=1e-12)
    np.testing.assert_allclose(metrics["fake_output"], image @ w, rtol=1e-12)
    np.testing.assert_allclose(metrics["generator_loss"], -image @ w, rtol=1e-12)
    np.testing.assert_allclose(
        metrics["discriminator_loss"],
        np.maximum(0, 1 - real) + np.maximum(0, 1 + image @ w),
        rtol=1e-12,
    )


def test_the_phases_and_the_average():
    gan = build(lambda: convolutional(critic_updates=3, average_decay=0.99))
    discriminator, generator = gan.phases
    assert (discriminator.name, discriminator.updates, discriminator.reads) == (
        "discriminator",
        3,
        True,
    )
    assert (generator.name, generator.updates, generator.reads) == ("generator", 1, False)
    assert all(v.path.startswith("discriminator/") for v in discriminator.variables)
    assert all(v.path.startswith("generator/") for v in generator.variables)
    assert discriminator.average is None and generator.average.decay == 0.99
    pairs = zip(generator.average.source.weights, generator.average.copy.weights, strict=True)
    for source, copy in pairs:
        assert copy.path == source.path.replace("generator", "generator_average")
        assert source.value is not copy.value
        np.testing.assert_array_equal(source.numpy(), copy.numpy())


# The phases as the trainer runs them


@pytest.mark.parametrize(
    ("critic", "policy", "jit"),
    [*((False, *way) for way in WAYS), *((True, policy, False) for policy in NOISE_DTYPE)],
)
def test_gradients_are_finite_and_each_phase_moves_its_own_statistics(critic, policy, jit):
    gan = build(lambda: convolutional(**CRITIC if critic else {}), policy)
    batch = images(tf.float64 if policy == "float64" else tf.float32)
    # A critic's loss does not change with its level.
    still = ["discriminator/dense/bias"] if critic else []
    moved = [check_phase(gan, phase, batch, policy, jit, still) for phase in gan.phases]
    assert moved[0] == (
        set() if critic else {f"discriminator/norm_1/moving_{s}" for s in ("mean", "variance")}
    )
    assert moved[1] == {
        f"generator/norm_{i}/moving_{s}" for i in (0, 1) for s in ("mean", "variance")
    }


@pytest.mark.parametrize("arguments", [{"loss": "hinge"}, CRITIC, {"penalty": "dragan"}])
def test_rows_depend_on_their_own_example_and_group(arguments):
    gan = build(lambda: convolutional(**arguments), "float64")
    for phase in gan.phases:
        check_rows_are_their_own(gan, phase, images(tf.float64))


def test_rows_of_classes_depend_on_their_own_example_and_group():
    gan = build(conditional, "float64")
    for phase in gan.phases:
        check_rows_are_their_own(gan, phase, labelled_images(tf.float64))


@pytest.mark.parametrize("policy", NOISE_DTYPE)
def test_gradients_with_classes_and_statistics(policy):
    """Class-conditional batch norm in the generator, spectral norm in the discriminator, which every call refreshes."""
    gan = build(conditional, policy)
    batch = labelled_images(tf.float64 if policy == "float64" else tf.float32)
    discriminator, generator = (check_phase(gan, p, batch, policy) for p in gan.phases)
    assert discriminator == {
        path for path in variables(gan) if path.startswith("discriminator/") and path.endswith("/u")
    }
    assert generator == {
        path for path in variables(gan) if path.startswith("generator/") and "/moving_" in path
    }


# Lazy penalty, classes, augmentation, diversity


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "xla"])
def test_a_lazy_penalty_is_taken_at_every_third_step_three_times(jit):
    """Loss and gradient are those of the discriminator without a penalty, or with three times the weight."""

    batch, first = images(tf.float64, (2, 3, 1)), tf.constant(0, tf.int64)

    def discriminator(**arguments):
        gan = build(lambda: linear("hinge", **arguments), "float64")
        return phase_runner(gan, gan.phases[0], tf.float64, jit)

    lazy = discriminator(penalty="r1", penalty_weight=2.0, penalty_every=3)
    plain, penalised = discriminator(), discriminator(penalty="r1", penalty_weight=6.0)
    for step in range(3, 7):
        due = step % 3 == 0
        arguments = batch, tf.constant(step, tf.int64), first
        loss, metrics, gradients, _ = lazy(*arguments)
        expected, others, expected_gradients, _ = (penalised if due else plain)(*arguments)
        penalty = 3 * others["gradient_penalty"] if due else np.zeros(ROWS)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(metrics["gradient_penalty"], penalty, rtol=1e-12)
        for mine, theirs in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_both_networks_are_told_the_class_of_the_real_example():
    plain = {"augmentation": (), "penalty": None, "penalty_every": 1}
    gan = build(lambda: conditional(**plain), "float64")
    batch = labelled_images(tf.float64)
    noise = Noise(1, "discriminator", rows=ROWS, step=3, dtype=tf.float64)
    latent = noise("latent").normal([4])
    state = {"labels": batch["label"], "training": True, "update_statistics": False}
    fake = tf.tanh(gan.generator(latent, **state))
    _, metrics, _, _ = run_phase(gan, gan.phases[0], batch, tf.float64)
    # Spectral norm goes on from the real examples to the generated ones.
    with keras.StatelessScope():
        real = gan.discriminator(2 * batch["image"] - 1, **state | {"update_statistics": True})
        fake = gan.discriminator(fake, **state)
    np.testing.assert_allclose(metrics["real_output"], real[:, 0], rtol=1e-10)
    np.testing.assert_allclose(metrics["fake_output"], fake[:, 0], rtol=1e-10)
    others = batch | {"label": (batch["label"] + 1) % 3}
    step = tf.constant(3, tf.int64)
    for phase in gan.phases:
        with keras.StatelessScope():
            loss, other = (
                phase.loss(b, Noise(1, phase.name, rows=ROWS, dtype=tf.float64), step)[0]
                for b in (batch, others)
            )
        assert np.all(np.abs(loss - other) > 1e-9)


def test_samples_take_the_classes_in_turn():
    gan = build(lambda: conditional(average_decay=0.0), "float64")
    for path, variable in variables(gan).items():
        if path.endswith(("beta", "gamma")):
            variable.assign(np.random.default_rng(len(path)).normal(size=variable.shape))
    samples = gan.sample(Noise(5, "sample", rows=6, first=2, dtype=tf.float64))
    latent = Noise(5, "sample/latent", rows=6, first=2, dtype=tf.float64).normal([4])
    expected = tf.tanh(gan.generator(latent, labels=tf.constant([2, 0, 1, 2, 0, 1])))
    np.testing.assert_allclose(samples, (expected + 1) / 2, rtol=1e-12)


@pytest.mark.parametrize("jit", [False, True])
def test_truncated_latents_are_those_of_a_truncated_normal(jit):
    """Of samples and their interpolations; training and evaluation have the normal ones."""
    gan = build(lambda: linear("hinge", truncation=0.7), "float64")
    kernel, bias = (v.numpy() for v in gan.averaged.weights)
    noise = functools.partial(Noise, 5, "sample", rows=4000, dtype=tf.float64)
    draw = tf.function(lambda: gan.sample(noise()), jit_compile=jit)
    samples = draw().numpy().reshape(4000, 6)
    latent = np.linalg.lstsq(kernel.T, (np.arctanh(2 * samples - 1) - bias).T)[0].T
    assert np.abs(latent).max() <= 0.7 + 1e-6
    assert scipy.stats.kstest(latent.ravel(), scipy.stats.truncnorm(-0.7, 0.7).cdf).pvalue > 0.01
    table = gan.pictures(images(tf.float64, (2, 3, 1)), noise())["interpolations"]
    np.testing.assert_allclose(
        tf.reshape(table[:, 0], [2000, 6]), samples[:2000], rtol=1e-6, atol=1e-9
    )
    batch, still = images(tf.float64, (2, 3, 1)), build(lambda: linear("hinge"), "float64")
    step = tf.constant(0, tf.int64)
    for method in (GAN.evaluate, GAN.generator_loss):
        one, other = (
            method(each, batch, Noise(1, "x", rows=ROWS, dtype=tf.float64), step)
            for each in (gan, still)
        )
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def test_the_discriminator_sees_augmented_images_in_training_alone():
    """Real and generated ones alike, each changed by noise of its own."""
    changes = ("colour", "translation", "cutout")
    gan = build(lambda: linear("hinge", augmentation=changes), "float64")
    batch = images(tf.float64, (2, 3, 1))
    noise = Noise(1, "discriminator", rows=ROWS, step=3, dtype=tf.float64)
    x, kernel = 2 * batch["image"] - 1, gan.discriminator.trainable_variables[0]
    fake = gan._generate(gan.generator, None, noise, training=True)
    _, metrics, _, _ = run_phase(gan, gan.phases[0], batch, tf.float64)
    for which, plain in (("real", x), ("fake", fake)):
        seen = augment(plain, changes, noise(f"augmentation/{which}"))
        assert np.all(np.any(seen != plain, (1, 2, 3)))
        output = (tf.reshape(seen, [ROWS, 6]) @ kernel)[:, 0]
        np.testing.assert_allclose(metrics[f"{which}_output"], output, rtol=1e-10, atol=1e-14)
    evaluated = gan.evaluate(batch, Noise(5, "evaluate", rows=ROWS, dtype=tf.float64), 0)
    output = (tf.reshape(x, [ROWS, 6]) @ kernel)[:, 0]
    np.testing.assert_allclose(evaluated["real_output"], output, rtol=1e-12)


def test_diversity_is_the_difference_of_two_neighbours():
    x = images(tf.float64)["image"]
    pairs = x.numpy().reshape(4, 2, 64)
    expected = np.repeat(np.abs(pairs[:, 0] - pairs[:, 1]).mean(1), 2)
    np.testing.assert_allclose(diversity(2 * x - 1), expected, rtol=1e-12)
    gan = build(lambda: linear("hinge"), "float64")
    values = {path: v.numpy() for path, v in variables(gan).items()}
    batch = images(tf.float64, (2, 3, 1))
    _, metrics, _, _ = run_phase(gan, gan.phases[0], batch, tf.float64)
    np.testing.assert_allclose(metrics["real_diversity"], diversity(2 * batch["image"] - 1))
    z = Noise(1, "discriminator/latent", rows=ROWS, step=3, dtype=tf.float64).normal([4])
    fake = np.tanh(z @ values["generator/dense/kernel"]).reshape(4, 2, 6)
    expected = np.repeat(np.abs(fake[:, 0] - fake[:, 1]).mean(1) / 2, 2)
    np.testing.assert_allclose(metrics["fake_diversity"], expected, rtol=1e-10)
    # Held-out examples may be sorted.
    assert not any(
        "diversity" in name
        for name in gan.evaluate(batch, Noise(1, "evaluate", rows=ROWS, dtype=tf.float64), 0)
    )
    gan = build(lambda: linear("hinge", watch_diversity=False), "float64")
    _, metrics, _, _ = run_phase(gan, gan.phases[0], batch, tf.float64)
    assert not any("diversity" in name for name in metrics)
    with pytest.raises(ValueError, match="its batch on a replica is 3: choose an even batch"):
        diversity(x[:3])


def test_diversity_of_classes_is_that_within_a_class():
    x = images(tf.float64)["image"]
    within = diversity(2 * x - 1).numpy()
    labels = tf.constant([2, 2, 0, 1, 1, 1, 2, 0])
    found = diversity(2 * x - 1, labels)
    np.testing.assert_allclose(found, within * [1, 1, 0, 0, 1, 1, 0, 0], rtol=1e-12)


def test_the_discriminators_dropout_differs_for_real_and_generated_examples():
    """With the same examples for both, D(real) is not D(fake)."""
    gan = build(convolutional)
    x, noise = 2 * images()["image"] - 1, Noise(1, "discriminator", rows=ROWS)
    real, fake = (
        gan._output(x, None, noise, which, training=True, update=False)
        for which in ("real", "fake")
    )
    assert np.all(np.abs(real - fake) > 1e-6)


@pytest.mark.parametrize("make", [convolutional, conditional])
def test_builds_alike_twice(make):
    check_builds_alike_twice(make)


# Networks


def test_parameter_counts_by_hand():
    gan = build(
        lambda: GAN(
            spec(28, 28, 1),
            generator=functools.partial(ConvolutionalDecoder, width=32, group=4),
            discriminator=functools.partial(ConvolutionalEncoder, width=32, group=4),
        )
    )
    sizes = {path: int(np.prod(v.shape)) for path, v in variables(gan).items()}
    assert {p: n for p, n in sizes.items() if p.startswith("generator/")} == {
        "generator/dense/kernel": 64 * 7 * 7 * 64,
        **{f"generator/norm_0/{p}": 64 for p in NORM},
        "generator/convolution_0/kernel": 4 * 4 * 64 * 32,
        **{f"generator/norm_1/{p}": 32 for p in NORM},
        "generator/convolution_1/kernel": 4 * 4 * 32 * 1,
        "generator/convolution_1/bias": 1,
    }
    assert {p: n for p, n in sizes.items() if p.startswith("discriminator/")} == {
        "discriminator/convolution_0/kernel": 4 * 4 * 1 * 32,
        "discriminator/convolution_0/bias": 32,
        "discriminator/convolution_1/kernel": 4 * 4 * 32 * 64,
        **{f"discriminator/norm_1/{p}": 64 for p in NORM},
        "discriminator/dense/kernel": 7 * 7 * 64,
        "discriminator/dense/bias": 1,
    }


NORM = ("gamma", "beta", "moving_mean", "moving_variance")


@pytest.mark.parametrize(
    ("side", "channels", "stages", "base"),
    [
        (8, 1, None, 4),
        (8, 1, 2, 2),
        (28, 1, None, 7),
        (48, 3, None, 6),
        (64, 3, None, 4),
        (128, 3, None, 4),
    ],
)
def test_sizes(side, channels, stages, base):
    shape, noise = (side, side, channels), Noise(1, "init", rows=1)
    decoder = ConvolutionalDecoder(shape, 5, noise=noise("d"), name="d", width=2, stages=stages)
    encoder = ConvolutionalEncoder(shape, 6, noise=noise("e"), name="e", width=2, stages=stages)
    image = decoder(tf.ones([2, 5]))
    assert decoder.base_shape[:2] == (base, base) and image.shape == (2, *shape)
    assert encoder(image).shape == (2, 6)


def test_the_paper_s_generator():
    """DCGAN, figure 1: 100 latents to 4×4×1024, then 512, 256 and 128 channels, and 64×64×3."""
    decoder = ConvolutionalDecoder(
        (64, 64, 3), 100, noise=Noise(1, "init", rows=1), name="g", width=128, group=4
    )
    assert decoder.base_shape == (4, 4, 1024)
    assert [layer.kernel.shape[-2:] for layer in decoder.convolutions] == [
        (512, 1024),
        (256, 512),
        (128, 256),
        (3, 128),
    ]


def test_leaky_relu():
    x = tf.constant([[-2.0, 0.0], [3.0, -0.5]])
    np.testing.assert_allclose(leaky_relu(x), [[-0.4, 0], [3, -0.1]], rtol=1e-6)


@pytest.mark.skipif(
    not tf.__version__.startswith("2.21") or not _pywrap_util_port.IsMklEnabled(),
    reason="seen with TensorFlow 2.21 and oneDNN",
)
@pytest.mark.parametrize("needed", [True, False])
def test_leaky_relu_keeps_the_remapper_quiet_and_is_still_needed(needed, capfd, monkeypatch):
    if needed:
        monkeypatch.setattr(image_networks, "leaky_relu", lambda x: tf.nn.leaky_relu(x, 0.2))
    gan = build(convolutional)
    zero = tf.constant(0, tf.int64)
    phase_function(gan, gan.phases[0])(images(), zero, zero)
    assert ("remapper failed" in capfd.readouterr().err) == needed


# Errors


@pytest.mark.parametrize(
    ("shape", "stages", "message"),
    [
        ((28, 32, 1), None, "28×32×1"),
        ((6, 6, 1), None, "6×6×1"),
        ((160, 160, 3), None, "160×160×3"),
        ((32, 32, 4), None, "32×32×4"),
        ((30, 30, 1), None, "cannot be halved 2 times"),
        ((8, 8, 1), 4, "cannot be halved 4 times"),
        ((8, 8, 1), 0, "stages 0"),
    ],
)
def test_images_that_do_not_fit_are_named(shape, stages, message):
    discriminator = functools.partial(ConvolutionalEncoder, stages=stages)
    generator = functools.partial(ConvolutionalDecoder, stages=stages)
    for arguments in ({"generator": generator}, {"discriminator": discriminator}):
        with pytest.raises(ValueError, match=message):
            build(lambda arguments=arguments: GAN(spec(*shape), **arguments))


def test_networks_of_grids_are_refused():
    for arguments in ({"generator": ResidualDecoder}, {"discriminator": ResidualEncoder}):
        (name,) = arguments
        with pytest.raises(
            ValueError, match=f"the {name} of GAN is a Residual.*, whose code is a grid"
        ):
            build(lambda arguments=arguments: GAN(spec(8, 8, 1), **arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "lsgan"}, "must be one of non_saturating, hinge, least_squares, wasserstein"),
        ({"penalty": "r2"}, 'the penalty of GAN is "r2": it must be one of wgan_gp, r1, dragan'),
        ({"penalty": "r1", "penalty_every": 0}, "penalty_every is 0 with penalty r1"),
        (
            {"penalty": "r1", "penalty_weight": -1.0},
            "penalty_weight is -1.0: it must be at least 0",
        ),
        ({"penalty_every": 16}, "penalty_every is 16 with penalty None"),
        ({"augmentation": ("flip",)}, 'has "flip": it must be of colour, translation, cutout'),
        ({"augmentation": ("cutout", "cutout")}, "cutout, cutout: name each change once"),
        ({"conditional": True}, "the data has image but no label: give the source labels"),
        ({"critic_updates": 0}, "critic_updates 0"),
        ({"average_decay": 1.0}, "average_decay is 1.0"),
        ({"truncation": 0.0}, "GAN.truncation is 0.0: it must be above 0, or None"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        GAN(spec(8, 8, 1), **arguments)


def test_data_without_images_is_named():
    with pytest.raises(ValueError, match='label but no "image"'):
        GAN({"label": Feature((), "int32", 10)})
    with pytest.raises(ValueError, match=r"uint8 \[8, 8, 1\]"):
        GAN({"image": Feature((8, 8, 1), "uint8")})


def test_labels_without_classes_and_networks_without_labels_are_named():
    many = spec(8, 8, 1) | {"label": Feature((), "int64")}
    with pytest.raises(ValueError, match=r"label\" is int64 \[\] without a number of classes"):
        GAN(many, conditional=True)
    with pytest.raises(ValueError, match="the generator knows no classes: choose the ResNet"):
        build(lambda: conditional(generator=MLPDecoder))


def test_a_penalised_discriminator_has_no_batch_norm():
    discriminator = functools.partial(ConvolutionalEncoder, stages=2, group=4)
    with pytest.raises(ValueError, match="set the discriminator's group to 0"):
        build(lambda: GAN(spec(8, 8, 1), penalty="r1", discriminator=discriminator))


@pytest.mark.parametrize("make", [convolutional, conditional])
def test_interpolations_begin_and_end_with_samples(make):
    """Row i goes from latent i to latent i + 4 of 8, of the class i modulo classes."""
    gan = build(make, "float64")
    noise = Noise(1, "pictures", rows=ROWS, dtype=tf.float64)
    table = gan.pictures(images(tf.float64), noise)["interpolations"]
    assert table.shape == (ROWS // 2, 8, 8, 8, 1)
    latent = Noise(1, "pictures", rows=ROWS, dtype=tf.float64)("latent").normal([4])
    given = {"labels": tf.range(4) % 3} if make is conditional else {}
    for column, ends in ((0, latent[:4]), (7, latent[4:])):
        expected = (tf.tanh(gan.averaged(ends, **given)) + 1) / 2
        np.testing.assert_allclose(table[:, column], expected, rtol=1e-6)
