"""EXIF is personal data: what the recipe keeps is kept, in the column and in kept bytes, and nothing else."""

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images.process import ImageProcessor, Processed
from schemas.recipe import Download

SECRET = "Jane-Doe-4711"
KINDS = ["JPEG", "PNG", "WEBP", "AVIF", "GIF"]
WITH_EXIF = ["JPEG", "PNG", "WEBP", "AVIF"]


def photo(size: tuple[int, int] = (96, 64)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


def revealing_exif() -> Image.Exif:
    exif = Image.Exif()
    exif.update({0x0112: 1, 0x010F: "Canon", 0x0110: "EOS R5", 0x013B: SECRET, 0x9C9D: SECRET.encode("utf-16-le")})
    exif.get_ifd(0x8769).update(
        {0xA002: 96, 0xA003: 64, 0xA431: SECRET, 0xA430: SECRET, 0x927C: SECRET.encode(), 0x9286: SECRET.encode()}
    )
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 0x1D: SECRET})
    return exif


def revealing(kind: str, **options: Any) -> bytes:
    """An image with its owner's name in every place that format has for it."""
    out = io.BytesIO()
    xmp = f"<x:xmpmeta>{SECRET}</x:xmpmeta>".encode()
    if kind == "GIF":
        photo().save(out, kind, comment=SECRET.encode())
        whole = out.getvalue()
        program = b"!\xff\x0bXMP DataXMP" + bytes([len(SECRET)]) + SECRET.encode() + b"\0"
        return whole[:-1] + program + b";"
    if kind == "JPEG":
        options |= {"comment": SECRET.encode()}
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        texts = PngInfo()
        texts.add_text("Author", SECRET)
        texts.add_text("Packed", SECRET * 9, zip=True)
        texts.add_itxt("XML:com.adobe.xmp", SECRET)
        options |= {"pnginfo": texts}
    elif kind != "GIF":
        options |= {"xmp": xmp}
    photo().save(out, kind, exif=revealing_exif(), **options)
    return out.getvalue()


def test_loose_boxes_of_an_avif_are_blanked() -> None:
    data = revealing("AVIF")
    loose = b"uuid" + bytes(16) + SECRET.encode()
    done = kept(data + (len(loose) + 4).to_bytes(4, "big") + loose, "safe")
    assert SECRET.encode() not in done.data
    assert np.array_equal(shown(done.data), shown(data))


def kept(data: bytes, exif: str, **settings: Any) -> Processed:
    return ImageProcessor(Download(disable_all_reencoding=True, exif=exif, **settings))(data)


