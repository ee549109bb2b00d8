"""Decontamination in embedding space: pool images near one of an evaluation set's, crops and redrawings among them.

What is found is candidates more than copies: how near two images are is the encoder's opinion, and rows within
`semantic.overlap_eps` of an item may just show the same kind of thing.
"""

import io
import logging
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dedupe.find import fixed, hexadecimal
from pipeline.dedupe.sets import TABLES, image_files
from pipeline.semantic.clusters import Floats, several_nearest
from pipeline.semantic.find import Clusters, Search, distances
from pipeline.semantic.images import embed_images, encoder_named
from pipeline.semantic.rows import Rows
from pipeline.units import StageFolder
from schemas import tables
from schemas.recipe import Recipe

OVERLAPS: Final = pa.schema([field for field in tables.OVERLAPS if field.name != "removed"])
ITEMS: Final = "items.parquet"
"""In the stage's folder: eval_set, eval_item, vector. Made once: sets and weights are in the folder's fingerprint."""

_log = logging.getLogger(__name__)


def read_items(folder: StageFolder, recipe: Recipe) -> pa.Table:
    """The images of dedupe.against with their vectors, by set and item; a table of hashes has none.

    Raises InputError where the encoder is not the recipe's own.
    """
    path = f"{folder.base}/{ITEMS}"
    if (tagged := folder.store.read_tagged(path)) is None:
        data = io.BytesIO()
        pq.write_table(_embed(recipe), data, compression="zstd")
        folder.store.create(path, data.getvalue())
        tagged = folder.store.read_tagged(path)
        assert tagged is not None
    return pq.read_table(pa.BufferReader(tagged[0]))


def _embed(recipe: Recipe) -> pa.Table:
    assert recipe.semantic.encoder is not None
    encoder = encoder_named(recipe, recipe.semantic.encoder, "semantic.overlap_eps")
    parts = []
    for name, place in sorted(recipe.dedupe.against.items()):
        if place.endswith(TABLES):
            _log.warning("semantic: %s, a table, has no images to embed; it is compared by dedupe alone", name)
            continue
        items, vectors = embed_images(image_files(name, place), encoder)
        columns = {
            "eval_set": pa.repeat(pa.scalar(name), len(items)), "eval_item": pa.array(items, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        }  # fmt: skip
        parts.append(pa.table(columns).sort_by("eval_item"))
    none = pa.schema([("eval_set", pa.string()), ("eval_item", pa.string()), ("vector", pa.list_(pa.float32(), 1))])
    return pa.concat_tables(parts).combine_chunks() if parts else none.empty_table()


def overlaps(rows: Rows, items: pa.Table, eps: float, clusters: Clusters | None) -> pa.Table:
    """Every pair of an item and a new row of `rows` whose cosine is above 1 − eps, by set, item and uid.

    With `clusters` (of all rows) an item looks in as many of them as rows do. Schema OVERLAPS.
    """
    new = np.arange(rows.standing, len(rows.vectors))
    if not len(items) or not len(new):
        return OVERLAPS.empty_table()
    vectors: Floats = items["vector"].combine_chunks().flatten().to_numpy().reshape(len(items), -1)
    if clusters is not None:
        probes = several_nearest(vectors, clusters.centroids, clusters.probes.shape[1]).astype(np.int32)
        clusters = Clusters(clusters.home, probes, clusters.centroids)
    item, row = Search(rows.vectors, eps, clusters, queries=vectors).pairs(np.arange(len(items)), new)
    columns = {
        "eval_set": items["eval_set"].take(pa.array(item)),
        "eval_item": items["eval_item"].take(pa.array(item)),
        "uid": hexadecimal(fixed(rows.table["uid"], 16)[new[row]]),
        "level": pa.repeat(pa.scalar("semantic"), len(item)),
        "distance": pa.array(distances(vectors, item, rows.vectors, new[row])),
    }
    order = [("eval_set", "ascending"), ("eval_item", "ascending"), ("uid", "ascending")]
    return pa.table(columns, schema=OVERLAPS).sort_by(order).combine_chunks()
