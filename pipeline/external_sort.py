"""Sort more rows than fit in memory: cut groups of files into key ranges on local disk, then sort range by range.

With two cores it takes half of DuckDB's time for the same rows (its scan of Arrow data is not parallel), and memory is
bounded by the size of a group and of a range.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

THREADS = 2
CHUNK_ROWS = 100_000
CHUNK_BYTES = 24 << 20
"""Compressed bytes; rows come to about four times that in memory, and a thread holds three copies while it sorts."""

Positions = Callable[[pa.Table], npt.NDArray[np.float64]]
"""Each row's place in the order as a number in [0, 1): it must rise with the sort keys."""


class Source(NamedTuple):
    path: str
    rows: int
    bytes: int


def sorted_chunks(
    sources: Sequence[Source], read: Callable[[list[str]], pa.Table], keys: Sequence[str], positions: Positions,
    scratch: Path,
) -> Iterator[pa.Table]:  # fmt: skip
    """The rows of all sources in the order of `keys` (nulls last), as tables that together are the whole.

    `read` gives the rows of some sources as one table, always with the same schema; it is called from threads.
    """
    groups = list(_groups(sources))
    order = [(key, "ascending") for key in keys]
    if len(groups) <= 1:
        table = read([source.path for source in sources])
        yield table.take(pc.sort_indices(table, sort_keys=order))
        return
    scratch.mkdir(exist_ok=True)
    ranges = len(groups)

    def cut(number: int) -> Path:
        table = read([source.path for source in groups[number]])
        wanted = np.minimum((positions(table) * ranges).astype(np.int64), ranges - 1)
        table = table.take(pa.array(np.argsort(wanted, kind="stable"))).combine_chunks()
        ends = np.searchsorted(np.sort(wanted), np.arange(ranges + 1))
        path = scratch / f"{number}.arrow"
        with ipc.new_file(path, table.schema) as writer:
            for first, last in pairwise(ends):
                rows = table.slice(first, last - first).to_batches()
                writer.write_batch(rows[0] if rows else pa.RecordBatch.from_pylist([], table.schema))
        return path

    def collect(number: int) -> pa.Table:
        pieces = []
        for path in paths:
            with pa.OSFile(str(path)) as file:
                pieces.append(ipc.open_file(file).get_batch(number))
        table = pa.Table.from_batches(pieces)
        return table.take(pc.sort_indices(table, sort_keys=order)).combine_chunks()

    with ThreadPoolExecutor(THREADS) as pool:
        paths = list(pool.map(cut, range(ranges)))
        ahead: deque[Future[pa.Table]] = deque(pool.submit(collect, number) for number in range(THREADS))
        for number in range(THREADS, ranges + THREADS):
            yield ahead.popleft().result()
            if number < ranges:
                ahead.append(pool.submit(collect, number))


def by_uid(table: pa.Table) -> npt.NDArray[np.float64]:
    """Positions of hashes written as hex digits: they are spread evenly."""
    first = pc.utf8_slice_codeunits(table["uid"], 0, 8).to_pylist()
    return np.fromiter((int(digits, 16) / 2**32 for digits in first), np.float64, len(first))


def _groups(sources: Sequence[Source]) -> Iterator[list[Source]]:
    group: list[Source] = []
    rows = size = 0
    for source in sources:
        group.append(source)
        rows, size = rows + source.rows, size + source.bytes
        if rows >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group
