"""Pass B: the worker that reads a unit's rows from the parts, judges them and commits pairs and rejects."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.attempt import attempt_unit
from pipeline.download.blocklist import Blocklist
from pipeline.errors import StoreError
from pipeline.fence import Fence
from pipeline.ingest.cut import range_ends
from pipeline.ingest.describe import describer_of
from pipeline.ingest.judge import Judge, Judged, Kept
from pipeline.ingest.partition import in_range
from pipeline.ingest.scan import Scan
from pipeline.retract.tombstone import Tombstones
from pipeline.root import read_batches
from pipeline.runner import Result, Unit
from pipeline.storage import Store, open_store
from pipeline.units import MAX_LONE_DEATHS, Attempt, Output, StageFolder, count
from schemas.recipe import Ingest, digest
from schemas.records import Batch, Counts, UnitRange, UnitRecord


class UnitJudge:
    """Judges the units of one batch; neighbouring units are read together, once."""

    def __init__(
        self, root: str, fingerprint: str, batch: str, scratch: str, run: str, blocklists: Sequence[str] = ()
    ) -> None:
        self._store = open_store(root)
        self._folder = StageFolder(self._store, "ingest", fingerprint, Fence(self._store))
        self._run = run
        self._batch = Batch.model_validate_json(self._store.read(f"batches/{batch}.json"))
        self._units = {unit.unit: unit for unit in self._batch.units}
        self._parts = Scan.from_bytes(self._store.read(f"{scratch}/manifest.json")).reader(self._store)
        self._judge = judge_of(self._batch, Blocklist(blocklists), Tombstones.load(self._store))
        self._earlier = EarlierPairs(self._store, self._folder, self._batch.batch)
        self._neighbours: tuple[str, pa.Table] | None = None

    def run(self, unit: Unit, alone: bool) -> Result:
        """Judge and commit one unit. Raises StoreError if the unit keeps killing its workers."""
        return attempt_unit(self._folder, unit, self._run, alone, partial(self._make, unit["from"], unit["to"]))

    def _make(self, start: str, stop: str, attempt: Attempt) -> UnitRecord:
        if attempt.lone_deaths >= MAX_LONE_DEATHS:
            raise StoreError(
                f"ingest unit {attempt.unit}: {attempt.lone_deaths} workers died over it, most likely for want of "
                "memory; give workers more, or leave the input with the largest texts out"
            )
        span = self._units[attempt.unit]
        judged = self._judge(self._rows(span, start, stop), self._earlier.of(span))
        return commit(self._folder, attempt, judged, self._input_digest(span))

    def _rows(self, span: UnitRange, start: str, stop: str) -> pa.Table:
        """The unit's rows by key, from the table of all units from `start` to `stop`."""
        kind, first, last = range_ends(span)
        if self._neighbours is None or self._neighbours[0] != start:
            self._neighbours = None
            low, high = range_ends(self._units[start])[1], range_ends(self._units[stop])[2]
            table = self._parts.read(kind, low, high)
            keys = [table[name].to_numpy() for name in ("row", "file", "lo", "hi")]
            self._neighbours = (start, table.take(np.lexsort(keys)))
        table = self._neighbours[1]
        inside = np.flatnonzero(in_range(table["hi"].to_numpy(), table["lo"].to_numpy(), first, last))
        if len(inside) != span.rows:
            raise StoreError(
                f"ingest unit {span.unit}: {len(inside)} rows in the scratch files, {span.rows} in the batch; "
                f"remove {self._store.uri}/{self._folder.base}/scratch and run again"
            )
        return table.slice(int(inside[0]), len(inside))

    def _input_digest(self, span: UnitRange) -> str:
        files = [file.sha256 for file in self._batch.files]
        return digest([files, self._batch.settings, span.first, span.last, span.rows])


def judge_of(batch: Batch, blocklist: Blocklist, tombstones: Tombstones) -> Judge:
    """The judge of a batch's rows; `blocklist` and `tombstones` hold for this run, whatever the batch's settings say.

    Raises InputError if the batch's prefilter or its language model cannot be used.
    """
    settings = Ingest.model_validate(batch.settings)
    untexted = [index for index, file in enumerate(batch.files) if file.format == "txt" or not settings.caption_col]
    sources = [file.source for file in batch.files]
    return Judge(batch.batch, settings, batch.kept, sources, untexted, describer_of(batch), blocklist, tombstones)


def commit(folder: StageFolder, attempt: Attempt, judged: Judged, input_digest: str) -> UnitRecord:
    """Write both tables and commit the unit; pairs count as ok."""
    with folder.working(attempt) as scratch:
        outputs = []
        for name, table in (("pairs", judged.pairs), ("rejects", judged.rejects)):
            local = scratch / f"{name}.parquet"
            pq.write_table(table, local, compression="zstd", row_group_size=10_000)
            outputs.append(Output(name, local, len(table)))
        counts = rejected(judged.rejects)
        if len(judged.pairs):
            counts = {"ok": {"": len(judged.pairs)}, **counts}
        rows = len(judged.pairs) + len(judged.rejects)
        return folder.commit(attempt, outputs, counts, rows, input_digest)


def rejected(rejects: pa.Table) -> Counts:
    return count(rejects["status"].to_pylist(), rejects["reason"].to_pylist())


class EarlierPairs:
    """Pairs kept by earlier batches, by key range: who is there already is never fetched again."""

    def __init__(self, store: Store, folder: StageFolder, batch: str) -> None:
        self._folder = folder
        self._filesystem, self._root = store.arrow()
        self._generations: dict[str, int] = {}
        self._spans: list[list[UnitRange]] = []
        for earlier in list(read_batches(store).values()):
            if int(earlier.batch) < int(batch):
                self._spans.append([unit for unit in earlier.units if not unit.first.startswith("#")])
        if self._spans:
            self._generations = folder.generations()

    def of(self, span: UnitRange) -> Iterator[Kept]:
        """Earlier pairs of units that share keys with this one, by (batch, source, source_row)."""
        if span.first.startswith("#"):
            return
        for units in self._spans:
            start = bisect_left(units, span.first, key=lambda unit: unit.last)
            stop = bisect_right(units, span.last, key=lambda unit: unit.first)
            found = [self._pairs(unit.unit) for unit in units[start:stop]]
            if found:
                table = pa.concat_tables(found).sort_by([("source", "ascending"), ("source_row", "ascending")])
                for row in zip(*(table[name].to_pylist() for name in Kept._fields), strict=True):
                    yield Kept(*row)

    def _pairs(self, unit: str) -> pa.Table:
        record = self._folder.record(unit, self._generations[unit])
        columns = [*Kept._fields, "source", "source_row"]
        base = f"{self._root}/{self._folder.base}"
        paths = [f"{base}/{entry.path}" for entry in record.files if entry.table == "pairs"]
        return pa.concat_tables(pq.read_table(p, columns=columns, filesystem=self._filesystem) for p in paths)