def shown(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
@pytest.mark.parametrize("exif", ["safe", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_bytes_lose_their_owner_and_no_pixel(kind: str, exif: str, pixels: str) -> None:
    data = revealing(kind)
    done = kept(data, exif, pixels=pixels)
    assert done.extension == {"JPEG": "jpg"}.get(kind, kind.lower())
    for hidden in (SECRET.encode(), SECRET.encode("utf-16-le"), b"xmpmeta"):
        assert hidden in data or kind in ("PNG", "GIF")
        assert hidden not in done.data
    assert np.array_equal(shown(done.data), shown(data))
    assert not Image.open(io.BytesIO(done.data)).getexif().get_ifd(0x8825)


@pytest.mark.parametrize("kind", WITH_EXIF)
def test_kept_bytes_keep_the_safe_tags(kind: str) -> None:
    tags = Image.open(io.BytesIO(kept(revealing(kind), "safe").data)).getexif()
    assert (tags[0x010F], tags[0x0110]) == ("Canon", "EOS R5")
    assert dict(tags.get_ifd(0x8769)) == {0xA002: 96, 0xA003: 64}


@pytest.mark.parametrize("kind", WITH_EXIF)
def test_kept_bytes_without_exif_have_no_tag(kind: str) -> None:
    assert dict(Image.open(io.BytesIO(kept(revealing(kind), "none").data)).getexif()) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_all_keeps_the_bytes_as_they_came(kind: str) -> None:
    data = revealing(kind)
    assert kept(data, "all").data == data


@pytest.mark.parametrize("kind", WITH_EXIF)
def test_the_column_has_the_safe_tags(kind: str) -> None:
    done = ImageProcessor(Download())(revealing(kind))
    tags = json.loads(done.exif or "null")
    orientation = {} if kind == "AVIF" else {"Image Orientation": "Horizontal (normal)"}
    camera = {"Image Make": "Canon", "Image Model": "EOS R5"}
    assert tags == orientation | camera | {"EXIF ExifImageWidth": "96", "EXIF ExifImageLength": "64"}


def test_the_column_has_every_tag_on_request() -> None:
    tags = json.loads(ImageProcessor(Download(exif="all"))(revealing("JPEG")).exif or "null")
    assert tags["Image Artist"] == tags["EXIF BodySerialNumber"] == SECRET
    assert tags["GPS GPSLatitudeRef"] == "N"


def test_the_column_is_null_without_tags() -> None:
    out = io.BytesIO()
    photo().save(out, "JPEG")
    assert ImageProcessor(Download())(out.getvalue()).exif is None
    assert ImageProcessor(Download(exif="none"))(revealing("JPEG")).exif is None


@pytest.mark.parametrize(
    "broken", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\1" * 40]
)
def test_broken_exif_costs_no_image(broken: bytes) -> None:
    out = io.BytesIO()
    photo().save(out, "JPEG", exif=b"Exif\0\0" + broken)
    for settings in (Download(), Download(disable_all_reencoding=True), Download(exif="all")):
        assert ImageProcessor(settings)(out.getvalue()).width


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_re_encoded_bytes_have_no_metadata(kind: str) -> None:
    settings = Download(encode_format={"JPEG": "jpg"}.get(kind, kind.lower()))
    done = ImageProcessor(settings)(revealing(kind))
    assert SECRET.encode() not in done.data
    assert dict(Image.open(io.BytesIO(done.data)).getexif()) == {}


def test_what_follows_a_jpeg_is_cut_off() -> None:
    out = io.BytesIO()
    second = photo()
    second.info["comment"] = SECRET
    photo().save(out, "MPO", save_all=True, append_images=[second])
    data = out.getvalue() + b"\0\0\0\x18ftypmp42" + SECRET.encode()
    done = kept(data, "safe")
    assert SECRET.encode() not in done.data
    assert done.data.count(b"\xff\xd8\xff") == 1
    assert np.array_equal(shown(done.data), shown(data))


def test_a_thumbnail_goes() -> None:
    small = io.BytesIO()
    photo((16, 16)).save(small, "JPEG")
    out = io.BytesIO()
    photo().save(out, "JPEG")
    data = out.getvalue()
    jfxx = b"JFXX\0\x10" + small.getvalue()
    data = data[:20] + b"\xff\xe0" + (len(jfxx) + 2).to_bytes(2, "big") + jfxx + data[20:]
    assert kept(data, "safe").data.count(b"\xff\xd8\xff") == 1


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}])
def test_every_sort_of_jpeg_survives_stripping(options: dict[str, Any]) -> None:
    data = revealing("JPEG", **options)
    assert np.array_equal(shown(kept(data, "safe").data), shown(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_colour_profiles_outlive_stripping(kind: str) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = revealing(kind, icc_profile=profile)
    assert Image.open(io.BytesIO(kept(data, "safe").data)).info["icc_profile"] == profile


def test_animations_outlive_stripping() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=70)
        assert Image.open(io.BytesIO(kept(out.getvalue(), "safe").data)).n_frames == 3, kind


@pytest.mark.parametrize(
    ("settings", "untouched"),
    [
        ({"skip_reencode": True, "resize_mode": "no"}, True),
        ({"skip_reencode": True, "resize_only_if_bigger": True}, True),
        ({"skip_reencode": True, "image_size": 64}, True),
        ({"skip_reencode": True, "image_size": 32}, False),
        ({"skip_reencode": True, "resize_mode": "border", "image_size": 96}, False),
        ({"skip_reencode": True, "resize_mode": "no", "encode_format": "webp"}, False),
        ({"resize_mode": "no"}, False),
    ],
)
def test_bytes_are_kept_when_nothing_needs_changing(settings: dict[str, Any], untouched: bool) -> None:
    data = revealing("JPEG")
    done = ImageProcessor(Download(exif="all", **settings))(data)
    assert (done.data == data) is untouched


def test_a_turned_image_is_not_kept() -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(out, "JPEG", exif=exif)
    done = ImageProcessor(Download(skip_reencode=True, resize_mode="no"))(out.getvalue())
    assert (done.width, done.height) == (64, 96)
    assert (kept(out.getvalue(), "safe").width, kept(out.getvalue(), "safe").height) == (96, 64)


def test_corrupt_bytes_are_never_kept() -> None:
    from pipeline.images.process import ImageError

    data = revealing("JPEG")
    with pytest.raises(ImageError, match="decode_error"):
        kept(data[: len(data) - 200], "safe")
