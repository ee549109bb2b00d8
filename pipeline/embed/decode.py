"""Pool bytes to an encoder's input.

`full` is open_clip's own preprocessing, bit for bit: the whole image decoded, then resized and cropped by Pillow. With
`scaled`, a JPEG is decoded at the smallest scale n/8 of libjpeg that still covers the resized image (a shorter side of
256 pixels becomes 224 by 7/8), so that what is left to resize is little or nothing.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.encoders.preprocess import Preprocess, resized, to_pixels
from pipeline.images.decode import BROKEN
from pipeline.images.errors import ImageError

MAX_PIXELS: Final = 1 << 27
"""Guard against bombs: `download` lets half of that through by default, adopted tars are whatever they are."""

Pixels = NDArray[np.uint8]

warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(data: bytes, preprocess: Preprocess, scaled: bool) -> Pixels:
    """The encoder's input, uint8 RGB [rows, columns, 3]. Raises ImageError decode_error or decoder_crash (memory)."""
    with judged():
        return to_pixels(decode_rgb(data, preprocess, scaled), preprocess)


def decode_images(data: bytes, preprocesses: Sequence[Preprocess], scaled: bool) -> Iterator[Pixels]:
    """The input of each of several models, as `decode_image` makes it for one; decoded in full, once for all."""
    with judged():
        rgb = None
        for preprocess in preprocesses:
            # At a scale, what one model gets must not depend on which others there are.
            rgb = decode_rgb(data, preprocess, scaled) if rgb is None or scaled else rgb
            yield to_pixels(rgb, preprocess)


def decode_rgb(data: bytes, preprocess: Preprocess, scaled: bool) -> Pixels:
    """The image, uint8 RGB [height, width, 3], not smaller than what `preprocess` resizes it to. Call it `judged`."""
    rgb = _jpeg(data, preprocess, scaled) if data[:2] == b"\xff\xd8" else None
    return _pillow(data) if rgb is None else rgb


@contextlib.contextmanager
def judged() -> Iterator[None]:
    """What decoders raise as ImageError: decode_error or decoder_crash (memory)."""
    try:
        yield
    except MemoryError:
        raise ImageError("decoder_crash", "out of memory") from None
    except UnidentifiedImageError:
        raise ImageError("decode_error", "no image that Pillow can identify") from None
    except BROKEN as error:
        raise ImageError("decode_error", f"{type(error).__name__}: {error}") from None


def _jpeg(data: bytes, preprocess: Preprocess, scaled: bool) -> Pixels | None:
    """None where libjpeg-turbo has anything to complain about, or the colours are Pillow's to judge."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
            return None
        least = resized(height, width, preprocess) if scaled else (0, 0)
        if least[0] >= height or least[1] >= width:
            least = 0, 0  # it would be enlarged
        pixels: Any = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    except ValueError:
        return None
    return np.asarray(pixels, np.uint8)


def _pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError("decode_error", f"{image.width} x {image.height} is above {MAX_PIXELS} pixels")
        return np.asarray(image.convert("RGB"))
