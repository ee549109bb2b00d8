"""A ROOT's files, on a local disk or in S3: whole files under final names, and records created exclusively."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from pipeline.errors import InputError, StoreError
from pipeline.faults import fault_point
from pipeline.liveness import started, this_process
from pipeline.s3 import S3Bucket


class Entry(NamedTuple):
    path: str
    """Relative to the store's root."""
    size: int


class Store(Protocol):
    """Paths are relative to the root, with `/`. Every write is whole or not there."""

    uri: str
    parallel_reads: int
    """Small reads worth having under way at a time."""

    def read(self, path: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the file's end. Raises FileNotFoundError."""

    def read_tagged(self, path: str) -> tuple[bytes, str] | None:
        """The file's bytes and its ETag, or None where there is no file."""

    def publish(self, local: Path, path: str) -> None:
        """Move a finished local file to its final name: fsync and rename, or one PUT or completed multipart."""

    def create(self, path: str, data: bytes, check: Callable[[], None] | None = None) -> bool:
        """Create the file if there is none. True if it now holds `data` by our doing or an earlier try of ours.

        `check` is called last before that; what it raises leaves no file. On a disk there is none either, but a
        FileNotFoundError, where scratch is cleared after the check.
        """

    def replace(self, path: str, data: bytes) -> None:
        """Write the file atomically, whatever was there."""

    def swap(self, path: str, data: bytes, etag: str) -> bool:
        """Replace the file only if its ETag is still `etag`; False if it is not."""

    def files(self, prefix: str) -> Iterator[Entry]:
        """Every file below the folder `prefix` ("" for all), in no order; nothing where there is no such folder."""

    def tag(self, path: str) -> str | None:
        """The file's ETag, or None where there is no file. On a disk it is the sha256 of the bytes: all are read."""

    def tags(self) -> Iterator[tuple[str, str]]:
        """(path, ETag) of every file, in no order."""

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below `prefix`, sorted."""

    def size(self, path: str) -> int | None:
        """The file's size in bytes, or None."""

    def delete(self, path: str, etag: str | None = None) -> bool:
        """Remove the file if it is there and, given an ETag, only if it still has it; False if it has another."""

    def unfinished(self) -> list[Entry]:
        """What killed writers left that is no file yet (scratch, uploads); only for the holder of the lease."""

    def discard(self, path: str) -> None:
        """Remove one thing that `unfinished` named."""

    def versioned(self) -> bool | None:
        """Whether removed and replaced files are kept as old versions; None where that cannot be known."""

    def scratch(self) -> Path:
        """A new empty folder on local disk, cheap to publish from."""

    def check(self) -> None:
        """Raise InputError or OSError, with the way out, if the store cannot keep our promises."""

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        """A pyarrow filesystem for reading, and the root's path in it."""


_LOCK = "swap.lock"


def locate(store: Store, pool_file: str) -> tuple[Store, str]:
    """The store that holds a pool file, and its path there: ROOT's own, or that of an adopted tar's absolute URI."""
    return holder(pool_file) if "://" in pool_file else (store, pool_file)


def holder(uri: str) -> tuple[Store, str]:
    """A store for the folder of the file at an absolute URI, and the file's name in it."""
    folder, _, name = uri.rpartition("/")
    return _folder(folder), name


@functools.cache
def _folder(uri: str) -> Store:
    return open_store(uri)


def find_place(place: str) -> tuple[Store, str]:
    """A store for what a user names by path or URI: of a folder, and "", or of the file's folder, and its name."""
    place = (place if "://" in place else str(Path(place).absolute())).rstrip("/")
    folder = open_store(place)
    is_folder = folder.root.is_dir() if isinstance(folder, LocalStore) else next(folder.files(""), None) is not None
    return (folder, "") if is_folder else holder(place)


def content_tag(place: str) -> str:
    """What changes with the names and content of a file or folder: its ETag, or the digest of those of its files.

    On a disk every byte is read, in S3 none. Raises FileNotFoundError.
    """
    store, name = find_place(place)
    tag = store.tag(name) if name else hashlib.sha256(json.dumps(sorted(store.tags())).encode()).hexdigest()
    if tag is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
    return tag


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

    parallel_reads = 1

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
        _make(target.parent)
        if local.stat().st_dev != target.parent.stat().st_dev:
            with self._temporary() as copy:
                shutil.copyfile(local, copy)
                _rename(copy, target)
            local.unlink()
        else:
            _rename(local, target)

    def create(self, path: str, data: bytes, check: Callable[[], None] | None = None) -> bool:
        target = self.root / path
        _make(target.parent)
        with self._written(data, in_scratch=check is not None) as temporary:
            if check is not None:
                check()
                fault_point("after-check")
            try:
                os.link(temporary, target)
            except FileExistsError:
                return target.read_bytes() == data
        _fsync(target.parent)
        return True

    def replace(self, path: str, data: bytes) -> None:
        target = self.root / path
        _make(target.parent)
        with self._written(data) as temporary:
            _rename(temporary, target)

    def swap(self, path: str, data: bytes, etag: str) -> bool:
        with self._locked():
            current = self.read_tagged(path)
            if current is None or current[1] != etag:
                return False
            self.replace(path, data)
            return True

    def files(self, prefix: str) -> Iterator[Entry]:
        folders = [self.root / prefix]
        cut = len(str(self.root).rstrip("/")) + 1
        while folders:
            try:
                entries = os.scandir(folders.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue
            with entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path != str(self._tmp):
                            folders.append(Path(entry.path))
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        yield Entry(entry.path[cut:], entry.stat().st_size)

    def tag(self, path: str) -> str | None:
        try:
            with (self.root / path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def tags(self) -> Iterator[tuple[str, str]]:
        paths = [path for path, _ in self.files("")]
        with ThreadPoolExecutor() as pool:
            for path, tag in zip(paths, pool.map(self.tag, paths), strict=True):
                if tag is not None:
                    yield path, tag

    def folders(self, prefix: str) -> list[str]:
        try:
            entries = os.scandir(self.root / prefix)
            return sorted(entry.name for entry in entries if entry.is_dir() and entry.path != str(self._tmp))
        except FileNotFoundError:
            return []

    def size(self, path: str) -> int | None:
        try:
            return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    def delete(self, path: str, etag: str | None = None) -> bool:
        if etag is None:
            (self.root / path).unlink(missing_ok=True)
            return True
        with self._locked():
            current = self.read_tagged(path)
            if current is not None and current[1] != etag:
                return False
            (self.root / path).unlink(missing_ok=True)
            return True

    def versioned(self) -> bool | None:
        return False

    def scratch(self) -> Path:
        _make(self._tmp)
        folder = self._tmp / uuid.uuid4().hex
        folder.mkdir()
        return folder

    def check(self) -> None:
        try:
            with self._written(b"") as temporary, self._temporary() as link:
                os.link(temporary, link)
        except OSError as error:
            raise InputError(
                f"output {self.uri}: cannot write here ({error.strerror}); give a folder that you may write to, "
                "on a disk that has hard links"
            ) from None

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        return pafs.LocalFileSystem(), self.uri

    def clear_scratch(self) -> None:
        """Remove what killed runs left unfinished; only for the holder of the lease."""
        for entry in self.unfinished():
            self.discard(entry.path)

    def unfinished(self) -> list[Entry]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._tmp):
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        inside = (path.lstat().st_size for path in Path(entry.path).rglob("*") if path.is_file())
                        found.append(Entry(f"{self._tmp.name}/{entry.name}", sum(inside)))
                    elif entry.name != _LOCK and time.time() - entry.stat().st_mtime > 60:
                        # Younger ones may be those of other runs, which ask for the lease.
                        found.append(Entry(f"{self._tmp.name}/{entry.name}", entry.stat().st_size))
        return sorted(found)

    def discard(self, path: str) -> None:
        if (self.root / path).is_dir():
            shutil.rmtree(self.root / path, ignore_errors=True)
        else:
            (self.root / path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A name in ROOT/.tmp; whatever is left under it at the end goes, also after a full disk."""
        _make(self._tmp)
        path = self._tmp / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _written(self, data: bytes, in_scratch: bool = False) -> Iterator[Path]:
        """A file with the data; `in_scratch` in a folder of its own there, which is cleared whatever its age."""
        with contextlib.ExitStack() as stack:
            if in_scratch:
                path = self.scratch() / "data"
                stack.callback(shutil.rmtree, path.parent, ignore_errors=True)
            else:
                path = stack.enter_context(self._temporary())
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield path

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process and thread at a time; the kernel gives the lock back when its holder dies."""
        _make(self._tmp)
        with (self._tmp / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class S3Store:
    """Objects below s3://bucket/prefix. The endpoint and credentials are those of the environment (boto3's rules)."""

    parallel_reads = 48

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.uri = uri.rstrip("/")
        self._bucket = S3Bucket(parts.netloc)
        self._prefix = parts.path.strip("/")

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _folder(self, prefix: str) -> str:
        """The key that everything below a folder begins with; "" for the whole bucket."""
        key = self._key(prefix).rstrip("/")
        return f"{key}/" if key else ""

    def read(self, path: str) -> bytes:
        found = self._bucket.get(self._key(path))
        if found is None:
            raise FileNotFoundError(f"{self.uri}/{path}")
        return found[0]

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        if size == 0:  # which a Range header cannot say
            return b""
        found = self._bucket.get(self._key(path), f"bytes={offset}-{offset + size - 1}")
        if found is None and self.size(path) is None:
            raise FileNotFoundError(f"{self.uri}/{path}")
        return found[0] if found else b""

    def read_tagged(self, path: str) -> tuple[bytes, str] | None:
        return self._bucket.get(self._key(path))

    def publish(self, local: Path, path: str) -> None:
        self._bucket.upload(local, self._key(path))
        local.unlink()

    def create(self, path: str, data: bytes, check: Callable[[], None] | None = None) -> bool:
        key = self._key(path)
        if check is not None:
            check()
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
        return (entry for entry, _ in self._listed(prefix))

    def tag(self, path: str) -> str | None:
        return self._bucket.tag(self._key(path))

    def tags(self) -> Iterator[tuple[str, str]]:
        return ((entry.path, tag) for entry, tag in self._listed(""))

    def _listed(self, prefix: str) -> Iterator[tuple[Entry, str]]:
        cut = len(self._prefix) + 1 if self._prefix else 0
        for key, size, tag in self._bucket.list_tagged(self._folder(prefix)):
            if not key.endswith("/"):  # consoles mark empty folders with such objects
                yield Entry(key[cut:], size), tag

    def folders(self, prefix: str) -> list[str]:
        return sorted(self._bucket.folders(self._folder(prefix)))

    def size(self, path: str) -> int | None:
        return self._bucket.size(self._key(path))

    def delete(self, path: str, etag: str | None = None) -> bool:
        return self._bucket.delete(self._key(path), etag)

    def unfinished(self) -> list[Entry]:
        cut = len(self._prefix) + 1 if self._prefix else 0
        return sorted(
            Entry(f"{key[cut:]}?uploadId={name}", size) for key, name, size in self._bucket.uploads(self._folder(""))
        )

    def discard(self, path: str) -> None:
        path, _, upload = path.rpartition("?uploadId=")
        self._bucket.abort(self._key(path), upload)

    def versioned(self) -> bool | None:
        return self._bucket.versioned()

    def scratch(self) -> Path:
        _clear_dead_scratch()
        pid, begun = this_process()
        return Path(tempfile.mkdtemp(prefix=f"pairmill-{pid}-{begun}-"))

    def check(self) -> None:
        """Also asks whether both conditions on writes are kept: without them two runs could overwrite each other."""
        self._bucket.require()
        probe = self._key(f".probe-{uuid.uuid4().hex}")
        try:
            held = self._bucket.put(probe, b"1", if_none_match="*") and not (
                self._bucket.put(probe, b"2", if_none_match="*")
                or self._bucket.put(probe, b"3", if_match='"00000000000000000000000000000000"')
            )
            why = "ignores If-None-Match or If-Match"
        except StoreError as error:
            held, why = False, f"refuses If-None-Match or If-Match, or our writing ({error})"
        with contextlib.suppress(StoreError):
            self._bucket.delete(probe)
        if not held:
            raise InputError(
                f"output {self.uri}: this store {why}, so two runs could overwrite each other; "
                "use one with conditional writes (AWS S3, MinIO, R2 …) or a local path"
            )

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        return self._bucket.arrow(), f"{self._bucket.name}/{self._prefix}".rstrip("/")


def _clear_dead_scratch() -> None:
    """Remove the scratch folders that dead processes of this machine and user left in its temporary folder."""
    for entry in Path(tempfile.gettempdir()).glob("pairmill-*-*-*"):
        _, pid, begun, _ = entry.name.split("-", 3)
        with contextlib.suppress(FileNotFoundError):
            if pid.isdigit() and started(int(pid)) != begun and entry.stat().st_uid == os.getuid():
                shutil.rmtree(entry, ignore_errors=True)


def _make(folder: Path) -> None:
    """Create a folder and its parents durably: each new name is on disk before what goes into it."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)


def _rename(local: Path, target: Path) -> None:
    _fsync(local)
    local.rename(target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
