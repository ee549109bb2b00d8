"""Reading a ROOT's units for a retraction: every stage's folders, and tables of many units a few at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.root import read_runs
from pipeline.storage import Store
from pipeline.units import StageFolder, fingerprints
from schemas.recipe import ORDER
from schemas.records import FileEntry, UnitRecord

SET_LEVEL = ("dedupe", "semantic", "select", "shard")
"""Stages whose units are made by rounds."""

THREADS = 8

T = TypeVar("T")
U = TypeVar("U")


def every_folder(store: Store, *stages: str) -> list[StageFolder]:
    """The folders of every fingerprint of these stages (of all without any), upstream first."""
    return [StageFolder(store, stage, name) for stage in stages or ORDER for name in fingerprints(store, stage)]


def upstream_of(folder: StageFolder) -> dict[str, StageFolder]:
    """stage → the folder of `download` and `dedupe` that a set-level folder was made from, as runs that used it say."""
    for run in reversed(read_runs(folder.store)):
        if run.stages.get(folder.stage) == folder.fingerprint and "download" in run.stages:
            named = ((stage, run.stages.get(stage)) for stage in ("download", "dedupe"))
            return {stage: StageFolder(folder.store, stage, name) for stage, name in named if name}
    return {}


def in_parallel(store: Store, work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Like map, a bounded number of items ahead; in the order of the items."""
    threads = max(THREADS, store.parallel_reads)
    left = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(left, 4 * threads)):
            yield from pool.map(work, some)


def parquet_files(record: UnitRecord) -> list[FileEntry]:
    return [entry for entry in record.files if entry.path.endswith(".parquet")]


def open_file(folder: StageFolder, entry: FileEntry) -> pq.ParquetFile:
    """A table of a unit, opened: only the columns that are asked for are read."""
    filesystem, root = folder.store.arrow()
    return pq.ParquetFile(filesystem.open_input_file(f"{root}/{folder.base}/{entry.path}"))


def read_columns(folder: StageFolder, entry: FileEntry, columns: Iterable[str]) -> pa.Table:
    """Those of the columns that the table has."""
    with open_file(folder, entry) as file:
        there = set(file.schema_arrow.names)
        return file.read(columns=[name for name in columns if name in there])


def read_whole(folder: StageFolder, record: UnitRecord, table: str) -> pa.Table:
    """The unit's table of that name."""
    entry = next(entry for entry in record.files if entry.table == table)
    with open_file(folder, entry) as file:
        return file.read()


def tables(folder: StageFolder, name: str, columns: Iterable[str]) -> Iterator[Mapping[str, list[Any]]]:
    """A table of each current unit, unit by unit, as lists by column; a column that a file lacks is all None."""
    wanted = list(columns)

    def read(record: UnitRecord) -> list[dict[str, list[Any]]]:
        found = []
        for entry in record.files:
            if entry.table == name:
                table = read_columns(folder, entry, wanted)
                found.append({
                    column: table[column].to_pylist() if column in table.column_names else [None] * table.num_rows
                    for column in wanted
                })  # fmt: skip
        return found

    for unit in in_parallel(folder.store, read, folder.iter_records()):
        yield from unit
