"""New generations of units without the rows that go, stage by stage, downstream first."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.ingest.judging import rejected
from pipeline.retract.images import rewrite_pool
from pipeline.retract.listing import as_fetched
from pipeline.retract.read import SET_LEVEL, open_file, parquet_files, read_columns, read_whole
from pipeline.retract.tombstone import Tombstones
from pipeline.rounds import descriptors, read_rounds, taken_rows
from pipeline.select.decide import counts_of
from pipeline.units import Output, StageFolder, count
from schemas.records import Batch, Counts, FileEntry, Retraction, UnitRecord
from schemas.statuses import STATUS_OF


@dataclass(frozen=True)
class Leaving:
    """Which rows go, known by their tombstones alone, so that a later run can finish what a killed one began."""

    retraction: Retraction
    stones: Tombstones
    again: Collection[str]
    """Rows that stay in the pool and leave the stages by rounds, whose next round decides them."""

    @property
    def run(self) -> str:
        """By which attempts of this retraction are known."""
        return f"retraction-{self.retraction.retraction}"

    def uid(self, uid: str | None) -> bool:
        return self.stones.has("uid", uid) is not None

    def url(self, url: str | None) -> bool:
        return url is not None and self.stones.has("url", as_fetched(url)) is not None

    def uids(self, column: Any, also_again: bool = False) -> np.ndarray:
        """Boolean mask of a column of uids; `also_again` for tables of the stages by rounds."""
        found = [self.uid(uid) or (also_again and uid in self.again) for uid in column.to_pylist()]
        return np.array(found, bool)


def rewritten(folder: StageFolder, record: UnitRecord, leaving: Leaving) -> bool:
    """Whether this retraction has made the unit's current generation."""
    mark = folder.store.read_tagged(f"{folder.base}/attempts/{record.unit}.{record.generation}.{record.attempt}")
    return mark is not None and json.loads(mark[0]).get("run") == leaving.run


def rewrite(
    folder: StageFolder, record: UnitRecord, leaving: Leaving, make: Callable[[int, str, Path], "Change"]
) -> UnitRecord:
    """Commit the unit's next generation; `make` gets its generation, the attempt's name and a local folder."""
    attempt = folder.begin(record.unit, record.generation + 1, leaving.run, alone=False)
    with folder.working(attempt) as scratch:
        change = make(attempt.generation, f"{attempt.unit}.{attempt.generation}.{attempt.number}", scratch)
        rows = sum(n for reasons in change.counts.values() for n in reasons.values())
        return folder.commit(attempt, change.outputs, change.counts, rows, record.input_digest, change.keep)


@dataclass(frozen=True)
class Change:
    outputs: list[Output]
    counts: Counts
    keep: list[FileEntry]


def ingest_unit(folder: StageFolder, record: UnitRecord, leaving: Leaving, batches: dict[str, Batch]) -> bool:
    """Withdrawn pairs become rejects that say nothing; rejects of withdrawn URLs forget them. True if any did."""
    pairs, rejects = (read_whole(folder, record, table) for table in ("pairs", "rejects"))
    gone = leaving.uids(pairs["uid"])
    named = leaving.uids(rejects["uid"]) | np.array([leaving.url(url) for url in rejects["url"].to_pylist()], bool)
    if not (gone.any() or named.any()):
        return False

    def make(generation: int, name: str, scratch: Path) -> Change:
        kept = pairs.filter(pa.array(~gone))
        left = _merged(rejects, named, pairs.filter(pa.array(gone)), leaving, batches.get(_batch(record.unit)))
        counts = rejected(left)
        if len(kept):
            counts = {"ok": {"": len(kept)}, **counts}
        outputs = []
        for table, rows in (("pairs", kept), ("rejects", left)):
            pq.write_table(rows, scratch / f"{table}.parquet", compression="zstd", row_group_size=10_000)
            outputs.append(Output(table, scratch / f"{table}.parquet", len(rows)))
        return Change(outputs, counts, [])

    rewrite(folder, record, leaving, make)
    return True


KEPT_OF_A_REJECT = ("source", "source_row", "batch", "status", "reason")
JUDGED_BEFORE = ("bad_row", "missing_text", "bad_url", "bad_scheme")
"""Reasons that `ingest` gives before it asks for tombstones."""


def _merged(rejects: pa.Table, named: np.ndarray, gone: pa.Table, leaving: Leaving, batch: Batch | None) -> pa.Table:
    """The unit's rejects with its withdrawn rows among them, in their order."""
    name = leaving.retraction.retraction
    blank = [row["reason"] in JUDGED_BEFORE for row in rejects.filter(pa.array(named)).select(["reason"]).to_pylist()]
    withdrawn = [
        {**{key: row[key] for key in KEPT_OF_A_REJECT}, "detail": None if early else name}
        | ({} if early else {"status": STATUS_OF["retracted"], "reason": "retracted"})
        for row, early in zip(rejects.filter(pa.array(named)).to_pylist(), blank, strict=True)
    ] + [
        {**{key: row[key] for key in ("source", "source_row", "batch")}, "status": STATUS_OF["retracted"],
         "reason": "retracted", "detail": name}
        for row in gone.select(["source", "source_row", "batch"]).to_pylist()
    ]  # fmt: skip
    told = pa.Table.from_pylist(withdrawn, schema=rejects.schema)
    table = pa.concat_tables([rejects.filter(pa.array(~named)), told]).combine_chunks()
    place = {file.source: number for number, file in enumerate(batch.files)} if batch else {}
    files = np.array([place.get(source, 0) for source in table["source"].to_pylist()], np.int64)
    return table.take(np.lexsort((table["source_row"].to_numpy(), files)))


