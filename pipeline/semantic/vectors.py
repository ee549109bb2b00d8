"""Image vectors out of the units of one encoder's folder below embed/."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.root import adopted_scores
from pipeline.rounds import open_table, table_path
from pipeline.semantic.clusters import Floats
from pipeline.units import StageFolder
from schemas.tables import EMBEDDINGS

UNIT_LENGTH = 1e-5
"""By how much a stored vector's length may differ from 1."""


def vector_folder(folders: Mapping[str, StageFolder], encoder: str) -> StageFolder:
    """The folder that has the encoder's vectors: its own, or that of the vectors that came with adopted batches."""
    return folders.get(f"embed/{encoder}") or adopted_scores(folders["download"].store)


class Vectors:
    """Reads the vectors of download units. Safe to use from several threads."""

    def __init__(self, folder: StageFolder, encoder: str) -> None:
        self._folder, self._encoder = folder, encoder
        self._current = folder.generations()

    def rows(self, units: list[str]) -> int:
        """How many vectors these download units have, at most."""
        there = ((unit, self._current[unit]) for unit in units if unit in self._current)
        return sum(self._folder.record(*item).counts.get("ok", {}).get("", 0) for item in there)

    def uids(self, unit: str) -> pa.ChunkedArray:
        """The uids of a download unit's rows that have a vector."""
        return self._read(unit, ["uid"])["uid"]

    def of(self, unit: str, uids: pa.ChunkedArray) -> tuple[npt.NDArray[np.bool_], Floats, pa.ChunkedArray]:
        """Which of the uids have a vector; those vectors [n, d], of unit length, in the uids' order; and their
        clip_score.

        Raises StoreError where vectors differ in length, or one is not of unit length.
        """
        table = self._read(unit, ["uid", "clip_score", "image_embedding"])
        places = pc.index_in(uids, table["uid"].combine_chunks())
        there = pc.is_valid(places)
        table = table.take(places.filter(there))
        column = table["image_embedding"].combine_chunks()
        flat = column.flatten().to_numpy().astype(np.float32, copy=False)
        place = f"{self._folder.base}: unit {unit}, encoder {self._encoder}"
        if len(column) and (len(flat) % len(column) or pc.count_distinct(pc.list_value_length(column)).as_py() != 1):
            raise StoreError(f"{place}: its vectors are not of one number of dimensions")
        vectors = flat.reshape(len(column), -1) if len(column) else np.empty((0, 0), np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        if not (np.abs(lengths - 1) <= UNIT_LENGTH).all():
            worst = int(np.argmax(~(np.abs(lengths - 1) <= UNIT_LENGTH)))
            raise StoreError(f"{place}: the vector of {table['uid'][worst]} is {lengths[worst]:.6f} long, not 1")
        return there.to_numpy(), vectors, table["clip_score"]

    def _read(self, unit: str, columns: list[str]) -> pa.Table:
        """Columns of the unit's rows that have an image vector of this encoder."""
        if (generation := self._current.get(unit)) is None:
            return pa.schema([EMBEDDINGS.field(name) for name in columns]).empty_table()
        record = self._folder.record(unit, generation)
        file = open_table(self._folder, table_path(self._folder, record, "embeddings"))
        table = file.read(columns=["encoder", "status", *columns])
        ours = pc.and_(pc.equal(table["encoder"], self._encoder), pc.equal(table["status"], "ok"))
        table = table.filter(ours).select(columns)
        return table.filter(pc.is_valid(table["image_embedding"])) if "image_embedding" in columns else table
