"""The kept rows' vectors in clip-retrieval's layout, as autofaiss and its own tools read them.

OUT/img_emb/img_emb_0.npy, OUT/text_emb/text_emb_0.npy (float16, rows x dimensions, unit length) and
OUT/metadata/metadata_0.parquet (image_path, caption and more): row i of each is one pair, and part numbers have as many
digits as their count needs (clip_inference/writer.py and mapper.py of rom1504/clip-retrieval).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.export.files import written
from pipeline.export.kept import KeptRows, kept_rows
from pipeline.root import adopted_scores
from pipeline.storage import Store, open_store
from pipeline.tables import dataset_files, read_published
from pipeline.units import current_folder

PART_ROWS = 1_000_000
"""Rows of a part, as clip-retrieval's: 1.5 GB an array of 768 dimensions."""

SIDES = {"img_emb": "image_embedding", "text_emb": "text_embedding"}
"""Folder → column of embeddings"""
COLUMNS = ("caption", "url", "uid", "sha256", "width", "height", "original_width", "original_height", "unit")
"""Columns of outcomes in the metadata, but `unit`, and beside image_path and scores."""

Vectors = dict[str, npt.NDArray[np.float16]]
"""Folder → rows x dimensions"""


@dataclass(frozen=True)
class Written:
    encoder: str
    rows: int
    parts: int
    left_out: int
    """Kept rows without vectors of the encoder."""