def download_unit(folder: StageFolder, record: UnitRecord, leaving: Leaving) -> bool:
    """Outcomes and consent without the withdrawn rows, the pool without their images; True if there were any."""
    outcomes = read_whole(folder, record, "outcomes")
    gone = leaving.uids(outcomes["uid"])
    again = np.array([uid in leaving.again for uid in outcomes["uid"].to_pylist()], bool) & ~gone
    if not (gone.any() or again.any()):
        return False

    def make(generation: int, name: str, scratch: Path) -> Change:
        kept = outcomes.filter(pa.array(~gone))
        # Rows of a later generation than a round has read are the next round's.
        made = kept["generation"].to_numpy().copy()
        made[again[~gone]] = generation
        kept = kept.set_column(kept.column_names.index("generation"), "generation", pa.array(made, pa.int32()))
        kept, outputs, keep = rewrite_pool(folder, record, outcomes, kept, name, scratch)
        consent = read_whole(folder, record, "consent")
        consent = consent.filter(pa.array(~leaving.uids(consent["uid"])))
        for table, rows in (("outcomes", kept), ("consent", consent)):
            pq.write_table(rows, scratch / f"{table}.parquet", compression="zstd")
            outputs.append(Output(table, scratch / f"{table}.parquet", rows.num_rows))
        return Change(outputs, count(kept["status"].to_pylist(), kept["reason"].to_pylist()), keep)

    rewrite(folder, record, leaving, make)
    return True


def uid_unit(
    folder: StageFolder, record: UnitRecord, leaving: Leaving, upstream: Mapping[str, StageFolder]
) -> bool:  # fmt: skip
    """A unit whose tables have a row a `uid` (all stages but ingest, download and shard): those rows leave.

    `upstream`, by stage, is what a unit of `dedupe` or `semantic` reads: their tables do not name the rows they kept.
    """
    also_again = folder.stage in SET_LEVEL
    stale: dict[str, pa.Table] = {}
    for entry in parquet_files(record):
        uids = read_columns(folder, entry, ["uid"])["uid"]
        gone = leaving.uids(uids, also_again)
        if gone.any():
            with open_file(folder, entry) as file:
                stale[entry.path] = file.read().filter(pa.array(~gone))
    covered = _read_rows(folder, record, leaving, upstream) if folder.stage in ("dedupe", "semantic") else 0
    if not stale and not covered:
        return False

    def make(generation: int, name: str, scratch: Path) -> Change:
        outputs = []
        for number, (path, table) in enumerate(stale.items()):
            entry = next(entry for entry in record.files if entry.path == path)
            pq.write_table(table, scratch / f"{number}.parquet", compression="zstd")
            final = f"{path.rpartition('/')[0]}/{name}.parquet"
            outputs.append(Output(entry.table, scratch / f"{number}.parquet", table.num_rows, final))
        keep = [entry for entry in record.files if entry.path not in stale]
        gone = {entry.table: entry.rows - stale[entry.path].num_rows for entry in record.files if entry.path in stale}
        return Change(outputs, _recounted(folder.stage, record, stale, gone, covered), keep)

    rewrite(folder, record, leaving, make)
    return True


def _read_rows(
    folder: StageFolder, record: UnitRecord, leaving: Leaving, upstream: Mapping[str, StageFolder]
) -> int:  # fmt: skip
    """Rows that leave the unit, dropped ones among them, by the outcomes it read; those of `semantic` dedupe kept."""
    units = descriptors(read_rounds(folder))
    if "download" not in upstream or record.unit not in units:
        return 0
    unit = units[record.unit]
    outcomes = _table_of(upstream["download"], unit["reads"], "outcomes", OF_OUTCOMES)
    uids = outcomes.filter(taken_rows(outcomes, unit))["uid"]
    if folder.stage == "semantic":
        dropped = _table_of(upstream["dedupe"], unit["dedupe"], "duplicates", ["uid"])["uid"]
        uids = uids.filter(pc.invert(pc.is_in(uids, dropped.combine_chunks())))
    return int(leaving.uids(uids, also_again=True).sum())


def _table_of(folder: StageFolder, unit: str, table: str, columns: Iterable[str]) -> pa.Table:
    record = folder.record(unit, folder.generations()[unit])
    return read_columns(folder, next(entry for entry in record.files if entry.table == table), columns)


OF_OUTCOMES = ("uid", "status", "generation")


def _recounted(
    stage: str, record: UnitRecord, stale: dict[str, pa.Table], gone: dict[str, int], covered: int
) -> Counts:  # fmt: skip
    if stage == "select":
        return counts_of(next(table for table in stale.values() if "dropped_by" in table.column_names))
    counts = {status: dict(reasons) for status, reasons in record.counts.items()}
    if stage == "embed":
        vectors = next((table for table in stale.values() if "image_embedding" in table.column_names), None)
        return counts if vectors is None else count(vectors["status"].to_pylist(), vectors["reason"].to_pylist())
    if stage in ("dedupe", "semantic"):
        dropped = gone.get("duplicates", 0)
        _less(counts, "rejected", "duplicate", dropped)
        _less(counts, "ok", "", covered - dropped)
    else:
        _less(counts, "ok", "", max(gone.values()))
    return counts


def _less(counts: Counts, status: str, reason: str, rows: int) -> None:
    left = counts.get(status, {}).get(reason, 0) - rows
    if left > 0:
        counts[status][reason] = left
    elif status in counts:
        counts[status].pop(reason, None)
        if not counts[status]:
            del counts[status]


def _batch(unit: str) -> str:
    return unit.partition("-")[0]
