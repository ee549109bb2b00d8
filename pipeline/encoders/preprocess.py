"""From decoded pixels to the encoder's input, bit for bit as open_clip's inference transform (3.3, transform.py).

That transform is torchvision's Resize and CenterCrop on PIL images; here are its sizes and offsets, without torch, so
that a decode process needs only Pillow and numpy.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ResizeMode = Literal["shortest", "longest", "squash"]


@dataclass(frozen=True)
class Preprocess:
    """How an encoder's input is made: (height, width) in pixels; mean and std of the channels of RGB in 0…1."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill: int = 0


def resized(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """(height, width) that an image is resized to, before it is cropped or padded to `preprocess.size`."""
    rows, columns = preprocess.size
    if preprocess.resize_mode == "squash":
        return rows, columns
    if preprocess.resize_mode == "shortest" and rows == columns:  # torchvision's: the longer side rounded down
        short, long = min(height, width), max(height, width)
        other = int(rows * long / short)
        return (other, rows) if width <= height else (rows, other)
    ratios = height / rows, width / columns
    ratio = max(ratios) if preprocess.resize_mode == "longest" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))  # open_clip fails on a side of 0


def to_pixels(rgb: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """An RGB image [h, w, 3] as the encoder's input [rows, columns, 3], not yet normalised.

    Pillow lets go of the interpreter while it resizes, so threads share a process well.
    """
    rows, columns = preprocess.size
    height, width = rgb.shape[:2]
    target = resized(height, width, preprocess)
    if target == (height, width):
        pixels = rgb
    else:
        bilinear = preprocess.interpolation == "bilinear" and not (
            preprocess.resize_mode == "shortest" and rows != columns  # there open_clip resizes bicubic always
        )
        method = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        pixels = np.asarray(Image.fromarray(rgb).resize((target[1], target[0]), method))
    return _centred(pixels, preprocess)


def _centred(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """The middle of `pixels`, padded evenly where it is smaller; the odd pixel is at the bottom and right."""
    (rows, columns), (height, width) = preprocess.size, pixels.shape[:2]
    if (height, width) == (rows, columns):
        return pixels
    if rows > height or columns > width:
        tall, wide = max(rows, height), max(columns, width)
        fill = preprocess.fill if preprocess.resize_mode == "longest" else 0
        canvas = np.full((tall, wide, 3), fill, np.uint8)
        top, left = (tall - height) // 2, (wide - width) // 2
        canvas[top : top + height, left : left + width] = pixels
        pixels, height, width = canvas, tall, wide
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    return pixels[top : top + rows, left : left + columns]
