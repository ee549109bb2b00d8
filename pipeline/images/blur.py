"""Boxes blurred as img2dataset's BoundingBoxBlurrer does: grown by 10%, feathered.

The rule comes from https://github.com/princetonvisualai/imagenet-face-obfuscation.
"""

import json
import math

import cv2
import numpy as np

from pipeline.images.errors import ImageError
from pipeline.images.resize import Pixels

Box = tuple[float, float, float, float]


def parse_boxes(boxes: object) -> list[Box]:
    """`boxes`: a list (or its JSON) of [left, top, right, bottom] in 0…1; None and '' are no boxes.

    Raises ImageError bad_row on anything else: a face that should be blurred must not pass because of a typo.
    """
    if boxes is None or (isinstance(boxes, str) and not boxes.strip()):
        return []
    try:
        listed = json.loads(boxes) if isinstance(boxes, str | bytes) else boxes
        parsed = [tuple(float(side) for side in box) for box in (() if listed is None else listed)]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise ImageError("bad_row", f"boxes are not [[left, top, right, bottom], …]: {str(boxes)[:100]}") from None
    for box in parsed:
        if len(box) != 4 or not all(math.isfinite(side) and -1 <= side <= 2 for side in box):
            raise ImageError("bad_row", f"a box is not four numbers in 0…1: {box}")
    return parsed  # type: ignore[return-value]


def orient_box(box: Box, orientation: int) -> Box:
    """The box in the image after its EXIF orientation (1 to 8) was applied."""
    left, top, right, bottom = box
    if orientation in (5, 6, 7, 8):
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 6, 7):
        left, right = 1 - right, 1 - left
    if orientation in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    return left, top, right, bottom


def blur(pixels: Pixels, boxes: list[Box]) -> Pixels:
    """`pixels` [height, width, 3] with the boxes blurred; the rule is img2dataset 1.47 `blurrer.py`."""
    if not boxes:
        return pixels
    height, width = pixels.shape[:2]
    sharp = pixels.astype(np.float32) / 255.0
    mask = np.zeros_like(sharp)
    largest = 0
    for box in boxes:
        left, right = int(box[0] * width), int(box[2] * width)
        top, bottom = int(box[1] * height), int(box[3] * height)
        diagonal = max(right - left, bottom - top)
        largest = max(largest, diagonal)
        margin = 0.1 * diagonal
        left, right = _clip(left - margin, width), _clip(right + margin, width)
        top, bottom = _clip(top - margin, height), _clip(bottom + margin, height)
        mask[top:bottom, left:right] = 1
    kernel = max(3, int(2 * np.ceil(0.1 * largest) + 1)) | 1
    smooth = cv2.GaussianBlur(sharp, (kernel, kernel), 0)
    weight = cv2.GaussianBlur(mask, (kernel, kernel), 0)
    mixed = sharp * (1 - weight) + smooth * weight
    return np.asarray(mixed * 255.0).astype(np.uint8)


def _clip(side: float, length: int) -> int:
    return min(max(int(side), 0), length - 1)
