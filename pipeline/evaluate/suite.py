"""A suite: the datasets to measure on, and how. Shipped ones are jobs/suites/*.yaml.

data: /data/clip_benchmark            # where the datasets' folders lie; --data beats it
measures: [zero_shot, probe]          # of every task that does not say its own
tasks:
  vtab/pets: {main: mean_per_class}   # folder vtab/pets, vtab-pets, wds_vtab-pets or wds_vtab-pets_test
  imagenetv2: {shift_of: imagenet1k}
"""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import InputError

Measure = Literal["zero_shot", "probe", "few_shot", "raw_pixels"]
Main = Literal[
    "top1", "top5", "top1_top5", "mean_per_class", "map", "map11", "macro_f1", "roc_auc", "worst_group",
    "worst_group_top5", "recall",
]  # fmt: skip


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Audit(_Settings):
    """How often images of each group are given each category of labels, under several sets of labels."""

    by: list[str] = Field(description="names of metadata: groups are the combinations of their values")
    label_sets: dict[str, dict[str, list[str]]] = Field(description="set → category → its labels")
    templates: list[str] = ["a photo of a {}."]


class Task(_Settings):
    folder: str | None = Field(None, description="where it lies below `data`, if not under its name")
    split: str = "test"
    main: Main | None = Field(None, description="its metric in summaries; default: top1, or of multilabel map11")
    measures: list[Measure] | None = None
    templates: str | list[str] | None = Field(None, description="prompts, or openai80 or openai7; default: its file's")
    aliases: dict[str, list[str]] = Field({}, description="class → the names that stand for it, itself not included")
    fields: list[str] = Field([], description="names of the numbers of a classification's .npy")
    objective: str | None = Field(None, description="classes are the lines 'objective:class', the label this metadata")
    groups: list[str] = Field([], description="metadata whose values are the groups of worst_group")
    no_groups: list[str] = Field([], description='groups that worst_group leaves out, as "region=5"')
    shift_of: str | None = Field(None, description="the reference dataset; its probe is measured here too")
    shift_classes: dict[str, list[str]] = Field({}, description="class → those of the reference that count as it")
    audit: Audit | None = None


class Suite(_Settings):
    name: str
    data: str | None = None
    seed: int = 0
    measures: list[Measure] = ["zero_shot", "probe", "raw_pixels"]
    few_shots: list[int] = [1, 2, 4, 8, 16]
    references: str | None = Field(None, description="csv of other models: model, task, value (top-1); see shifts.py")
    tasks: dict[str, Task]

    @field_validator("tasks", mode="before")
    @classmethod
    def _none_is_default(cls, value: Any) -> Any:
        return {name: task or {} for name, task in value.items()} if isinstance(value, dict) else value


def suite_names() -> list[str]:
    return sorted(
        path.name.removesuffix(".yaml") for path in files("jobs.suites").iterdir() if path.name.endswith(".yaml")
    )


def load_suite(name: str) -> tuple[Suite, Path]:
    """The suite at a path or of a shipped name, and its folder. Raises InputError."""
    path = Path(name)
    if not path.is_file():
        if name not in suite_names():
            near = difflib.get_close_matches(name, suite_names(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"shipped suites: {', '.join(suite_names())}"
            raise InputError(f"suite {name}: no such file or shipped suite; {hint}")
        path = Path(str(files("jobs.suites") / f"{name}.yaml"))
    try:
        said = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"suite {path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(said, dict):
        raise InputError(f"suite {path}: expected tasks:, got {type(said).__name__}")
    try:
        suite = Suite.model_validate({"name": path.stem} | said)
    except ValidationError as error:
        raise InputError(f"suite {path}: {_one_line(error)}") from None
    for task_name, task in suite.tasks.items():
        if task.shift_of is not None and task.shift_of not in suite.tasks:
            raise InputError(f"suite {path}: {task_name} is a shift of {task.shift_of}, which the suite has not")
    return suite, path.parent


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = Task.model_fields if first["loc"][:1] == ("tasks",) else Suite.model_fields
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return f"{key} is unknown" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}")
    return f"{key}: {first['msg']}"
