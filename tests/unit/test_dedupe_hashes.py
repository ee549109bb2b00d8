"""Hashes of images: sizes, formats, turned forms, colours."""

import io

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.dedupe.find import ROWS, find_duplicates
from pipeline.dedupe.hashes import FORMS, ImageHashes, hash_image, hash_pixels, turn, turned_colours
from pipeline.dedupe.search import same_colours
from pipeline.images.errors import ImageError
from schemas.recipe import Dedupe
from tests.benchmarks.recall import picture
from tests.unit.test_dedupe_find import row


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_lengths_and_digits() -> None:
    made = hash_image(png(picture(0)), dihedral=True)
    assert (len(made.pdq), len(made.colour), len(made.pdq_forms or "")) == (64, 96, 448)
    assert made.pdq == made.pdq.lower()
    assert 50 <= made.quality <= 100
    assert hash_image(png(picture(0))).pdq_forms is None


@pytest.mark.parametrize("side", [100, 256, 600, 1500])
def test_a_copy_of_another_size_is_near(side: int) -> None:
    whole = hash_pixels(picture(2))
    other = hash_pixels(cv2.resize(picture(2), (side, side), interpolation=cv2.INTER_AREA))
    assert bits_apart(whole.pdq, other.pdq) <= 16


def test_a_picture_of_one_colour_has_no_quality() -> None:
    assert hash_pixels(np.full((300, 300, 3), 90, np.uint8)).quality < 50


def test_exif_orientation_is_applied() -> None:
    upright = Image.fromarray(picture(1)[..., ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    out = io.BytesIO()
    upright.rotate(90, expand=True).save(out, "PNG", exif=exif)
    assert bits_apart(hash_image(out.getvalue()).pdq, hash_image(png(picture(1))).pdq) <= 4


def test_what_is_no_image_is_a_typed_error() -> None:
    with pytest.raises(ImageError):
        hash_image(b"no image at all")


@pytest.mark.parametrize("form", range(1, FORMS))
def test_each_form_is_the_hash_and_colours_of_the_turned_picture(form: int) -> None:
    square = cv2.resize(picture(3), (256, 256), interpolation=cv2.INTER_AREA)
    made = hash_pixels(square, dihedral=True)
    turned = hash_pixels(np.ascontiguousarray(turn(square, form)))
    assert (made.pdq_forms or "")[64 * (form - 1) : 64 * form] == turned.pdq
    colours = turned_colours(np.frombuffer(bytes.fromhex(made.colour), np.uint8)[None])[0, form]
    assert same_colours(colours[None], np.frombuffer(bytes.fromhex(turned.colour), np.uint8)[None])[0]


@pytest.mark.parametrize("turned_stays", [True, False])
@pytest.mark.parametrize("form", [0, 1, 4, 6])
def test_turned_copies_are_duplicates_with_the_forms_and_not_without(form: int, turned_stays: bool) -> None:
    one = hash_pixels(picture(4), dihedral=True)
    other = hash_pixels(np.ascontiguousarray(turn(picture(4), form)), dihedral=True)
    rows = [line("one", one, 9), line("other", other, 10 if turned_stays else 8), line("third", third(), 1)]
    schema = ROWS.append(pa.field("pdq_forms", pa.binary(7 * 32)))
    table = pa.Table.from_pylist(rows, schema=schema)
    gone = find_duplicates(table, schema.empty_table(), Dedupe()).to_pylist()
    assert [(entry["level"], entry["distance"]) for entry in gone] == [("perceptual", 0)]
    plain = table.drop_columns("pdq_forms")
    assert len(find_duplicates(plain, plain.slice(0, 0), Dedupe())) == (form == 0)


def third() -> ImageHashes:
    return hash_pixels(picture(5), dihedral=True)


def line(name: str, made: ImageHashes, pixels: int) -> dict[str, object]:
    return row(
        name,
        bytes.fromhex(made.pdq),
        pixels=pixels,
        colour=bytes.fromhex(made.colour),
        pdq_forms=bytes.fromhex(made.pdq_forms or ""),
    )
