"""What the towers gave as rows of the table `embeddings`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.tables import EMBEDDINGS

Floats = NDArray[np.float32]
Failures = Mapping[int, tuple[str, str]]
"""row → (reason, detail)"""


def embeddings(uids: pa.ChunkedArray, encoder: str, image: Floats, text: Floats, failed: Failures) -> pa.Table:
    """Rows with the vectors [rows, dim] at unit length; `failed` rows' own are not looked at.

    A vector that is not finite or is zero has no direction: its row fails as internal.
    """
    units, found = {}, dict(failed)
    for side, values in (("image", image), ("text", text)):
        units[side], lengths = unit_length(values)
        for row in np.flatnonzero(lengths == 0).tolist():
            finite = np.isfinite(values[row]).all()
            found.setdefault(row, ("internal", f"the {side} vector is {'zero' if finite else 'not finite'}"))
        if side == "image":
            norms = lengths
    bad = np.zeros(len(uids), np.bool_)
    bad[list(found)] = True
    none = pa.array(bad)
    reasons, details = (
        pa.array([found[row][part] if row in found else None for row in range(len(uids))], pa.string())
        for part in (0, 1)
    )
    cosine = np.einsum("ij,ij->i", units["image"], units["text"])
    columns: dict[str, Any] = {
        "uid": uids,
        "encoder": pa.repeat(pa.scalar(encoder), len(uids)),
        "status": pa.array(np.where(bad, "failed", "ok"), pa.string()),
        "reason": reasons,
        "detail": details,
        "clip_score": pa.array(cosine, pa.float32(), mask=bad),
        "image_norm": pa.array(norms, pa.float32(), mask=bad),
        "image_embedding": _listed(units["image"], none, bad),
        "text_embedding": _listed(units["text"], none, bad),
    }
    return pa.table({name: columns[name] for name in EMBEDDINGS.names}, schema=EMBEDDINGS)


def without_vectors(uids: pa.ChunkedArray, encoder: str, reason: str, detail: str) -> pa.Table:
    """Rows that all failed for one reason."""
    none = np.zeros((len(uids), 1), np.float32)
    return embeddings(uids, encoder, none, none, dict.fromkeys(range(len(uids)), (reason, detail)))


def unit_length(values: Floats) -> tuple[Floats, Floats]:
    """Vectors [n, dim] at unit length, and their lengths; both 0 where a vector has no direction."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    lengths = np.where(np.isfinite(lengths), lengths, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.where(lengths[:, None] > 0, values / lengths[:, None], 0)
    return units.astype(np.float32), lengths.astype(np.float32)


def _listed(values: Floats, none: pa.Array, bad: NDArray[np.bool_]) -> pa.Array:
    offsets = np.concatenate(([0], np.cumsum(~bad))) * values.shape[1]
    flat = pa.array(np.ascontiguousarray(values[~bad]).reshape(-1), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=none)
