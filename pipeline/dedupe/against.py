"""Decontamination: pool images that are in an evaluation set, by equal bytes and by PDQ.

A set is a folder of images or tars, one tar, or a table (.parquet, .csv) with a column `sha256`, `pdq` (64 hex digits)
or both. What is found is a lower bound of the overlap: PDQ does not see through crops of more than 1 or 2%, collages or
redrawing, nor, unless `dihedral` is set, through rotations and mirror images; tests/benchmarks/recall.py has numbers.
"""

import hashlib
import logging
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipeline.dedupe.find import fixed, hexadecimal, valid
from pipeline.dedupe.hashes import COLOUR_BYTES, FORMS, PDQ_BYTES, hash_image, turned_colours
from pipeline.dedupe.search import MIN_QUALITY, RADIUS, Index, deal, distances, matches, same_colours
from pipeline.errors import InputError
from pipeline.images.errors import ImageError
from pipeline.images.sniff import sniff

ITEMS: Final = pa.schema(
    [
        ("eval_set", pa.string()),
        ("eval_item", pa.string()),
        ("sha256", pa.binary(32)),
        ("pdq", pa.binary(PDQ_BYTES)),
        ("pdq_quality", pa.int32()),
        ("colour", pa.binary(COLOUR_BYTES)),
        ("pdq_forms", pa.binary((FORMS - 1) * PDQ_BYTES)),
    ]
)
"""Items of evaluation sets. `eval_item`: the path within the folder or tar (`shard.tar/member`), or the row of a table
(its column `eval_item` or `uid`, else its number from 0). A table of hashes has no `colour`: nothing is asked of it."""
OVERLAPS: Final = pa.schema(
    [
        ("eval_set", pa.string()),
        ("eval_item", pa.string()),
        ("uid", pa.string()),
        ("level", pa.string()),
        ("distance", pa.int32()),
    ]
)

_AT_ONCE: Final = 256
_log = logging.getLogger(__name__)


def load_sets(against: Mapping[str, str], dihedral: bool = False) -> pa.Table:
    """The items of all sets (name → local path), sorted by set and item; schema ITEMS.

    `dihedral`: with the hashes of their rotations and reflections. Raises InputError for a path that cannot be read as
    a set, or that holds no item.
    """
    parts = [ITEMS.empty_table()]
    for name, place in sorted(against.items()):
        path = Path(place)
        if path.suffix in (".parquet", ".csv") and path.is_file():
            items = _hash_table(name, path)
        elif path.is_dir() or tarfile_at(path):
            items = _images(name, path, dihedral)
        else:
            raise InputError(f"dedupe.against.{name}: {place} is no folder, tar, .parquet or .csv file")
        if not len(items):
            raise InputError(f"dedupe.against.{name}: {place} holds no image and no hash")
        parts.append(items.sort_by("eval_item"))
    return pa.concat_tables(parts).combine_chunks()


def tarfile_at(path: Path) -> bool:
    return path.is_file() and tarfile.is_tarfile(path)


