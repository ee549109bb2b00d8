"""Sizes, frames, EXIF and ICC of an image from its header, without decoding a pixel.

Every loop is bounded by the bytes that came, every inflation by MAX_INFLATED: a hostile header costs milliseconds.
"""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from pipeline.images.avif import read_avif
from pipeline.images.errors import ImageError
from pipeline.images.sniff import ALLOWED, sniff

MAX_INFLATED: Final = 1 << 20
"""Bytes a compressed PNG text or profile may inflate to; Pillow's own MAX_TEXT_CHUNK."""
MAX_SCANS: Final = 500
"""Scans of a JPEG: more is a CPU bomb (libjpeg-turbo's own advice, LJT-01-004)."""
MAX_CHUNKS: Final = 100_000

_SOF: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_MARKER: Final = re.compile(rb"\xff+([^\x00\xff])")
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@dataclass(frozen=True, slots=True)
class Header:
    """`pixel_bytes`: bytes a decoded pixel takes; `exif`: a TIFF structure; `plain`: opaque, 8 bits a channel.

    `orientation`: 1 to 8 where the container states it; None: EXIF's counts.
    """

    kind: str
    width: int
    height: int
    frames: int = 1
    pixel_bytes: int = 3
    exif: bytes | None = None
    icc: bytes | None = None
    plain: bool = True
    orientation: int | None = None


def read_header(data: bytes, max_frames: int) -> Header:
    """Sniff and read the header; counting frames stops above `max_frames`.

    Raises ImageError: not_an_image, unsupported_format, decode_error, or too_many_pixels for a compressed bomb.
    """
    kind = sniff(data)
    if kind is None:
        raise ImageError("not_an_image", f"{len(data)} bytes starting {data[:16]!r}")
    if kind not in ALLOWED:
        raise ImageError("unsupported_format", kind)
    try:
        header = _READERS[kind](data, max_frames)
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError("decode_error", f"{kind} header: {error}") from None
    if header.width < 1 or header.height < 1:
        raise ImageError("decode_error", f"{kind} of {header.width} x {header.height} pixels")
    return header


def _jpeg(data: bytes, _max_frames: int) -> Header:
    at, exif = 2, None
    profile: dict[int, bytes] = {}
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker in _SOF:
            depth, height, width, components = struct.unpack_from(">BHHB", data, at + 2)
            if marker == 0xC2 and data.count(b"\xff\xda") > MAX_SCANS:
                raise ImageError("too_many_pixels", f"more than {MAX_SCANS} scans")
            icc = b"".join(profile[part] for part in sorted(profile)) or None
            size = components * (2 if depth > 8 else 1)
            return Header("jpeg", width, height, 1, max(3, size), exif, icc, plain=components != 4)
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        if marker in (0xD9, 0xDA):
            break
        (length,) = struct.unpack_from(">H", data, at)
        body = data[at + 2 : at + length] if marker in (0xE1, 0xE2) else b""
        if marker == 0xE1 and exif is None and body.startswith(b"Exif\0"):
            exif = body[6:]
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile[body[12]] = body[14:]
        at += length
    raise ImageError("decode_error", "jpeg header: no frame before the end or the first scan")


def _png(data: bytes, _max_frames: int) -> Header:
    if data[12:16] != b"IHDR":
        raise ValueError("IHDR is not first")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if colour not in _PNG_CHANNELS:
        raise ValueError(f"colour type {colour}")
    frames, exif, icc, plain = 0, None, None, colour in (0, 2, 3) and depth <= 8
    at = 33
    for number in range(MAX_CHUNKS + 1):
        if at + 8 > len(data):
            break
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length] if name in _PNG_READ else b""
        if name == b"IEND":
            break
        if name == b"tRNS":
            plain = False
        elif name == b"fcTL":
            frames += 1  # acTL only claims a number
        elif name == b"eXIf":
            exif = body.removeprefix(b"Exif\0\0")
        elif name in (b"iCCP", b"zTXt"):
            inflated = inflate(name, body.partition(b"\0")[2][1:])
            icc = inflated if name == b"iCCP" else icc
        elif name == b"iTXt":
            rest = body.partition(b"\0")[2]
            if rest[:1] == b"\1":
                inflate(name, rest[2:].partition(b"\0")[2].partition(b"\0")[2])
        at += 12 + length
        if number == MAX_CHUNKS:
            raise ValueError(f"more than {MAX_CHUNKS} chunks")
    # Pillow holds 1, 2 and 4 bit pixels in a byte, and 24 bits in four.
    pixel = max(4, _PNG_CHANNELS[colour] * (2 if depth == 16 else 1))
    return Header("png", width, height, max(1, frames), pixel, exif, icc, plain)


