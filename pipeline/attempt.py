"""One attempt at a unit: what every stage's worker does around its own work."""

from collections.abc import Callable
from contextlib import ExitStack

from pipeline.errors import UnitError
from pipeline.runner import Result, Unit
from pipeline.units import Attempt, StageFolder
from schemas.records import UnitRecord


def attempt_unit(
    folder: StageFolder, unit: Unit, run: str, alone: bool, make: Callable[[Attempt], UnitRecord]
) -> Result:
    """Make and commit a unit that is not committed yet.

    `deferred` where an earlier attempt died and this is not a lone pass, `failed` where `make` raises UnitError. An
    attempt that ends so, or by what else `make` raises (a full disk, a store that is gone: no fault of the unit's), is
    withdrawn.
    """
    name, generation = unit["unit"], unit["generation"]
    if (record := folder.committed(name, generation)) is not None:
        return done(record)
    attempt = folder.begin(name, generation, run, alone)
    with ExitStack() as given_up:
        given_up.callback(folder.withdraw, attempt)
        if attempt.suspect and not alone:
            return {"unit": name, "state": "deferred", "rows": 0}
        try:
            record = make(attempt)
        except UnitError as error:
            return {"unit": name, "state": "failed", "rows": 0, "error": str(error)}
        given_up.pop_all()
    return done(record)


def done(record: UnitRecord) -> Result:
    return {"unit": record.unit, "state": "done", "rows": record.rows, "counts": record.counts}
