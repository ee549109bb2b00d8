"""Images come out of pool tars by few reads, in order, and only if they are the ones recorded."""

import hashlib
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shard.pool import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    GAP_BYTES,
    RANGE_BYTES,
    PoolMismatchError,
    PoolReader,
    block_starts,
    plan_ranges,
)
from pipeline.storage import LocalStore

Image = tuple[str, int, bytes]


def rows(images: list[Image]) -> pa.Table:
    return pa.table({
        "uid": [f"uid{number}" for number in range(len(images))],
        "pool_file": [path for path, _, _ in images],
        "pool_offset": [offset for _, offset, _ in images],
        "pool_size": [len(data) for _, _, data in images],
        "pool_sha256": [hashlib.sha256(data).hexdigest() for _, _, data in images],
    })  # fmt: skip


def write(root: Path, images: list[Image]) -> LocalStore:
    for path, offset, data in images:
        with (root / path).open("ab") as file:
            file.truncate(max(file.tell(), offset + len(data)))
        with (root / path).open("r+b") as file:
            file.seek(offset)
            file.write(data)
    return LocalStore(root)


def read(store: LocalStore, table: pa.Table) -> list[bytes]:
    pool = PoolReader(store)
    try:
        return [image for _, images in pool.blocks(table) for image in images]
    finally:
        pool.close()


def test_images_come_in_the_order_of_the_rows_whatever_their_order_in_the_files(tmp_path: Path) -> None:
    images = [(f"{number % 3}.tar", 1000 * (7 * number % 50), bytes([number]) * number) for number in range(1, 50)]
    assert read(write(tmp_path, images), rows(images)) == [data for _, _, data in images]


def test_rows_that_share_a_pool_member_each_get_it(tmp_path: Path) -> None:
    images = [("a.tar", 512, b"shared"), ("a.tar", 2048, b"other"), ("a.tar", 512, b"shared")]
    assert read(write(tmp_path, images), rows(images)) == [b"shared", b"other", b"shared"]


def test_neighbours_are_one_read_and_distant_images_are_not(tmp_path: Path) -> None:
    far = 1000 + GAP_BYTES + 1000
    table = rows([("a.tar", far, b"x" * 10), ("a.tar", 1000, b"x" * 10), ("a.tar", 512, b"x" * 10), ("b.tar", 0, b"x")])
    found = [(part.path, part.offset, part.end, len(part.members)) for part in plan_ranges(table)]
    assert found == [("a.tar", 512, 1010, 2), ("a.tar", far, far + 10, 1), ("b.tar", 0, 1, 1)]


@given(st.lists(st.tuples(st.integers(0, 3 * RANGE_BYTES), st.integers(0, 200_000)), min_size=1, max_size=60))
def test_every_image_lies_in_exactly_one_read_of_bounded_size(spans: list[tuple[int, int]]) -> None:
    table = pa.table({
        "uid": ["u"] * len(spans), "pool_file": ["a.tar"] * len(spans), "pool_offset": [start for start, _ in spans],
        "pool_size": [size for _, size in spans], "pool_sha256": [""] * len(spans),
    })  # fmt: skip
    ranges = plan_ranges(table)
    assert sorted(member.place for part in ranges for member in part.members) == list(range(len(spans)))
    for part in ranges:
        assert all(part.offset <= member.offset for member in part.members)
        assert all(member.offset + member.size <= part.end for member in part.members)
        assert part.end - part.offset <= RANGE_BYTES


@given(st.lists(st.sampled_from([0, 1, BLOCK_BYTES // 3, BLOCK_BYTES, 2 * BLOCK_BYTES]), max_size=30))
def test_a_block_of_several_images_stays_within_its_bytes(sizes: list[int]) -> None:
    starts = block_starts(sizes)
    blocks = [sizes[start:end] for start, end in pairwise([*starts, len(sizes)])]
    assert [size for block in blocks for size in block] == sizes
    assert all(len(block) == 1 or sum(block) <= BLOCK_BYTES for block in blocks)


def test_a_block_of_small_images_stays_within_its_rows() -> None:
    assert block_starts([1] * (2 * BLOCK_ROWS + 1)) == [0, BLOCK_ROWS, 2 * BLOCK_ROWS]


@pytest.mark.parametrize("damage", ["changed", "truncated"])
def test_an_image_that_is_not_the_one_recorded_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    images = [("a.tar", 512, b"first"), ("a.tar", 2048, b"second")]
    store = write(tmp_path, images)
    with (tmp_path / "a.tar").open("r+b") as file:
        if damage == "changed":
            file.seek(2050)
            file.write(b"X")
        else:
            file.truncate(2050)
    with pytest.raises(PoolMismatchError, match=r"a\.tar: the image of uid1 .*6 bytes from 2048"):
        read(store, rows(images))
    assert read(store, rows(images).slice(0, 1)) == [b"first"]


def test_a_pool_file_that_is_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(PoolMismatchError, match=r"gone\.tar is gone; it held the image of uid0"):
        read(LocalStore(tmp_path), rows([("gone.tar", 0, b"x")]))
