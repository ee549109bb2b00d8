"""Evaluation sets: their images and hashes, read from a local disk or from S3.

A set is a folder of images or tars, one tar, or a table (.parquet, .csv) with a column `sha256`, `pdq` (64 hex digits)
or both.
"""

import hashlib
import logging
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from os import cpu_count
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipeline.dedupe.hashes import COLOUR_BYTES, FORMS, PDQ_BYTES, hash_image
from pipeline.errors import InputError, StoreError
from pipeline.images.errors import ImageError
from pipeline.images.sniff import sniff
from pipeline.storage import Store, find_place

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

TABLES: Final = (".parquet", ".csv")
TARS: Final = (".tar", ".tar.gz", ".tgz")
_AT_ONCE: Final = 256
_log = logging.getLogger(__name__)


def load_sets(against: Mapping[str, str], dihedral: bool = False) -> pa.Table:
    """The items of all sets (name → path or URI), sorted by set and item; schema ITEMS.

    `dihedral`: with the hashes of their rotations and reflections. Raises InputError for a place that cannot be read
    as a set, or that holds no item.
    """
    parts = [ITEMS.empty_table()]
    for name, place in sorted(against.items()):
        items = _hash_table(name, place) if place.endswith(TABLES) else _images(name, place, dihedral)
        if not len(items):
            raise InputError(f"dedupe.against.{name}: {place} holds no image and no hash")
        parts.append(items.sort_by("eval_item"))
    return pa.concat_tables(parts).combine_chunks()


def image_files(name: str, place: str) -> Iterator[tuple[str, bytes]]:
    """(item, bytes) of each image of the set `name`. Raises InputError as `read_files` does."""
    for item, read in read_files(name, place):
        if sniff(data := read()):
            yield item, data


def read_files(name: str, place: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(item, its bytes when called) of every file of the set `name` that lies loose or in a tar, images or not.

    Calls may be made in threads. Raises InputError where the place is neither folder nor tar, or a tar is cut short.
    """
    store, file = find_place(place)
    if file:
        if store.size(file) is None:
            raise InputError(f"dedupe.against.{name}: {place} is no folder, tar, .parquet or .csv file")
        yield from _members(name, store, file, "")
        return
    for path in sorted(path for path, _ in store.files("")):
        if path.endswith(TARS):
            yield from _members(name, store, path, f"{path}/")
        else:
            yield path, partial(store.read, path)


def _members(name: str, store: Store, path: str, prefix: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    filesystem, root = store.arrow()
    place, begun = f"dedupe.against.{name}: {store.uri}/{path}", False
    try:
        with (
            filesystem.open_input_stream(f"{root}/{path}", compression=None) as stream,
            tarfile.open(fileobj=stream, mode="r|*") as archive,
        ):
            begun = True
            for member in archive:
                if (file := archive.extractfile(member) if member.isfile() else None) is not None:
                    yield f"{prefix}{member.name}", partial(bytes, file.read())
    except StoreError:
        raise
    except (tarfile.TarError, EOFError, OSError) as error:
        if not begun and not prefix:
            raise InputError(f"{place} is no folder, tar, .parquet or .csv file") from None
        raise InputError(f"{place} cannot be read to its end ({' '.join(str(error).split())}); make it again") from None


def _images(name: str, place: str, dihedral: bool) -> pa.Table:
    lines: list[dict[str, Any]] = []
    files = read_files(name, place)
    with ThreadPoolExecutor(max(cpu_count() or 1, find_place(place)[0].parallel_reads)) as pool:
        while some := list(islice(files, _AT_ONCE)):
            found = pool.map(lambda file: _item(name, file[0], file[1](), dihedral), some)
            lines += [line for line in found if line is not None]
    unread = sum(line["pdq"] is None for line in lines)
    if unread:
        _log.warning("against %s: %d of %d images cannot be decoded; compared by bytes alone", name, unread, len(lines))
    return pa.Table.from_pylist(lines, schema=ITEMS)


def _item(name: str, item: str, data: bytes, dihedral: bool) -> dict[str, Any] | None:
    """None for a file that does not start as an image does."""
    if not sniff(data):
        return None
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


def _hash_table(name: str, place: str) -> pa.Table:
    store, file = find_place(place)
    try:
        data = pa.BufferReader(store.read(file))
        table = pq.read_table(data) if file.endswith(".parquet") else _csv(data)
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"dedupe.against.{name}: {place} cannot be read: {str(error).splitlines()[0]}") from None
    if not {"sha256", "pdq"} & set(table.column_names):
        raise InputError(f"dedupe.against.{name}: {place} needs a column sha256 or pdq, has {table.column_names}")
    count = len(table)
    named = next((column for column in ("eval_item", "uid") if column in table.column_names), None)
    columns = {
        "eval_set": pa.array([name] * count, pa.string()),
        "eval_item": table[named].cast(pa.string()) if named else pa.array([f"{row:08d}" for row in range(count)]),
        "sha256": _digests(name, place, table, "sha256", 32),
        "pdq": _digests(name, place, table, "pdq", PDQ_BYTES),
        "pdq_quality": table["pdq_quality"].cast(pa.int32()) if "pdq_quality" in table.column_names else [100] * count,
        "colour": pa.nulls(count, ITEMS.field("colour").type),
        "pdq_forms": pa.nulls(count, ITEMS.field("pdq_forms").type),
    }
    return pa.table(columns, schema=ITEMS)


def _csv(data: pa.NativeFile) -> pa.Table:
    text = pacsv.ConvertOptions(column_types={"sha256": pa.string(), "pdq": pa.string(), "uid": pa.string()})
    return pacsv.read_csv(data, convert_options=text)


def _digests(name: str, place: str, table: pa.Table, column: str, width: int) -> pa.Array:
    values = table[column].to_pylist() if column in table.column_names else [None] * len(table)
    made = []
    for row, value in enumerate(values):
        try:
            digest = bytes.fromhex(value) if value else None
        except (ValueError, TypeError):
            digest = b""
        if digest is not None and len(digest) != width:
            raise InputError(
                f"dedupe.against.{name}: {place}, row {row}: {column} {value!r} is not {2 * width} hex digits"
            )
        made.append(digest)
    return pa.array(made, pa.binary(width))
