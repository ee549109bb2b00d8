"""The funnel: how many rows each stage took of each batch, and how they ended. From records alone."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.rounds import descriptors, read_rounds
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.records import Batch, Round, UnitRecord

FunnelRow = dict[str, Any]
"""`batch`, `stage`, `encoder` (of `embed`, else ''), `status`, `reason` ('' for ok) and `rows`."""


def funnel(store: Store, folders: Mapping[str, StageFolder], batches: Sequence[Batch]) -> list[FunnelRow]:
    """The funnel of `batches` in these stage folders, stage by stage; rows of rounds over several batches included."""
    known = {"", *(batch.batch for batch in batches)}
    rows: list[FunnelRow] = []
    for key, folder in folders.items():
        if folder.stage not in ("hashes", "scores"):  # no row ends there
            rows += stage_rows(key, folder.iter_records(), read_rounds(folder))
    return [row for row in rows if row["batch"] in known]


def stage_rows(stage: str, records: Iterable[UnitRecord], rounds: Iterable[Round] = ()) -> list[FunnelRow]:
    """One stage's part of the funnel from its current records; `stage` may be embed/<encoder>.

    A unit of `ingest`, `download` or `embed` belongs to the batch in its name, one of `dedupe`, `semantic` or `select`
    to that of the rows it reads. A unit of `shard` belongs to its round's batch, or to batch '' where that has several:
    its rows cannot be told apart by records.
    """
    name, _, encoder = stage.partition("/")
    rounds = list(rounds)
    of_round = {round_.round: set(round_.batches) for round_ in rounds}
    of_unit = descriptors(rounds)
    total: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        batches = of_round.get(_prefix(record.unit), {_prefix(record.unit)})
        batch = next(iter(batches)) if len(batches) == 1 else ""
        batch = of_unit.get(record.unit, {}).get("batch", batch)
        for status, reasons in record.counts.items():
            for reason, rows in reasons.items():
                total[batch, status, reason] += rows
    return [
        {"batch": batch, "stage": name, "encoder": encoder, "status": status, "reason": reason, "rows": rows}
        for (batch, status, reason), rows in sorted(total.items())
    ]


def sum_rows(funnel: Iterable[FunnelRow], **wanted: str) -> int:
    """Rows of the funnel whose fields equal the given ones, e.g. `stage='download', status='ok'`."""
    return sum(row["rows"] for row in funnel if all(row[name] == value for name, value in wanted.items()))


def _prefix(unit: str) -> str:
    return unit.partition("-")[0]
