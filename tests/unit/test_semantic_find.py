"""Which near-duplicates go, and for whom, against brute force over all pairs."""

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.semantic import find
from pipeline.semantic.clusters import kmeans, several_nearest
from pipeline.semantic.find import Clusters, Search, distances, kept_witnesses

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]


def unit(vectors: npt.NDArray[np.float64]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def families(count: int, size: int, spread: float, dimensions: int = 32, seed: int = 0) -> Floats:
    """Groups of near copies at a spread at which some pairs of a group match at eps .05 and some do not; shuffled."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(count, dimensions)))
    noise = rng.normal(size=(count * size, dimensions)) * spread / np.sqrt(dimensions)
    return unit(np.repeat(centres, size, axis=0) + noise)[rng.permutation(count * size)]


def clustered(vectors: Floats, k: int, probes: int) -> Clusters:
    centroids = kmeans(vectors, k, spherical=True)
    found = several_nearest(vectors, centroids, probes).astype(np.int32)
    return Clusters(found[:, 0], found, centroids)


def brute_force(vectors: Floats, eps: float, standing: int = 0, clusters: Clusters | None = None) -> Index:
    """Best first: each row stays unless one that stays is within eps (and at home where the row looks)."""
    exact = vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    stays = list(range(standing))
    witness = np.arange(len(vectors))
    for row in range(standing, len(vectors)):
        near = 1 - exact[stays] @ exact[row] < eps
        if clusters is not None:
            near &= np.isin(clusters.home[stays], clusters.probes[row])
        if near.any():
            witness[row] = stays[int(np.argmax(near))]
        else:
            stays.append(row)
    return witness


def decided(vectors: Floats, eps: float = 0.05, standing: int = 0, clusters: Clusters | None = None) -> Index:
    return kept_witnesses(Search(vectors, eps, clusters), np.arange(len(vectors)), standing)


def kept(witness: Index) -> Index:
    return np.flatnonzero(witness == np.arange(len(witness)))


def test_a_chain_of_200_keeps_every_thirteenth_and_not_the_first_alone() -> None:
    angles = np.radians(1.45) * np.arange(200)  # eps .05 reaches 18.19 degrees, 12 steps
    chain = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    witness = decided(chain)
    assert kept(witness).tolist() == list(range(0, 200, 13))
    assert len(kept(witness)) == 16
    gone = np.flatnonzero(witness != np.arange(200))
    assert (witness[witness[gone]] == witness[gone]).all()
    assert (distances(chain, gone, chain, witness[gone]) < 0.05).all()


@pytest.mark.parametrize("spread", [0.1, 0.25, 0.4])
def test_without_clusters_it_is_brute_force(spread: float) -> None:
    vectors = families(100, 20, spread)
    assert decided(vectors).tolist() == brute_force(vectors, 0.05).tolist()


@pytest.mark.parametrize("whole", [0, 1 << 30])
def test_with_clusters_it_is_brute_force_over_those_a_row_looks_in(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "LEAF", 32)
    monkeypatch.setattr(find, "WHOLE", whole)
    vectors = families(80, 20, 0.3)
    clusters = clustered(vectors, 40, 2)
    assert decided(vectors, clusters=clusters).tolist() == brute_force(vectors, 0.05, clusters=clusters).tolist()


def test_with_every_cluster_probed_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "WHOLE", 0)
    vectors = families(60, 20, 0.3)
    assert decided(vectors, clusters=clustered(vectors, 20, 20)).tolist() == brute_force(vectors, 0.05).tolist()


def test_a_block_of_any_size_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = families(50, 20, 0.3)
    expected = decided(vectors).tolist()
    for leaf, elements in ((1, 64), (7, 1000), (4096, 1 << 20)):
        monkeypatch.setattr(find, "LEAF", leaf)
        monkeypatch.setattr(find, "_ELEMENTS", elements)
        assert decided(vectors).tolist() == expected


def test_rows_that_stand_stay_and_make_new_ones_go() -> None:
    vectors = families(50, 20, 0.3)
    witness = decided(vectors, standing=300)
    assert witness[:300].tolist() == list(range(300))
    assert witness.tolist() == brute_force(vectors, 0.05, standing=300).tolist()


def test_thousands_of_copies_are_compared_with_the_one_that_stays_alone() -> None:
    vectors = families(1, 20_000, 0.05)
    search = Search(vectors, 0.05)
    witness = kept_witnesses(search, np.arange(len(vectors)), 0)
    assert (witness == 0).all()
    assert search.compared < 3 * len(vectors)


def test_a_hot_cluster_costs_no_more_than_its_different_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "WHOLE", 0)
    vectors = np.concatenate([families(1, 5000, 0.05), families(500, 1, 0.0, seed=1)])
    vectors = vectors[np.random.default_rng(0).permutation(len(vectors))]
    clusters = clustered(vectors, 20, 3)
    search = Search(vectors, 0.05, clusters)
    witness = kept_witnesses(search, np.arange(len(vectors)), 0)
    assert witness.tolist() == brute_force(vectors, 0.05, clusters=clusters).tolist()
    assert len(kept(witness)) <= 510
    assert search.compared < 0.05 * len(vectors) ** 2


@pytest.mark.parametrize(("cosine", "goes"), [(0.95 + 2e-7, True), (0.95 - 2e-7, False)])
def test_the_threshold_is_judged_beyond_float32(cosine: float, goes: bool) -> None:
    """In the plane (3, 4)/5: what float32 makes of the vectors is what is judged, in float64."""
    angle = np.arccos(cosine) + np.arctan2(4, 3)
    vectors = unit(np.array([[3.0, 4.0], [5 * np.cos(angle), 5 * np.sin(angle)]]))
    assert bool(decided(vectors)[1] == 0) is goes


def test_at_eps_0_not_even_equal_vectors_match() -> None:
    assert decided(families(1, 1, 0.0).repeat(3, axis=0), eps=0.0).tolist() == [0, 1, 2]


def test_equal_vectors_are_at_distance_0() -> None:
    vectors = families(100, 1, 0.1)
    every = np.arange(100)
    assert (distances(vectors, every, vectors.copy(), every) == 0).all()


def test_every_pair_is_found_for_queries() -> None:
    vectors, queries = families(40, 10, 0.2), families(40, 3, 0.2)
    one, other = Search(vectors, 0.1, queries=queries).pairs(np.arange(120), np.arange(400))
    near = 1 - queries.astype(np.float64) @ vectors.T.astype(np.float64) < 0.1
    assert set(zip(one.tolist(), other.tolist(), strict=True)) == {(i, j) for i, j in np.argwhere(near).tolist()}
    assert len(one) > 100
