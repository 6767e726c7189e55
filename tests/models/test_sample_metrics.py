"""Distances of two sets of vectors against SciPy, scikit-learn and sets laid out by hand."""

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import polynomial_kernel

from models import sample_metrics
from models.sample_metrics import frechet_distance, kernel_distance, neighbourhoods

CHANCE = np.random.default_rng(0)
REAL = CHANCE.normal(size=(70, 4)).astype(np.float32)
FAKE = (CHANCE.normal(size=(50, 4)) @ np.diag([1, 2, 0.5, 0.1]) + 0.3).astype(np.float32)


def test_frechet_distance_is_that_of_scipys_matrix_root():
    first, second = np.cov(REAL.T.astype(float)), np.cov(FAKE.T.astype(float))
    root = scipy.linalg.sqrtm(first @ second).real
    means = REAL.mean(0, dtype=float) - FAKE.mean(0, dtype=float)
    expected = means @ means + np.trace(first + second - 2 * root)
    assert frechet_distance(REAL, FAKE) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_one_dimension_and_of_itself():
    """(μ₁ - μ₂)² + (σ₁ - σ₂)²."""
    x = CHANCE.normal(size=(30, 1))
    expected = (x.mean() - (3 * x + 1).mean()) ** 2 + (2 * x.std(ddof=1)) ** 2
    assert frechet_distance(x, 3 * x + 1) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(REAL, REAL) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_of_few_long_vectors():
    """Of two each, Σ = aaᵀ with a their difference / √2: the trace of the root of aaᵀbbᵀ is |a·b|."""
    real, fake = CHANCE.normal(size=(2, 2, 400))
    means = real.mean(0) - fake.mean(0)
    a, b = (real[0] - real[1]) / np.sqrt(2), (fake[0] - fake[1]) / np.sqrt(2)
    expected = means @ means + a @ a + b @ b - 2 * abs(a @ b)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("block", [7, 1000])
def test_kernel_distance_is_that_of_scikit_learns_kernel(block, monkeypatch):
    monkeypatch.setattr(sample_metrics, "BLOCK", block)
    real, fake = REAL.astype(float), FAKE.astype(float)
    kernels = [polynomial_kernel(*pair) for pair in ((real, real), (fake, fake), (real, fake))]
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    expected = sum(within) - 2 * kernels[2].mean()
    assert kernel_distance(REAL, FAKE) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased():
    """Its mean over many pairs of sets of one distribution is 0 within its own error, which its square would not be."""
    values = [kernel_distance(*CHANCE.normal(size=(2, 20, 3))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20


def test_neighbourhoods_are_those_of_all_distances():
    """The definitions of both papers, one vector after the other."""
    k = 3
    radii_real = np.sort(cdist(REAL, REAL), 1)[:, k]
    radii_fake = np.sort(cdist(FAKE, FAKE), 1)[:, k]
    distances = cdist(FAKE, REAL)
    in_real = [[d <= r for d, r in zip(row, radii_real, strict=True)] for row in distances]
    in_fake = [[d <= r for d, r in zip(row, radii_fake, strict=True)] for row in distances.T]
    found = neighbourhoods(REAL, FAKE, k)
    assert found.precision == pytest.approx(np.mean([any(row) for row in in_real]))
    assert found.recall == pytest.approx(np.mean([any(row) for row in in_fake]))
    assert found.density == pytest.approx(np.sum(in_real) / (k * len(FAKE)))
    assert found.coverage == pytest.approx(np.mean(np.any(in_real, 0)))
    assert 0 < found.recall < 1 and 0 < found.coverage < 1


def test_neighbourhoods_of_a_collapsed_model():
    """All samples in one place of the data: precise, and nothing else."""
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2)
    found = neighbourhoods(grid, np.tile(grid[55], (40, 1)), k=4)
    assert found.precision == 1
    assert found.recall == 0.01
    assert found.coverage == 0.05  # the vector and its four neighbours, at distance 1


def test_too_few_vectors_are_refused():
    with pytest.raises(ValueError, match="70 and 5 vectors are too few for 5 neighbours"):
        neighbourhoods(REAL, FAKE[:5], 5)
