"""Metadata beside a download's shards: scores and vectors, found again by the pair or by img2dataset's key.

Memory: 24 bytes a metadata row for finding it and 4 a score; vectors stay on disk and are mapped.
"""

import hashlib
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.adopt.dataset import Dataset
from pipeline.adopt.names import clip_columns, head_columns, vector_of
from pipeline.errors import InputError
from pipeline.ingest.judge import uid_of
from pipeline.ingest.parquet import open_parquet
from pipeline.ingest.sources import random_access

By = Literal["pair", "key"]
Score = tuple[Literal["clip", "head"], str]
"""A cosine and its encoder, or a head and its name."""
Side = tuple[str, str]
"""Encoder, image or text."""
Floats = npt.NDArray[np.float32]
_URLS, _TEXTS, _KEYS = ("url", "URL"), ("text", "TEXT", "caption"), ("key", "image_path")


@dataclass
class Sidecars:
    """Metadata files that are found in the same way; rows of all are numbered through, in the order of the files."""

    by: By
    tokens: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    scores: dict[Score, list[Floats]] = field(default_factory=dict)
    arrays: list[dict[Side, Any]] = field(default_factory=list)
    """Of each file: vectors as they are stored, rows × dimensions, mapped."""

    def close(self) -> None:
        """Make the index; no file is added afterwards."""
        tokens = np.concatenate(self.tokens)
        self._order = np.argsort(tokens[:, 0], kind="stable")
        self._hi, self._lo = tokens[self._order].T
        self._scores = {name: np.concatenate(parts) for name, parts in self.scores.items()}
        self.tokens.clear()

    def find(self, names: list[str]) -> npt.NDArray[np.int64]:
        """The row of each uid (by pair) or key, −1 where there is none; of equal rows the first."""
        hi, lo = _tokens(names, self.by).T
        place = np.searchsorted(self._hi, hi)
        if not len(self._hi):
            return np.full(len(names), -1, np.int64)
        inside = np.minimum(place, len(self._hi) - 1)
        same = (self._hi[inside] == hi) & (self._lo[inside] == lo)
        return np.where(same, self._order[inside], -1)

    def score(self, name: Score, rows: npt.NDArray[np.int64]) -> Floats:
        """NaN where a row is −1 or has none."""
        values = self._scores[name]
        found = values[rows] if len(values) else np.full(len(rows), np.nan, np.float32)
        found[rows < 0] = np.nan
        return found

    def sides(self) -> set[Side]:
        return {side for arrays in self.arrays for side in arrays}

    def vectors(self, side: Side, rows: npt.NDArray[np.int64]) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """float32 vectors as given, rows × dimensions, and which of the rows have one."""
        dimensions = {arrays[side].shape[1] for arrays in self.arrays if side in arrays}
        if len(dimensions) > 1:
            sizes = " and ".join(map(str, sorted(dimensions)))
            raise InputError(
                f"vectors of {side[0]} have {sizes} dimensions, so they are of two encoders; leave one out"
            )
        found = np.zeros((len(rows), dimensions.pop() if dimensions else 0), np.float32)
        given = np.zeros(len(rows), bool)
        files = np.searchsorted(self.starts, rows, side="right") - 1
        for file in np.unique(files[rows >= 0]).tolist():
            if side in self.arrays[file]:
                here = np.flatnonzero((files == file) & (rows >= 0))
                found[here] = self.arrays[file][side][rows[here] - self.starts[file]]
                given[here] = True
        return found, given


def _tokens(names: list[str], by: By) -> npt.NDArray[np.uint64]:
    """128 bits of each name, rows × 2: a uid is such bits already."""
    if by == "pair":
        data = bytes.fromhex("".join(names))
    else:
        data = b"".join(hashlib.sha256(name.encode()).digest()[:16] for name in names)
    return np.frombuffer(data, np.uint64).reshape(-1, 2)


