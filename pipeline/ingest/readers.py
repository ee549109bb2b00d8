"""Readers: an input file as a stream of row batches, every row numbered, none lost and none shifted.

A batch is a pa.Table of `row` (int64, from 0), `url`, `text` (large_string, null where the row has none), `repaired`
(bool: url or text was not UTF-8), `reason` and `detail` (bad_row and why, else null), and `src_<name>` columns.

Decisions: a number as url or text is its decimal text; NaN and null are none; booleans, lists and objects are bad_row.
A blank line is a bad_row; so is a record with more or fewer fields than columns. CSV records end at LF, CRLF or CR;
lines of txt and jsonl end at LF or CRLF. In TSV, whose writers often do not quote, a line with unbalanced quotes
and the right number of fields is taken literally. txt rows have an empty text.
"""

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Any, TextIO

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.ingest.records import Broken, CsvRecords, JsonArrayError, JsonElements
from pipeline.ingest.repair import LONE, repaired, string_array
from pipeline.ingest.sources import Stream
from schemas.recipe import Ingest

BATCH_ROWS = 65_536
BATCH_CHARS = 32 * 1024 * 1024
MAX_KEPT = 1_000


@dataclass
class Columns:
    """Which input columns become what."""

    url: str
    text: str
    keep: list[str]
    header: list[str]
    seen: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Ingest) -> "Columns":
        return cls(settings.url_col, settings.caption_col, settings.keep_columns, settings.columns)

    def kept(self, there: Iterable[str]) -> list[str]:
        """The columns to keep of those that are there; '*' is all but url and text."""
        if "*" not in self.keep:
            return self.keep
        return [name for name in there if name in self.keep or name not in (self.url, self.text)]

    def require(self, there: Iterable[str], source: str) -> None:
        """Raise InputError for a column the file does not have, naming those it has and the nearest."""
        names = list(there)
        wanted = [("ingest.url_col", self.url), ("ingest.caption_col", self.text)]
        wanted += [("ingest.keep_columns", name) for name in self.keep if name != "*"]
        for setting, name in wanted:
            if name in names or (setting == "ingest.caption_col" and not name):
                continue
            near = get_close_matches(name, names, n=1, cutoff=0.5)
            raise InputError(
                f"input {source}: has no column {name!r} ({setting}); its columns are "
                f"{', '.join(map(repr, names)) or 'none'}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if len(self.kept(names)) > MAX_KEPT:
            raise InputError(f"input {source}: more than {MAX_KEPT} columns to keep; name those you need")


def read_text(stream: Stream, format_: str, settings: Ingest, source: str) -> Iterator[pa.Table]:
    """Batches of a csv, tsv, json, jsonl or txt file. Raises InputError if it cannot be read to its end."""
    columns = Columns.of(settings)
    if format_ in ("csv", "tsv"):
        with _decoded(stream.bytes) as lines:
            yield from _delimited(lines, columns, source, "," if format_ == "csv" else "\t")
    elif format_ == "txt":
        yield from _lines(stream.bytes)
    elif format_ == "jsonl":
        yield from _objects(_json_lines(stream.bytes), columns, source)
    else:
        with _decoded(stream.bytes) as text:
            yield from _objects(_json_array(text, source), columns, source)


@contextmanager
def _decoded(stream: io.BufferedReader) -> Iterator[io.TextIOWrapper]:
    text = io.TextIOWrapper(stream, "utf-8-sig", errors=LONE, newline="")
    try:
        yield text
    finally:
        text.detach()  # else the wrapper closes the stream, whose end is still to be hashed


def _table(
    first: int, urls: list[str | None], texts: list[str | None], problems: dict[int, str],
    kept: dict[str, list[str | None]], ) -> pa.Table:  # fmt: skip
    count = len(urls)
    url, url_fixed = string_array(urls)
    text, text_fixed = string_array(texts)
    details = [problems.get(index) for index in range(count)] if problems else [None] * count
    return pa.table(
        {
            "row": np.arange(first, first + count, dtype=np.int64),
            "url": url,
            "text": text,
            "repaired": url_fixed | text_fixed,
            "reason": pa.array([detail and "bad_row" for detail in details], pa.string()),
            "detail": string_array(details)[0],
            **{f"src_{repaired(name)}": string_array(values)[0] for name, values in kept.items()},
        }
    )


def _delimited(lines: TextIO, columns: Columns, source: str, delimiter: str) -> Iterator[pa.Table]:
    reader = CsvRecords(lines, delimiter)
    records = iter(reader)
    header: list[str] | Broken | None = columns.header or None
    if header is None:
        header = next(records, None)
    if header is None:
        return
    if isinstance(header, Broken):
        raise InputError(f"input {source}: its header line has unbalanced quotes; repair that line")
    header = [repaired(name) for name in header]
    columns.require(header, source)
    double = sorted({name for name in header if header.count(name) > 1 and name in (columns.url, columns.text)})
    if double:
        raise InputError(f"input {source}: column {double[0]!r} is there twice; rename one of them")
    place = {name: index for index, name in enumerate(header)}
    kept = columns.kept(header)
    width, first = len(header), 0
    empty: list[str | None] = [None] * width
    while True:
        chunk: list[Any] = []
        until = reader.taken + BATCH_CHARS
        for record in islice(records, BATCH_ROWS):
            chunk.append(record)
            if reader.taken > until:
                break
        if not chunk:
            return
        problems: dict[int, str] = {}
        for index, record in enumerate(chunk):
            if len(record) != width or type(record) is not list:
                fields = record.line.rstrip("\r\n").split("\t") if type(record) is Broken else []
                if delimiter == "\t" and len(fields) == width:
                    chunk[index] = fields
                else:
                    chunk[index] = empty
                    problems[index] = _wrong_record(record, width, delimiter)
        by_column = list(zip(*chunk, strict=True))
        texts = list(by_column[place[columns.text]]) if columns.text else [""] * len(chunk)
        values = {name: list(by_column[place[name]]) for name in kept}
        yield _table(first, list(by_column[place[columns.url]]), texts, problems, values)
        first += len(chunk)


def _wrong_record(record: list[str] | Broken, width: int, delimiter: str) -> str:
    if isinstance(record, Broken):
        return f"unbalanced quotes ({record.why}): {record.line.rstrip()[:200]}"
    if not record:
        return "blank line"
    return f"{len(record)} fields, expected {width}: {delimiter.join(record)[:200]}"


_BOM = b"\xef\xbb\xbf"


def _physical_lines(stream: io.BufferedReader) -> Iterator[list[bytes]]:
    """Batches of lines without their ends."""
    lines = iter(stream)
    first = True
    while True:
        chunk, size, ended = [], 0, False
        for line in islice(lines, BATCH_ROWS):
            ended = line.endswith(b"\n")
            if line.endswith(b"\n"):
                line = line[:-2] if line.endswith(b"\r\n") else line[:-1]
            chunk.append(line)
            size += len(line)
            if size > BATCH_CHARS:
                break
        if not chunk:
            return
        if first and chunk == [_BOM] and size == len(_BOM) and not ended:
            return
        if first:
            chunk[0] = chunk[0].removeprefix(_BOM)
        first = False
        yield chunk


def _lines(stream: io.BufferedReader) -> Iterator[pa.Table]:
    first = 0
    for chunk in _physical_lines(stream):
        urls: list[str | None] = [line.decode("utf-8", LONE) for line in chunk]
        problems = {index: "blank line" for index, line in enumerate(chunk) if not line.strip()}
        for index in problems:
            urls[index] = None
        texts: list[str | None] = [""] * len(chunk)
        yield _table(first, urls, texts, problems, {})
        first += len(chunk)


def _json_lines(stream: io.BufferedReader) -> Iterator[tuple[Any, str | None]]:
    decode = _DECODER.decode
    for chunk in _physical_lines(stream):
        for line in chunk:
            try:
                yield decode(line.decode("utf-8", LONE)), None
            except (ValueError, RecursionError) as error:
                shown = line[:200].decode("utf-8", "replace")
                yield None, f"not JSON ({error}): {shown}" if line.strip() else "blank line"


_DECODER = json.JSONDecoder(strict=False)


def _json_array(text: TextIO, source: str) -> Iterator[tuple[Any, str | None]]:
    try:
        for element in JsonElements(text):
            yield element, None
    except JsonArrayError as error:
        raise InputError(
            f"input {source}: is not a whole JSON array of objects ({error}); repair it, or name a file with "
            "one object a line .jsonl"
        ) from None


def _objects(rows: Iterator[tuple[Any, str | None]], columns: Columns, source: str) -> Iterator[pa.Table]:
    first, seen, objects = 0, dict[str, None](), 0
    while True:
        urls: list[str | None] = []
        texts: list[str | None] = []
        problems: dict[int, str] = {}
        chunk: list[dict[str, Any]] = []
        size = 0
        for row, problem in islice(rows, BATCH_ROWS):
            if type(row) is not dict:
                problem = problem or f"{_kind(row)} where an object was expected: {json.dumps(row)[:200]}"
                row = {}
            else:
                objects += 1
                seen.update(dict.fromkeys(row))
            try:
                url, text = _scalar(row, columns.url), _scalar(row, columns.text) if columns.text else ""
            except TypeError as error:
                problem, row, url, text = str(error), {}, None, None
            if problem is not None:
                problems[len(urls)] = problem
            urls.append(url)
            texts.append(text)
            chunk.append(row)
            size += len(url or "") + len(text or "")
            if size > BATCH_CHARS:
                break
        if not urls:
            break
        kept = columns.kept(dict.fromkeys(name for row in chunk for name in row))
        yield _table(first, urls, texts, problems, {name: [_kept(row.get(name)) for row in chunk] for name in kept})
        first += len(urls)
    if objects:
        columns.require(map(repaired, seen), source)


def _kind(value: object) -> str:
    names = {bool: "a boolean", list: "a list", dict: "an object", type(None): "null", str: "a string"}
    return names.get(type(value), "a number")


def _scalar(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None or type(value) is str:
        return value
    if isinstance(value, bool | list | dict):
        raise TypeError(f"{name} is {_kind(value)}: {json.dumps(value)[:200]}")
    return None if value != value else json.dumps(value)


def _kept(value: Any) -> str | None:
    if value is None or type(value) is str:
        return value
    return json.dumps(value, ensure_ascii=False)
