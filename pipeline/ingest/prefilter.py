"""ingest.prefilter: SQL predicates over a row's own columns, evaluated by DuckDB without access to anything else."""

import duckdb
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.rules import flaw
from schemas.tables import PAIRS

COLUMNS = pa.schema(
    [
        ("url", pa.large_string()),
        ("text", pa.large_string()),
        *(PAIRS.field(name).remove_metadata() for name in PAIRS.names[PAIRS.names.index("n_chars") :]),
    ]
)
"""What a predicate may name, beside src_<name> of kept columns."""


class Prefilter:
    """Rules in the recipe's order. A predicate that is false, null or an error for a row fails it.

    Raises InputError for a predicate that is no boolean expression over a row: unknown columns, aggregates, windows,
    subqueries and random functions.
    """

    def __init__(self, rules: dict[str, str], kept: list[str]) -> None:
        self._rules = rules
        self._connection = duckdb.connect(config={"threads": 1})
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET python_enable_replacements = false")
        self._connection.execute("SET lock_configuration = true")
        self._columns = pa.schema([*COLUMNS, *[pa.field(f"src_{name}", pa.large_string()) for name in kept]])
        empty = self._columns.empty_table()
        self._connection.register("rows_", empty)
        try:
            for name, predicate in rules.items():
                if problem := flaw(self._connection, predicate, "rows_", self._columns.names):
                    raise InputError(f"ingest.prefilter.{name}: {predicate!r} {problem}")
        finally:
            self._connection.unregister("rows_")

    def failing(self, rows: pa.Table) -> list[str | None]:
        """For each row the name of the first rule it fails, or None."""
        if not self._rules or not len(rows):
            return [None] * len(rows)
        cases = " ".join(
            f"WHEN (TRY((\n{predicate}\n))) IS NOT TRUE THEN {index}"
            for index, predicate in enumerate(self._rules.values())
        )
        numbered = rows.select(self._columns.names).append_column("row_", pa.array(range(len(rows)), pa.int64()))
        self._connection.register("rows_", numbered)
        try:
            found = self._connection.execute(f"SELECT CASE {cases} END AS rule FROM rows_ ORDER BY row_").fetchall()
        finally:
            self._connection.unregister("rows_")
        names = list(self._rules)
        return [None if rule is None else names[rule] for (rule,) in found]
