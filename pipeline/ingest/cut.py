"""Units of a batch: cut over all its rows in (host hash, URL hash) order, rows without a usable fetch_url first."""

from collections.abc import Iterator

import numpy as np

from pipeline.ingest.partition import Key, Kind, PartReader
from schemas.records import UnitRange

SORT_ROWS = 4_000_000
"""Keys that are sorted at a time."""
_TOP = 2**64 - 1


def unit_size(rows: int) -> int:
    """Rows a unit should have in a batch of `rows`."""
    return min(10_000, max(250, rows // 64))


def range_ends(unit: UnitRange) -> tuple[Kind, Key, Key]:
    """The kind of a unit's rows and its first and last key."""
    if unit.first.startswith("#"):
        first, last = (tuple(map(int, end[1:].split("."))) for end in (unit.first, unit.last))
        return "other", (first[0], first[1]), (last[0], last[1])
    first, last = ((int(end[:16], 16), int(end[16:], 16)) for end in (unit.first, unit.last))
    return "keyed", first, last


def cut_units(batch: str, reader: PartReader, rows: int) -> list[UnitRange]:
    """The units of a batch of `rows` rows; only the keys of one range of hosts are in memory at a time."""
    cutter = _Cutter(batch, unit_size(rows))
    kinds: tuple[Kind, ...] = ("other", "keyed")
    for kind in kinds:
        for first, last in _ranges(reader, kind):
            keys = reader.read(kind, first, last, ["hi", "lo"])
            if len(keys):
                hi, lo = keys["hi"].to_numpy(), keys["lo"].to_numpy()
                order = np.lexsort((lo, hi))
                cutter.feed(kind, hi[order], lo[order])
        cutter.close()
    return cutter.units


def _ranges(reader: PartReader, kind: Kind) -> Iterator[tuple[Key, Key]]:
    """Key ranges that together hold every row and never part a host or an input file, in order."""
    parts = [part for part in reader.parts if part.kind == kind]
    if kind == "keyed":
        count = -(-sum(part.rows for part in parts) // SORT_ROWS)
        edges = [_TOP * index // count for index in range(count)] if count else []
        for low, high in zip(edges, [*[edge - 1 for edge in edges[1:]], _TOP], strict=bool(edges)):
            yield (low, 0), (high, _TOP)
        return
    rows = 0
    files: list[int] = []
    for part in sorted(parts, key=lambda part: part.file):
        if rows >= SORT_ROWS and part.file != files[-1]:
            yield (files[0], 0), (files[-1], _TOP)
            rows, files = 0, []
        rows += part.rows
        files.append(part.file)
    if files:
        yield (files[0], 0), (files[-1], _TOP)


class _Cutter:
    """Takes sorted keys and gives units; a unit may span two feeds, a host may not."""

    def __init__(self, batch: str, size: int) -> None:
        self.units: list[UnitRange] = []
        self._batch = batch
        self._size = size
        self._first = self._last = ""
        self._rows = 0

    def feed(self, kind: Kind, hi: np.ndarray, lo: np.ndarray) -> None:
        if kind == "other":
            start = 0
            while start < len(hi):
                stop = min(start + self._size - self._rows, len(hi))
                self._take(_place(hi[start], lo[start]), _place(hi[stop - 1], lo[stop - 1]), stop - start)
                if self._rows >= self._size:
                    self.close()
                start = stop
            return
        starts = np.flatnonzero(np.concatenate(([True], hi[1:] != hi[:-1])))
        ends = np.append(starts[1:], len(hi))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if end - start > self._size:
                self.close()
                self._large_host(hi[start], lo[start:end])
                continue
            self._take(_key(hi[start], lo[start]), _key(hi[start], lo[end - 1]), end - start)
            if self._rows >= self._size:
                self.close()

    def _large_host(self, host: np.uint64, lo: np.ndarray) -> None:
        url_ends: np.ndarray = np.append(np.flatnonzero(lo[1:] != lo[:-1]) + 1, len(lo))
        start = 0
        while start < len(lo):
            end = int(url_ends[min(int(np.searchsorted(url_ends, start + self._size)), len(url_ends) - 1)])
            self._take(_key(host, lo[start]), _key(host, lo[end - 1]), end - start)
            self.close(lane=f"{int(host):016x}")
            start = end

    def _take(self, first: str, last: str, rows: int) -> None:
        if not self._rows:
            self._first = first
        self._last = last
        self._rows += rows

    def close(self, lane: str | None = None) -> None:
        """End the unit that is being filled, if there is one."""
        if self._rows:
            name = f"{self._batch}-{len(self.units):07d}"
            unit = UnitRange(unit=name, first=self._first, last=self._last, rows=self._rows, lane=lane)
            self.units.append(unit)
        self._rows = 0


def _key(hi: np.uint64, lo: np.uint64) -> str:
    return f"{int(hi):016x}{int(lo):016x}"


def _place(file: np.uint64, row: np.uint64) -> str:
    return f"#{int(file):06d}.{int(row):012d}"
