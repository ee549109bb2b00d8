"""Invariants 1 and 2 inside a unit: its tables against its record, its outcomes against its pairs and its pool."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage import Store
from pipeline.units import count
from pipeline.verify.state import Folder
from pipeline.verify.sums import is_known
from schemas.records import UnitRecord

PAIRS = ("uid", "source", "source_row", "batch", "url", "text")
REJECTS = ("source", "source_row", "batch", "uid", "status", "reason", "dup_of")
OUTCOMES = (
    *PAIRS, "status", "reason", "unit", "generation", "sha256", "pool_file", "pool_offset", "pool_size", "pool_sha256"
)  # fmt: skip

Place = tuple[int, int, str]
"""A pool member as an outcome names it: offset, size, sha256."""


@dataclass
class UnitTables:
    """What a unit's tables hold, and what is wrong inside the unit, by check."""

    pairs: pa.Table | None = None
    rejects: pa.Table | None = None
    outcomes: pa.Table | None = None
    rows: list[str] = field(default_factory=list)
    pool: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def read(
        self, store: Store, folder: Folder, record: UnitRecord, table: str, columns: tuple[str, ...]
    ) -> pa.Table | None:
        """One table of the unit; a file that cannot be read is a breach and gives None."""
        entries = folder.files(record, table)
        if len(entries) != 1:
            self.rows.append(f"{folder.base}: unit {record.unit} names {len(entries)} {table} files, not one")
            return None
        path = f"{folder.base}/{entries[0].path}"
        try:
            found = pq.read_table(pa.BufferReader(store.read(path)), columns=list(columns))
        except FileNotFoundError:
            return None  # a missing file is told where files are counted
        except (pa.ArrowException, OSError) as error:
            self.files.append(f"{path}: is no whole Parquet file: {_line(error)}")
            return None
        if missing := set(columns) - set(found.column_names):
            self.rows.append(f"{path}: has no column {', '.join(sorted(missing))}")
            return None
        if found.num_rows != entries[0].rows:
            self.rows.append(f"{path}: has {found.num_rows} rows, its record says {entries[0].rows}")
        return found


def read_ingest_unit(store: Store, folder: Folder, record: UnitRecord) -> UnitTables:
    """The unit's pairs and rejects, checked against its record."""
    unit = UnitTables()
    unit.pairs = unit.read(store, folder, record, "pairs", PAIRS)
    unit.rejects = unit.read(store, folder, record, "rejects", REJECTS)
    if unit.pairs is None or unit.rejects is None:
        return unit
    place = f"{folder.base}: unit {record.unit}"
    counts = count(unit.rejects["status"].to_pylist(), unit.rejects["reason"].to_pylist())
    if "ok" in counts:
        unit.rows.append(f"{place}: a reject has status ok")
    if unit.pairs.num_rows:
        counts["ok"] = {"": unit.pairs.num_rows}
    unit.rows += _closed(place, unit.rejects)
    if counts != present(record):
        unit.rows.append(f"{place}: its tables' counts are not its record's")
    return unit


def read_download_unit(
    store: Store, folder: Folder, record: UnitRecord, pairs: pa.Table | None, adopted: frozenset[str] = frozenset()
) -> UnitTables:
    """The unit's outcomes, checked against its record, its pairs and the pool files it names.

    `adopted` are tars outside ROOT that its rows may point to.
    """
    unit = UnitTables()
    outcomes = unit.outcomes = unit.read(store, folder, record, "outcomes", OUTCOMES)
    if outcomes is None:
        return unit
    place = f"{folder.base}: unit {record.unit}"
    unit.rows += _closed(place, outcomes)
    if count(outcomes["status"].to_pylist(), outcomes["reason"].to_pylist()) != present(record):
        unit.rows.append(f"{place}: its outcomes' counts are not its record's")
    if pairs is not None:
        unit.rows += _same_pairs(place, pairs, outcomes)
    unit.pool += _pool_references(folder, record, outcomes, adopted)
    return unit


