"""Residual networks: the paper's tables of sizes, forward passes in the paper's order of operations, and classes."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.resnet_networks import ResNetDiscriminator, ResNetGenerator, doubled, halved
from tests.models.objective_checks import dtype_policy

GROUP, CLASSES = 4, 3
LABELS = np.array([0, 2, 1, 1, 2, 0, 1, 2])


def noise():
    return Noise(1, "init", rows=1, dtype=tf.float64)


def generator(shape=(8, 8, 1), inputs=5, **options):
    options = {"width": 8, "group": GROUP} | options
    with dtype_policy("float64"):
        return ResNetGenerator(shape, inputs, noise=noise(), name="generator", **options)


def discriminator(shape=(8, 8, 1), outputs=1, **options):
    options = {"width": 8} | options
    with dtype_policy("float64"):
        return ResNetDiscriminator(shape, outputs, noise=noise(), name="discriminator", **options)


def scatter(network):
    """Moves every trained weight away from the zeros and ones of its start."""
    rng = np.random.default_rng(0)
    for weight in network.trainable_variables:
        weight.assign(weight + 0.1 * rng.normal(size=weight.shape))
    return network


def images(shape=(8, 8, 1)):
    return tf.constant(np.random.default_rng(2).normal(size=(8, *shape)))


def convolve(layer, x):
    return tf.nn.conv2d(x, layer.kernel, 1, "SAME") + (layer.bias if layer.use_bias else 0)


def enlarge(x):
    return np.repeat(np.repeat(x, 2, 1), 2, 2)


def average(x):
    rows, height, width, channels = x.shape
    return np.reshape(x, (rows, height // 2, 2, width // 2, 2, channels)).mean((2, 4))


def normalise(layer, x):
    """Batch norm of each group, then each example's factor and shift."""
    groups = np.reshape(x, (-1, GROUP, *x.shape[1:]))
    mean, variance = groups.mean((1, 2, 3), keepdims=True), groups.var((1, 2, 3), keepdims=True)
    y = np.reshape((groups - mean) / np.sqrt(variance + 1e-3), x.shape)
    gamma, beta = layer.gamma.numpy(), layer.beta.numpy()
    if gamma.ndim == 2:
        gamma, beta = (p[LABELS][:, None, None] for p in (gamma, beta))
    return y * gamma + beta


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_generator_forward(classes):
    network = scatter(generator((16, 16, 1), classes=classes))
    code = np.random.default_rng(1).normal(size=(8, 5))
    x = np.reshape(code @ network.dense.kernel + network.dense.bias, (8, 4, 4, 16))
    for block in network.chain:
        y = enlarge(tf.nn.relu(normalise(block.norms[0], x)).numpy())
        y = convolve(block.convolutions[0], y)
        y = convolve(block.convolutions[1], tf.nn.relu(normalise(block.norms[1], y.numpy())))
        x = (y + convolve(block.shortcut, enlarge(x))).numpy()
    expected = convolve(network.convolution, tf.nn.relu(normalise(network.norm, x)))
    labels = {"labels": LABELS} if classes else {}
    y = network(tf.constant(code), training=True, **labels)
    assert y.shape == (8, 16, 16, 1)
    # Whose gradient would be nothing but rounding.
    assert not any("block" in v.path and v.name == "bias" for v in network.trainable_variables)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_discriminator_forward_and_projection(classes):
    network = scatter(discriminator((16, 16, 1), plain=2, spectral=False, classes=classes))
    x = images((16, 16, 1)).numpy()
    first, second, third, fourth = network.chain
    y = convolve(first.convolutions[1], tf.nn.relu(convolve(first.convolutions[0], x)))
    x = average(y.numpy()) + average(convolve(first.shortcut, x).numpy())
    y = convolve(second.convolutions[0], tf.nn.relu(x))
    y = convolve(second.convolutions[1], tf.nn.relu(y))
    x = average(y.numpy()) + average(convolve(second.shortcut, x).numpy())
    for block in (third, fourth):
        y = convolve(block.convolutions[0], tf.nn.relu(x))
        x = x + convolve(block.convolutions[1], tf.nn.relu(y)).numpy()
    features = np.maximum(x, 0).sum((1, 2))
    expected = features @ network.dense.kernel.numpy() + network.dense.bias.numpy()
    if classes:
        embedding = network.embedding.kernel.numpy()[LABELS]
        expected += np.sum(embedding * features, 1, keepdims=True)
    labels = {"labels": LABELS} if classes else {}
    y = network(images((16, 16, 1)), training=True, **labels)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-10)


def kernels(network):
    return {
        v.path.partition("/")[2].removesuffix("/kernel"): tuple(v.shape)
        for v in network.trainable_variables
        if v.path.endswith("kernel")
    }


