"""Linear probes by the CLIP paper's protocol (Radford et al. 2021, appendix A.3).

Logistic regression by scikit-learn's L-BFGS, at most 1,000 steps, on features before the projection into the embedding
space. The strength of L2 is chosen on the validation split, among 97 values of C from 10⁻⁶ to 10⁶, 8 a decade: seven of
them first, two decades apart, then the neighbours of the best at half the distance, until neighbours are next to each
other. The final fit is on training and validation together.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluate.metrics import Floats, mean_average_precision, mean_per_class

STEPS = 1000
PER_DECADE = 8
STRENGTHS = 10.0 ** np.linspace(-6, 6, 12 * PER_DECADE + 1)
COARSE = 2 * PER_DECADE
PART = 10
"""One sample in so many validates where no validation split is given."""


@dataclass(frozen=True)
class Probe:
    """A fitted one: `weights` [classes, width], `bias` [classes]; classes that training had none of score −inf."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    strength: float

    def scores(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """[n, width] → [n, classes]."""
        return features.astype(np.float64) @ self.weights.T + self.bias


def fit(features: NDArray[Any], labels: NDArray[Any], classes: int, strength: float) -> Probe:
    """`labels` int [n], or uint8 [n, classes]: then one regression a class, against the rest."""
    features = features.astype(np.float64)
    weights, bias = np.zeros((classes, features.shape[1])), np.full(classes, -np.inf)
    if labels.ndim == 2:
        for one in range(classes):
            if 0 < labels[:, one].sum() < len(labels):
                weights[one], bias[one] = _regression(features, labels[:, one], strength)[0]
        return Probe(weights, bias, strength)
    present = np.unique(labels)
    if len(present) == 1:
        bias[present[0]] = 0
    elif len(present) == 2:
        weights[present[1]], bias[present[1]] = _regression(features, labels, strength)[0]
        bias[present[0]] = 0
    else:
        for one, (row, intercept) in zip(present, _regression(features, labels, strength), strict=True):
            weights[one], bias[one] = row, intercept
    return Probe(weights, bias, strength)


def _regression(features: NDArray[Any], labels: NDArray[Any], strength: float) -> list[tuple[NDArray[Any], float]]:
    """(weights, bias) a class, or of two classes those of the second."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError:
        raise InputError("probes need scikit-learn: pip install 'pairmill[evaluate]'") from None
    model = LogisticRegression(C=strength, solver="lbfgs", max_iter=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol ends there
        model.fit(features, labels)
    return list(zip(model.coef_, model.intercept_, strict=True))


def search(score: Callable[[float], float]) -> float:
    """The strength with the highest score, found coarse to fine; of equals the smaller (the stronger L2)."""
    known: dict[int, float] = {}

    def best(places: list[int]) -> int:
        for place in places:
            if 0 <= place < len(STRENGTHS) and place not in known:
                known[place] = score(float(STRENGTHS[place]))
        return max(known, key=lambda place: (known[place], -place))

    peak, step = best(list(range(0, len(STRENGTHS), COARSE))), COARSE // 2
    while step:
        peak = best([peak - step, peak + step])
        step //= 2
    return float(STRENGTHS[peak])


def goodness(main: str) -> Callable[[Floats, NDArray[Any]], float]:
    """What validation maximises: the task's metric, or accuracy where that needs more than scores and labels."""
    if main in ("map", "map11"):
        return lambda scores, labels: mean_average_precision(scores, labels, main == "map11")
    if main == "mean_per_class":
        return lambda scores, labels: mean_per_class(scores.argmax(axis=1), labels)
    return lambda scores, labels: float((scores.argmax(axis=1) == labels).mean())


def held_out(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, validation) rows: a seeded tenth validates, at least one and not all."""
    order = np.random.default_rng(seed).permutation(n)
    tenth = max(1, n // PART)
    return np.sort(order[tenth:]), np.sort(order[:tenth])


@dataclass(frozen=True)
class Training:
    """Features [n, width] and labels of both splits that a probe is made of."""

    features: NDArray[Any]
    labels: NDArray[Any]
    validation: NDArray[Any]
    validation_labels: NDArray[Any]


def probe(data: Training, classes: int, main: str) -> Probe:
    """The whole protocol: sweep, then the fit on both splits."""
    good = goodness(main)
    strength = search(
        lambda strength: good(
            fit(data.features, data.labels, classes, strength).scores(data.validation), data.validation_labels
        )
    )
    features = np.concatenate([data.features, data.validation])
    labels = np.concatenate([data.labels, data.validation_labels])
    return fit(features, labels, classes, strength)
