"""What `dedupe` knows of an image: its PDQ hash, the hash's quality and a small signature of its colours.

PDQ (Meta, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019; computed by the reference
code in `pdqhash`) sees luma alone: flags of one layout are at distance 0 and so are the skin tones of one emoji.
`colour` tells those apart. Everything is computed from one canonical 256 x 256 resize, which makes copies of different
sizes agree.
"""

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import pdqhash

from pipeline.images.decode import decode
from pipeline.images.exif import load, orientation
from pipeline.images.header import read_header
from pipeline.images.process import orient
from schemas.recipe import Download

SIDE: Final = 256
GRID: Final = 4
"""Cells a side of the colour signature."""
PDQ_BYTES: Final = 32
COLOUR_BYTES: Final = GRID * GRID * 3
FORMS: Final = 8
"""Rotations and reflections of a square; form 0 is the image itself."""

MAX_FRAMES: Final = Download().max_frames
WHITE: Final = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class ImageHashes:
    """`pdq`: 64 hex digits, as Meta's tools write it; `quality`: 0 to 100, below 50 a hash says nothing.

    `colour`: 96 hex digits, a 4 x 4 grid of mean colours, row by row, in CIE L*a*b* as OpenCV packs it into bytes
    (L* times 2.55, a* + 128, b* + 128). `pdq_forms`: with `dihedral`, the hashes of the seven other rotations and
    reflections one after another (448 hex digits, in the order of `turn`), else None.
    """

    pdq: str
    quality: int
    colour: str
    pdq_forms: str | None


def hash_image(data: bytes, dihedral: bool = False) -> ImageHashes:
    """Hashes of a pool image, or of any image in an allowed format. Raises ImageError where it cannot be decoded."""
    header = read_header(data, MAX_FRAMES)
    pixels, _ = decode(data, header, (SIDE, SIDE), WHITE)
    return hash_pixels(orient(pixels, header.orientation or orientation(load(header.exif))), dihedral)


def hash_pixels(pixels: npt.NDArray[np.uint8], dihedral: bool = False) -> ImageHashes:
    """Hashes of pixels [height, width, 3] in BGR order, of any size."""
    shrinks = min(pixels.shape[:2]) >= SIDE
    square = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    rgb = cv2.cvtColor(square, cv2.COLOR_BGR2RGB)
    vector, quality = pdqhash.compute(rgb)
    others = None
    if dihedral:
        # Not compute_dihedral: its hash of a rotation is 24 to 32 bits from the hash of the rotated pixels.
        others = "".join(_hex(pdqhash.compute(np.ascontiguousarray(turn(rgb, form)))[0]) for form in range(1, FORMS))
    return ImageHashes(_hex(vector), int(quality), _colours(square).tobytes().hex(), others)


def turn(square: npt.NDArray[Any], form: int) -> npt.NDArray[Any]:
    """Form `form` (0 to 7) of [side, side, …]: a reflection on the diagonal from 4 on, then quarter turns."""
    return np.rot90(square.swapaxes(0, 1) if form >= 4 else square, form % 4)


def turned_colours(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Signatures [n, 48] as those of all forms: [n, 8, 48]."""
    cells = colours.reshape(-1, GRID, GRID, 3).transpose(1, 2, 0, 3)
    forms = [turn(cells, form).transpose(2, 0, 1, 3).reshape(-1, COLOUR_BYTES) for form in range(FORMS)]
    return np.stack(forms, axis=1)


def _hex(vector: npt.NDArray[np.int64]) -> str:
    return np.packbits(vector.astype(np.uint8)).tobytes().hex()


def _colours(square: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    lab = cv2.cvtColor(square, cv2.COLOR_BGR2LAB)
    return np.asarray(cv2.resize(lab, (GRID, GRID), interpolation=cv2.INTER_AREA), np.uint8)
