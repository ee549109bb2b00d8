"""What a classification or retrieval scores. `scores` are float [n, classes], `labels` int [n]."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


def hits(scores: Floats, labels: Ints, k: int) -> NDArray[np.bool_]:
    """Whether the label is among the k highest [n]; of equal scores, the lower class counts as higher."""
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1])[None, :] < np.asarray(labels)[:, None]
    rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    found: NDArray[np.bool_] = rank < k
    return found


def mean_per_class(predicted: Ints, labels: Ints) -> float:
    """Mean recall of the classes that occur."""
    counts = np.bincount(labels)
    right = np.bincount(labels, weights=predicted == labels)
    return float(np.mean(right[counts > 0] / counts[counts > 0]))


def macro_f1(predicted: Ints, labels: Ints) -> float:
    """Mean F1 of the classes that occur among the labels, as WILDS has it."""
    classes = int(max(labels.max(), predicted.max())) + 1
    counts = np.bincount(labels, minlength=classes)
    both = np.bincount(labels, weights=predicted == labels, minlength=classes)
    said = np.bincount(predicted, minlength=classes)
    occurs = counts > 0
    return float(np.mean(2 * both[occurs] / (said + counts)[occurs]))


def _curve(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Precision and recall at each distinct score, the highest first."""
    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order], np.cumsum(positive[order])
    last = np.append(ranked[1:] != ranked[:-1], True)
    return found[last] / (np.flatnonzero(last) + 1), found[last] / found[-1]


def average_precision(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Exact: the sum over thresholds of precision × the recall gained there. `scores` [n] of one class."""
    precision, recall = _curve(scores, positive)
    return float(np.sum(precision * np.diff(recall, prepend=0)))


def average_precision_11(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """PASCAL VOC 2007's: the mean, at recalls 0, 0.1 … 1, of the highest precision at that recall or a higher one
    (Everingham et al. 2010, section 4.2)."""
    precision, recall = _curve(scores, positive)
    # Recalls are ratios of counts: 0.1 · 30 positives is met by 3.
    return float(np.mean([precision[recall >= tenth / 10 - 1e-12].max() for tenth in range(11)]))


def mean_average_precision(scores: Floats, labels: NDArray[Any], eleven: bool) -> float:
    """Over the classes that occur; `labels` [n, classes] of 0 and 1."""
    measure = average_precision_11 if eleven else average_precision
    occur = np.flatnonzero(labels.any(axis=0))
    return float(np.mean([measure(scores[:, one], labels[:, one] > 0) for one in occur]))


def roc_auc(scores: Floats, labels: Ints) -> float:
    """Of two classes: the chance that a sample of the second has the higher score for it, a tie counting half."""
    margin = scores[:, 1] - scores[:, 0]
    _, place, counts = np.unique(margin, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]  # of equals, the mean rank (Mann and Whitney 1947)
    positive = int((labels == 1).sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return float("nan")
    return float((rank[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def worst_group(right: NDArray[np.bool_], groups: list[Any]) -> tuple[Any, float, int]:
    """The group with the lowest share of hits: (group, share, n). None is no group."""
    found = {}
    for group in sorted(set(groups) - {None}, key=str):
        mine = right[[one == group for one in groups]]
        found[group] = (float(mine.mean()), len(mine))
    worst = min(found, key=lambda group: found[group][0])
    return worst, *found[worst]
