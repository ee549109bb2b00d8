"""Small evaluation sets in CLIP_benchmark's webdataset layout: coloured shapes drawn in the test."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (30, 60, 220), "yellow": (240, 210, 20),
           "violet": (140, 40, 180), "grey": (120, 120, 120)}  # fmt: skip
Members = Mapping[str, bytes]


def picture(colour: str, seed: int, background: int = 255, size: int = 40) -> bytes:
    """PNG: a disc of a colour, somewhere."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), (background,) * 3)
    x, y, radius = rng.integers(10, 30), rng.integers(10, 30), rng.integers(6, 14)
    noisy = tuple(int(one) for one in np.clip(np.array(COLOURS[colour]) + rng.integers(-40, 40, 3), 0, 255))
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=noisy)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def npy(values: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(values))
    return out.getvalue()


def write_split(folder: Path, samples: Iterable[Members], per_tar: int = 40) -> None:
    """Samples as {suffix: bytes} → folder/0.tar …, nshards.txt."""
    folder.mkdir(parents=True)
    samples = list(samples)
    shards = range(0, len(samples), per_tar)
    for number, at in enumerate(shards):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for row, members in enumerate(samples[at : at + per_tar], at):
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"s{row:07d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "nshards.txt").write_text(f"{len(shards)}\n")


def colours_set(
    folder: Path, names: Iterable[str] = COLOURS, test: int = 8, train: int = 10, background: int = 255
) -> Path:
    """A classification of discs by colour: `test` and `train` images a class, and the metadata `size` in .json."""
    names = list(names)
    folder.mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c} disc.\na {c} thing.\n")
    for split, each, base in (("test", test, 0), ("train", train, 10_000)):
        if each:
            write_split(folder / split, (
                {"png": picture(name, base + 100 * place + one, background), "cls": str(place).encode(),
                 "json": json.dumps({"size": "odd" if one % 2 else "even"}).encode()}
                for one in range(each) for place, name in enumerate(names)
            ))  # fmt: skip
    return folder


def captions_set(folder: Path, count: int = 12) -> Path:
    """A retrieval of `count` discs with one to three captions each."""
    folder.mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    names = list(COLOURS)
    write_split(folder / "test", (
        {"png": picture(names[one % 6], one),
         "txt": "\n".join(f"a {names[one % 6]} disc, number {one}, {more}" for more in range(1 + one % 3)).encode()}
        for one in range(count)
    ))  # fmt: skip
    return folder
