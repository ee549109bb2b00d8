"""A split's images as vectors, made once for a model and kept: float32, in the tars' order."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.clip import BATCH, Clip, Vectors, unit
from pipeline.embed.decode import decode_images
from pipeline.encoders.preprocess import Preprocess
from pipeline.errors import InputError
from pipeline.evaluate.datasets import Dataset, Sample, tars
from pipeline.images.errors import ImageError

FORMAT = 1
RAW = Preprocess((16, 16), (0, 0, 0), (1, 1, 1), "bilinear", "squash")
"""What the raw-pixel baseline sees of an image: 768 numbers."""


@dataclass(frozen=True)
class Features:
    """`projected` [n, dim] of unit length, `pooled` [n, width] before the projection, `raw` uint8 [n, 768].

    `labels` int64 [n], or uint8 [n, classes] of multilabel; of retrieval, nothing. `captions` of retrieval alone.
    """

    keys: list[str]
    projected: Vectors
    pooled: Vectors
    raw: NDArray[np.uint8]
    labels: NDArray[Any]
    captions: list[list[str]]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.keys)


def features(clip: Clip, dataset: Dataset, split: str, fields: tuple[str, ...], cache: Path) -> Features:
    """Read from `cache`, or made and kept there. Raises InputError naming the image that does not decode."""
    kept = cache / f"{_identity(clip, dataset, split, fields)}.npz"
    if kept.is_file():
        return _read(kept.read_bytes())
    made = _made(clip, dataset, split, fields)
    cache.mkdir(parents=True, exist_ok=True)
    draft = kept.with_name(f".{kept.name}.{os.getpid()}")
    draft.write_bytes(_written(made))
    draft.rename(kept)
    return made


def _identity(clip: Clip, dataset: Dataset, split: str, fields: tuple[str, ...]) -> str:
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in tars(dataset.folder / split)]
    told = [FORMAT, clip.encoder.weights_sha256, clip.encoder.arch, str(clip.encoder.dtype), dataset.kind,
            str(dataset.folder.resolve()), split, fields, dataset.classes, files]  # fmt: skip
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    return f"{dataset.name.replace('/', '-')}-{split}-{digest}"


def _made(clip: Clip, dataset: Dataset, split: str, fields: tuple[str, ...]) -> Features:
    keys: list[str] = []
    labels: list[Any] = []
    captions: list[list[str]] = []
    metadata: list[dict[str, Any]] = []
    parts: list[tuple[Vectors, Vectors, NDArray[np.uint8]]] = []
    place = dataset.folder / split
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for batch in _batched(dataset.samples(split, fields)):
            parts.append(_forward(clip, threads.map(lambda one: _decoded(one, place, clip), batch)))
            for sample in batch:
                keys.append(sample.key)
                labels.append(sample.label if sample.labels is None else sample.labels)
                captions.append(list(sample.captions))
                metadata.append(sample.metadata)
    if not keys:
        raise InputError(f"{place} has no samples")
    projected, pooled, raw = (np.concatenate(one) for one in zip(*parts, strict=True))
    if not np.isfinite(projected).all():
        at = int(np.flatnonzero(~np.isfinite(projected).all(axis=1))[0])
        raise InputError(f"{place}: the model's vector of {keys[at]} is not finite")
    if dataset.kind == "retrieval":
        return Features(keys, projected, pooled, raw, np.zeros(0, np.int64), captions, metadata)
    return Features(keys, projected, pooled, raw, np.array(labels), [], metadata)


def _batched(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while batch := list(islice(samples, BATCH)):
        yield batch


def _decoded(sample: Sample, place: Path, clip: Clip) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        own, raw = decode_images(sample.image, [clip.encoder.preprocess, RAW], False)
    except ImageError as error:
        raise InputError(f"{place}: the image of {sample.key} cannot be decoded: {error}") from None
    return own, raw


def _forward(
    clip: Clip, decoded: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
) -> tuple[Vectors, Vectors, NDArray[np.uint8]]:
    import torch

    own, raw = zip(*decoded, strict=True)
    pixels = np.stack(own).transpose(0, 3, 1, 2)
    projected = unit(clip.encoder.encode_images(pixels))
    pooled: Vectors = clip.encoder.image_pooled(torch.as_tensor(pixels)).cpu().numpy()
    return projected, pooled, np.stack(raw).reshape(len(raw), -1)


def _written(made: Features) -> bytes:
    out = io.BytesIO()
    told = json.dumps({"keys": made.keys, "captions": made.captions, "metadata": made.metadata}).encode()
    np.savez(
        out, projected=made.projected, pooled=made.pooled, raw=made.raw, labels=made.labels,
        told=np.frombuffer(told, np.uint8),
    )  # fmt: skip
    return out.getvalue()


def _read(data: bytes) -> Features:
    with np.load(io.BytesIO(data), allow_pickle=False) as kept:
        told = json.loads(kept["told"].tobytes())
        return Features(
            told["keys"], kept["projected"], kept["pooled"], kept["raw"], kept["labels"], told["captions"],
            told["metadata"],
        )  # fmt: skip
