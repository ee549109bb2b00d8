"""One shard measured: its Parquet rows, in order, each with how it ended and where in the tar its image lies."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.adopt.dataset import Shard
from pipeline.adopt.reasons import SUCCESS, reason_of
from pipeline.adopt.tar import Image, Images, read_images
from pipeline.errors import InputError
from pipeline.images.sniff import ALLOWED
from pipeline.ingest.parquet import open_parquet
from pipeline.storage import Store, holder
from schemas.statuses import STATUS_OF
from schemas.tables import OUTCOMES

COLUMNS = (
    "status", "reason", "detail", "http_status", "sha256", "md5", "original_width", "original_height", "width",
    "height", "exif", "pool_file", "pool_offset", "pool_size", "pool_sha256",
)  # fmt: skip
MEASURED = pa.schema([pa.field(name, OUTCOMES.field(name).type) for name in COLUMNS])
"""What an outcome takes from the shard; its row number is the row's place in the table."""

_NUMBERS = ("original_width", "original_height", "width", "height")
_SAFE_EXIF = frozenset(
    {"Image Orientation", "Image Make", "Image Model", "Image ImageWidth", "Image ImageLength", "EXIF ExifImageWidth",
     "EXIF ExifImageLength"}
)  # fmt: skip
_HEX_DIGITS = {"sha256": 64, "md5": 32}
BUFFER = 4 << 20


@dataclass(frozen=True)
class Measured:
    rows: pa.Table
    used: int
    """Images a row points to."""
    orphans: int
    """Images no successful row names."""
    broken: str | None
    """Where the tar stops being one; rows beyond it end as truncated."""


def measure(store: Store, shard: Shard, exif: str) -> Measured:
    """Read the shard's tar once and judge its rows; `exif` is download.exif (none, safe, all).

    Raises InputError where the Parquet file and the tar are not of one shard.
    """
    table = _read_rows(shard)
    # With re-encoding switched off, img2dataset looks at no pixel and knows no sides.
    known = "width" in table.column_names and not pc.any(_unsized(table)).as_py()
    images = _read_tar(shard, sized=not known)
    _check_stats(store, shard, table)
    keys = table["key"].to_pylist()
    if len(set(keys)) != len(keys):
        raise InputError(
            f"{shard.source.source}: a key is there twice, so its images cannot be told apart; get the shard again, "
            "or leave its files out"
        )
    rows = list(_rows(shard, table.to_pylist(), images, exif))
    named = {key for key, status in zip(keys, table["status"].to_pylist(), strict=True) if status == SUCCESS}
    orphans = len(images.of.keys() - named) + len(images.twice)
    used = sum(row["status"] == "ok" for row in rows)
    return Measured(pa.Table.from_pylist(rows, MEASURED), used, orphans, images.broken)


def _unsized(table: pa.Table) -> Any:
    return pc.and_(pc.equal(table["status"], SUCCESS), pc.is_null(table["width"]))


def _read_tar(shard: Shard, sized: bool) -> Images:
    store, path = holder(shard.tar)
    filesystem, root = store.arrow()
    with filesystem.open_input_stream(f"{root}/{path}", compression=None, buffer_size=BUFFER) as stream:
        return read_images(stream, sized)


def _read_rows(shard: Shard) -> pa.Table:
    file: pq.ParquetFile = open_parquet(shard.source.source)
    wanted = ["key", "status", "error_message", "exif", *_NUMBERS, *_HEX_DIGITS]
    try:
        return file.read(columns=[name for name in wanted if name in shard.columns], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        line = str(error).splitlines()[0][:200]
        raise InputError(
            f"{shard.source.source}: is not a whole Parquet file ({line}); get the shard again or leave its files out"
        ) from None


def _check_stats(store: Store, shard: Shard, table: pa.Table) -> None:
    """img2dataset's stats may count rows that it lost, never fewer than it wrote."""
    if shard.stats is None:
        return
    try:
        count = int(json.loads(store.read(shard.stats))["count"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{store.uri}/{shard.stats}: is no img2dataset statistics; get the shard again or leave its files out"
        ) from None
    if table.num_rows > count:
        raise InputError(
            f"{shard.source.source}: has {table.num_rows} rows, {shard.stats} says {count}; they are not of one shard: "
            "get it again, or leave its files out"
        )


def _rows(shard: Shard, rows: list[dict[str, Any]], images: Images, exif: str) -> Iterator[dict[str, Any]]:
    for row in rows:
        status, message = row["status"], row.get("error_message")
        reason, http_status = reason_of(status, message)
        values: dict[str, Any] = {name: _number(row.get(name)) for name in _NUMBERS}
        values |= {kind: _digest(row.get(kind), digits) for kind, digits in _HEX_DIGITS.items()}
        detail = None if reason is None else f"{status}: {message}" if message else str(status)
        if reason is None:
            image = images.of.get(row["key"])
            reason, detail = _judge(shard, row["key"], image, images.broken)
            if reason is None and image is not None:
                values |= {"pool_file": shard.tar, "pool_offset": image.offset, "pool_size": image.size,
                           "pool_sha256": image.sha256, "exif": kept_exif(row.get("exif"), exif)}  # fmt: skip
                if values["width"] is None:
                    values |= {"width": image.width, "height": image.height}
        yield {**values, "status": "ok" if reason is None else STATUS_OF[reason], "reason": reason, "detail": detail,
               "http_status": http_status}  # fmt: skip


def _judge(shard: Shard, key: str, image: Image | None, broken: str | None) -> tuple[str | None, str | None]:
    name = shard.tar.rpartition("/")[2]
    if image is None:
        return "truncated", f"success, but {name} " + (broken or f"has no image {key}")
    if image.kind is None:
        return "not_an_image", f"success, but the member {key} of {name} is no image"
    if image.kind not in ALLOWED:
        return "unsupported_format", image.kind
    return None, None


def _number(value: Any) -> int | None:
    return None if value is None or value != value else int(value)


def _digest(value: Any, digits: int) -> str | None:
    """A hash as lower-case hex; what is no such hash is none."""
    text = str(value or "").strip().lower()
    return text if len(text) == digits and not text.strip("0123456789abcdef") else None


def kept_exif(value: str | None, keep: str) -> str | None:
    """The EXIF that `keep` allows, of the JSON object that img2dataset wrote with exifread's names."""
    if not value or keep == "none":
        return None
    try:
        tags = json.loads(value)
    except ValueError:
        return None
    if not isinstance(tags, dict):
        return None
    kept = tags if keep == "all" else {name: tags[name] for name in tags if name in _SAFE_EXIF}
    return json.dumps(kept, ensure_ascii=False) if kept else None
