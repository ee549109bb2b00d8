"""Pool tars without the images that go: what stays of them is copied, as a stream, into one new tar."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.download.pool import PoolWriter
from pipeline.errors import StoreError
from pipeline.images.sniff import sniff
from pipeline.shard.pool import PoolReader
from pipeline.shard.writer import EXTENSIONS
from pipeline.units import Output, StageFolder
from schemas.records import FileEntry, UnitRecord


def rewrite_pool(
    folder: StageFolder, record: UnitRecord, before: pa.Table, after: pa.Table, name: str, scratch: Path
) -> tuple[pa.Table, list[Output], list[FileEntry]]:
    """The outcomes `after` with their new places, the new tar to publish, and the pool files that stay as they are.

    `before` are the outcomes with the rows that go. A tar is made again if it held an image that no row of `after`
    points to. Raises PoolMismatchError where an image that stays is not what was recorded.
    """
    ours = {f"{folder.base}/{entry.path}": entry for entry in record.files if entry.table == "pool"}
    lost = _places(before) - _places(after)
    stale = {path for path, _ in lost if path in ours}
    keep = [entry for path, entry in ours.items() if path not in stale]
    moved = pc.is_in(after["pool_file"], pa.array(sorted(stale), pa.string())).to_numpy()
    if not moved.any():
        return after, [], keep
    path = f"{folder.base}/pool/{name}.tar"
    local = scratch / "pool.tar"
    offsets = _copy(folder, after.filter(pa.array(moved)), local)
    files, starts = after["pool_file"].to_pylist(), after["pool_offset"].to_pylist()
    for row in np.flatnonzero(moved).tolist():
        starts[row] = offsets[files[row], starts[row]]
        files[row] = path
    for column, values in (("pool_file", files), ("pool_offset", starts)):
        index = after.column_names.index(column)
        after = after.set_column(index, column, pa.array(values, after.schema.field(index).type))
    return after, [Output("pool", local, len(offsets))], keep


def _places(outcomes: pa.Table) -> set[tuple[str, int]]:
    columns = (outcomes[name].to_pylist() for name in ("pool_file", "pool_offset"))
    return {(path, offset) for path, offset in zip(*columns, strict=True) if path is not None}


def _copy(folder: StageFolder, rows: pa.Table, local: Path) -> dict[tuple[str, int], int]:
    """Copy the rows' images, each once, in the order of the rows; old place → new offset."""
    files, starts = rows["pool_file"].to_pylist(), rows["pool_offset"].to_pylist()
    first: dict[tuple[str, int], int] = {}
    for row, place in enumerate(zip(files, starts, strict=True)):
        first.setdefault(place, row)
    wanted = rows.take(pa.array(list(first.values()), pa.int64()))
    uids = wanted["uid"].to_pylist()
    offsets: list[int] = []
    writer = PoolWriter(local)
    try:
        with closing(PoolReader(folder.store)) as reader:
            for start, images in reader.blocks(wanted):
                for number, image in enumerate(images, start):
                    offsets.append(writer.add(f"{uids[number]}.{EXTENSIONS[sniff(image) or '']}", image).offset)
    finally:
        writer.close()
    if len(offsets) != len(first):
        raise StoreError(f"{folder.base}: {len(offsets)} of {len(first)} images of the pool were copied")
    return dict(zip(first, offsets, strict=True))
