"""Runs a pass of ingest: over Ray, or in this process where Ray would take longer to start than the work takes."""

from collections.abc import Callable, Sequence

from pipeline.runner import Pass, Result, Unit, UnitWorker, run_units
from pipeline.stop import StopFlag
from schemas.recipe import Recipe


def run_pass(
    recipe: Recipe, make: Callable[[], UnitWorker], lanes: Sequence[Sequence[Unit]], stop: StopFlag,
    report: Callable[[Result], None], small: bool,
) -> None:  # fmt: skip
    """Run every lane, as run_units does; `small` ones here, in the same order and with the same results."""
    if not small:
        run_units(recipe, Pass("ingest", make), lanes, stop, report)
        return
    worker = make()
    for unit in (unit for lane in lanes for unit in lane):
        if stop.is_set():
            return
        result = worker.run(unit, alone=False)
        if result["state"] == "deferred":
            result = worker.run(unit, alone=True)
        report(result)
