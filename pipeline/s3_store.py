"""A ROOT in S3."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from pipeline.errors import InputError, StoreError
from pipeline.liveness import started, this_process
from pipeline.s3 import S3Bucket
from pipeline.store import Entry


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
