"""Invariant 2 for adopted tars: they lie outside ROOT, so their batch answers for them instead of a unit's record."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shard.pool import plan_ranges
from pipeline.storage import Store, holder, locate
from pipeline.verify.files import chosen
from pipeline.verify.state import State
from schemas.records import Batch

POOL = ("uid", "pool_file", "pool_offset", "pool_size", "pool_sha256")


def tars_of(batch: Batch | None) -> frozenset[str]:
    """URIs that rows of the batch may point to."""
    if batch is None or batch.adopted is None or batch.adopted.copied:
        return frozenset()
    return frozenset(tar.uri for tar in batch.adopted.tars)


def check_tars(state: State) -> tuple[list[str], int]:
    """Breaches, and how many tars were looked at: each is there, of the size it had when it was adopted."""
    breaches: list[str] = []
    looked = 0
    for batch in state.batches.values():
        for tar in batch.adopted.tars if batch.adopted and not batch.adopted.copied else ():
            store, name = holder(tar.uri)
            looked += 1
            size = store.size(name)
            if size is None:
                breaches.append(f"{tar.uri}: adopted by batch {batch.batch}, but it is gone")
            elif size != tar.bytes:
                breaches.append(f"{tar.uri}: has {size} bytes, batch {batch.batch} adopted {tar.bytes}")
    return breaches, looked


def check_images(store: Store, outcomes: pa.Table, share: float) -> tuple[list[str], int]:
    """Read the images of a unit's rows that lie in adopted tars: breaches, and images hashed."""
    there = pc.and_(
        pc.equal(outcomes["status"], "ok"), pc.fill_null(pc.match_substring(outcomes["pool_file"], "://"), False)
    )
    rows = outcomes.select(list(POOL)).filter(there)
    if share < 1:
        rows = rows.filter(pa.array([chosen(uid, share) for uid in rows["uid"].to_pylist()], pa.bool_()))
    return list(_images(store, rows)), rows.num_rows


def _images(store: Store, rows: pa.Table) -> Iterator[str]:
    for part in plan_ranges(rows):
        holds, path = locate(store, part.path)
        try:
            data = memoryview(holds.read_range(path, part.offset, part.end - part.offset))
        except FileNotFoundError:
            continue  # told by check_tars
        for member in part.members:
            start = member.offset - part.offset
            if hashlib.sha256(data[start : start + member.size]).hexdigest() != member.sha256:
                yield f"{part.path}: the member of {member.uid} (from {member.offset}) does not have its pool_sha256"
