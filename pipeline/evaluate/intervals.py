"""How sure a number is."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

DRAWS = 200
Interval = tuple[float, float]


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval of a share (Clopper and Pearson 1934), by quantiles of the beta distribution."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


def bootstrap(measure: Callable[[NDArray[np.int64]], float], n: int, seed: int, level: float = 0.95) -> Interval:
    """Percentiles of `measure` over DRAWS samples of n rows with replacement, which it is given as row numbers."""
    rng = np.random.default_rng(seed)
    found = [measure(rng.integers(0, n, n)) for _ in range(DRAWS)]
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def binomial_tail(hits: int, n: int, share: float) -> float:
    """Chance of `hits` or more of n where each is hit with `share`: the one-tailed (greater) binomial test."""
    from scipy.special import bdtrc

    return 1.0 if hits == 0 else float(bdtrc(hits - 1, n, share))
