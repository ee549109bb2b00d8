"""Natural shifts of a reference dataset, and effective robustness against other models (Taori et al. 2020)."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluate.metrics import Floats

COLUMNS = ("model", "task", "value")


def onto(scores: Floats, reference: list[str], classes: list[str], said: dict[str, list[str]], task: str) -> Floats:
    """Scores of the reference's classes [n, R] as those of a shift's [n, C]: of each class the highest of what counts
    as it, which is the reference's class of that name unless `said` names others. Raises InputError."""
    places = {name: at for at, name in enumerate(reference)}
    columns = []
    for one in classes:
        names = said.get(one, [one])
        unknown = [name for name in names if name not in places]
        if unknown or not names:
            raise InputError(
                f"dataset {task}: class {one!r} is none of its reference's; say in shift_classes which of those count "
                f"as it{f' ({unknown[0]!r} is none)' if unknown and unknown[0] != one else ''}"
            )
        columns.append(scores[:, [places[name] for name in names]].max(axis=1))
    return np.stack(columns, axis=1)


def read_references(path: Path) -> dict[str, dict[str, float]]:
    """model → task → top-1. Raises InputError naming the line."""
    found: dict[str, dict[str, float]] = {}
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            if not set(COLUMNS) <= set(rows.fieldnames or ()):
                raise InputError(f"references {path}: its columns are {rows.fieldnames}, not {', '.join(COLUMNS)}")
            for line, row in enumerate(rows, 2):
                value = float(row["value"])
                if not 0 < value < 1:
                    raise InputError(f"references {path}: line {line}: {row['value']} is not between 0 and 1")
                found.setdefault(row["model"], {})[row["task"]] = value
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"references {path}: cannot be read: {error}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"references {path}: {error}") from None
    return found


def effective_robustness(
    references: dict[str, dict[str, float]], reference: str, shift: str, there: float, here: float
) -> tuple[float, int]:
    """(ρ, models it is measured against): accuracy under the shift, less what models of this accuracy on the reference
    have there, by a line through their logits (Taori et al. 2020, section 2). Raises InputError for fewer than 2."""
    pairs = np.array(
        [(one[reference], one[shift]) for one in references.values() if reference in one and shift in one]
    ).reshape(-1, 2)
    if len(np.unique(pairs[:, 0])) < 2:
        raise InputError(
            f"references: fewer than 2 models have both {reference} and {shift}; no line goes through them"
        )
    slope, offset = np.polyfit(_logit(pairs[:, 0]), _logit(pairs[:, 1]), 1)
    at = float(_logit(np.clip(np.array([there]), 1e-6, 1 - 1e-6))[0])
    return here - float(1 / (1 + np.exp(-(slope * at + offset)))), len(pairs)


def _logit(share: NDArray[np.float64]) -> NDArray[np.float64]:
    made: NDArray[np.float64] = np.log(share / (1 - share))
    return made
