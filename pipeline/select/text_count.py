"""`text_count`: in how many ok rows of the pool a row's text is.

Texts are counted by 64 bits of their md5 (a collision among 10 million texts: 1 in 370,000 such pools), 16 bytes a
distinct text.
"""

from collections.abc import Iterable

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.metadata import Metadata
from pipeline.runner import Unit


class TextCounts:
    """Counts the texts of the given units once. `of` may be called from several threads."""

    def __init__(self, metadata: Metadata, units: Iterable[Unit]) -> None:
        engine = duckdb.connect(config={"threads": 1})
        keys = [_keys(engine, metadata.read(unit, ["text"])["text"]) for unit in units]
        self._keys, self._counts = np.unique(np.concatenate([np.empty(0, np.uint64), *keys]), return_counts=True)

    def of(self, engine: duckdb.DuckDBPyConnection, texts: pa.ChunkedArray) -> pa.Array:
        """The count of each text; they are all among those counted."""
        return pa.array(self._counts[np.searchsorted(self._keys, _keys(engine, texts))], pa.int64())


def _keys(engine: duckdb.DuckDBPyConnection, texts: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    if not len(texts):
        return np.empty(0, np.uint64)
    engine.register("texts_", pa.table({"text": texts}))
    try:
        found = engine.execute("SELECT md5_number_lower(coalesce(text, '')) AS key FROM texts_").fetchnumpy()["key"]
    finally:
        engine.unregister("texts_")
    return np.asarray(found, np.uint64)
