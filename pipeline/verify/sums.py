"""Invariant 1, from records alone: every unit has answered, and the sums agree from the batch to complete.json."""

from collections.abc import Iterator

from pipeline.root import stage_of
from pipeline.tables import BY_BATCH
from pipeline.units import add_counts
from pipeline.verify.report import Report
from pipeline.verify.state import Folder, State
from schemas.records import UnitRecord
from schemas.statuses import REASONS


def check_sums(state: State, report: Report) -> None:
    records = report.check(1, "records add up")
    for folder in state.folders:
        for record in folder.all.values():
            records.add(1, _record(folder, record))
    units = report.check(1, "every unit has an outcome")
    for name, batch in state.batches.items():
        units.add(len(batch.units), _batch(state, name))
    complete = report.check(1, "complete.json is the sum of its records")
    for stage, folder in state.current.items():
        complete.add(1, _complete(stage, folder))


def is_known(status: str, reason: str | None) -> bool:
    """Whether status and reason are in the closed set; the reason of ok is null."""
    return status in REASONS and reason in (REASONS[status] or (None,))


def _record(folder: Folder, record: UnitRecord) -> Iterator[str]:
    place = f"{folder.base}/units/{record.unit}.{record.generation}.json"
    for status, reasons in record.counts.items():
        for reason in reasons:
            rule = status == "rejected" and folder.folder.stage == "select"  # its reasons are the recipe's rules
            if not is_known(status, reason or None) and not rule:
                yield f"{place}: status {status!r} with reason {reason!r} is not in the closed set"
    total = sum(rows for reasons in record.counts.values() for rows in reasons.values())
    if total != record.rows:
        yield f"{place}: its counts sum to {total}, its rows are {record.rows}"


def _batch(state: State, name: str) -> Iterator[str]:
    """Each unit of the batch was ingested and, once there is a download, all its pairs have an outcome."""
    batch = state.batches[name]
    if sum(unit.rows for unit in batch.units) != batch.rows:
        yield f"batches/{name}.json: its units have {sum(u.rows for u in batch.units)} rows, the batch {batch.rows}"
    ingest, download = state.current.get("ingest"), state.current.get("download")
    taken = sum(other.rows for other in state.batches.values() if other.readmits == name)
    answered = 0
    for unit in batch.units:
        record = ingest.current.get(unit.unit) if ingest else None
        if record is None:
            yield f"batch {name}: unit {unit.unit} ({unit.rows} rows) has no ingest record; the build is not finished"
            continue
        answered += record.rows
        if record.rows > unit.rows or (record.rows < unit.rows and not taken):
            yield f"ingest unit {unit.unit}: its record has {record.rows} rows, the batch gave it {unit.rows}"
        if download is None:
            continue
        pairs = record.counts.get("ok", {}).get("", 0)
        outcome = download.current.get(unit.unit)
        if outcome is None and pairs:
            yield f"download unit {unit.unit}: its {pairs} pairs have no outcome; the build is not finished"
        elif outcome is not None and outcome.rows != pairs:
            yield f"download unit {unit.unit}: its record has {outcome.rows} rows for {pairs} pairs"
    if ingest and answered != batch.rows - taken:
        less = f" less {taken} readmitted" if taken else ""
        yield f"batch {name}: {batch.rows} input rows{less}, but its records answer for {answered}"


def _complete(stage: str, folder: Folder) -> Iterator[str]:
    done = folder.folder.completed()
    if done is None:
        return
    place = f"{folder.base}/complete.json"
    records = [
        record for unit, record in folder.current.items()
        if stage_of(stage) not in BY_BATCH or unit.partition("-")[0] in done.batches
    ]  # fmt: skip
    rows = sum(record.rows for record in records)
    if rows != done.rows:
        yield f"{place}: says {done.rows} rows, its records have {rows}"
    if add_counts(record.counts for record in records) != done.counts:
        yield f"{place}: its counts are not the sum of its records' counts"
    if sum(len(record.files) for record in records) != done.files:
        yield f"{place}: says {done.files} files, its records name {sum(len(record.files) for record in records)}"
