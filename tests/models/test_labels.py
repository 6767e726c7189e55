"""Conditional autoencoders: what labels change, and in which network."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from models.bounds import IWAE
from models.image_networks import ConvolutionalDecoder, ConvolutionalEncoder
from models.labels import LabelPlane, count_classes
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

ROWS, CLASSES, LATENT = 6, 3, 2
SPEC = {
    "image": Feature((8, 8, 1), "float32"),
    "label": Feature((), "int32", cardinality=CLASSES),
}


def mlp(**arguments):
    return VAE(
        SPEC,
        encoder=functools.partial(MLPEncoder, widths=()),
        decoder=functools.partial(MLPDecoder, widths=()),
        latent=LATENT,
        conditional=True,
        **arguments,
    )


def convolutional():
    return VAE(
        SPEC,
        encoder=functools.partial(ConvolutionalEncoder, width=4, stages=2),
        decoder=functools.partial(ConvolutionalDecoder, width=4, stages=2),
        latent=LATENT,
        conditional=True,
    )


def batch(dtype=tf.float64):
    images = tf.cast(tf.random.stateless_uniform((ROWS, 8, 8, 1), (1, 2)), dtype)
    return {"image": images, "label": tf.constant([2, 0, 1, 1, 0, 2], tf.int32)}


def test_elbo_against_numpy():
    vae = build(mlp, "float64")
    weights = {path: v.numpy() for path, v in variables(vae).items()}
    x, labels = batch()["image"].numpy(), batch()["label"].numpy()
    planes = weights["label_plane/table"][labels].reshape(ROWS, 8, 8, 1)
    inputs = np.concatenate([x, planes], 3).reshape(ROWS, -1)
    parameters = inputs @ weights["encoder/dense/kernel"] + weights["encoder/dense/bias"]
    mean, log_variance = np.split(parameters, 2, 1)
    epsilon = Noise(1, "elbo/posterior", rows=ROWS, step=3, dtype=tf.float64).normal([LATENT])
    z = mean + np.exp(log_variance / 2) * epsilon
    codes = np.concatenate([z, np.eye(CLASSES)[labels]], 1)
    logits = codes @ weights["decoder/dense/kernel"] + weights["decoder/dense/bias"]
    pixels = x.reshape(ROWS, -1)
    reconstruction = (np.logaddexp(0, logits) - pixels * logits).sum(1)
    _, metrics, _, _ = run_phase(vae, vae.phases[0], batch(), tf.float64)
    np.testing.assert_allclose(metrics["reconstruction"], reconstruction, rtol=1e-10)


def test_sample_i_is_of_class_i_modulo_classes():
    vae = build(mlp, "float64")
    kernel, bias = (v.numpy() for v in vae.decoder.trainable_variables)
    samples = vae.sample(Noise(2, "sample", rows=4, first=5, dtype=tf.float64)).numpy()
    z = Noise(2, "sample/latent", rows=4, first=5, dtype=tf.float64).normal([LATENT]).numpy()
    codes = np.concatenate([z, np.eye(CLASSES)[[2, 0, 1, 2]]], 1)
    expected = 1 / (1 + np.exp(-(codes @ kernel + bias)))
    np.testing.assert_allclose(samples.reshape(4, -1), expected, rtol=1e-10)


def test_every_sample_of_an_example_has_its_label():
    """On the importance-weighted bound; the label alone makes the difference."""
    vae = build(lambda: mlp(bound=IWAE(samples=3)), "float64")
    one, _, _, _ = run_phase(vae, vae.phases[0], batch(), tf.float64)
    labels = tf.constant([2, 0, 1, 1, 0, 0], tf.int32)
    other, _, _, _ = run_phase(vae, vae.phases[0], batch() | {"label": labels}, tf.float64)
    np.testing.assert_array_equal(one.numpy() != other.numpy(), [False] * 5 + [True])


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "xla"])
@pytest.mark.parametrize("make", [mlp, convolutional])
def test_gradients_are_finite(make, jit):
    vae = build(make, "mixed_bfloat16")
    assert check_phase(vae, vae.phases[0], batch(tf.float32), "mixed_bfloat16", jit) == set()


def test_rows_depend_on_their_own_example():
    vae = build(convolutional, "float64")
    check_rows_are_their_own(vae, vae.phases[0], batch())


def test_builds_alike_twice():
    check_builds_alike_twice(mlp)


def test_label_plane_by_hand():
    plane = LabelPlane(2, (1, 2), noise=Noise(1, "init", rows=1), name="plane")
    plane.table.assign([[1, 2], [3, 4]])
    found = plane(tf.constant([1, 0]))
    np.testing.assert_array_equal(found, [[[[3], [4]]], [[[1], [2]]]])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "the data has image but no label: give the source labels (a folder"),
        (Feature((), "int32"), 'the feature "label" is int32 [] without a number of classes'),
        (Feature((3,), "int32", cardinality=2), 'the feature "label" is int32 [3] without'),
    ],
)
def test_labels_are_checked(label, message):
    spec = {"image": SPEC["image"]} | ({} if label is None else {"label": label})
    with pytest.raises(ValueError, match=r"VAE\.conditional is True, but") as error:
        VAE(spec, conditional=True)
    assert message in str(error.value)
    assert count_classes(SPEC, "") == CLASSES
