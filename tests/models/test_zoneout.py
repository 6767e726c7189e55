"""Zoneout against NumPy, a step at a time, with the units that are kept at hand."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from models.language_model import LanguageModel
from models.lstm import LSTM
from models.lstm_network import LSTMNetwork
from models.zoneout import Zoneout
from tests.models import objective_checks as checks

BATCH, TIME, INPUTS, UNITS = 2, 5, 3, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=[BATCH, TIME, INPUTS])
H, C = RNG.normal(size=[2, BATCH, UNITS])
MASK = 2.0 * RNG.integers(0, 2, [BATCH, UNITS])
SCALES = [RNG.normal(size=s) for s in [(BATCH, TIME, UNITS), (BATCH, UNITS), (BATCH, UNITS)]]


def make(policy="float64"):
    dtype = checks.NOISE_DTYPE[policy]
    with checks.dtype_policy(policy):
        layer = LSTM(UNITS, Noise(0, "lstm", rows=1, dtype=dtype), "lstm")
        layer.build((None, None, INPUTS))
    return layer


def noise(seed=0):
    return Noise(seed, "noise", rows=BATCH, dtype=tf.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(kept_h, kept_c, mask, x, h, c, kernel, recurrent_kernel, bias):
    """Outputs, h and c; what is kept is `[b, time, units]`."""
    outputs = []
    for t in range(x.shape[1]):
        z = x[:, t] @ kernel + (h * mask) @ recurrent_kernel + bias
        i, f, g, o = np.split(z, 4, 1)
        new = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = kept_h[:, t] * h + (1 - kept_h[:, t]) * sigmoid(o) * np.tanh(new)
        c = kept_c[:, t] * c + (1 - kept_c[:, t]) * new
        outputs.append(h)
    return np.stack(outputs, 1), h, c


def loss(outputs):
    return sum((y * scale).sum() for y, scale in zip(outputs, SCALES, strict=True))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_against_numpy(training, jit):
    layer, zoneout = make(), Zoneout(0.5, 0.3)

    @tf.function(jit_compile=jit)
    def run(x, h, c):
        weights = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch([x, h, c])
            mask = tf.constant(MASK)
            outputs, state = zoneout.run(
                layer, x, (h, c), mask, noise=noise()("lstm"), training=training
            )
            total = sum(
                tf.reduce_sum(y * w) for y, w in zip((outputs, *state), SCALES, strict=True)
            )
        return [outputs, *state], tape.gradient(total, [x, h, c, *weights])

    found, gradients = run(*map(tf.constant, (X, H, C)))
    kept_h, kept_c = np.full([BATCH, TIME, UNITS], 0.5), np.full([BATCH, TIME, UNITS], 0.3)
    if training:
        drawn = noise()("lstm")
        kept_h = drawn("h").uniform([TIME, UNITS]).numpy() < 0.5
        kept_c = drawn("c").uniform([TIME, UNITS]).numpy() < 0.3
        assert 0 < kept_h.mean() < 1 and 0 < kept_c.mean() < 1
    kept = [kept_h.astype(float), kept_c.astype(float), MASK]
    arguments = [np.array(a) for a in (X, H, C, *layer.get_weights())]
    for value, expected in zip(found, reference(*kept, *arguments), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
    for number, gradient in enumerate(gradients):
        # Central differences in a direction at random.
        direction = RNG.normal(size=gradient.shape)
        ends = []
        for change in (1e-5, -1e-5):
            moved = list(arguments)
            moved[number] = moved[number] + change * direction
            ends.append(loss(reference(*kept, *moved)))
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose((gradient * direction).numpy().sum(), slope, rtol=1e-7)


def test_at_rates_of_zero_it_is_the_layer():
    layer, zoneout = make(), Zoneout(0.0, 0.0)
    assert not zoneout and Zoneout(0.1, 0.0) and Zoneout(0.0, 0.1)
    state, mask = (tf.constant(H), tf.constant(C)), tf.constant(MASK)
    outputs, after = zoneout.run(layer, tf.constant(X), state, mask)
    expected, expected_after = layer(tf.constant(X), state, mask)
    for one, other in zip((outputs, *after), (expected, *expected_after), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_gates_are_of_the_precision_of_the_state():
    """In low precision too, where a sum of both products would be rounded."""
    layer = make("mixed_bfloat16")
    layer.bias.assign(RNG.normal(size=layer.bias.shape))
    _, (_, expected) = layer(tf.constant(X, tf.float32))
    _, (_, cell) = Zoneout(0.0, 0.0).run(layer, tf.constant(X, tf.float32))
    np.testing.assert_allclose(cell, expected, atol=1e-6)


def test_rates_and_noise_are_checked():
    with pytest.raises(ValueError, match=r"zoneout_c is 1.0: it must be at least 0 and below 1"):
        Zoneout(0.0, 1.0)
    with pytest.raises(ValueError, match="give it noise to train"):
        Zoneout(0.1, 0.0).run(make(), tf.constant(X), training=True)


SPEC = {"tokens": Feature((7,), "int32", 5)}
TOKENS = RNG.integers(0, 5, [8, 7]).astype(np.int32)


def model(**rates):
    network = functools.partial(LSTMNetwork, embedding=4, widths=(6, 5), **rates)
    return LanguageModel(SPEC, network=network, gates=6)


def test_a_language_model_keeps_the_contract():
    """What is kept of an example depends on its index alone, is drawn once for each layer and part, and only in training."""
    rates = {"zoneout_h": 0.4, "zoneout_c": 0.2}
    built = checks.build(lambda: model(**rates), "float64")
    batch = {"tokens": tf.constant(TOKENS)}
    checks.check_rows_are_their_own(built, built.phases[0], batch)
    drawn = Noise(0, "noise", rows=8, dtype=tf.float64)
    first = built.loss(batch, drawn, 0)[0].numpy()
    parts = [name[-1] for name in rates]
    assert drawn.drawn == {f"noise/network/lstm_{i}_zoneout/{p}" for i in range(2) for p in parts}
    other = built.loss(batch, Noise(1, "noise", rows=8, dtype=tf.float64), 0)[0].numpy()
    assert np.all(np.abs(first - other) > 1e-6)
    evaluated = [
        built.evaluate(batch, Noise(seed, "noise", rows=8, dtype=tf.float64), 0)["nats"].numpy()
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*evaluated)
    # Of the mean of old and new, not of the layer without zoneout.
    plain = checks.build(model, "float64")
    assert np.abs(plain.evaluate(batch, drawn, 0)["nats"] - evaluated[0]).max() > 1e-6
    # Gates are shown along the same path.
    cell = built.charts(batch)[1]["lstm_0"]["tanh of the cell"].numpy()
    assert cell.shape == (6, 6)
    state = built.network(batch["tokens"][:1, :-1])[1]
    expected = np.tanh(state["lstm_0/c"][0].numpy())
    np.testing.assert_allclose(np.sort(cell[:, -1]), np.sort(expected), rtol=1e-12)