_PNG_READ: Final = frozenset({b"eXIf", b"iCCP", b"zTXt", b"iTXt"})


def inflate(name: bytes, packed: bytes) -> bytes | None:
    """The inflated bytes, None when they are corrupt (which the decoder judges); raises ImageError on a bomb."""
    unpacker = zlib.decompressobj()
    try:
        inflated = unpacker.decompress(packed, MAX_INFLATED + 1)
    except zlib.error:
        return None
    if len(inflated) > MAX_INFLATED:
        raise ImageError("too_many_pixels", f"{name.decode()} inflates beyond {MAX_INFLATED} bytes")
    return inflated


def _gif(data: bytes, max_frames: int) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    frames = 0
    while at < len(data) and frames <= max_frames:
        block = data[at]
        if block == 0x3B:
            break
        if block == 0x21:
            at = skip_blocks(data, at + 2)
        elif block == 0x2C and at + 10 <= len(data):
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, at + 1)
            if frames == 0:
                # A decoder enlarges the canvas to hold the first frame.
                width, height = max(width, left + wide), max(height, top + high)
            frames += 1
            at = skip_blocks(data, at + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
        else:
            at += 1
    if frames == 0:
        raise ValueError("no frame")
    return Header("gif", width, height, frames, 4, plain=False)


def skip_blocks(data: bytes, at: int) -> int:
    """Offset after the GIF sub-blocks that start at `at`."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1


def _webp(data: bytes, max_frames: int) -> Header:
    width = height = frames = 0
    exif = icc = None
    plain = True
    for name, start, size in riff_chunks(data):
        if name == b"VP8X":
            flags = data[start]
            plain = plain and not flags & 0x10
            width = max(width, 1 + int.from_bytes(data[start + 4 : start + 7], "little"))
            height = max(height, 1 + int.from_bytes(data[start + 7 : start + 10], "little"))
        elif name == b"VP8 ":
            wide, high = struct.unpack_from("<HH", data, start + 6)
            width, height = max(width, wide & 0x3FFF), max(height, high & 0x3FFF)
        elif name == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, start + 1)
            width, height = max(width, 1 + (bits & 0x3FFF)), max(height, 1 + (bits >> 14 & 0x3FFF))
            plain = plain and not bits >> 28 & 1
        elif name == b"ANMF":
            frames += 1
            if frames > max_frames:
                break
        elif name == b"EXIF" and exif is None:
            exif = data[start : start + size].removeprefix(b"Exif\0\0")
        elif name == b"ICCP" and icc is None:
            icc = data[start : start + size]
    return Header("webp", width, height, max(1, frames), 4, exif, icc, plain)


def riff_chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """(name, offset of the body, size) of the chunks of a RIFF file; raises ValueError on too many."""
    chunks, at = [], 12
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        chunks.append((name, at + 8, size))
        at += 8 + size + size % 2
        if len(chunks) > MAX_CHUNKS:
            raise ValueError(f"more than {MAX_CHUNKS} chunks")
    return chunks


def _avif(data: bytes, _max_frames: int) -> Header:
    info = read_avif(data)
    return Header(
        "avif", info.width, info.height, info.frames, 4, info.exif(data), plain=False, orientation=info.orientation
    )


_READERS: Final = {"jpeg": _jpeg, "png": _png, "gif": _gif, "webp": _webp, "avif": _avif}
