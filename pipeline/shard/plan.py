"""Rounds of `shard`: which rows become samples of which shard, decided from metadata alone.

A round's upstream units, in the order of their names (which keeps hosts together), are dealt into W windows: window w
holds units w, w + W, w + 2W, …, so that a window spans the whole order of hosts. The rows of a window go out in the
order of their uids, windows one after another, and every `number_sample_per_shard` rows are a shard, whatever window
they lie in.
"""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.runner import Unit
from pipeline.units import StageFolder
from schemas.recipe import Shard
from schemas.records import Round, UnitRecord, now

WINDOW_UNITS = 64
WINDOW_ROWS = 640_000
"""A worker sorts one window in memory: 640,000 uids are about 100 MB with their positions."""


@dataclass(frozen=True)
class Naming:
    """img2dataset's names: shard S and key from the shard's number and the sample's place in it."""

    samples: int
    shard_digits: int

    def shard(self, shard: int) -> str:
        return f"{shard:0{self.shard_digits}d}"

    def key(self, shard: int, place: int) -> str:
        digits = math.ceil(math.log10(self.samples))
        return f"{10**digits * shard + place:0{digits + self.shard_digits}d}"


def naming(settings: Shard) -> Naming:
    return Naming(settings.number_sample_per_shard, settings.oom_shard_count)


def read_rounds(folder: StageFolder) -> list[Round]:
    """The folder's rounds, oldest first."""
    paths = sorted(path for path, _ in folder.store.files(f"{folder.base}/rounds"))
    return [Round.model_validate_json(folder.store.read(path)) for path in paths]


def unfinished(rounds: Iterable[Round], committed: Iterable[str]) -> list[Unit]:
    """Descriptors of the units that a round names and no record answers for."""
    done = set(committed)
    return [dict(unit) for round_ in rounds for unit in round_.units if unit["unit"] not in done]


def next_round(settings: Shard, download: StageFolder, rounds: Sequence[Round], run: str) -> Round | None:
    """The round that takes every ok row no earlier round took, or None where there is no such row."""
    read: dict[str, int] = {}
    for round_ in rounds:
        read.update(round_.upstream)
    new = {unit: top for unit, top in sorted(download.generations().items()) if top > read.get(unit, -1)}
    if not new:
        return None
    after = {unit: read[unit] for unit in new if unit in read}
    with ThreadPoolExecutor(download.store.parallel_reads) as pool:
        counted = pool.map(lambda unit: _rows(download, download.record(unit, new[unit]), after.get(unit)), new)
        rows = dict(zip(new, counted, strict=True))
    if not sum(rows.values()):
        return None
    count = max(math.ceil(len(new) / WINDOW_UNITS), math.ceil(sum(rows.values()) / WINDOW_ROWS))
    sizes = [sum(rows[unit] for unit in window) for window in windows(list(new), count)]
    name = f"{len(rounds) + 1:04d}"
    first = sum(len(round_.units) for round_ in rounds)
    units: list[dict[str, object]] = []
    for number, slices in enumerate(cut(sizes, settings.number_sample_per_shard)):
        taken = sum(stop - start for _, start, stop in slices)
        units.append(
            {"unit": f"{name}-{number:07d}", "generation": 0, "rows": taken, "shard": first + number, "slices": slices}
        )
    return Round(
        round=name, upstream=new, units=units, run=run, created_at=now(), after=after,
        plan={"windows": count, "columns": _kept_columns(download, {u: new[u] for u in new if rows[u]})},
    )  # fmt: skip


def windows(units: Sequence[str], count: int) -> list[list[str]]:
    """Deal the units into `count` strided windows."""
    return [list(units[start::count]) for start in range(count)]


def cut(sizes: Sequence[int], samples: int) -> list[list[tuple[int, int, int]]]:
    """For each shard, its (window, first row, end row) slices; `sizes` are the windows' rows."""
    ends = list(accumulate(sizes, initial=0))
    shards = []
    first = 0
    for low in range(0, ends[-1], samples):
        high = min(low + samples, ends[-1])
        while ends[first + 1] <= low:
            first += 1
        slices = []
        window = first
        while window < len(sizes) and ends[window] < high:
            start, stop = max(low, ends[window]), min(high, ends[window + 1])
            if start < stop:
                slices.append((window, start - ends[window], stop - ends[window]))
            window += 1
        shards.append(slices)
    return shards


def outcomes_path(folder: StageFolder, record: UnitRecord) -> str:
    """Path in the store of the unit's current outcomes table. Raises StoreError where the record names none."""
    for entry in record.files:
        if entry.table == "outcomes":
            return f"{folder.base}/{entry.path}"
    raise StoreError(f"{folder.base}/units/{record.unit}.{record.generation}.json names no outcomes table")


def open_table(folder: StageFolder, path: str) -> pq.ParquetFile:
    """A unit's table, of a few MB: whole by one request, which the store repeats until it is answered."""
    return pq.ParquetFile(pa.BufferReader(folder.store.read(path)))


def eligible(table: pa.Table, after: int | None) -> Any:
    """Boolean mask of the ok rows, of those with a later generation than `after` where it is given."""
    mask = pc.equal(table["status"], "ok")
    return mask if after is None else pc.and_(mask, pc.greater(table["generation"], after))


def _rows(download: StageFolder, record: UnitRecord, after: int | None) -> int:
    if after is None:
        return record.counts.get("ok", {}).get("", 0)
    table = open_table(download, outcomes_path(download, record)).read(columns=["status", "generation"])
    return int(pc.sum(eligible(table, after)).as_py() or 0)


def _kept_columns(download: StageFolder, units: dict[str, int]) -> list[str]:
    """The src_* columns of the round, in order of appearance; all units of a batch have the same."""
    first_of_batch = {unit.split("-")[0]: unit for unit in sorted(units, reverse=True)}
    kept: dict[str, None] = {}
    for unit in sorted(first_of_batch.values()):
        schema = open_table(download, outcomes_path(download, download.record(unit, units[unit]))).schema_arrow
        kept.update(dict.fromkeys(name for name in schema.names if name.startswith("src_")))
    return list(kept)
