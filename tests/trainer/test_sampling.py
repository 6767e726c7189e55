"""Samples: each depends on the weights, the seed and its number alone."""

from __future__ import annotations

import numpy as np

from tests.trainer.objectives import ONE, TWO, Regression, experiment, points, quiet


def regression():
    return experiment(Regression, points(21), steps=12, seed=5)


def test_sample_i_depends_on_the_seed_and_i_alone():
    trainer = quiet(regression(), ONE)
    trainer.train()
    nine = trainer.sample(9)
    assert nine.shape == (9, 4)
    assert len(np.unique(nine)) == 36
    np.testing.assert_array_equal(trainer.sample(5), nine[:5])
    np.testing.assert_array_equal(trainer.sample(9, seed=5), nine)
    assert not np.isin(trainer.sample(9, seed=6), nine).any()
    # The network's weights, in NumPy, on the noise that came with the sample.
    weights = trainer.snapshot().arrays
    expected = nine[:, :3] @ weights["average/kernel"] + weights["average/bias"]
    np.testing.assert_allclose(nine[:, 3:], expected, rtol=1e-14)


def test_many_samples_are_drawn_in_parts(monkeypatch):
    trainer = quiet(regression(), TWO)
    whole = trainer.sample(11)
    monkeypatch.setattr("trainer.sampling.CHUNK", 4)
    np.testing.assert_array_equal(trainer.sample(11), whole)
    np.testing.assert_array_equal(trainer.sample(4), whole[:4])
