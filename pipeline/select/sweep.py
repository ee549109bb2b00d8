"""`jobs.select --sweep column=a,b,c`: what other thresholds would keep, from the tables alone; nothing is written.

Each threshold stands in place of the recipe's own rules over that column, and of `top` by it; all else is as the recipe
says, decided afresh over the whole pool as its first round.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.check import check_recipe, check_rules
from pipeline.errors import InputError
from pipeline.metadata import TEXT_COUNT, rule_schema
from pipeline.root import read_batches
from pipeline.rounds import round_over_round
from pipeline.rules import Rules
from pipeline.select.deciding import Deciding
from pipeline.select.top import number_columns
from pipeline.stages import stage_folders
from pipeline.storage import LocalStore, Store, open_store
from pipeline.units import StageFolder
from schemas.recipe import Recipe

FLAG = "--sweep"


@dataclass(frozen=True)
class Sweep:
    column: str
    thresholds: list[str]
    rows: int
    """Rows that `select` would decide."""
    both: npt.NDArray[np.int64]
    """[k, k]: rows that two thresholds would both keep; a threshold with itself: that it would keep."""
    replaced: list[str]
    """Rules of the recipe over the column, and `top`, which the thresholds stand for."""

    def told(self) -> str:
        """Rows and share kept, and the overlap of each two kept sets (Jaccard: kept by both over kept by either)."""
        kept = self.both.diagonal()
        head = f"{self.column} >="
        wide = max(len(head), *map(len, self.thresholds))
        lines = [f"{self.rows:,} rows; every other setting as in the recipe" + self._without(), ""]
        lines.append(f"{head:<{wide}}  {'kept':>13}  {'share':>7}  overlap with {', '.join(self.thresholds)}")
        for row, name in enumerate(self.thresholds):
            share = kept[row] / self.rows if self.rows else 0.0
            overlap = "  ".join(f"{self.jaccard(row, other):.3f}" for other in range(len(kept)))
            lines.append(f"{name:<{wide}}  {kept[row]:>13,}  {share:>7.2%}  {overlap}")
        return "\n".join(lines)

    def jaccard(self, one: int, other: int) -> float:
        """Share of the rows kept by either that both keep; 1 where neither keeps any."""
        either = self.both[one, one] + self.both[other, other] - self.both[one, other]
        return float(self.both[one, other] / either) if either else 1.0

    def _without(self) -> str:
        return f", in place of {', '.join(self.replaced)}" if self.replaced else ""


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """Column and thresholds of column=a,b,c. Raises InputError."""
    column, equals, listed = text.partition("=")
    thresholds = [value.strip() for value in listed.split(",")]
    try:
        good = bool(equals) and bool(column) and all(np.isfinite(float(value)) for value in thresholds)
    except ValueError:
        good = False
    if not good:
        raise InputError(f"{FLAG} {text}: expected column=a,b,c with numbers, as clip_score=0.26,0.28,0.30")
    return column, thresholds


def swept(recipe: Recipe, root: str, asked: str) -> str:
    """What the sweep of column=a,b,c says of a ROOT. Raises InputError."""
    column, thresholds = parse_sweep(asked)
    store = open_store(root)
    check_recipe(recipe)
    batches = list(read_batches(store).values())
    if not batches:
        raise InputError(f"output {store.uri}: has no batch yet")
    scores = {name for batch in batches if batch.adopted for name in batch.adopted.scores}
    check_rules(recipe, [name for batch in batches for name in batch.kept], sorted(scores))
    return run_sweep(store, recipe, stage_folders(store, recipe), column, thresholds).told()


def run_sweep(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], column: str, thresholds: Sequence[str]
) -> Sweep:
    """Decide all rows by each threshold. Memory: a bit a row and threshold, and what `select` itself takes."""
    schema = rule_schema(store, recipe.embed).append(TEXT_COUNT)
    if column not in number_columns(schema):
        raise InputError(f"{FLAG} {column}: no number of each row; there are {', '.join(number_columns(schema))}")
    upstream = folders.get("semantic", folders["dedupe"])
    whole = round_over_round(upstream, [], "sweep")
    if whole is None:
        raise InputError(
            f"{FLAG}: {upstream.stage} has not run under these settings in {store.uri}; run jobs.{upstream.stage} first"
        )
    rules = recipe.select.rules
    replaced = [name for name, sql in rules.items() if column in Rules({name: sql}, schema, "select.rules").columns]
    top = recipe.select.top
    if top and top.column == column:
        replaced, top = [*replaced, "top"], None
    tried = {name: sql for name, sql in rules.items() if name not in replaced}
    extra = "_" * (1 + max(map(len, rules), default=0))  # a name that no rule has
    kept: list[list[npt.NDArray[np.uint8]]] = []
    with tempfile.TemporaryDirectory(prefix="pairmill-sweep-") as temporary:
        aside = LocalStore(Path(temporary))
        for threshold in thresholds:
            changes = {"rules": {**tried, extra: f'"{column}" >= {float(threshold)!r}'}, "top": top}
            tested = recipe.model_copy(update={"select": recipe.select.model_copy(update=changes)})
            # Entries and clusters are the same for all of them: what the first leaves aside serves the others.
            folder = StageFolder(aside, "select", "sweep")
            scratch = aside.scratch()
            deciding = Deciding(store, tested, folders, [whole], folder, scratch)
            deciding.plan()
            kept.append([np.packbits(deciding.decide(dict(unit))[0]["kept"].to_numpy()) for unit in whole.units])
            shutil.rmtree(scratch)
    both = [
        [sum(int(np.bitwise_count(a & b).sum()) for a, b in zip(one, other, strict=True)) for other in kept]
        for one in kept
    ]
    rows = sum(int(str(unit["rows"])) for unit in whole.units)
    return Sweep(column, list(thresholds), rows, np.array(both, np.int64), replaced)
