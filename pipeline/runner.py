"""Runs units over a pool of Ray actors: results as they commit, and an exact answer to a worker's death.

Plain actors rather than Ray Data's pool: only unit descriptors would pass through it, while its executor takes 2 to
2.5 s longer to the first unit, runs three helper actors (4 s of CPU) and imports ray.data and pandas in every worker,
and it hands a dead actor's calls out again for ever, innocent units along with the poison one. Here the driver knows
which units a dead worker held: they run again in a second pass, each alone in its worker.
"""

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.cluster import connect, pool_size
from pipeline.errors import InputError, StoreError
from pipeline.start import start_lean
from pipeline.stop import StopFlag
from schemas.recipe import Recipe

log = logging.getLogger(__name__)

MAX_STARTS_LOST = 3
"""Workers in a row that die before their first unit, after which the run gives up."""

Unit = dict[str, Any]
"""A unit's descriptor as a worker gets it: at least `unit`, `generation` and `rows`; JSON-able and small."""
Result = dict[str, Any]
"""`unit`, `state` (done, deferred, stopped or failed), `rows`, and `counts` where done."""


class UnitWorker(Protocol):
    """Lives in one actor; `run` is called from several threads at a time unless the pass is a lone one."""

    def run(self, unit: Unit, alone: bool) -> Result: ...


@dataclass(frozen=True)
class Pass:
    """How a stage's units are run: `make` builds the worker inside its actor."""

    stage: str
    make: Callable[[], UnitWorker]
    concurrent: int = 1
    actors: int | None = None
    """Most at a time; default: the recipe's, or one for each of the cluster's CPUs."""
    cpus: float = 1
    gpus: float = 0
    """What an actor asks of its node."""


class _Actor:
    def __init__(self, plan: Pass, alone: bool, stop: StopFlag) -> None:
        usual = gc.get_threshold()
        start_lean()
        self._refused: InputError | None = None
        try:
            self._worker = plan.make()
        except InputError as error:
            self._refused = error  # `ready` tells it: Ray would only say that the actor died
        gc.freeze()  # what was imported stays; no collection has to look at it again
        gc.set_threshold(*usual)
        self._alone = alone
        self._stop = stop

    def ready(self) -> None:
        """Answers once the worker is built. Raises InputError where what it was told cannot be used."""
        if self._refused is not None:
            raise self._refused

    def run(self, unit: Unit) -> Result:
        if self._stop.is_set():
            return {"unit": unit["unit"], "state": "stopped", "rows": 0}
        return self._worker.run(unit, self._alone)


def run_units(
    recipe: Recipe, plan: Pass, lanes: Sequence[Sequence[Unit]], stop: StopFlag, report: Callable[[Result], None]
) -> None:
    """Run every lane, its units one at a time; `report` is called in the driver with each unit's result.

    Units whose worker died, or that an earlier run's worker died over, run alone afterwards. Raises what a worker
    raised, once the units under way have ended.
    """
    if not lanes:
        return
    connect(recipe)
    interrupted = _Pool(recipe, plan, lanes, stop, report, alone=False).run()
    if interrupted and not stop.is_set():
        log.info("%s: %d units were interrupted before and now run alone", plan.stage, len(interrupted))
        names = {unit["unit"] for unit in interrupted}
        # Still lane by lane: a host's units never run at the same time.
        suspects = [[unit for unit in lane if unit["unit"] in names] for lane in lanes]
        _Pool(recipe, plan, [lane for lane in suspects if lane], stop, report, alone=True).run()


def run_here(
    make: Callable[[], UnitWorker], units: Sequence[Unit], stop: StopFlag, report: Callable[[Result], None],
    workers: int = 2,
) -> None:  # fmt: skip
    """Run a few units in this process, each thread with a worker of its own: sooner than a pool's workers start."""
    local = threading.local()

    def run(unit: Unit) -> Result:
        if stop.is_set():
            return {"unit": unit["unit"], "state": "stopped", "rows": 0}
        if not hasattr(local, "worker"):
            local.worker = make()
        result: Result = local.worker.run(unit, alone=True)
        return result

    # Two, so that one's disk and hashing overlap the other's work.
    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(run, units):
            report(result)


