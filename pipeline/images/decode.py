"""Bytes to RGB pixels as a viewer would show them, orientation aside: colour, depth, palette and alpha resolved.

JPEGs go through libjpeg-turbo with its DCT scaling, everything else through Pillow (first frame). What the fast path
will not decode cleanly, Pillow judges: its strict load decides what is corrupt.
"""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError

from pipeline.images.colour import apply, to_srgb
from pipeline.images.errors import ImageError
from pipeline.images.header import Header
from pipeline.images.resize import Pixels

warnings.filterwarnings("ignore", module=r"PIL\.")  # the web is full of odd EXIF; rows say what matters
cv2.setNumThreads(0)  # one image a thread: a pool inside each would fight the other workers for the cores

BROKEN: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
)
"""What Pillow's plugins raise on corrupt files."""

_BAND: Final = 512
"""Rows converted at a time: an image of max_pixels would otherwise be in memory five times over."""

_FORMATS: Final = {"jpeg": ["JPEG"], "png": ["PNG"], "webp": ["WEBP"], "gif": ["GIF"], "avif": ["AVIF"]}


def decode(data: bytes, header: Header, least: tuple[int, int], background: tuple[int, int, int]) -> tuple[Pixels, int]:
    """(pixels [height, width, 3] in BGR order, denominator of the scale they were decoded at: 1, 2, 4 or 8).

    A JPEG may come scaled down by 2, 4 or 8, never below `least` (width, height).
    Raises ImageError: decode_error, too_many_pixels, decoder_crash (out of memory).
    """
    with _typed(header.kind):
        if header.kind == "jpeg" and header.plain:
            found = _turbo(data, header, least)
            if found is not None:
                return found
        return _pillow(data, header, least, background)


def as_shown(data: bytes, header: Header) -> Header:
    """The header of an AVIF with the size its decoder gives: a grid's tiles may reach beyond what it shows.

    Raises ImageError decode_error.
    """
    with _typed(header.kind), Image.open(io.BytesIO(data), formats=_FORMATS[header.kind]) as image:
        return replace(header, width=image.width, height=image.height)


@contextlib.contextmanager
def _typed(kind: str) -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from None
    except MemoryError:
        raise ImageError("decoder_crash", "out of memory") from None
    except UnidentifiedImageError:
        raise ImageError("decode_error", f"{kind} that Pillow cannot identify") from None
    except BROKEN as error:
        raise ImageError("decode_error", f"{type(error).__name__}: {error}") from None


def scale_for(header: Header, least: tuple[int, int]) -> int:
    """Largest of 8, 4, 2, 1 by which the image can shrink and still hold `least`.

    Only powers of two: libjpeg-turbo's other scales have no SIMD and, measured, alias more.
    """
    for scale in (8, 4, 2):
        if -(-header.width // scale) >= least[0] and -(-header.height // scale) >= least[1]:
            return scale
    return 1


def _turbo(data: bytes, header: Header, least: tuple[int, int]) -> tuple[Pixels, int] | None:
    """None when libjpeg-turbo has anything to complain about."""
    transform = to_srgb(header.icc, "RGB") if header.icc else None
    grey = to_srgb(header.icc, "L") if header.icc and transform is None else None
    if grey is not None:
        return None  # rare: a grey profile
    scale = scale_for(header, least)
    # simplejpeg takes the smallest scale that holds these; 0 leaves the size alone.
    width, height = (-(-header.width // scale), -(-header.height // scale)) if scale > 1 else (0, 0)
    order = "RGB" if transform else "BGR"
    try:
        pixels = simplejpeg.decode_jpeg(data, order, min_height=height, min_width=width)
    except ValueError:
        return None
    if transform:
        pixels = np.array(apply(Image.fromarray(pixels), transform))[..., ::-1]
        return np.ascontiguousarray(pixels), scale
    return pixels, scale


def _pillow(
    data: bytes, header: Header, least: tuple[int, int], background: tuple[int, int, int]
) -> tuple[Pixels, int]:
    with Image.open(io.BytesIO(data), formats=_FORMATS[header.kind]) as image:
        if image.width > header.width or image.height > header.height:
            raise ImageError("decode_error", f"the header says {header.width} x {header.height}, Pillow {image.size}")
        scale = scale_for(header, least) if header.kind == "jpeg" else 1
        if scale > 1:
            image.draft(None, (-(-header.width // scale), -(-header.height // scale)))
        image.load()
        profile: Any = header.icc or image.info.get("icc_profile")
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, _BAND):
            band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
            rgb = _to_rgb(band, profile if isinstance(profile, bytes) else None, background)
            cv2.cvtColor(np.asarray(rgb), cv2.COLOR_RGB2BGR, dst=pixels[top : top + _BAND])
        return pixels, scale


def _to_rgb(image: Image.Image, profile: bytes | None, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits of grey; Pillow's own convert would clip them to white.
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    transform = to_srgb(profile, image.mode) if profile else None
    image = apply(image, transform) if transform else image.convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(image, mask=alpha)
        return canvas
    return image
