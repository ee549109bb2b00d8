"""Duplicates among new rows, and between them and rows that earlier rounds kept: levels `bytes`, then `pdq`.

Each level drops a row only for a row that this level keeps; the witness of a row dropped by `bytes` may be dropped by
`pdq`, whose own witness is kept. `group_id` is the row at the end.
"""

import logging
import os
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.dedupe.hashes import COLOUR_BYTES, FORMS, PDQ_BYTES, turned_colours
from pipeline.dedupe.search import MIN_QUALITY, RADIUS, Flags, Index, Points, best_neighbours, deal, distances
from pipeline.dedupe.witness import Search, kept_witnesses
from pipeline.errors import InputError
from schemas.recipe import Dedupe

ROWS: Final = pa.schema(
    [
        ("uid", pa.binary(16)),
        ("sha256", pa.binary(32)),
        ("text", pa.binary(16)),
        ("pixels", pa.int64()),
        ("bytes", pa.int64()),
        ("pdq", pa.binary(PDQ_BYTES)),
        ("pdq_quality", pa.int32()),
        ("colour", pa.binary(COLOUR_BYTES)),
    ]
)
"""What is compared. `text`: the first 128 bits of sha256 of the alt text; `pixels`: width x height of the fetched
image. A further column `pdq_forms` (fixed-size binary, the bytes of ImageHashes.pdq_forms) makes rotated and mirrored
images match too; further numeric columns may be named by `rank`."""
FOUND: Final = pa.schema(
    [
        ("uid", pa.string()),
        ("dup_of", pa.string()),
        ("level", pa.string()),
        ("distance", pa.int32()),
        ("group_id", pa.string()),
    ]
)

_log = logging.getLogger(__name__)


def find_duplicates(
    new: pa.Table, standing: pa.Table, settings: Dedupe, threads: int | None = None, search: Search | None = None
) -> pa.Table:
    """The rows of `new` that go, by uid, each with its witness, a row of `new` or `standing`; schema FOUND.

    Both inputs have the columns of ROWS; no uid is in both. Rows of `standing` outrank those of `new` and never go. The
    order of rows, the number of threads (default: this process's cores) and the place of the search (default: this
    process; `spread` has Ray's) change nothing. Raises InputError where `rank` or `levels` cannot be served.
    """
    search = search or partial(best_neighbours, threads=threads or len(os.sched_getaffinity(0)))
    radius = pdq_radius(settings)
    table = pa.concat_tables([standing, new.select(standing.column_names)])
    rows, first = len(table), len(standing)
    order = np.concatenate([rank_order(standing, settings.rank), first + rank_order(new, settings.rank)])
    by_bytes, by_pdq = np.arange(rows), np.arange(rows)  # by rank, as all that follows
    if settings.levels.get("bytes"):
        by_bytes = same_bytes(table, order, settings.scope)
        by_bytes[:first] = np.arange(first)
    if radius is not None:
        points, ranks = points_of(table, order, by_bytes == np.arange(rows), settings.scope)
        witness, effort = kept_witnesses(points, len(ranks), int((ranks < first).sum()), radius, search)
        by_pdq[ranks] = ranks[witness]
        _log.info("pdq: %d rows, %d pairs compared in %.1f CPU s", len(ranks), effort.compared, effort.seconds)
        if effort.skipped:
            _log.warning(
                "pdq: %d hot buckets were split; %d pairs were not compared there", effort.hot_buckets, effort.skipped
            )
    return _found(table, order, by_bytes, by_pdq)


def pdq_radius(settings: Dedupe) -> int | None:
    """Bits within which PDQ hashes match; None where the level is off. Raises InputError."""
    level = settings.levels.get("pdq", False)
    if level is False:
        return None
    radius = RADIUS if level is True else level
    if not 0 <= radius <= RADIUS:
        raise InputError(f"dedupe.levels.pdq is {level}: give 0 to {RADIUS}, the distance PDQ is made for")
    return radius


def rank_order(table: pa.Table, rank: list[str]) -> Index:
    """Positions of the rows, best first: larger is better and null is last; `uid` ascending, which ends every tie."""
    keys: list[npt.NDArray[Any]] = []
    for name in rank:
        if name == "uid":
            break
        if name not in table.column_names or not _numeric(table.schema.field(name).type):
            known = [field.name for field in table.schema if _numeric(field.type)]
            raise InputError(f"dedupe.rank: {name} is not a number of each row; known here: {', '.join(known)}, uid")
        values = (
            table[name].combine_chunks().cast(pa.float64() if pa.types.is_floating(table[name].type) else pa.int64())
        )
        if pa.types.is_floating(values.type):
            number = np.nan_to_num(
                values.fill_null(-np.inf).to_numpy(zero_copy_only=False), nan=-np.inf, neginf=-np.inf
            )
        else:
            number = values.fill_null(np.iinfo(np.int64).min + 1).to_numpy(zero_copy_only=False)
        keys.append(-number)
    uid = fixed(table["uid"], 16).view(">u8")
    keys += [uid[:, 0], uid[:, 1]]
    return np.lexsort([key.astype(key.dtype.newbyteorder("=")) for key in reversed(keys)])


def same_bytes(table: pa.Table, order: Index, scope: str) -> Index:
    """By rank: the first row with the same sha256 (and text, with scope `pair`); itself where sha256 is null."""
    ranks = np.flatnonzero(valid(table["sha256"])[order])
    words = fixed(table["sha256"], 32)[order[ranks]].view(np.uint64)
    if scope == "pair":
        words = np.concatenate([words, fixed(table["text"], 16)[order[ranks]].view(np.uint64)], axis=1)
    first = np.arange(len(table))
    first[ranks] = ranks[first_equal(words)]
    return first


