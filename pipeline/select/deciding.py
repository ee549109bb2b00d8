"""Decides the rows of a round: what `top` cuts and `balance` draws is fixed from all of them first, in its plan.

    verdicts of every unit  →  top's value, by passes over them  →  texts an entry, of the rows left  →  decisions

Between the passes verdicts lie on local disk, about 70 bytes a row of the round. Memory: what `Judging` holds, a
histogram, and about 500 bytes an entry.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.metadata import TEXT_COUNT, Metadata, rule_schema
from pipeline.rounds import descriptors
from pipeline.runner import Unit
from pipeline.select.balance import Counts, Draws, threshold
from pipeline.select.decide import BALANCE, CONTAMINATED, TOP, decisions
from pipeline.select.entries import Matcher, most_frequent, ngrams_wanted, read_entries
from pipeline.select.judge import DROP, ENTRIES, PASS, VALUE, WEIGHT, Judging, Spill, left
from pipeline.select.top import Cut, Search, key_bits, keys_of, ranked_type, value_of
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Recipe
from schemas.records import Round
from schemas.tables import OVERLAPS

THREADS = max(1, min(4, cpu_count() or 1))

Plan = dict[str, Any]
"""{top: {rows, key, at}, balance: {t, rows, counts}}: rows of the population; `at`, the least value that passes;
`counts`, the path of a table (entry, texts of this round, total with earlier rounds)."""


class Deciding:
    """Knows a round's rows; `decide` may be called from several threads once the plan is made or given."""

    def __init__(
        self, store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], rounds: Sequence[Round],
        folder: StageFolder, scratch: Path,
    ) -> None:  # fmt: skip
        """`rounds`: those before this one, and this one. `folder`: the stage's, for what later rounds go by. `scratch`:
        an empty local folder."""
        self._store, self._recipe, self._folder, self._scratch = store, recipe, folder, scratch
        self._settings = recipe.select
        self._lock = Lock()
        self._units = list(descriptors(rounds[-1:]).values())
        self._entries: list[str] = []
        self._counted: Counts = np.zeros(0, np.int64)
        self._totals = self._counted
        self._rows = 0
        self._cut: Cut | None = None
        self._draws: Draws | None = None
        matcher = None
        if self._settings.balance:
            self._begin_balance([round_.plan for round_ in rounds], folders)
            matcher = Matcher(self._entries)
        clusters = None
        if self._settings.image_based:
            # Only recipes that cluster need what it imports.
            from pipeline.semantic.image_based import ClusterFilter

            clusters = ClusterFilter(recipe, folders, folder, self._units)
        self._judging = Judging(store, recipe, folders, descriptors(rounds).values(), matcher, clusters)
        self._spill = Spill(scratch)
        if plan := rounds[-1].plan:
            self._load(plan)

    def decide(self, unit: Unit) -> tuple[pa.Table, pa.Table]:
        """The tables `decisions` and `overlaps` of a unit."""
        verdicts = self._spill.get(unit["unit"])
        if verdicts is None:
            verdicts = self._judging.judge(unit)
        dropped = [(name.removeprefix(DROP), verdicts[name]) for name in verdicts.column_names if name.startswith(DROP)]
        passes = {name.removeprefix(PASS): verdicts[name] for name in verdicts.column_names if name.startswith(PASS)}
        if self._cut:
            passes[TOP] = pa.array(self._cut.passes(verdicts[VALUE]))
        if self._draws:
            matched = verdicts[ENTRIES].combine_chunks()
            passes[BALANCE] = pa.array(self._draws.passes(verdicts["uid"].to_pylist(), matched))
        weights = verdicts[WEIGHT] if WEIGHT in verdicts.column_names else None
        decided = decisions(verdicts["uid"], dropped, pa.table(passes), weights)
        overlaps = self._judging.overlaps(unit)
        removed = decided["uid"].filter(pc.fill_null(pc.equal(decided["dropped_by"], CONTAMINATED), False))
        mark = pc.is_in(overlaps["uid"], removed.combine_chunks())
        return decided, overlaps.append_column("removed", mark).cast(OVERLAPS)

    def plan(self, stop: Callable[[], bool] = lambda: False) -> Plan | None:
        """Go over all rows and fix what depends on them; None where `stop` said so."""
        top, balance = self._settings.top, self._settings.balance
        if not top and not balance:
            return {}
        made: Plan = {}
        search = Search(top, key_bits(self._ranked())) if top else None

        def judge(unit: Unit) -> None:
            verdicts = self._judging.judge(unit)
            self._spill.put(unit["unit"], verdicts)
            if search:
                search.add(self._population(verdicts))
            else:
                self._count(verdicts)

        self._counted = np.zeros(len(self._entries), np.int64)
        self._each(judge, stop)
        if top and search:
            while (cut := search.close()) is None and not stop():
                self._each(lambda unit: search.add(self._population(self._again(unit))), stop)
            if cut is not None:
                self._cut = cut
                made[TOP] = {"rows": cut.rows, "key": cut.key, "at": value_of(cut.key, self._ranked())}
            if balance:
                self._each(lambda unit: self._count(self._again(unit)), stop)
        if stop():
            return None
        if balance:
            self._totals += self._counted
            t = threshold(balance, self._totals)
            self._draws = Draws(balance.seed, t, self._entries, self._totals)
            made[BALANCE] = {"t": t, "rows": self._rows, "counts": self._write()}
        return made

    def _ranked(self) -> pa.DataType:
        assert self._settings.top
        schema = rule_schema(self._store, self._recipe.embed).append(TEXT_COUNT)
        return ranked_type(schema.field(self._settings.top.column).type)

    def _each(self, work: Callable[[Unit], None], stop: Callable[[], bool]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for _ in pool.map(lambda unit: None if stop() else work(unit), self._units):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _again(self, unit: Unit) -> pa.Table:
        """A unit's verdicts, which an earlier pass left on disk."""
        drop = [WEIGHT] if self._cut else [WEIGHT, ENTRIES]
        verdicts = self._spill.get(unit["unit"], drop)
        return self._judging.judge(unit) if verdicts is None else verdicts

    def _population(self, verdicts: pa.Table) -> npt.NDArray[Any]:
        assert self._settings.top
        keys, there = keys_of(verdicts[VALUE])
        return keys[there if self._settings.top.of == "pool" else there & left(verdicts)]

    def _count(self, verdicts: pa.Table) -> None:
        """Count the entries of the rows that all before `balance` leaves."""
        stays = left(verdicts)
        if self._cut:
            stays &= self._cut.passes(verdicts[VALUE])
        matched = verdicts[ENTRIES].filter(pa.array(stays)).combine_chunks().flatten().to_numpy()
        counts = np.bincount(matched, minlength=len(self._entries))
        with self._lock:
            self._counted += counts
            self._rows += int(stays.sum())

    def _begin_balance(self, plans: Sequence[Plan], folders: Mapping[str, StageFolder]) -> None:
        """The entries, and how many texts of earlier rounds held each."""
        balance = self._settings.balance
        assert balance
        earlier = [plan for plan in plans[:-1] if BALANCE in plan]
        if written := earlier or [plan for plan in plans if BALANCE in plan]:
            table = self._read(written[-1])
            self._entries = table["entry"].to_pylist()
            self._totals = table["total"].to_numpy().copy() if earlier else np.zeros(len(table), np.int64)
            return
        number = ngrams_wanted(balance.entries)
        if number is None:
            self._entries = read_entries(balance.entries)
        else:
            metadata = Metadata(folders)
            texts = (metadata.read(unit, ["text"])["text"] for unit in self._units)
            self._entries = most_frequent(texts, number, self._scratch)
        self._totals = np.zeros(len(self._entries), np.int64)

    def _load(self, plan: Plan) -> None:
        if TOP in plan:
            self._cut = Cut(plan[TOP]["rows"], plan[TOP]["key"])
        if BALANCE in plan and self._settings.balance:
            table = self._read(plan)
            counts = table["total"].to_numpy()
            self._draws = Draws(self._settings.balance.seed, plan[BALANCE]["t"], table["entry"].to_pylist(), counts)

    def _read(self, plan: Plan) -> pa.Table:
        data = self._folder.store.read(f"{self._folder.base}/{plan[BALANCE]['counts']}")
        return pq.read_table(pa.BufferReader(data))

    def _write(self) -> str:
        """Write the counts, under the name of their content: who dies before the round is opened leaves them to it."""
        columns = {"entry": self._entries, "texts": self._counted, "total": self._totals}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        path = f"balance/{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        self._folder.store.create(f"{self._folder.base}/{path}", data)
        return path
