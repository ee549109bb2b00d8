"""One decision a row: which rules it passes, whether it is kept, and what dropped it."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from schemas.tables import DECISIONS

DUPLICATE, CONTAMINATED, NOT_EMBEDDED = "duplicate", "contaminated", "not_embedded"
UIDS, WORDS, IMAGE_BASED, TOP, BALANCE = "uids", "listed_words", "image_based", "top", "balance"
RESERVED = ("retracted", DUPLICATE, CONTAMINATED, NOT_EMBEDDED, UIDS, WORDS, IMAGE_BASED, TOP, BALANCE)
"""What drops a row without being a rule of the recipe: no rule may have such a name."""


def decisions(
    uids: pa.ChunkedArray, dropped: Sequence[tuple[str, pa.Array]], passes: pa.Table, weights: pa.Array | None = None
) -> pa.Table:
    """The table `decisions` of some rows, in their order.

    `dropped`: (reason, boolean mask without nulls) in the order in which they take a row. `passes`: a boolean column a
    rule, in the rules' order, which take what is left. `weights`: float32, those of dropped rows count for nothing; 1
    for all where None.
    """
    rows = len(uids)
    takers = [(reason, mask.to_numpy(zero_copy_only=False)) for reason, mask in dropped]
    takers += [(name, ~passes[name].to_numpy()) for name in passes.column_names]
    which = np.full(rows, len(takers), np.int32)
    for place in reversed(range(len(takers))):
        which[takers[place][1]] = place
    kept = which == len(takers)
    if weights is None:
        weight = pa.array(np.ones(rows, np.float32))
    else:
        weight = pa.array(weights.to_numpy(zero_copy_only=False), pa.float32(), mask=~kept)
    names = pa.array([*(reason for reason, _ in takers), None], pa.string())
    fields = [*DECISIONS, *(pa.field(f"pass_{name}", pa.bool_()) for name in passes.column_names)]
    columns = [uids, pa.array(kept), names.take(pa.array(which)), weight]
    return pa.table([*columns, *passes.columns], schema=pa.schema(fields, DECISIONS.metadata))


def counts_of(table: pa.Table) -> dict[str, dict[str, int]]:
    """A unit record's counts of its decisions."""
    found = {entry["values"]: entry["counts"] for entry in table["dropped_by"].value_counts().to_pylist()}
    kept = found.pop(None, 0)
    counts = {"ok": {"": kept}} if kept else {}
    return counts | ({"rejected": dict(sorted(found.items()))} if found else {})
