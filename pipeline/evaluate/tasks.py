"""One dataset, measured."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.clip import Clip, Vectors, encode_texts
from pipeline.errors import InputError
from pipeline.evaluate.datasets import Dataset
from pipeline.evaluate.features import Features, features
from pipeline.evaluate.few_shot import few_shot, shots_to_match
from pipeline.evaluate.groups import audit, groups_of
from pipeline.evaluate.metrics import hits
from pipeline.evaluate.probe import Probe, Training, held_out, probe
from pipeline.evaluate.results import Row
from pipeline.evaluate.retrieval import retrieval
from pipeline.evaluate.scoring import Truth, chance_of, rows_of, scored, value_of
from pipeline.evaluate.shifts import onto
from pipeline.evaluate.suite import Suite, Task
from pipeline.evaluate.zero_shot import classes_of, templates_of, zero_shot

VALIDATION = ("val", "validation", "valid")


@dataclass
class Outcome:
    """What a task leaves: rows, and what overlap, shifts and the panel ask of it."""

    dataset: Dataset
    classes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    data: Features | None = None
    scores: NDArray[np.float32] | None = None
    truth: Truth | None = None
    probe: Probe | None = None
    raw_probe: Probe | None = None

    def right(self) -> NDArray[np.bool_] | None:
        """Whether zero-shot is right [n]; None where a sample has no one label."""
        if self.scores is None or self.truth is None or self.truth.multilabel:
            return None
        return hits(self.scores, self.truth.labels, 1)


def measure(clip: Clip, dataset: Dataset, task: Task, suite: Suite, cache: Path, reference: Outcome | None) -> Outcome:
    """`reference` is the outcome of what this is a shift of. Raises InputError."""
    fields = tuple(task.fields)
    data = features(clip, dataset, task.split, fields, cache)
    made = Outcome(dataset, data=data)
    if dataset.kind == "retrieval":
        texts = [caption for captions in data.captions for caption in captions]
        image_of = np.repeat(np.arange(len(data)), [len(captions) for captions in data.captions])
        made.rows = retrieval(dataset.name, data.projected, encode_texts(clip.encoder, texts), image_of, suite.seed)
        return made
    made.classes = classes_of(dataset, task)
    truth = made.truth = _truth(dataset, data, task, suite, made.classes)
    measures = task.measures or suite.measures
    if "zero_shot" in measures:
        templates = templates_of(dataset, task)
        rows, made.scores = zero_shot(clip, data.projected, made.classes, templates, task, truth)
        made.rows += rows
    made.rows += chance_of(truth, len(made.classes))
    if task.shift_of is not None:
        _shifted(made, reference, task, {"probe", "raw_pixels"} & set(measures))
    else:
        _trained(clip, made, task, suite, cache)
    if task.audit is not None:
        made.rows += audit(clip, data, task.audit, dataset.name, suite.seed)
    return made


def _shifted(made: Outcome, reference: Outcome | None, task: Task, wanted: set[str]) -> None:
    """Rows of what was fitted on the reference dataset."""
    assert made.data is not None
    assert made.truth is not None
    for setting, name, fitted, seen in (
        ("reference_probe", "probe", reference.probe if reference else None, made.data.pooled),
        ("reference_raw_pixels", "raw_pixels", reference.raw_probe if reference else None, _raw(made.data)),
    ):
        if name not in wanted:
            continue
        if reference is None or fitted is None:
            why = f"nothing was fitted on {task.shift_of}"
            made.rows.append(Row(made.truth.task, setting, made.truth.main, None, len(made.data), main=True, note=why))
            continue
        scores = onto(fitted.scores(seen), reference.classes, made.classes, task.shift_classes, made.truth.task)
        made.rows += rows_of(setting, scores, made.truth)


def _truth(dataset: Dataset, data: Features, task: Task, suite: Suite, classes: list[str]) -> Truth:
    labels = data.labels
    if task.objective is not None:
        if any(task.objective not in said for said in data.metadata):
            raise InputError(
                f"dataset {dataset.name}: objective {task.objective} is not among its fields {task.fields}"
            )
        labels = np.array([int(said[task.objective]) for said in data.metadata])
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= len(classes)):
        raise InputError(
            f"dataset {dataset.name}: {task.objective or 'its label'} goes from {labels.min()} to {labels.max()}, "
            f"and there are {len(classes)} classes; a label that is metadata needs objective in the suite"
        )
    main = task.main or ("map11" if dataset.kind == "multilabel" else "top1")
    named = groups_of(data.metadata, task.groups, dataset.name) if task.groups else ()
    groups = tuple(None if one in task.no_groups else one for one in named)
    few = (main in ("top5", "worst_group_top5") and len(classes) < 5) or (main == "roc_auc" and len(classes) != 2)
    if (dataset.kind == "multilabel") != main.startswith("map") or (main.startswith("worst") and not groups) or few:
        raise InputError(f"dataset {dataset.name}: main {main} is not for {dataset.kind} of {len(classes)} classes"
                         f"{' without groups' if main.startswith('worst') else ''}")  # fmt: skip
    return Truth(dataset.name, labels, main, suite.seed, groups)


def _trained(clip: Clip, made: Outcome, task: Task, suite: Suite, cache: Path) -> None:
    """Rows of everything that is fitted on the training split."""
    measures = task.measures or suite.measures
    assert made.data is not None
    assert made.truth is not None
    dataset, truth, classes = made.dataset, made.truth, len(made.classes)
    wanted = [one for one in ("probe", "few_shot", "raw_pixels") if one in measures]
    if wanted and (task.objective is not None or not dataset.has("train")):
        why = "no train split" if task.objective is None else "its label is metadata"
        made.rows += [Row(dataset.name, one, truth.main, None, len(made.data), main=True, note=why) for one in wanted]
        return
    if not wanted:
        return
    train = features(clip, dataset, "train", tuple(task.fields), cache)
    split = next((name for name in VALIDATION if dataset.has(name)), None)
    given = features(clip, dataset, split, tuple(task.fields), cache) if split else None
    note = f"validated on {split}" if split else "validated on a seeded tenth of train"
    curve: list[tuple[float, float]] = []
    if "few_shot" in measures and not truth.multilabel:
        data = _training(train, given, "pooled", suite.seed)
        fewest = int(np.unique(data.labels, return_counts=True)[1].min())
        for k in suite.few_shots:
            if k > fewest:
                why = f"a class has only {fewest} samples"
                made.rows.append(Row(dataset.name, f"few_shot_{k}", truth.main, None, len(made.data), note=why))
                continue
            probes = few_shot(data, classes, truth.main, k, suite.seed)
            values = [value_of(truth.main, scored(one.scores(made.data.pooled), truth), truth) for one in probes]
            curve.append((k, float(np.mean(values))))
            spread = f"mean of {len(values)} draws, {min(values):.4f} to {max(values):.4f}"
            made.rows.append(Row(dataset.name, f"few_shot_{k}", truth.main, curve[-1][1], len(made.data), note=spread))
    if "probe" in measures:
        made.probe = probe(_training(train, given, "pooled", suite.seed), classes, truth.main)
        rows = rows_of("probe", made.probe.scores(made.data.pooled), truth)
        made.rows += rows
        made.rows.append(Row(dataset.name, "probe", "C", made.probe.strength, len(train), note=note))
        whole = next(row.value for row in rows if row.metric == truth.main)
        if not truth.multilabel and whole is not None:
            curve.append((len(train) / classes, whole))
    if "raw_pixels" in measures:
        data = _training(train, given, "raw", suite.seed)
        made.raw_probe = probe(data, classes, truth.main)
        made.rows += rows_of("raw_pixels", made.raw_probe.scores(_raw(made.data)), truth)
    if "few_shot" in measures and made.scores is not None and curve:
        wanted_value = value_of(truth.main, scored(made.scores, truth), truth)
        curve.sort()
        found = shots_to_match([k for k, _ in curve], [value for _, value in curve], wanted_value)
        short = None if found is not None else f"not with the {curve[-1][0]:g} that were tried"
        made.rows.append(Row(dataset.name, "few_shot", "shots_to_match", found, len(made.data), note=short))


def _raw(data: Features) -> Vectors:
    return (data.raw / np.float32(255)).astype(np.float32)


def _training(train: Features, given: Features | None, kind: str, seed: int) -> Training:
    def of(data: Features) -> NDArray[np.float32]:
        return _raw(data) if kind == "raw" else data.pooled

    if given is not None:
        return Training(of(train), train.labels, of(given), given.labels)
    if len(train) < 2:
        raise InputError("a probe needs 2 training samples or more")
    kept, out = held_out(len(train), seed)
    everything = of(train)
    return Training(everything[kept], train.labels[kept], everything[out], train.labels[out])
