"""cuDNN's path of the LSTM: where it is taken, and what its kernel is given, which a model of the kernel computes here."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from models import lstm_cudnn
from tests.models.test_lstm import BATCH, INPUTS, RNG, TIME, UNITS, C, H, X, make, run


def kernel_of_cudnn(input, input_h, input_c, params, sequence_lengths, **attributes):
    """CUDNN_LSTM as NVIDIA documents it (cudnnRNNMode_t), one layer, forward in time, on a packed weight space."""
    assert attributes == {"rnn_mode": "lstm", "is_training": True, "time_major": True}
    np.testing.assert_array_equal(tf.get_static_value(sequence_lengths), np.full(BATCH, TIME))
    sizes = [UNITS * INPUTS] * 4 + [UNITS * UNITS] * 4 + [UNITS] * 8
    parts = tf.split(params, sizes)
    of_x = [tf.reshape(part, [UNITS, INPUTS]) for part in parts[:4]]
    of_h = [tf.reshape(part, [UNITS, UNITS]) for part in parts[4:8]]
    h, c, outputs = input_h[0], input_c[0], []
    for t in range(TIME):
        # linLayerID 0 to 3: input gate, forget gate, new memory gate, output gate.
        i, f, g, o = (
            tf.linalg.matmul(input[t], w, transpose_b=True)
            + tf.linalg.matmul(h, r, transpose_b=True)
            + b_w
            + b_r
            for w, r, b_w, b_r in zip(of_x, of_h, parts[8:12], parts[12:], strict=True)
        )
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(c)
        outputs.append(h)
    return tf.stack(outputs), h[tf.newaxis], c[tf.newaxis], None, None


def test_the_kernel_is_given_what_makes_it_the_layer(monkeypatch):
    layer = make()
    layer.bias.assign(RNG.normal(size=4 * UNITS))
    expected = run(layer, X, (H, C))
    given = []
    monkeypatch.setattr(lstm_cudnn, "fits", lambda x, h, mask: mask is None)
    monkeypatch.setattr(
        tf.raw_ops, "CudnnRNNV3", lambda **inputs: given.append(inputs) or kernel_of_cudnn(**inputs)
    )
    found = run(layer, X, (H, C))
    assert len(given) == 1
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def kernels(device, policy="float32", mask=None, jit=False):
    """How many of cuDNN's kernels, forward and backward, a trace of the layer and its gradient holds on a device."""
    layer, dtype = make(policy), tf.float64 if policy == "float64" else tf.float32

    @tf.function(autograph=False, jit_compile=jit)
    def gradients(x, h, c):
        with tf.device(device), tf.GradientTape() as tape:
            outputs, state = layer(x, (h, c), mask)
            total = sum(tf.reduce_sum(tf.cast(y, dtype)) for y in (outputs, *state))
        assert outputs.shape == (BATCH, TIME, UNITS)
        assert [part.shape for part in state] == [(BATCH, UNITS)] * 2
        return tape.gradient(total, layer.recurrent_kernel.value)

    shapes = [(BATCH, TIME, INPUTS), (BATCH, UNITS), (BATCH, UNITS)]
    traced = gradients.get_concrete_function(*(tf.TensorSpec(s, dtype) for s in shapes))
    operations = [operation.type for operation in traced.graph.get_operations()]
    return operations.count("CudnnRNNV3"), operations.count("CudnnRNNBackpropV3")


@pytest.mark.parametrize("policy", ["float32", "float64"])
def test_it_is_taken_on_a_gpu(policy):
    assert kernels("GPU:0", policy) == (1, 1)


def test_it_is_taken_on_no_device_in_particular_where_there_is_a_gpu(monkeypatch):
    assert kernels(None) == (0, 0)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind] * (kind == "GPU"))
    assert kernels(None) == (1, 1)
    assert kernels("CPU:0") == (0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"jit": True},
        {"policy": "mixed_bfloat16"},
        {"mask": np.ones([BATCH, UNITS], np.float32)},
    ],
)
def test_it_is_not_taken_where_it_would_be_another_recurrence(options):
    assert kernels("GPU:0", **options) == (0, 0)
