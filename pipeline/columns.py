"""What is in a column of the published tables: quantiles and a histogram, or its most frequent values."""

import difflib
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.metadata import COSINE
from pipeline.storage import Store
from pipeline.tables import SOURCES_OF, open_table, read_published

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BINS = 20
TOP = 20
SEARCHED = (
    "outcomes", "pairs", "rejects", "consent", "scores", "decisions", "hashes", "duplicates", "overlaps", "embeddings",
)  # fmt: skip
"""Tables in the order in which a bare column name is looked up."""


@dataclass(frozen=True)
class Column:
    """`quantiles` and `histogram` ((low, high, rows), equal widths) of numbers; `top` ((value, rows)) of the rest."""

    table: str
    name: str
    encoder: str | None
    """Whose rows these are, in tables that have some of several encoders."""
    type: str
    rows: int
    nulls: int
    distinct: int
    quantiles: dict[str, Any] = field(default_factory=dict)
    histogram: list[tuple[float, float, int]] = field(default_factory=list)
    top: list[tuple[str, int]] = field(default_factory=list)


def read_column(store: Store, wanted: str, encoder: str | None = None) -> list[Column]:
    """Describe `column`, `table.column` or `clip_score_<encoder>`: once, or once an encoder where the table has them.

    Of several encoders those are left out of which no row has a value. `distinct` is approximate (HyperLogLog, a few
    per cent). Raises InputError for a column no table has, naming the nearest, for an encoder that has no rows, and
    where nothing is published yet.
    """
    import duckdb

    datasets = {}
    for table in SEARCHED:
        if published := read_published(store, table):
            datasets[table] = open_table(store, [file.path for file in published.files], table)
    if not datasets:
        raise InputError(f"{store.uri}: no tables are published yet; they are at the end of a build")
    known = {
        table: [field.name for field in dataset.schema if not pa.types.is_list(field.type)]
        for table, dataset in datasets.items()
    }
    with duckdb.connect(config={"enable_external_access": "false"}) as engine:
        for name, dataset in datasets.items():
            engine.register(name, dataset)
        encoders = _encoders(engine, "scores") if "scores" in datasets else []
        alone = wanted.removeprefix("scores.").removeprefix(COSINE)
        if alone in encoders and alone != wanted.removeprefix("scores."):
            table, name, encoder = "scores", "clip_score", encoder or alone
        else:
            table, name = _find(known, wanted, [f"{COSINE}{one}" for one in encoders])
        kind = datasets[table].schema.field(name).type
        if "encoder" not in known[table] or name == "encoder":
            if encoder is not None:
                raise InputError(f"--encoder {encoder}: {table}.{name} is of no encoder; leave it out")
            return [_described(engine, f'FROM "{table}"', Column(table, name, None, str(kind), 0, 0, 0), kind)]
        there = encoders if table == "scores" else _encoders(engine, table)
        if encoder is not None and encoder not in there:
            told = ", ".join(there) or "none"
            raise InputError(f"--encoder {encoder}: {table} has no rows of it; there are {told}")
        found = []
        chosen: list[str | None] = [encoder] if encoder is not None else [*there] or [None]
        for one in chosen:
            rows = f'FROM "{table}"' + ("" if one is None else f" WHERE encoder = {_text(one)}")
            found.append(_described(engine, rows, Column(table, name, one, str(kind), 0, 0, 0), kind))
        return [about for about in found if about.nulls < about.rows] or found[:1]


def _encoders(engine: Any, table: str) -> list[str]:
    return [str(name) for (name,) in engine.execute(f"SELECT DISTINCT encoder FROM {table} ORDER BY 1").fetchall()]


def _described(engine: Any, rows: str, about: Column, kind: pa.DataType) -> Column:
    """The column `about` names, of the rows that a query such as FROM scores gives."""
    column = '"' + about.name.replace('"', '""') + '"'
    chosen = f"(SELECT {column} AS x {rows})"
    counts = engine.execute(f"SELECT count(*), count(*) - count(x), approx_count_distinct(x) FROM {chosen}").fetchone()
    about = replace(about, rows=counts[0], nulls=counts[1], distinct=min(counts[2], counts[0] - counts[1]))
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if numeric:
        _numbers(engine, chosen, about)
    if about.distinct <= TOP or not numeric:
        top = f"SELECT x::VARCHAR, count(*) FROM {chosen} WHERE x IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        about.top.extend(engine.execute(f"{top} LIMIT {TOP}").fetchall())
    return about


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _find(known: dict[str, list[str]], wanted: str, cosines: list[str]) -> tuple[str, str]:
    for table, names in known.items():
        if wanted in names:
            return table, wanted
        if wanted.startswith(f"{table}.") and wanted.removeprefix(f"{table}.") in names:
            return table, wanted.removeprefix(f"{table}.")
    every = sorted({*cosines, *(name for names in known.values() for name in names)})
    near = difflib.get_close_matches(wanted.rpartition(".")[2], every, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(every)}"
    raise InputError(f"--column {wanted}: no table of {', '.join(SOURCES_OF)} has it; {hint}")


def _numbers(engine: Any, chosen: str, about: Column) -> None:
    finite = f"(SELECT x::DOUBLE AS x FROM {chosen} WHERE isfinite(x::DOUBLE))"
    found = engine.execute(f"SELECT quantile_disc(x, {list(QUANTILES)}) FROM {finite}").fetchone()[0]
    if not found:
        return
    about.quantiles.update({f"{quantile:.0%}": value for quantile, value in zip(QUANTILES, found, strict=True)})
    low, high = found[0], found[-1]
    width = (high - low) / BINS or 1.0
    place = f"least(floor((x - {low!r}) / {width!r}), {BINS - 1})::INT"
    rows = dict(engine.execute(f"SELECT {place}, count(*) FROM {finite} GROUP BY 1").fetchall())
    bins = BINS if high > low else 1
    about.histogram.extend((low + width * bin_, low + width * (bin_ + 1), rows.get(bin_, 0)) for bin_ in range(bins))
