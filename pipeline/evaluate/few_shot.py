"""Probes on k samples a class, and how many it takes to match zero-shot (Radford et al. 2021, 3.1.5)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.probe import Probe, Training, fit, goodness, search

DRAWS = 3
"""Sets of shots that are averaged."""


def shots(labels: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int64]:
    """Rows of k samples of each class, or all of a class that has fewer; for a seed, k + 1 shots hold the k."""
    rng = np.random.default_rng(seed)
    found = []
    for one in np.unique(labels):
        found.append(rng.permutation(np.flatnonzero(labels == one))[:k])
    return np.sort(np.concatenate(found))


def few_shot(data: Training, classes: int, main: str, k: int, seed: int) -> list[Probe]:
    """A probe a draw; the strength of L2 is chosen by validation, on the first draw."""
    good = goodness(main)
    drawn = [shots(data.labels, k, seed + draw) for draw in range(DRAWS)]

    def made(rows: NDArray[np.int64], strength: float) -> Probe:
        return fit(data.features[rows], data.labels[rows], classes, strength)

    strength = search(lambda strength: good(made(drawn[0], strength).scores(data.validation), data.validation_labels))
    return [made(rows, strength) for rows in drawn]


def shots_to_match(counts: Sequence[float], values: Sequence[float], wanted: float) -> float | None:
    """Shots a class at which the curve first reaches `wanted`: linear in log(shots) between its points, as the paper
    estimates it. The first count where the curve begins above; None where it never gets there."""
    if values[0] >= wanted:
        return float(counts[0])
    for at in range(1, len(counts)):
        if values[at] >= wanted:
            part = (wanted - values[at - 1]) / (values[at] - values[at - 1])
            low, high = np.log(counts[at - 1]), np.log(counts[at])
            return float(np.exp(low + part * (high - low)))
    return None
