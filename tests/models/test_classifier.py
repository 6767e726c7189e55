"""The classifier's loss against SciPy, and what it recognises."""

import functools

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from input_pipeline.batches import Feature
from models.classifier import Classifier
from models.grid_networks import ResidualEncoder
from models.mlp import MLPEncoder
from tests.models.objective_checks import (
    WAYS,
    build,
    check_builds_alike_twice,
    check_phase,
    check_rows_are_their_own,
    run_phase,
)

SPEC = {"image": Feature((8, 8, 1), "float32"), "label": Feature((), "int32", cardinality=3)}
LABELS = np.array([0, 1, 2, 2, 1, 0, 0, 1], np.int32)


def small():
    return Classifier(SPEC, encoder=functools.partial(MLPEncoder, widths=(6,)), features=5)


def batch(dtype=tf.float32):
    images = tf.cast(tf.random.stateless_uniform((8, 8, 8, 1), (1, 2)), dtype)
    return {"image": images, "label": tf.constant(LABELS)}


@pytest.mark.parametrize(("policy", "jit"), WAYS)
def test_the_phase(policy, jit):
    objective = build(small, policy)
    dtype = tf.float64 if policy == "float64" else tf.float32
    check_phase(objective, objective.phases[0], batch(dtype), policy, jit)


def test_rows_and_weights():
    objective = build(small, "float64")
    check_rows_are_their_own(objective, objective.phases[0], batch(tf.float64))
    check_builds_alike_twice(small)


def test_cross_entropy_and_accuracy():
    objective = build(small, "float64")
    loss, metrics, _, _ = run_phase(objective, objective.phases[0], batch(tf.float64), tf.float64)
    features, probabilities = objective.recognise(batch(tf.float64)["image"])
    logits = features.numpy() @ objective.head.kernel.numpy() + objective.head.bias.numpy()
    np.testing.assert_allclose(probabilities, scipy.special.softmax(logits, 1), rtol=1e-12)
    expected = -scipy.special.log_softmax(logits, 1)[np.arange(8), LABELS]
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_array_equal(metrics["accuracy"], logits.argmax(1) == LABELS)
    assert features.shape == (8, 5) and np.all(features >= 0)


def test_data_without_labels_are_refused():
    with pytest.raises(
        ValueError, match="a Classifier predicts labels, but the data has image but no label"
    ):
        Classifier({"image": SPEC["image"]})
    with pytest.raises(ValueError, match=r"Classifier\.features is 0: it must be at least 1"):
        Classifier(SPEC, features=0)
    with pytest.raises(ValueError, match=r"Classifier\.encoder is a ResidualEncoder, whose code"):
        build(lambda: Classifier(SPEC, encoder=ResidualEncoder))
