"""What a viewer would show is what reaches the pool: orientation, depth, colour space, palette, transparency."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from pipeline.images.process import ImageProcessor, Processed
from schemas.recipe import Download


def photo(width: int = 320, height: int = 200) -> Image.Image:
    """Smooth, and different in every corner and channel."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across * down / 255], -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def processed(data: bytes, **settings: Any) -> Processed:
    lossless = {"resize_mode": "no", "encode_format": "png"}
    return ImageProcessor(Download(**lossless | settings))(data)


def pixels(done: Processed) -> np.ndarray:
    image = Image.open(io.BytesIO(done.data))
    assert image.size == (done.width, done.height)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def distance(one: Any, other: Any) -> float:
    """Mean absolute difference, in levels of 255."""
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    done = processed(data)
    assert (done.original_width, done.original_height) == (320, 200)
    assert (done.width, done.height) == upright.size
    assert distance(pixels(done), upright.convert("RGB")) < 1


@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop", "border", "keep_ratio_largest"])
def test_a_turned_jpeg_is_scaled_as_its_upright_self(mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(photo(900, 500), "JPEG", exif=exif, quality=95)
    upright = encoded(photo(900, 500).transpose(Image.Transpose.ROTATE_270), "PNG")
    one, other = (processed(data, resize_mode=mode, image_size=100) for data in (turned, upright))
    assert (one.width, one.height) == (other.width, other.height)
    assert distance(pixels(one), pixels(other)) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_as_its_own_properties_say(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), "AVIF", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    done = processed(data)
    assert (done.width, done.height) == upright.size
    assert distance(pixels(done), upright) < 1


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256 * 64).reshape(64, 256).astype(np.uint16)
    done = processed(encoded(Image.fromarray(ramp), "PNG"))
    assert distance(pixels(done)[..., 0], ramp / 257) < 1


def test_16_bit_colour_is_scaled() -> None:
    import cv2

    levels = (np.asarray(photo())[..., ::-1].astype(np.uint16)) * 257
    done = processed(cv2.imencode(".png", levels)[1].tobytes())
    assert distance(pixels(done), photo()) < 1


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (64, 64), (255, 0, 0, 128)),
        Image.new("LA", (64, 64), (76, 128)),
        Image.new("RGBA", (64, 64), (1, 2, 3, 0)),
    ],
    ids=["RGBA", "LA", "clear"],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_on_the_background(
    image: Image.Image, background: tuple[int, int, int], kind: str
) -> None:
    canvas = Image.new("RGBA", image.size, (*background, 255))
    shown = Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    done = processed(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})), background=background)
    assert distance(pixels(done), shown) <= 1


def test_a_transparent_palette_colour_is_laid_on_the_background() -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.paste(0, (0, 0, 20, 40))
    shown = pixels(processed(encoded(image, "PNG", transparency=0), background=(0, 0, 255)))
    assert shown[0, 0].tolist() == [0, 0, 255]
    assert shown[0, 39].tolist() == [200, 10, 10]


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (50, 50), colour) for colour in ("red", "green")]
    for kind in ("GIF", "WEBP", "PNG", "AVIF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert distance(pixels(processed(data)), frames[0]) < 3, kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_rgb(kind: str) -> None:
    grey = photo().convert("L")
    assert distance(pixels(processed(encoded(grey, kind, quality=95))), grey.convert("RGB")) < 1


def test_a_cmyk_jpeg_shows_its_colours() -> None:
    cmyk = photo().convert("CMYK")
    assert distance(pixels(processed(encoded(cmyk, "JPEG", quality=95))), cmyk.convert("RGB")) < 2


def swapped_profile() -> bytes:
    """An RGB profile no viewer could miss: sRGB with its red and blue primaries exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_profile_other_than_srgb_is_converted(kind: str) -> None:
    data = encoded(photo(), kind, icc_profile=swapped_profile(), quality=95)
    red, green, blue = photo().split()
    assert distance(pixels(processed(data)), Image.merge("RGB", (blue, green, red))) < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_srgb_profile_changes_no_pixel(kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile, without = (encoded(photo(), kind, icc_profile=icc) for icc in (profile, None))
    assert processed(with_profile).data == processed(without).data


@pytest.mark.parametrize("profile", [b"no profile", bytes(5000)])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    assert processed(encoded(photo(), "JPEG", icc_profile=profile)).data == processed(encoded(photo(), "JPEG")).data


def test_a_scaled_jpeg_is_never_decoded_below_its_target() -> None:
    for width, height in ((513, 700), (2049, 2050), (1023, 513)):
        data = encoded(photo(width, height), "JPEG", quality=95)
        done = processed(data, resize_mode="keep_ratio")
        shown = photo(width, height).resize((done.width, done.height), Image.Resampling.BOX)
        assert distance(pixels(done), shown) < 2
