"""Personal data cut out of image bytes that are kept as they came, without touching a pixel.

JPEG, PNG, WebP and GIF are rebuilt from the parts that drawing needs, so what nobody thought of goes too; what
follows the image's end (a second picture, a film, a thumbnail) goes as well. In AVIF, whose boxes point at each
other by offsets, metadata is overwritten in place.
"""

import re
import struct
import zlib
from typing import Final

from pipeline.images.avif import read_avif
from pipeline.images.errors import ImageError
from pipeline.images.header import riff_chunks, skip_blocks

_MARKER: Final = re.compile(rb"\xff+([^\x00\xff])")
_NEXT_AFTER_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_PNG_KEPT: Final = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT bKGD pHYs cICP mDCV cLLI acTL fcTL fdAT".split()
)
_WEBP_KEPT: Final = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"})
_GIF_KEPT: Final = (b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012")
_EMPTY_TIFF: Final = b"II*\0\x08\0\0\0\0\0\0\0\0\0"


def strip(data: bytes, kind: str, tiff: bytes | None) -> bytes:
    """The same image with no metadata but `tiff` (a TIFF structure for EXIF; None for none).

    A GIF has no place for EXIF, and an AVIF keeps `tiff` only where it fits in the place of the old one.
    Raises ImageError decode_error when the parts make no sense.
    """
    try:
        return _STRIPPERS[kind](data, tiff)
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError("decode_error", f"{kind} parts: {error}") from None


def _jpeg(data: bytes, tiff: bytes | None) -> bytes:
    parts, at, exif = [b"\xff\xd8"], 2, b""
    if tiff and len(tiff) < 65_000:
        exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == 0xD9:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        body, at = data[at + 2 : at + length], at + length
        if marker == 0xE0:
            # JFIF without its thumbnail; JFXX is nothing but one.
            keep = body[:12] + b"\0\0" if body.startswith(b"JFIF\0") and len(body) >= 14 else None
        elif marker == 0xE2:
            keep = body if body.startswith(b"ICC_PROFILE\0") else None
        elif marker == 0xEE:
            keep = body if body.startswith(b"Adobe") else None
        else:
            keep = None if 0xE1 <= marker <= 0xEF or marker == 0xFE else body
        if exif and marker != 0xE0:
            parts.append(exif)
            exif = b""
        if keep is not None:
            parts.append(struct.pack(">BBH", 0xFF, marker, len(keep) + 2) + keep)
        if marker == 0xDA:
            ends = _NEXT_AFTER_SCAN.search(data, at)
            stop = ends.start() if ends else len(data)
            parts.append(data[at:stop])
            at = stop
    return b"".join(parts) + b"\xff\xd9"


def _png(data: bytes, tiff: bytes | None) -> bytes:
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name in _PNG_KEPT:
            parts.append(data[at : at + 12 + length])
        if name == b"IHDR" and tiff:
            parts.append(_png_chunk(b"eXIf", tiff))
        if name == b"IEND":
            break
        at += 12 + length
    return b"".join(parts)


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _webp(data: bytes, tiff: bytes | None) -> bytes:
    chunks = [(name, data[at : at + size]) for name, at, size in riff_chunks(data) if name in _WEBP_KEPT]
    extended = bool(chunks) and chunks[0][0] == b"VP8X"
    if extended:
        flags = chunks[0][1][0] & ~0x0C | (0x08 if tiff else 0)
        chunks[0] = (b"VP8X", bytes([flags]) + chunks[0][1][1:])
        if tiff:
            chunks.append((b"EXIF", tiff))
    body = b"".join(name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for name, part in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _gif(data: bytes, _tiff: bytes | None) -> bytes:
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    parts = [data[:at]]
    while at < len(data) and data[at] != 0x3B:
        start = at
        if data[at] == 0x21:
            at = skip_blocks(data, at + 2)
            # Graphic control (F9) times and clears frames; comments (FE), texts (01) and other applications go.
            if data[start + 1] == 0xF9 or (data[start + 1] == 0xFF and data[start + 3 : start + 14] in _GIF_KEPT):
                parts.append(data[start:at])
        elif data[at] == 0x2C:
            flags = data[at + 9]
            at = skip_blocks(data, at + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
            parts.append(data[start:at])
        else:
            at += 1
    return b"".join(parts) + b";"


def _avif(data: bytes, tiff: bytes | None) -> bytes:
    kept = bytearray(data)
    for kind, extents in read_avif(data).metadata():
        sizes = [max(0, min(size, len(data) - start)) for start, size in extents]
        room = sum(sizes)
        if kind == b"Exif":
            fitting = tiff if tiff and len(tiff) + 4 <= room else _EMPTY_TIFF
            new = (bytes(4) + fitting).ljust(room, b"\0")[:room]
        else:
            new = b" " * room
        for (start, _), size in zip(extents, sizes, strict=True):
            kept[start : start + size], new = new[:size], new[size:]
    return bytes(kept)


_STRIPPERS: Final = {"jpeg": _jpeg, "png": _png, "webp": _webp, "gif": _gif, "avif": _avif}
