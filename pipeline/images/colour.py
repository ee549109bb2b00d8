"""ICC profiles to sRGB, by Little CMS through Pillow. Images that say sRGB, or nothing, pay almost nothing."""

import io
from functools import lru_cache
from typing import Final

from PIL import Image, ImageCms

_SPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_SAME: Final = 2
"""Levels of 255 within which a profile counts as sRGB: rounding in the tables of its many editions."""


@lru_cache(maxsize=32)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of images of `mode` (L, RGB, CMYK) with this profile to sRGB.

    None where there is nothing to do: the profile is sRGB in effect, is for another kind of image, or is broken
    (a viewer ignores it then, and so do we).
    """
    if mode not in _SPACES:
        return None
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        if mode == "RGB" and _moves_nothing(transform):
            return None
        if mode == "L" and _moves_no_grey(transform):
            return None
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return transform


def _moves_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    steps = [*range(0, 256, 51)]
    grid = bytes(level for red in steps for green in steps for blue in steps for level in (red, green, blue))
    before = Image.frombytes("RGB", (len(grid) // 3, 1), grid)
    after = ImageCms.applyTransform(before, transform)
    return after is not None and _furthest(grid, after.tobytes()) <= _SAME


def _moves_no_grey(transform: ImageCms.ImageCmsTransform) -> bool:
    after = ImageCms.applyTransform(Image.frombytes("L", (256, 1), bytes(range(256))), transform)
    return after is not None and _furthest(bytes(v for v in range(256) for _ in "rgb"), after.tobytes()) <= _SAME


def _furthest(before: bytes, after: bytes) -> int:
    return max(abs(a - b) for a, b in zip(before, after, strict=True))


def apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """`image` in sRGB, mode RGB. Raises PyCMSError."""
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None only when converting in place
    return converted
