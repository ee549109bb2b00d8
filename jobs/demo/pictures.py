"""The web's pictures: emoji of two packages on varied backgrounds, and photos; the same bytes for the same seed.

Sides run from 64 to 1024 px around a median of 256. Composing and encoding is OpenCV's work, and takes 2 to 10 ms.
"""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from jobs.demo.sources import PHOTOS, drawable, openmoji, photo, twemoji

VERSION: Final = 1
"""Goes up whenever a picture's bytes change: part of the cache folder's name."""
Image = npt.NDArray[np.uint8]

_SIDES: Final = (
    64,
    96,
    112,
    128,
    144,
    160,
    176,
    192,
    208,
    224,
    256,
    256,
    256,
    288,
    320,
    320,
    352,
    384,
    400,
    448,
    512,
    640,
)
"""Longer sides in pixels, equally often; half are at most 256."""
_SHAPES: Final = ((1, 1), (1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9))
_FORMATS: Final = ("jpg",) * 20 + ("png",) * 4 + ("webp",) * 4
_ENCODING: Final[dict[str, list[int]]] = {
    "jpg": [cv2.IMWRITE_JPEG_QUALITY, 88],
    "png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, 80],
    "avif": [cv2.IMWRITE_AVIF_QUALITY, 70, cv2.IMWRITE_AVIF_SPEED, 10],
    "gif": [],
    "bmp": [],
}


def picture_count(rows: int) -> int:
    """Distinct pictures in a web of that many rows: 2,640 for 8,000."""
    return max(60, rows * 33 // 100)


def extension(number: int) -> str:
    """One picture in 64 is AVIF (1.6%), one in 64 GIF, the others JPEG, PNG or WebP."""
    return {9: "avif", 41: "gif"}.get(number % 64) or _FORMATS[number * 11 % len(_FORMATS)]


def picture_name(number: int) -> str:
    return f"{number:05d}.{extension(number)}"


def size(seed: int, number: int) -> tuple[int, int]:
    """(width, height); one picture in 128 (0.8%) is 1024 px on its longer side."""
    rng = random.Random(f"size {seed} {number}")
    longer = 1024 if number % 128 == 5 else rng.choice(_SIDES)
    across, down = rng.choice(_SHAPES)
    shorter = max(64, longer * min(across, down) // max(across, down))
    return (longer, shorter) if across >= down else (shorter, longer)


@lru_cache(maxsize=4096)
def subjects(seed: int, number: int) -> tuple[str, ...]:
    """What the picture shows: one to three emoji, or the name of a photo (one picture in 16)."""
    rng = random.Random(f"subjects {seed} {number}")
    if number % 16 == 3:
        return (rng.choice(PHOTOS),)
    return tuple(rng.sample(drawable(), rng.choice((1, 1, 2, 2, 3))))


def compose(seed: int, number: int) -> bytes:
    """The picture's encoded bytes, in the format of `extension`."""
    return encode(paint(seed, number), extension(number))


def encode(image: Image, format_: str) -> bytes:
    """BGR or grey, 8 or 16 bits, as jpg, png, webp, avif, gif or bmp."""
    done, data = cv2.imencode(f".{format_}", image, _ENCODING[format_])
    if not done:
        raise ValueError(f"OpenCV cannot write {format_}")
    return data.tobytes()


def paint(seed: int, number: int) -> Image:
    """The picture's pixels, (height, width, 3) BGR."""
    rng = random.Random(f"paint {seed} {number}")
    width, height = size(seed, number)
    shown = subjects(seed, number)
    if shown[0] in PHOTOS:
        return _crop(photo(shown[0]), width, height, rng)
    image = rng.choice(_BACKGROUNDS)(width, height, rng)
    for place, subject in enumerate(shown):
        side = int(min(width, height) * rng.uniform(0.45, 0.8) / (1 if len(shown) == 1 else 1.3))
        drawing = twemoji(subject) if rng.random() < 0.6 else openmoji(subject, 72 if side <= 96 else 144)
        x = (place + 0.5) / len(shown) * width + rng.uniform(-0.1, 0.1) * width - side / 2
        y = rng.uniform(0.35, 0.65) * height - side / 2
        _lay(image, drawing, side, rng.uniform(-25, 25), x, y)
    return image


def _lay(image: Image, drawing: Image, side: int, degrees: float, x: float, y: float) -> None:
    """Lay a square BGRA drawing, turned, at (x, y) of the image, in place."""
    turned = cv2.getRotationMatrix2D((drawing.shape[1] / 2, drawing.shape[0] / 2), degrees, side / drawing.shape[1])
    turned[:, 2] += side / 2 - drawing.shape[1] / 2
    # warpAffine does not average: without this, a drawing much larger than its place would sparkle.
    layer = cv2.warpAffine(drawing, turned, (side, side), flags=cv2.INTER_LINEAR)
    left, top = max(0, int(x)), max(0, int(y))
    right, bottom = min(image.shape[1], int(x) + side), min(image.shape[0], int(y) + side)
    layer = layer[top - int(y) : bottom - int(y), left - int(x) : right - int(x)]
    alpha = layer[:, :, 3:].astype(np.uint16)
    place = image[top:bottom, left:right]
    place[:] = ((layer[:, :, :3] * alpha + place * (255 - alpha)) // 255).astype(np.uint8)


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(40, 256), rng.randrange(40, 256), rng.randrange(40, 256)


def _plain(width: int, height: int, rng: random.Random) -> Image:
    image = np.empty((height, width, 3), np.uint8)
    image[:] = _colour(rng)
    return image


def _gradient(width: int, height: int, rng: random.Random) -> Image:
    corners = np.array([[_colour(rng), _colour(rng)], [_colour(rng), _colour(rng)]], np.uint8)
    return np.asarray(cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _noise(width: int, height: int, rng: random.Random) -> Image:
    """Clouds in two colours: noise of 8 × 8 enlarged, with a little grain so that no JPEG is tiny."""
    grains = np.random.default_rng(rng.getrandbits(64))
    coarse = grains.integers(40, 256, (8, 8, 3), np.uint8)
    fine = grains.integers(0, 12, (height, width, 3), np.uint8)
    clouds = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.subtract(clouds, fine), np.uint8)


def _stripes(width: int, height: int, rng: random.Random) -> Image:
    image = _plain(width, height, rng)
    step, colour = rng.choice((8, 16, 32)), _colour(rng)
    for start in range(0, width, 2 * step):
        image[:, start : start + step] = colour
    return image


def _photo_crop(width: int, height: int, rng: random.Random) -> Image:
    return _crop(photo(rng.choice(PHOTOS)), width, height, rng)


def _crop(source: Image, width: int, height: int, rng: random.Random) -> Image:
    """A part of a photo in the wanted shape, 55% to 100% of what fits, resized."""
    share = rng.uniform(0.55, 1) * min(source.shape[1] / width, source.shape[0] / height)
    across, down = max(8, int(width * share)), max(8, int(height * share))
    left, top = rng.randint(0, source.shape[1] - across), rng.randint(0, source.shape[0] - down)
    part = source[top : top + down, left : left + across]
    way = cv2.INTER_AREA if share > 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (width, height), interpolation=way), np.uint8)


_BACKGROUNDS: Final[tuple[Callable[[int, int, random.Random], Image], ...]] = (
    _plain, _gradient, _gradient, _noise, _noise, _stripes, _photo_crop, _photo_crop,
)  # fmt: skip