@contextmanager
def failures_last(stage: str, report: Callable[[Result], None]) -> Iterator[Callable[[Result], None]]:
    """`report`, for a pass whose units may fail: at its end StoreError with the first failed unit's error."""
    failed: list[str] = []

    def heard(result: Result) -> None:
        if result["state"] == "failed":
            failed.append(f"{stage} unit {result['unit']}: {result['error']}")
        else:
            report(result)

    yield heard
    if failed:
        raise StoreError(failed[0] + (f" (and {len(failed) - 1} more units)" if len(failed) > 1 else ""))


class _Pool:
    """One pass over the lanes, the longest first. A worker holds several at a time, but no more than its share."""

    def __init__(
        self, recipe: Recipe, plan: Pass, lanes: Sequence[Sequence[Unit]], stop: StopFlag,
        report: Callable[[Result], None], alone: bool,
    ) -> None:  # fmt: skip
        ordered = sorted(lanes, key=lambda lane: -sum(unit["rows"] for unit in lane))
        self._waiting = deque(deque(lane) for lane in ordered if lane)
        self._workers = min(plan.actors or pool_size(recipe, plan.stage), len(self._waiting))
        self._each = 1 if alone else min(plan.concurrent, -(-len(self._waiting) // self._workers))
        self._plan, self._alone, self._stop, self._report = plan, alone, stop, report
        self._calls: dict[Any, tuple[Any, deque[Unit] | None]] = {}
        """Ray reference → (actor, the lane whose first unit it runs; None while the actor starts)."""
        self._interrupted: list[Unit] = []
        self._starts_lost = 0
        self._error: Exception | None = None

    def run(self) -> list[Unit]:
        """Run the lanes to their end; returns the units that have to run alone."""
        import ray

        actors = {self._start() for _ in range(self._workers)}
        try:
            # An actor that there is no room for never answers: nobody waits for it once the work is done.
            while self._go_on() or any(lane is not None for _, lane in self._calls.values()):
                if not self._calls:
                    actors.add(self._start())
                # Waking now and then lets Python handle signals.
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=1.0)
                for reference in done:
                    actor, lane = self._calls.pop(reference)
                    lived = self._take(reference, lane)
                    if lived:
                        self._fill(actor)
                    elif actor in actors:
                        actors.remove(actor)
                        if self._go_on():
                            actors.add(self._start())
        finally:
            for actor in actors:
                ray.kill(actor)
        if self._error is not None:
            raise self._error
        return sorted(self._interrupted, key=lambda unit: str(unit["unit"]))

    def _go_on(self) -> bool:
        return bool(self._waiting) and self._error is None and not self._stop.is_set()

    def _start(self) -> Any:
        import ray

        actor = (
            ray.remote(_Actor)
            .options(num_cpus=self._plan.cpus, num_gpus=self._plan.gpus, max_concurrency=self._each + 1)
            .remote(self._plan, self._alone, self._stop)
        )
        self._calls[actor.ready.remote()] = (actor, None)
        return actor

    def _fill(self, actor: Any) -> None:
        """Give the actor lanes up to its share."""
        held = sum(other is actor for other, _ in self._calls.values())
        while held < self._each and self._go_on():
            lane = self._waiting.popleft()
            self._calls[actor.run.remote(lane[0])] = (actor, lane)
            held += 1

    def _take(self, reference: Any, lane: "deque[Unit] | None") -> bool:
        """Take a call's answer; False where its actor is dead."""
        import ray

        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            # What went wrong is the worker's own error (a full disk, a store that is gone), not Ray's wrapping of it.
            self._error = self._error or (error.cause if isinstance(error.cause, OSError | InputError) else error)
            return True
        except ray.exceptions.RayError as error:  # dead, out of memory, its node gone
            self._lost(lane, error)
            return False
        if lane is None:
            self._starts_lost = 0
            return True
        unit = lane.popleft()
        if result["state"] == "deferred":
            self._interrupted.append(unit)
        self._report(result)
        if lane:
            self._waiting.appendleft(lane)
        return True

    def _lost(self, lane: "deque[Unit] | None", error: Exception) -> None:
        """A worker died: the unit it held is suspect, the rest of its lane is not."""
        if lane is None:
            self._starts_lost += 1
            if self._starts_lost >= MAX_STARTS_LOST or "creation task" in str(error):
                reason = str(error).strip().splitlines()[-1]
                self._error = self._error or StoreError(f"{self._plan.stage}: workers die as they start: {reason}")
                self._waiting.clear()
            return
        if self._alone:
            self._waiting.append(lane)
            return
        self._interrupted.append(lane.popleft())
        if lane:
            self._waiting.appendleft(lane)
