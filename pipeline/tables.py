"""Publishing `tables/`: what analysts read, one version of all tables at a time."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.external_sort import Positions, Source, by_uid, sorted_chunks
from pipeline.faults import fault_point
from pipeline.root import current_folders, read_batches, stage_of
from pipeline.rounds import descriptors, read_rounds, unfinished
from pipeline.storage import LocalStore, Store
from pipeline.units import StageFolder, measure
from pipeline.views import first_line, views_sql
from schemas.recipe import ORDER
from schemas.records import Complete, Published, PublishedFile, UnitRecord, now
from schemas.tables import TABLES

SOURCES_OF = {
    "pairs": ("ingest",), "rejects": ("ingest",), "outcomes": ("download",), "consent": ("download",),
    "hashes": ("hashes",), "duplicates": ("dedupe", "semantic"), "scores": ("embed", "scores"),
    "embeddings": ("embed",), "overlaps": ("select",), "decisions": ("select",),
}  # fmt: skip
"""table → the stages whose units hold it; duplicates also holds ingest's, of the level `url`. Scores in `embed` are
those of adopted batches."""

BY_BATCH = ("ingest", "download", "hashes", "embed", "scores")
"""Stages whose units are those of a batch."""

ORDER_BY = {"rejects": ("batch", "source", "source_row"), "consent": ("uid", "signal", "source", "value"),
            "duplicates": ("uid", "level", "dup_of"), "overlaps": ("uid", "eval_set", "eval_item", "level"),
            "scores": ("uid", "encoder"), "embeddings": ("uid", "encoder")}  # fmt: skip
"""The order of rows; a table not named here is sorted by uid."""

PART_BYTES = 256 << 20
"""Size aimed at for a part; parts may be 128 to 512 MB."""
ROW_GROUP_ROWS = 65_536
"""Small enough that one uid's row group is read in milliseconds."""
ZSTD_LEVEL = 1
"""Rows are mostly hashes: level 3 took 1.4 times as long and level 6 three times, for no fewer bytes."""


@dataclass(frozen=True)
class Stage:
    """A completed stage's folder with the records that its complete.json folds."""

    folder: StageFolder
    done: Complete
    records: dict[str, UnitRecord]


def publish(store: Store, stages: Iterable[str] = ORDER, again: bool = False) -> int | None:
    """Publish all tables from the current folders of `stages` under one new version.

    Returns the version, or None where nothing was completed since the last publication, unless `again` is asked for.
    Only batches that a stage's complete.json names are published, so a stage under way never shows half a batch.
    """
    wanted = set(stages)
    completed = {
        key: (folder, done)
        for key, folder in current_folders(store).items()
        if stage_of(key) in wanted and (done := folder.completed())
    }
    made_from = {stage: stamp(folder, done) for stage, (folder, done) in completed.items()}
    before = {table: read_published(store, table) for table in SOURCES_OF}
    if not completed or (not again and _is_current(store, before, made_from)):
        return None
    read = {
        stage: Stage(
            folder,
            done,
            {unit: record for unit, record in folder.records().items() if unit in covered},
        )
        for stage, (folder, done) in completed.items()
        for covered in [_covered(folder, done)]
    }
    version = _next_version(store, before)
    listed: list[str] = []
    for table in SOURCES_OF:
        published = _publish_table(store, read, table, version, made_from)
        if table == "embeddings":
            listed = [file.path for file in published.files]
        fault_point("before-latest", table)
        store.replace(f"tables/{table}/latest.json", published.to_bytes())
    shards = read.get("shard")
    dataset = dataset_files(shards.folder, shards.records.values()) if shards else []
    text = views_sql(store.uri, version, list(SOURCES_OF), dataset, {"embeddings": listed})
    fault_point("before-views")
    store.replace("tables/views.sql", text.encode())
    store.replace("views.sql", text.encode())
    return version


def stamp(folder: StageFolder, done: Complete) -> str:
    """What latest.json says of a stage in `made_from`."""
    return f"{folder.fingerprint} {done.finished_at}"


def read_published(store: Store, table: str) -> Published | None:
    """What tables/<table>/latest.json names, or None before the first publication."""
    tagged = store.read_tagged(f"tables/{table}/latest.json")
    return Published.model_validate_json(tagged[0]) if tagged else None


def unit_files(folder: StageFolder, records: Iterable[UnitRecord], table: str) -> list[Source]:
    """The files of one table that records name, with paths relative to ROOT."""
    return [
        Source(f"{folder.base}/{entry.path}", entry.rows, entry.bytes)
        for record in records
        for entry in record.files
        if entry.table == table
    ]


