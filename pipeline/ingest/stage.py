"""The ingest stage: what flows in and out of it.

Pass A (scan.py) reads input files into sorted parts; the batch's record (batch.py) cuts units over them (cut.py);
pass B (judging.py) judges each unit's rows (judge.py) and commits its pairs and rejects.
"""

import logging
from collections.abc import Callable, Sequence

from pipeline.errors import InputError
from pipeline.ingest.batch import (
    ensure_scan,
    make_from_inputs,
    new_sources,
    scratch_of_batch,
)  # fmt: skip
from pipeline.ingest.judging import UnitJudge
from pipeline.ingest.parquet import open_parquet
from pipeline.ingest.passes import run_pass
from pipeline.ingest.prefilter import Prefilter
from pipeline.ingest.readers import read_text
from pipeline.ingest.readmit import make_readmitting, release, scan_rejects
from pipeline.ingest.scan import Scan
from pipeline.ingest.sources import opened
from pipeline.root import read_batches
from pipeline.runner import Result, Unit
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Ingest, Recipe
from schemas.records import Batch

__all__ = ["count_new_rows", "make_batches", "run_ingest"]

log = logging.getLogger(__name__)

SMALL_ROWS = 200_000
"""Batches below this are judged in this process: Ray would take longer to start than the work takes."""
NEIGHBOURS_ROWS = 200_000
NEIGHBOURS_BYTES = 128 * 1024 * 1024
"""Neighbouring units that one worker reads together."""


def make_batches(
    store: Store, recipe: Recipe, inputs: Sequence[str], limit: int | None, readmit: str | None, run: str
) -> Batch | None:
    """Make a batch of the input files the ROOT has not seen, or of rows to readmit; None if there is nothing new.

    `limit` takes the rows with the lowest draws (scan.draws). Raises InputError for input that is not there, cannot
    be read to its end or was changed, for a prefilter that is no SQL, and for a limit other than the ROOT's. Nothing
    was made then.
    """
    if "*" not in recipe.ingest.keep_columns:
        Prefilter(recipe.ingest.prefilter, recipe.ingest.keep_columns)
    known = list(read_batches(store).values())
    _say_what_changed(recipe.ingest, known)
    if readmit is None:
        return make_from_inputs(store, recipe, known, inputs, limit, run)
    if inputs or limit is not None:
        raise InputError("--readmit takes no --input and no --limit; run it by itself")
    return make_readmitting(store, recipe, known, readmit, run)


def _say_what_changed(settings: Ingest, known: Sequence[Batch]) -> None:
    known = [batch for batch in known if batch.adopted is None]  # whose columns are the download's, not the recipe's
    if not known:
        return
    now, then = settings.model_dump(mode="json"), known[-1].settings
    changed = [name for name in now if now[name] != then.get(name)]
    if changed:
        log.warning(
            "ingest.%s: other than in batch %s; the change applies to later batches only",
            ", ingest.".join(changed), known[-1].batch,
        )  # fmt: skip


def count_new_rows(store: Store, recipe: Recipe, inputs: Sequence[str], batches: Sequence[Batch]) -> int:
    """Rows of the input files no batch has, read to their end; nothing is written. Raises InputError."""
    rows = 0
    for source in new_sources(store, batches, inputs):
        if source.format == "parquet":
            rows += open_parquet(source.source).metadata.num_rows
            continue
        with opened(source.source) as stream:
            rows += sum(map(len, read_text(stream, source.format, recipe.ingest, source.source)))
    return rows


def run_ingest(
    store: Store, recipe: Recipe, batches: Sequence[Batch], folder: StageFolder, run: str, stop: StopFlag,
    report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Ingest every unit that has no record yet, one batch after another, as later batches look at earlier ones."""
    by_name = {batch.batch: batch for batch in batches}
    done = set(folder.generations())
    for batch in batches:
        if any(unit.unit not in done for unit in batch.units):
            _run_batch(store, recipe, batch, by_name, folder, done, run, stop, report)
        if stop.is_set():
            return
        if batch.readmits is not None:
            release(store, folder, batches, by_name[batch.readmits], run)
    _sweep(store, folder, batches)


def _sweep(store: Store, folder: StageFolder, batches: Sequence[Batch]) -> None:
    """Remove the parts of these batches, and of runs that were killed before they could make one of them."""
    ingested = {batch.batch for batch in batches}
    for path, _ in list(store.files(f"{folder.base}/scratch")):
        name = path.removeprefix(f"{folder.base}/scratch/").partition("-")[0]
        if name in ingested:
            store.delete(path)


def _run_batch(
    store: Store, recipe: Recipe, batch: Batch, batches: dict[str, Batch], folder: StageFolder, done: set[str],
    run: str, stop: StopFlag, report: Callable[[Result], None],
) -> None:  # fmt: skip
    scratch = scratch_of_batch(store, recipe, batch)
    if batch.readmits is None:
        ensure_scan(store, recipe, batch, scratch, run)
    elif store.size(f"{scratch}/manifest.json") is None:
        scan_rejects(store, recipe, batch, batches[batch.readmits], scratch)
    scan = Scan.from_bytes(store.read(f"{scratch}/manifest.json"))
    size = sum(part.bytes for part in scan.parts) / max(1, sum(part.rows for part in scan.parts))
    together = min(NEIGHBOURS_ROWS, int(NEIGHBOURS_BYTES / max(1.0, size)))
    lanes = [
        [{**unit, "from": lane[0]["unit"], "to": lane[-1]["unit"]} for unit in lane if unit["unit"] not in done]
        for lane in _neighbours(batch, together)
    ]
    root, fingerprint, name = store.uri, folder.fingerprint, batch.batch

    def make() -> UnitJudge:
        return UnitJudge(root, fingerprint, name, scratch, run, recipe.download.blocklists)

    run_pass(recipe, make, [lane for lane in lanes if lane], stop, report, small=batch.rows < SMALL_ROWS)


def _neighbours(batch: Batch, together: int) -> list[list[Unit]]:
    """Units next to each other in key order, in lists of about `together` rows."""
    lanes: list[list[Unit]] = []
    rows, keyed = 0, None
    for span in batch.units:
        if rows + span.rows > together or keyed is not (span.first[0] != "#"):
            lanes.append([])
            rows = 0
        keyed = span.first[0] != "#"
        rows += span.rows
        lanes[-1].append({"unit": span.unit, "generation": 0, "rows": span.rows})
    return lanes