def present(record: UnitRecord) -> dict[str, dict[str, int]]:
    """A record's counts without those of no row."""
    kept = {status: {reason: n for reason, n in reasons.items() if n} for status, reasons in record.counts.items()}
    return {status: reasons for status, reasons in kept.items() if reasons}


def _closed(place: str, table: pa.Table) -> Iterator[str]:
    for pair in table.group_by(["status", "reason"]).aggregate([]).to_pylist():
        status, reason = pair["status"], pair["reason"]
        if not is_known(status, reason):
            yield f"{place}: a row has status {status!r} with reason {reason!r}, which is not in the closed set"


def _same_pairs(place: str, pairs: pa.Table, outcomes: pa.Table) -> Iterator[str]:
    """One outcome for each pair, under the pair's own source, row and texts."""
    if outcomes["uid"].equals(pairs["uid"]):
        mine = outcomes
    else:
        lost = pc.filter(pairs["uid"], pc.invert(pc.is_in(pairs["uid"], outcomes["uid"])))
        for uid in lost.to_pylist():
            yield f"{place}: pair {uid} has no outcome"
        strange = pc.filter(outcomes["uid"], pc.invert(pc.is_in(outcomes["uid"], pairs["uid"])))
        for uid in strange.to_pylist():
            yield f"{place}: outcome {uid} is of no pair of the unit"
        twice = pc.value_counts(outcomes["uid"])
        for entry in twice.filter(pc.greater(twice.field("counts"), 1)).to_pylist():
            yield f"{place}: pair {entry['values']} has {entry['counts']} outcomes"
        if len(lost) or len(strange) or outcomes.num_rows != pairs.num_rows:
            return
        mine, pairs = outcomes.sort_by("uid"), pairs.sort_by("uid")
    for name in PAIRS[1:]:
        if not mine[name].equals(pairs[name]):
            same = pc.fill_null(pc.equal(mine[name], pairs[name]), False)
            for uid in pc.filter(pairs["uid"], pc.invert(same)).to_pylist():
                yield f"{place}: outcome {uid} has another {name} than its pair"


def _pool_references(folder: Folder, record: UnitRecord, outcomes: pa.Table, adopted: frozenset[str]) -> Iterator[str]:
    """Exactly the ok rows point into the pool, and only to files that the unit's own record names."""
    place = f"{folder.base}: unit {record.unit}"
    named = {f"{folder.base}/{entry.path}" for entry in folder.files(record, "pool")}
    ok = pc.equal(outcomes["status"], "ok")
    points = pc.is_valid(outcomes["pool_file"])
    for name in ("pool_offset", "pool_size", "pool_sha256"):
        points_too = pc.is_valid(outcomes[name])
        for uid in pc.filter(outcomes["uid"], pc.not_equal(points, points_too)).to_pylist():
            yield f"{place}: {uid} has one of pool_file and {name} without the other"
    for uid in pc.filter(outcomes["uid"], pc.and_(ok, pc.invert(points))).to_pylist():
        yield f"{place}: {uid} is ok but points to no pool member"
    for uid in pc.filter(outcomes["uid"], pc.and_(pc.invert(ok), points)).to_pylist():
        yield f"{place}: {uid} is not ok but points to a pool member"
    used = set(pc.unique(outcomes["pool_file"]).drop_null().to_pylist())
    for path in sorted(used - named - adopted):
        yield f"{place}: rows point to {path}, which its record does not name"
    for entry in folder.files(record, "pool"):
        members = len(pool_rows(outcomes, f"{folder.base}/{entry.path}"))
        if members != entry.rows:
            yield f"{place}: its ok rows use {members} members of {entry.path}, its record says {entry.rows}"


def pool_rows(outcomes: pa.Table, path: str) -> dict[Place, str]:
    """(offset, size, sha256) → uid of the ok rows that point into one pool file."""
    mine = outcomes.filter(pc.and_(pc.equal(outcomes["pool_file"], path), pc.equal(outcomes["status"], "ok")))
    columns = [mine[name].to_pylist() for name in ("pool_offset", "pool_size", "pool_sha256", "uid")]
    return {(offset, size, sha256): uid for offset, size, sha256, uid in zip(*columns, strict=True)}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
