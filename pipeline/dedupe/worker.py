"""Hashes of pool images, a download unit a call: rows that an earlier generation has are carried over."""

import hashlib
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.attempt import attempt_unit
from pipeline.dedupe.hashes import hash_image
from pipeline.faults import fault_point
from pipeline.fence import Fence
from pipeline.images.errors import ImageError
from pipeline.rounds import open_table, table_path
from pipeline.runner import Result, Unit
from pipeline.shard.pool import PoolReader
from pipeline.storage import open_store
from pipeline.units import MAX_LONE_DEATHS, Attempt, Output, StageFolder
from schemas.records import UnitRecord
from schemas.tables import HASHES

POOL = ("pool_file", "pool_offset", "pool_size", "pool_sha256")
VALUES = tuple(name for name in HASHES.names if name != "uid")


class HashWorker:
    """Makes a unit of `hashes` of the download unit of the same name and generation. Memory: two blocks of images."""

    def __init__(self, root: str, download: str, own: str, dihedral: bool, run: str) -> None:
        self._store = open_store(root)
        self._download = StageFolder(self._store, "download", download)
        self._folder = StageFolder(self._store, "hashes", own, Fence(self._store))
        self._dihedral = dihedral
        self._run = run

    def run(self, unit: Unit, alone: bool) -> Result:
        """Hash and commit one unit; `deferred` where an earlier attempt died and this is not a lone pass.

        After MAX_LONE_DEATHS the rows not hashed yet get no hash: some image kills whoever decodes it.
        """
        return attempt_unit(self._folder, unit, self._run, alone, self._make)

    def _make(self, attempt: Attempt) -> UnitRecord:
        upstream = self._download.record(attempt.unit, attempt.generation)
        columns = ["uid", "status", *POOL]
        outcomes = open_table(self._download, table_path(self._download, upstream, "outcomes")).read(columns=columns)
        rows = outcomes.filter(pc.equal(outcomes["status"], "ok")).drop_columns(["status"])
        earlier = self._earlier(attempt)
        known = pc.is_in(rows["uid"], earlier["uid"].combine_chunks())
        new = rows.filter(pc.invert(known))
        made = self._hash(new, attempt) if attempt.lone_deaths < MAX_LONE_DEATHS else _without_hashes(new)
        table = pa.concat_tables([earlier, made])
        table = table.take(pc.index_in(rows["uid"], table["uid"].combine_chunks()).combine_chunks())
        with self._folder.working(attempt) as scratch:
            local = scratch / "hashes.parquet"
            pq.write_table(table, local, compression="zstd")
            digest = hashlib.sha256("".join(entry.sha256 for entry in upstream.files).encode()).hexdigest()
            counts = {"ok": {"": table.num_rows}}
            return self._folder.commit(
                attempt, [Output("hashes", local, table.num_rows)], counts, table.num_rows, digest
            )

    def _earlier(self, attempt: Attempt) -> pa.Table:
        """The hashes of the unit's latest generation that has them."""
        for generation in range(attempt.generation - 1, -1, -1):
            if (record := self._folder.committed(attempt.unit, generation)) is not None:
                return open_table(self._folder, table_path(self._folder, record, "hashes")).read()
        return HASHES.empty_table()

    def _hash(self, rows: pa.Table, attempt: Attempt) -> pa.Table:
        """Rows that share a pool member share its hashes: it is read and decoded once."""
        rows = rows.sort_by([("pool_file", "ascending"), ("pool_offset", "ascending"), ("uid", "ascending")])
        member = rows.select(["pool_file", "pool_offset"]).to_pylist()
        first = [row for row in range(len(member)) if not row or member[row] != member[row - 1]]
        images = rows.take(pa.array(first, pa.int64()))
        made: list[dict[str, Any]] = []
        with closing(PoolReader(self._store)) as pool:
            for _, block in pool.blocks(images):
                made += [self._values(image) for image in block]
                fault_point("mid-hashes", attempt.unit)
        starts = set(first)
        number, values = -1, []
        for row, uid in enumerate(rows["uid"].to_pylist()):
            number += row in starts
            values.append({"uid": uid, **made[number]})
        return pa.Table.from_pylist(values, schema=HASHES)

    def _values(self, image: bytes) -> dict[str, Any]:
        try:
            hashes = hash_image(image, self._dihedral)
        except ImageError:
            return dict.fromkeys(VALUES)
        return {
            "pdq": hashes.pdq, "pdq_quality": hashes.quality, "colour": hashes.colour, "pdq_forms": hashes.pdq_forms
        }  # fmt: skip


def _without_hashes(rows: pa.Table) -> pa.Table:
    nulls = {name: pa.nulls(rows.num_rows, HASHES.field(name).type) for name in VALUES}
    return pa.table({"uid": rows["uid"], **nulls}, schema=HASHES)
