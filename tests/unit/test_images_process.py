"""The processor as its callers meet it: typed errors only, many threads, and clear words when an extra is missing."""

import io
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from pipeline.images.process import ImageError, ImageProcessor
from schemas.recipe import Download
from schemas.statuses import STATUS_OF

KINDS = ["JPEG", "PNG", "WEBP", "GIF", "AVIF"]


def encoded(kind: str, side: int = 90) -> bytes:
    out = io.BytesIO()
    Image.radial_gradient("L").resize((side, side + 10)).convert("RGB").save(out, kind)
    return out.getvalue()


def corrupted(data: bytes, dice: random.Random) -> bytes:
    broken = bytearray(data)
    for _ in range(dice.choice([1, 3, 20])):
        at = dice.randrange(len(broken))
        what = dice.random()
        if what < 0.6:
            broken[at] = dice.choice([0, 255, dice.randrange(256)])
        elif what < 0.8:
            del broken[at : at + dice.randrange(1, 40)]
        else:
            broken[at:at] = dice.randbytes(dice.randrange(1, 20))
        broken = broken or bytearray(b"x")
    return bytes(broken)


@pytest.mark.parametrize("settings", [Download(), Download(disable_all_reencoding=True)], ids=["resized", "kept"])
@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_images_end_in_a_reason(kind: str, settings: Download) -> None:
    dice, process, whole = random.Random(f"{kind} 1"), ImageProcessor(settings), encoded(kind)
    failures = []
    for _ in range(100):
        try:
            process(corrupted(whole, dice))
        except ImageError as error:
            failures.append(error)
    assert len(failures) > 10
    assert {error.reason for error in failures} <= set(STATUS_OF)
    assert all(0 < len(error.detail) <= 500 for error in failures)


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_threads_share_a_processor(pixels: str) -> None:
    process = ImageProcessor(Download(pixels=pixels))
    datas = [encoded(kind, side) for kind in KINDS for side in (60, 300, 700)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(process, datas * 4)) == [process(data) for data in datas] * 4


def test_without_the_extra_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "img2dataset.resizer", None)
    with pytest.raises(ValueError, match=r"^pixels: img2dataset needs `pip install pairmill\[img2dataset\]`"):
        ImageProcessor(Download(pixels="img2dataset"))
    assert ImageProcessor(Download())(encoded("PNG"), [[0, 0, 1, 1]]).width == 256


@pytest.mark.parametrize(("encode_format", "quality"), [("jpg", 1), ("jpg", 100), ("png", 0), ("png", 95), ("webp", 1)])
def test_every_quality_of_every_format_is_taken(encode_format: str, quality: int) -> None:
    done = ImageProcessor(Download(encode_format=encode_format, encode_quality=quality))(encoded("PNG"))
    assert Image.open(io.BytesIO(done.data)).format == {"jpg": "JPEG"}.get(encode_format, encode_format.upper())
    assert done.extension == encode_format
