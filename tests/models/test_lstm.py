"""The LSTM layer against NumPy, finite differences, and Keras' own with the same weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models import lstm_recurrence
from models.lstm import LSTM

BATCH, TIME, INPUTS, UNITS = 2, 4, 3, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=[BATCH, TIME, INPUTS])
H, C = RNG.normal(size=[2, BATCH, UNITS])
# A loss that hangs on all outputs and on both parts of the last state.
WEIGHTS = [RNG.normal(size=s) for s in [(BATCH, TIME, UNITS), (BATCH, UNITS), (BATCH, UNITS)]]


def make(policy="float64", inputs=INPUTS, units=UNITS):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        layer = LSTM(units, Noise(0, "lstm", rows=1, dtype=tf.float64), "lstm")
        layer.build((None, None, inputs))
    finally:
        keras.config.set_dtype_policy(before)
    return layer


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(x, h, c, kernel, recurrent_kernel, bias, mask=1.0):
    """A step at a time and a gate at a time; outputs, h and c."""
    units, outputs = h.shape[1], []
    gate = [slice(n * units, (n + 1) * units) for n in range(4)]
    for t in range(x.shape[1]):
        i, f, g, o = (
            x[:, t] @ kernel[:, columns] + (h * mask) @ recurrent_kernel[:, columns] + bias[columns]
            for columns in gate
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1), h, c


def weights(layer):
    return [v.value for v in (layer.kernel, layer.recurrent_kernel, layer.bias)]


def run(layer, x, state, jit=False, scales=WEIGHTS, mask=None):
    """Outputs, h, c, and the gradients of x, h, c and the weights."""

    @tf.function(jit_compile=jit)
    def call(x, h, c):
        with tf.GradientTape() as tape:
            tape.watch([x, h, c])
            outputs, state = layer(x, (h, c), mask)
            loss = sum(
                tf.reduce_sum(tf.cast(y, h.dtype) * tf.cast(w, h.dtype))
                for y, w in zip([outputs, *state], scales, strict=True)
            )
        return [outputs, *state], tape.gradient(loss, [x, h, c, *weights(layer)])

    return call(tf.constant(x), *map(tf.constant, state))


def finite_differences(arguments, mask=1.0):
    """Central differences of the loss in each element of each argument, by the NumPy reference."""

    def loss():
        found = reference(*arguments, mask)
        return sum(np.sum(y * w) for y, w in zip(found, WEIGHTS, strict=True))

    gradients = []
    for argument in arguments:
        gradient = np.zeros_like(argument)
        for place in np.ndindex(*argument.shape):
            value, ends = argument[place], []
            for change in [1e-5, -1e-5]:
                argument[place] = value + change
                ends.append(loss())
            argument[place] = value
            gradient[place] = (ends[0] - ends[1]) / 2e-5
        gradients.append(gradient)
    return gradients


@pytest.mark.parametrize("jit", [False, True])
def test_values_and_gradients_against_numpy(jit):
    layer = make()
    outputs, gradients = run(layer, X, (H, C), jit)
    arguments = [np.array(a) for a in (X, H, C, *weights(layer))]
    for value, expected in zip(outputs, reference(*arguments), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
    for value, expected in zip(gradients, finite_differences(arguments), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("jit", [False, True])
def test_a_recurrent_mask_against_numpy(jit):
    layer, mask = make(), 2.0 * RNG.integers(0, 2, [BATCH, UNITS])
    outputs, gradients = run(layer, X, (H, C), jit, mask=tf.constant(mask))
    arguments = [np.array(a) for a in (X, H, C, *weights(layer))]
    for value, expected in zip(outputs, reference(*arguments, mask), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
    for value, expected in zip(gradients, finite_differences(arguments, mask), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-8)


def counted(monkeypatch, *names):
    """The names of `lstm_recurrence` that are called, in order; layers are large enough for them."""
    called = []
    for name in names:
        compiled = getattr(lstm_recurrence, name)
        monkeypatch.setattr(
            lstm_recurrence,
            name,
            lambda *a, f=compiled, name=name: (called.append(name), f(*a))[1],
        )
    monkeypatch.setattr(lstm_recurrence, "LARGE", 1)
    return called


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "policy, tolerance, compiled",
    [
        ("float64", 1e-12, ["_compiled_forward", "_compiled_backward"]),
        ("float32", 1e-5, ["_compiled_forward", "_compiled_backward"]),
        ("mixed_float16", 0.005, ["_compiled_forward", "_compiled_backward"]),
        ("mixed_bfloat16", 0.02, ["_compiled_cell", "_compiled_cell_gradient"]),
    ],
)
def test_large_loops_are_compiled_and_the_same(policy, tolerance, compiled, jit, monkeypatch):
    """Or in bfloat16 their cells, unless they are a part of a program that is compiled; traced once, for all times."""
    layer = make(policy)
    dtype = layer.variable_dtype
    state = H.astype(dtype), C.astype(dtype)
    mask = tf.constant(2.0 * RNG.integers(0, 2, [BATCH, UNITS]), dtype)
    expected = run(layer, X, state, mask=mask)
    called = counted(monkeypatch, *compiled)
    found = run(layer, X, state, jit, mask=mask)
    assert called == ([] if jit else compiled)
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        one, other = tf.cast(one, tf.float64), tf.cast(other, tf.float64)
        scale = np.max(np.abs(other))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * scale)


def test_a_cell_is_one_program_for_all_times(monkeypatch):
    """Traced once in eager mode too, with the time as a parameter, which XLA does not want to know."""
    layer, cell = make("mixed_bfloat16", units=7), lstm_recurrence._compiled_cell
    monkeypatch.setattr(lstm_recurrence, "LARGE", 1)
    before = cell.experimental_get_tracing_count()
    layer(X)
    assert cell.experimental_get_tracing_count() == before + 1
    shapes = [(BATCH, 4 * 7), (BATCH, 7), (4 * 7,), (TIME, BATCH, 4 * 7)]
    dtypes = [tf.bfloat16, tf.float32, tf.float32, tf.bfloat16]
    given = [tf.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    program = cell.experimental_get_compiler_ir(tf.constant(1), *given)(stage="hlo")
    assert "s32[] parameter(" in program


def test_one_step_by_hand():
    """One unit, all weights zero but for the forget gate's bias of 1: c = σ(1) c, h = tanh(c) / 2."""
    layer = make(inputs=1, units=1)
    layer.set_weights([np.zeros([1, 4]), np.zeros([1, 4]), layer.bias.numpy()])
    one = np.ones([1, 1])
    outputs, (h, c) = layer(one[np.newaxis], (tf.constant(one), tf.constant(3 * one)))
    assert c.numpy().item() == pytest.approx(3 / (1 + np.exp(-1)), rel=1e-12)
    assert h.numpy().item() == pytest.approx(np.tanh(3 / (1 + np.exp(-1))) / 2, rel=1e-12)
    np.testing.assert_array_equal(outputs[:, 0], h)


