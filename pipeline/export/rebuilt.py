"""What became of an index's rows when they were built again with `download.verify_hash`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from pipeline.funnel import FunnelRow, sum_rows
from schemas.records import Batch


class Rebuilt(TypedDict):
    rows: int
    same: int
    changed: int
    """Another image, or other bytes, are there now."""
    lost: int


def rebuilt(recipe: Mapping[str, Any], batches: Iterable[Batch], funnel: Sequence[FunnelRow]) -> Rebuilt | None:
    """Of the batches with the recorded recipe's verify_hash column; None where none is, or none was downloaded."""
    column = (recipe.get("download", {}).get("verify_hash") or (None,))[0]
    found: Rebuilt = {"rows": 0, "same": 0, "changed": 0, "lost": 0}
    for batch in batches:
        judged = sum_rows(funnel, stage="download", batch=batch.batch)
        if column not in batch.kept or batch.adopted or not judged:
            continue
        same = sum_rows(funnel, stage="download", batch=batch.batch, status="ok")
        changed = sum_rows(funnel, stage="download", batch=batch.batch, reason="hash_mismatch")
        found["rows"] += batch.rows
        found["same"] += same
        found["changed"] += changed
        found["lost"] += batch.rows - same - changed
    return found if found["rows"] else None


def told(found: Rebuilt) -> str:
    """One line."""
    shares = {name: f"{found[name]:,} ({found[name] / found['rows']:.1%})" for name in ("same", "changed", "lost")}
    return (
        f"rebuilt from hashes: of {found['rows']:,} rows {shares['same']} are as they were, "
        f"{shares['changed']} have changed, {shares['lost']} are lost"
    )
