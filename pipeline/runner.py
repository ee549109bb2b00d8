"""Runs units over a Ray Data actor pool: one lane of units a call, results as they commit.

Ray restarts a dead actor and hands its calls to it again, for ever. A worker therefore begins each unit by leaving
an attempt's mark; a unit that has one already is *deferred* at once, and runs alone in a second pass.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.cluster import connect, pool_size
from pipeline.stop import StopFlag
from schemas.recipe import Recipe

log = logging.getLogger(__name__)

Unit = dict[str, Any]
"""A unit's descriptor as a worker gets it: at least `unit`, `generation` and `rows`; JSON-able and small."""
Result = dict[str, Any]
"""`unit`, `state` (done, deferred or stopped), `rows`, and `counts` where done."""


class UnitWorker(Protocol):
    """Lives in one actor; `run` is called from several threads at a time unless the pass is a lone one."""

    def run(self, unit: Unit, alone: bool) -> Result: ...


@dataclass(frozen=True)
class Pass:
    """How a stage's units are run: `make` builds the worker inside its actor."""

    stage: str
    make: Callable[[], UnitWorker]
    concurrent: int = 1


class _Actor:
    def __init__(self, plan: Pass, alone: bool, stop: StopFlag) -> None:
        self._worker = plan.make()
        self._alone = alone
        self._stop = stop

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        for unit in json.loads(batch["lane"][0]):
            if self._stop.is_set():
                result: Result = {"unit": unit["unit"], "state": "stopped", "rows": 0}
            else:
                result = self._worker.run(unit, self._alone)
            yield {"result": [json.dumps(result)]}


def run_units(
    recipe: Recipe, plan: Pass, lanes: Sequence[Sequence[Unit]], stop: StopFlag, report: Callable[[Result], None]
) -> None:
    """Run every lane; `report` is called in the driver with each unit's result. Longest lanes go first."""
    deferred = _execute(recipe, plan, lanes, stop, report, alone=False)
    if deferred and not stop.is_set():
        log.info("%s: %d units were interrupted before and now run alone", plan.stage, len(deferred))
        by_unit = {unit["unit"]: unit for lane in lanes for unit in lane}
        _execute(recipe, plan, [[by_unit[name]] for name in deferred], stop, report, alone=True)


def _execute(
    recipe: Recipe, plan: Pass, lanes: Sequence[Sequence[Unit]], stop: StopFlag,
    report: Callable[[Result], None], alone: bool,
) -> list[str]:  # fmt: skip
    if not lanes:
        return []
    import ray.data

    connect(recipe)
    ordered = sorted(lanes, key=lambda lane: -sum(unit["rows"] for unit in lane))
    workers = min(pool_size(recipe, plan.stage), len(ordered))
    # No worker gets more than its share in advance: the first to come up would take nearly everything.
    share = -(-len(ordered) // workers)
    concurrent = 1 if alone else min(plan.concurrent, share)
    dataset = ray.data.from_items(
        [{"lane": json.dumps(list(lane))} for lane in ordered], override_num_blocks=len(ordered)
    ).map_batches(
        _Actor,
        fn_constructor_args=(plan, alone, stop),
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=min(share, -(-concurrent * 7 // 4)),
            max_concurrent_calls_per_actor=concurrent,
            enable_true_multi_threading=True,
        ),
    )
    deferred = []
    try:
        for row in dataset.iter_rows():
            result = json.loads(row["result"])
            if result["state"] == "deferred":
                deferred.append(result["unit"])
            report(result)
    except ray.exceptions.RayTaskError as error:
        # What went wrong is the worker's own error (a full disk, a store that is gone), not Ray's wrapping of it.
        raise (error.cause if isinstance(error.cause, OSError) else error) from None
    return sorted(deferred)
