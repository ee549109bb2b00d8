"""What is in a column of the published tables: quantiles and a histogram, or its most frequent values."""

import difflib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.storage import Store
from pipeline.tables import SOURCES_OF, open_table, read_published

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BINS = 20
TOP = 20
SEARCHED = ("outcomes", "pairs", "rejects", "consent")
"""Tables in the order in which a bare column name is looked up."""


@dataclass(frozen=True)
class Column:
    """`quantiles` and `histogram` ((low, high, rows), equal widths) of numbers; `top` ((value, rows)) of the rest."""

    table: str
    name: str
    type: str
    rows: int
    nulls: int
    distinct: int
    quantiles: dict[str, Any] = field(default_factory=dict)
    histogram: list[tuple[float, float, int]] = field(default_factory=list)
    top: list[tuple[str, int]] = field(default_factory=list)


def read_column(store: Store, wanted: str) -> Column:
    """Describe `column` or `table.column`. `distinct` is approximate (HyperLogLog, a few per cent).

    Raises InputError for a column no table has, naming the nearest, and where nothing is published yet.
    """
    import duckdb

    datasets = {}
    for table in SEARCHED:
        if published := read_published(store, table):
            datasets[table] = open_table(store, [file.path for file in published.files], table)
    if not datasets:
        raise InputError(f"{store.uri}: no tables are published yet; they are at the end of a build")
    known = {table: dataset.schema.names for table, dataset in datasets.items()}
    table, name = _find(known, wanted)
    kind = datasets[table].schema.field(name).type
    column = '"' + name.replace('"', '""') + '"'
    with duckdb.connect(config={"enable_external_access": "false"}) as engine:
        engine.register("rows", datasets[table])
        counts = engine.execute(
            f"SELECT count(*), count(*) - count({column}), approx_count_distinct({column}) FROM rows"
        ).fetchone()
        assert counts is not None
        rows, nulls, distinct = (int(value) for value in counts)
        about = Column(table, name, str(kind), rows, nulls, distinct)
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if numeric:
            _numbers(engine, column, about)
        if distinct <= TOP or not numeric:
            top = (
                f"SELECT {column}::VARCHAR, count(*) FROM rows WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
            )
            about.top.extend(engine.execute(f"{top} LIMIT {TOP}").fetchall())
    return about


def _find(known: dict[str, list[str]], wanted: str) -> tuple[str, str]:
    for table, names in known.items():
        if wanted in names:
            return table, wanted
        if wanted.startswith(f"{table}.") and wanted.removeprefix(f"{table}.") in names:
            return table, wanted.removeprefix(f"{table}.")
    every = sorted({name for names in known.values() for name in names})
    near = difflib.get_close_matches(wanted.rpartition(".")[2], every, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(every)}"
    raise InputError(f"--column {wanted}: no table of {', '.join(SOURCES_OF)} has it; {hint}")


def _numbers(engine: Any, column: str, about: Column) -> None:
    finite = f"(SELECT {column}::DOUBLE AS x FROM rows WHERE isfinite({column}::DOUBLE))"
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
