"""Parquet input: row groups as row batches of the same form as those of the text readers."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.ingest.readers import BATCH_CHARS, BATCH_ROWS, Columns
from pipeline.ingest.repair import valid_utf8
from pipeline.ingest.sources import random_access
from schemas.recipe import Ingest

PIECE_ROWS = 524_288


def open_parquet(source: str) -> pq.ParquetFile:
    """Raises InputError if the file is no whole Parquet file."""
    try:
        return pq.ParquetFile(random_access(source), buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _broken(source, error) from None


def _broken(source: str, error: Exception) -> InputError:
    line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return InputError(f"input {source}: is not a whole Parquet file ({line}); get it again or leave it out")


def row_group_runs(file: pq.ParquetFile) -> list[tuple[int, list[int]]]:
    """(first row, row groups) of about PIECE_ROWS rows each, in file order; at least one."""
    found: list[tuple[int, list[int]]] = [(0, [])]
    row = size = 0
    for group in range(file.metadata.num_row_groups):
        if size >= PIECE_ROWS:
            found.append((row, []))
            size = 0
        found[-1][1].append(group)
        rows = file.metadata.row_group(group).num_rows
        row, size = row + rows, size + rows
    return found


def read_parquet(source: str, first: int, groups: list[int] | None, settings: Ingest) -> Iterator[pa.Table]:
    """Batches of some row groups (None: all), of which the first row has number `first`.

    Raises InputError if they are broken, or for columns that are not there or hold no text.
    """
    file = open_parquet(source)
    names = file.schema_arrow.names
    columns = Columns.of(settings)
    columns.require(names, source)
    kept = columns.kept(names)
    wanted = dict.fromkeys([columns.url, *([columns.text] if columns.text else []), *kept])
    for name in wanted:
        if names.count(name) > 1:
            raise InputError(f"input {source}: column {name!r} is there twice; rename one of them")
    for name in (columns.url, columns.text):
        if name and _is_odd(file.schema_arrow.field(name).type):
            kind = file.schema_arrow.field(name).type
            raise InputError(f"input {source}: column {name!r} is {kind}, not text; name another column")
    try:
        for batch in file.iter_batches(_batch_rows(file), row_groups=groups, columns=list(wanted), use_threads=False):
            yield _rows(batch, first, columns, kept)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _broken(source, error) from None


def _batch_rows(file: pq.ParquetFile) -> int:
    metadata = file.metadata
    size: int = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    rows: int = BATCH_CHARS * metadata.num_rows // max(1, size)
    return max(1, min(BATCH_ROWS, rows))


def _is_odd(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return not (_is_text(kind) or any(test(kind) for test in _NUMBERS))


_NUMBERS = (pa.types.is_null, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
_TEXTS = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
)  # fmt: skip


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in _TEXTS)


def _rows(batch: pa.RecordBatch, first: int, columns: Columns, kept: list[str]) -> pa.Table:
    count = batch.num_rows
    url, url_fixed = _text(batch.column(columns.url))
    if columns.text:
        text, text_fixed = _text(batch.column(columns.text))
    else:
        text, text_fixed = pa.array([""] * count, pa.large_string()), np.zeros(count, bool)
    return pa.table(
        {
            "row": np.arange(first, first + count, dtype=np.int64),
            "url": url,
            "text": text,
            "repaired": url_fixed | text_fixed,
            "reason": pa.nulls(count, pa.string()),
            "detail": pa.nulls(count, pa.large_string()),
            **{f"src_{name}": _text(batch.column(name))[0] for name in kept},
        }
    )


def _text(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Any column as text: numbers as decimals, NaN as null, nested values as JSON."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    kind = array.type
    untouched = np.zeros(len(array), bool)
    if pa.types.is_nested(kind):
        return pa.array([_json(value) for value in array.to_pylist()], pa.large_string()), untouched
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
    if _is_text(array.type):
        return valid_utf8(array)
    try:
        return pc.cast(array, pa.large_string()), untouched
    except pa.ArrowNotImplementedError:  # durations and the like
        texts = [None if value is None else str(value) for value in array.to_pylist()]
        return pa.array(texts, pa.large_string()), untouched


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
