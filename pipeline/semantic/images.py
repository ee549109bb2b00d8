"""Vectors of images that are no pool images: evaluation sets, references."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.dedupe.hashes import MAX_FRAMES, WHITE
from pipeline.encoders.preprocess import Preprocess, to_pixels
from pipeline.errors import InputError
from pipeline.images.decode import decode
from pipeline.images.errors import ImageError
from pipeline.images.exif import load, orientation
from pipeline.images.header import read_header
from pipeline.images.process import orient
from pipeline.semantic.clusters import Floats
from schemas.recipe import Encoder, Recipe

_BATCH: Final = 64
_WHOLE: Final = (1 << 30, 1 << 30)

_log = logging.getLogger(__name__)


def encoder_named(recipe: Recipe, name: str, place: str) -> Encoder:
    """The recipe's encoder of that name, to embed images that `place` needs. Raises InputError where it has none."""
    for encoder in recipe.embed.encoders:
        if encoder.name == name:
            return encoder
    raise InputError(f"recipe {place}: images are embedded by {name}, which is not in embed.encoders; add it there")


def embed_images(files: Iterator[tuple[str, bytes]], settings: Encoder) -> tuple[list[str], Floats]:
    """Names of the images that can be read and embedded, and their vectors [n, dim], of unit length.

    The model runs in this process, on its GPU where it sees one.
    """
    # Only here is needed what it imports.
    import torch

    from pipeline.encoders.load import load as load_encoder

    encoder = load_encoder(settings, "cuda" if torch.cuda.is_available() else "cpu")
    names: list[str] = []
    vectors = [np.empty((0, encoder.dim), np.float32)]
    failed = 0
    with ThreadPoolExecutor() as pool:
        while some := list(islice(files, _BATCH)):
            pixels = list(pool.map(lambda file: _input(file[1], encoder.preprocess), some))
            read = [(name, image) for (name, _), image in zip(some, pixels, strict=True) if image is not None]
            failed += len(some) - len(read)
            if not read:
                continue
            batch = np.stack([image for _, image in read]).transpose(0, 3, 1, 2)
            raw = encoder.encode_images(np.ascontiguousarray(batch)).astype(np.float64)
            lengths = np.sqrt((raw**2).sum(axis=1))
            right = np.isfinite(lengths) & (lengths > 0)
            failed += len(read) - int(right.sum())
            vectors.append((raw[right] / lengths[right, None]).astype(np.float32))
            names += [name for (name, _), fine in zip(read, right, strict=True) if fine]
    if failed:
        _log.warning("%s: %d of %d images cannot be embedded; left out", settings.name, failed, failed + len(names))
    return names, np.concatenate(vectors)


def _input(data: bytes, preprocess: Preprocess) -> npt.NDArray[np.uint8] | None:
    """The image as `download` would show it, then as the encoder takes it [rows, columns, 3]; None where unreadable."""
    try:
        header = read_header(data, MAX_FRAMES)
        shown, _ = decode(data, header, _WHOLE, WHITE)
    except ImageError:
        return None
    upright = orient(shown, header.orientation or orientation(load(header.exif)))
    return to_pixels(cv2.cvtColor(upright, cv2.COLOR_BGR2RGB), preprocess)
