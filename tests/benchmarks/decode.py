"""Milliseconds an image from JPEG bytes to 256 px JPEG bytes, one thread: ours, img2dataset's Resizer, Pillow's draft.

    python -m tests.benchmarks.decode [photos] [rounds]

Photos are scikit-image's, 800 px on the longer side, JPEG of about 138 KiB each. The floor is 444 images/s a core.
"""

import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import simplejpeg
import skimage.data
from PIL import Image

from pipeline.images.decode import decode
from pipeline.images.encode import encode
from pipeline.images.header import read_header
from pipeline.images.process import ImageError, ImageProcessor, check_guards, check_limits
from pipeline.images.resize import resize, target_size
from schemas.recipe import Download
from tests.unit.test_images_gates import BOMBS

NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png")
BYTES = 138 * 1024
FAST = Download()


def photos(count: int) -> list[bytes]:
    """JPEGs (4:2:0) of 800 px, crops of real photos, quality chosen to come nearest to 138 KiB."""
    made = []
    folder = Path(skimage.data.__file__).parent
    for number in range(count):
        whole = Image.open(folder / NAMES[number % len(NAMES)]).convert("RGB")
        shift = number // len(NAMES) * 3
        image = whole.crop((shift, shift, whole.width, whole.height))
        image.thumbnail((800, 800)) if max(image.size) > 800 else None
        scale = 800 / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        made.append(
            min((jpeg(image, quality) for quality in (75, 85, 90, 93, 95, 97)), key=lambda b: abs(len(b) - BYTES))
        )
    return made


def jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def by_pillow(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data))
    scale = 256 / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    image.draft("RGB", size)
    out = io.BytesIO()
    image.resize(size, Image.Resampling.BOX).save(out, "JPEG", quality=95)
    return out.getvalue()


def by_part(data: bytes) -> dict[str, float]:
    """CPU seconds of each part of the fast path."""
    ticks = [time.thread_time()]
    header = read_header(data, FAST.max_frames)
    check_guards(header, FAST)
    check_limits(header, FAST)
    ticks.append(time.thread_time())
    target = target_size(header.width, header.height, FAST)
    assert target is not None
    pixels, _ = decode(data, header, (target.width, target.height), FAST.background)
    ticks.append(time.thread_time())
    pixels = resize(pixels, target, cv2.INTER_LINEAR)
    ticks.append(time.thread_time())
    encode(pixels, FAST)
    ticks.append(time.thread_time())
    names = ("header", "decode", "resize", "encode")
    return {name: later - sooner for name, sooner, later in zip(names, ticks, ticks[1:], strict=False)}


def milliseconds(call: Callable[[bytes], object], datas: list[bytes], rounds: int) -> float:
    """Median over rounds of the mean over images."""
    means = []
    for _ in range(rounds):
        start = time.thread_time()
        for data in datas:
            call(data)
        means.append((time.thread_time() - start) / len(datas) * 1e3)
    return statistics.median(means)


def main() -> None:
    count, rounds = (int(value) for value in [*sys.argv[1:], "60", "5"][:2])
    datas = photos(count)
    size = statistics.mean(len(data) for data in datas) / 1024
    print(f"{count} photos, {size:.0f} KiB on average, median of {rounds} rounds, CPU time of one thread")
    ours = ImageProcessor(FAST)
    rows: dict[str, Callable[[bytes], object]] = {
        "pairmill, pixels: fast": ours,
        "pairmill, pixels: img2dataset": ImageProcessor(FAST.model_copy(update={"pixels": "img2dataset"})),
        "Pillow draft": by_pillow,
        "full decode alone (simplejpeg)": simplejpeg.decode_jpeg,
    }
    for name, call in rows.items():
        spent = milliseconds(call, datas, rounds)
        print(f"{name:<34}{spent:8.2f} ms{1000 / spent:8.0f} images/s")
    parts = [by_part(data) for _ in range(rounds) for data in datas]
    for part in parts[0]:
        print(f"  {part:<32}{statistics.median(row[part] for row in parts) * 1e3:8.3f} ms")
    print("bombs, each refused as too_many_pixels")
    for bomb, make in BOMBS.items():
        data = make()
        spent = milliseconds(lambda data: refused(ours, data), [data], rounds)
        print(f"  {bomb:<50}{len(data):>9} bytes{spent:8.2f} ms")


def refused(process: ImageProcessor, data: bytes) -> None:
    try:
        process(data)
    except ImageError as error:
        if error.reason == "too_many_pixels":
            return
    raise SystemExit("a bomb was not refused")


if __name__ == "__main__":
    main()