def test_the_weights_are_keras_lstms():
    """Same weights, same values and gradients."""
    layer = make()
    theirs = keras.layers.LSTM(
        UNITS, return_sequences=True, return_state=True, use_cudnn=False, dtype="float64"
    )
    theirs.build((None, TIME, INPUTS))
    theirs.set_weights(layer.get_weights())
    x, state = tf.constant(X), [tf.constant(H), tf.constant(C)]
    with tf.GradientTape() as tape:
        tape.watch([x, *state])
        expected = theirs(x, initial_state=state)
        loss = sum(tf.reduce_sum(y * w) for y, w in zip(expected, WEIGHTS, strict=True))
    expected_gradients = tape.gradient(loss, [x, *state, *(v.value for v in theirs.weights)])
    outputs, gradients = run(layer, X, (H, C))
    for one, other in zip([*outputs, *gradients], [*expected, *expected_gradients], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


def test_a_sequence_in_two_parts_is_the_whole():
    layer = make()
    whole, last = layer(X)
    first, state = layer(X[:, :1])
    second, state = layer(X[:, 1:], state)
    np.testing.assert_allclose(tf.concat([first, second], 1), whole, rtol=1e-14)
    for one, other in zip(state, last, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)
    zero = np.zeros([BATCH, UNITS])
    np.testing.assert_array_equal(whole, layer(X, (tf.constant(zero), tf.constant(zero)))[0])


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "policy, dtype, tolerance",
    [
        ("float32", "float32", 1e-5),
        ("mixed_bfloat16", "bfloat16", 0.05),
        ("mixed_float16", "float16", 0.01),
    ],
)
def test_precisions(policy, dtype, tolerance, jit):
    """Products in the compute dtype, states and gradients of weights in the variable dtype, near to float64."""
    layer = make(policy)
    x, state = X.astype(np.float32), (H.astype(np.float32), C.astype(np.float32))
    outputs, gradients = run(layer, x, state, jit)
    assert [y.dtype.name for y in outputs] == [dtype, "float32", "float32"]
    assert {g.dtype.name for g in gradients} == {"float32"}
    exact = make()
    exact.set_weights(layer.get_weights())
    expected, expected_gradients = run(exact, X, (H, C))
    for one, other in zip([*outputs, *gradients], [*expected, *expected_gradients], strict=True):
        scale = np.max(np.abs(other))
        np.testing.assert_allclose(
            tf.cast(one, tf.float64), other, rtol=tolerance, atol=tolerance * scale
        )


def test_initial_weights():
    layer = make(inputs=30, units=40)
    again = make(inputs=30, units=40)
    for one, other in zip(layer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    kernel, recurrent_kernel, bias = layer.get_weights()
    assert kernel.shape == (30, 160) and recurrent_kernel.shape == (40, 160)
    for weight in [kernel, recurrent_kernel]:
        assert np.abs(weight).max() < 40**-0.5
        assert weight.std() == pytest.approx((3 * 40) ** -0.5, rel=0.05)
    np.testing.assert_array_equal(bias, np.repeat([0.0, 1.0, 0.0, 0.0], 40))
    assert [v.path for v in layer.variables] == [
        "lstm/kernel",
        "lstm/recurrent_kernel",
        "lstm/bias",
    ]


def test_an_unknown_batch_size():
    layer = make()

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs, _ = layer(x)
            loss = tf.reduce_sum(outputs**2)
        return outputs, *tape.gradient(loss, [x, *layer.trainable_variables])

    signature = [tf.TensorSpec([None, TIME, INPUTS], tf.float64)]
    found = tf.function(gradients, input_signature=signature)(X)
    for one, other in zip(found, gradients(tf.constant(X)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_a_width_below_one():
    with pytest.raises(ValueError, match="width of lstm is 0"):
        make(units=0)
