"""The boxes of an AVIF file (ISO 14496-12, 23008-12) that say sizes, frames and where metadata lies."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from pipeline.images.av1 import frame_sizes

MAX_BOXES: Final = 20_000
_ORIENTATIONS: Final = {None: (1, 8, 3, 6), 0: (4, 5, 2, 7), 1: (2, 7, 4, 5)}


@dataclass(slots=True)
class AvifInfo:
    """`angle`: quarter turns anti-clockwise (irot); `mirror`: axis (imir), applied after turning.

    `extents`: item → (offset, length) in the file.
    """

    width: int = 0
    height: int = 0
    frames: int = 1
    angle: int = 0
    mirror: int | None = None
    boxes: int = 0
    types: dict[int, bytes] = field(default_factory=dict)
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    in_idat: set[int] = field(default_factory=set)
    idat: int = 0
    loose: list[tuple[int, int]] = field(default_factory=list)

    def metadata(self) -> list[tuple[bytes, list[tuple[int, int]]]]:
        """(Exif or mime, extents) of every item and box that is not drawn."""
        items = [(kind, self.extents.get(item, [])) for item, kind in self.types.items() if kind in (b"Exif", b"mime")]
        return [*items, (b"mime", self.loose)]

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8, that turns and mirrors alike; EXIF's own does not count in AVIF."""
        return _ORIENTATIONS[self.mirror][self.angle]

    def exif(self, data: bytes) -> bytes | None:
        """The TIFF structure of the first Exif item."""
        for kind, extents in self.metadata():
            body = _joined(data, extents) if kind == b"Exif" else b""
            if len(body) > 8:
                return body[4 + int.from_bytes(body[:4], "big") :].removeprefix(b"Exif\0\0")
        return None


def read_avif(data: bytes) -> AvifInfo:
    """Raises ValueError, struct.error or IndexError when the boxes make no sense."""
    info = AvifInfo()
    _walk(data, 0, len(data), info)
    if not info.width:
        raise ValueError("no ispe box")
    for item in info.in_idat:
        info.extents[item] = [(info.idat + start, size) for start, size in info.extents[item]]
    # Extents may overlap: a file of a few bytes must not grow into gigabytes here.
    if sum(size for extents in info.extents.values() for _, size in extents) > 2 * len(data):
        raise ValueError("items overlap")
    for item, kind in info.types.items():
        if kind == b"av01":
            _admit(info, frame_sizes(_joined(data, info.extents.get(item, []))))
    return info


def _joined(data: bytes, extents: list[tuple[int, int]]) -> bytes:
    return b"".join(data[start : start + size] for start, size in extents)


def _admit(info: AvifInfo, sizes: Iterable[tuple[int, int]]) -> None:
    for width, height in sizes:
        info.width, info.height = max(info.width, width), max(info.height, height)


_INSIDE: Final = {
    b"meta": 4,
    b"iprp": 0,
    b"ipco": 0,
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"stsd": 8,
    b"av01": 78,
}
"""Boxes that hold boxes, and the bytes before the first."""


def _boxes(data: bytes, at: int, end: int, info: AvifInfo) -> Iterator[tuple[bytes, int, int]]:
    while at + 8 <= end:
        info.boxes += 1
        if info.boxes > MAX_BOXES:
            raise ValueError(f"more than {MAX_BOXES} boxes")
        size, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        stop = min(end, at + size if size else end)
        if stop < start:
            raise ValueError(f"box {name!r} of {size} bytes")
        yield name, start, stop
        at = stop


def _walk(data: bytes, at: int, end: int, info: AvifInfo) -> None:
    for name, start, stop in _boxes(data, at, end, info):
        if name in _INSIDE:
            _walk(data, start + _INSIDE[name], stop, info)
        elif name == b"ispe":
            _admit(info, [struct.unpack_from(">II", data, start + 4)])
        elif name == b"av1C":
            _admit(info, frame_sizes(data[start + 4 : stop]))
        elif name == b"tkhd" and stop - start >= 8:
            width, height = struct.unpack_from(">II", data, stop - 8)
            _admit(info, [(width >> 16, height >> 16)])
        elif name == b"idat":
            info.idat = start
        elif name == b"irot":
            info.angle = data[start] & 3
        elif name == b"imir":
            info.mirror = data[start] & 1
        elif name == b"stsz":
            (count,) = struct.unpack_from(">I", data, start + 8)
            info.frames = max(info.frames, count)
        elif name in (b"uuid", b"free", b"skip", b"udta"):
            info.loose.append((start, stop - start))
        elif name == b"iinf":
            _items(data, start, stop, info)
        elif name == b"iloc":
            _locations(data, start, info)


def _items(data: bytes, start: int, stop: int, info: AvifInfo) -> None:
    for name, at, _ in _boxes(data, start + (6 if data[start] == 0 else 8), stop, info):
        if name == b"infe" and data[at] in (2, 3):
            item, kind = struct.unpack_from(">H2x4s" if data[at] == 2 else ">I2x4s", data, at + 4)
            info.types[item] = kind


def _locations(data: bytes, start: int, info: AvifInfo) -> None:
    version = data[start]
    sizes, more = data[start + 4], data[start + 5]
    offset_size, length_size, base_size = sizes >> 4, sizes & 15, more >> 4
    index_size = more & 15 if version in (1, 2) else 0
    at = start + 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > len(data):
            raise ValueError("iloc beyond the end of the file")
        return int.from_bytes(data[at - size : at], "big")

    for _ in range(min(number(2 if version < 2 else 4), MAX_BOXES)):
        item = number(2 if version < 2 else 4)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(base_size)
        extents = []
        for _ in range(number(2)):
            number(index_size)
            extents.append((base + number(offset_size), number(length_size)))
            if len(extents) > MAX_BOXES:
                raise ValueError("too many extents")
        if method < 2:
            info.extents[item] = extents
        if method == 1:
            info.in_idat.add(item)
