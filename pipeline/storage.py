"""A ROOT's files, on a local disk or in S3: whole files under final names, and records created exclusively."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from pipeline.errors import InputError
from pipeline.s3 import S3Bucket


class Entry(NamedTuple):
    path: str
    """Relative to the store's root."""
    size: int


class Store(Protocol):
    """Paths are relative to the root, with `/`. Every write is whole or not there."""

    uri: str

    def read(self, path: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. Raises FileNotFoundError."""

    def read_tagged(self, path: str) -> tuple[bytes, str] | None:
        """The file's bytes and its ETag, or None where there is no file."""

    def publish(self, local: Path, path: str) -> None:
        """Move a finished local file to its final name: fsync and rename, or one PUT or completed multipart."""

    def create(self, path: str, data: bytes) -> bool:
        """Create the file if there is none. True if it now holds `data` by our doing or an earlier try of ours."""

    def replace(self, path: str, data: bytes) -> None:
        """Write the file atomically, whatever was there."""

    def swap(self, path: str, data: bytes, etag: str) -> bool:
        """Replace the file only if its ETag is still `etag`; False if it is not."""

    def files(self, prefix: str) -> Iterator[Entry]:
        """Every file below the folder `prefix`, in no order; nothing where there is no such folder."""

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below `prefix`, sorted."""

    def size(self, path: str) -> int | None:
        """The file's size in bytes, or None."""

    def delete(self, path: str) -> None:
        """Remove the file if it is there."""

    def scratch(self) -> Path:
        """A new empty folder on local disk, cheap to publish from."""

    def check(self) -> None:
        """Raise InputError or OSError, with the way out, if the store cannot keep our promises."""

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        """A pyarrow filesystem for reading, and the root's path in it."""


def open_store(uri: str) -> Store:
    """A store for a local path or `s3://bucket/prefix`. Raises InputError for another scheme."""
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    if scheme == "s3":
        return S3Store(uri)
    if scheme not in ("", "file"):
        raise InputError(f"{uri}: {scheme}:// is not supported; give a local path or s3://bucket/prefix")
    return LocalStore(Path(uri.removeprefix("file://")))


class LocalStore:
    """Files below a folder of a local (or shared POSIX) disk. Unfinished files live in ROOT/.tmp."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)
        self._tmp = self.root / ".tmp"

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        with (self.root / path).open("rb") as file:
            return os.pread(file.fileno(), size, offset)

    def read_tagged(self, path: str) -> tuple[bytes, str] | None:
        try:
            data = self.read(path)
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def publish(self, local: Path, path: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if local.stat().st_dev != target.parent.stat().st_dev:
            local = Path(shutil.copyfile(local, self._temporary()))
        _fsync(local)
        local.rename(target)
        _fsync(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        target = self.root / path
        temporary = self._written(data)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(temporary, target)
            _fsync(target.parent)
        except FileExistsError:
            return target.read_bytes() == data
        finally:
            temporary.unlink()
        return True

    def replace(self, path: str, data: bytes) -> None:
        self.publish(self._written(data), path)

    def swap(self, path: str, data: bytes, etag: str) -> bool:
        self._tmp.mkdir(parents=True, exist_ok=True)
        with (self._tmp / "swap.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            current = self.read_tagged(path)
            if current is None or current[1] != etag:
                return False
            self.replace(path, data)
            return True

    def files(self, prefix: str) -> Iterator[Entry]:
        folders = [self.root / prefix]
        while folders:
            try:
                entries = os.scandir(folders.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue
            with entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        yield Entry(os.path.relpath(entry.path, self.root), entry.stat().st_size)

    def folders(self, prefix: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.root / prefix) if entry.is_dir())
        except FileNotFoundError:
            return []

    def size(self, path: str) -> int | None:
        try:
            return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    def scratch(self) -> Path:
        folder = self._temporary()
        folder.mkdir()
        return folder

    def check(self) -> None:
        try:
            self._written(b"").unlink()
        except OSError as error:
            raise InputError(
                f"output {self.uri}: cannot write here ({error.strerror}); give a folder you may write to"
            ) from None

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        return pafs.LocalFileSystem(), self.uri

    def clear_scratch(self) -> None:
        """Remove what killed runs left unfinished; only for the holder of the lease."""
        shutil.rmtree(self._tmp, ignore_errors=True)

    def _temporary(self) -> Path:
        self._tmp.mkdir(parents=True, exist_ok=True)
        return self._tmp / uuid.uuid4().hex

    def _written(self, data: bytes) -> Path:
        path = self._temporary()
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return path


class S3Store:
    """Objects below s3://bucket/prefix. The endpoint and credentials are those of the environment (boto3's rules)."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.uri = uri.rstrip("/")
        self._bucket = S3Bucket(parts.netloc)
        self._prefix = parts.path.strip("/")

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def read(self, path: str) -> bytes:
        found = self._bucket.get(self._key(path))
        if found is None:
            raise FileNotFoundError(f"{self.uri}/{path}")
        return found[0]

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        found = self._bucket.get(self._key(path), f"bytes={offset}-{offset + size - 1}")
        if found is None:
            raise FileNotFoundError(f"{self.uri}/{path}")
        return found[0]

    def read_tagged(self, path: str) -> tuple[bytes, str] | None:
        return self._bucket.get(self._key(path))

    def publish(self, local: Path, path: str) -> None:
        self._bucket.upload(local, self._key(path))
        local.unlink()

    def create(self, path: str, data: bytes) -> bool:
        key = self._key(path)
        if self._bucket.put(key, data, if_none_match="*"):
            return True
        found = self._bucket.get(key)
        return found is not None and found[0] == data

    def replace(self, path: str, data: bytes) -> None:
        self._bucket.put(self._key(path), data)

    def swap(self, path: str, data: bytes, etag: str) -> bool:
        if self._bucket.put(self._key(path), data, if_match=etag):
            return True
        found = self._bucket.get(self._key(path))
        return found is not None and found[0] == data

    def files(self, prefix: str) -> Iterator[Entry]:
        cut = len(self._prefix) + 1 if self._prefix else 0
        for key, size in self._bucket.list(self._key(prefix.rstrip("/")) + "/"):
            yield Entry(key[cut:], size)

    def folders(self, prefix: str) -> list[str]:
        return sorted(self._bucket.folders(self._key(prefix.rstrip("/")) + "/"))

    def size(self, path: str) -> int | None:
        return self._bucket.size(self._key(path))

    def delete(self, path: str) -> None:
        self._bucket.delete(self._key(path))

    def scratch(self) -> Path:
        from tempfile import mkdtemp

        return Path(mkdtemp(prefix="pairmill-"))

    def check(self) -> None:
        probe = self._key(f".probe-{uuid.uuid4().hex}")
        self._bucket.require()
        try:
            self._bucket.put(probe, b"1", if_none_match="*")
            if self._bucket.put(probe, b"2", if_none_match="*"):
                raise InputError(
                    f"output {self.uri}: this store ignores If-None-Match, so two runs could overwrite each "
                    "other; use one with conditional writes (AWS S3, MinIO, R2 …) or a local path"
                )
        finally:
            self._bucket.delete(probe)

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        return self._bucket.arrow(), f"{self._bucket.name}/{self._prefix}".rstrip("/")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
