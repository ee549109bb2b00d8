"""img2dataset's Resizer as the oracle: `pixels: img2dataset` is it, `pixels: fast` comes within a stated tolerance.

Intended differences of `fast`: EXIF orientation is applied, 16 bits are scaled, CMYK and ICC profiles are converted,
alpha is laid on the recipe's background, grey becomes RGB, and JPEGs are decoded scaled down. The last alone shows
here. Of both: bytes that are kept are decoded once to see that they are whole, and boxes are blurred whatever is kept.
"""

import io
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from pipeline.images.blur import blur
from pipeline.images.process import ImageProcessor
from schemas.recipe import Download

Resizer = pytest.importorskip("img2dataset.resizer").Resizer

MODES = ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]
QUALITY = {"jpg": 90, "png": 3, "webp": 90}
PHOTOS = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg", "ihc.png"]
SIZES = [(800, 533), (533, 800), (1200, 400), (700, 700), (520, 515), (300, 200), (120, 200), (257, 255)]
TOLERANCE = {"JPEG": 4.0, "PNG": 0.0, "WEBP": 0.0, "GIF": 0.0, "AVIF": 0.5}
"""Mean absolute difference in levels of 255 of any photo; JPEG: the DCT scaling (the median over photos is below 1)."""


@cache
def photos(kind: str) -> list[bytes]:
    return [photo(name, kind, size) for name, size in zip(itertools.cycle(PHOTOS), SIZES, strict=False)]


def photo(name: str, kind: str, size: tuple[int, int]) -> bytes:
    image = Image.open(Path(skimage.data.__file__).parent / name).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(out, kind, quality=90)
    return out.getvalue()


def theirs(settings: Download, data: bytes) -> tuple[Any, ...]:
    """(bytes, width, height, original width, original height, error)."""
    names = ("image_size", "resize_mode", "resize_only_if_bigger", "encode_format", "encode_quality", "skip_reencode")
    more = ("disable_all_reencoding", "upscale_interpolation", "downscale_interpolation")
    return Resizer(**{name: getattr(settings, name) for name in (*names, *more)})(io.BytesIO(data))


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("encode_format", ["jpg", "png", "webp"])
@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_format_agrees(mode: str, only_if_bigger: bool, encode_format: str) -> None:
    common = Download(
        resize_mode=mode,
        resize_only_if_bigger=only_if_bigger,
        encode_format=encode_format,
        encode_quality=QUALITY[encode_format],
    )
    exact, fast = (ImageProcessor(common.model_copy(update={"pixels": pixels})) for pixels in ("img2dataset", "fast"))
    for data in photos("JPEG"):
        expected, width, height, original_width, original_height, error = theirs(common, data)
        assert error is None
        same, near = exact(data), fast(data)
        assert same.data == expected
        sizes = (width, height, original_width, original_height)
        for done in (same, near):
            assert (done.width, done.height, done.original_width, done.original_height) == sizes
            assert done.extension == encode_format
        assert np.abs(rgb(near.data) - rgb(expected)).mean() <= TOLERANCE["JPEG"]


@pytest.mark.parametrize("kind", TOLERANCE)
def test_every_source_format_agrees(kind: str) -> None:
    settings = Download()
    process = ImageProcessor(settings)
    distances = []
    for data in photos(kind):
        expected, width, height, *_ = theirs(settings, data)
        done = process(data)
        assert (done.width, done.height) == (width, height)
        distances.append(np.abs(rgb(done.data) - rgb(expected)).mean())
    assert max(distances) <= TOLERANCE[kind]
    assert np.median(distances) <= 1


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic", "area", "lanczos", "lanczos4"])
@pytest.mark.parametrize("which", ["upscale_interpolation", "downscale_interpolation"])
def test_every_interpolation_agrees(interpolation: str, which: str) -> None:
    settings = Download(encode_format="png", encode_quality=1, **{which: interpolation})
    for data in photos("PNG")[::2]:
        assert np.array_equal(rgb(ImageProcessor(settings)(data).data), rgb(theirs(settings, data)[0]))


@pytest.mark.parametrize("options", [{"skip_reencode": True}, {"disable_all_reencoding": True}])
@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_same_bytes_are_kept(kind: str, pixels: str, options: dict[str, bool]) -> None:
    formats = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
    settings = Download(
        resize_mode="no", exif="all", encode_format=formats[kind], encode_quality=9, pixels=pixels, **options
    )
    for data in photos(kind)[:3]:
        assert ImageProcessor(settings)(data).data == theirs(settings, data)[0] == data


def test_transparency_on_white_agrees() -> None:
    alpha = Image.open(Path(skimage.data.__file__).parent / "logo.png")
    out = io.BytesIO()
    alpha.save(out, "PNG")
    settings = Download(resize_mode="no", encode_format="png", encode_quality=1)
    done = ImageProcessor(settings)(out.getvalue())
    assert np.abs(rgb(done.data) - rgb(theirs(settings, out.getvalue())[0])).max() <= 1


@pytest.mark.parametrize(
    "boxes",
    [
        [(0.1, 0.2, 0.4, 0.5)],
        [(0.0, 0.0, 1.0, 1.0)],
        [(0.9, 0.9, 1.0, 1.0), (0.2, 0.1, 0.3, 0.9)],
        [(0.5, 0.5, 0.5, 0.5)],
    ],
)
def test_blurring_is_theirs(boxes: list[tuple[float, float, float, float]]) -> None:
    blurrer = pytest.importorskip("img2dataset.blurrer").BoundingBoxBlurrer()
    pixels = np.asarray(Image.open(Path(skimage.data.__file__).parent / "chelsea.png").convert("RGB"))
    assert np.array_equal(blur(pixels, boxes), blurrer(pixels, boxes))
