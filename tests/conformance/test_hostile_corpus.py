"""Every image of Pillow's source distribution: a typed outcome each, Pillow's own verdict and pixels as the oracle.

pip fetches the distribution once (47 MB) into PAIRMILL_CACHE or ~/.cache/pairmill. `--no-binary pillow`, not `:all:`,
lets the build back end, which pip runs for the metadata, come as wheels. Without an index the tests are skipped.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from pipeline.images.process import ImageError, ImageProcessor
from pipeline.images.sniff import ALLOWED, sniff
from schemas.recipe import Download
from schemas.statuses import STATUS_OF

EXCEPTIONS: dict[str, str] = {}
"""file name → why our verdict may differ from Pillow's; empty with Pillow 13.0.0."""

UNLIKE = {
    "images/exif_imagemagick_orientation.png": "orientation in ImageMagick's text chunk: viewers turn by eXIf alone",
    "images/xmp_tags_orientation_exiftool.png": "orientation in XMP: viewers turn by eXIf alone",
}
"""file name → why our pixels may differ from Pillow's."""


@pytest.fixture(scope="module")
def corpus() -> dict[str, bytes]:
    """path in the distribution → bytes, of everything that is not code or a font."""
    folder = Path(os.environ.get("PAIRMILL_CACHE", Path.home() / ".cache" / "pairmill"))
    archive = folder / f"pillow-{PIL.__version__}.tar.gz"
    if not archive.exists():
        wanted = ["--no-binary", "pillow", "--no-deps", f"pillow=={PIL.__version__}", "--dest", str(folder)]
        done = subprocess.run([sys.executable, "-m", "pip", "download", *wanted], capture_output=True, text=True)
        if done.returncode or not archive.exists():
            pytest.skip(f"pip cannot fetch Pillow's source distribution: {done.stderr.strip().splitlines()[-1:]}")
    images = {}
    with tarfile.open(archive) as files:
        for member in files:
            opened = files.extractfile(member) if "/Tests/" in member.name else None
            if opened and not member.name.endswith((".py", ".ttf", ".otf", ".pcf", ".pil", ".txt")):
                images[member.name.partition("/Tests/")[2]] = opened.read()
    return images


def outcome(process: ImageProcessor, data: bytes) -> str:
    try:
        process(data)
    except ImageError as error:
        return error.reason
    return "ok"


def pillow_loads(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(io.BytesIO(data)).load()
        except Exception:  # noqa: BLE001  whatever Pillow raises is its verdict
            return False
    return True


@pytest.mark.parametrize("settings", [Download(), Download(disable_all_reencoding=True)], ids=["resized", "kept"])
def test_every_file_has_a_typed_outcome_that_agrees_with_pillow(corpus: dict[str, bytes], settings: Download) -> None:
    process = ImageProcessor(settings)
    outcomes = {name: outcome(process, data) for name, data in corpus.items()}
    assert set(outcomes.values()) <= {*STATUS_OF, "ok"}
    allowed = [name for name, data in corpus.items() if sniff(data) in ALLOWED]
    assert len(allowed) > 500
    differing = [name for name in allowed if (outcomes[name] == "ok") != pillow_loads(corpus[name])]
    assert set(differing) <= set(EXCEPTIONS)
    assert len(differing) <= len(allowed) // 100


def test_other_kinds_are_told_from_what_is_no_image(corpus: dict[str, bytes]) -> None:
    process = ImageProcessor(Download())
    endings = {".bmp", ".tif", ".tiff", ".jp2", ".j2k", ".ico", ".cur", ".icns", ".psd", ".dds", ".eps", ".ppm"}
    named = [name for name in corpus if Path(name).suffix in endings and pillow_loads(corpus[name])]
    assert len(named) > 200
    # Pillow names some JPEGs and PNGs by other endings; those are judged by their bytes.
    others = [name for name in named if sniff(corpus[name]) not in ALLOWED]
    assert {name: outcome(process, corpus[name]) for name in others} == dict.fromkeys(others, "unsupported_format")


def test_pixels_are_those_pillow_shows(corpus: dict[str, bytes]) -> None:
    process = ImageProcessor(Download(resize_mode="no", encode_format="png", encode_quality=1))
    far = {}
    for name, data in corpus.items():
        if sniff(data) not in ALLOWED or outcome(process, data) != "ok":
            continue
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > 1_000_000:
            continue  # a few large ones would take most of the time
        image.load()
        if image.info.get("icc_profile") or image.mode.startswith("I") or name in UNLIKE:
            continue
        upright = ImageOps.exif_transpose(image).convert("RGBA")
        shown = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
        ours = Image.open(io.BytesIO(process(data).data))
        assert ours.size == shown.size, name
        distance = np.abs(np.asarray(ours).astype(int) - np.asarray(shown).astype(int)).mean()
        if distance > 1:
            far[name] = round(float(distance), 2)
    assert far == {}


def test_safe_tags_are_worded_as_exifread_words_them(corpus: dict[str, bytes]) -> None:
    exifread = pytest.importorskip("exifread")
    process = ImageProcessor(Download())
    safe = ("Image Orientation", "Image Make", "Image Model", "EXIF ExifImageWidth", "EXIF ExifImageLength")
    compared = 0
    for name, data in corpus.items():
        if sniff(data) != "jpeg" or outcome(process, data) != "ok":
            continue
        try:
            read = exifread.process_file(io.BytesIO(data), details=False)
        except (KeyError, IndexError, ValueError):
            continue  # img2dataset writes null here
        theirs = {tag: str(read[tag]).strip() for tag in safe if tag in read}
        ours = json.loads(process(data).exif or "{}")
        compared += bool(theirs)
        assert {tag: ours.get(tag) for tag in theirs} == theirs, name
    assert compared > 10
