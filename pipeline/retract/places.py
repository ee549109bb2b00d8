"""Where the images of an index (`shard.mode: index`) lie, once a retraction has written pool tars without some of them.

The old tars stay until every index has the new places, so a kill in between leaves no sample without its image.
"""

from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.retract.read import open_file, read_columns
from pipeline.retract.rewrite import Change, Leaving, rewrite
from pipeline.units import Output, StageFolder
from schemas.records import UnitRecord

PLACES = ("pool_file", "pool_offset")


def move_places(folder: StageFolder, leaving: Leaving) -> int:
    """Give the samples of a `shard` folder the places of their images; how many shards were written again."""
    pool = _Pool(folder)
    return sum(_move(folder, record, pool, leaving) for record in folder.iter_records())


def _move(folder: StageFolder, record: UnitRecord, pool: "_Pool", leaving: Leaving) -> bool:
    entry = next((entry for entry in record.files if entry.table == "samples"), None)
    if entry is None:
        return False
    with open_file(folder, entry) as file:
        if not {*PLACES} <= set(file.schema_arrow.names):
            return False
    moved = pool.moved(read_columns(folder, entry, PLACES[:1])["pool_file"])
    # What a killed attempt has published has the new places already, under the old record.
    begun = folder.store.size(f"{folder.base}/attempts/{record.unit}.{record.generation + 1}.1") is not None
    if not (moved or begun):
        return False

    def make(generation: int, name: str, scratch: Path) -> Change:
        with open_file(folder, entry) as file:
            table = file.read()
        local = scratch / Path(entry.path).name
        pq.write_table(pool.placed(table), local, compression="zstd")
        outputs = [Output("samples", local, table.num_rows, entry.path)]
        return Change(outputs, record.counts, [other for other in record.files if other.table != "samples"])

    rewrite(folder, record, leaving, make)
    return True


class _Pool:
    """Which pool tars of a ROOT were written again, and where their images are now."""

    def __init__(self, folder: StageFolder) -> None:
        self._store = folder.store
        self._generations = lru_cache(None)(lambda base: StageFolder(self._store, *base).generations())
        self._named = lru_cache(None)(self._files_of)
        self._outcomes = lru_cache(64)(self._outcomes_of)

    def moved(self, files: pa.ChunkedArray) -> list[str]:
        """Those of the pool files that their unit no longer names."""
        return [path for path in files.unique().to_pylist() if "://" not in path and not self._is_current(path)]

    def placed(self, table: pa.Table) -> pa.Table:
        """The table with the current places of images in tars that were written again."""
        files, offsets = (table[name].to_pylist() for name in PLACES)
        gone = pa.array(self.moved(table["pool_file"]), pa.string())
        rows = pc.indices_nonzero(pc.is_in(table["pool_file"], gone)).to_pylist()
        uids = table["uid"].to_pylist()
        for row in rows:
            place = self._outcomes(*_unit_of(files[row])).get(uids[row])
            if place is None:
                raise StoreError(
                    f"{files[row]}: was written again, and no outcome of {uids[row]} says where its image is"
                )
            files[row], offsets[row] = place
        for name, values in zip(PLACES, (files, offsets), strict=True):
            index = table.column_names.index(name)
            table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
        return table

    def _is_current(self, path: str) -> bool:
        return path in self._named(*_unit_of(path))

    def _files_of(self, base: tuple[str, str], unit: str) -> frozenset[str]:
        folder = StageFolder(self._store, *base)
        record = folder.record(unit, self._generations(base)[unit])
        return frozenset(f"{folder.base}/{entry.path}" for entry in record.files if entry.table == "pool")

    def _outcomes_of(self, base: tuple[str, str], unit: str) -> dict[str, tuple[str, int]]:
        folder = StageFolder(self._store, *base)
        record = folder.record(unit, self._generations(base)[unit])
        entry = next(entry for entry in record.files if entry.table == "outcomes")
        columns = read_columns(folder, entry, ["uid", *PLACES]).to_pydict().values()
        return {uid: (file, offset) for uid, file, offset in zip(*columns, strict=True) if file is not None}


def _unit_of(path: str) -> tuple[tuple[str, str], str]:
    """(stage, fingerprint) and unit of a pool file such as download/0f…/pool/0001-0000042.0.1.tar."""
    stage, fingerprint, _, name = path.split("/")
    return (stage, fingerprint), name.partition(".")[0]
