"""Metrics and intervals against scikit-learn, scipy, brute force and what VOC published."""

import warnings

import numpy as np
import pytest

from pipeline.evaluate.intervals import binomial_tail, bootstrap, clopper_pearson
from pipeline.evaluate.metrics import (
    average_precision,
    average_precision_11,
    hits,
    macro_f1,
    mean_average_precision,
    mean_per_class,
    roc_auc,
    worst_group,
)
from pipeline.evaluate.retrieval import first_hits, retrieval

sklearn_metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(300, 7))
LABELS = RNG.integers(0, 6, 300)  # class 6 never occurs
COARSE = np.round(SCORES, 1)  # with many ties


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_scikit_learns(k: int) -> None:
    oracle = sklearn_metrics.top_k_accuracy_score(LABELS, SCORES, k=k, labels=range(7))

    assert hits(SCORES, LABELS, k).mean() == pytest.approx(oracle)


def test_a_model_that_says_the_same_of_all_classes_is_right_no_oftener_than_argmax() -> None:
    assert hits(np.zeros((300, 7)), LABELS, 1).mean() == np.mean(np.zeros((300, 7)).argmax(1) == LABELS)


def test_top_1_is_argmax_where_scores_tie() -> None:
    assert (hits(COARSE, LABELS, 1) == (COARSE.argmax(axis=1) == LABELS)).all()


def test_mean_per_class_is_balanced_accuracy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is predicted and never occurs
        oracle = sklearn_metrics.balanced_accuracy_score(LABELS, SCORES.argmax(1))

    assert mean_per_class(SCORES.argmax(1), LABELS) == pytest.approx(oracle)


def test_macro_f1_is_scikit_learns_over_the_classes_that_occur() -> None:
    oracle = sklearn_metrics.f1_score(LABELS, SCORES.argmax(1), average="macro", labels=np.unique(LABELS))

    assert macro_f1(SCORES.argmax(1), LABELS) == pytest.approx(oracle)


@pytest.mark.parametrize("scores", [SCORES, COARSE], ids=["distinct", "tied"])
def test_exact_average_precision_is_scikit_learns(scores: np.ndarray) -> None:
    positive = LABELS == 2

    assert average_precision(scores[:, 2], positive) == pytest.approx(
        sklearn_metrics.average_precision_score(positive, scores[:, 2])
    )


def test_mean_average_precision_is_scikit_learns_macro() -> None:
    labels = (RNG.random((300, 7)) < 0.2).astype(np.uint8)

    assert mean_average_precision(SCORES, labels, False) == pytest.approx(
        sklearn_metrics.average_precision_score(labels, SCORES, average="macro")
    )


def _voc(scores: np.ndarray, positive: np.ndarray) -> float:
    """VOC2007's development kit, VOCevalcls.m, in Python."""
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(positive[order])
    false = np.cumsum(~positive[order])
    recall, precision = true / positive.sum(), true / (true + false)
    total = 0.0
    for threshold in np.arange(11) / 10:
        at = precision[recall >= threshold - 1e-12]
        total += (at.max() if at.size else 0) / 11
    return total


@pytest.mark.parametrize("count", [1, 7, 30])
def test_11_point_average_precision_is_vocs(count: int) -> None:
    positive = np.zeros(300, bool)
    positive[RNG.choice(300, count, replace=False)] = True

    assert average_precision_11(SCORES[:, 0], positive) == pytest.approx(_voc(SCORES[:, 0], positive))


def test_11_points_of_a_ranking_by_hand() -> None:
    """Positives at ranks 1 and 4: precision 1 up to recall 0.5 (6 points), 0.5 up to 1 (5 points)."""
    assert average_precision_11(np.array([4.0, 3, 2, 1]), np.array([True, False, False, True])) == pytest.approx(
        (6 * 1 + 5 * 0.5) / 11
    )


@pytest.mark.parametrize("scores", [SCORES, COARSE], ids=["distinct", "tied"])
def test_roc_auc_is_scikit_learns(scores: np.ndarray) -> None:
    labels = (LABELS == 1).astype(int)

    assert roc_auc(scores[:, :2], labels) == pytest.approx(
        sklearn_metrics.roc_auc_score(labels, scores[:, 1] - scores[:, 0])
    )


def test_the_worst_group_is_named_and_none_is_no_group() -> None:
    right = np.array([True, True, False, False, True, False])

    assert worst_group(right, ["a", "a", "b", None, "b", None]) == ("b", 0.5, 2)


@pytest.mark.parametrize(("hit", "n"), [(0, 10), (3, 10), (10, 10), (731, 5000)])
@pytest.mark.parametrize("level", [0.95, 0.995])
def test_clopper_pearson_is_scipys(hit: int, n: int, level: float) -> None:
    oracle = stats.binomtest(hit, n).proportion_ci(level, "exact")

    assert clopper_pearson(hit, n, level) == pytest.approx((oracle.low, oracle.high))


@pytest.mark.parametrize(("hit", "n", "share"), [(0, 10, 0.3), (7, 10, 0.3), (10, 10, 0.9)])
def test_the_binomial_tail_is_scipys_test(hit: int, n: int, share: float) -> None:
    oracle = stats.binomtest(hit, n, share, alternative="greater").pvalue

    assert binomial_tail(hit, n, share) == pytest.approx(oracle)


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error_says() -> None:
    values = RNG.normal(size=400)
    low, high = bootstrap(lambda rows: float(values[rows].mean()), 400, 0)
    width = 2 * 1.96 * values.std() / 20

    assert high - low == pytest.approx(width, rel=0.25)
    assert low < values.mean() < high


def test_recall_counts_any_caption_of_the_image_as_brute_force_does() -> None:
    images = RNG.normal(size=(30, 8)).astype(np.float32)
    image_of = np.repeat(np.arange(30), RNG.integers(1, 4, 30))
    texts = (images[image_of] + RNG.normal(size=(len(image_of), 8)) * 1.5).astype(np.float32)
    found = {row.metric: row.value for row in retrieval("t", images, texts, image_of)}

    for k in (1, 5, 10):
        there = [
            any(image_of[text] == image for text in np.argsort(-(texts @ images[image]))[:k]) for image in range(30)
        ]
        back = [image_of[text] in np.argsort(-(images @ texts[text]))[:k] for text in range(len(texts))]
        assert found[f"image_to_text_recall@{k}"] == pytest.approx(np.mean(there))
        assert found[f"text_to_image_recall@{k}"] == pytest.approx(np.mean(back))
    assert found["mean_recall@1"] == (found["image_to_text_recall@1"] + found["text_to_image_recall@1"]) / 2


def test_a_model_that_maps_everything_to_one_point_finds_nothing() -> None:
    same = np.ones((5, 3), np.float32)

    assert (first_hits(same, same, np.arange(5), np.arange(5)) == 4).all()
