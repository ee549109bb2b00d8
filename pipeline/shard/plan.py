"""Rounds of `shard`: which kept rows become samples of which shard, decided from metadata alone.

A round's upstream units (of `select`), in the order of their names (which keeps hosts together), are dealt into W
windows: window w holds units w, w + W, w + 2W, …, so that a window spans the whole order of hosts. The kept rows of a
window go out in the order of their uids, windows one after another, and every `number_sample_per_shard` rows are a
shard, whatever window they lie in.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

from pipeline.rounds import descriptors, open_table, read_rounds, table_path
from pipeline.runner import Unit
from pipeline.units import StageFolder
from schemas.recipe import Shard
from schemas.records import Round, now

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


def next_round(
    settings: Shard, download: StageFolder, select: StageFolder, rounds: Sequence[Round], run: str
) -> Round | None:
    """The round of what units of `select` keep that no earlier round took; None where they keep no row."""
    taken = {unit for round_ in rounds for unit in round_.upstream}
    new = {unit: top for unit, top in sorted(select.generations().items()) if unit not in taken}
    if not new:
        return None
    with ThreadPoolExecutor(select.store.parallel_reads) as pool:
        records = pool.map(lambda item: select.record(*item), new.items())
        rows = {record.unit: record.counts.get("ok", {}).get("", 0) for record in records}
    if not sum(rows.values()):
        return None
    count = max(math.ceil(len(new) / WINDOW_UNITS), math.ceil(sum(rows.values()) / WINDOW_ROWS))
    sizes = [sum(rows[unit] for unit in window) for window in windows(list(new), count)]
    name = f"{len(rounds) + 1:04d}"
    first = sum(len(round_.units) for round_ in rounds)
    units: list[dict[str, object]] = []
    for number, slices in enumerate(cut(sizes, settings.number_sample_per_shard)):
        end = sum(stop - start for _, start, stop in slices)
        units.append(
            {"unit": f"{name}-{number:07d}", "generation": 0, "rows": end, "shard": first + number, "slices": slices}
        )
    read = descriptors(read_rounds(select))
    return Round(
        round=name, upstream=new, units=units, run=run, created_at=now(),
        batches=sorted({str(read[unit]["batch"]) for unit in new}),
        plan={"windows": count, "columns": _kept_columns(download, [read[unit] for unit in new if rows[unit]])},
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


def _kept_columns(download: StageFolder, units: Sequence[Unit]) -> list[str]:
    """The src_* columns of the round, in order of appearance; all units of a batch have the same."""
    first_of_batch = {unit["batch"]: unit for unit in sorted(units, key=lambda unit: str(unit["reads"]), reverse=True)}
    current = download.generations()
    kept: dict[str, None] = {}
    for _, unit in sorted(first_of_batch.items()):
        record = download.record(unit["reads"], current[unit["reads"]])
        schema = open_table(download, table_path(download, record, "outcomes")).schema_arrow
        kept.update(dict.fromkeys(name for name in schema.names if name.startswith("src_")))
    return list(kept)
