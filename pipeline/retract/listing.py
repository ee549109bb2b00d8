"""The list of what is withdrawn: one value a line, or Parquet or CSV columns named by what they hold."""

import csv
import hashlib
import io
import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.ingest.normalise import Fetchable, normalise_url
from pipeline.storage import open_store

Kind = Literal["md5", "sha1", "sha256", "pdq", "url_md5", "url", "host", "uid"]
KINDS: tuple[Kind, ...] = get_args(Kind)

DIGITS: dict[Kind, int] = {"md5": 32, "url_md5": 32, "uid": 32, "sha1": 40, "sha256": 64, "pdq": 64}
"""Hex digits of each kind; a bare line of 32 or 64 digits is taken for every kind of that length."""

_PREFIXED = re.compile(rf"({'|'.join(KINDS)})\s*:\s*(?!//)(\S.*)")
_HEX = re.compile(r"[0-9a-f]+")
_NAME = re.compile(r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")


@dataclass(frozen=True)
class Listed:
    """What a list asks for: kind → values, URLs and hosts as they are fetched, hashes in lower case."""

    values: dict[Kind, frozenset[str]]
    sha256: str
    """Of the list's bytes."""
    entries: int

    def __contains__(self, item: tuple[Kind, str]) -> bool:
        return item[1] in self.values.get(item[0], frozenset())


def read_list(path: str) -> Listed:
    """Read a list, local or s3://. Raises InputError for the first line or cell that is nothing we know.

    Text has one value a line (`#` begins a comment line), with `kind:` before it or recognised by its form. CSV, TSV
    and Parquet (by the file's name) have columns named by their kind; their other columns are passed over.
    """
    folder, _, name = path.rpartition("/")
    try:
        data = open_store(folder or ("/" if path.startswith("/") else ".")).read(name)
    except OSError as error:
        raise InputError(f"--list {path}: cannot be read: {error}") from None
    ending = name.rpartition(".")[2].lower()
    values: dict[Kind, set[str]] = {}
    entries = 0
    for place, found in _parquet(path, data) if ending == "parquet" else _text(path, data, ending):
        entries += 1
        for kind, value in _recognised(place, *found):
            values.setdefault(kind, set()).add(value)
    if not entries:
        raise InputError(
            f"--list {path}: is empty; give one value a line, e.g. sha256:<64 hex digits> or host:example.org"
        )
    return Listed({kind: frozenset(of) for kind, of in values.items()}, hashlib.sha256(data).hexdigest(), entries)


Entry = tuple[str, tuple[Kind | None, str]]
"""Where it stands, and (kind or None, value)."""


def _text(path: str, data: bytes, ending: str) -> Iterator[Entry]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--list {path}: is not UTF-8 at byte {error.start}; give text, CSV or Parquet") from None
    if ending in ("csv", "tsv"):
        yield from _csv(path, text, "\t" if ending == "tsv" else ",")
        return
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        said = _PREFIXED.fullmatch(entry)
        yield f"{path}:{number}", ((said[1], said[2].strip()) if said else (None, entry))  # type: ignore[misc]


def _csv(path: str, text: str, delimiter: str) -> Iterator[Entry]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    kinds = _kinds(path, rows.fieldnames or [])
    for row in rows:
        for kind in kinds:
            if value := (row[kind] or "").strip():
                yield f"{path}:{rows.line_num}", (kind, value)


def _parquet(path: str, data: bytes) -> Iterator[Entry]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"--list {path}: is no Parquet file: {str(error).splitlines()[0][:200]}") from None
    kinds = _kinds(path, file.schema_arrow.names)
    number = 0
    for batch in file.iter_batches(columns=list(kinds)):
        for row in batch.to_pylist():
            for kind in kinds:
                value = row[kind]
                if value is not None and str(value).strip():
                    yield f"{path} row {number}", (kind, str(value).strip())
            number += 1


def _kinds(path: str, names: Iterable[str]) -> list[Kind]:
    names = list(names)
    found = [kind for kind in KINDS if kind in names]
    if not found:
        raise InputError(
            f"--list {path}: none of its columns ({', '.join(names)[:200]}) is named {', '.join(KINDS)}; rename one"
        )
    return found


def _recognised(place: str, kind: Kind | None, value: str) -> list[tuple[Kind, str]]:
    """(kind, value as compared); several where the form fits several kinds."""
    if kind == "url" or (kind is None and "://" in value):
        return [("url", as_fetched(value))]
    if kind == "host":
        host = _host(value)
        if host is None:
            raise InputError(f"{place}: {value[:80]!r} is no host name; give it without scheme, port and path")
        return [("host", host)]
    digits = value.lower()
    kinds = [one for one in DIGITS if DIGITS[one] == len(digits) and kind in (None, one)]
    if _HEX.fullmatch(digits) and kinds:
        return [(one, digits) for one in kinds]
    if kind is not None:
        raise InputError(f"{place}: {value[:80]!r} is no {kind}, which has {DIGITS[kind]} hex digits")
    host = _host(value)
    if host is not None and ("." in value or ":" in value):
        return [("host", host)]
    raise InputError(
        f"{place}: {value[:80]!r} is no URL, no host and no hash (32, 40 or 64 hex digits); nothing was withdrawn"
    )


def as_fetched(url: str) -> str:
    """The URL as it is fetched, or as given where it cannot be."""
    found = normalise_url(url)
    return found.url if isinstance(found, Fetchable) else url


def _host(value: str) -> str | None:
    """A host in lower-case IDNA as in a fetched URL, or None."""
    if any(character in value for character in "/\\?#@ \t%"):
        return None
    try:
        if ipaddress.ip_address(value.strip("[]")).version == 6:
            value = f"[{value.strip('[]')}]"
    except ValueError:
        if ":" in value:
            return None
    found = normalise_url(f"http://{value}/")
    if not isinstance(found, Fetchable):
        return None
    return found.host if found.host.startswith("[") or _NAME.match(found.host) else None
