"""One PNG of a finished ROOT: a sample of its images with their captions, and what was turned away."""

import io
import random
import tarfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, TEXT, MARGIN = 150, 46, 8
COLUMNS, ROWS = 8, 5
INK, GREY, PAPER = (30, 30, 30), (110, 110, 110), (250, 250, 248)


def write_contact_sheet(dataset: Path, ended: Sequence[tuple[str, int]], path: Path, seed: int = 0) -> int:
    """Draw 40 samples of `dataset`'s tars and the counts of `ended` ("failed dns", 12) into `path`; the samples drawn.

    Pillow's own font has no glyphs beyond ASCII: other captions are passed over where there are
    enough without them.
    """
    samples = _sample(dataset, COLUMNS * ROWS, seed)
    words = textwrap.wrap("   ".join(f"{name}: {count}" for name, count in ended), 170)
    width = COLUMNS * (CELL + MARGIN) + MARGIN
    height = ROWS * (CELL + TEXT + MARGIN) + 40 + 18 * len(words) + 2 * MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(11), ImageFont.load_default(15)
    draw.text((MARGIN, MARGIN), f"{len(samples)} samples of {dataset.parents[2].name}", INK, large)
    for number, (data, caption) in enumerate(samples):
        x = MARGIN + number % COLUMNS * (CELL + MARGIN)
        y = 34 + number // COLUMNS * (CELL + TEXT + MARGIN)
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
        picture.thumbnail((CELL, CELL))
        sheet.paste(picture, (x + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2))
        lines = textwrap.wrap(caption, 26)[:3]
        draw.multiline_text((x, y + CELL + 3), "\n".join(lines), INK, small, spacing=2)
    for number, line in enumerate(words):
        draw.text((MARGIN, height - MARGIN - 18 * (len(words) - number)), line, GREY, small)
    draft = path.with_name(f".{path.name}")
    sheet.save(draft, "PNG")
    draft.rename(path)
    return len(samples)


def _sample(dataset: Path, wanted: int, seed: int) -> list[tuple[bytes, str]]:
    """(image, caption) of samples drawn from all tars alike, no image twice, those in ASCII first."""
    found: list[tuple[str, Path, tarfile.TarInfo]] = []
    for tar in sorted(dataset.glob("*.tar")):
        with tarfile.open(tar) as file:
            images: dict[str, tarfile.TarInfo] = {}
            for member in file:
                key, _, extension = member.name.rpartition(".")
                if extension == "txt":
                    body = file.extractfile(member)
                    assert body is not None
                    found.append((body.read().decode("utf-8", "replace"), tar, images[key]))
                elif extension != "json":
                    images[key] = member
    random.Random(seed).shuffle(found)
    found.sort(key=lambda sample: not sample[0].isascii())
    chosen: dict[bytes, str] = {}
    for caption, tar, image in found:
        if len(chosen) == wanted:
            break
        with tar.open("rb") as bytes_:
            bytes_.seek(image.offset_data)
            chosen.setdefault(bytes_.read(image.size), caption)
    return list(chosen.items())
