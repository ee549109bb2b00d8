"""The images of sampled rows: one range read each out of the pool's tars, checked before they are shown."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from pipeline.images.errors import ImageError
from pipeline.images.process import ImageProcessor
from pipeline.images.sniff import ALLOWED, sniff
from pipeline.look.rows import Row
from pipeline.storage import Store, locate
from schemas.recipe import Download

LARGE_BYTES = 150_000
"""Larger images (kept originals) go into a page as thumbnails."""
SIDE = 512
"""Longest side of a thumbnail in pixels."""


@dataclass(frozen=True)
class Picture:
    """`data` is an image of `kind` (jpeg, png, webp, gif, avif); without it, `reason` says why there is none."""

    data: bytes = b""
    kind: str = ""
    reason: str = ""


def read_pictures(store: Store, rows: Sequence[Row], redraw: bool = False) -> list[Picture]:
    """The picture of each row, in order. Rows that share a pool image read it once.

    With `redraw` every image is decoded, behind the gates of `download`, and given as a JPEG of at most SIDE pixels.
    """
    processor = ImageProcessor(
        Download(image_size=SIDE, resize_mode="keep_ratio_largest", resize_only_if_bigger=True, encode_quality=85)
    )
    places = {place: row for row in rows if (place := _place(row))}
    with ThreadPoolExecutor(max(4, store.parallel_reads)) as pool:
        read = partial(_read, store, processor, redraw)
        found = dict(zip(places, pool.map(read, places.values()), strict=True))
    return [found[place] if (place := _place(row)) else Picture(reason=_without(row)) for row in rows]


def _place(row: Row) -> tuple[str, int] | None:
    return (row["pool_file"], row["pool_offset"]) if row.get("pool_file") else None


def _without(row: Row) -> str:
    """Why a row has no image."""
    if row["status"] == "rejected" and row.get("reason") == "duplicate":
        return "a duplicate: never fetched"
    return " ".join(str(row[name]) for name in ("status", "reason", "detail") if row.get(name) is not None)


def _read(store: Store, processor: ImageProcessor, redraw: bool, row: Row) -> Picture:
    holder, path = locate(store, row["pool_file"])
    try:
        data = holder.read_range(path, row["pool_offset"], row["pool_size"])
    except FileNotFoundError:
        return Picture(reason=f"{row['pool_file']} is gone")
    if hashlib.sha256(data).hexdigest() != row.get("pool_sha256"):
        return Picture(reason="its bytes do not have the recorded sha256")
    kind = sniff(data)
    if kind not in ALLOWED:
        return Picture(reason=f"not shown: {kind or 'no image'}")
    if not redraw and len(data) <= LARGE_BYTES:
        return Picture(data, kind)
    try:
        return Picture(processor(data).data, "jpeg")
    except ImageError as error:
        return Picture(reason=f"cannot be decoded: {error.reason}")
