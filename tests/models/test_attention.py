"""Self-attention against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.attention import SelfAttention
from tests.models.objective_checks import dtype_policy


def attention(policy="float64", **options):
    with dtype_policy(policy):
        layer = SelfAttention(
            16, Noise(1, "init", rows=1, dtype=tf.float64), "attention", **options
        )
        layer.build((None, 3, 4, 16))
    return layer


def test_self_attention():
    layer = attention()
    layer.gamma.assign(0.7)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 16))
    flat = x.reshape(2, 12, 16)
    query, key, value, out = (
        part.kernel.numpy()[0, 0] for part in (layer.query, layer.key, layer.value, layer.out)
    )
    assert query.shape == key.shape == value.shape == (16, 2) and out.shape == (2, 16)
    scores = np.exp((flat @ query) @ (flat @ key).transpose(0, 2, 1))
    attended = scores / scores.sum(2, keepdims=True) @ (flat @ value)
    expected = x + 0.7 * (attended @ out).reshape(x.shape)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_it_starts_as_the_identity_and_learns_its_share():
    layer = attention()
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 3, 4, 16)))
    with tf.GradientTape() as tape:
        y = layer(x)
        total = tf.reduce_sum(y**2)
    np.testing.assert_array_equal(y, x)
    assert tape.gradient(total, layer.gamma.value) != 0


def test_spectral_norm_is_of_each_convolution():
    layer = attention(spectral=True)
    before = {v.path: v.numpy() for v in layer.non_trainable_variables}
    assert len(before) == 4
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 16))
    layer(x, training=True, update_statistics=False)
    assert all(np.array_equal(v.numpy(), before[v.path]) for v in layer.non_trainable_variables)
    layer(x, training=True)
    assert all(np.all(v.numpy() != before[v.path]) for v in layer.non_trainable_variables)


def test_mixed_precision_keeps_its_dtype():
    layer = attention("mixed_bfloat16")
    layer.gamma.assign(1.0)
    y = layer(tf.ones((2, 3, 4, 16)))
    assert y.dtype == tf.bfloat16 and np.all(np.isfinite(tf.cast(y, tf.float32)))


def test_few_channels_are_an_error():
    with pytest.raises(ValueError, match="attends over 4 channels: it needs at least 8"):
        SelfAttention(4, Noise(1, "init", rows=1), "attention")