def test_the_paper_s_generator_of_32_pixels():
    """Table 4: 128 latents to 4×4×256, three blocks of 256 channels."""
    network = generator((32, 32, 3), 128, width=256, largest_width=256)
    block = {"convolution_0": (3, 3), "convolution_1": (3, 3), "shortcut": (1, 1)}
    assert kernels(network) == {
        "dense": (128, 4 * 4 * 256),
        **{f"block_{i}/{name}": (*k, 256, 256) for i in range(3) for name, k in block.items()},
        "convolution": (3, 3, 256, 3),
    }


def test_the_paper_s_discriminator_of_32_pixels():
    """Table 4: two blocks that halve, two that do not, 128 channels."""
    network = discriminator((32, 32, 3), width=128, largest_width=128, stages=2, plain=2)
    assert kernels(network) == {
        "block_0/convolution_0": (3, 3, 3, 128),
        "block_0/shortcut": (1, 1, 3, 128),
        "block_1/convolution_0": (3, 3, 128, 128),
        "block_1/shortcut": (1, 1, 128, 128),
        **{f"block_{i}/convolution_0": (3, 3, 128, 128) for i in (2, 3)},
        **{f"block_{i}/convolution_1": (3, 3, 128, 128) for i in range(4)},
        "dense": (128, 1),
    }


def test_the_paper_s_networks_of_128_pixels():
    """Tables 5 and 6, at a sixteenth of their width of 64: 1024 to 64 channels and back."""
    made = kernels(generator((128, 128, 3), 6, width=4))
    widths = [made[f"block_{i}/convolution_0"][2:] for i in range(5)]
    assert widths == [(64, 64), (64, 32), (32, 16), (16, 8), (8, 4)]
    made = kernels(discriminator((128, 128, 3), width=4))
    widths = [made[f"block_{i}/convolution_0"][2:] for i in range(6)]
    assert widths == [(3, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 64)]


@pytest.mark.parametrize(("side", "base"), [(8, 4), (28, 7), (32, 4), (48, 6), (96, 6), (128, 4)])
def test_sizes(side, base):
    shape = (side, side, 3)
    made = generator(shape)
    image = made(tf.ones([8, 5], tf.float64), training=True)
    assert made.base_shape[:2] == (base, base) and image.shape == (8, *shape)
    assert discriminator(shape, 2)(image).shape == (8, 2)


def test_every_layer_has_spectral_norm_and_moves_its_vector():
    network = discriminator(
        (16, 16, 1), classes=CLASSES, attention=8, stddev_group=GROUP, spectral=True
    )
    vectors = {v.path: v.numpy() for v in network.non_trainable_variables}
    assert len(vectors) == len(kernels(network)) == 3 * 3 + 4 + 2
    network(images((16, 16, 1)), labels=LABELS, training=True)
    for vector in network.non_trainable_variables:
        assert np.any(vector.numpy() != vectors[vector.path]), vector.path
    again = generator((16, 16, 1), attention=8, spectral=True)
    assert sum(v.path.endswith("/u") for v in again.weights) == len(kernels(again))


def test_attention_is_where_it_is_asked_for():
    for made in (generator((32, 32, 1), attention=16), discriminator((32, 32, 1), attention=16)):
        layer = next(layer for layer in made.chain if layer.name == "attention")
        at = made.chain.index(layer)
        assert made.chain[at - 1].name == ("block_1" if made.name == "generator" else "block_0")
        layer.gamma.assign(0.5)
        inputs = images((5,)) if made.name == "generator" else images((32, 32, 1))
        attended = made(inputs)
        layer.gamma.assign(0.0)
        assert np.all(np.abs(attended - made(inputs)) > 1e-12)


def test_the_deviation_of_a_group_is_seen():
    network = discriminator(stddev_group=GROUP)
    x = images()
    alone = network(tf.concat([x[:GROUP], x[:GROUP]], 0))
    beside = network(tf.concat([x[:GROUP], 3 * x[GROUP:]], 0))
    np.testing.assert_allclose(alone[:GROUP], beside[:GROUP], rtol=1e-12)
    changed = network(tf.concat([x[:1], 3 * x[1:]], 0))
    assert abs(changed[0, 0] - alone[0, 0]) > 1e-6


def test_sizes_of_pixels():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    np.testing.assert_array_equal(doubled(tf.constant(x)), enlarge(x))
    np.testing.assert_allclose(halved(tf.constant(x)), average(x), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: generator((160, 160, 3)), "side from 8 to 128"),
        (lambda: generator(width=0), "generator has width 0: it must be at least 1"),
        (lambda: discriminator(largest_width=0), "discriminator has largest_width 0: it must be"),
        (lambda: generator((16, 16, 1), attention=4), "attention 4: .* of the sides 8, 16;"),
        (lambda: discriminator((16, 16, 1), attention=16), "attention 16: .* of the sides 8, 4;"),
        (lambda: discriminator(plain=0, stddev_group=4), "plain 0 and stddev_group 4"),
        (lambda: generator(classes=3)(images((5,))), "has 3 classes: call it with labels"),
        (lambda: discriminator(classes=3)(images()), "has 3 classes: call it with labels"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
