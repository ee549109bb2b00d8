"""Gates: conditions on the funnel of each batch. A failed gate stops nothing; it makes the run exit 3.

A gate is one SQL expression over `funnel(batch, stage, encoder, status, reason, rows)`, which holds one batch's rows,
e.g. `(SELECT sum(rows) FROM funnel WHERE reason = 'robots') < 1000`. It is evaluated as `SELECT (<expression>)`;
anything but true fails. A gate that names a stage the batch has not come to yet (as in `stage = 'download'`) is not
judged.
"""

import json
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.funnel import FunnelRow, sum_rows
from pipeline.root import read_runs
from pipeline.storage import Store
from schemas.recipe import ORDER, Recipe

if TYPE_CHECKING:
    import duckdb

MAX_INTERNAL = 0.001
"""Share of a batch's rows that may end `download`, or an encoder's `embed`, as our own fault (design, "Statuses")."""

FailedGate = dict[str, Any]
"""`batch`, `gate`, `sql`, `value`, `bound` (null unless the gate compares two values) and `detail`, for people."""

_STAGE = re.compile("'(" + "|".join(ORDER) + ")'")
_COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "!=",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}


def check_gates(recipe: Recipe) -> None:
    """Evaluate every gate on an empty funnel. Raises InputError for one that is no expression over it."""
    for name, sql in recipe.gates.items():
        with _engine([]) as engine:
            try:
                _parsed(engine, sql)
                kind = _evaluate(engine, f"typeof({sql}\n)")
                if kind not in ("BOOLEAN", '"NULL"'):
                    raise ValueError(f"{sql!r}: gives {str(kind).lower()}, not true or false")
            except ValueError as error:
                raise InputError(f"recipe gates.{name}: {error}") from None


def failed_gates(recipe: Recipe, funnel: Iterable[FunnelRow], accepted: Collection[str] = ()) -> list[FailedGate]:
    """The gates that fail, batch by batch, the batches in `accepted` left out."""
    rows = list(funnel)
    failed: list[FailedGate] = []
    for batch in sorted({row["batch"] for row in rows} - set(accepted) - {""}):
        own = [row for row in rows if row["batch"] == batch]
        failed += _built_in(recipe, batch, own)
        failed += _from_recipe(recipe, batch, own)
    return failed


def accepted_batches(store: Store) -> set[str]:
    """Batches whose failed gates somebody has accepted in any run."""
    return {batch for run in read_runs(store) for batch in run.accepts}


def _built_in(recipe: Recipe, batch: str, funnel: list[FunnelRow]) -> list[FailedGate]:
    rows = sum_rows(funnel, stage="download")
    if not rows:
        return []
    success = sum_rows(funnel, stage="download", status="ok") / rows
    failed = []
    if success < recipe.download.min_success:
        failed.append(_failed(batch, "min_success", "ok / rows", success, f">= {recipe.download.min_success}"))
    for stage, encoder in dict.fromkeys((row["stage"], row.get("encoder", "")) for row in funnel):
        if stage not in ("download", "embed"):
            continue
        of = [row for row in funnel if (row["stage"], row.get("encoder", "")) == (stage, encoder)]
        internal = sum_rows(of, status="failed", reason="internal") / max(1, sum_rows(of))
        if internal > MAX_INTERNAL:
            told = f"internal / rows of {stage} {encoder}".strip()
            failed.append(_failed(batch, "internal", told, internal, f"<= {MAX_INTERNAL}"))
    return failed


def _from_recipe(recipe: Recipe, batch: str, funnel: list[FunnelRow]) -> list[FailedGate]:
    failed = []
    come_to = {row["stage"] for row in funnel}
    for name, sql in recipe.gates.items():
        if set(_STAGE.findall(sql)) - come_to:
            continue
        with _engine(funnel) as engine:
            try:
                verdict = _evaluate(engine, sql)
                if verdict is not True:
                    failed.append(_failed(batch, name, sql, *_sides(engine, sql, verdict)))
            except ValueError as error:
                failed.append(_failed(batch, name, sql, str(error), None))
    return failed


def _failed(batch: str, gate: str, sql: str, value: object, bound: str | None) -> FailedGate:
    plain = value if isinstance(value, bool | int | float | str | None) else str(value)
    told = f"{plain} is not {bound}" if bound is not None else f"gives {'NULL' if plain is None else plain}"
    return {"batch": batch, "gate": gate, "sql": sql, "value": plain, "bound": bound, "detail": f"{sql}: {told}"}


def _engine(funnel: list[FunnelRow]) -> "duckdb.DuckDBPyConnection":
    """DuckDB that holds the funnel and can reach neither files nor the network."""
    import duckdb

    engine = duckdb.connect(config={"enable_external_access": "false", "threads": "1"})
    texts = ("batch", "stage", "encoder", "status", "reason")
    engine.execute(f"CREATE TABLE funnel ({', '.join(f'{name} VARCHAR' for name in texts)}, rows BIGINT)")
    if funnel:
        rows = [[*(row.get(name, "") for name in texts), row["rows"]] for row in funnel]
        engine.executemany("INSERT INTO funnel VALUES (?, ?, ?, ?, ?, ?)", rows)
    engine.execute("SET lock_configuration = true")
    return engine


def _evaluate(engine: "duckdb.DuckDBPyConnection", sql: str) -> object:
    import duckdb

    try:
        found = engine.execute(f"SELECT ({sql}\n)").fetchone()
    except duckdb.Error as error:
        raise ValueError(f"{sql!r}: {str(error).splitlines()[0]}") from None
    return found[0] if found else None


def _parsed(engine: "duckdb.DuckDBPyConnection", sql: str) -> dict[str, Any]:
    """The parsed expression. Raises ValueError where `SELECT (sql)` is not one statement with one value."""
    found = engine.execute("SELECT json_serialize_sql(?)", [f"SELECT ({sql}\n)"]).fetchone()
    tree: dict[str, Any] = json.loads(found[0]) if found else {"error": True}
    if tree["error"]:
        raise ValueError(f"{sql!r}: {tree.get('error_message', 'is no SQL')}")
    statements = tree["statements"]
    if len(statements) != 1 or len(statements[0]["node"].get("select_list", [])) != 1:
        raise ValueError(f"{sql!r}: give one expression, such as (SELECT sum(rows) FROM funnel) > 0")
    return tree


def _sides(engine: "duckdb.DuckDBPyConnection", sql: str, verdict: object) -> tuple[object, str | None]:
    """What a gate that compares two values measured, and the bound it missed; else its verdict alone."""
    tree = _parsed(engine, sql)
    node = tree["statements"][0]["node"]
    compared = node["select_list"][0]
    if compared["type"] not in _COMPARISONS:
        return verdict, None
    sides = []
    for side in ("left", "right"):
        node["select_list"] = [compared[side]]
        found = engine.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchone()
        value = engine.execute(found[0]).fetchone() if found else None
        sides.append(value[0] if value else None)
    return sides[0], f"{_COMPARISONS[compared['type']]} {sides[1]}"
