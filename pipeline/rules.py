"""Named SQL predicates over a row's metadata (`dedupe.eligible`, `select.rules`), without access to anything else.

A predicate that is false, null or an error for a row fails it.
"""

import re
from collections.abc import Iterable, Mapping

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import InputError

_NAME = re.compile(r"\w+")


class Rules:
    """Predicates over rows with the columns of `schema`; each column's type is that of the schema.

    One object serves one thread. `place` is the recipe key that names the rules in errors. Raises InputError for a
    predicate that is no boolean expression over a row: unknown columns, aggregates, windows, subqueries and random
    functions.
    """

    def __init__(self, rules: Mapping[str, str], schema: pa.Schema, place: str) -> None:
        self._rules = dict(rules)
        self._schema = schema
        self._engine = duckdb.connect(config={"threads": 1, "enable_external_access": "false"})
        self._engine.execute("SET python_enable_replacements = false")
        self._engine.execute("SET lock_configuration = true")
        self._engine.register("rows_", schema.empty_table())
        seen: set[str] = set()
        for name, predicate in self._rules.items():
            if not _NAME.fullmatch(name) or name.lower() in seen:
                raise InputError(f"recipe {place}: {name!r} is no name of its own of letters, digits and underscores")
            seen.add(name.lower())
            if problem := flaw(self._engine, predicate, "rows_", schema.names):
                raise InputError(f"recipe {place}.{name}: {predicate!r} {problem}")
        self.columns = [name for name in schema.names if self._rules and self._needs(name)]
        """Columns that some predicate names."""
        self._engine.unregister("rows_")

    def _needs(self, column: str) -> bool:
        """Whether some predicate cannot be bound without the column."""
        others = ", ".join(_quote(name) for name in self._schema.names if name != column)
        try:
            self._engine.execute(f"SELECT {self._verdicts()} FROM (SELECT {others} FROM rows_)")
        except duckdb.Error:
            return True
        return False

    def _verdicts(self) -> str:
        return ", ".join(
            f"(TRY((\n{predicate}\n))) IS TRUE AS {_quote(name)}" for name, predicate in self._rules.items()
        )

    def judge(self, rows: pa.Table) -> pa.Table:
        """A boolean column for each rule, under its name, without nulls; `rows` has the columns that rules name."""
        if not self._rules or not rows.num_rows:
            schema = pa.schema([pa.field(name, pa.bool_()) for name in self._rules])
            return schema.empty_table() if self._rules else pa.table({})
        # Rules without a column still need rows to be evaluated on.
        named = rows.select(self.columns) if self.columns else rows.select(rows.column_names[:1])
        self._engine.register("rows_", named)
        try:
            # DuckDB keeps the order of what it reads (preserve_insertion_order, its default).
            return self._engine.sql(f"SELECT {self._verdicts()} FROM rows_").to_arrow_table()
        finally:
            self._engine.unregister("rows_")


def passed(rules: Rules, rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows pass every rule: [n]."""
    passes = np.ones(rows.num_rows, np.bool_)
    for verdicts in rules.judge(rows).columns:
        passes &= verdicts.to_numpy()
    return passes


def flaw(engine: duckdb.DuckDBPyConnection, predicate: str, table: str, columns: Iterable[str]) -> str | None:
    """What is wrong with a predicate over these columns of a table the engine knows (best an empty one), or None."""
    names = list(columns)
    try:
        engine.extract_statements(f"SELECT\n{predicate}\n")  # it stands without our parentheses
        # WHERE refuses windows and aggregates, TRY refuses subqueries and random functions.
        rows = f"(SELECT {', '.join(map(_quote, names))} FROM {table})"
        query = f"SELECT TRY((\n{predicate}\n)) FROM {rows} WHERE TRY((\n{predicate}\n))"
        kind = str(engine.execute(query).description[0][1])
    except duckdb.Error as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        return f"is no SQL condition on a row ({reason}); columns are {', '.join(names)}"
    if kind != "BOOLEAN":
        return f"gives {kind}, not true or false; compare it with something; columns are {', '.join(names)}"
    return None


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
