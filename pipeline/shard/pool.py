"""Images out of pool tars, by range reads: blocks of rows in, their images in the same order out."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa

from pipeline.errors import UnitError
from pipeline.storage import Store, locate

BLOCK_ROWS = 2_048
BLOCK_BYTES = 64 << 20
"""Two blocks are in memory at a time: the one being written and the one being read."""
GAP_BYTES = 32 << 10
RANGE_BYTES = 8 << 20
"""Neighbours up to GAP_BYTES apart are one read, up to RANGE_BYTES: a request costs more than a few bytes unused."""


class PoolMismatchError(UnitError):
    """A pool image is not the one that was recorded, or is gone."""


@dataclass(frozen=True, slots=True)
class Member:
    place: int
    uid: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Range:
    path: str
    offset: int
    end: int
    members: list[Member]


class PoolReader:
    """Reads ahead by one block, with many requests at a time where a request is a round trip. Close it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parallel = max(4, store.parallel_reads)
        self._threads = ThreadPoolExecutor(self._parallel)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def blocks(self, table: pa.Table) -> Iterator[tuple[int, list[bytes]]]:
        """(first row, images) for the table's rows (uid, pool_file, pool_offset, pool_size, pool_sha256), in order.

        Raises PoolMismatchError where an image's sha256 is not pool_sha256, or its file is gone.
        """
        starts = block_starts(table["pool_size"].to_pylist())
        ahead: list[tuple[int, int, list[Future[list[tuple[int, bytes]]]]]] = []
        tasks = 4 * self._parallel  # some ranges each: from a disk, a range costs less than a task
        for start, end in pairwise([*starts, table.num_rows]):
            ranges = plan_ranges(table.slice(start, end - start))
            shares = [ranges[first::tasks] for first in range(min(tasks, len(ranges)))]
            ahead.append((start, end - start, [self._threads.submit(self._read_all, share) for share in shares]))
            if len(ahead) > 1:
                yield _gathered(*ahead.pop(0))
        for block in ahead:
            yield _gathered(*block)

    def _read_all(self, parts: Sequence[Range]) -> list[tuple[int, bytes]]:
        return [image for part in parts for image in self._read(part)]

    def _read(self, part: Range) -> list[tuple[int, bytes]]:
        store, path = locate(self._store, part.path)
        try:
            data = memoryview(store.read_range(path, part.offset, part.end - part.offset))
        except FileNotFoundError:
            raise PoolMismatchError(f"{store.uri}/{path} is gone; it held the image of {part.members[0].uid}") from None
        images = []
        for member in part.members:
            start = member.offset - part.offset
            image = bytes(data[start : start + member.size])
            if hashlib.sha256(image).hexdigest() != member.sha256:
                raise PoolMismatchError(
                    f"{store.uri}/{path}: the image of {member.uid} ({member.size} bytes from "
                    f"{member.offset}) is not the one recorded, {member.sha256}; the file has changed since download; "
                    f"put it back, or withdraw the row: jobs.retract"
                )
            images.append((member.place, image))
        return images


def block_starts(sizes: list[int]) -> list[int]:
    """First rows of blocks of at most BLOCK_ROWS rows and (but for one large image) BLOCK_BYTES bytes."""
    starts: list[int] = []
    held = 0
    for row, size in enumerate(sizes):
        if not starts or row - starts[-1] == BLOCK_ROWS or held + size > BLOCK_BYTES:
            starts.append(row)
            held = 0
        held += size
    return starts


def plan_ranges(table: pa.Table) -> list[Range]:
    """The fewest reads that bring the rows' images, in the order of files and offsets."""
    columns = [table[name].to_pylist() for name in ("pool_file", "pool_offset", "pool_size", "uid", "pool_sha256")]
    ranges: list[Range] = []
    for (path, offset, size, uid, sha256), place in sorted(
        (values, place) for place, values in enumerate(zip(*columns, strict=True))
    ):
        member = Member(place, uid, offset, size, sha256)
        last = ranges[-1] if ranges else None
        near = last is not None and last.path == path and offset <= last.end + GAP_BYTES
        if last is not None and near and offset + size - last.offset <= RANGE_BYTES:
            end = max(last.end, offset + size)
            last.members.append(member)
            ranges[-1] = Range(path, last.offset, end, last.members)
        else:
            ranges.append(Range(path, offset, offset + size, [member]))
    return ranges


def _gathered(start: int, rows: int, parts: list[Future[list[tuple[int, bytes]]]]) -> tuple[int, list[bytes]]:
    images = [b""] * rows
    for part in parts:
        for place, image in part.result():
            images[place] = image
    return start, images
