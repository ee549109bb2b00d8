"""A ROOT on a local disk, or on a shared POSIX one."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs

from pipeline.errors import InputError
from pipeline.faults import fault_point
from pipeline.store import Entry

_LOCK = "swap.lock"


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
