"""Readmission: a new batch of the rows that an old batch's prefilter rejected and the present one admits."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.ingest.batch import ingest_folder, next_name, record_batch, scratch_of_batch
from pipeline.ingest.describe import TextDescriber, describer_of
from pipeline.ingest.judging import rejected
from pipeline.ingest.normalise import located
from pipeline.ingest.partition import write_parts
from pipeline.ingest.prefilter import Prefilter
from pipeline.ingest.scan import Scan
from pipeline.storage import Store
from pipeline.units import Output, StageFolder
from schemas.recipe import Ingest, Recipe
from schemas.records import Batch, UnitRecord, now

log = logging.getLogger(__name__)


def make_readmitting(store: Store, recipe: Recipe, known: Sequence[Batch], name: str, run: str) -> Batch | None:
    """A batch of the rows of batch `name` that were rejected as text_rule and that `recipe` admits, or None.

    Raises InputError if there is no such batch, if it is not wholly ingested, or for a prefilter that cannot be used.
    """
    old = next((batch for batch in known if batch.batch == name), None)
    if old is None:
        there = ", ".join(batch.batch for batch in known) or "none"
        raise InputError(f"--readmit {name}: there is no such batch; there are: {there}")
    folder = ingest_folder(store, recipe)
    generations = folder.generations()
    if any(unit.unit not in generations for batch in known for unit in batch.units):
        raise InputError(f"--readmit {name}: there are units still to be ingested; run jobs.ingest first")
    release(store, folder, known, old, run)
    batch = Batch(
        batch=next_name(known), created_at=now(), run=run, files=old.files, rows=0, readmits=name,
        settings=recipe.ingest.model_dump(mode="json"), kept=old.kept, units=[],
    )  # fmt: skip
    scratch = scratch_of_batch(store, recipe, batch)
    scan = scan_rejects(store, recipe, batch, old, scratch)
    if not scan.rows:
        log.info("readmit %s: the present prefilter admits none of its rejected rows", name)
        return None
    return record_batch(store, scan, scratch, batch.model_copy(update={"rows": scan.rows}))


def scan_rejects(store: Store, recipe: Recipe, batch: Batch, old: Batch, scratch: str) -> Scan:
    """Pass A of a readmitting batch: the admitted rows of the old batch's rejects, as parts."""
    folder = ingest_folder(store, recipe)
    settings = Ingest.model_validate(batch.settings)
    prefilter, describe = Prefilter(settings.prefilter, batch.kept), TextDescriber(settings)
    generations = folder.generations()
    index = {file.source: number for number, file in enumerate(batch.files)}

    def tables() -> Iterator[pa.Table]:
        for unit in old.units:
            record = folder.record(unit.unit, generations[unit.unit])
            if not record.counts.get("rejected", {}).get("text_rule"):
                continue
            rejects = read_rejects(store, folder, record)
            rows = rejects.filter(pa.array(admitted(rejects, prefilter, describe)))
            if len(rows):
                yield _as_read(rows, index)

    parts = write_parts(store, f"{scratch}/readmitted", 0, tables(), None)
    scan = Scan(list(batch.files), parts, batch.kept, None, sum(part.rows for part in parts))
    store.replace(f"{scratch}/manifest.json", scan.to_bytes())
    return scan


def read_rejects(store: Store, folder: StageFolder, record: UnitRecord) -> pa.Table:
    filesystem, root = store.arrow()
    paths = [entry.path for entry in record.files if entry.table == "rejects"]
    return pa.concat_tables(pq.read_table(f"{root}/{folder.base}/{path}", filesystem=filesystem) for path in paths)


def admitted(rejects: pa.Table, prefilter: Prefilter, describe: TextDescriber) -> np.ndarray:
    """Mask of the rejects that were rejected as text_rule and pass the prefilter."""
    mask: np.ndarray = pc.equal(rejects["reason"], "text_rule").to_numpy().astype(bool)
    rows = rejects.filter(pa.array(mask))
    if not len(rows):
        return mask
    text = pc.fill_null(rows["text"].combine_chunks(), "")
    described = {
        "url": rows["url"], "text": text, **describe(text),
        **{name: rows[name] for name in rows.column_names if name.startswith("src_")},
    }  # fmt: skip
    mask[mask] = [rule is None for rule in prefilter.failing(pa.table(described))]
    return mask


def _as_read(rejects: pa.Table, index: dict[str, int]) -> pa.Table:
    """Rejects in the form that the readers give rows."""
    count = len(rejects)
    rows = pa.table(
        {
            "row": rejects["source_row"],
            "url": rejects["url"].cast(pa.large_string()),
            "text": rejects["text"].cast(pa.large_string()),
            "repaired": rejects["text_repaired"],
            "reason": pa.nulls(count, pa.string()),
            "detail": pa.nulls(count, pa.large_string()),
            **{name: rejects[name].cast(pa.large_string()) for name in rejects.column_names if name.startswith("src_")},
        }
    )
    files = [index[source] for source in rejects["source"].to_pylist()]
    return located(rows).append_column("file", pa.array(files, pa.int32()))


def release(store: Store, folder: StageFolder, batches: Sequence[Batch], old: Batch, run: str) -> None:
    """Take rows readmitted from `old` out of its rejects: new generations of its units, which keep their pairs.

    Run once every unit of the readmitting batches is committed; running it again does nothing.
    """
    if is_released(folder, batches, old):
        return
    readmitting = [batch for batch in batches if batch.readmits == old.batch]
    generations = folder.generations()
    records = [folder.record(unit.unit, generations[unit.unit]) for unit in old.units]
    rules = [
        (Prefilter(Ingest.model_validate(batch.settings).prefilter, batch.kept), describer_of(batch))
        for batch in readmitting
    ]
    for record in records:
        if record.counts.get("rejected", {}).get("text_rule"):
            rejects = read_rejects(store, folder, record)
            taken = np.any([admitted(rejects, prefilter, describe) for prefilter, describe in rules], axis=0)
            if taken.any():
                _commit_rest(folder, record, rejects.filter(pa.array(~taken)), run)


def is_released(folder: StageFolder, batches: Sequence[Batch], old: Batch) -> bool:
    """Whether `old`, which is ingested, has lost the rows of every batch that readmits rows of it."""
    generations = folder.generations()
    rows = sum(folder.record(unit.unit, generations[unit.unit]).rows for unit in old.units)
    return rows == old.rows - sum(batch.rows for batch in batches if batch.readmits == old.batch)


def _commit_rest(folder: StageFolder, record: UnitRecord, rest: pa.Table, run: str) -> None:
    attempt = folder.begin(record.unit, record.generation + 1, run, alone=True)
    pairs = [entry for entry in record.files if entry.table == "pairs"]
    counts = rejected(rest)
    if "ok" in record.counts:
        counts = {"ok": record.counts["ok"], **counts}
    with folder.working(attempt) as scratch:
        local = scratch / "rejects.parquet"
        pq.write_table(rest, local, compression="zstd", row_group_size=10_000)
        rows = sum(entry.rows for entry in pairs) + len(rest)
        folder.commit(attempt, [Output("rejects", local, len(rest))], counts, rows, record.input_digest, keep=pairs)
