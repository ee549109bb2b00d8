"""A dataset of small coloured images by hand, in our contract, and towers of a layer or two, for tests of training."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.tar import BLOCK, TarMembers
from pipeline.train.dataset import find_dataset
from pipeline.train.index import make_index
from pipeline.train.loop import Job
from pipeline.train.settings import TrainSettings
from tests.pool_fixture import uid_of

COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta", "white", "black")
TOWERS: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
RESNET: dict[str, Any] = {
    **TOWERS, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
}  # fmt: skip


def image_of(number: int) -> bytes:
    """A 40 × 48 JPEG in the number's colour with noise of its own."""
    levels = [(255, 0, 0), (0, 160, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (255,) * 3, (0,) * 3]
    noise = np.random.default_rng(number).integers(-30, 30, (40, 48, 3))
    pixels = np.clip(np.array(levels[number % 8]) + noise, 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=90)
    return data.getvalue()


def caption_of(number: int) -> str:
    return f"a {COLOURS[number % 8]} picture, number {number}"


def write_dataset(
    folder: Path, samples: int, shards: int = 2, images: Mapping[int, bytes] | None = None,
    captions: Mapping[int, str] | None = None, ours: bool = True, first: int = 0,
) -> Path:  # fmt: skip
    """Tars of the samples' images and texts; `ours`: with S.parquet, sizes.json and dataset.json beside them."""
    folder.mkdir(parents=True)
    members = TarMembers(0o444)
    sizes: dict[str, int] = {}
    for shard, numbers in enumerate(np.array_split(np.arange(first, first + samples), shards)):
        name = f"{shard:05d}"
        rows = []
        with (folder / f"{name}.tar").open("wb") as file:
            for place, number in enumerate(numbers.tolist()):
                key = f"{shard * 10000 + place:09d}"
                text = (captions or {}).get(number, caption_of(number))
                image = (images or {}).get(number, image_of(number))
                rows.append({"key": key, "caption": text, "uid": uid_of(number), "weight": 1.0 + number % 3})
                for extension, data in ("jpg", image), ("json", json.dumps(rows[-1]).encode()), ("txt", text.encode()):
                    file.write(b"".join(members.member(f"{key}.{extension}", data)))
            file.write(bytes(2 * BLOCK))
        sizes[f"{name}.tar"] = len(numbers)
        if ours:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    if ours:
        (folder / "sizes.json").write_text(json.dumps(sizes))
        (folder / "dataset.json").write_text(json.dumps({"mode": "tars", "output_format": "webdataset"}))
    return folder


def towers_file(folder: Path, config: dict[str, Any] = TOWERS) -> str:
    """A model_cfg that `arch` can name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "towers.json"
    path.write_text(json.dumps(config))
    return str(path)


def settings_of(folder: Path, **changes: Any) -> TrainSettings:
    """Eight steps of 16 samples on the small towers, a checkpoint every other step."""
    given: dict[str, Any] = {
        "arch": towers_file(folder), "batch_size": 16, "samples": 128, "warmup": 2, "lr": 1e-2, "threads": 1,
        "checkpoint_steps": 2, "keep": 2,
    }  # fmt: skip
    return TrainSettings(**{**given, **changes})


def job_of(folder: Path, out: str = "out", data: Path | None = None, rows: int = 60, **changes: Any) -> Job:
    """A run on `data`, or on a dataset of so many samples that is written beside it."""
    if data is None:
        data = folder / "data"
        if not data.exists():
            write_dataset(data, rows)
    index = make_index([find_dataset(str(data))], folder / out)
    return Job(settings_of(folder, **changes), str(folder / out), str(index.folder))


def curve(folder: Path, out: str = "out") -> list[tuple[float, ...]]:
    """(step, loss, accuracy, temperature, gradient norm) of every step, as written: equal where bits are."""
    lines = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return [tuple(line[name] for name in ("step", "loss", "accuracy", "temperature", "norm")) for line in lines]
