"""The rows that `semantic` compares, with their vectors, gathered from units' tables."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dedupe.find import rank_order
from pipeline.dedupe.rows import Keys, as_keys, digests, unhex
from pipeline.errors import StoreError
from pipeline.metadata import Metadata
from pipeline.rounds import open_table, table_path
from pipeline.rules import Rules, passed
from pipeline.runner import Unit
from pipeline.semantic.clusters import Floats, Index
from pipeline.semantic.vectors import Vectors
from pipeline.units import StageFolder

THREADS = max(1, min(4, os.cpu_count() or 1))
RANK = ["clip_score", "pixels", "uid"]
"""Who stays: the best aligned pair, then the most original pixels, then the lowest uid."""


@dataclass(frozen=True)
class Rows:
    """Rows of earlier rounds that stay, then a round's own. Memory: 4 d bytes a row for its vector, 100 beside."""

    table: pa.Table
    """Rows with a vector: uid (binary), text (16 bytes of its sha256), pixels, clip_score, eligible."""
    vectors: Floats
    """[rows of `table`, d], of unit length."""
    standing: int
    """Rows of `table` that earlier rounds kept."""
    uids: Keys
    """All rows of the round, unit after unit."""
    ends: list[int]
    """Row of `uids` at which each unit ends."""

    def by_rank(self) -> Index:
        """Positions of the eligible rows, the best first; those that stay before all others."""
        first, later = self.table.slice(0, self.standing), self.table.slice(self.standing)
        order = np.concatenate([rank_order(first, RANK), self.standing + rank_order(later, RANK)])
        eligible = np.asarray(self.table["eligible"].to_numpy())
        chosen: Index = order[eligible[order]]
        return chosen


class Gather:
    """Reads rows that dedupe kept, for one round of the stage."""

    def __init__(
        self, metadata: Metadata, dedupe: StageFolder, folder: StageFolder, vectors: Vectors,
        rules: Sequence[tuple[Rules, Rules]],
    ) -> None:  # fmt: skip
        """`folder`: the stage's own. `rules`: what a row must pass to compete, and for its vector to count; two objects
        a thread."""
        self._metadata, self._dedupe, self._folder, self._vectors = metadata, dedupe, folder, vectors
        self._decided = folder.generations()
        self._deduped = dedupe.generations()
        self._rules: SimpleQueue[tuple[Rules, Rules]] = SimpleQueue()
        for one in rules:
            self._rules.put(one)
        self._threads = len(rules)

    def read(self, earlier: Sequence[Unit], units: Sequence[Unit]) -> Rows:
        """The rows of a round's units, and those that earlier units kept. Raises StoreError where vectors differ in
        their number of dimensions.
        """
        tables: list[pa.Table] = []
        uids: list[Keys] = []
        vectors, held = np.empty((0, 0), np.float32), 0
        most = self._vectors.rows(sorted({str(unit["reads"]) for unit in [*earlier, *units]}))
        standing = 0
        with ThreadPoolExecutor(self._threads) as pool:
            old = [True] * len(earlier) + [False] * len(units)
            for number, (kept, table, part) in enumerate(pool.map(self._unit, [*earlier, *units], old)):
                if number >= len(earlier):
                    uids.append(kept)
                else:
                    standing += table.num_rows
                if table.num_rows:
                    if not held:
                        vectors = np.empty((most, part.shape[1]), np.float32)  # pages are taken as they are written
                    if part.shape[1] != vectors.shape[1]:
                        raise StoreError(f"vectors of {part.shape[1]} dimensions among others of {vectors.shape[1]}")
                    vectors[held : held + len(part)] = part
                    held += len(part)
                    tables.append(table)
        ends = list(accumulate(len(part) for part in uids))
        every = np.concatenate([np.empty(0, "S16"), *uids])
        return Rows(pa.concat_tables([_NO_ROWS, *tables]), vectors[:held], standing, every, ends)

    def _unit(self, unit: Unit, decided: bool) -> tuple[Keys, pa.Table, Floats]:
        """Uids of the rows that dedupe, and this stage where it has decided, keep; and those with a vector."""
        rules = self._rules.get()
        compete, due = rules
        try:
            names = ["uid", "text", "pixels"]
            rows = self._metadata.read(unit, [*names, *sorted({*compete.columns, *due.columns} - set(names))])
            gone = [self._gone(self._dedupe, unit["dedupe"], self._deduped)]
            if decided:
                gone.append(self._gone(self._folder, unit["unit"], self._decided))
            for uids in gone:
                rows = rows.filter(pc.invert(pc.is_in(rows["uid"], uids)))
            uids = as_keys(unhex(rows["uid"], 16))
            rows = rows.filter(pa.array(passed(due, rows)))
            eligible = passed(compete, rows)
        finally:
            self._rules.put(rules)
        keys = unhex(rows["uid"], 16)
        there, vectors, scores = self._vectors.of(unit["reads"], rows["uid"])
        table = pa.table({
            "uid": keys.filter(pa.array(there)), "text": digests(rows["text"].filter(pa.array(there))),
            "pixels": rows["pixels"].filter(pa.array(there)).combine_chunks(), "clip_score": scores.combine_chunks(),
            "eligible": pa.array(eligible[there]),
        })  # fmt: skip
        return uids, table.cast(_NO_ROWS.schema), vectors

    def _gone(self, folder: StageFolder, unit: str, current: dict[str, int]) -> Any:
        record = folder.record(unit, current[unit])
        table = open_table(folder, table_path(folder, record, "duplicates")).read(columns=["uid"])
        return table["uid"].combine_chunks()


_NO_ROWS = pa.schema(
    [
        ("uid", pa.binary(16)),
        ("text", pa.binary(16)),
        ("pixels", pa.int64()),
        ("clip_score", pa.float32()),
        ("eligible", pa.bool_()),
    ]
).empty_table()
