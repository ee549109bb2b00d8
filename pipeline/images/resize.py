"""Which size an image becomes, and making it so: img2dataset's resize modes, names and rounding."""

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from schemas.recipe import Download

Pixels = npt.NDArray[np.uint8]

INTERPOLATION: Final = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
    "lanczos4": cv2.INTER_LANCZOS4,
}


@dataclass(frozen=True, slots=True)
class Target:
    """Size in pixels to scale to; then, where they are set, the square side to crop or pad to."""

    width: int
    height: int
    down: bool
    crop: int = 0
    pad: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Final (width, height)."""
        if self.crop:
            return self.crop, self.crop
        return max(self.width, self.pad), max(self.height, self.pad)


def target_size(width: int, height: int, settings: Download) -> Target | None:
    """The target of an image of `width` x `height`; None where the recipe leaves the size alone.

    The rules, rounding included, are those of img2dataset 1.47 `resizer.py` over albumentations 1.4.
    """
    mode, side = settings.resize_mode, settings.image_size
    if mode == "no":
        return None
    reference = min(width, height) if mode in ("keep_ratio", "center_crop") else max(width, height)
    down = reference > side
    if settings.resize_only_if_bigger and not down:
        return None
    scale = side / reference
    return Target(
        max(1, round(width * scale)),
        max(1, round(height * scale)),
        down,
        crop=side if mode == "center_crop" else 0,
        pad=side if mode == "border" else 0,
    )


def resize(pixels: Pixels, target: Target, interpolation: int) -> Pixels:
    """Scale `pixels` [height, width, 3] to the target's size, before crop and pad."""
    if pixels.shape[:2] == (target.height, target.width):
        return pixels
    return _uint8(cv2.resize(pixels, (target.width, target.height), interpolation=interpolation))


def crop_or_pad(pixels: Pixels, target: Target) -> Pixels:
    """Cut the centre out, or lay the image on a white square."""
    height, width = pixels.shape[:2]
    if target.crop:
        top, left = (height - target.crop) // 2, (width - target.crop) // 2
        return pixels[top : top + target.crop, left : left + target.crop]
    if target.pad and (height < target.pad or width < target.pad):
        tall, wide = max(0, target.pad - height), max(0, target.pad - width)
        edges = (tall // 2, tall - tall // 2, wide // 2, wide - wide // 2)
        return _uint8(cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    return pixels


def _uint8(pixels: Any) -> Pixels:
    return np.asarray(pixels, dtype=np.uint8)
