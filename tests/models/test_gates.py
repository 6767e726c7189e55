"""What the gates of an LSTM do, against NumPy a step at a time."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import Feature
from models import gates
from models.language_model import LanguageModel
from models.lstm_network import LSTMNetwork
from models.transformer_network import TransformerNetwork
from tests.models import objective_checks as checks

SPEC = {"tokens": Feature((11,), "int32", 7)}
TOKENS = np.random.default_rng(0).integers(0, 7, [3, 11]).astype(np.int32)


def make(network=LSTMNetwork, **arguments):
    of_network = {"embedding": 4, "widths": (6, 5)} if network is LSTMNetwork else {}
    return LanguageModel(SPEC, network=functools.partial(network, **of_network), **arguments)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(layer, x):
    """Gates, tanh of the cell and outputs of inputs `[time, inputs]`, each `[time, units]`."""
    kernel, recurrent_kernel, bias = layer.get_weights()
    h, c, rows = np.zeros(layer.units), np.zeros(layer.units), []
    for t in range(len(x)):
        i, f, g, o = np.split(x[t] @ kernel + h @ recurrent_kernel + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        rows.append([sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(c), h])
    return np.array(rows).swapaxes(0, 1)


def test_the_gates_of_the_units_that_vary_most(monkeypatch):
    """Of all layers along the last tokens of the first example, after those before; the longest memory first."""
    monkeypatch.setattr(gates, "UNITS", 3)
    model = checks.build(lambda: make(gates=4), "float64")
    for weight in model.network.trainable_variables:
        weight.assign(3 * weight)
    tokens, charts = tf.function(model.charts)({"tokens": tf.constant(TOKENS)})
    np.testing.assert_array_equal(tokens, TOKENS[0, 6:10])
    x = model.network.table.numpy()[TOKENS[0, :10]]
    assert list(charts) == ["lstm_0", "lstm_1"]
    for layer in model.network.layers:
        *panels, outputs = reference(layer, x)
        most = set(np.argsort(panels[3].var(0))[-3:])
        order = [unit for unit in np.argsort(-panels[1].mean(0)) if unit in most]
        names = ["input gate", "forget gate", "output gate", "tanh of the cell"]
        assert list(charts[layer.name]) == names
        for name, panel in zip(names, panels, strict=True):
            np.testing.assert_allclose(charts[layer.name][name], panel[6:, order].T, rtol=1e-11)
        x = outputs


def test_they_are_shown_where_they_are_asked_for():
    assert make().charts is None
    with pytest.raises(ValueError, match="gates is -1: set it to a number of tokens, or to 0"):
        make(gates=-1)
    model = checks.build(lambda: make(gates=11), "float64")  # As many as the window has, 10.
    assert model.charts({"tokens": tf.constant(TOKENS)})[0].shape == [10]
    with pytest.raises(ValueError, match="TransformerNetwork has no gates to show: set it to 0"):
        checks.build(lambda: make(TransformerNetwork, gates=4))
