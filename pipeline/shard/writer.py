"""Writes a shard in img2dataset's contract, the same bytes for the same rows: tar, parquet or files, and stats.

As an index it is S.parquet and stats alone: S.parquet says where each image lies.
"""

import json
import tarfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.faults import fault_point
from pipeline.images.sniff import sniff
from pipeline.shard.plan import naming
from pipeline.shard.pool import PoolMismatchError, PoolReader
from pipeline.tar import BLOCK, TarMembers
from pipeline.units import Output
from schemas.recipe import Recipe
from schemas.tables import INDEX, SAMPLES

OURS = ("uid", "clip_score", "weight")
"""Columns of S.parquet that come after img2dataset's."""

RESERVED = frozenset({*INDEX.names, "jpg", "png", "webp"})
EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp", "gif": "gif", "avif": "avif"}

MEMBERS = TarMembers(0o444)

Sample = tuple[str, str, bytes, bytes, bytes]
"""key, extension of the image, image, JSON, caption."""


def write_shard(rows: pa.Table, shard: int, recipe: Recipe, pool: PoolReader, folder: Path, unit: str) -> list[Output]:
    """Write the shard's files into the local folder; they are listed in the order in which they are published.

    Raises PoolMismatchError where the pool does not hold what its outcomes say.
    """
    names = naming(recipe.shard)
    name = names.shard(shard)
    keys = [names.key(shard, place) for place in range(rows.num_rows)]
    indexed = recipe.shard.mode == "index"
    table = samples_table(rows, keys, INDEX if indexed else SAMPLES)
    parquet = folder / f"{name}.parquet"
    form = recipe.shard.output_format
    outputs: list[Output] = []
    if indexed:
        pq.write_table(table, parquet, compression="zstd")
    elif form == "parquet":
        _write_parquet(table, rows, recipe.download.encode_format, pool, parquet, unit)
    else:
        samples = _samples(table, rows, recipe, pool, unit)
        outputs += (write_tar if form == "webdataset" else write_files)(samples, folder, name, len(keys))
        pq.write_table(table, parquet, compression="zstd")
    stats = folder / f"{name}_stats.json"
    stats.write_text(json.dumps(stats_of(rows), indent=4))
    outputs.append(Output("samples", parquet, len(keys), f"dataset/{parquet.name}"))
    outputs.append(Output("stats", stats, len(keys), f"dataset/{stats.name}"))
    return outputs


def samples_table(rows: pa.Table, keys: list[str], schema: pa.Schema = SAMPLES) -> pa.Table:
    """S.parquet: kept input columns under their own names, img2dataset's columns in its order, then ours.

    `schema` is SAMPLES or INDEX.
    """
    count = rows.num_rows
    # img2dataset writes {} for an image without EXIF; readers that infer types from the first samples rely on it.
    ours: dict[str, Any] = {
        "key": pa.array(keys, pa.string()),
        "status": pa.repeat(pa.scalar("success"), count),
        "error_message": pa.nulls(count, pa.string()),
        "exif": rows["exif"].fill_null("{}"),
    }
    kept = [name for name in rows.column_names if name.startswith("src_")]
    fields = [pa.field(kept_name(name), pa.string()) for name in kept] + list(schema)
    columns = [rows[name] for name in kept]
    columns += [ours[name] if name in ours else rows[name] for name in schema.names]
    return pa.table(columns, schema=pa.schema(fields))


def kept_name(name: str) -> str:
    """The input column's own name for src_<name>; src_<name> itself where S.parquet has a column of that name."""
    own = name.removeprefix("src_")
    return name if own in RESERVED else own


def stats_of(rows: pa.Table) -> dict[str, Any]:
    """img2dataset's S_stats.json, with the times (seconds since 1970) of the first and the last fetch."""
    times = [moment.timestamp() for moment in _moments(rows["fetched_at"])] or [0.0]
    return {
        "count": rows.num_rows,
        "successes": rows.num_rows,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": max(times) - min(times),
        "start_time": min(times),
        "end_time": max(times),
        "status_dict": {"success": rows.num_rows},
    }


def _moments(column: pa.ChunkedArray) -> Iterator[datetime]:
    bounds = pc.min_max(column).as_py()
    return (moment for moment in bounds.values() if moment is not None)


def _samples(table: pa.Table, rows: pa.Table, recipe: Recipe, pool: PoolReader, unit: str) -> Iterator[Sample]:
    # Readers that infer types from the first samples would take a score that is null there for no number.
    described = table.drop_columns(["clip_score"] if recipe.select.weight else ["clip_score", "weight"])
    for start, images in pool.blocks(rows):
        for meta, image in zip(described.slice(start, len(images)).to_pylist(), images, strict=True):
            extension = EXTENSIONS.get(sniff(image) or "")
            if extension is None:
                raise PoolMismatchError(f"the pool image of {meta['uid']} is none of {', '.join(EXTENSIONS)}")
            yield meta["key"], extension, image, json.dumps(meta).encode(), (meta["caption"] or "").encode()
        fault_point("mid-shard", unit)


def write_tar(samples: Iterator[Sample], folder: Path, name: str, count: int) -> list[Output]:
    """S.tar of the samples, which are `count`, in the local folder."""
    local = folder / f"{name}.tar"
    with local.open("wb", buffering=1 << 20) as file:
        for key, extension, image, described, caption in samples:
            members = (f"{key}.{extension}", image), (f"{key}.json", described), (f"{key}.txt", caption)
            file.write(b"".join(part for member in members for part in MEMBERS.member(*member)))
        file.write(bytes(2 * BLOCK))
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
    return [Output("tar", local, count, f"dataset/{local.name}")]


def write_files(samples: Iterator[Sample], folder: Path, name: str, count: int) -> list[Output]:
    """The samples, which are `count`, as loose files in a local folder S; in the order of their keys."""
    outputs = []
    (folder / name).mkdir()
    for key, *members in _named(samples):
        for extension, data in members:
            local = folder / name / f"{key}.{extension}"
            local.write_bytes(data)
            outputs.append(Output("files", local, 1, f"dataset/{name}/{local.name}"))
    assert len(outputs) == 3 * count
    return outputs


def _named(samples: Iterator[Sample]) -> Iterator[tuple[Any, ...]]:
    for key, extension, image, described, caption in samples:
        yield key, (extension, image), ("json", described), ("txt", caption)


def _write_parquet(
    table: pa.Table, rows: pa.Table, encode_format: str, pool: PoolReader, local: Path, unit: str
) -> None:
    """S.parquet with the images in a column named by their format, where img2dataset has it: after its own columns."""
    place = table.schema.get_field_index(OURS[0])
    column = pa.field(encode_format, pa.binary())
    with pq.ParquetWriter(local, table.schema.insert(place, column), compression="zstd") as writer:
        for start, images in pool.blocks(rows):
            part = table.slice(start, len(images))
            writer.write_table(part.add_column(place, column, [pa.array(images, pa.binary())]))
            fault_point("mid-shard", unit)
