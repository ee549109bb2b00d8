"""A round of `dedupe`: all its rows read, compared with each other and what stayed before, and written by unit."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dedupe import against, find, search
from pipeline.dedupe.rows import Gather, Keys, as_keys, unhex
from pipeline.dedupe.stage import SETS, needs_hashes
from pipeline.metadata import Metadata, rule_schema
from pipeline.rounds import descriptors, open_table, table_path
from pipeline.rules import Rules
from pipeline.runner import Result, Unit
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import Output, StageFolder
from schemas.recipe import Recipe, digest
from schemas.records import Counts, Round, UnitRecord
from schemas.tables import DUPLICATES

THREADS = max(1, min(4, os.cpu_count() or 1))


class Decision:
    """A whole round, decided when this is made."""

    def __init__(
        self, store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder,
        rounds: Sequence[Round], unit: str,
    ) -> None:  # fmt: skip
        """`unit`: one of the round's."""
        self._store, self._folder, self._settings = store, folder, recipe.dedupe
        number = next(place for place, round_ in enumerate(rounds) if unit in descriptors([round_]))
        self._units = list(descriptors([rounds[number]]).values())
        hashes = folders["hashes"] if needs_hashes(self._settings) else None
        schema = rule_schema(store)
        rules = [Rules(self._settings.eligible, schema, "dedupe.eligible") for _ in range(THREADS)]
        gather = Gather(Metadata(folders), hashes, self._settings, schema, rules)
        self._new = gather.read(self._units)
        self._found = find.FOUND.empty_table()
        if any(level is not False for level in self._settings.levels.values()):
            standing = self._standing(gather, list(descriptors(rounds[:number]).values()))
            self._found = find.find_duplicates(self._new.table.filter(self._new.eligible), standing, self._settings)
        self._by_uid = as_keys(unhex(self._found["uid"], 16))
        self._overlaps = self._against()
        self._overlapping = as_keys(unhex(self._overlaps["uid"], 16))

    def _against(self) -> pa.Table:
        """Which rows, eligible or not, are in which evaluation set; says how large the sets are in sets.json."""
        settings = self._settings
        if not settings.against:
            return against.OVERLAPS.empty_table()
        sets = against.load_sets(settings.against, settings.dihedral)
        items = {entry["values"]: entry["counts"] for entry in sets["eval_set"].value_counts().to_pylist()}
        self._store.replace(f"{self._folder.base}/{SETS}", json.dumps(items, sort_keys=True).encode() + b"\n")
        return against.find_overlaps(self._new.table, sets, find.pdq_radius(settings) or search.RADIUS)

    def _standing(self, gather: Gather, earlier: Sequence[Unit]) -> pa.Table:
        """The eligible rows that earlier rounds kept."""
        rows = gather.read(earlier)
        gone = [self._dropped(record) for record in self._folder.iter_records()]
        kept = ~np.isin(as_keys(rows.table["uid"]), np.concatenate([np.empty(0, "S16"), *gone]))
        return rows.table.filter(pa.array(kept & rows.eligible.to_numpy()))

    def _dropped(self, record: UnitRecord) -> Keys:
        table = open_table(self._folder, table_path(self._folder, record, "duplicates")).read(columns=["uid"])
        return as_keys(unhex(table["uid"], 16))

    def commit(self, run: str, stop: StopFlag, report: Callable[[Result], None]) -> None:
        """Write those of the round's units that no record answers for."""
        done = self._folder.generations()
        for number, unit in enumerate(self._units):
            if stop.is_set():
                return
            if unit["unit"] not in done:
                record = self._commit(number, unit, run)
                report({"unit": record.unit, "state": "done", "rows": record.rows, "counts": record.counts})

    def _commit(self, number: int, unit: Unit, run: str) -> UnitRecord:
        rows = self._new.of_unit(number)
        uids = as_keys(rows["uid"])
        gone = self._found.filter(pa.array(np.isin(self._by_uid, uids))).cast(DUPLICATES)
        overlaps = self._overlaps.filter(pa.array(np.isin(self._overlapping, uids)))
        attempt = self._folder.begin(unit["unit"], unit["generation"], run, alone=True)
        scratch = self._store.scratch()
        try:
            outputs = []
            for name, table in (("duplicates", gone), ("overlaps", overlaps)):
                pq.write_table(table, scratch / f"{name}.parquet", compression="zstd")
                outputs.append(Output(name, scratch / f"{name}.parquet", table.num_rows))
            kept = rows.num_rows - gone.num_rows
            counts: Counts = {"ok": {"": kept}} if kept else {}
            if gone.num_rows:
                counts["rejected"] = {"duplicate": gone.num_rows}
            return self._folder.commit(attempt, outputs, counts, rows.num_rows, digest(unit))
        except BaseException:
            self._folder.withdraw(attempt)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
