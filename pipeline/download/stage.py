"""The download stage: which units to fetch, in which lanes, one batch after another."""

from collections.abc import Callable, Sequence

from pipeline.errors import InputError
from pipeline.runner import Pass, Result, Unit, UnitWorker, run_units
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Recipe
from schemas.records import Batch, UnitRange
from schemas.statuses import STATUS_OF

ROWS_IN_FLIGHT = 20_000
"""Rows of the units one worker holds at a time: enough that a slow host's tail overlaps the next units."""


def run_download(
    store: Store, recipe: Recipe, batches: Sequence[Batch], ingest: StageFolder, folder: StageFolder, run: str,
    stop: StopFlag, report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Fetch every unit that has no record yet."""
    upstream = ingest.generations()
    done = folder.generations()
    for batch in batches:
        _check_ingested(batch, upstream)
        if batch.adopted and any(piece.unit not in done for piece in batch.units):
            raise InputError(
                f"batch {batch.batch}: was adopted from {batch.adopted.path}, not all of it to {folder.base}; "
                f"python -m jobs.adopt {batch.adopted.path} with this recipe and --output does that without a request"
            )
        work = [_unit(piece, 0, upstream[piece.unit]) for piece in batch.units if piece.unit not in done]
        _run(store, recipe, ingest, folder, run, stop, report, batch, work)


def retry_download(
    store: Store, recipe: Recipe, batches: Sequence[Batch], ingest: StageFolder, folder: StageFolder, run: str,
    stop: StopFlag, report: Callable[[Result], None], reasons: Sequence[str],
) -> None:  # fmt: skip
    """Fetch again only the rows that ended for one of `reasons`, as a new generation of their units."""
    upstream = ingest.generations()
    records = folder.records()
    for batch in batches:
        _check_ingested(batch, upstream)
        work = []
        for piece in batch.units:
            record = records.get(piece.unit)
            hit = record and sum(record.counts.get(STATUS_OF[reason], {}).get(reason, 0) for reason in reasons)
            if record and hit:
                unit = _unit(piece, record.generation + 1, upstream[piece.unit])
                work.append({**unit, "retry": list(reasons), "rows": hit})
        _run(store, recipe, ingest, folder, run, stop, report, batch, work)


def _check_ingested(batch: Batch, ingested: dict[str, int]) -> None:
    missing = sum(piece.unit not in ingested for piece in batch.units)
    if missing:
        raise InputError(f"batch {batch.batch}: {missing} units are not ingested yet; run jobs.ingest or jobs.build")


def _unit(piece: UnitRange, generation: int, ingest_generation: int) -> Unit:
    return {
        "unit": piece.unit,
        "generation": generation,
        "ingest_generation": ingest_generation,
        "rows": piece.rows,
    }


def _run(
    store: Store, recipe: Recipe, ingest: StageFolder, folder: StageFolder, run: str, stop: StopFlag,
    report: Callable[[Result], None], batch: Batch, work: list[Unit],
) -> None:  # fmt: skip
    if not work or stop.is_set():
        return
    lane_of = {piece.unit: piece.lane or piece.unit for piece in batch.units}
    lanes: dict[str, list[Unit]] = {}
    for unit in work:
        lanes.setdefault(lane_of[unit["unit"]], []).append(unit)
    largest = max(unit["rows"] for unit in work)

    def make() -> UnitWorker:
        # Only a worker needs what fetching and decoding import.
        from pipeline.download.worker import DownloadWorker

        return DownloadWorker(store.uri, ingest.fingerprint, folder.fingerprint, recipe.download, run)

    plan = Pass("download", make, concurrent=max(2, min(64, ROWS_IN_FLIGHT // max(1, largest))))
    run_units(recipe, plan, list(lanes.values()), stop, report)
