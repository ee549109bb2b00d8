"""k-means over image vectors, and the nearest centroids of a vector: the same for the same input.

Nearest is the largest inner product: with centroids of unit length the cosine; with others what DataComp's image-based
filter takes (mlfoundations/datacomp, baselines/apply_filter.py, get_centroid_ids_gpu).
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

POINTS: Final = 128
"""Vectors a centroid that k-means learns from, at most: DataComp's 12.8 million over 100,000 clusters are all used."""
ITERATIONS: Final = 20
"""As DataComp's."""
_BLOCK: Final = 1 << 14


def kmeans(vectors: Floats, k: int, seed: int = 0, spherical: bool = False) -> Floats:
    """Centroids [min(k, n), d] of vectors [n, d], n > 0; `spherical`: of unit length.

    faiss' k-means from `seed`, on all its threads: its bits were the same on 1, 2 and 7 of them (81,000 vectors, 632
    clusters). Another processor may round otherwise: who needs the same centroids again keeps them. Of more than
    POINTS x k vectors it takes as many at random: give them in an order that means nothing, but is always the same.
    """
    import faiss

    options = {"niter": ITERATIONS, "seed": seed, "spherical": spherical, "max_points_per_centroid": POINTS}
    trained = faiss.Kmeans(vectors.shape[1], min(k, len(vectors)), min_points_per_centroid=1, **options)
    trained.train(np.ascontiguousarray(vectors, np.float32))
    return np.asarray(trained.centroids, np.float32)


def nearest(vectors: Floats, centroids: Floats) -> Index:
    """The nearest of centroids [k, d] for each of vectors [n, d]: [n]; among equals the lowest."""
    return several_nearest(vectors, centroids, 1)[:, 0]


def several_nearest(vectors: Floats, centroids: Floats, count: int) -> Index:
    """The nearest `count` (at most k) of centroids [k, d] for each of vectors [n, d]: [n, count], the nearest first."""
    count = min(count, len(centroids))
    found = np.empty((len(vectors), count), np.int64)
    for start in range(0, len(vectors), _BLOCK):
        found[start : start + _BLOCK] = _several(vectors[start : start + _BLOCK], centroids, count)
    return found


def _several(vectors: Floats, centroids: Floats, count: int) -> Index:
    import faiss

    more = min(count + 1, len(centroids))
    near, found = faiss.knn(np.ascontiguousarray(vectors), centroids, more, metric=faiss.METRIC_INNER_PRODUCT)
    chosen: Index = found[:, :count].astype(np.int64)
    # Where rounding may have chosen, exact arithmetic does: a blocked float32 product depends on who computes it.
    slack = 2 * rounding(vectors.shape[1])
    close = near[:, :-1] - near[:, 1:] <= slack if more > 1 else np.zeros((len(vectors), 1), np.bool_)
    rows = np.flatnonzero(close.any(axis=1))
    for start in range(0, len(rows), 256):
        some = rows[start : start + 256]
        products = vectors[some] @ centroids.T
        one, other = np.nonzero(products >= near[some, count - 1][:, None] - slack)
        exact = dots(vectors, some[one], centroids, other)
        order = np.lexsort([other, -exact, one])
        first = np.searchsorted(one, np.arange(len(some)))
        chosen[some] = other[order][first[:, None] + np.arange(count)]
    return chosen


def rounding(dimensions: int) -> float:
    """Bound on the error of a float32 inner product of vectors no longer than 1, in whatever order it is summed.

    Higham, Accuracy and Stability of Numerical Algorithms, 3.1, twice over, and what unit length itself lacks.
    """
    return dimensions * 2.0**-23 + 4e-6


def dots(left: Floats, one: Index, right: Floats, other: Index) -> npt.NDArray[np.float64]:
    """Inner products of left[one] and right[other] in float64, summed in one order: the same on every machine."""
    total = np.empty(len(one), np.float64)
    for start in range(0, len(one), 1 << 12):
        a = left[one[start : start + (1 << 12)]].T.astype(np.float64, order="C")
        b = right[other[start : start + (1 << 12)]].T.astype(np.float64, order="C")
        a *= b
        part: npt.NDArray[Any] = np.zeros(a.shape[1])
        for row in a:
            part += row
        total[start : start + (1 << 12)] = part
    return total
