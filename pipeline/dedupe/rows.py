"""The rows that `dedupe` compares, gathered from units' tables into the columns of `find.ROWS`."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dedupe.find import ROWS
from pipeline.metadata import Metadata
from pipeline.rounds import open_table, table_path
from pipeline.rules import Rules
from pipeline.runner import Unit
from pipeline.units import StageFolder
from schemas.recipe import Dedupe

Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class UnitRows:
    """All rows of some units, unit after unit. Memory: about 170 bytes a row, 620 with dihedral forms."""

    table: pa.Table
    """The columns of `find.ROWS` (and those that `rank` names beside them), `pdq_forms` where there are any."""
    eligible: pa.ChunkedArray
    ends: list[int]
    """Row at which each unit ends."""


class Gather:
    """Reads units' rows for one run of the stage."""

    def __init__(
        self,
        metadata: Metadata,
        hashes: StageFolder | None,
        settings: Dedupe,
        schema: pa.Schema,
        rules: Sequence[Rules],
    ) -> None:
        """`hashes`: None where no level needs them. `schema`: what rules may name. `rules`: one object a thread."""
        self._metadata = metadata
        self._hashes = hashes
        self._hashed = hashes.generations() if hashes else {}
        self._rules = rules
        ranked = [name for name in settings.rank if name not in ROWS.names]
        self._extra = [pa.field(name, schema.field(name).type) for name in ranked]
        self._forms = hashes is not None and settings.dihedral

    def read(self, units: Sequence[Unit]) -> UnitRows:
        """The units' rows, in the order of their outcomes."""
        with ThreadPoolExecutor(len(self._rules)) as pool:
            turns = [
                (self._rules[number % len(self._rules)], units[number :: len(self._rules)])
                for number in range(len(self._rules))
            ]
            found = list(pool.map(lambda turn: [self._unit(unit, turn[0]) for unit in turn[1]], turns))
        parts = [found[number % len(found)][number // len(found)] for number in range(len(units))]
        schema = pa.schema([*ROWS, *self._extra, *([pa.field("pdq_forms", pa.binary(7 * 32))] if self._forms else [])])
        tables = [table for table, _ in parts] or [schema.empty_table()]
        masks = [mask for _, mask in parts]
        eligible = pa.chunked_array(masks, pa.bool_())
        return UnitRows(pa.concat_tables(tables), eligible, list(accumulate(table.num_rows for table, _ in parts)))

    def _unit(self, unit: Unit, rules: Rules) -> tuple[pa.Table, pa.Array]:
        own = ["uid", "sha256", "text", "pixels", "bytes", *(field.name for field in self._extra)]
        rows = self._metadata.read(unit, [*own, *(name for name in rules.columns if name not in own)])
        mask = np.ones(rows.num_rows, np.bool_)
        for verdicts in rules.judge(rows).columns:
            mask &= verdicts.to_numpy()
        columns = {
            "uid": unhex(rows["uid"], 16),
            "sha256": unhex(rows["sha256"], 32),
            "text": digests(rows["text"]),
            "pixels": rows["pixels"].combine_chunks(),
            "bytes": rows["bytes"].combine_chunks(),
            **self._hashes_of(unit, rows["uid"]),
            **{field.name: rows[field.name].combine_chunks() for field in self._extra},
        }
        return pa.table(columns), pa.array(mask)

    def _hashes_of(self, unit: Unit, uids: pa.ChunkedArray) -> dict[str, pa.Array]:
        names = ["pdq", "pdq_quality", "colour", *(["pdq_forms"] if self._forms else [])]
        widths = {"pdq": 32, "colour": 48, "pdq_forms": 7 * 32}
        if self._hashes is None:
            return {name: pa.nulls(len(uids), ROWS.field(name).type) for name in names}
        record = self._hashes.record(unit["reads"], self._hashed[unit["reads"]])
        table = open_table(self._hashes, table_path(self._hashes, record, "hashes")).read(columns=["uid", *names])
        found = table.take(pc.index_in(uids, table["uid"].combine_chunks()).combine_chunks())
        return {
            name: unhex(found[name], widths[name]) if name in widths else found[name].combine_chunks() for name in names
        }


def unhex(column: pa.ChunkedArray, width: int) -> pa.Array:
    """Hex digits as fixed-size binary; null stays null. Raises ValueError where a value has another length."""
    flat = column.combine_chunks().cast(pa.string())
    full = flat.fill_null("00" * width)
    data = bytes.fromhex("".join(full.to_pylist()))
    if len(data) != width * len(full):
        raise ValueError(f"hashes of {width} bytes expected, {len(data)} bytes in {len(full)} rows found")
    validity = None if not flat.null_count else pc.is_valid(flat).buffers()[1]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(full), [validity, pa.py_buffer(data)])


def digests(texts: pa.ChunkedArray) -> pa.Array:
    """The first 128 bits of sha256 of each text; a text that is missing counts as empty."""
    made = [hashlib.sha256((text or "").encode()).digest()[:16] for text in texts.to_pylist()]
    return pa.array(made, pa.binary(16))


def as_keys(uids: pa.ChunkedArray | pa.Array) -> Keys:
    """16-byte uids as numpy's strings, which sort and compare as they do."""
    return np.frombuffer(b"".join(uids.to_pylist()), "S16")


class ByUid:
    """Rows of a table, found by their column `uid` (hex digits), in the table's order."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        keys = as_keys(unhex(table["uid"], 16))
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def of(self, uids: Keys) -> pa.Table:
        """The rows of these uids, each of which is given once."""
        first, end = (np.searchsorted(self._keys, uids, side) for side in ("left", "right"))
        found = [np.arange(low, high) for low, high in zip(first, end, strict=True) if low < high]
        at = np.concatenate(found) if found else np.empty(0, np.int64)
        return self._table.take(pa.array(np.sort(self._order[at])))
