"""Parts and the cut of units over them, against a brute-force cut."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ingest import cut
from pipeline.ingest.cut import cut_units, range_ends, unit_size
from pipeline.ingest.partition import PartReader, in_range, write_parts
from pipeline.storage import LocalStore
from schemas.records import UnitRange

Row = tuple[int | None, int]
"""hi (None: no usable URL) and lo."""


def table(file: int, rows: list[Row], draw: list[int] | None = None) -> pa.Table:
    columns = {
        "row": pa.array(range(len(rows)), pa.int64()),
        "file": pa.array([file] * len(rows), pa.int32()),
        "fetch_url": pa.array([None if hi is None else f"{hi}/{lo}" for hi, lo in rows], pa.large_string()),
        "hi": pa.array([hi for hi, _ in rows], pa.uint64()),
        "lo": pa.array([None if hi is None else lo for hi, lo in rows], pa.uint64()),
    }
    if draw is not None:
        columns["draw"] = pa.array(draw, pa.uint64())
    return pa.table(columns)


def reader_of(folder: Path, files: list[list[Row]]) -> PartReader:
    store = LocalStore(folder)
    parts = []
    for index, rows in enumerate(files):
        parts += write_parts(store, f"scratch/{index:06d}", index, [table(index, rows)], None)
    return PartReader(store, parts, None)


def brute_force(files: list[list[Row]], size: int) -> list[tuple[list[tuple[int, int]], str | None]]:
    """[((file, row) of a unit's rows in any order), lane] by the design's words."""
    every = [(file, row, hi, lo) for file, rows in enumerate(files) for row, (hi, lo) in enumerate(rows)]
    other = [(file, row) for file, row, hi, _ in every if hi is None]
    units: list[tuple[list[tuple[int, int]], str | None]] = []
    units += [(other[start : start + size], None) for start in range(0, len(other), size)]
    filling: list[tuple[int, int]] = []
    keyed = sorted((hi, lo, file, row) for file, row, hi, lo in every if hi is not None)
    for host, group in groupby(keyed, key=lambda row: row[0]):
        rows = list(group)
        if len(rows) <= size:
            filling += [(file, row) for _, _, file, row in rows]
            if len(filling) >= size:
                units.append((filling, None))
                filling = []
            continue
        if filling:
            units.append((filling, None))
            filling = []
        own: list[tuple[int, int]] = []
        for _, same_url in groupby(rows, key=lambda row: row[1]):
            own += [(file, row) for _, _, file, row in same_url]
            if len(own) >= size:
                units.append((own, f"{host:016x}"))
                own = []
        if own:
            units.append((own, f"{host:016x}"))
    if filling:
        units.append((filling, None))
    return units


def members(reader: PartReader, unit: UnitRange) -> set[tuple[int, int]]:
    found = reader.read(*range_ends(unit), ["file", "row", "hi", "lo"])
    assert len(found) == unit.rows
    return set(zip(found["file"].to_pylist(), found["row"].to_pylist(), strict=True))


hosts = st.sampled_from([None, 0, 1, 2, 2**63, 2**64 - 1])
lists = st.lists(st.lists(st.tuples(hosts, st.integers(0, 4)), max_size=40), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=lists, size=st.integers(1, 12), sorted_at_a_time=st.sampled_from([3, 20, 4_000_000]))
def test_units_are_cut_as_the_design_says_and_hold_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[Row]], size: int, sorted_at_a_time: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "SORT_ROWS", sorted_at_a_time)
        patch.setattr(cut, "unit_size", lambda rows: size)
        reader = reader_of(tmp_path_factory.mktemp("root"), files)
        units = cut_units("0007", reader, sum(map(len, files)))
    expected = brute_force(files, size)
    assert [(members(reader, unit), unit.lane) for unit in units] == [(set(rows), lane) for rows, lane in expected]
    assert [unit.unit for unit in units] == [f"0007-{index:07d}" for index in range(len(units))]


@pytest.mark.parametrize(
    ("rows", "size"), [(0, 250), (300, 250), (16_000, 250), (64_000, 1_000), (640_000, 10_000), (10**8, 10_000)]
)
def test_unit_size(rows: int, size: int) -> None:
    assert unit_size(rows) == size


def test_a_batch_of_many_parts_reads_any_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.partition.PART_ROWS", 500)
    monkeypatch.setattr("pipeline.ingest.partition.GROUP_ROWS", 64)
    random = np.random.default_rng(1)
    hi, lo = random.integers(0, 2**64, 3000, np.uint64) // 3, random.integers(0, 2**64, 3000, np.uint64)
    hi[::3] = hi[0]
    store = LocalStore(tmp_path)
    whole = pa.table(
        {"row": range(3000), "file": pa.array([0] * 3000, pa.int32()), "fetch_url": ["u"] * 3000, "hi": hi, "lo": lo}
    )
    slices = [whole.slice(start, 250) for start in range(0, 3000, 250)]
    reader = PartReader(store, write_parts(store, "scratch/0", 0, slices, None), None)
    assert len(reader.parts) == 6
    keys = sorted(zip(hi.tolist(), lo.tolist(), strict=True))
    for first, last in [(0, 2999), (10, 11), (500, 1400), (1200, 1210), (2999, 2999)]:
        found = reader.read("keyed", keys[first], keys[last])
        wanted = np.flatnonzero(in_range(hi, lo, keys[first], keys[last]))
        assert sorted(found["row"].to_pylist()) == wanted.tolist()
        assert len(wanted) >= last - first + 1


def test_only_the_lowest_draws_are_written_where_there_is_a_limit(tmp_path: Path) -> None:
    rows: list[Row] = [(None if index % 4 == 0 else index % 5, index) for index in range(100)]
    draw = [int(value) for value in np.random.default_rng(3).permutation(100)]
    store = LocalStore(tmp_path)
    parts = write_parts(store, "scratch/0", 0, [table(0, rows, draw)], 10)
    found = np.sort(np.concatenate(list(PartReader(store, parts, None).draws())))
    assert found.tolist() == list(range(10))
