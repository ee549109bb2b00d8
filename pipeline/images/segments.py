"""Where an image file keeps XMP packets and C2PA manifest stores: found by walking its parts, without decoding.

JPEG: APP1 with extended XMP (XMP specification part 3, 1.1.3) and APP11 (C2PA 2.2, A.3.1); PNG: iTXt and caBX; WebP:
`XMP ` and `C2PA`; GIF: application extensions; AVIF: mime items and uuid boxes. What is found is untrusted.
"""

import re
import struct
from collections.abc import Iterator
from typing import Final, Literal

from pipeline.images.avif import read_avif
from pipeline.images.errors import ImageError
from pipeline.images.header import MAX_CHUNKS, inflate, riff_chunks, skip_blocks
from pipeline.images.sniff import sniff

Kind = Literal["xmp", "c2pa"]
Segment = tuple[Kind, bytes]

_MARKER: Final = re.compile(rb"\xff+([^\x00\xff])")
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENDED: Final = b"http://ns.adobe.com/xmp/extension/\0"
_EXTENDED_HEAD: Final = len(_EXTENDED) + 40
_PNG_XMP: Final = b"XML:com.adobe.xmp\0"
_GIF_XMP: Final = b"\x21\xff\x0bXMP DataXMP"
_GIF_TRAILER: Final = b"\1\xff\xfe\xfd"
_GIF_C2PA: Final = b"\x21\xff\x0bC2PA_GIF\x01\x00\x00"
_GIF_C2PA_WITHIN: Final = 64 << 10
"""The store comes before the first picture, so the rest need not be searched."""
_BMFF_XMP: Final = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_BMFF_C2PA: Final = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


def read_segments(data: bytes) -> list[Segment]:
    """The packets and stores of an image, in the order of the file; none where its parts make no sense, which the
    header's reader judges, and none in other kinds of file."""
    reader = _READERS.get(sniff(data) or "")
    try:
        return list(reader(data)) if reader else []
    except (struct.error, IndexError, ValueError, ImageError):
        return []


def _jpeg(data: bytes) -> Iterator[Segment]:
    at = 2
    extended: dict[bytes, list[tuple[int, bytes]]] = {}
    boxes: dict[bytes, list[tuple[int, bytes]]] = {}
    while found := _MARKER.match(data, at) or _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        if marker in (0xD9, 0xDA) or at + 2 > len(data):
            break
        end = at + (data[at] << 8 | data[at + 1])
        if marker == 0xE1:
            if data.startswith(_XMP, at + 2):
                yield "xmp", data[at + 2 + len(_XMP) : end]
            elif data.startswith(_EXTENDED, at + 2) and end - at - 2 > _EXTENDED_HEAD:
                start = at + 2 + len(_EXTENDED)
                (offset,) = struct.unpack_from(">I", data, start + 36)
                extended.setdefault(data[start : start + 32], []).append((offset, data[start + 40 : end]))
        elif marker == 0xEB and data.startswith(b"JP", at + 2) and end - at > 18:
            # Each piece: JP, the box's instance (2 bytes), the piece's number (4), and the box's own header again.
            (number,) = struct.unpack_from(">I", data, at + 6)
            boxes.setdefault(data[at + 4 : at + 6], []).append((number, data[at + 10 : end]))
        at = max(at + 2, end)
    for pieces in extended.values():
        yield "xmp", b"".join(piece for _, piece in sorted(pieces))
    for pieces in boxes.values():
        first, *rest = [piece for _, piece in sorted(pieces)]
        header = 16 if first[:4] == b"\0\0\0\1" else 8
        yield "c2pa", first + b"".join(piece[header:] for piece in rest)


def _png(data: bytes) -> Iterator[Segment]:
    at = 8
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"caBX":
            yield "c2pa", data[at + 8 : at + 8 + length]
        elif name == b"iTXt" and data.startswith(_PNG_XMP, at + 8):
            body = data[at + 8 + len(_PNG_XMP) : at + 8 + length]
            text = body[2:].partition(b"\0")[2].partition(b"\0")[2]
            yield "xmp", (inflate(name, text) or b"") if body[:1] == b"\1" else text
        at += 12 + length


def _webp(data: bytes) -> Iterator[Segment]:
    for name, at, size in riff_chunks(data):
        if name in (b"XMP ", b"C2PA"):
            yield ("xmp" if name == b"XMP " else "c2pa"), data[at : at + size]


def _gif(data: bytes) -> Iterator[Segment]:
    if (at := data.find(_GIF_XMP)) >= 0:
        # XMP lies there as it is; its trailer lets readers of sub-blocks come out at the end.
        yield "xmp", data[at + 14 : skip_blocks(data, at + 14)].partition(_GIF_TRAILER)[0]
    if (at := data.find(_GIF_C2PA, 0, _GIF_C2PA_WITHIN)) >= 0:
        parts, at = [], at + 14
        while at < len(data) and data[at]:
            parts.append(data[at + 1 : at + 1 + data[at]])
            at += 1 + data[at]
        yield "c2pa", b"".join(parts)


def _avif(data: bytes) -> Iterator[Segment]:
    if not _may_tell(data):
        return
    for kind, extents in read_avif(data).metadata():
        if kind != b"mime":
            continue
        pieces = [data[start : start + size] for start, size in extents]
        loose = [piece for piece in pieces if piece.startswith((_BMFF_XMP, _BMFF_C2PA))]
        for piece in loose:
            if piece.startswith(_BMFF_XMP):
                yield "xmp", piece[16:]
            else:
                # Version and flags, the purpose's name with its zero, and 8 bytes of offset come before the store.
                yield "c2pa", piece[20:].partition(b"\0")[2][8:]
        if not loose:
            yield "xmp", b"".join(pieces)


def _may_tell(data: bytes) -> bool:
    """Whether an AVIF has an item or an outer box that could be metadata: asked first, as reading them all is dear."""
    at = 0
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return False
        size, name = struct.unpack_from(">I4s", data, at)
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, at + 8)
        end = at + size if size else len(data)
        if name == b"uuid" or (name == b"meta" and data.find(b"mime", at, end) >= 0):
            return True
        at = max(at + 8, end)
    return True


_READERS: Final = {"jpeg": _jpeg, "png": _png, "webp": _webp, "gif": _gif, "avif": _avif}
