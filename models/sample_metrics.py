"""Distances between two sets of feature vectors, `[n, d]` NumPy arrays: how far samples are from data.

All depend on the features and on n: compare only numbers of the same feature network and as many vectors, and beside what
real data have of other real data.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

BLOCK = 1000
"""Vectors compared at once."""


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), the squared Fréchet distance of two normals (Heusel et al. 2017, equation 6).

    With Σ = RᵀR the trace of the root is the sum of the singular values of R₁R₂ᵀ: no root is taken of what rounding leaves of
    the zeros of a covariance, of which there are many where vectors are longer than they are many.
    """
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    means = real.mean(0) - fake.mean(0)
    first, second = _root_of_covariance(real), _root_of_covariance(fake)
    cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(means @ means + np.square(first).sum() + np.square(second).sum() - 2 * cross)


def _root_of_covariance(x: np.ndarray) -> np.ndarray:
    """R `[min(n, d), d]` with RᵀR the unbiased covariance of `[n, d]`."""
    return np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1)


def kernel_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x·y / d + 1)³ (Bińkowski et al. 2018), of all vectors at once.

    It may be a little below 0 where the two are alike.
    """
    real, fake = real.astype(np.float64), fake.astype(np.float64)

    def mean(one: np.ndarray, other: np.ndarray) -> float:
        parts = [_cubic(one[i : i + BLOCK], other).sum() for i in range(0, len(one), BLOCK)]
        return float(np.sum(parts)) / (len(one) * len(other))

    def mean_of_pairs(x: np.ndarray) -> float:
        count, itself = len(x), float(_cubic_norms(x).sum())
        return (mean(x, x) * count**2 - itself) / (count * (count - 1))

    return mean_of_pairs(real) + mean_of_pairs(fake) - 2 * mean(real, fake)


def _cubic(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** 3


def _cubic_norms(x: np.ndarray) -> np.ndarray:
    return (np.square(x).sum(1) / x.shape[1] + 1) ** 3


@dataclasses.dataclass(frozen=True)
class Neighbourhoods:
    """Shares of vectors within the balls around others that reach to their k-th neighbour of the same set.

    Attributes:
      precision: of fakes in any ball of the reals; `recall` the other way round (Kynkäänniemi et al. 2019).
      density: balls of reals around a fake, over k; `coverage`: of reals whose ball has a fake (Naeem et al. 2020).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(real: np.ndarray, fake: np.ndarray, k: int) -> Neighbourhoods:
    """Precision, recall, density and coverage.

    Raises:
      ValueError: if a set has not more than `k` vectors.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(
            f"{len(real)} and {len(fake)} vectors are too few for {k} neighbours: take more"
        )
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    balls = np.zeros(len(fake), np.int64)
    covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
    start = 0
    for distances in pairwise_distances_chunked(fake, real):
        rows = slice(start, start + len(distances))
        within = distances <= real_radii
        balls[rows] = within.sum(1)
        covered |= within.any(0)
        recalled |= (distances <= fake_radii[rows, np.newaxis]).any(0)
        start = rows.stop
    return Neighbourhoods(
        precision=float((balls > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float(covered.mean()),
    )


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """The distance of each vector to its k-th neighbour, `[n]`."""
    # The nearest of all is the vector itself.
    return NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(x).kneighbors(x)[0][:, k]
