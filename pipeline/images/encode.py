"""BGR pixels to the bytes of a pool image, with OpenCV's encoders and defaults, as img2dataset's."""

from typing import Final

import cv2

from pipeline.images.errors import ImageError
from pipeline.images.resize import Pixels
from schemas.recipe import Download

LARGEST: Final = {"jpg": 65_500, "png": 1_000_000, "webp": 16_383}
"""Longest side in pixels that each encoder takes."""

_FLAG: Final = {"jpg": cv2.IMWRITE_JPEG_QUALITY, "png": cv2.IMWRITE_PNG_COMPRESSION, "webp": cv2.IMWRITE_WEBP_QUALITY}


def quality(settings: Download) -> int:
    """`encode_quality` in its format's range: JPEG 0 to 100, WebP 1 to 100, PNG compression 0 to 9.

    A PNG quality above 9 is a JPEG quality left at its default: zlib's own default, 6.
    """
    if settings.encode_format == "png":
        return settings.encode_quality if settings.encode_quality <= 9 else 6
    return max(1, settings.encode_quality) if settings.encode_format == "webp" else settings.encode_quality


def encode(pixels: Pixels, settings: Download) -> bytes:
    """Raises ImageError decode_error when the encoder refuses."""
    flag = [_FLAG[settings.encode_format], quality(settings)]
    try:
        done, packed = cv2.imencode(f".{settings.encode_format}", pixels, flag)
    except cv2.error as error:
        raise ImageError("decode_error", f"encode: {str(error).strip()}") from None
    if not done:
        raise ImageError("decode_error", f"encode: {settings.encode_format} of {pixels.shape}")
    return bytes(packed.tobytes())
