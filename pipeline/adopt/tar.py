"""The images of a webdataset tar, read once from its first byte to its last and hashed on the way."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.images.errors import ImageError
from pipeline.images.header import read_header
from pipeline.images.sniff import ALLOWED, sniff

BLOCK = 512
HEAD_BYTES = 64
OTHERS = ("json", "txt", "cls", "npy", "npz", "pyd", "pickle")
"""Members of a sample that are no image."""
MAX_HEADER = 1 << 20
"""Bytes of a PAX or GNU header; more is no header that an archiver writes."""


class Image(NamedTuple):
    offset: int
    """First byte of the image in the tar."""
    size: int
    sha256: str
    kind: str | None
    """As sniffed from its bytes; None where they are no image."""
    width: int | None = None
    height: int | None = None


@dataclass
class Images:
    """What a tar holds: key → image. `broken` says where it stops being a tar; what comes before it counts."""

    of: dict[str, Image] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    """Keys with a second image, which is passed over."""
    broken: str | None = None


def read_images(stream: Any, sized: bool) -> Images:
    """Read ustar, PAX (webdataset's own) and GNU archives from a binary stream; `sized` asks for widths and heights."""
    found = Images()
    try:
        _read(stream, found, sized)
    except ValueError as error:
        found.broken = str(error)
    return found


def _read(stream: Any, found: Images, sized: bool) -> None:
    offset = 0
    name: str | None = None
    size: int | None = None
    while True:
        header = stream.read(BLOCK)
        if len(header) < BLOCK:
            raise ValueError(f"ends at byte {offset + len(header)} without the two blocks that end a tar")
        if header[0] == 0 and not header.strip(b"\0"):
            return
        own, length = _parse(header, offset)
        kind = header[156:157]
        offset += BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            if length > MAX_HEADER:
                raise ValueError(f"has a header of {length} bytes at byte {offset - BLOCK}")
            data = _take(stream, length, offset, "a header")
            if kind == b"x":
                name, size = _pax(data, name)
            elif kind == b"L":
                name = data.rstrip(b"\0").decode(errors="replace")
            offset += length + -length % BLOCK
            continue
        named, length = name or own, length if size is None else size
        name = size = None
        data = _take(stream, length, offset, named)
        if kind in (b"0", b"\0"):
            _member(found, named, offset, data, sized)
        offset += length + -length % BLOCK


def _take(stream: Any, length: int, offset: int, what: str) -> bytes:
    padded = length + -length % BLOCK
    data: bytes = stream.read(padded)
    if len(data) < padded:
        raise ValueError(f"is cut short in {what} (bytes {offset} to {offset + length})")
    return data if padded == length else data[:length]


def _member(found: Images, name: str, offset: int, data: bytes, sized: bool) -> None:
    """webdataset's rule: a sample's key is its members' name up to the first dot of its last part."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    key, dot, extension = base.partition(".")
    if not dot or extension.lower() in OTHERS:
        return
    key = f"{folder}{slash}{key}"
    if key in found.of:
        found.twice.append(key)
        return
    digest = hashlib.sha256(data).hexdigest()
    kind = sniff(data[:HEAD_BYTES])
    sides = _sides(data) if sized and kind in ALLOWED else (None, None)
    found.of[key] = Image(offset, len(data), digest, kind, *sides)


def _sides(data: bytes) -> tuple[int | None, int | None]:
    try:
        header = read_header(data, max_frames=1_000)
    except ImageError:
        return None, None
    return header.width, header.height


def _parse(header: bytes, offset: int) -> tuple[str, int]:
    try:
        told = int(header[148:156].strip(b"\0 "), 8)
        if header[124] & 0x80:  # GNU: base 256 for what 11 octal digits cannot say
            size = int.from_bytes(header[125:136], "big")
        else:
            size = int(header[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise ValueError(f"has no tar header at byte {offset}") from None
    # The checksum counts its own field as spaces.
    if told != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise ValueError(f"has a damaged header at byte {offset}")
    name = header[:100].rstrip(b"\0").decode(errors="replace")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    return (f"{prefix.decode(errors='replace')}/{name}" if prefix else name), size


def _pax(data: bytes, name: str | None) -> tuple[str | None, int | None]:
    """The path and size that a PAX header gives the member after it: lines of `length key=value`."""
    size = None
    for line in data.split(b"\n"):
        key, equals, value = line.partition(b" ")[2].partition(b"=")
        if equals and key == b"path":
            name = value.decode(errors="replace")
        elif equals and key == b"size" and value.isdigit():
            size = int(value)
    return name, size
