"""Boxes are blurred where the recipe's column says, wherever rotation and scaling have moved them."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.images.process import ImageError, ImageProcessor
from schemas.recipe import Download

BOX = [0.1, 0.2, 0.4, 0.5]


def checkered(kind: str = "PNG", orientation: int = 1) -> bytes:
    """800 x 600 pixels of 8-pixel squares: contrast everywhere until something blurs it."""
    squares = np.indices((75, 100)).sum(0) % 2 * 255
    image = Image.fromarray(np.kron(squares, np.ones((8, 8))).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, kind, exif=exif)
    return out.getvalue()


def processed(data: bytes, boxes: object, **settings: Any) -> np.ndarray:
    done = ImageProcessor(Download(encode_format="png", **settings))(data, boxes)
    return np.asarray(Image.open(io.BytesIO(done.data)))


def contrast(pixels: np.ndarray, box: list[float]) -> float:
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    return float(pixels[int(top * height) : int(bottom * height), int(left * width) : int(right * width)].std())


def test_a_box_is_blurred_and_the_rest_is_not() -> None:
    pixels = processed(checkered(), [BOX], resize_mode="no")
    assert contrast(pixels, BOX) < 10
    assert contrast(pixels, [0.6, 0.7, 0.95, 0.95]) > 120


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_follow_the_orientation(orientation: int) -> None:
    upright = processed(checkered("PNG", orientation), [BOX], resize_mode="no")
    mask = np.zeros((600, 800), np.uint8)
    mask[120:300, 80:320] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG", exif=exif)
    where = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(out.getvalue())))) > 0
    assert upright[where].std() < 10
    assert upright[~where].std() > 100


@pytest.mark.parametrize("mode", ["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"])
@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_every_mode_blurs(mode: str, pixels: str) -> None:
    settings = {"resize_mode": mode, "pixels": pixels, "downscale_interpolation": "nearest", "image_size": 400}
    assert contrast(processed(checkered(), [[0.25, 0.25, 0.75, 0.75]], **settings), [0.4, 0.4, 0.6, 0.6]) < 10


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
@pytest.mark.parametrize("settings", [{"disable_all_reencoding": True}, {"skip_reencode": True, "resize_mode": "no"}])
def test_bytes_with_a_box_are_never_kept(settings: dict[str, Any], pixels: str) -> None:
    assert contrast(processed(checkered(), [BOX], pixels=pixels, **settings), BOX) < 10


@pytest.mark.parametrize("boxes", [None, "", [], "[]", np.array([]), np.empty((0, 4))])
def test_no_boxes_change_nothing(boxes: object) -> None:
    assert np.array_equal(processed(checkered(), boxes), processed(checkered(), None))


@pytest.mark.parametrize("boxes", [[BOX], "[[0.1, 0.2, 0.4, 0.5]]", np.array([BOX]), [tuple(BOX)], [np.array(BOX)]])
def test_boxes_come_as_lists_arrays_or_json(boxes: object) -> None:
    assert np.array_equal(processed(checkered(), boxes), processed(checkered(), [BOX]))


@pytest.mark.parametrize(
    "boxes", ["left", 7, [7], [[0, 0, 1]], [["a", 0, 1, 1]], [[0, 0, 1, float("nan")]], [[0, 0, 640, 480]], {"a": 1}]
)
def test_boxes_that_make_no_sense_are_a_bad_row(boxes: object) -> None:
    with pytest.raises(ImageError, match="bad_row"):
        processed(checkered(), boxes)
