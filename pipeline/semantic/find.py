"""Who stays among near-duplicates in embedding space: kept witnesses, found through clusters.

Rows match where their cosine is above 1 − eps and the better-ranked one lies in one of the `probes` clusters nearest to
the other. A row goes only for a better-ranked row that stays and matches it: the greedy independent set by rank, as in
`dedupe.witness`, so that no chain collapses. (SemDeDup, arXiv 2303.09540, drops whatever has a neighbour in its
cluster, kept or not.) Rows are compared with rows that stay and no others, half against half, so a large group of
copies costs no more than so many different rows.

Whether two rows match is decided in float64, summed in one order, wherever float32 could err: the same input gives the
same rows on every machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.semantic.clusters import Floats, Index, dots, rounding

Flags = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]

LEAF: Final = 256
"""Rows that are compared with each other at once."""
WHOLE: Final = 1 << 22
"""Pairs below which two sets of rows are compared whole: sooner than cluster by cluster."""
_ELEMENTS: Final = 1 << 23
"""Pairs whose cosines are in memory at a time, 4 bytes each and a byte for the verdict."""
DIGITS: Final = 9
"""Decimals of a distance."""


@dataclass(frozen=True)
class Clusters:
    """`home` [n]: each row's nearest cluster; `probes` [m, p]: those in which each asking row's matches are looked for.

    `centroids`: [k, d].
    """

    home: npt.NDArray[np.int32]
    probes: npt.NDArray[np.int32]
    centroids: Floats


@dataclass
class Search:
    """Finds matches among the rows of `vectors` [n, d], of unit length; without clusters every match there is.

    Rows that ask are those of `queries` [m, d], where given, and not of `vectors`.
    """

    vectors: Floats
    eps: float
    clusters: Clusters | None = None
    queries: Floats | None = None
    compared: int = field(default=0, init=False)
    """Pairs whose cosine was computed."""

    def first(self, asks: Index, answers: Index) -> Index:
        """For each asking row the place in `answers` of the first that matches it, or their number."""
        best = np.full(len(asks), len(answers), np.int64)
        if not len(asks) or not len(answers):
            return best
        if self.clusters is None or len(asks) * len(answers) <= WHOLE:
            every = np.arange(len(asks))
            step = max(1, _ELEMENTS // len(asks))
            for start in range(0, len(answers), step):
                left = every[best == len(answers)]
                self._meet(asks, left, answers, np.arange(start, min(start + step, len(answers))), best)
            return best
        for mine, theirs in self._shared_clusters(asks, answers):
            self._meet(asks, mine, answers, theirs, best)
        return best

    def pairs(self, asks: Index, answers: Index) -> tuple[Index, Index]:
        """Every match, as places in `asks` and `answers`."""
        every: list[tuple[Index, Index]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        if self.clusters is None or len(asks) * len(answers) <= WHOLE:
            met = iter([(np.arange(len(asks)), np.arange(len(answers)))])
        else:
            met = self._shared_clusters(asks, answers)
        for mine, theirs in met:
            for some in _steps(mine, len(theirs)):
                one, other = self.hits(asks[some], answers[theirs])
                every.append((some[one], theirs[other]))
        found = tuple(np.concatenate(side) for side in zip(*every, strict=True))
        return found[0], found[1]

    def _meet(self, asks: Index, mine: Index, answers: Index, theirs: Index, best: Index) -> None:
        for some in _steps(mine, len(theirs)):
            one, other = self.hits(asks[some], answers[theirs])
            np.minimum.at(best, some[one], theirs[other])

    def _shared_clusters(self, asks: Index, answers: Index) -> Iterator[tuple[Index, Index]]:
        """Cluster by cluster: places of the asking rows that look in it, and of the answers it is home to."""
        assert self.clusters is not None
        probes = self.clusters.probes[asks]
        count = probes.shape[1]
        looked, home = probes.reshape(-1), self.clusters.home[answers]
        by_probe, by_home = np.argsort(looked, kind="stable"), np.argsort(home, kind="stable")
        both = np.intersect1d(looked, home)
        asking = [np.searchsorted(looked[by_probe], both, side) for side in ("left", "right")]
        living = [np.searchsorted(home[by_home], both, side) for side in ("left", "right")]
        for n in range(len(both)):
            yield by_probe[asking[0][n] : asking[1][n]] // count, by_home[living[0][n] : living[1][n]]

    def hits(self, asks: Index, answers: Index, before: bool = False) -> tuple[Index, Index]:
        """Every match of the asking rows with the answers, by asking row; `before`: with answers of a lower place."""
        self.compared += len(asks) * len(answers)
        queries = self.vectors if self.queries is None else self.queries
        cosines = queries[asks] @ self.vectors[answers].T
        error = rounding(self.vectors.shape[1])
        one, other = np.nonzero(cosines > 1 - self.eps - error)
        if before:
            one, other = one[other < one], other[other < one]
        if self.clusters is not None:
            home = self.clusters.home[answers[other]][:, None]
            looked = (self.clusters.probes[asks[one]] == home).any(axis=1)
            one, other = one[looked], other[looked]
        unsure = np.flatnonzero(cosines[one, other] <= 1 - self.eps + error)
        right = np.ones(len(one), np.bool_)
        apart = distances(queries, asks[one[unsure]], self.vectors, answers[other[unsure]])
        right[unsure] = apart < self.eps
        return one[right], other[right]


def _steps(mine: Index, answers: int) -> list[Index]:
    step = max(1, _ELEMENTS // max(1, answers))
    return [mine[start : start + step] for start in range(0, len(mine), step)]


def distances(left: Floats, one: Index, right: Floats, other: Index) -> Distances:
    """1 − cosine of left[one] and right[other], pair by pair, to DIGITS decimals; the same on every machine."""
    lengths = dots(left, one, left, one) * dots(right, other, right, other)
    return np.round(1 - dots(left, one, right, other) / np.sqrt(lengths), DIGITS) + 0.0


def kept_witnesses(search: Search, rows: Index, standing: int) -> Index:
    """For each of `rows` (distinct, the best first): its own place where it stays, else that of the best-ranked row
    that stays and matches it.

    The first `standing` rows stay whatever they match, and are not compared with each other.
    """
    witness = np.arange(len(rows))
    new = np.arange(standing, len(rows))
    _settle(search, rows, _without(search, rows, new, np.arange(standing), witness), witness)
    return witness


def _settle(search: Search, rows: Index, places: Index, witness: Index) -> Index:
    """Decide the places, none of which matches a row that stays and ranks before them all; gives those that stay."""
    if len(places) <= LEAF:
        return _leaf(search, rows, places, witness)
    half = len(places) // 2
    first = _settle(search, rows, places[:half], witness)
    rest = _without(search, rows, places[half:], first, witness)
    return np.concatenate([first, _settle(search, rows, rest, witness)])


def _without(search: Search, rows: Index, places: Index, stay: Index, witness: Index) -> Index:
    """Those of the places that match none of the rows that stay; the others have their witness."""
    best = search.first(rows[places], rows[stay])
    gone = best < len(stay)
    witness[places[gone]] = stay[best[gone]]
    return places[~gone]


def _leaf(search: Search, rows: Index, places: Index, witness: Index) -> Index:
    one, other = search.hits(rows[places], rows[places], before=True)
    stays = np.ones(len(places), np.bool_)
    starts = np.flatnonzero(np.diff(one, prepend=-1, append=len(places)))
    for start, end in pairwise(starts.tolist()):  # `hits` come by asking row: the best first
        staying = other[start:end][stays[other[start:end]]]
        if len(staying):
            stays[one[start]] = False
            witness[places[one[start]]] = places[staying[0]]
    return places[stays]
