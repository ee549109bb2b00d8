"""Unusual images and hostile ones, small on the wire whatever they claim to be."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from PIL import Image

from jobs.demo.pictures import encode, paint


def _photo(number: int) -> Image.Image:
    return Image.fromarray(cv2.cvtColor(paint(0, 16 * number + 3), cv2.COLOR_BGR2RGB))


def _saved(image: Image.Image, format_: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def _turned(number: int) -> bytes:
    """Stored lying on its side, with EXIF orientation 6, a maker, and a place that nobody should keep."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Pairmill"
    exif.get_ifd(0x8825)[1] = "N"
    return _saved(_photo(number).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=88)


def _animated(number: int) -> bytes:
    frames = [_photo(number).resize((96, 64)), _photo(number + 1).resize((96, 64))]
    return _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)


def _alpha(number: int) -> bytes:
    image = _photo(number).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return _saved(image, "PNG", compress_level=1)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png_bomb(_number: int) -> bytes:
    """30,000 × 30,000 pixels in a few hundred bytes; the first rows are really there."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(bytes(90_001 * 4), 9))
        + _chunk(b"IEND", b"")
    )


def _gif_bomb(_number: int) -> bytes:
    """35 bytes that claim 9,000 × 9,000 pixels."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 9000, 9000, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, 9000, 9000, 0) + b"\x02\x02\x44\x01\x00;"


def _svg(_number: int) -> bytes:
    return b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect/></svg>\n'


def _cut_jpeg(number: int) -> bytes:
    whole = encode(paint(0, 16 * number + 3), "jpg")
    return whole[: len(whole) // 3]


_MAKERS: Final[dict[str, Callable[[int], bytes]]] = {
    "turned": _turned,
    "cmyk": lambda number: _saved(_photo(number).convert("CMYK"), "JPEG"),
    "grey": lambda number: _saved(_photo(number).convert("L"), "JPEG"),
    "progressive": lambda number: _saved(_photo(number), "JPEG", progressive=True),
    "sixteen-bit": lambda number: encode(paint(0, number).astype(np.uint16) * 257, "png"),  # type: ignore[arg-type]
    "alpha": _alpha,
    "palette": lambda number: _saved(_photo(number).quantize(64), "PNG"),
    "animated": _animated,
    "svg": _svg,
    "bmp": lambda number: encode(cv2.resize(paint(0, number), (64, 64)), "bmp"),
    "png-bomb": _png_bomb,
    "gif-bomb": _gif_bomb,
    "cut-jpeg": _cut_jpeg,
}
MADE: Final = frozenset(_MAKERS)


@lru_cache(maxsize=512)
def make(kind: str, number: int) -> bytes:
    """The bytes of a kind of image; one of three variants."""
    return _MAKERS[kind](number % 3)


@lru_cache(maxsize=1)
def gzip_bomb() -> bytes:
    """1 MB that inflates to 1 GiB in one stream: 1,024 times the same full-flushed deflate block of 1 MiB of zeros.

    Its checksum is wrong; whoever gets that far to see it has other worries.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    return header + block * 1024 + deflate.flush(zlib.Z_FINISH) + struct.pack("<II", 0, 1 << 30)
