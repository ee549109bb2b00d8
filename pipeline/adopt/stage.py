"""Adopting a download: a batch, ingest units and download units of it, without a request.

Its Parquet files become a batch as any input does. Each tar beside them is read once (measure.py); what was measured
waits under ingest/<fingerprint>/scratch/ until the download units, cut over all files as every batch's are, have taken
their rows from it. A killed run finds the measured files and the committed units again.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from os import cpu_count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.adopt.dataset import Dataset, Shard, kept_columns, open_dataset
from pipeline.adopt.measure import Measured, measure
from pipeline.adopt.scores import columns_of
from pipeline.adopt.units import UnitAdopter
from pipeline.errors import InputError
from pipeline.faults import fault_point
from pipeline.ingest.batch import ingest_folder, make_from_inputs, new_sources
from pipeline.root import read_batches
from pipeline.runner import Result
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Recipe, digest
from schemas.records import Adopted, AdoptedTar, Batch, UnitRange

log = logging.getLogger(__name__)

LEFT_OUT_NAMED = 3
"""Tars left out that are named."""

THREADS = cpu_count() or 2
"""Hashing gives the interpreter's lock back, so threads are enough."""


@dataclass(frozen=True)
class Adoption:
    """What a user asked `jobs.adopt` for."""

    path: str
    copy: bool = False


def make_adopted(store: Store, recipe: Recipe, adoption: Adoption, run: str) -> Batch | None:
    """A batch of the shards no batch has, or None. Raises InputError for what is no whole download.

    The tars are measured before the batch is recorded, so that nothing is made of a download that cannot be adopted.
    """
    dataset = open_dataset(adoption.path)
    known = list(read_batches(store).values())
    fresh = {source.source for source in new_sources(store, known, [s.source.source for s in dataset.shards])}
    shards = [shard for shard in dataset.shards if shard.source.source in fresh]
    if not shards:
        return None
    if dataset.leftover:
        more = len(dataset.leftover) - LEFT_OUT_NAMED
        log.warning(
            "%s: left out, each without a Parquet file beside it, which says what it holds: %s%s", dataset.store.uri,
            ", ".join(dataset.leftover[:LEFT_OUT_NAMED]), f" and {more:,} more" if more > 0 else "",
        )  # fmt: skip
    settings = {
        "url_col": "url",
        "caption_col": "caption" if "caption" in shards[0].columns else "",
        "keep_columns": kept_columns(shards),
        "columns": [],
    }
    ingest = recipe.ingest.model_copy(update=settings)
    tars = measure_all(store, recipe, dataset, shards)
    adopted = Adopted(path=dataset.store.uri, copied=adoption.copy, tars=tars, scores=columns_of(dataset))
    orphans = sum(tar.orphans for tar in tars)
    if orphans:
        log.warning("%s: %d images in its tars belong to no successful row; they are left out", adopted.path, orphans)
    inputs = [shard.source.source for shard in shards]
    return make_from_inputs(
        store, recipe.model_copy(update={"ingest": ingest}), known, inputs, None, run, adopted=adopted
    )


