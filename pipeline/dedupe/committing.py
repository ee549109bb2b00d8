"""A decided round's units, committed one after another in this process."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.attempt import done
from pipeline.runner import Result, Unit
from pipeline.stop import StopFlag
from pipeline.units import Output, StageFolder
from schemas.recipe import digest
from schemas.records import Counts


class Decided(NamedTuple):
    """What becomes of a unit's rows."""

    rows: int
    duplicates: pa.Table
    overlaps: pa.Table


def commit_round(
    folder: StageFolder, units: Sequence[Unit], decided: Callable[[int], Decided], run: str, stop: StopFlag,
    report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Write those of the round's units that no record answers for; `decided` gives a unit's tables by its place."""
    committed = folder.generations()
    for number, unit in enumerate(units):
        if stop.is_set():
            return
        if unit["unit"] in committed:
            continue
        made = decided(number)
        attempt = folder.begin(unit["unit"], unit["generation"], run, alone=True)
        with folder.working(attempt) as scratch:
            outputs = []
            for name, table in (("duplicates", made.duplicates), ("overlaps", made.overlaps)):
                pq.write_table(table, scratch / f"{name}.parquet", compression="zstd")
                outputs.append(Output(name, scratch / f"{name}.parquet", table.num_rows))
            gone = made.duplicates.num_rows
            counts: Counts = {"ok": {"": made.rows - gone}} if made.rows > gone else {}
            if gone:
                counts["rejected"] = {"duplicate": gone}
            report(done(folder.commit(attempt, outputs, counts, made.rows, digest(unit))))
