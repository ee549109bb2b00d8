"""Classes as prompts: the classifier a CLIP is without training (Radford et al. 2021, 3.1.4)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.clip import Clip, filled
from pipeline.errors import InputError
from pipeline.evaluate.datasets import Dataset
from pipeline.evaluate.intervals import bootstrap
from pipeline.evaluate.results import Row
from pipeline.evaluate.scoring import LEVEL, Truth, rows_of, scored, value_of
from pipeline.evaluate.suite import Task
from pipeline.heads.labels import directions

SINGLE = "a photo of a {}."
"""The paper's default prompt, that the ensemble's gain is over."""


def classes_of(dataset: Dataset, task: Task) -> list[str]:
    """Class names; with an objective, those of its lines. Raises InputError where none is."""
    if task.objective is None:
        return list(dataset.classes)
    found = _of_objective(dataset.classes, task.objective)
    if not found:
        raise InputError(f"dataset {dataset.name}: classnames.txt has no line that begins with {task.objective}:")
    return found


def templates_of(dataset: Dataset, task: Task) -> list[str]:
    """The task's prompts, else the dataset's file's. Raises InputError where there are none."""
    if task.templates in ("openai80", "openai7"):
        import open_clip

        name = "OPENAI_IMAGENET_TEMPLATES" if task.templates == "openai80" else "SIMPLE_IMAGENET_TEMPLATES"
        return [template("{}") for template in getattr(open_clip, name)]
    if isinstance(task.templates, str):
        raise InputError(f"dataset {dataset.name}: templates {task.templates} is no list, openai80 or openai7")
    found = task.templates or (
        _of_objective(dataset.templates, task.objective) if task.objective else list(dataset.templates)
    )
    if not found:
        raise InputError(
            f"dataset {dataset.name}: its classes have no templates: "
            f"{dataset.folder / 'zeroshot_classification_templates.txt'} is missing or empty; write it, or give "
            "templates in the suite"
        )
    for template in found:
        filled(template, "")
    return found


def _of_objective(lines: Sequence[str], objective: str) -> list[str]:
    return [line.removeprefix(f"{objective}:").strip() for line in lines if line.startswith(f"{objective}:")]


def classifier(clip: Clip, names: list[list[str]], templates: list[str]) -> NDArray[np.float32]:
    """A unit vector a class [classes, dim]: all its names in all templates, averaged."""
    prompts = [[filled(template, name) for name in one for template in templates] for one in names]
    return directions(prompts, [one[0] for one in names], clip.encoder).astype(np.float32)


def zero_shot(
    clip: Clip, vectors: NDArray[np.float32], classes: list[str], templates: list[str], task: Task, truth: Truth
) -> tuple[list[Row], NDArray[np.float32]]:
    """Rows of the ensemble, of the class names alone, of one prompt, and the gain; and the ensemble's scores."""
    unknown = sorted(set(task.aliases) - set(classes))
    if unknown:
        raise InputError(f"dataset {truth.task}: aliases are given for {unknown[0]!r}, which is none of its classes")
    names = [[one, *task.aliases.get(one, [])] for one in classes]
    alone = [[one] for one in classes]
    ensemble = vectors @ classifier(clip, names, templates).T
    single = vectors @ classifier(clip, alone, [SINGLE]).T
    bare = vectors @ classifier(clip, alone, ["{}"]).T
    rows = rows_of("zero_shot", ensemble, truth)
    for setting, scores in (("zero_shot_single", single), ("zero_shot_names", bare)):
        rows.append(_main_row(setting, scores, truth))
    if any(task.aliases.values()):
        rows.append(_main_row("zero_shot_no_aliases", vectors @ classifier(clip, alone, templates).T, truth))
    best, plain = scored(ensemble, truth), scored(single, truth)

    def gain(drawn: NDArray[np.int64] | None = None) -> float:
        return value_of(truth.main, best, truth, drawn) - value_of(truth.main, plain, truth, drawn)

    low, high = bootstrap(gain, len(vectors), truth.seed)
    note = f"{len(templates)} templates over {SINGLE!r}"
    rows.append(Row(truth.task, "ensemble_gain", truth.main, gain(), len(vectors), low, high, LEVEL, note=note))
    return rows, ensemble


def _main_row(setting: str, scores: NDArray[np.float32], truth: Truth) -> Row:
    row = next(row for row in rows_of(setting, scores, truth) if row.metric == truth.main)
    return Row(row.task, setting, row.metric, row.value, row.n, row.ci_low, row.ci_high, LEVEL, row.group)
