"""Probes, few shots, shifts and overlap against scikit-learn, scipy and numbers by hand."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.evaluate.few_shot import shots, shots_to_match
from pipeline.evaluate.overlap import overlap, read_overlaps
from pipeline.evaluate.probe import STRENGTHS, Training, fit, held_out, probe, search
from pipeline.evaluate.shifts import effective_robustness, onto, read_references

linear_model = pytest.importorskip("sklearn.linear_model")
stats = pytest.importorskip("scipy.stats")
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(4, 6))
LABELS = RNG.integers(0, 4, 200)
FEATURES = (CENTRES[LABELS] + RNG.normal(size=(200, 6))).astype(np.float32)


def test_strengths_are_97_from_a_millionth_to_a_million_8_a_decade() -> None:
    assert (len(STRENGTHS), STRENGTHS[0], STRENGTHS[-1]) == (97, pytest.approx(1e-6), pytest.approx(1e6))
    assert np.log10(STRENGTHS[1] / STRENGTHS[0]) == pytest.approx(1 / 8)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_predicts_as_scikit_learn(classes: int) -> None:
    mine = classes > LABELS
    features, labels = FEATURES[mine].astype(np.float64), LABELS[mine]
    oracle = linear_model.LogisticRegression(C=0.3, max_iter=1000).fit(features, labels)

    assert (fit(features, labels, classes, 0.3).scores(features).argmax(1) == oracle.predict(features)).all()


def test_a_class_that_training_had_none_of_is_never_predicted() -> None:
    scores = fit(FEATURES, np.where(LABELS == 1, 3, LABELS), 4, 1.0).scores(FEATURES)

    assert np.isneginf(scores[:, 1]).all()
    assert set(scores.argmax(1)) == {0, 2, 3}


def test_multilabel_is_one_regression_a_class() -> None:
    labels = np.stack([LABELS == 0, LABELS < 2], axis=1).astype(np.uint8)
    scores = fit(FEATURES, labels, 2, 1.0).scores(FEATURES)
    features = FEATURES.astype(np.float64)

    for one in range(2):
        oracle = linear_model.LogisticRegression(C=1.0, max_iter=1000).fit(features, labels[:, one])
        assert scores[:, one] == pytest.approx(oracle.decision_function(features), abs=1e-6)


@pytest.mark.parametrize("peak", [0, 1, 37, 48, 95, 96])
def test_the_search_finds_the_peak_of_a_hill_in_at_most_15_fits(peak: int) -> None:
    asked: list[float] = []

    def hill(strength: float) -> float:
        asked.append(strength)
        return -abs(np.log10(strength / STRENGTHS[peak]))

    assert search(hill) == pytest.approx(STRENGTHS[peak])
    assert len(asked) <= 7 + 2 * 4
    assert sorted(asked[:7]) == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])


def test_the_final_probe_is_fitted_on_validation_too() -> None:
    kept, out = held_out(200, 0)
    made = probe(Training(FEATURES[kept], LABELS[kept], FEATURES[out], LABELS[out]), 4, "top1")
    everything = np.concatenate([kept, out])

    whole = fit(FEATURES[everything], LABELS[everything], 4, made.strength)
    assert made.weights == pytest.approx(whole.weights)


def test_a_seeded_tenth_validates() -> None:
    kept, out = held_out(200, 3)

    assert (len(kept), len(out)) == (180, 20)
    assert sorted([*kept, *out]) == list(range(200))
    assert (held_out(200, 3)[1] == out).all()
    assert not (held_out(200, 4)[1] == out).all()


def test_more_shots_hold_the_fewer_and_each_class_has_its_own() -> None:
    for k in (1, 2, 4):
        assert (np.bincount(LABELS[shots(LABELS, k, 0)]) == k).all()
        assert set(shots(LABELS, k, 0)) < set(shots(LABELS, k + 1, 0))


def test_shots_to_match_are_read_off_the_curve_on_a_logarithmic_axis() -> None:
    assert shots_to_match([1, 2, 4], [0.1, 0.3, 0.5], 0.4) == pytest.approx(2 * 2**0.5)
    assert shots_to_match([1, 2, 4], [0.1, 0.3, 0.5], 0.05) == 1
    assert shots_to_match([1, 2, 4], [0.1, 0.3, 0.5], 0.6) is None


def test_a_shifts_class_has_the_highest_score_of_those_that_count_as_it() -> None:
    scores = np.array([[1.0, 5, 2], [3, 0, 4]])

    made = onto(scores, ["pug", "husky", "cat"], ["cat", "dog"], {"dog": ["pug", "husky"]}, "pets")
    assert made.tolist() == [[2, 5], [4, 3]]
    with pytest.raises(InputError, match="pets: class 'wolf' is none of its reference's"):
        onto(scores, ["pug", "husky", "cat"], ["wolf"], {}, "pets")


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def test_effective_robustness_is_the_distance_from_scipys_line_through_logits(tmp_path: Path) -> None:
    pairs = {"a": (0.6, 0.3), "b": (0.7, 0.42), "c": (0.85, 0.55)}
    with (tmp_path / "models.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "task", "value"])
        for model, (there, here) in pairs.items():
            writer.writerows([[model, "imagenet", there], [model, "sketch", here]])
    references = read_references(tmp_path / "models.csv")
    line = stats.linregress([_logit(x) for x, _ in pairs.values()], [_logit(y) for _, y in pairs.values()])
    expected = 0.7 - 1 / (1 + np.exp(-(line.slope * _logit(0.8) + line.intercept)))

    value, models = effective_robustness(references, "imagenet", "sketch", 0.8, 0.7)
    assert (value, models) == (pytest.approx(expected), 3)


def test_references_that_are_percentages_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("model,task,value\na,imagenet,76.2\n")

    with pytest.raises(InputError, match=r"r.csv: line 2: 76.2 is not between 0 and 1"):
        read_references(tmp_path / "r.csv")


def test_overlap_has_the_papers_intervals_and_a_corrected_p_value() -> None:
    right = np.array([True] * 60 + [False] * 30 + [True] * 9 + [False])
    keys = [f"s{row:07d}" for row in range(100)]
    rows = {(row.setting, row.metric): row for row in overlap("pets", keys, right, set(keys[90:]), 3)}

    assert rows["overlap_clean", "top1"].value == pytest.approx(60 / 90)
    assert rows["overlap_all", "top1"].value == pytest.approx(0.69)
    assert rows["overlap_gain", "top1"].value == pytest.approx(0.69 - 60 / 90)
    seen = rows["overlap_only", "top1"]
    oracle = stats.binomtest(9, 10).proportion_ci(0.995, "exact")
    assert (seen.value, seen.ci_low, seen.ci_high) == pytest.approx((0.9, oracle.low, oracle.high))
    p = stats.binomtest(9, 10, 60 / 90, alternative="greater").pvalue
    assert rows["overlap", "p_value"].value == pytest.approx(min(1, 3 * p))


def test_overlaps_are_items_of_a_builds_table(tmp_path: Path) -> None:
    rows = [{"eval_set": "pets", "eval_item": "test/0.tar/s0000004.webp", "uid": "u"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "overlaps.parquet")

    assert read_overlaps(str(tmp_path), tmp_path) == {"pets": {"s0000004"}}