def run_adopt(
    store: Store, recipe: Recipe, batches: Sequence[Batch], ingest: StageFolder, folder: StageFolder, run: str,
    stop: StopFlag, report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Commit every download unit of the adopted batches that has no record yet; other batches are not touched."""
    done = folder.generations()
    for batch in batches:
        missing = [unit for unit in batch.units if unit.unit not in done]
        if batch.adopted is None or not missing or stop.is_set():
            continue
        local = _measured_tables(store, recipe, batch)
        try:
            with (
                UnitAdopter(store, recipe, batch, ingest, folder, run, local) as adopter,
                ThreadPoolExecutor(1 if batch.adopted.copied else THREADS) as threads,
            ):
                units = partial(_unless_stopped, adopter, stop)
                for result in filter(None, threads.map(units, missing)):
                    report(result)
        finally:
            for path in local.values():
                path.unlink(missing_ok=True)
            for path in {path.parent for path in local.values()}:
                path.rmdir()
    _sweep(store, recipe, batches, folder)


def _unless_stopped(adopter: UnitAdopter, stop: StopFlag, unit: UnitRange) -> Result | None:
    return None if stop.is_set() else adopter.run(unit)


def measure_all(store: Store, recipe: Recipe, dataset: Dataset, shards: Sequence[Shard]) -> list[AdoptedTar]:
    """Measure the shards that no earlier run has measured; the record of each tar, in the order given."""

    def one(shard: Shard) -> AdoptedTar:
        path = _scratch(store, recipe, shard)
        if store.size(path) is None:
            _write(store, path, measure(dataset.store, shard, recipe.download.exif))
            fault_point("after-measure", shard.tar)
        told = pq.read_schema(pa.BufferReader(store.read(path))).metadata
        return AdoptedTar(
            uri=shard.tar, bytes=shard.tar_bytes, etag=shard.tar_etag, images=int(told[b"images"]),
            orphans=int(told[b"orphans"]), broken=told[b"broken"].decode() or None,
        )  # fmt: skip

    tars = []
    with ThreadPoolExecutor(THREADS) as threads:
        for number, tar in enumerate(threads.map(one, shards), 1):
            if tar.broken:
                log.warning("%s: %s; rows whose image lies beyond end as truncated", tar.uri, tar.broken)
            if number % 100 == 0:
                log.info("measured %d of %d tars", number, len(shards))
            tars.append(tar)
    return tars


def _scratch(store: Store, recipe: Recipe, shard: Shard) -> str:
    source = shard.source
    token = digest(
        [source.source, source.bytes, source.etag, shard.tar_bytes, shard.tar_etag, recipe.download.exif]
    )  # fmt: skip
    return f"{ingest_folder(store, recipe).base}/scratch/adopted/{token}.parquet"


def _write(store: Store, path: str, measured: Measured) -> None:
    said = {"images": str(measured.used), "orphans": str(measured.orphans), "broken": measured.broken or ""}
    folder = store.scratch()
    local = folder / "measured.parquet"
    pq.write_table(measured.rows.replace_schema_metadata(said), local, compression="zstd")
    store.publish(local, path)
    folder.rmdir()


def _measured_tables(store: Store, recipe: Recipe, batch: Batch) -> dict[str, Path]:
    """source → a local Arrow file of its measured rows, mapped into memory by whoever reads it.

    Raises InputError where a file of the download is no longer the one that was adopted.
    """
    assert batch.adopted is not None
    shards = {shard.source.source: shard for shard in open_dataset(batch.adopted.path).shards}
    wanted: list[Shard] = []
    for file, tar in zip(batch.files, batch.adopted.tars, strict=True):
        shard = shards.get(file.source)
        if shard is None or (shard.tar_bytes, shard.tar_etag) != (tar.bytes, tar.etag):
            raise InputError(
                f"{tar.uri}: has changed or gone since batch {batch.batch} was made of it, and units of that batch "
                "are still to be adopted; put it back"
            )
        wanted.append(shard)
    measure_all(store, recipe, open_dataset(batch.adopted.path), wanted)
    folder = store.scratch()
    found = {}
    for number, shard in enumerate(wanted):
        table = pq.read_table(pa.BufferReader(store.read(_scratch(store, recipe, shard))))
        local = folder / f"{number}.arrow"
        with pa.OSFile(str(local), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        found[shard.source.source] = local
    return found


def _sweep(store: Store, recipe: Recipe, batches: Sequence[Batch], folder: StageFolder) -> None:
    """What was measured is no longer needed once every adopted unit is committed."""
    done = folder.generations()
    if all(unit.unit in done for batch in batches if batch.adopted for unit in batch.units):
        for path, _ in list(store.files(f"{ingest_folder(store, recipe).base}/scratch/adopted")):
            store.delete(path)
