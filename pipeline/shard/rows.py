"""A shard's rows: found from its descriptor, by sorting the uids of its windows and reading only what it holds."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.rounds import descriptors, open_table, read_rounds, table_path, taken_rows
from pipeline.runner import Unit
from pipeline.shard.plan import windows
from pipeline.units import StageFolder
from schemas.records import Round
from schemas.tables import OUTCOMES

COLUMNS = (
    "uid", "url", "caption", "width", "height", "original_width", "original_height", "exif", "sha256", "fetched_at",
    "pool_file", "pool_offset", "pool_size", "pool_sha256",
)  # fmt: skip

Places = npt.NDArray[np.int32]
"""Two columns, a row for every row of a window in the order of uids: the unit's place in the window, the row in its
outcomes table."""


class RoundRows:
    """The rows of one round; keeps the order of the windows it sorted last, since neighbouring shards share them."""

    def __init__(self, download: StageFolder, select: StageFolder, round_: Round) -> None:
        self._download = download
        self._select = select
        self._round = round_
        self._reads = descriptors(read_rounds(select))
        self._current = download.generations()
        self.units: dict[str, Unit] = {str(unit["unit"]): dict(unit) for unit in round_.units}
        self._kept = _strings(round_.plan["columns"])
        count = round_.plan["windows"]
        assert isinstance(count, int)
        self._windows = windows(sorted(round_.upstream), count)
        self._sorted: OrderedDict[int, tuple[list[str], Places]] = OrderedDict()

    def rows(self, unit: Unit) -> pa.Table:
        """The shard's rows in the order of its samples: COLUMNS and the round's src_* columns.

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
        paths, order = self._order(window)
        wanted = order[start:stop]
        tables, places = [], []
        for number in np.unique(wanted[:, 0]):
            here = np.flatnonzero(wanted[:, 0] == number)
            tables.append(self._read(paths[number], wanted[here, 1]))
            places.append(here)
        if not tables:
            return self._schema().empty_table()
        return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places))))

    def _order(self, window: int) -> tuple[list[str], Places]:
        if window in self._sorted:
            self._sorted.move_to_end(window)
            return self._sorted[window]
        units = self._windows[window]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self._uids, units))
        uids = pa.chunked_array([uids for _, uids, _ in found], pa.string())
        places = np.empty((len(uids), 2), np.int32)
        places[:, 0] = np.repeat(np.arange(len(units)), [len(rows) for _, _, rows in found])
        places[:, 1] = np.concatenate([rows for _, _, rows in found])
        order = places[pc.array_sort_indices(uids.combine_chunks()).to_numpy()]
        self._sorted[window] = [path for path, _, _ in found], order
        while len(self._sorted) > 2:
            self._sorted.popitem(last=False)
        return self._sorted[window]

    def _uids(self, name: str) -> tuple[str, pa.Array, npt.NDArray[np.int64]]:
        """Of a unit of `select`: path of its rows' outcomes, uids of those it keeps, and their places there."""
        decided = self._select.record(name, self._round.upstream[name])
        unit = self._reads[name]
        outcomes = self._download.record(unit["reads"], self._current[unit["reads"]])
        path = table_path(self._download, outcomes, "outcomes")
        kept_rows = decided.counts.get("ok", {}).get("", 0)
        if not kept_rows:
            return path, pa.array([], pa.string()), np.empty(0, np.int64)
        decisions = open_table(self._select, table_path(self._select, decided, "decisions"))
        kept = decisions.read(columns=["uid", "kept"])
        kept = kept.filter(kept["kept"])["uid"].combine_chunks()
        table = open_table(self._download, path).read(columns=["uid", "status", "generation"])
        mask = pc.and_(taken_rows(table, unit), pc.is_in(table["uid"], kept)).combine_chunks()
        rows = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
        if len(rows) != kept_rows:
            raise StoreError(f"{path} holds {len(rows)} of the {kept_rows} rows that select unit {name} keeps")
        return path, table["uid"].filter(mask).combine_chunks().cast(pa.string()), rows

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
