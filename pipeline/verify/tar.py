"""Reads a tar once, from its first byte to its last, hashing the whole and every member on the way."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.storage import Store

BLOCK = 512
BUFFER = 4 << 20


class Member(NamedTuple):
    name: str
    offset: int
    """First byte of the member's data."""
    size: int
    sha256: str
    data: bytes | None
    """Kept for members with an extension that was asked for."""


@dataclass(frozen=True)
class Tar:
    sha256: str
    bytes: int
    members: list[Member]


class TarError(ValueError):
    """The file is not a whole POSIX tar: says where it stops being one."""


def read_tar(store: Store, path: str, keep: tuple[str, ...] = ()) -> Tar:
    """Read a ustar archive of regular files. Raises TarError, FileNotFoundError or OSError."""
    filesystem, root = store.arrow()
    whole = hashlib.sha256()
    members: list[Member] = []
    offset = 0
    with filesystem.open_input_stream(f"{root}/{path}", buffer_size=BUFFER) as stream:
        while True:
            header = stream.read(BLOCK)
            whole.update(header)
            if len(header) < BLOCK:
                raise TarError(f"ends at byte {offset + len(header)} without the two blocks that end a tar")
            offset += BLOCK
            if not header.strip(b"\0"):
                break
            name, size = _parse(header, offset - BLOCK)
            data = stream.read(size + -size % BLOCK)
            whole.update(data)
            if len(data) < size + -size % BLOCK:
                raise TarError(f"is cut short in member {name} (bytes {offset} to {offset + size})")
            data = memoryview(data)[:size]
            kept = bytes(data) if keep and name.endswith(keep) else None
            members.append(Member(name, offset, size, hashlib.sha256(data).hexdigest(), kept))
            offset += size + -size % BLOCK
        while rest := stream.read(BUFFER):
            whole.update(rest)
            offset += len(rest)
            if rest.strip(b"\0"):
                raise TarError(f"has data after its end, before byte {offset}")
    return Tar(whole.hexdigest(), offset, members)


def _parse(header: bytes, offset: int) -> tuple[str, int]:
    try:
        told = int(header[148:156].strip(b"\0 "), 8)
        size = int(header[124:136].strip(b"\0 "), 8)
        name = header[:100].rstrip(b"\0").decode()
    except ValueError:
        raise TarError(f"has no tar header at byte {offset}") from None
    if told != sum(header) - sum(header[148:156]) + 8 * 32:
        raise TarError(f"has a damaged header at byte {offset}")
    if header[156:157] not in (b"0", b"\0"):
        raise TarError(f"has a member that is no regular file at byte {offset}")
    return name, size
