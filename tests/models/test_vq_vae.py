"""The VQ-VAE's loss, gradients, statistics and samples."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from models.grid_networks import ResidualDecoder, ResidualEncoder
from models.likelihoods import Gaussian
from models.mlp import MLPDecoder, MLPEncoder
from models.vq_vae import VQVAE
from tests.models.objective_checks import (
    build,
    check_builds_alike_twice,
    check_phase,
    check_rows_are_their_own,
    run_phase,
    variables,
)

ROWS, WIDTH, CODES = 4, 3, 6
SPEC = {"image": Feature((8, 4, 1), "float32")}
AVERAGES = {"codebook/counts", "codebook/sums"}


def small(**arguments):
    return VQVAE(
        SPEC,
        encoder=functools.partial(ResidualEncoder, width=4, blocks=1),
        decoder=functools.partial(ResidualDecoder, width=4, blocks=1),
        codes=CODES,
        width=WIDTH,
        **arguments,
    )


def images(dtype=tf.float64):
    return {"image": tf.cast(tf.random.stateless_uniform((ROWS, 8, 4, 1), (1, 2)), dtype)}


def test_loss_and_metrics_against_numpy():
    vae = build(lambda: small(commitment=0.5, decay=0.9), "float64")
    x = images()["image"]
    z = vae.encoder(x).numpy()
    assert z.shape == (ROWS, 2, 1, WIDTH)
    codes = vae.codebook.vectors(tf.float64).numpy()
    numbers = np.linalg.norm(z[..., np.newaxis, :] - codes, axis=-1).argmin(-1)
    logits = vae.decoder(tf.constant(codes[numbers])).numpy()
    pixels = x.numpy()
    reconstruction = (np.logaddexp(0, logits) - pixels * logits).sum((1, 2, 3))
    squares = (z - codes[numbers]) ** 2
    usage = vae.codebook.usage(tf.float64).numpy()

    loss, metrics, _, moved = run_phase(vae, vae.phases[0], images(), tf.float64)
    np.testing.assert_allclose(loss, reconstruction + 0.5 * squares.sum((1, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(metrics["reconstruction"], reconstruction, rtol=1e-10)
    np.testing.assert_allclose(metrics["distance"], squares.mean((1, 2, 3)), rtol=1e-10)
    rate = -np.log(usage)[numbers].sum((1, 2))
    np.testing.assert_allclose(metrics["rate"], rate, rtol=1e-10)
    np.testing.assert_allclose(metrics["negative_elbo"], reconstruction + rate, rtol=1e-10)
    counts = np.bincount(numbers.ravel(), minlength=CODES) / ROWS
    before = vae.codebook.counts.numpy()
    np.testing.assert_allclose(moved["codebook/counts"], 0.9 * before + 0.1 * counts, rtol=1e-12)

    held_out = vae.evaluate(
        images(), Noise(1, "evaluate", rows=ROWS, dtype=tf.float64), tf.constant(0, tf.int64)
    )
    error = (pixels - 1 / (1 + np.exp(-logits))) ** 2
    np.testing.assert_allclose(held_out.pop("squared_error"), error.mean((1, 2, 3)), rtol=1e-10)
    shares = np.stack([np.bincount(n.ravel(), minlength=CODES) / n.size for n in numbers])
    np.testing.assert_allclose(held_out.pop("usage"), shares, rtol=1e-12)
    assert held_out.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(held_out[name], value, rtol=1e-12)


def test_perplexity_is_that_of_the_use_of_codes():
    """Of two codes alike and one unused it is 2."""
    found = build(small).summary({"rate": np.array(1.5), "usage": np.array([0.5, 0, 0.5])})
    assert found.keys() == {"rate", "perplexity"}
    np.testing.assert_allclose([found["rate"], found["perplexity"]], [1.5, 2.0], rtol=1e-15)


def test_straight_through_gradient():
    """The encoder's outputs have the gradient of the codes, and that of the commitment, 2 β (z - e)."""
    vae = build(lambda: small(commitment=0.5), "float64")
    x = images()["image"]
    z = vae.encoder(x)
    codes = vae.codebook.look_up(vae.codebook.nearest(z), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(codes)
        logits = vae.decoder(codes)
        total = -tf.reduce_sum(vae.likelihood.log_probability(x, logits[:, tf.newaxis]))
    slope = tape.gradient(total, codes) + 2 * 0.5 * (z - codes)
    weights = [v.value for v in vae.encoder.trainable_variables]
    with tf.GradientTape() as tape:
        z = vae.encoder(x)
    expected = tape.gradient(z, weights, output_gradients=slope)
    _, _, gradients, _ = run_phase(vae, vae.phases[0], images(), tf.float64)
    found = dict(zip((v.path for v in vae.phases[0].variables), gradients, strict=True))
    for variable, gradient in zip(vae.encoder.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(found[variable.path], gradient, rtol=1e-9, atol=1e-12)
    assert not any(path.startswith("codebook") for path in found)


def test_samples_are_of_codes_as_often_as_they_are_used():
    vae = build(small)
    vae.codebook.counts.assign([0, 1.5, 0, 0.5, 0, 0])
    drawn = []
    # What the decoder is given says which codes were drawn.
    vae.decoder = lambda codes, **_: drawn.append(codes) or tf.zeros([codes.shape[0], 8, 4, 1])
    samples = vae.sample(Noise(2, "sample", rows=2000))
    np.testing.assert_array_equal(samples, np.full((2000, 8, 4, 1), 0.5))
    codes = vae.codebook.vectors(tf.float32).numpy()
    same = (drawn[0].numpy().reshape(-1, 1, WIDTH) == codes).all(-1)
    np.testing.assert_array_equal(same.sum(1), 1)
    np.testing.assert_allclose(same.mean(0), vae.codebook.usage(tf.float32), atol=0.03)


def test_a_sample_depends_on_its_own_noise():
    vae = build(small, "float64")
    whole = vae.sample(Noise(2, "sample", rows=6, dtype=tf.float64))
    half = vae.sample(Noise(2, "sample", rows=3, first=3, dtype=tf.float64))
    np.testing.assert_allclose(half, whole[3:], rtol=1e-12)


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "xla"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_gradients_are_finite(policy, jit):
    vae = build(lambda: small(likelihood=Gaussian), policy)
    assert check_phase(vae, vae.phases[0], images(tf.float32), policy, jit) == AVERAGES


def test_rows_depend_on_their_own_example():
    vae = build(small, "float64")
    check_rows_are_their_own(vae, vae.phases[0], images())


def test_builds_alike_twice():
    check_builds_alike_twice(small)


def test_parameter_counts_by_hand():
    vae = build(small)
    block = (9 * 4 * 4 + 4) + 4 * 4
    count = {name: network.count_params() for name, network in vae.networks.items()}
    assert count == {
        "encoder": (16 * 4 + 4) + (16 * 4 * 4 + 4) + block + (4 * 3 + 3),
        "decoder": (9 * 3 * 4 + 4) + block + (16 * 4 * 4 + 4) + (16 * 4 + 1),
        "codebook": 6 + 2 * 6 * 3,
    }
    assert {v.path for v in vae.codebook.variables} == {*AVERAGES, "codebook/offsets"}


def test_a_residual_block_adds_to_its_input():
    """With the second convolution at zero nothing is added."""
    vae = build(small, "float64")
    weights = variables(vae)
    block = next(layer for layer in vae.encoder.chain if layer.name == "block_0")
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 3, 3, 4)))
    wide = tf.nn.conv2d(tf.nn.relu(x), weights["encoder/block_0/wide/kernel"].value, 1, "SAME")
    wide = tf.nn.relu(wide + weights["encoder/block_0/wide/bias"])
    kernel = weights["encoder/block_0/narrow/kernel"].numpy()[0, 0]
    np.testing.assert_allclose(block(x), x + wide.numpy() @ kernel, rtol=1e-11)
    weights["encoder/block_0/narrow/kernel"].assign(np.zeros((1, 1, 4, 4)))
    np.testing.assert_array_equal(block(x), x)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"VQVAE\.commitment is -1"):
        VQVAE(SPEC, commitment=-1.0)
    with pytest.raises(ValueError, match="images of 6×6 cannot be halved 2 times"):
        build(lambda: VQVAE({"image": Feature((6, 6, 1), "float32")}))
    for arguments in ({"encoder": MLPEncoder}, {"decoder": MLPDecoder}):
        (name,) = arguments
        with pytest.raises(ValueError, match=rf"VQVAE\.{name} is a MLP.*, whose code is no grid"):
            build(lambda arguments=arguments: VQVAE(SPEC, **arguments))
    shallower = functools.partial(ResidualEncoder, stages=1)
    with pytest.raises(
        ValueError, match=r"makes grids of 4×2 and VQVAE\.decoder takes 2×1: give both"
    ):
        build(lambda: VQVAE(SPEC, encoder=shallower))


def test_pictures_are_reconstructions():
    vae = build(small, "float64")
    tables = vae.pictures(images(), Noise(1, "pictures", rows=ROWS, dtype=tf.float64))
    originals, reconstructions = tables["reconstructions"]
    np.testing.assert_array_equal(originals, images()["image"])
    codes = vae.codebook.vectors(tf.float64).numpy()
    z = vae.encoder(images()["image"]).numpy()
    nearest = codes[np.linalg.norm(z[..., np.newaxis, :] - codes, axis=-1).argmin(-1)]
    logits = vae.decoder(tf.constant(nearest)).numpy()
    np.testing.assert_allclose(reconstructions, 1 / (1 + np.exp(-logits)), rtol=1e-10)