def dataset_files(folder: StageFolder, records: Iterable[UnitRecord]) -> list[str]:
    """Paths, relative to ROOT, of the dataset's S.parquet files, in the order of S."""
    paths = (entry.path for record in records for entry in record.files)
    return sorted(
        f"{folder.base}/{path}" for path in paths if path.startswith("dataset/") and path.endswith(".parquet")
    )


def open_table(store: Store, paths: list[str], table: str) -> ds.Dataset:
    """A dataset over Parquet files of a table; a kept input column that only some of them have is null elsewhere."""
    filesystem, root = store.arrow()
    schema = _schema(store, paths, table)
    if not paths:
        return ds.dataset(schema.empty_table())
    return ds.dataset([f"{root}/{path}" for path in paths], schema=schema, format="parquet", filesystem=filesystem)


def _schema(store: Store, paths: list[str], table: str) -> pa.Schema:
    """The table's schema with the kept input columns of its files, sorted by name."""
    filesystem, root = store.arrow()
    schema = TABLES[table]

    def kept(path: str) -> list[pa.Field]:
        found = pq.read_schema(f"{root}/{path}", filesystem=filesystem)
        return [pa.field(field.name, field.type) for field in found if field.name not in schema.names]

    with ThreadPoolExecutor(16) as pool:
        extra = {field.name: field for fields in pool.map(kept, paths) for field in fields}
    return pa.schema([*schema, *(extra[name] for name in sorted(extra))], schema.metadata)


def _covered(folder: StageFolder, done: Complete) -> set[str]:
    """Units of whole batches, of whole rounds: what a run under way has committed is not shown in parts."""
    units = folder.generations().keys()
    if folder.stage in BY_BATCH:
        return {unit for unit in units if unit.partition("-")[0] in done.batches}
    whole = [round_ for round_ in read_rounds(folder) if not unfinished([round_], units)]
    return set(descriptors(whole))


def _named(read: dict[str, Stage], table: str) -> list[Source]:
    """The files a published table is made of."""
    named = []
    for key, stage in read.items():
        if stage_of(key) in SOURCES_OF[table]:
            named += unit_files(stage.folder, stage.records.values(), table)
    if table == "duplicates" and "ingest" in read:
        named += unit_files(read["ingest"].folder, read["ingest"].records.values(), "rejects")
    return named


def _is_current(store: Store, before: dict[str, Published | None], made_from: dict[str, str]) -> bool:
    """A publication that a kill cut short left tables of several versions, or no views: it is made again."""
    if any(published is None or published.made_from != made_from for published in before.values()):
        return False
    versions = {published.version for published in before.values() if published}
    if len(versions) != 1:
        return False
    tagged = store.read_tagged("views.sql")  # written last
    return tagged is not None and tagged[0].decode().startswith(first_line(store.uri, versions.pop()))


def _next_version(store: Store, before: dict[str, Published | None]) -> int:
    seen = [published.version for published in before.values() if published]
    for table in TABLES:
        seen += [int(name[1:]) for name in store.folders(f"tables/{table}") if name[1:].isdigit()]
    return 1 + max(seen, default=0)


