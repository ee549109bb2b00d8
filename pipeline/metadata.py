"""A row's metadata as rules see it: the columns of all tables that a download unit's rows are in, joined by uid.

| columns | of |
| --- | --- |
| all of `outcomes`, with the kept input columns as `src_<name>` | the fetch and the image |
| `text_repaired`, `fetch_url`, `n_chars`, `n_words`, `lang`, `lang_score` | `pairs` |
| `pdq`, `pdq_quality` | `hashes`; null where dedupe made none |
| `clip_score` (of the first encoder by name), `clip_score_<encoder>`, a column a head | `scores`; null without one |
| `pixels` | original_width x original_height |
| `text_count` (select.rules alone) | ok rows of the pool, of this round and earlier ones, with the same text |
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.root import adopted_scores, read_batches
from pipeline.rounds import open_table, table_path, taken_rows
from pipeline.runner import Unit
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.tables import HASHES, OUTCOMES, PAIRS, SCORES

PIXELS = pa.field("pixels", pa.int64())
COSINE = "clip_score_"
"""And an encoder's name: its cosine, where a row may have several."""
TEXT_COUNT = pa.field("text_count", pa.int64())
"""Set-level: who reads a unit adds it."""

_JOINED: dict[str, tuple[str, tuple[pa.Field, ...]]] = {
    "pairs": ("ingest", tuple(field for field in PAIRS if field.name not in OUTCOMES.names)),
    "hashes": ("hashes", (HASHES.field("pdq"), HASHES.field("pdq_quality"))),
    "scores": ("embed", (SCORES.field("clip_score"),)),
}
"""table → the stage whose units hold it, and its columns that are not of outcomes"""


def schema_of(kept: Iterable[str], heads: Iterable[str] = ()) -> pa.Schema:
    """The columns rules may name; `kept` are input columns, `heads` columns of scores."""
    joined = [field for _, fields in _JOINED.values() for field in fields]
    return pa.schema([
        *(field.remove_metadata() for field in [*OUTCOMES, *joined]), PIXELS,
        *(pa.field(f"src_{name}", pa.string()) for name in kept), *(pa.field(name, pa.float32()) for name in heads),
    ])  # fmt: skip


def rule_schema(store: Store) -> pa.Schema:
    """The columns that rules may name in this ROOT: kept input columns and scores are those of all its batches."""
    batches = read_batches(store).values()
    kept = {name: None for batch in batches for name in batch.kept}
    scores = {name: None for batch in batches if batch.adopted for name in batch.adopted.scores}
    return schema_of(kept, scores)


class Metadata:
    """Reads the rows that a descriptor of a `dedupe` or `select` unit means. Safe to use from several threads.

    `folders` are those of the run, by stage; one that was never begun leaves its columns null. Memory: one unit's rows.
    """

    def __init__(self, folders: Mapping[str, StageFolder]) -> None:
        self._folders = {"embed": adopted_scores(folders["download"].store), **folders}
        stages = {"download", *(stage for stage, _ in _JOINED.values())} & self._folders.keys()
        self._current = {stage: self._folders[stage].generations() for stage in stages}

    def read(self, unit: Unit, columns: Collection[str]) -> pa.Table:
        """`uid` and the wanted columns of the unit's rows, in the order of its outcomes.

        Rows that are no longer ok (a retraction) are left out.
        """
        wanted = set(columns) | {"uid"}
        if "pixels" in wanted:
            wanted |= {"original_width", "original_height"}
        rows = self._outcomes(unit, wanted)
        for table, (stage, fields) in _JOINED.items():
            named = [field for field in fields if field.name in wanted]
            others = {*rows.column_names, "pixels", *(field.name for field in fields)}
            heads = wanted - others if table == "scores" else set()
            if named or heads:
                rows = self._join(rows, stage, table, unit["reads"], named, heads)
        if "pixels" in wanted:
            sides = [rows[name].cast(pa.int64()) for name in ("original_width", "original_height")]
            rows = rows.append_column(PIXELS, pc.multiply(*sides))
        return rows.select(["uid", *(name for name in columns if name != "uid")])

    def _outcomes(self, unit: Unit, wanted: set[str]) -> pa.Table:
        download = self._folders["download"]
        record = download.record(unit["reads"], self._current["download"][unit["reads"]])
        file = open_table(download, table_path(download, record, "outcomes"))
        there = set(file.schema_arrow.names)
        mine = [name for name in wanted if name in OUTCOMES.names or name.startswith("src_")]
        names = sorted({"status", "generation", *(name for name in mine if name in there)})
        table = file.read(columns=names)
        table = table.filter(taken_rows(table, unit))
        for name in mine:
            if name not in there:
                table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
        return table

    def _join(
        self, rows: pa.Table, stage: str, table: str, unit: str, fields: Collection[pa.Field], more: Collection[str]
    ) -> pa.Table:
        """Add a table's columns, null where it has no such row; of `more` those it has as numbers."""
        read: dict[str, Any] = {}
        if (generation := self._current.get(stage, {}).get(unit)) is not None:
            folder = self._folders[stage]
            file = open_table(folder, table_path(folder, folder.record(unit, generation), table))
            there = file.schema_arrow.names
            names = [name for name in [*(field.name for field in fields), *more] if name in there]
            cosines = [name for name in more if name.startswith(COSINE)]
            found = file.read(
                columns=list(dict.fromkeys(["uid", *names, *(["encoder", "clip_score"] if cosines else [])]))
            )
            places = pc.index_in(rows["uid"], found["uid"].combine_chunks())
            read = {name: found[name].take(places) for name in names}
            for name in cosines:
                own = found.filter(pc.equal(found["encoder"], name.removeprefix(COSINE)))
                read[name] = own["clip_score"].take(pc.index_in(rows["uid"], own["uid"].combine_chunks()))
        for field in [*fields, *(pa.field(name, pa.float32()) for name in sorted(more))]:
            rows = rows.append_column(field.name, read.get(field.name, pa.nulls(rows.num_rows, field.type)))
        return rows
