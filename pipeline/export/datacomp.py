"""A DataComp subset file: uids of the kept rows, as its resharder and baselines read them."""

import re

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.export.files import written
from pipeline.export.kept import kept_rows
from pipeline.storage import Store

GIVEN = "src_uid"
"""The uid that DataComp's metadata gave a row."""
DTYPE = np.dtype("u8,u8")
"""The two halves of a uid of 32 hex digits (mlfoundations/datacomp, resharder.py and baselines/apply_filter.py)."""
_UID = re.compile(r"[0-9a-f]{32}")


def write_datacomp_subset(store: Store, out: str) -> tuple[int, str]:
    """Write the sorted uids; returns how many, and of which column: src_uid where every kept row has one, else uid.

    Raises InputError where the file cannot be written, or nothing was published yet.
    """
    if not out.endswith(".npy"):
        raise InputError(f"--datacomp-subset {out}: DataComp's tools read .npy files; give a name that ends so")
    with kept_rows(store) as rows:
        column = GIVEN if GIVEN in rows.columns else "uid"
        if column == GIVEN:
            odd = f"SELECT uid FROM outcomes WHERE NOT coalesce(regexp_full_match({GIVEN}, '{_UID.pattern}'), false)"
            column = "uid" if any(batch.num_rows for batch in rows.batches(f"{odd} LIMIT 1")) else GIVEN
        parts = [as_pairs(batch[0].to_pylist()) for batch in rows.batches(f"SELECT {column} FROM outcomes")]
    uids = np.unique(np.concatenate([np.empty(0, DTYPE), *parts]))
    with written(out) as local:
        np.save(local, uids)
    return len(uids), column


def as_pairs(uids: list[str]) -> npt.NDArray[np.void]:
    """uids of 32 hex digits as pairs of 64-bit numbers."""
    words = np.frombuffer(bytes.fromhex("".join(uids)), ">u8").reshape(-1, 2)
    found = np.empty(len(words), DTYPE)
    found["f0"], found["f1"] = words[:, 0], words[:, 1]
    return found
