"""k-means and nearest centroids: the same for the same input."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from pipeline.semantic.clusters import dots, kmeans, nearest, several_nearest
from pipeline.semantic.image_based import image_based, referred
from tests.running import REPOSITORY
from tests.unit.test_semantic_find import families, unit

RUN = """
import hashlib
import numpy as np
from pipeline.semantic.clusters import kmeans, several_nearest
from pipeline.semantic.find import Clusters, Search, kept_witnesses
from tests.unit.test_semantic_find import families
vectors = families(300, 20, 0.3, dimensions=48)
centroids = kmeans(vectors, 60, spherical=True)
probes = several_nearest(vectors, centroids, 4).astype(np.int32)
search = Search(vectors, 0.05, Clusters(probes[:, 0], probes, centroids))
witness = kept_witnesses(search, np.arange(len(vectors)), 0)
print(*(hashlib.sha256(made.tobytes()).hexdigest() for made in (centroids, probes, witness)))
"""


def test_whatever_the_threads_centroids_probes_and_witnesses_are_the_same() -> None:
    told = set()
    for threads in ("1", "2", "7"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", RUN], cwd=REPOSITORY, env=env, check=True, capture_output=True, text=True
        )
        told.add(done.stdout)
    assert len(told) == 1


def test_centroids_find_planted_groups() -> None:
    vectors = families(30, 40, 0.1)
    home = nearest(vectors, kmeans(vectors, 30))
    truth = nearest(vectors, families(30, 1, 0.0))  # the same seed's centres
    together = {(a, b) for a, b in zip(home.tolist(), truth.tolist(), strict=True)}
    # k-means may split a group and merge two; most it finds whole.
    assert len(together) <= 40


@pytest.mark.parametrize("count", [1, 3, 50])
def test_nearest_are_those_of_brute_force(count: int) -> None:
    vectors, centroids = families(400, 5, 0.5), families(50, 1, 0.0, seed=4)
    exact = vectors.astype(np.float64) @ centroids.T.astype(np.float64)
    assert several_nearest(vectors, centroids, count).tolist() == np.argsort(-exact, axis=1)[:, :count].tolist()


def test_among_equal_centroids_the_first_is_nearest() -> None:
    centroids = np.repeat(families(5, 1, 0.0), 3, axis=0)
    assert (nearest(families(200, 2, 0.5), centroids) % 3 == 0).all()


def test_more_clusters_than_vectors_are_as_many_as_vectors() -> None:
    vectors = families(5, 1, 0.1)
    assert kmeans(vectors, 9).shape == (5, 32)


def test_inner_products_do_not_depend_on_who_else_is_asked() -> None:
    vectors = families(10, 100, 0.5, dimensions=33)
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 1000, (2, 5000))
    at_once = dots(vectors, one, vectors, other)
    alone = [dots(vectors, one[n : n + 1], vectors, other[n : n + 1])[0] for n in range(0, 5000, 501)]
    assert at_once[::501].tolist() == alone
    expected = np.einsum("ij,ij->i", vectors[one].astype(np.float64), vectors[other].astype(np.float64))
    np.testing.assert_allclose(at_once, expected, rtol=0, atol=1e-14)


def test_image_based_keeps_the_rows_of_clusters_that_a_reference_image_is_in() -> None:
    """DataComp's rule, on groups so far apart that k-means has no choice."""
    centres = np.eye(8)
    rng = np.random.default_rng(0)
    group = rng.integers(0, 8, 800)
    vectors = unit(centres[group] + 0.02 * rng.normal(size=(800, 8)))
    reference = unit(centres[[2, 5, 5]] + 0.02 * rng.normal(size=(3, 8)))
    centroids = kmeans(vectors, 8)
    assert sorted(nearest(centres.astype(np.float32), centroids).tolist()) == list(range(8))
    passes = image_based(vectors, reference, 8)
    assert passes.tolist() == np.isin(group, [2, 5]).tolist()
    assert referred(reference, centroids).sum() == 2


def test_a_seed_changes_where_it_starts() -> None:
    vectors = families(100, 10, 0.5)
    made = {hashlib.sha256(kmeans(vectors, 20, seed).tobytes()).hexdigest() for seed in (0, 0, 1)}
    assert len(made) == 2
