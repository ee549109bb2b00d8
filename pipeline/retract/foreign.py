"""Files under ROOT that are no part of it: pages that may show what was withdrawn, exports that may name it."""

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.retract.tombstone import FOLDER, Tombstones
from pipeline.storage import Store
from schemas.recipe import ORDER

PAGES = ("html", "htm", "pdf", "svg", "png", "jpg", "jpeg", "webp", "gif", "avif", "tar", "zip", "npy", "npz")
"""Endings of contact sheets, pages, copies of images, exported uids and vectors: nothing in them can be looked up."""

_FOLDERS = (*ORDER, "batches", "runs", "tables", "trained", FOLDER)
_OURS = (*(f"{name}/" for name in _FOLDERS), "run.json", "lease.json", "views.sql")
_HEX = re.compile(rb"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})(?![0-9a-f])")
_URL = re.compile(rb"https?://[^\s\"'<>\\,|]+", re.IGNORECASE)


def remove_foreign(store: Store, stones: Tombstones) -> tuple[list[str], list[str]]:
    """Remove pages, and whatever names something withdrawn; (removed, left alone), by path."""
    removed: list[str] = []
    left: list[str] = []
    for path, _ in list(store.files("")):
        if path.startswith(_OURS):
            continue
        if path.rpartition(".")[2].lower() in PAGES or _names_withdrawn(store, path, stones):
            store.delete(path)
            removed.append(path)
        else:
            left.append(path)
    return sorted(removed), sorted(left)


def _names_withdrawn(store: Store, path: str, stones: Tombstones) -> bool:
    return any(_known(stones, text) for text in _texts(store.read(path)))


def _texts(data: bytes) -> Iterator[bytes]:
    """The file as it is and, of Parquet, its decoded columns of text."""
    yield data
    if data.startswith(b"PAR1"):
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError):
            return
        for column in table.columns:
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                yield "\n".join(value or "" for value in column.to_pylist()).encode()


def _known(stones: Tombstones, text: bytes) -> bool:
    for found in _HEX.finditer(text):
        digits = found[0].decode()
        if any(stones.has(kind, digits) for kind in ("uid", "sha256", "sha1", "md5", "url_md5")):
            return True
    return any(stones.url(found[0].decode("utf-8", "replace")) for found in _URL.finditer(text))