def _publish_table(
    store: Store, read: dict[str, Stage], table: str, version: int, made_from: dict[str, str]
) -> Published:
    named = _named(read, table)
    if table == "embeddings" and named:
        stages = [stage for key, stage in read.items() if stage_of(key) in SOURCES_OF[table]]
        return _listed(stages, table, version, made_from)
    scratch = store.scratch()
    try:
        files = []
        for local, rows in _write_sorted(store, named, table, scratch):
            size, digest = measure(local)
            path = f"tables/{table}/v{version}/{local.name}"
            files.append(PublishedFile(path=path, bytes=size, sha256=digest, rows=rows))
        _place(store, scratch / "out", f"tables/{table}/v{version}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    total = sum(file.rows for file in files)
    return Published(version=version, files=files, rows=total, written_at=now(), made_from=made_from)


def _listed(stages: Iterable[Stage], table: str, version: int, made_from: dict[str, str]) -> Published:
    """The units' own files: vectors are too large to be written twice."""
    files = [
        PublishedFile(path=f"{stage.folder.base}/{entry.path}", bytes=entry.bytes, sha256=entry.sha256, rows=entry.rows)
        for stage in stages
        for record in stage.records.values()
        for entry in record.files
        if entry.table == table
    ]
    rows = sum(file.rows for file in files)
    return Published(version=version, files=files, rows=rows, written_at=now(), made_from=made_from)


def _write_sorted(store: Store, named: list[Source], table: str, scratch: Path) -> Iterator[tuple[Path, int]]:
    """Write the files' rows, sorted, as out/part-*.parquet; yields each finished part and its rows."""
    schema = _schema(store, [source.path for source in named if table != "duplicates"], table)
    parts = max(1, round(sum(source.bytes for source in named) / PART_BYTES))
    rows_a_part = max(1, -(-sum(source.rows for source in named) // parts))
    keys = ORDER_BY.get(table, ("uid",))
    positions = by_uid if keys[0] == "uid" else _by_input_row(store)
    (scratch / "out").mkdir()
    read = _read_duplicates if table == "duplicates" else _read
    chunks = sorted_chunks(named, lambda paths: read(store, paths, schema), keys, positions, scratch / "sort")
    if table == "duplicates":
        chunks = (_distinct(chunk, keys) for chunk in chunks)  # a pair that ingest rejected twice is one duplicate
    left = next(chunks, None)
    number = 0
    while left is not None:
        local = scratch / "out" / f"part-{number:05d}.parquet"
        rows = 0
        with pq.ParquetWriter(local, schema, compression="zstd", compression_level=ZSTD_LEVEL) as writer:
            while left is not None and (rows < rows_a_part or left.num_rows == 0):
                taken = left.slice(0, rows_a_part - rows)
                writer.write_table(taken, row_group_size=ROW_GROUP_ROWS)
                rows += taken.num_rows
                left = left.slice(taken.num_rows) if taken.num_rows < left.num_rows else next(chunks, None)
        yield local, rows
        number += 1


def _read(store: Store, paths: list[str], schema: pa.Schema) -> pa.Table:
    if not paths:
        return schema.empty_table()
    filesystem, root = store.arrow()
    full = [f"{root}/{path}" for path in paths]
    return ds.dataset(full, schema=schema, format="parquet", filesystem=filesystem).to_table()


def _read_duplicates(store: Store, paths: list[str], schema: pa.Schema) -> pa.Table:
    """Rows of dedupe's duplicates, and of ingest's rejects those that name another pair."""
    rejects = [path for path in paths if path.split("/")[2] == "rejects"]
    found = _read(store, [path for path in paths if path not in rejects], schema)
    if not rejects:
        return found
    names = ["reason", "uid", "dup_of"]
    rows = _read(store, rejects, pa.schema([TABLES["rejects"].field(name) for name in names]))
    named = pc.and_(pc.equal(rows["reason"], "duplicate"), pc.not_equal(rows["uid"], rows["dup_of"]))
    rows = rows.filter(named)
    level, distance = pa.repeat(pa.scalar("url"), rows.num_rows), pa.repeat(pa.scalar(0.0), rows.num_rows)
    columns = [rows["uid"], rows["dup_of"], level, distance, rows["dup_of"]]
    return pa.concat_tables([found, pa.table(columns, schema=schema)])


def _distinct(chunk: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The first of neighbouring rows with equal keys; equal keys are never in two chunks."""
    if chunk.num_rows < 2:
        return chunk
    chunk = chunk.combine_chunks()
    same = np.ones(chunk.num_rows - 1, np.bool_)
    for key in keys:
        column = chunk[key].combine_chunks()
        same &= pc.equal(column[1:], column[:-1]).fill_null(False).to_numpy(zero_copy_only=False)
    return chunk.filter(pa.array(np.concatenate([[True], ~same])))


def _by_input_row(store: Store) -> Positions:
    """Positions of input rows: their number among all rows of all batches, in the order of batch, source, row."""
    files = sorted(
        (batch.batch, file.source, file.rows) for batch in read_batches(store).values() for file in batch.files
    )
    names = pa.array([f"{batch} {source}" for batch, source, _ in files], pa.string())
    starts = np.cumsum([0, *(rows for _, _, rows in files)])

    def positions(table: pa.Table) -> npt.NDArray[np.float64]:
        which = pc.index_in(pc.binary_join_element_wise(table["batch"], table["source"], " "), names)
        numbers = starts[which.to_numpy()] + table["source_row"].to_numpy()
        return np.asarray(numbers / max(1, starts[-1]), np.float64)

    return positions


def _place(store: Store, local: Path, path: str) -> None:
    """Put a folder of finished parts in place: one rename on a disk; in S3 the parts, until latest.json names them."""
    if not isinstance(store, LocalStore):
        for part in sorted(local.iterdir()):
            store.publish(part, f"{path}/{part.name}")
        return
    for part in [*local.iterdir(), local]:
        descriptor = os.open(part, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    target = store.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    fault_point("before-tables")
    local.rename(target)
