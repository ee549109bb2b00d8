"""`select.weight`: a SQL number over a row's metadata, for training that draws rows by weight."""

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.rules import Rules, flaw

PLACE = "recipe select.weight"


class Weight:
    """One object serves one thread. Raises InputError for an expression that is no number over a row."""

    def __init__(self, expression: str, schema: pa.Schema) -> None:
        self._expression = expression
        self._engine = duckdb.connect(config={"threads": 1, "enable_external_access": "false"})
        self._engine.execute("SET python_enable_replacements = false")
        self._engine.execute("SET lock_configuration = true")
        self._engine.register("rows_", schema.empty_table())
        # A condition that holds the expression is refused for what no row can answer: aggregates, windows, subqueries.
        condition = f"(\n{expression}\n) IS NOT NULL"
        if problem := flaw(self._engine, condition, "rows_", schema.names):
            raise InputError(f"{PLACE}: {expression!r} {problem.replace('SQL condition', 'SQL number')}")
        kind = str(self._engine.execute(f"SELECT TRY((\n{expression}\n)) FROM rows_").description[0][1])
        if not kind.startswith(("DECIMAL", *_NUMBERS)):
            raise InputError(f"{PLACE}: {expression!r} gives {kind}, not a number")
        self.columns = Rules({"weight": condition}, schema, "select.weight").columns
        """Columns that the expression names."""
        self._engine.unregister("rows_")

    def of(self, rows: pa.Table) -> pa.Array:
        """float32 [n]: 0 where the number is null, negative, not finite or an error, as nothing speaks for the row."""
        if not rows.num_rows:
            return pa.array([], pa.float32())
        self._engine.register("rows_", rows.select(self.columns) if self.columns else rows.select(["uid"]))
        try:
            query = f"SELECT CAST(TRY((\n{self._expression}\n)) AS DOUBLE) AS weight FROM rows_"
            found = self._engine.sql(query).to_arrow_table()["weight"].to_numpy()
        finally:
            self._engine.unregister("rows_")
        with np.errstate(over="ignore", invalid="ignore"):
            weights = np.asarray(found, np.float64).astype(np.float32)
        return pa.array(np.where(np.isfinite(weights) & (weights > 0), weights, np.float32(0)))


_NUMBERS = (
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT",
    "FLOAT", "DOUBLE", "NUMBER",
)  # fmt: skip
