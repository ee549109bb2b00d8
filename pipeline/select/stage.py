"""The select stage: one decision a row of the pool, unit by unit, from metadata alone.

rounds/0001.json  →  units 0001-0000000 … of the tables `decisions` and `overlaps`. Every rule is evaluated for every
row; a row is dropped by the first of: duplicate, contaminated, not_embedded, the rules in the recipe's order, uids,
listed_words, image_based, top, balance. A round's plan says where top cuts and with which counts balance draws.
"""

import shutil
from collections.abc import Callable, Mapping
from functools import partial

import pyarrow.parquet as pq

from pipeline.faults import fault_point
from pipeline.rounds import descriptors, open_round, read_rounds, round_over_round, unfinished
from pipeline.runner import Result, Unit, run_here
from pipeline.select.decide import counts_of
from pipeline.select.deciding import THREADS, Deciding
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import Output, StageFolder
from schemas.recipe import Recipe, digest


def run_select(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, run: str, stop: StopFlag,
    report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Finish the round a killed run left, open one for units that no round took, of `semantic` or else of `dedupe`.

    Units are decided in this process: it takes less than reading the pool once.
    """
    upstream = folders.get("semantic", folders["dedupe"])
    while not stop.is_set():
        rounds = read_rounds(folder)
        missing = unfinished(rounds, folder.generations())
        if missing:  # of a run that was killed
            number = next(n for n, round_ in enumerate(rounds) if str(missing[0]["unit"]) in descriptors([round_]))
            rounds = rounds[: number + 1]
        elif (opened := round_over_round(upstream, rounds, run)) is None:
            return
        else:
            rounds.append(opened)
        scratch = store.scratch()
        try:
            deciding = Deciding(store, recipe, folders, rounds, folder, scratch)
            if not missing:
                if (plan := deciding.plan(stop.is_set)) is None:
                    return
                fault_point("before-round", folder.stage)
                open_round(folder, rounds[-1].model_copy(update={"plan": plan}))
                missing = unfinished(rounds[-1:], ())
            run_here(partial(SelectWorker, deciding, folder, run), missing, stop, report, THREADS)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class SelectWorker:
    """Decides one unit a call; lives in one thread."""

    def __init__(self, deciding: Deciding, folder: StageFolder, run: str) -> None:
        self._deciding, self._folder, self._run = deciding, folder, run

    def run(self, unit: Unit, alone: bool) -> Result:
        """Decide and commit one unit."""
        attempt = self._folder.begin(unit["unit"], unit["generation"], self._run, alone)
        with self._folder.working(attempt) as scratch:
            decided, overlaps = self._deciding.decide(unit)
            outputs = []
            for name, table in (("decisions", decided), ("overlaps", overlaps)):
                pq.write_table(table, scratch / f"{name}.parquet", compression="zstd")
                outputs.append(Output(name, scratch / f"{name}.parquet", table.num_rows))
            record = self._folder.commit(attempt, outputs, counts_of(decided), decided.num_rows, digest(unit))
        return {"unit": record.unit, "state": "done", "rows": record.rows, "counts": record.counts}
