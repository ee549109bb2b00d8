"""A row's metadata as rules see it: the columns of all tables that a download unit's rows are in, joined by uid.

| columns | of |
| --- | --- |
| all of `outcomes`, with the kept input columns as `src_<name>` | the fetch and the image |
| `text_repaired`, `fetch_url`, `n_chars`, `n_words`, `lang`, `lang_score` | `pairs` |
| `pdq`, `pdq_quality` | `hashes`; null where dedupe made none |
| `clip_score`, `clip_score_<encoder>`, a column a head | `scores`; null without one |
| `pixels` | original_width x original_height |
| `text_count` (select.rules alone) | ok rows of the pool, of this round and earlier ones, with the same text |

`clip_score` is that of the recipe's first encoder by name; where it has none, of the first that came with the download.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.root import adopted_scores, read_batches
from pipeline.rounds import open_table, table_path, taken_rows
from pipeline.runner import Unit
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Embed
from schemas.tables import HASHES, OUTCOMES, PAIRS, SCORES

PIXELS = pa.field("pixels", pa.int64())
COSINE = "clip_score_"
"""And an encoder's name: its cosine, where a row may have several."""
TEXT_COUNT = pa.field("text_count", pa.int64())
"""Set-level: who reads a unit adds it."""

_JOINED: dict[str, tuple[str, tuple[pa.Field, ...]]] = {
    "pairs": ("ingest", tuple(field for field in PAIRS if field.name not in OUTCOMES.names)),
    "hashes": ("hashes", (HASHES.field("pdq"), HASHES.field("pdq_quality"))),
}
"""table → the stage whose units hold it, and its columns that are not of outcomes"""
CLIP_SCORE = pa.field("clip_score", SCORES.field("clip_score").type)


def schema_of(kept: Iterable[str], heads: Iterable[str] = ()) -> pa.Schema:
    """The columns rules may name; `kept` are input columns, `heads` columns of scores."""
    joined = [field for _, fields in _JOINED.values() for field in fields]
    return pa.schema([
        *(field.remove_metadata() for field in [*OUTCOMES, *joined]), CLIP_SCORE, PIXELS,
        *(pa.field(f"src_{name}", pa.string()) for name in kept), *(pa.field(name, pa.float32()) for name in heads),
    ])  # fmt: skip


def rule_schema(store: Store, embed: Embed | None = None) -> pa.Schema:
    """The columns that rules may name in this ROOT: kept input columns and scores are those of all its batches.

    `embed`: the recipe's, where rows have been through it.
    """
    batches = read_batches(store).values()
    kept = {name: None for batch in batches for name in batch.kept}
    scores = {name: None for batch in batches if batch.adopted for name in batch.adopted.scores}
    return schema_of(kept, scores | dict.fromkeys(score_columns(embed) if embed else ()))


def score_columns(embed: Embed) -> list[str]:
    """Columns of scores that the recipe's encoders and heads make, `clip_score` aside. Raises InputError."""
    from pipeline.heads.recipe import head_columns  # only here is needed what it imports

    cosines = [f"{COSINE}{name}" for name in sorted(encoder.name for encoder in embed.encoders)]
    return [*cosines, *(head_columns(embed) if embed.heads else [])]


def before_scores(folders: Mapping[str, StageFolder]) -> dict[str, StageFolder]:
    """The folders without those of the recipe's scores, for what is decided before there are any: under other settings
    an earlier run may have made some, and results must not depend on that."""
    return {key: folder for key, folder in folders.items() if not key.startswith("scores/")}


class Metadata:
    """Reads the rows that a descriptor of a `dedupe` or `select` unit means. Safe to use from several threads.

    `folders` are those of the run, by stage; one that was never begun leaves its columns null. Memory: one unit's rows.
    """

    def __init__(self, folders: Mapping[str, StageFolder]) -> None:
        self._folders = {**folders, "adopted": adopted_scores(folders["download"].store)}
        # The recipe's own encoders first: what came with the download only fills in.
        self._scores = [*sorted(key for key in folders if key.startswith("scores/")), "adopted"]
        stages = {"download", *(stage for stage, _ in _JOINED.values()), *self._scores} & self._folders.keys()
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
            if named := [field for field in fields if field.name in wanted]:
                rows = self._join(rows, stage, table, unit["reads"], named)
        if scores := wanted - {*rows.column_names, "pixels"}:
            rows = self._join_scores(rows, unit["reads"], sorted(scores))
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

    def _open(self, key: str, unit: str, table: str) -> pq.ParquetFile | None:
        """A table of the unit in the folder of that key; None where the folder has no such unit."""
        if (generation := self._current.get(key, {}).get(unit)) is None:
            return None
        folder = self._folders[key]
        return open_table(folder, table_path(folder, folder.record(unit, generation), table))

    def _join(self, rows: pa.Table, stage: str, table: str, unit: str, fields: Collection[pa.Field]) -> pa.Table:
        """Add a table's columns, null where it has no such row."""
        file = self._open(stage, unit, table)
        found = file.read(columns=["uid", *(field.name for field in fields)]) if file else None
        places = pc.index_in(rows["uid"], found["uid"].combine_chunks()) if found else None
        for field in fields:
            rows = rows.append_column(
                field, found[field.name].take(places) if found else pa.nulls(rows.num_rows, field.type)
            )
        return rows

    def _join_scores(self, rows: pa.Table, unit: str, columns: Sequence[str]) -> pa.Table:
        """Add columns of scores, each from the first folder that knows it; null where it has no such row."""
        tables = []
        for key in self._scores:
            if (file := self._open(key, unit, "scores")) is not None:
                names = [name for name in columns if name in file.schema_arrow.names]
                tables.append(file.read(columns=list(dict.fromkeys(["uid", "encoder", "clip_score", *names]))))
        for name in columns:
            rows = rows.append_column(pa.field(name, pa.float32()), _score(name, rows["uid"], tables))
        return rows


def _score(name: str, uids: pa.ChunkedArray, tables: Iterable[pa.Table]) -> pa.ChunkedArray:
    for found in tables:
        own, column = found, name
        if name.startswith(COSINE):
            own, column = found.filter(pc.equal(found["encoder"], name.removeprefix(COSINE))), "clip_score"
        if own.num_rows and column in own.column_names:
            return own[column].cast(pa.float32()).take(pc.index_in(uids, own["uid"].combine_chunks()))
    return pa.nulls(len(uids), pa.float32())