def write_clip_retrieval(store: Store, out: str, encoder: str | None, part_rows: int = PART_ROWS) -> Written:
    """Write the vectors of the kept rows, in the order of units and uids, `part_rows` a part.

    `encoder` may be left out where there is but one. image_path is the sample's key in the current dataset, else the
    uid. Memory: a unit's vectors, and DuckDB's, which spills. Raises InputError where `out` has such files already,
    where there are no vectors of the encoder, and before the first publication.
    """
    out = out.rstrip("/")
    with kept_rows(store) as rows:
        name, files = _encoder_of(store, encoder)
        _refuse_mixture(out)
        kept = rows.count()
        digits = int(math.log10(max(1, -(-kept // part_rows)))) + 1
        done = parts = 0
        for number, pieces in enumerate(_in_parts(_pairs(rows, store, name, files), part_rows)):
            with ExitStack() as stack:
                part = _Part(stack, out, f"{number:0{digits}d}")
                for table, vectors in pieces:
                    part.write(table, vectors)
                part.close()
            done, parts = done + part.rows, number + 1
    if not done:
        raise InputError(f"{store.uri}: no kept row has vectors of {name}")
    return Written(name, done, parts, kept - done)


def _encoder_of(store: Store, wanted: str | None) -> tuple[str, dict[str, list[str]]]:
    """The encoder, and unit → the files that may hold vectors of it."""
    published = read_published(store, "embeddings")
    encoders: set[str] = set()
    files: dict[str, list[str]] = {}
    all_paths = [file.path for file in published.files] if published else []
    with ThreadPoolExecutor(max(4, store.parallel_reads)) as pool:
        found = pool.map(lambda path: set(_read(store, path, ["encoder"])["encoder"].unique().to_pylist()), all_paths)
        for path, here in zip(all_paths, found, strict=True):
            encoders |= here
            if wanted is None or wanted in here:
                files.setdefault(path.rpartition("/")[2].partition(".")[0], []).append(path)
    adopted = adopted_scores(store).base
    for paths in files.values():
        paths.sort(key=lambda path: path.startswith(f"{adopted}/"))
    told = ", ".join(sorted(encoders)) or "none"
    if not encoders or (wanted is not None and wanted not in encoders):
        raise InputError(f"{store.uri}: has no vectors{f' of {wanted}' if wanted else ''}; there are those of {told}")
    if wanted is None and len(encoders) > 1:
        raise InputError(f"{store.uri}: has vectors of {told}; choose with --encoder NAME")
    return wanted or encoders.pop(), files


def _refuse_mixture(out: str) -> None:
    store = open_store(out)
    for folder in (*SIDES, "metadata"):
        if (there := next(iter(store.files(folder)), None)) is not None:
            raise InputError(f"{out}: has {there.path} already; give a place without another export, or remove that")


def _pairs(
    rows: KeptRows, store: Store, encoder: str, files: Mapping[str, Sequence[str]]
) -> Iterator[tuple[pa.Table, Vectors]]:
    """Metadata and vectors of the kept rows that have them, unit by unit."""
    sides: list[str] = []
    for unit, kept in _by_unit(rows.batches(_query(rows, store))):
        group = kept
        for path in files.get(unit, ()):
            found = _read(store, path, ["uid", "encoder", "status", *SIDES.values()])
            found = found.filter(pc.and_(pc.equal(found["encoder"], encoder), pc.equal(found["status"], "ok")))
            # What the first unit has (an adopted set may have vectors of images alone), every row must have.
            sides = sides or [side for side, column in SIDES.items() if found[column].null_count < found.num_rows]
            for side in sides:
                found = found.filter(pc.is_valid(found[SIDES[side]]))
            places = pc.index_in(group["uid"], found["uid"].combine_chunks())
            there = pc.is_valid(places)
            found = found.take(places.filter(there))
            if found.num_rows:
                yield group.filter(there), {side: _matrix(found[SIDES[side]]) for side in sides}
            group = group.filter(pc.invert(there))


def _query(rows: KeptRows, store: Store) -> str:
    """SQL of the kept rows with their key in the dataset as image_path, in the order of units and uids."""
    folder = current_folder(store, "shard")
    paths = dataset_files(folder, folder.iter_records()) if folder else []
    schema = pa.schema([("uid", pa.string()), ("key", pa.string())])
    rows.add("samples", paths, schema)
    return (
        f"SELECT coalesce(k.key, r.uid) AS image_path, r.* FROM ({rows.with_scores(COLUMNS)}) r "
        "LEFT JOIN samples k ON k.uid = r.uid ORDER BY r.unit, r.uid"
    )


def _by_unit(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, pa.Table]]:
    """(unit, its rows) of rows in the order of units."""
    waiting: list[pa.RecordBatch] = []
    now = ""
    for batch in batches:
        units = batch["unit"].to_pylist()
        starts = [row for row in range(len(units)) if row == 0 or units[row] != units[row - 1]]
        for start, end in pairwise([*starts, len(units)]):
            if waiting and units[start] != now:
                yield now, pa.Table.from_batches(waiting)
                waiting = []
            now = units[start]
            waiting.append(batch.slice(start, end - start))
    if waiting:
        yield now, pa.Table.from_batches(waiting)


def _in_parts(
    pairs: Iterator[tuple[pa.Table, Vectors]], part_rows: int
) -> Iterator[Iterator[tuple[pa.Table, Vectors]]]:
    """The pairs in parts of `part_rows` rows, each to be read to its end before the next."""
    left = next(pairs, None)

    def part() -> Iterator[tuple[pa.Table, Vectors]]:
        nonlocal left
        room = part_rows
        while left is not None and room:
            table, vectors = left
            yield table.slice(0, room), {side: array[:room] for side, array in vectors.items()}
            taken = min(room, table.num_rows)
            room -= taken
            if taken < table.num_rows:
                left = table.slice(taken), {side: array[taken:] for side, array in vectors.items()}
            else:
                left = next(pairs, None)

    while left is not None:
        yield part()


def _read(store: Store, path: str, columns: list[str]) -> pa.Table:
    filesystem, root = store.arrow()
    with filesystem.open_input_file(f"{root}/{path}") as source:
        return pq.read_table(source, columns=columns)


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float16]:
    values = column.combine_chunks().flatten().to_numpy()
    return np.asarray(values.reshape(len(column), -1), np.float16)


class _Part:
    """The files of one part, which get their names when the stack closes. An array is written as it comes."""

    def __init__(self, stack: ExitStack, out: str, number: str) -> None:
        self.rows = 0
        self._stack = stack
        self._out, self._number = out, number
        self._arrays: dict[str, _Array] = {}
        self._metadata: pq.ParquetWriter | None = None

    def write(self, table: pa.Table, vectors: Vectors) -> None:
        table = table.drop_columns(["unit"])
        if self._metadata is None:
            self._metadata = pq.ParquetWriter(self._local("metadata", "parquet"), table.schema, compression="zstd")
            self._arrays = {side: _Array(self._local(side, "npy"), array.shape[1]) for side, array in vectors.items()}
        self._metadata.write_table(table)
        for side, array in vectors.items():
            self._arrays[side].write(array)
        self.rows += table.num_rows

    def close(self) -> None:
        if self._metadata is not None:
            self._metadata.close()
        for array in self._arrays.values():
            array.close()

    def _local(self, folder: str, ending: str) -> Path:
        return self._stack.enter_context(written(f"{self._out}/{folder}/{folder}_{self._number}.{ending}"))


class _Array:
    """A float16 .npy of rows that are not counted yet: NumPy's header has room for any number of them."""

    def __init__(self, local: Path, dimensions: int) -> None:
        self._file = local.open("wb")
        self._rows, self._dimensions = 0, dimensions
        self._header()
        self._begin = self._file.tell()

    def write(self, array: npt.NDArray[np.float16]) -> None:
        self._file.write(np.ascontiguousarray(array).data)
        self._rows += len(array)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        assert self._file.tell() == self._begin
        self._file.close()

    def _header(self) -> None:
        described = {"descr": "<f2", "fortran_order": False, "shape": (self._rows, self._dimensions)}
        np.lib.format.write_array_header_1_0(self._file, described)
