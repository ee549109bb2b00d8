"""Which rows of a download unit are due: those that dedupe kept and that pass `embed.eligible`."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.metadata import Metadata, before_scores, rule_schema
from pipeline.rounds import descriptors, open_table, read_rounds, table_path
from pipeline.rules import Rules, passed
from pipeline.runner import Unit
from pipeline.units import StageFolder

COLUMNS = ("uid", "caption", "pool_file", "pool_offset", "pool_size", "pool_sha256")


class DueRows:
    """Reads them for one thread, as of when it was made. `folders`: those of the run. Memory: one unit's rows."""

    def __init__(self, folders: Mapping[str, StageFolder], eligible: Mapping[str, str]) -> None:
        self._download, self._dedupe = folders["download"], folders["dedupe"]
        self._metadata = Metadata(before_scores(folders))
        self._decided = self._dedupe.generations()
        self._rules = Rules(eligible, rule_schema(self._download.store), "embed.eligible") if eligible else None

    def read(self, reads: Sequence[Unit]) -> pa.Table:
        """COLUMNS of the due rows that these units of dedupe mean, all of one download unit."""
        return pa.concat_tables([self._of(unit) for unit in reads])

    def _of(self, unit: Unit) -> pa.Table:
        own = [name for name in self._rules.columns if name not in COLUMNS] if self._rules else []
        rows = self._metadata.read(unit, [*COLUMNS, *own])
        record = self._dedupe.record(unit["unit"], self._decided[unit["unit"]])
        gone = open_table(self._dedupe, table_path(self._dedupe, record, "duplicates")).read(columns=["uid"])
        rows = rows.filter(pc.invert(pc.is_in(rows["uid"], gone["uid"].combine_chunks())))
        if self._rules:
            rows = rows.filter(pa.array(passed(self._rules, rows)))
        return rows.select(list(COLUMNS))


def ok_uids(download: StageFolder, unit: str, generation: int) -> pa.ChunkedArray:
    """uids of a unit's ok rows, in the order of its outcomes."""
    record = download.record(unit, generation)
    table = open_table(download, table_path(download, record, "outcomes")).read(columns=["uid", "status"])
    return table["uid"].filter(pc.equal(table["status"], "ok"))


def decided_units(dedupe: StageFolder) -> dict[str, list[Unit]]:
    """download unit → descriptors of the committed units of dedupe that read it, the oldest round first."""
    done = dedupe.generations()
    found: dict[str, list[Unit]] = {}
    for name, unit in descriptors(read_rounds(dedupe)).items():
        if name in done:
            found.setdefault(str(unit["reads"]), []).append(unit)
    return found
