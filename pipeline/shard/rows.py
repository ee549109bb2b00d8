"""A shard's rows: found from its descriptor, by sorting the uids of its windows and reading only what it holds."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.metadata import Metadata
from pipeline.root import adopted_scores
from pipeline.rounds import descriptors, open_table, read_rounds, table_path, taken_rows
from pipeline.runner import Unit
from pipeline.shard.plan import windows
from pipeline.units import StageFolder
from schemas.records import Round
from schemas.tables import DECISIONS, OUTCOMES, SCORES

COLUMNS = (
    "uid", "url", "caption", "width", "height", "original_width", "original_height", "exif", "sha256", "fetched_at",
    "pool_file", "pool_offset", "pool_size", "pool_sha256",
)  # fmt: skip

DECIDED = (DECISIONS.field("weight"), SCORES.field("clip_score"))
"""What a sample has beside its outcome."""

Places = npt.NDArray[np.int32]
"""Two columns, a row for every row of a window in the order of uids: the unit's place in the window, the row in its
outcomes table."""


@dataclass(frozen=True)
class _Unit:
    """The rows that a unit of `select` keeps, in the order of their outcomes."""

    path: str
    """Of its outcomes."""
    uids: pa.Array
    rows: npt.NDArray[np.int64]
    """Their places in the outcomes table."""
    decided: pa.Table
    """The columns DECIDED."""


@dataclass(frozen=True)
class _Window:
    """A window's kept rows in the order of uids."""

    paths: list[str]
    """Of its units' outcomes."""
    places: Places
    decided: pa.Table


class RoundRows:
    """The rows of one round; keeps the order of the windows it sorted last, since neighbouring shards share them."""

    def __init__(self, folders: Mapping[str, StageFolder], round_: Round) -> None:
        """`folders` are those of the run, by stage."""
        self._download, self._select = folders["download"], folders["select"]
        self._round = round_
        self._reads = descriptors(read_rounds(self._select))
        self._current = self._download.generations()
        scored = any(name.partition("/")[0] == "scores" for name in folders)
        scored = scored or bool(adopted_scores(self._download.store).generations())
        self._metadata = Metadata(folders) if scored else None
        self.units: dict[str, Unit] = {str(unit["unit"]): dict(unit) for unit in round_.units}
        self._kept = _strings(round_.plan["columns"])
        count = round_.plan["windows"]
        assert isinstance(count, int)
        self._windows = windows(sorted(round_.upstream), count)
        self._sorted: OrderedDict[int, _Window] = OrderedDict()

    def rows(self, unit: Unit) -> pa.Table:
        """The shard's rows in the order of its samples: COLUMNS, the round's src_* columns and DECIDED.

        Raises StoreError where the outcomes do not hold what the round counted.
        """
        parts = [self._slice(*slice_) for slice_ in unit["slices"]]
        table = pa.concat_tables(parts).combine_chunks()
        if table.num_rows != unit["rows"]:
            raise StoreError(
                f"{self._download.base}: shard unit {unit['unit']} finds {table.num_rows} rows where its round "
                f"counted {unit['rows']}; outcomes tables do not match their records"
            )
        return table

    def _slice(self, window: int, start: int, stop: int) -> pa.Table:
        sorted_ = self._order(window)
        wanted = sorted_.places[start:stop]
        tables, places = [], []
        for number in np.unique(wanted[:, 0]):
            here = np.flatnonzero(wanted[:, 0] == number)
            tables.append(self._read(sorted_.paths[number], wanted[here, 1]))
            places.append(here)
        if tables:
            table = pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places))))
        else:
            table = self._schema().empty_table()
        for field, column in zip(DECIDED, sorted_.decided.slice(start, stop - start).columns, strict=True):
            table = table.append_column(field.name, column)
        return table

    def _order(self, window: int) -> _Window:
        if window in self._sorted:
            self._sorted.move_to_end(window)
            return self._sorted[window]
        units = self._windows[window]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self._unit, units))
        uids = pa.chunked_array([unit.uids for unit in found], pa.string())
        places = np.empty((len(uids), 2), np.int32)
        places[:, 0] = np.repeat(np.arange(len(units)), [len(unit.rows) for unit in found])
        places[:, 1] = np.concatenate([unit.rows for unit in found])
        order = pc.array_sort_indices(uids.combine_chunks())
        decided = pa.concat_tables([unit.decided for unit in found]).take(order).combine_chunks()
        self._sorted[window] = _Window([unit.path for unit in found], places[order.to_numpy()], decided)
        while len(self._sorted) > 2:
            self._sorted.popitem(last=False)
        return self._sorted[window]

    def _unit(self, name: str) -> _Unit:
        """What a unit of `select` keeps."""
        decided = self._select.record(name, self._round.upstream[name])
        unit = self._reads[name]
        outcomes = self._download.record(unit["reads"], self._current[unit["reads"]])
        path = table_path(self._download, outcomes, "outcomes")
        kept_rows = decided.counts.get("ok", {}).get("", 0)
        if not kept_rows:
            return _Unit(path, pa.array([], pa.string()), np.empty(0, np.int64), pa.schema(DECIDED).empty_table())
        decisions = open_table(self._select, table_path(self._select, decided, "decisions"))
        kept = decisions.read(columns=["uid", "kept", "weight"])
        kept = kept.filter(kept["kept"])
        table = open_table(self._download, path).read(columns=["uid", "status", "generation"])
        mask = pc.and_(taken_rows(table, unit), pc.is_in(table["uid"], kept["uid"].combine_chunks())).combine_chunks()
        rows = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
        if len(rows) != kept_rows:
            raise StoreError(f"{path} holds {len(rows)} of the {kept_rows} rows that select unit {name} keeps")
        uids = table["uid"].filter(mask).combine_chunks().cast(pa.string())
        weights = kept["weight"].take(pc.index_in(uids, kept["uid"].combine_chunks()))
        return _Unit(path, uids, rows, pa.table([weights, self._scores(unit, uids)], schema=pa.schema(DECIDED)))

    def _scores(self, unit: Unit, uids: pa.Array) -> Any:
        """clip_score of the rows, null where they have none."""
        if self._metadata is None:
            return pa.nulls(len(uids), pa.float32())
        scores = self._metadata.read(unit, ["clip_score"])
        return scores["clip_score"].take(pc.index_in(uids, scores["uid"].combine_chunks()))

    def _read(self, path: str, rows: npt.NDArray[np.int32]) -> pa.Table:
        file = open_table(self._download, path)
        kept = [name for name in self._kept if name in file.schema_arrow.names]
        table = file.read(columns=[*COLUMNS, *kept]).take(pa.array(rows))
        for name in self._kept:
            if name not in kept:
                table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
        return table.select([*COLUMNS, *self._kept]).cast(self._schema())

    def _schema(self) -> pa.Schema:
        fields = [pa.field(name, OUTCOMES.field(name).type) for name in COLUMNS]
        return pa.schema([*fields, *(pa.field(name, pa.string()) for name in self._kept)])


def _strings(value: object) -> Sequence[str]:
    assert isinstance(value, list)
    return [str(item) for item in value]
