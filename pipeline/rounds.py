"""Rounds of set-level stages: `dedupe`, `select` and `shard` each take, once, what no earlier round of theirs took.

A round is ROOT/<stage>/<fingerprint>/rounds/0002.json, created before its units. A unit of `dedupe` or `select` is the
rows of one download unit: its descriptor says which (`reads`), up to which of its generations (`reads_generation`: rows
that became ok later are not meant; `after`: nor those an earlier round took), and its batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import LeaseLostError, StoreError
from pipeline.runner import Unit
from pipeline.storage import LocalStore
from pipeline.units import StageFolder
from schemas.records import Round, UnitRecord, now


def read_rounds(folder: StageFolder) -> list[Round]:
    """The folder's rounds, oldest first."""
    paths = sorted(path for path, _ in folder.store.files(f"{folder.base}/rounds"))
    return [Round.model_validate_json(folder.store.read(path)) for path in paths]


def unfinished(rounds: Iterable[Round], committed: Iterable[str]) -> list[Unit]:
    """Descriptors of the units that a round names and no record answers for."""
    done = set(committed)
    return [dict(unit) for round_ in rounds for unit in round_.units if unit["unit"] not in done]


def descriptors(rounds: Iterable[Round]) -> dict[str, Unit]:
    """unit → its descriptor, of all rounds."""
    return {str(unit["unit"]): dict(unit) for round_ in rounds for unit in round_.units}


def open_round(folder: StageFolder, round_: Round) -> None:
    """Write a round down. Raises LeaseLostError where another run has just opened one."""
    path = f"{folder.base}/rounds/{round_.round}.json"
    if not folder.store.create(path, round_.to_bytes()):
        raise LeaseLostError(f"{path} was just written by another run")


def round_over_download(download: StageFolder, rounds: Sequence[Round], run: str) -> Round | None:
    """The round of every ok row that no earlier round took, a unit a download unit; None where there is no such row."""
    read: dict[str, int] = {}
    for round_ in rounds:
        read.update(round_.upstream)
    new = {unit: top for unit, top in sorted(download.generations().items()) if top > read.get(unit, -1)}
    name = f"{len(rounds) + 1:04d}"
    units: list[Unit] = []
    for unit, top in new.items():
        rows = _ok_rows(download, download.record(unit, top), read.get(unit))
        if rows:
            units.append({
                "unit": f"{name}-{len(units):07d}", "generation": 0, "rows": rows, "batch": _batch(unit),
                "reads": unit, "reads_generation": top, "after": read.get(unit),
            })  # fmt: skip
    if not units:
        return None
    after = {unit: read[unit] for unit in new if unit in read}
    return Round(
        round=name, upstream=new, units=units, run=run, created_at=now(), after=after,
        batches=sorted({unit["batch"] for unit in units}),
    )  # fmt: skip


def round_over_round(upstream: StageFolder, rounds: Sequence[Round], run: str) -> Round | None:
    """The round of every committed unit of `upstream`, itself a stage by rounds, that no earlier round took.

    A unit reads one unit of `upstream`, named under its stage's name, and the same rows of the same download unit.
    """
    taken = {unit for round_ in rounds for unit in round_.upstream}
    new = {unit: top for unit, top in sorted(upstream.generations().items()) if unit not in taken}
    if not new:
        return None
    known = descriptors(read_rounds(upstream))
    name = f"{len(rounds) + 1:04d}"
    units: list[Unit] = [
        {**known[unit], "unit": f"{name}-{number:07d}", "generation": 0, upstream.stage: unit}
        for number, unit in enumerate(new)
    ]
    return Round(
        round=name, upstream=new, units=units, run=run, created_at=now(),
        batches=sorted({str(unit["batch"]) for unit in units}),
    )  # fmt: skip


def pending_rows(download: StageFolder, folder: StageFolder) -> int:
    """Rows that a stage of units with `reads` has yet to take: at most so many, since a retry repeats old ones."""
    rounds = read_rounds(folder)
    rows = sum(unit["rows"] for unit in unfinished(rounds, folder.generations()))
    read: dict[str, int] = {}
    for unit in descriptors(rounds).values():
        read[unit["reads"]] = max(unit["reads_generation"], read.get(unit["reads"], -1))
    new = ((unit, top) for unit, top in download.generations().items() if top > read.get(unit, -1))
    return int(rows + sum(download.record(*item).counts.get("ok", {}).get("", 0) for item in new))


def table_path(folder: StageFolder, record: UnitRecord, table: str) -> str:
    """Path in the store of a unit's table. Raises StoreError where the record names none."""
    for entry in record.files:
        if entry.table == table:
            return f"{folder.base}/{entry.path}"
    raise StoreError(f"{folder.base}/units/{record.unit}.{record.generation}.json names no {table} table")


def open_table(folder: StageFolder, path: str) -> pq.ParquetFile:
    """A unit's table, of a few MB: on a disk mapped, else whole by one request that is repeated until answered."""
    if isinstance(folder.store, LocalStore):
        return pq.ParquetFile(folder.store.root / path, memory_map=True)
    return pq.ParquetFile(pa.BufferReader(folder.store.read(path)))


def taken_rows(table: pa.Table, unit: Mapping[str, Any]) -> Any:
    """Boolean mask of the rows of an outcomes table (`status`, `generation`) that a unit's descriptor means."""
    mask = pc.equal(table["status"], "ok")
    mask = pc.and_(mask, pc.less_equal(table["generation"], unit["reads_generation"]))
    after = unit.get("after")
    return mask if after is None else pc.and_(mask, pc.greater(table["generation"], after))


def _ok_rows(download: StageFolder, record: UnitRecord, after: int | None) -> int:
    if after is None:
        return record.counts.get("ok", {}).get("", 0)
    table = open_table(download, table_path(download, record, "outcomes")).read(columns=["status", "generation"])
    unit = {"reads_generation": record.generation, "after": after}
    return int(pc.sum(taken_rows(table, unit)).as_py() or 0)


def _batch(unit: str) -> str:
    return unit.partition("-")[0]
