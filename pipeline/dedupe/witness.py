"""Who stays: the greedy independent set by rank, found in rounds.

A row without a better undecided neighbour stays, its neighbours go with it as their witness, and so on among the rest.
This is what taking the rows best first would give, so no chain collapses: a row goes only for a row that stays.
"""

from collections.abc import Callable

import numpy as np

from pipeline.dedupe.search import Effort, Flags, Index, Points

Search = Callable[[Points, Flags, Flags, int], tuple[Index, Effort]]
"""`search.best_neighbours`, in this process or spread over others."""


def kept_witnesses(points: Points, rows: int, standing: int, radius: int, search: Search) -> tuple[Index, Effort]:
    """For each of `rows`, by rank: itself where it stays, else a row that stays, ranks higher and matches it.

    The first `standing` rows stay whatever they match, and are not compared with each other.
    """
    witness = np.full(rows, -1, np.int64)
    witness[:standing] = np.arange(standing)
    stays = np.arange(rows) < standing
    undecided = ~stays
    answers = np.ones(rows, np.bool_)
    effort = Effort()
    while undecided.any():
        best, spent = search(points, undecided, answers, radius)
        effort.add(spent)
        alone = undecided & (best == rows)
        witness[alone] = np.flatnonzero(alone)
        stays |= alone
        undecided &= ~alone
        _go(undecided, witness, best, stays)
        best, spent = search(points, undecided, alone, radius)
        effort.add(spent)
        _go(undecided, witness, best, stays)
        answers = undecided.copy()  # no row that is left matches one that stays
    return witness, effort


def _go(undecided: Flags, witness: Index, best: Index, stays: Flags) -> None:
    """Rows whose best neighbour stays go."""
    asked = np.flatnonzero(undecided)
    gone = asked[(best[asked] < len(best)) & stays[best[asked] % len(best)]]
    witness[gone] = best[gone]
    undecided[gone] = False
