"""A suite's tasks, one after another in this process, or side by side on a Ray cluster's workers."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.clip import Clip, load
from pipeline.errors import InputError
from pipeline.evaluate.datasets import Dataset
from pipeline.evaluate.panel import Shown, panel
from pipeline.evaluate.results import Row
from pipeline.evaluate.suite import Suite
from pipeline.evaluate.tasks import Outcome, measure


@dataclass(frozen=True)
class Measured:
    """A task's rows; `right` [n] says whether zero-shot was, where that is a question."""

    name: str
    rows: list[Row]
    shown: list[Shown]
    keys: list[str]
    right: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Work:
    """All that a worker needs: paths are on a disk that all of them see."""

    model: str
    arch: str | None
    suite: Suite
    datasets: dict[str, Dataset]
    cache: Path

    def chains(self) -> list[list[str]]:
        """Names that go together: a dataset and, after it, its shifts, which ask for its probe."""
        found: dict[str, list[str]] = {}
        for name in self.datasets:
            reference = self.suite.tasks[name].shift_of
            found.setdefault(reference if reference in self.datasets else name, []).append(name)
        return [sorted(names, key=lambda name, first=first: name != first) for first, names in found.items()]  # type: ignore[misc]


def measured(work: Work, clip: Clip, names: Sequence[str]) -> Iterator[Measured]:
    """One chain. Raises InputError."""
    outcomes: dict[str, Outcome] = {}
    for name in names:
        task = work.suite.tasks[name]
        reference = outcomes.get(task.shift_of) if task.shift_of else None
        outcome = measure(clip, work.datasets[name], task, work.suite, work.cache, reference)
        shown = panel(outcome, task.split, work.suite.seed)
        keys = outcome.data.keys if outcome.data else []
        yield Measured(name, outcome.rows, shown, keys, outcome.right())
        outcome.data = outcome.scores = None  # a shift asks for the probe alone
        outcomes[name] = outcome


def on_ray() -> bool:
    """Whether there is a cluster to use: `ray job submit` or its user says so."""
    return bool(os.environ.get("RAY_ADDRESS"))


def measured_on_ray(work: Work) -> Iterator[Measured]:
    """All chains, in the order they end. A worker takes a CPU, and a GPU where the cluster has any. Raises InputError,
    or ConnectionError where the cluster does not answer."""
    from pipeline.cluster import connect
    from schemas.recipe import Recipe

    connect(Recipe())
    import ray

    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_chain)
    given = ray.put(work)
    waiting = [remote.remote(given, names) for names in work.chains()]
    try:
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        for one in waiting:
            ray.cancel(one, force=True)
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise


def _chain(work: Work, names: list[str]) -> list[Measured]:
    return list(measured(work, _loaded(work.model, work.arch), names))


@lru_cache(1)
def _loaded(model: str, arch: str | None) -> Clip:
    return load(model, arch)
