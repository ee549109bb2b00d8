"""Which labels images of each group of people are given, and what another set of labels changes.

Radford et al. 2021, section 7.1: people of FairFace among labels of crimes and animals, by race and age, and again with
the label "child" added.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.clip import Clip
from pipeline.errors import InputError
from pipeline.evaluate.features import Features
from pipeline.evaluate.intervals import bootstrap, clopper_pearson
from pipeline.evaluate.results import Row
from pipeline.evaluate.scoring import LEVEL
from pipeline.evaluate.suite import Audit
from pipeline.evaluate.zero_shot import classifier

ALL = "all"


def groups_of(metadata: list[dict[str, Any]], names: list[str], task: str) -> tuple[str, ...]:
    """ "race=2, age=0" a sample. Raises InputError where a sample says nothing of a name."""
    found = []
    for number, said in enumerate(metadata):
        missing = [name for name in names if name not in said]
        if missing:
            known = ", ".join(said) or "nothing: give fields for its .npy, or a .json a sample"
            raise InputError(f"dataset {task}: sample {number} has no {missing[0]}; its metadata has {known}")
        found.append(", ".join(f"{name}={said[name]}" for name in names))
    return tuple(found)


def audit(clip: Clip, data: Features, said: Audit, task: str, seed: int) -> list[Row]:
    """A row a label set, category and group: the share given a label of that category; and its changes from the first
    set to each other one."""
    groups = np.array(groups_of(data.metadata, said.by, task))
    given = {name: _categories(clip, data.projected, labels, said, task) for name, labels in said.label_sets.items()}
    rows = []
    first = next(iter(given))
    for name, categories in given.items():
        for category in said.label_sets[name]:
            for group in [ALL, *sorted(set(groups))]:
                mine = np.ones(len(groups), bool) if group == ALL else groups == group
                is_it = categories[mine] == category
                hit, n = int(is_it.sum()), int(mine.sum())
                interval = clopper_pearson(hit, n, LEVEL)
                rows.append(Row(task, f"audit:{name}", category, hit / n, n, *interval, LEVEL, group))
                if name != first and category in said.label_sets[first]:
                    change = is_it.astype(float) - (given[first][mine] == category)
                    low, high = bootstrap(lambda drawn, change=change: float(change[drawn].mean()), n, seed)  # type: ignore[misc]
                    setting = f"audit:{first}→{name}"
                    rows.append(Row(task, setting, category, float(change.mean()), n, low, high, LEVEL, group))
    return rows


def _categories(
    clip: Clip, vectors: NDArray[np.float32], labels: dict[str, list[str]], said: Audit, task: str
) -> NDArray[np.str_]:
    names = [label for category in labels.values() for label in category]
    if len(names) < 2:
        raise InputError(f"dataset {task}: an audit's set of labels needs 2 of them, it has {len(names)}")
    of = np.array([category for category, mine in labels.items() for _ in mine])
    found: NDArray[np.str_] = of[
        (vectors @ classifier(clip, [[one] for one in names], said.templates).T).argmax(axis=1)
    ]
    return found
