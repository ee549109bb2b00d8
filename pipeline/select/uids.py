"""`select.uids`: a file of the only uids kept, as sorted 16-byte keys."""

import io
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.storage import holder

Uids = npt.NDArray[np.bytes_]
"""S16, ascending: 16 bytes a uid."""

_UID = "^[0-9a-f]{32}$"


def read_uids(path: str) -> Uids:
    """Read DataComp's .npy (pairs of u8: the upper and lower 64 bits), .parquet with `uid`, or text with one a line.

    Raises InputError for a file that cannot be read or holds something else.
    """
    place = f"recipe select.uids: {path}"
    try:
        data = read_named(path)
        if path.endswith(".npy"):
            return _of_pairs(np.load(io.BytesIO(data), allow_pickle=False), place)
        if path.endswith(".parquet"):
            column = pq.read_table(io.BytesIO(data), columns=["uid"])["uid"].cast(pa.string())
            return _of_hex(column.combine_chunks(), place, "row")
        lines = [line.strip().lower() for line in data.decode().splitlines()]
        return _of_hex(pa.array([line or None for line in lines], pa.string()), place, "line")
    except (OSError, EOFError, ValueError, pa.ArrowException, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: cannot be read: {' '.join(str(error).split())[:200]}") from None


def read_named(path: str) -> bytes:
    """A file that a recipe names, local or s3://."""
    if "://" not in path:
        return Path(path).read_bytes()
    store, name = holder(path)
    return store.read(name)


def _of_pairs(pairs: npt.NDArray[np.void], place: str) -> Uids:
    if pairs.dtype.names is None or [pairs.dtype[name].kind for name in pairs.dtype.names] != ["u", "u"]:
        raise InputError(f"{place}: has the type {pairs.dtype}; DataComp's uids are pairs of u8")
    halves = np.stack([pairs[name] for name in pairs.dtype.names], axis=1).astype(">u8")
    return np.unique(np.frombuffer(np.ascontiguousarray(halves).tobytes(), "S16"))


def _of_hex(uids: pa.Array, place: str, what: str) -> Uids:
    given = uids.drop_null()
    wrong = pc.invert(pc.match_substring_regex(given, _UID))
    if pc.any(wrong).as_py():
        value = given.filter(wrong)[0].as_py()
        number = pc.index(uids, value).as_py()
        raise InputError(f"{place}: {what} {number + 1} is {value[:60]!r}, no uid of 32 hex digits")
    return np.unique(keys_of(given))


def keys_of(uids: pa.Array | pa.ChunkedArray) -> Uids:
    """Uids of 32 hex digits as keys, in their order; anything else, null too, is a key of zeros."""
    valid = re.compile(_UID).match
    texts = [uid if uid and valid(uid) else "0" * 32 for uid in uids.to_pylist()]
    return np.frombuffer(bytes.fromhex("".join(texts)), "S16")


def among(uids: pa.ChunkedArray, listed: Uids) -> npt.NDArray[np.bool_]:
    """Which of the uids are listed."""
    if not len(listed):
        return np.zeros(len(uids), np.bool_)
    keys = keys_of(uids)
    at = np.minimum(np.searchsorted(listed, keys), len(listed) - 1)
    return np.asarray(listed[at] == keys)
