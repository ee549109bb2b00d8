"""What a ROOT's files lie in: whole files under final names, and records created exclusively."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow.fs as pafs


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
