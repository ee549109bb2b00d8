"""Reads a dataset that is an index (`shard.mode: index`): its samples in order, each image by its range of the pool."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.shard.pool import PoolReader
from pipeline.storage import Store
from pipeline.units import StageFolder, current_folder

COLUMNS = ("uid", "caption", "weight", "pool_file", "pool_offset", "pool_size", "pool_sha256")


class IndexSample(NamedTuple):
    image: bytes
    caption: str
    uid: str
    weight: float


class Index:
    """A dataset of a ROOT, local or in S3. Memory while reading: a shard's rows and two blocks of images."""

    def __init__(self, store: Store, fingerprint: str | None = None) -> None:
        """The dataset of shard/<fingerprint>, by default the current one.

        Raises InputError where there is none, or it is none whose images are in the pool.
        """
        folder = StageFolder(store, "shard", fingerprint) if fingerprint else current_folder(store, "shard")
        tagged = store.read_tagged(f"{folder.base}/dataset/dataset.json") if folder else None
        if folder is None or tagged is None:
            raise InputError(f"{store.uri}: has no dataset{f' {fingerprint}' if fingerprint else ''}; run jobs.build")
        if json.loads(tagged[0]).get("mode") != "index":
            raise InputError(
                f"{store.uri}/{folder.base}/dataset: is no index, its images are in its shards; read those"
            )
        self._store = store
        self._base = f"{folder.base}/dataset"
        self.sizes: dict[str, int] = json.loads(store.read(f"{self._base}/sizes.json"))
        """S.parquet → samples, in the order of the shards."""

    def table(self, shard: str) -> pa.Table:
        """All columns (schemas.tables.INDEX, kept input columns before them) of a shard named in `sizes`."""
        return pq.read_table(pa.BufferReader(self._store.read(f"{self._base}/{shard}")))

    def read(self, shards: Sequence[str] | None = None) -> Iterator[IndexSample]:
        """The samples of these shards, by default of all, in the order of their keys.

        Images are read ahead in ranges, many at a time in S3. Raises PoolMismatchError where an image is gone or has
        another sha256 than was recorded.
        """
        with closing(PoolReader(self._store)) as pool:
            for shard in self.sizes if shards is None else shards:
                table = self.table(shard).select(COLUMNS)
                captions, uids, weights = (table[name].to_pylist() for name in ("caption", "uid", "weight"))
                for start, images in pool.blocks(table):
                    for row, image in enumerate(images, start):
                        yield IndexSample(image, captions[row] or "", uids[row], weights[row])
