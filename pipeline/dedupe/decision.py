"""A round of `dedupe`: all its rows read, compared with each other and what stayed before, and written by unit."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster import connect, pool_size
from pipeline.dedupe import against, find, search
from pipeline.dedupe.committing import Decided, commit_round
from pipeline.dedupe.rows import ByUid, Gather, Keys, as_keys, unhex
from pipeline.dedupe.sets import load_sets
from pipeline.dedupe.spread import best_neighbours_on_ray
from pipeline.dedupe.stage import SETS, needs_hashes
from pipeline.dedupe.witness import Search
from pipeline.metadata import Metadata, before_scores, rule_schema
from pipeline.rounds import descriptors, open_table, table_path
from pipeline.rules import Rules
from pipeline.runner import Result, Unit
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Recipe
from schemas.records import Round, UnitRecord
from schemas.tables import DUPLICATES

THREADS = max(1, min(4, os.cpu_count() or 1))

MANY = 20_000_000
"""Rows that keep one machine busy for long: where there is a cluster, its nodes search."""


def _cluster_search(recipe: Recipe, rows: int) -> Search | None:
    """The search by tasks on the cluster this run belongs to; None where this process does it."""
    address = recipe.ray.address or os.environ.get("RAY_ADDRESS")
    if rows < MANY or address in (None, "", "local"):
        return None
    connect(recipe)
    return partial(best_neighbours_on_ray, tasks=pool_size(recipe, "dedupe"))


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
        gather = Gather(Metadata(before_scores(folders)), hashes, self._settings, schema, rules)
        new = gather.read(self._units)
        self._ends = new.ends
        self._uids = as_keys(new.table["uid"])
        self._overlaps = ByUid(self._against(new.table))
        found = find.FOUND.empty_table()
        if any(level is not False for level in self._settings.levels.values()):
            standing = self._standing(gather, list(descriptors(rounds[:number]).values()))
            rows = new.table if pc.all(new.eligible).as_py() is not False else new.table.filter(new.eligible)
            del new
            search_on = _cluster_search(recipe, rows.num_rows + standing.num_rows)
            found = find.find_duplicates(rows, standing, self._settings, search=search_on)
        self._duplicates = ByUid(found)

    def _against(self, rows: pa.Table) -> pa.Table:
        """Which rows, eligible or not, are in which evaluation set; says how large the sets are in sets.json."""
        settings = self._settings
        if not settings.against:
            return against.OVERLAPS.empty_table()
        sets = load_sets(settings.against, settings.dihedral)
        items = {entry["values"]: entry["counts"] for entry in sets["eval_set"].value_counts().to_pylist()}
        self._store.replace(f"{self._folder.base}/{SETS}", json.dumps(items, sort_keys=True).encode() + b"\n")
        return against.find_overlaps(rows, sets, find.pdq_radius(settings) or search.RADIUS)

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
        commit_round(self._folder, self._units, self._unit, run, stop, report)

    def _unit(self, number: int) -> Decided:
        uids = self._uids[self._ends[number - 1] if number else 0 : self._ends[number]]
        return Decided(len(uids), self._duplicates.of(uids).cast(DUPLICATES), self._overlaps.of(uids))
