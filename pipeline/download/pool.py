"""Pool shards: a tar a unit, whose members are found by offset, so that any image is one range request."""

import hashlib
import tarfile
from pathlib import Path
from typing import NamedTuple

_BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    offset: int
    """First byte of the image in the tar."""
    size: int
    sha256: str


class PoolWriter:
    """Appends images to a tar on local disk. Nobody sees the file before a commit publishes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members = 0
        self._file = path.open("wb", buffering=1 << 20)

    def add(self, name: str, data: bytes) -> Member:
        """Append one member; `name` is at most 100 ASCII characters."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._file.write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._file.tell()
        self._file.write(data)
        self._file.write(b"\0" * (-len(data) % _BLOCK))
        self.members += 1
        return Member(offset, len(data), hashlib.sha256(data).hexdigest())

    def close(self) -> None:
        """End the archive as POSIX asks: two blocks of zeros."""
        if not self._file.closed:
            self._file.write(b"\0" * 2 * _BLOCK)
            self._file.close()
