"""Pool shards: a tar a unit, whose members are found by offset, so that any image is one range request."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from pipeline.tar import BLOCK, TarMembers

_MEMBERS = TarMembers(0o644)


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
        self._end = 0
        self._file = path.open("wb", buffering=1 << 20)

    def add(self, name: str, data: bytes) -> Member:
        """Append one member; `name` is at most 100 ASCII characters."""
        member = b"".join(_MEMBERS.member(name, data))
        self._file.write(member)
        offset = self._end + BLOCK
        self._end += len(member)
        self.members += 1
        return Member(offset, len(data), hashlib.sha256(data).hexdigest())

    def close(self) -> None:
        """End the archive as POSIX asks: two blocks of zeros."""
        if not self._file.closed:
            self._file.write(bytes(2 * BLOCK))
            self._file.close()
