"""Input files: from paths, folders and globs, local or s3://, to identified files and byte streams."""

import glob
import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import InputError
from pipeline.s3 import S3Bucket

Format = Literal["parquet", "csv", "tsv", "json", "jsonl", "txt"]
_FORMATS: dict[str, Format] = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".json": "json",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt",
}  # fmt: skip
_KNOWN = "parquet, csv, tsv, json, jsonl, txt, each text format also .gz"
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """An input file as it is now; `source` is its absolute path or s3:// URI."""

    source: str
    format: Format
    bytes: int
    etag: str

    @property
    def gzipped(self) -> bool:
        return self.source.lower().endswith(".gz")


def format_of(source: str) -> Format | None:
    """The format a file's name claims, or None; Parquet files are never gzipped as a whole."""
    name = source.lower()
    stem, extension = os.path.splitext(name.removesuffix(".gz"))
    format_ = _FORMATS.get(extension) if stem else None
    return None if format_ == "parquet" and name.endswith(".gz") else format_


def find_sources(inputs: list[str], root: str | None = None) -> list[Source]:
    """The files that paths, folders and globs stand for, once each, sorted by path.

    In folders and globs, files of other formats, names that begin with `.` or `_`, and a ROOT's own files (those below
    `root`) are passed over.
    Raises InputError for what is not there, matches nothing, or is named but of an unknown format.
    """
    found: dict[str, Source] = {}
    for given in inputs:
        listed = _in_s3(given) if given.startswith("s3://") else _on_disk(given.removeprefix("file://"))
        if not listed:
            raise InputError(f"input {given}: no file there is one of {_KNOWN}")
        found.update((s.source, s) for s in listed if root is None or not s.source.startswith(f"{root}/"))
    return [found[name] for name in sorted(found)]


def _on_disk(given: str) -> list[Source]:
    if os.path.isfile(given):
        return [_named(given, stat_source)]
    if os.path.isdir(given):
        paths = [str(path) for path in Path(given).rglob("*")]
    elif _MAGIC.search(given):
        matches = glob.glob(given, recursive=True)
        paths = [match for match in matches if os.path.isfile(match)]
        paths += [str(path) for match in matches if os.path.isdir(match) for path in Path(match).rglob("*")]
    else:
        raise InputError(f"input {given}: there is no such file or folder")
    return [stat_source(path) for path in paths if _counts(path) and os.path.isfile(path)]


def _in_s3(given: str) -> list[Source]:
    bucket, _, key = given.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"input {given}: name a bucket, as in s3://bucket/folder")
    client = S3Bucket(bucket)
    magic = _MAGIC.search(key)
    if magic:
        listed = client.list(key[: magic.start()])
        pattern = _glob_pattern(key)
        names = [name for name, _ in listed if pattern.fullmatch(name) and _counts(name)]
    elif key and client.size(key) is not None:
        return [_named(given, stat_source)]
    else:
        prefix = f"{key.rstrip('/')}/" if key else ""
        names = [name for name, _ in client.list(prefix) if _counts(name)]
    return [stat_source(f"s3://{bucket}/{name}") for name in names]


def _named(given: str, stat: Any) -> Source:
    if format_of(given) is None:
        raise InputError(f"input {given}: its name ends in none of {_KNOWN}; rename it")
    return cast(Source, stat(given))


def _counts(path: str) -> bool:
    return not os.path.basename(path).startswith((".", "_")) and format_of(path) is not None


def _glob_pattern(key: str) -> re.Pattern[str]:
    """`**/` is any number of folders; `*` and `?` stay within one; [ ] are sets of characters."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", key)
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(wild.get(p, p.replace("[!", "[^") if p[:1] == "[" else re.escape(p)) for p in parts))


def stat_source(path: str) -> Source:
    """The file's identity as it is now. Raises InputError if it is gone or its name is not UTF-8."""
    format_ = format_of(path)
    if path.startswith("s3://"):
        bucket, _, key = path.removeprefix("s3://").partition("/")
        client = S3Bucket(bucket)
        size = client.size(key)
        if size is None:
            raise InputError(f"input {path}: there is no such object")
        tagged = client.get(key, "bytes=0-0") if size else (b"", "empty")
        return Source(path, cast(Format, format_), size, tagged[1].strip('"') if tagged else "")
    path = os.path.abspath(path)
    try:
        path.encode()
        status = os.stat(path)
    except UnicodeEncodeError:
        raise InputError(f"input {path!r}: the name is not UTF-8; rename the file") from None
    except OSError as error:
        raise InputError(f"input {path}: cannot be read ({error.strerror})") from None
    return Source(path, cast(Format, format_), status.st_size, str(status.st_mtime_ns))


def random_access(source: str) -> Any:
    """A seekable file, for Parquet."""
    if not source.startswith("s3://"):
        return pa.OSFile(source)
    return _filesystem(source).open_input_file(source.removeprefix("s3://"))


def _filesystem(source: str) -> pafs.FileSystem:
    return S3Bucket(source.removeprefix("s3://").partition("/")[0]).arrow()


class _Hashed(io.RawIOBase):
    """A byte stream that hashes what passes through it."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self.sha256.update(data)
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


@dataclass
class Stream:
    """A file's decompressed bytes; `sha256` (of the stored bytes) is there once the stream is read to its end."""

    bytes: io.BufferedReader
    _hashed: _Hashed

    def sha256(self) -> str:
        while self._hashed.read(1 << 20):
            pass
        return self._hashed.sha256.hexdigest()


@contextmanager
def opened(source: str) -> Iterator[Stream]:
    """The file's bytes, decompressed if its name ends in .gz. Raises InputError where they are not what it says.

    A broken gzip stream raises InputError from whatever read meets it inside the `with`.
    """
    is_s3 = source.startswith("s3://")
    raw: Any = (
        _filesystem(source).open_input_stream(source.removeprefix("s3://"), compression=None)
        if is_s3
        else open(source, "rb", buffering=0)  # noqa: SIM115 (closed with the wrapper below)
    )
    hashed = _Hashed(raw)
    stored = io.BufferedReader(hashed, 1 << 20)
    gzipped = source.lower().endswith(".gz")
    try:
        head = stored.peek(4)[:4]
        if gzipped and not head:
            raise InputError(f"input {source}: is empty, which no gzip file is; get it again or leave it out")
        if head.startswith(b"\x1f\x8b") and not gzipped:
            raise InputError(f"input {source}: holds gzip data; give it a name that ends in .gz")
        plain = io.BufferedReader(gzip.GzipFile(fileobj=stored), 1 << 20) if gzipped else stored
        head = plain.peek(4)[:4]
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"input {source}: is UTF-16; convert it, e.g. with iconv -f UTF-16 -t UTF-8")
        yield Stream(cast(io.BufferedReader, plain), hashed)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"input {source}: its gzip data is broken or cut short ({error}); get it again or leave it out"
        ) from None
    finally:
        stored.close()