def read_sidecars(dataset: Dataset, folder: Path) -> list[Sidecars]:
    """Everything beside the shards that holds a score or a vector; arrays are unpacked into `folder`.

    Raises InputError for metadata whose rows cannot be found again, and arrays that are not of their file's rows.
    """
    found: dict[By, Sidecars] = {}
    for number, path in enumerate(dataset.metadata):
        names = open_parquet(path).schema_arrow.names
        arrays = _arrays(dataset, path, folder / str(number))
        clips, heads = clip_columns(names), head_columns(names)
        if not (clips or heads or arrays):
            continue
        by, columns = _finding(path, names)
        table = open_parquet(path).read(columns=[*columns, *clips.values(), *heads.values()], use_threads=False)
        for (encoder, side), array in arrays.items():
            if len(array) != table.num_rows:
                raise InputError(
                    f"{path}: has {table.num_rows} rows, its {side} vectors of {encoder} {len(array)}; they are not of "
                    "one file: get both again, or leave both out"
                )
        into = found.setdefault(by, Sidecars(by))
        _add(into, table, columns, clips, heads, arrays)
    for sidecars in found.values():
        sidecars.close()
    return list(found.values())


def _finding(path: str, names: list[str]) -> tuple[By, list[str]]:
    for key in _KEYS:
        if key in names:
            return "key", [key]
    url = next((name for name in _URLS if name in names), None)
    text = next((name for name in _TEXTS if name in names), None)
    if url is None or text is None:
        raise InputError(
            f"{path}: holds scores or vectors, but no columns that say whose: it needs url and text (or key); its "
            f"columns are {', '.join(names)}; leave it out"
        )
    return "pair", [url, text]


def _add(
    into: Sidecars, table: pa.Table, columns: list[str], clips: dict[str, str], heads: dict[str, str],
    arrays: dict[Side, Any],
) -> None:  # fmt: skip
    values = [pc.fill_null(table[name].cast(pa.string()), "").to_pylist() for name in columns]
    if into.by == "pair":
        names = [uid_of(url, text) for url, text in zip(*values, strict=True)]
    else:  # clip-retrieval's image_path may be a path
        names = [value.rpartition("/")[2].partition(".")[0] for value in values[0]]
    into.tokens.append(_tokens(names, into.by))
    before = into.starts[-1]
    into.starts.append(before + table.num_rows)
    into.arrays.append(arrays)
    given: dict[Score, str] = {("clip", encoder): column for encoder, column in clips.items()}
    given |= {("head", head): column for head, column in heads.items()}
    for score in given.keys() | into.scores.keys():
        parts = into.scores.setdefault(score, [np.full(before, np.nan, np.float32)])
        parts.append(numbers(table[given[score]]) if score in given else np.full(table.num_rows, np.nan, np.float32))


def numbers(column: pa.ChunkedArray) -> Floats:
    """Any column as float32, NaN where it holds no number."""
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        text = column.cast(pa.string())
        number = pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        column = pc.if_else(number, text, pa.scalar(None, pa.string()))
    return cast(Floats, column.cast(pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32))


def array_names(dataset: Dataset) -> set[str]:
    """Names of the arrays in .npz files beside the metadata."""
    found: set[str] = set()
    for path in dataset.arrays.values():
        with zipfile.ZipFile(cast(Any, random_access(path))) as archive:
            found |= {name.removesuffix(".npy") for name in archive.namelist()}
    return found


def _arrays(dataset: Dataset, path: str, folder: Path) -> dict[Side, Any]:
    """The file's vectors, unpacked where they are packed or remote, and mapped."""
    found: dict[Side, Any] = {}
    if packed := dataset.arrays.get(path):
        folder.mkdir()
        with zipfile.ZipFile(cast(Any, random_access(packed))) as archive:
            for member in archive.namelist():
                if side := vector_of(member.removesuffix(".npy")):
                    found[side] = _mapped(packed, Path(archive.extract(member, folder)))
    for name, array in dataset.rows.get(path, {}).items():
        side = vector_of(name)
        assert side is not None
        local = Path(array)
        if "://" in array:
            folder.mkdir(exist_ok=True)
            local = folder / f"{name}.npy"
            with random_access(array) as source, local.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
        found[side] = _mapped(array, local)
    return found


def _mapped(given: str, local: Path) -> Any:
    try:
        array = np.load(local, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{given}: holds no array ({str(error)[:100]}); get it again or leave it out") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(
            f"{given}: is {array.dtype} of shape {array.shape}, not a row of floats a vector; leave it out"
        )
    return array
