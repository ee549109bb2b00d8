"""Image-based selection: rows in clusters of the pool that some reference image is in.

DataComp's filter (arXiv 2304.14108, section 4.2; baselines/image_based_clustering.py and apply_filter.py of its
repository): k-means over the pool's image vectors, and a row passes where its nearest centroid is the nearest of some
reference image; nearest by inner product. Theirs is over rows that pass the caption rules, ours over all with a vector.

The clusters are made in the first round of a `select` folder and serve its later ones: what a cluster is does not
change under rows already judged, and a small second batch is not cut into clusters of its own.

Memory: 4 d bytes a vector that k-means learns from, of which it takes at most clusters.POINTS a centroid (for 100,000
centroids of 768 dimensions 39 GB, once), then those of the centroids and of a unit. CPU: 2 d k flops a vector learnt
from and iteration, and a row judged.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dedupe.rows import as_keys, unhex
from pipeline.dedupe.sets import image_files
from pipeline.embed.rows import DueRows, decided_units
from pipeline.errors import InputError
from pipeline.runner import Unit
from pipeline.semantic.clusters import POINTS, Floats, Index, kmeans, nearest
from pipeline.semantic.images import embed_images, encoder_named
from pipeline.semantic.vectors import Vectors, vector_folder
from pipeline.storage import find_place
from pipeline.units import StageFolder
from schemas.recipe import Recipe

Flags = npt.NDArray[np.bool_]

CLUSTERS: Final = "clusters.npz"
"""In the folder of `select`: `centroids` [k, d], `referred` [k]: whether some reference image is nearest to each."""
FEW: Final = 39
"""Vectors a centroid below which faiss calls k-means unsound."""
SEED: Final = 0

_log = logging.getLogger(__name__)


def image_based(vectors: Floats, reference: Floats, k: int, seed: int = SEED) -> Flags:
    """Which of `vectors` [n, d] have one of k centroids of them all nearest that is nearest to some of `reference`
    [m, d].
    """
    centroids = kmeans(vectors, k, seed)
    return referred(reference, centroids)[nearest(vectors, centroids)]


def referred(reference: Floats, centroids: Floats) -> Flags:
    """Which of `centroids` [k, d] are the nearest of some of `reference` [m, d]."""
    flags = np.zeros(len(centroids), np.bool_)
    flags[nearest(reference, centroids)] = True
    return flags


class ClusterFilter:
    """Judges rows unit by unit. Make it once a round; `of` may be called from several threads."""

    def __init__(
        self, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, units: Sequence[Unit]
    ) -> None:
        """`folder`: that of `select`; `units`: descriptors of the round's units, clustered where no round was before.

        Raises InputError where the reference cannot be read or does not fit the encoder's vectors.
        """
        assert recipe.select.image_based is not None
        self._settings = settings = recipe.select.image_based
        self._vectors = Vectors(vector_folder(folders, settings.encoder), settings.encoder)
        self._due: DueRows | None = None
        if f"embed/{settings.encoder}" in folders:
            self._due, self._reads = DueRows(folders, recipe.embed.eligible), decided_units(folders["dedupe"])
        path = f"{folder.base}/{CLUSTERS}"
        if (tagged := folder.store.read_tagged(path)) is None:
            folder.store.create(path, self._cluster(recipe, [str(unit["reads"]) for unit in units]))
            tagged = folder.store.read_tagged(path)
            assert tagged is not None
        with np.load(io.BytesIO(tagged[0])) as made:
            self._centroids: Floats = made["centroids"]
            self._referred: Flags = made["referred"]

    def of(self, unit: Unit, uids: pa.ChunkedArray) -> Flags:
        """Which of these rows of a unit pass: [n]; a row without a vector does not."""
        there, vectors, _ = self._vectors.of(str(unit["reads"]), uids)
        passes = np.zeros(len(uids), np.bool_)
        if there.any():
            self._check(vectors, "the pool's vectors", self._centroids.shape[1])
            passes[there] = self._referred[nearest(vectors, self._centroids)]
        return passes

    def _cluster(self, recipe: Recipe, units: Sequence[str]) -> bytes:
        learned = self._sample(sorted(set(units)))
        k = self._settings.clusters
        if not len(learned):
            encoder = self._settings.encoder
            raise InputError(f"select.image_based.encoder: {encoder} has embedded no row of this round; run jobs.embed")
        if len(learned) < FEW * k:
            _log.warning(
                "image_based: %d vectors for %d clusters; below %d a cluster what is nearest is chance",
                len(learned), k, FEW,
            )  # fmt: skip
        reference = self._reference(recipe)  # before hours of k-means: it may be refused
        self._check(reference, self._settings.reference, learned.shape[1])
        self._centroids = kmeans(learned, k, SEED)
        del learned
        data = io.BytesIO()
        np.savez(data, centroids=self._centroids, referred=referred(reference, self._centroids))
        return data.getvalue()

    def _check(self, vectors: Floats, place: str, dim: int) -> None:
        if vectors.shape[1] != dim:
            raise InputError(
                f"select.image_based: {place} have {vectors.shape[1]} dimensions, but"
                f" {self._settings.encoder} has {dim}; give vectors made by that encoder"
            )

    def _uids(self, unit: str) -> pa.ChunkedArray:
        """Uids of a download unit's rows with a vector; without those that `embed` would give none now."""
        uids = self._vectors.uids(unit)
        if self._due is None or not (reads := self._reads.get(unit)):
            return uids
        return uids.filter(pc.is_in(uids, self._due.read(reads)["uid"].combine_chunks()))

    def _sample(self, units: list[str]) -> Floats:
        """The vectors of the rows of the lowest uids, which are hashes, by uid; at most POINTS a cluster.

        Two passes: the first over uids alone.
        """
        uids = [as_keys(unhex(self._uids(unit), 16)) for unit in units]
        ends = np.cumsum([0, *(len(part) for part in uids)])
        every = np.concatenate([np.empty(0, "S16"), *uids])
        order = np.argsort(every, kind="stable")[: POINTS * self._settings.clusters]
        place: Index = np.full(len(every), -1, np.int64)
        place[order] = np.arange(len(order))
        learned = np.empty((0, 0), np.float32)
        filled = np.zeros(len(order), np.bool_)  # a pair that came with a text vector alone has none
        for unit, (start, end) in zip(units, pairwise(ends), strict=True):
            chosen = place[start:end] >= 0
            if not chosen.any():
                continue
            there, vectors, _ = self._vectors.of(unit, self._uids(unit).filter(pa.array(chosen)))
            if not len(learned) and len(vectors):
                learned = np.empty((len(order), vectors.shape[1]), np.float32)
            at = place[start:end][chosen][there]
            learned[at], filled[at] = vectors, True
        return learned if filled.all() else learned[filled]

    def _reference(self, recipe: Recipe) -> Floats:
        """Vectors of the reference images [m, d], of unit length."""
        place = self._settings.reference
        if place.endswith(".npy"):
            vectors = self._array(place)
        else:
            encoder = encoder_named(recipe, self._settings.encoder, "select.image_based.reference")
            try:
                _, vectors = embed_images(image_files("reference", place), encoder)
            except InputError as error:
                told = str(error).replace("dedupe.against.reference", "select.image_based.reference")
                raise InputError(told) from None
        if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or not len(vectors) or vectors.dtype.kind != "f":
            raise InputError(f"select.image_based.reference: {place} holds no vectors [n, dim] and no image")
        lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            row = int(np.argmin(np.isfinite(lengths) & (lengths > 0)))
            raise InputError(f"select.image_based.reference: {place}, row {row}: a vector without a direction")
        return np.asarray(vectors / lengths[:, None], np.float32)

    def _array(self, place: str) -> Any:
        store, path = find_place(place)
        try:
            return np.load(io.BytesIO(store.read(path)), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"select.image_based.reference: {place} cannot be read as .npy: {error}") from None
