"""What is refused from its header alone: other kinds, bombs, and the recipe's limits."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from pipeline.images.process import ImageError, ImageProcessor
from pipeline.images.sniff import sniff
from schemas.recipe import Download


def encoded(kind: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def reason(data: bytes, **settings: object) -> str:
    try:
        ImageProcessor(Download(**settings))(data)
    except ImageError as error:
        return error.reason
    return "ok"


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )


def gif(width: int, height: int, frames: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2L\1\0"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame * frames + b";"


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG", (8, 8)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def avif_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded("AVIF"))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", width, height)
    return bytes(data)


def avif_lying(side: int) -> bytes:
    """Its AV1 stream is of `side` pixels, its boxes say 100."""
    data = bytearray(encoded("AVIF", (side, side), speed=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 100, 100)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    extended = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + extended + encoded("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMB = zlib.compress(bytes(64 << 20), 9)
BOMBS: dict[str, Callable[[], bytes]] = {
    "a PNG of 30000 x 30000": lambda: png(30_000, 30_000),
    "a 35-byte GIF of 9000 x 9000": lambda: gif(9_000, 9_000, 1)[:35],
    "a small JPEG that claims 9000 x 9000": lambda: jpeg_claiming(9_000, 9_000),
    "an AVIF that claims 16000 x 16000": lambda: avif_claiming(16_000, 16_000),
    "a WebP that claims 16383 x 16383": lambda: webp_claiming(16_383, 16_383),
    "a GIF of 20,000 frames": lambda: gif(10, 10, 20_000),
    "a PNG of 16-bit RGBA whose pixels take 8 bytes": lambda: png(8_000, 8_000, depth=16, colour=6),
    "a PNG with a zTXt bomb": lambda: png(8, 8, png_chunk(b"zTXt", b"k\0\0" + BOMB)),
    "a PNG with an iTXt bomb": lambda: png(8, 8, png_chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB)),
    "a PNG with an iCCP bomb": lambda: png(8, 8, png_chunk(b"iCCP", b"k\0\0" + BOMB)),
    "a progressive JPEG of 600 scans": lambda: progressive_of_many_scans(),
}


def progressive_of_many_scans() -> bytes:
    data = encoded("JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 600 + data[-2:]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_too_many_pixels(bomb: str) -> None:
    assert reason(BOMBS[bomb]()) == "too_many_pixels"


def test_bombs_are_refused_without_memory() -> None:
    script = """
import resource, sys
from tests.unit.test_images_gates import BOMBS, encoded, reason
datas = [make() for make in BOMBS.values()]
reason(encoded("PNG"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert {reason(data) for data in datas} == {"too_many_pixels"}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 8  # MiB


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "svg"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a drawing -->\n<svg:svg>', "svg"),
        (b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg11.dtd">', "svg"),
        ("<svg/>".encode("utf-16"), "svg"),
        (encoded("BMP"), "bmp"),
        (encoded("TIFF"), "tiff"),
        (encoded("ICO"), "ico"),
        (encoded("JPEG2000"), "jpeg 2000"),
        (b"\xff\x0a\xfa\x1f", "jpeg xl"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "heif"),
    ],
)
def test_an_image_of_another_kind_is_unsupported(data: bytes, kind: str) -> None:
    assert sniff(data) == kind
    assert reason(data) == "unsupported_format"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not found",
        b"<!DOCTYPE html><html><body><svg></svg></body></html>",
        b"<html><svg/></html>",
        b'{"error": "<svg"}',
        b"<?xml version='1.0'?><rss/>",
        b"RIFF\0\0\0\0AVI LIST",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"%PDF-1.7",
    ],
)
def test_what_is_no_image_is_not_an_image(data: bytes) -> None:
    assert reason(data) == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_the_first_half_of_an_image_is_a_decode_error(kind: str) -> None:
    whole = encoded(kind, (300, 200))
    assert reason(whole) == "ok"
    assert reason(whole[: len(whole) // 2]) == "decode_error"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_a_signature_alone_is_a_decode_error(kind: str) -> None:
    assert reason(encoded(kind)[:16]) == "decode_error"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"min_image_size": 48}, "ok"),
        ({"min_image_size": 49}, "too_small"),
        ({"max_image_area": 64 * 48}, "ok"),
        ({"max_image_area": 64 * 48 - 1}, "too_many_pixels"),
        ({"max_aspect_ratio": 64 / 48}, "ok"),
        ({"max_aspect_ratio": 1.33}, "aspect_ratio"),
        ({"max_pixels": 64 * 48 - 1}, "too_many_pixels"),
        ({"min_image_size": 100, "max_image_area": 10, "max_aspect_ratio": 1}, "too_small"),
        ({"max_image_area": 10, "max_aspect_ratio": 1}, "too_many_pixels"),
    ],
)
@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_limits_are_judged_in_order_and_inclusive(settings: dict[str, object], expected: str, pixels: str) -> None:
    assert reason(encoded("PNG"), pixels=pixels, **settings) == expected


def test_an_avif_whose_stream_is_larger_than_its_boxes_say_is_judged_by_its_stream() -> None:
    assert reason(avif_lying(500), max_pixels=500 * 500 - 1) == "too_many_pixels"


def test_frames_up_to_the_limit_pass() -> None:
    assert reason(gif(4, 4, 5), max_frames=5) == "ok"
    assert reason(gif(4, 4, 6), max_frames=5) == "too_many_pixels"


def test_a_thin_image_is_not_enlarged_into_a_bomb() -> None:
    assert reason(encoded("PNG", (1, 10_000))) == "aspect_ratio"


def test_a_first_frame_beyond_its_canvas_counts_in_full() -> None:
    data = bytearray(gif(1, 1, 1))
    data[24:28] = struct.pack("<HH", 9_000, 9_000)
    assert reason(bytes(data)) == "too_many_pixels"


def test_an_mpo_is_a_jpeg() -> None:
    done = ImageProcessor(Download())(encoded("MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))]))
    assert (done.format, done.extension) == ("jpeg", "jpg")
