"""Parts: runs of located rows sorted by key, from which units are cut and read.

A part is a Parquet scratch file of at most PART_ROWS rows in small row groups, so that any key range of it is cheap
to read. `keyed` parts hold rows with a fetch_url, sorted by (hi, lo, row); `other` parts hold the rest, with the file's
index as hi and the row's number as lo. One range of (hi, lo) thus names the rows of a unit in either kind.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Store

PART_ROWS = 262_144
PART_BYTES = 128 * 1024 * 1024
GROUP_ROWS = 4_096
SORT_ROWS = 4_000_000
"""Keys that are sorted at a time when units are cut."""

Kind = Literal["keyed", "other"]
Key = tuple[int, int]


@dataclass(frozen=True)
class Part:
    path: str
    """Relative to the ROOT."""
    file: int
    """Index of the input file in its batch."""
    kind: Kind
    rows: int
    bytes: int
    """Of its Arrow buffers."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write_parts(store: Store, prefix: str, file: int, tables: Iterable[pa.Table], lowest: int | None) -> list[Part]:
    """Write rows of one input file, in order of row, as parts named `<prefix>-<n>-<kind>.parquet`.

    Tables have the readers' columns, `file`, `fetch_url`, `hi`, `lo`, and `draw` where `lowest` says how many rows
    with the lowest draws are enough.
    """
    parts: list[Part] = []
    waiting: list[pa.Table] = []
    rows = size = 0

    def flush() -> None:
        nonlocal rows, size
        if not waiting:
            return
        table = pa.concat_tables(waiting, promote_options="default").combine_chunks()
        if lowest is not None and len(table) > lowest:
            table = table.take(np.sort(np.argpartition(table["draw"].to_numpy(), lowest - 1)[:lowest]))
        for kind, some in _split(table):
            if len(some):
                path = f"{prefix}-{len(parts):04d}-{kind}.parquet"
                parts.append(_write(store, path, file, kind, some))
        waiting.clear()
        rows = size = 0

    for table in tables:
        waiting.append(table)
        rows += len(table)
        size += table.nbytes
        if rows >= PART_ROWS or size >= PART_BYTES:
            flush()
    flush()
    return parts


def _split(table: pa.Table) -> Iterator[tuple[Kind, pa.Table]]:
    usable = table["fetch_url"].is_valid()
    keyed = table.filter(usable)
    order = np.lexsort((keyed["row"].to_numpy(), keyed["lo"].to_numpy(), keyed["hi"].to_numpy()))
    yield "keyed", keyed.take(order)
    other = table if not len(keyed) else table.filter(pa.compute.invert(usable))
    for name, values in (("hi", other["file"]), ("lo", other["row"])):
        other = other.set_column(other.column_names.index(name), name, values.cast(pa.uint64()))
    yield "other", other


def _write(store: Store, path: str, file: int, kind: Kind, table: pa.Table) -> Part:
    folder = store.scratch()
    try:
        local = folder / "part.parquet"
        pq.write_table(
            table, local, row_group_size=GROUP_ROWS, compression="lz4", use_dictionary=False,
            write_statistics=["hi", "lo"], store_schema=True,
        )  # fmt: skip
        store.publish(local, path)
    finally:
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()
    return Part(path, file, kind, len(table), table.nbytes)


class PartReader:
    """Reads key ranges of parts; footers are read once."""

    def __init__(self, store: Store, parts: list[Part], threshold: int | None) -> None:
        self._filesystem, self._root = store.arrow()
        self.parts = parts
        self._threshold = threshold
        self._footers: dict[str, tuple[pq.FileMetaData, np.ndarray]] = {}

    def read(self, kind: Kind, first: Key, last: Key, columns: list[str] | None = None) -> pa.Table:
        """Rows of the key range, both ends included, in no order; with a limit, only those drawn."""
        if columns is not None and self._threshold is not None:
            columns = [*columns, "draw"]
        found = []
        for part in self.parts:
            if part.kind != kind:
                continue
            metadata, bounds = self._footer(part)
            groups = np.flatnonzero((bounds[:, 1] >= first[0]) & (bounds[:, 0] <= last[0]))
            if first[0] == last[0]:
                inside = bounds[groups, 0] == bounds[groups, 1]
                apart = (bounds[groups, 3] < first[1]) | (bounds[groups, 2] > last[1])
                groups = groups[~(inside & apart)]
            if not len(groups):
                continue
            with self._filesystem.open_input_file(f"{self._root}/{part.path}") as file:
                table = pq.ParquetFile(file, metadata=metadata).read_row_groups(
                    groups.tolist(), columns=columns, use_threads=False
                )
            found.append(table.filter(self._wanted(table, first, last)))
        return pa.concat_tables(found, promote_options="default") if found else pa.table({})

    def draws(self) -> Iterator[np.ndarray]:
        for part in self.parts:
            with self._filesystem.open_input_file(f"{self._root}/{part.path}") as file:
                yield pq.read_table(file, columns=["draw"])["draw"].to_numpy()

    def _footer(self, part: Part) -> tuple[pq.FileMetaData, np.ndarray]:
        found = self._footers.get(part.path)
        if found is None:
            with self._filesystem.open_input_file(f"{self._root}/{part.path}") as file:
                metadata = pq.read_metadata(file)
            names = metadata.schema.names
            hi, lo = names.index("hi"), names.index("lo")
            bounds = np.empty((metadata.num_row_groups, 4), np.uint64)
            for group in range(metadata.num_row_groups):
                high = metadata.row_group(group).column(hi).statistics
                low = metadata.row_group(group).column(lo).statistics
                bounds[group] = (high.min, high.max, low.min, low.max)
            found = self._footers[part.path] = (metadata, bounds)
        return found

    def _wanted(self, table: pa.Table, first: Key, last: Key) -> pa.Array:
        mask = in_range(table["hi"].to_numpy(), table["lo"].to_numpy(), first, last)
        if self._threshold is not None:
            mask &= table["draw"].to_numpy() <= np.uint64(self._threshold)
        return pa.array(mask)


def in_range(hi: np.ndarray, lo: np.ndarray, first: Key, last: Key) -> np.ndarray:
    """Mask of the keys in [first, last]."""
    (first_hi, first_lo), (last_hi, last_lo) = np.array(first, np.uint64), np.array(last, np.uint64)
    after = (hi > first_hi) | ((hi == first_hi) & (lo >= first_lo))
    inside: np.ndarray = after & ((hi < last_hi) | ((hi == last_hi) & (lo <= last_lo)))
    return inside
