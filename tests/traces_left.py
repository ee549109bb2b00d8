"""Looks for what was withdrawn in every byte of a ROOT: raw files, members of tars, decoded columns of Parquet."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Store

FROM_OUTCOMES = ("uid", "url", "final_url", "sha256", "sha1", "md5", "url_md5", "pool_sha256")


def needles(
    store: Store, outcomes: Iterable[Mapping[str, Any]], hashes: Mapping[str, str] | None = None
) -> list[bytes]:
    """Everything that could tell of these rows: ids, URLs, texts, hashes of every kind, and pieces of their images.

    `hashes`: uid → PDQ.
    """
    found: set[bytes] = set()
    for row in outcomes:
        found |= {row[name].encode() for name in FROM_OUTCOMES if row[name]}
        if len(row["text"]) > 12:
            found.add(row["text"].encode())
        if row["pool_file"] and "://" not in row["pool_file"]:
            image = store.read_range(row["pool_file"], row["pool_offset"], row["pool_size"])
            # The end of a JPEG is its own: what comes before it may be tables that all encoders write.
            found |= {image[-48:], base64.b64encode(image[: 3 * (len(image) // 3)])[-64:]}
        if hashes and (pdq := hashes.get(row["uid"])):
            found.add(pdq.encode())
    return sorted(found)


def traces(store: Store, wanted: Iterable[bytes]) -> list[str]:
    """`path: what` for every place that still holds one of `wanted`."""
    wanted = list(wanted)
    return [f"{path}: {value!r}" for path, data in _everything(store) for value in wanted if value in data]


def _everything(store: Store) -> Iterator[tuple[str, bytes]]:
    for path, _ in list(store.files("")):
        data = store.read(path)
        yield path, data
        if path.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data))
            for name in table.column_names:
                yield f"{path} column {name}", b"\n".join(map(_bytes, table[name].to_pylist()))


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
