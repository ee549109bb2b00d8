"""A classification's scores as rows of results."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.intervals import bootstrap, clopper_pearson
from pipeline.evaluate.metrics import (
    Floats,
    hits,
    macro_f1,
    mean_average_precision,
    mean_per_class,
    roc_auc,
    worst_group,
)
from pipeline.evaluate.results import Row

LEVEL = 0.95


@dataclass(frozen=True)
class Truth:
    """`labels` int [n], or uint8 [n, classes] of multilabel; `groups` [n] where the task has them."""

    task: str
    labels: NDArray[Any]
    main: str
    seed: int
    groups: tuple[str | None, ...] = ()

    @property
    def multilabel(self) -> bool:
        return self.labels.ndim == 2


@dataclass(frozen=True)
class Scored:
    """What metrics ask of scores [n, classes]: reduced once, as a bootstrap asks it 200 times."""

    scores: Floats
    predicted: NDArray[np.int64]
    right: NDArray[np.bool_]
    right5: NDArray[np.bool_]


def scored(scores: Floats, truth: Truth) -> Scored:
    predicted = scores.argmax(axis=1)
    if truth.multilabel:
        return Scored(scores, predicted, np.zeros(0, bool), np.zeros(0, bool))
    return Scored(scores, predicted, hits(scores, truth.labels, 1), hits(scores, truth.labels, 5))


def value_of(metric: str, given: Scored, truth: Truth, rows: NDArray[np.int64] | None = None) -> float:
    """One metric, of some rows alone where they are given."""
    drawn: Any = slice(None) if rows is None else rows
    labels = truth.labels[drawn]
    if metric in ("map", "map11"):
        return mean_average_precision(given.scores[drawn], labels, metric == "map11")
    if metric == "mean_per_class":
        return mean_per_class(given.predicted[drawn], labels)
    if metric == "macro_f1":
        return macro_f1(given.predicted[drawn], labels)
    if metric == "roc_auc":
        return roc_auc(given.scores[drawn], labels)
    if metric == "top1_top5":
        return float(given.right[drawn].mean() + given.right5[drawn].mean()) / 2
    right = (given.right5 if metric in ("top5", "worst_group_top5") else given.right)[drawn]
    if metric.startswith("worst_group"):
        groups = truth.groups if rows is None else [truth.groups[row] for row in rows]
        return worst_group(right, list(groups))[1]
    return float(right.mean())


def rows_of(setting: str, scores: Floats, truth: Truth) -> list[Row]:
    """Every metric that the task allows. Shares of images have exact intervals, the rest bootstrapped ones."""
    made = []
    n, given = len(scores), scored(scores, truth)
    for metric in _metrics(truth, scores.shape[1]):
        value = value_of(metric, given, truth)
        group = None
        if metric in ("top1", "top5"):
            low, high = clopper_pearson(round(value * n), n, LEVEL)
        elif metric.startswith("worst_group"):
            group, _, among = worst_group(given.right5 if "5" in metric else given.right, list(truth.groups))
            low, high = clopper_pearson(round(value * among), among, LEVEL)
        else:
            low, high = bootstrap(lambda rows, metric=metric: value_of(metric, given, truth, rows), n, truth.seed)  # type: ignore[misc]
        made.append(Row(truth.task, setting, metric, value, n, low, high, LEVEL, group, metric == truth.main))
    return made


def chance_of(truth: Truth, classes: int) -> list[Row]:
    """What guessing scores: each class alike; of average precision, the share of positives."""
    n = len(truth.labels)
    if truth.multilabel:
        share = float(truth.labels.mean(axis=0)[truth.labels.any(axis=0)].mean())
        return [Row(truth.task, "chance", one, share, n, main=one == truth.main) for one in ("map", "map11")]
    found = {"top1": 1 / classes, "top5": min(1.0, 5 / classes), "mean_per_class": 1 / classes}
    if truth.main == "top1_top5":
        found["top1_top5"] = (found["top1"] + found["top5"]) / 2
    if truth.main == "roc_auc":
        found["roc_auc"] = 0.5
    main = truth.main if truth.main in found else "top1"
    return [Row(truth.task, "chance", name, value, n, main=name == main) for name, value in found.items()]


def _metrics(truth: Truth, classes: int) -> list[str]:
    if truth.multilabel:
        return ["map", "map11"]
    found = ["top1", *(["top5"] if classes >= 5 else []), "mean_per_class", "macro_f1"]
    if truth.main == "top1_top5":
        found.append("top1_top5")
    if classes == 2 and len(np.unique(truth.labels)) == 2:
        found.append("roc_auc")
    if truth.groups:
        found += ["worst_group", *(["worst_group_top5"] if classes >= 5 else [])]
    return found
