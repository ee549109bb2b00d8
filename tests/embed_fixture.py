"""A stand-in for an encoder, small and exact, and the embed stage's worker run on a pool with it."""

import hashlib
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.embed.stage import embed_due
from pipeline.embed.worker import EmbedWorker
from pipeline.encoders.preprocess import Preprocess
from pipeline.rounds import open_table, table_path
from pipeline.runner import Pass, Result, run_here, run_units
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Encoder, Recipe

SIDE, DIM, CONTEXT = 32, 16, 24
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class Plain:
    """Vectors that pixels and tokens determine: a fixed linear map of a coarse grid, and of a bag of bytes."""

    def __init__(self, device: str = "cpu") -> None:
        draw = np.random.default_rng(0)
        self.name, self.dim, self.arch, self.weights_sha256 = "plain", DIM, "plain", "0" * 64
        self.preprocess = Preprocess((SIDE, SIDE), MEAN, STD)
        self.text_lengths_matter = True
        self._image = draw.standard_normal((8 * 8 * 3, DIM)).astype(np.float32)
        self._text = draw.standard_normal((256, DIM)).astype(np.float32)
        self.batches: list[tuple[str, tuple[int, ...]]] = []

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(("image", pixels.shape))
        grid = pixels.astype(np.float32)[:, :, ::4, ::4] / 255
        return np.stack([one.reshape(-1) @ self._image for one in grid])

    def encode_texts(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self.batches.append(("text", tokens.shape))
        return np.stack([self._text[row[row > 0]].sum(axis=0) + 1 for row in tokens]).astype(np.float32)

    def text_lengths(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        return (tokens > 0).sum(axis=1)


def byte_tokens(texts: list[str]) -> NDArray[np.int64]:
    made = np.zeros((len(texts), CONTEXT), np.int64)
    for row, text in enumerate(texts):
        data = np.frombuffer(text.encode()[:CONTEXT], np.uint8)
        made[row, : len(data)] = np.maximum(data, 1)
    return made


def byte_tokenizer() -> Any:
    return byte_tokens


def digests(texts: list[str]) -> list[str]:
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


ENCODER = Encoder(name="plain", weights="untrained")


def embed(
    store: Store, folders: Mapping[str, StageFolder], recipe: Recipe, run: str = "run", plain: Any = None,
    decoders: int = 2, actors: int = 0,
) -> list[Result]:  # fmt: skip
    """Embed what is due, in this process or by actors; returns the units' results."""
    folder = folders["embed/plain"]
    due = embed_due(store, recipe, folders, ENCODER)
    results: list[Result] = []
    if due:
        upstream = {key: (one.stage, one.fingerprint) for key, one in folders.items() if "/" not in key}
        encoder = plain or Plain()
        make = partial(
            EmbedWorker, store.uri, upstream, folder.fingerprint, recipe.embed, ENCODER, lambda device: encoder,
            byte_tokenizer, run, decoders=decoders,
        )  # fmt: skip
        stop = StopFlag(store.uri, run)
        if actors:
            run_units(recipe, Pass("embed", make, 2, actors), [[unit] for unit in due], stop, results.append)
        else:
            with closing(make()) as worker:
                run_here(lambda: worker, due, stop, results.append, workers=1)
    return results


def embeddings(folder: StageFolder) -> dict[str, dict[str, Any]]:
    """uid → row of the current tables; fails where a uid has two."""
    rows: list[dict[str, Any]] = []
    for record in folder.records().values():
        rows += open_table(folder, table_path(folder, record, "embeddings")).read().to_pylist()
    found = {row["uid"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def tables(folder: StageFolder) -> dict[str, pa.Table]:
    """unit → its current table."""
    return {
        unit: open_table(folder, table_path(folder, record, "embeddings")).read()
        for unit, record in folder.records().items()
    }