def first_equal(words: npt.NDArray[np.uint64]) -> Index:
    """For each row of [n, k] the position of the first equal row."""
    mixed = np.zeros(len(words), np.uint64)
    for column in range(words.shape[1]):
        mixed = (mixed ^ words[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    again = np.flatnonzero(mixed[order[1:]] == mixed[order[:-1]])
    equal = (words[order[again + 1]] == words[order[again]]).all(axis=1)
    if not equal.all():  # two contents mixed into one number
        order = np.lexsort(words.T)
        again = np.flatnonzero((words[order[1:]] == words[order[:-1]]).all(axis=1))
    starts = np.ones(len(words), np.bool_)
    starts[again + 1] = False
    heads = np.flatnonzero(starts)
    first = np.empty(len(words), np.int64)
    first[order] = np.repeat(order[heads], np.diff(np.append(heads, len(words))))
    return first


def points_of(table: pa.Table, order: Index, compete: Flags, scope: str) -> tuple[Points, Index]:
    """The hashes of the rows that compete (by rank) and can be compared, present and of quality MIN_QUALITY; and their
    ranks.
    """
    clear = table["pdq_quality"].fill_null(0).to_numpy() >= MIN_QUALITY
    ranks = np.flatnonzero((clear & valid(table["pdq"]) & valid(table["colour"]))[order] & compete)
    chosen = order[ranks]
    words = deal(fixed(table["pdq"], PDQ_BYTES)[chosen])
    colours = fixed(table["colour"], COLOUR_BYTES)[chosen]
    texts = fixed(table["text"], 16)[chosen].view(np.uint64) if scope == "pair" else None
    group = np.zeros_like(ranks) if texts is None else first_equal(texts)
    points = Points(words, colours, np.arange(len(ranks)), np.ones(len(ranks), np.bool_), group)
    return _with_forms(points, table, chosen) if "pdq_forms" in table.column_names else points, ranks


def _with_forms(points: Points, table: pa.Table, chosen: Index) -> Points:
    """Each row eight times: as it is, and turned."""
    turned = fixed(table["pdq_forms"], (FORMS - 1) * PDQ_BYTES)[chosen].reshape(-1, FORMS - 1, PDQ_BYTES)
    words = np.concatenate([points.words[:, None], deal(turned.reshape(-1, PDQ_BYTES)).reshape(-1, FORMS - 1, 4)], 1)
    colours = turned_colours(points.colours)
    present = np.repeat(valid(table["pdq_forms"])[chosen][:, None], FORMS, 1)
    present[:, 0] = True
    there = np.flatnonzero(present)
    row = np.repeat(points.row, FORMS)[there]
    group = np.repeat(points.group, FORMS)[there]
    return Points(words.reshape(-1, 4)[there], colours.reshape(-1, COLOUR_BYTES)[there], row, there % FORMS == 0, group)


def _found(table: pa.Table, order: Index, by_bytes: Index, by_pdq: Index) -> pa.Table:
    ranks = np.arange(len(table))
    equal = by_bytes != ranks
    uids = fixed(table["uid"], 16)
    gone = np.flatnonzero(equal | (by_pdq != ranks))
    gone = gone[by_uid(uids[order[gone]])]
    witness = np.where(equal, by_bytes, by_pdq)[gone]
    apart = np.zeros(len(gone), np.int32)
    near = np.flatnonzero(~equal[gone])
    apart[near] = _apart(table, order[gone[near]], order[witness[near]])
    columns = [
        hexadecimal(uids[order[gone]]),
        hexadecimal(uids[order[witness]]),
        pa.array(np.array(["perceptual", "bytes"], object)[equal[gone].astype(int)], pa.string()),
        pa.array(apart),
        hexadecimal(uids[order[by_pdq[by_bytes[gone]]]]),
    ]
    return pa.Table.from_arrays(columns, schema=FOUND)


def by_uid(uids: npt.NDArray[np.uint8]) -> Index:
    """Order of uids [n, 16]."""
    words = uids.view(">u8").astype(np.uint64)
    return np.lexsort([words[:, 1], words[:, 0]])


def _apart(table: pa.Table, gone: Index, witness: Index) -> npt.NDArray[np.int32]:
    """PDQ distance, by the turned form of either that comes nearest."""
    hashes = fixed(table["pdq"], PDQ_BYTES)
    nearest = distances(hashes[gone].view(np.uint64), hashes[witness].view(np.uint64))
    if "pdq_forms" in table.column_names:
        turned = fixed(table["pdq_forms"], (FORMS - 1) * PDQ_BYTES).reshape(-1, FORMS - 1, PDQ_BYTES)
        there = valid(table["pdq_forms"])
        for form in range(FORMS - 1):
            for own, other in ((gone, witness), (witness, gone)):
                apart = distances(
                    hashes[own].view(np.uint64), np.ascontiguousarray(turned[other, form]).view(np.uint64)
                )
                nearest = np.where(there[other], np.minimum(nearest, apart), nearest)
    return nearest.astype(np.int32)


def fixed(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.uint8]:
    """Bytes [n, width] of a column of fixed-size binary; null rows hold anything."""
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        for chunk in column.chunks
        if len(chunk)
    ]
    return (parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])).reshape(-1, width)


def hexadecimal(values: npt.NDArray[np.uint8]) -> pa.Array:
    """Bytes [n, width] as strings of lower-case hex digits."""
    digits = 2 * values.shape[1]
    text = np.ascontiguousarray(values).tobytes().hex().encode()
    offsets = np.arange(0, len(text) + 1, digits, dtype=np.int64)
    array = pa.LargeStringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(text))
    return array.cast(pa.string())


def valid(column: pa.ChunkedArray) -> Flags:
    """Which rows are not null."""
    return np.asarray(column.is_valid().to_numpy())


def _numeric(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))
