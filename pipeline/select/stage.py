"""The select stage: one decision a row of the pool, unit by unit, from metadata alone.

rounds/0001.json  →  units 0001-0000000 … of the tables `decisions` and `overlaps`. Every rule is evaluated for every
row; a row is dropped by the first of: duplicate, contaminated, the rules in the recipe's order, uids.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import cpu_count

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.metadata import TEXT_COUNT, Metadata, rule_schema
from pipeline.rounds import (
    descriptors,
    open_round,
    open_table,
    read_rounds,
    round_over_round,
    table_path,
    unfinished,
)
from pipeline.rules import Rules
from pipeline.runner import Result, Unit, run_here
from pipeline.select.decide import CONTAMINATED, DUPLICATE, UIDS, counts_of, decisions
from pipeline.select.text_count import TextCounts
from pipeline.select.uids import among, read_uids
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import Output, StageFolder
from schemas.recipe import Recipe, digest
from schemas.records import Round
from schemas.tables import OVERLAPS

THREADS = max(1, min(4, cpu_count() or 1))

INPUT_UID = "src_uid"
"""A uid that the input gave the row, as DataComp's does: `select.uids` may list it instead of ours."""


def run_select(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, run: str, stop: StopFlag,
    report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Finish the round a killed run left, open one for units of dedupe that no round took.

    Units are decided in this process: it takes less than reading the pool once.
    """
    while not stop.is_set():
        rounds = read_rounds(folder)
        missing = unfinished(rounds, folder.generations())
        if missing:
            number = next(n for n, round_ in enumerate(rounds) if str(missing[0]["unit"]) in descriptors([round_]))
            shared = Shared(store, recipe, folders, rounds[: number + 1])
            run_here(partial(SelectWorker, shared, folder, run), missing, stop, report, THREADS)
        elif (opened := round_over_round(folders["dedupe"], rounds, run)) is None:
            return
        else:
            open_round(folder, opened)


class Shared:
    """What all units of a round need, read once. Memory: 16 bytes a listed uid and, for text_count, a distinct text."""

    def __init__(
        self, store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], rounds: Sequence[Round]
    ) -> None:
        """`rounds`: this one and those before it."""
        self.settings = recipe.select
        self.metadata = Metadata(folders)
        self.dedupe = folders["dedupe"]
        self.generations = self.dedupe.generations()
        self.schema = rule_schema(store).append(TEXT_COUNT)
        self.sets = None if self.settings.decontaminate == "all" else self.settings.decontaminate
        self.uids = read_uids(self.settings.uids) if self.settings.uids else None
        columns = Rules(self.settings.rules, self.schema, "select.rules").columns
        self.columns = [name for name in columns if name != TEXT_COUNT.name]
        if self.uids is not None and INPUT_UID in self.schema.names and INPUT_UID not in self.columns:
            self.columns.append(INPUT_UID)
        self.texts = TextCounts(self.metadata, descriptors(rounds).values()) if TEXT_COUNT.name in columns else None
        if self.texts and "text" not in self.columns:
            self.columns.append("text")


class SelectWorker:
    """Decides one unit a call; lives in one thread."""

    def __init__(self, shared: Shared, folder: StageFolder, run: str) -> None:
        self._shared, self._folder, self._run = shared, folder, run
        self._rules = Rules(shared.settings.rules, shared.schema, "select.rules")
        self._engine = duckdb.connect(config={"threads": 1})

    def run(self, unit: Unit, alone: bool) -> Result:
        """Decide and commit one unit."""
        attempt = self._folder.begin(unit["unit"], unit["generation"], self._run, alone)
        with self._folder.working(attempt) as scratch:
            decided, overlaps = self._decide(unit)
            outputs = []
            for name, table in (("decisions", decided), ("overlaps", overlaps)):
                pq.write_table(table, scratch / f"{name}.parquet", compression="zstd")
                outputs.append(Output(name, scratch / f"{name}.parquet", table.num_rows))
            record = self._folder.commit(attempt, outputs, counts_of(decided), decided.num_rows, digest(unit))
        return {"unit": record.unit, "state": "done", "rows": record.rows, "counts": record.counts}

    def _decide(self, unit: Unit) -> tuple[pa.Table, pa.Table]:
        shared = self._shared
        rows = shared.metadata.read(unit, shared.columns)
        if shared.texts:
            rows = rows.append_column(TEXT_COUNT, shared.texts.of(self._engine, rows["text"]))
        passes = self._rules.judge(rows)
        if shared.uids is not None:
            listed = among(rows["uid"], shared.uids)
            if INPUT_UID in rows.column_names:
                listed |= among(rows[INPUT_UID], shared.uids)
            columns = [*passes.columns, pa.array(listed)]
            passes = pa.table(columns, names=[*passes.column_names, UIDS])
        overlaps = self._read(unit, "overlaps")
        guilty = overlaps
        if shared.sets is not None:
            guilty = overlaps.filter(pc.is_in(overlaps["eval_set"], pa.array(shared.sets, pa.string())))
        gone = [(DUPLICATE, self._read(unit, "duplicates", ["uid"])), (CONTAMINATED, guilty)]
        dropped = [(reason, pc.is_in(rows["uid"], table["uid"].combine_chunks())) for reason, table in gone]
        decided = decisions(rows["uid"], dropped, passes)
        removed = decided["uid"].filter(pc.fill_null(pc.equal(decided["dropped_by"], CONTAMINATED), False))
        mark = pc.is_in(overlaps["uid"], removed.combine_chunks())
        return decided, overlaps.append_column("removed", mark).cast(OVERLAPS)

    def _read(self, unit: Unit, table: str, columns: list[str] | None = None) -> pa.Table:
        """A table of the unit of dedupe that this one reads."""
        folder, name = self._shared.dedupe, unit["dedupe"]
        record = folder.record(name, self._shared.generations[name])
        return open_table(folder, table_path(folder, record, table)).read(columns=columns)