def _images(name: str, path: Path, dihedral: bool) -> pa.Table:
    lines: list[dict[str, Any]] = []
    with ThreadPoolExecutor() as pool:
        files = _files(path)
        while some := [file for file, _ in zip(files, range(_AT_ONCE), strict=False)]:
            lines += pool.map(lambda file: _item(name, file[0], file[1], dihedral), some)
    unread = sum(line["pdq"] is None for line in lines)
    if unread:
        _log.warning("against %s: %d of %d images cannot be decoded; compared by bytes alone", name, unread, len(lines))
    return pa.Table.from_pylist(lines, schema=ITEMS)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(item, bytes) of each file below a folder, or member of a tar, that starts as an image does."""
    if path.is_file():
        yield from _members(path, "")
        return
    for file in sorted(path.rglob("*")):
        item = file.relative_to(path).as_posix()
        if file.suffix == ".tar":
            yield from _members(file, f"{item}/")
        elif file.is_file() and sniff(data := file.read_bytes()):
            yield item, data


def _members(path: Path, prefix: str) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream and sniff(data := stream.read()):
                    yield f"{prefix}{member.name}", data
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"dedupe.against: {path} cannot be read to its end ({error}); make the tar again") from None


def _item(name: str, item: str, data: bytes, dihedral: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"eval_set": name, "eval_item": item, "sha256": hashlib.sha256(data).digest(), "pdq": None}
    try:
        made = hash_image(data, dihedral)
    except ImageError:
        return line
    forms = bytes.fromhex(made.pdq_forms) if made.pdq_forms else None
    return line | {
        "pdq": bytes.fromhex(made.pdq),
        "pdq_quality": made.quality,
        "colour": bytes.fromhex(made.colour),
        "pdq_forms": forms,
    }


def _hash_table(name: str, path: Path) -> pa.Table:
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else _csv(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"dedupe.against.{name}: {path} cannot be read: {str(error).splitlines()[0]}") from None
    if not {"sha256", "pdq"} & set(table.column_names):
        raise InputError(f"dedupe.against.{name}: {path} needs a column sha256 or pdq, has {table.column_names}")
    count = len(table)
    named = next((column for column in ("eval_item", "uid") if column in table.column_names), None)
    columns = {
        "eval_set": pa.array([name] * count, pa.string()),
        "eval_item": table[named].cast(pa.string()) if named else pa.array([f"{row:08d}" for row in range(count)]),
        "sha256": _digests(name, path, table, "sha256", 32),
        "pdq": _digests(name, path, table, "pdq", PDQ_BYTES),
        "pdq_quality": table["pdq_quality"].cast(pa.int32()) if "pdq_quality" in table.column_names else [100] * count,
        "colour": pa.nulls(count, ITEMS.field("colour").type),
        "pdq_forms": pa.nulls(count, ITEMS.field("pdq_forms").type),
    }
    return pa.table(columns, schema=ITEMS)


def _csv(path: Path) -> pa.Table:
    text = pacsv.ConvertOptions(column_types={"sha256": pa.string(), "pdq": pa.string(), "uid": pa.string()})
    return pacsv.read_csv(path, convert_options=text)


def _digests(name: str, path: Path, table: pa.Table, column: str, width: int) -> pa.Array:
    values = table[column].to_pylist() if column in table.column_names else [None] * len(table)
    made = []
    for row, value in enumerate(values):
        try:
            digest = bytes.fromhex(value) if value else None
        except (ValueError, TypeError):
            digest = b""
        if digest is not None and len(digest) != width:
            raise InputError(
                f"dedupe.against.{name}: {path}, row {row}: {column} {value!r} is not {2 * width} hex digits"
            )
        made.append(digest)
    return pa.array(made, pa.binary(width))


def find_overlaps(rows: pa.Table, sets: pa.Table, radius: int = RADIUS) -> pa.Table:
    """Every pair of an item and a row (columns of find.ROWS) that match, by set, item and uid; schema OVERLAPS.

    A pair equal in bytes is not listed by PDQ again. Rows may come in parts of any size; large ones are quicker, since
    the sets are indexed once a call.
    """
    equal, near = _equal(rows, sets), _near(rows, sets, radius)
    near = near[~np.isin(_code(near, rows), _code(equal, rows))]
    parts = []
    for level, found in (("bytes", equal), ("perceptual", near)):
        columns = [
            sets["eval_set"].take(found[:, 0]),
            sets["eval_item"].take(found[:, 0]),
            hexadecimal(fixed(rows["uid"], 16)[found[:, 1]]),
            pa.array([level] * len(found), pa.string()),
            pa.array(found[:, 2].astype(np.int32)),
        ]
        parts.append(pa.Table.from_arrays(columns, schema=OVERLAPS))
    order = [("eval_set", "ascending"), ("eval_item", "ascending"), ("uid", "ascending")]
    return pa.concat_tables(parts).sort_by(order).combine_chunks()


def held(overlaps: pa.Table, sets: pa.Table, rows: int) -> list[dict[str, Any]]:
    """Both ways, a set a line: how many of its items the pool holds, and how many of the pool's `rows` are in it.

    Lower bounds, as this module's first lines say; a report must say so too.
    """
    lines = []
    for name in sets["eval_set"].unique().to_pylist():
        items = pc.sum(pc.equal(sets["eval_set"], name)).as_py()
        there = overlaps.filter(pc.equal(overlaps["eval_set"], name))
        line: dict[str, Any] = {"eval_set": name, "items": items, "pool_rows": rows}
        for level in ("bytes", "perceptual"):
            found = there.filter(pc.equal(there["level"], level))
            line[f"items_{level}"] = pc.count_distinct(found["eval_item"]).as_py()
            line[f"rows_{level}"] = pc.count_distinct(found["uid"]).as_py()
        line["items_held"] = pc.count_distinct(there["eval_item"]).as_py()
        line["rows_held"] = pc.count_distinct(there["uid"]).as_py()
        lines.append(line)
    return lines


def _code(found: Index, rows: pa.Table) -> Index:
    return found[:, 0] * len(rows) + found[:, 1]


def _equal(rows: pa.Table, sets: pa.Table) -> Index:
    """[n, 3]: item, row, 0."""
    columns = {
        name: pa.table({"sha256": table["sha256"], name: np.arange(len(table))}).filter(table["sha256"].is_valid())
        for name, table in (("item", sets), ("row", rows))
    }
    both = columns["item"].join(columns["row"], "sha256", join_type="inner")
    return np.stack([both["item"].to_numpy(), both["row"].to_numpy(), np.zeros(len(both), np.int64)], axis=1)


def _near(rows: pa.Table, sets: pa.Table, radius: int) -> Index:
    """[n, 3]: item, row, distance of the nearest of the item's turned forms."""
    row, item = _clear(rows), _clear(sets)
    words, colours = deal(fixed(sets["pdq"], PDQ_BYTES)[item]), fixed(sets["colour"], COLOUR_BYTES)[item]
    owner = item
    turned = np.flatnonzero(valid(sets["pdq_forms"])[item])
    if len(turned):
        forms = fixed(sets["pdq_forms"], (FORMS - 1) * PDQ_BYTES)[item[turned]].reshape(-1, PDQ_BYTES)
        words = np.concatenate([words, deal(forms)])
        colours = np.concatenate([colours, turned_colours(colours[turned])[:, 1:].reshape(-1, COLOUR_BYTES)])
        owner = np.concatenate([owner, np.repeat(item[turned], FORMS - 1)])
    pool = deal(fixed(rows["pdq"], PDQ_BYTES)[row])
    one, other = matches(words, pool, radius)
    plain = ~(valid(sets["colour"])[owner[one]] & valid(rows["colour"])[row[other]])
    alike = plain | same_colours(colours[one], fixed(rows["colour"], COLOUR_BYTES)[row[other]])
    one, other = one[alike], other[alike]
    found = np.stack([owner[one], row[other], distances(words[one], pool[other]).astype(np.int64)], axis=1)
    found = found[np.lexsort((found[:, 2], found[:, 1], found[:, 0]))]
    return found[np.unique(_code(found, rows), return_index=True)[1]]


def _clear(table: pa.Table) -> Index:
    """Positions with a hash that says something."""
    quality = table["pdq_quality"].fill_null(0).to_numpy()
    return np.flatnonzero(valid(table["pdq"]) & (quality >= MIN_QUALITY))
