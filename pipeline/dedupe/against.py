"""Decontamination: pool images that are in an evaluation set (sets.py), by equal bytes and by PDQ.

What is found is a lower bound of the overlap: PDQ does not see through crops of more than 1 or 2%, collages or
redrawing, nor, unless `dihedral` is set, through rotations and mirror images; tests/benchmarks/recall.py has numbers.
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dedupe.find import fixed, hexadecimal, valid
from pipeline.dedupe.hashes import COLOUR_BYTES, FORMS, PDQ_BYTES, turned_colours
from pipeline.dedupe.search import MIN_QUALITY, RADIUS, Index, deal, distances, matches, same_colours

OVERLAPS: Final = pa.schema(
    [
        ("eval_set", pa.string()),
        ("eval_item", pa.string()),
        ("uid", pa.string()),
        ("level", pa.string()),
        ("distance", pa.int32()),
    ]
)


def find_overlaps(rows: pa.Table, sets: pa.Table, radius: int = RADIUS) -> pa.Table:
    """Every pair of an item and a row (columns of find.ROWS) that match, by set, item and uid; schema OVERLAPS.

    A pair equal in bytes is not listed by PDQ again. Rows may come in parts of any size; large ones are quicker, since
    the sets are indexed once a call.
    """
    equal, near = _equal(rows, sets), _near(rows, sets, radius)
    near = near[~np.isin(_code(near, rows), _code(equal, rows))]
    parts = []
    for level, found in (("bytes", equal), ("perceptual", near)):
        columns = [
            sets["eval_set"].take(found[:, 0]),
            sets["eval_item"].take(found[:, 0]),
            hexadecimal(fixed(rows["uid"], 16)[found[:, 1]]),
            pa.array([level] * len(found), pa.string()),
            pa.array(found[:, 2].astype(np.int32)),
        ]
        parts.append(pa.Table.from_arrays(columns, schema=OVERLAPS))
    order = [("eval_set", "ascending"), ("eval_item", "ascending"), ("uid", "ascending")]
    return pa.concat_tables(parts).sort_by(order).combine_chunks()


def held(overlaps: pa.Table, sets: pa.Table, rows: int) -> list[dict[str, Any]]:
    """Both ways, a set a line: how many of its items the pool holds, and how many of the pool's `rows` are in it.

    Lower bounds, as this module's first lines say; a report must say so too.
    """
    lines = []
    for name in sets["eval_set"].unique().to_pylist():
        items = pc.sum(pc.equal(sets["eval_set"], name)).as_py()
        there = overlaps.filter(pc.equal(overlaps["eval_set"], name))
        line: dict[str, Any] = {"eval_set": name, "items": items, "pool_rows": rows}
        for level in ("bytes", "perceptual"):
            found = there.filter(pc.equal(there["level"], level))
            line[f"items_{level}"] = pc.count_distinct(found["eval_item"]).as_py()
            line[f"rows_{level}"] = pc.count_distinct(found["uid"]).as_py()
        line["items_held"] = pc.count_distinct(there["eval_item"]).as_py()
        line["rows_held"] = pc.count_distinct(there["uid"]).as_py()
        lines.append(line)
    return lines


def _code(found: Index, rows: pa.Table) -> Index:
    return found[:, 0] * len(rows) + found[:, 1]


def _equal(rows: pa.Table, sets: pa.Table) -> Index:
    """[n, 3]: item, row, 0."""
    columns = {
        name: pa.table({"sha256": table["sha256"], name: np.arange(len(table))}).filter(table["sha256"].is_valid())
        for name, table in (("item", sets), ("row", rows))
    }
    both = columns["item"].join(columns["row"], "sha256", join_type="inner")
    return np.stack([both["item"].to_numpy(), both["row"].to_numpy(), np.zeros(len(both), np.int64)], axis=1)


def _near(rows: pa.Table, sets: pa.Table, radius: int) -> Index:
    """[n, 3]: item, row, distance of the nearest of the item's turned forms."""
    row, item = _clear(rows), _clear(sets)
    words, colours = deal(fixed(sets["pdq"], PDQ_BYTES)[item]), fixed(sets["colour"], COLOUR_BYTES)[item]
    owner = item
    turned = np.flatnonzero(valid(sets["pdq_forms"])[item])
    if len(turned):
        forms = fixed(sets["pdq_forms"], (FORMS - 1) * PDQ_BYTES)[item[turned]].reshape(-1, PDQ_BYTES)
        words = np.concatenate([words, deal(forms)])
        colours = np.concatenate([colours, turned_colours(colours[turned])[:, 1:].reshape(-1, COLOUR_BYTES)])
        owner = np.concatenate([owner, np.repeat(item[turned], FORMS - 1)])
    pool = deal(fixed(rows["pdq"], PDQ_BYTES)[row])
    one, other = matches(words, pool, radius)
    plain = ~(valid(sets["colour"])[owner[one]] & valid(rows["colour"])[row[other]])
    alike = plain | same_colours(colours[one], fixed(rows["colour"], COLOUR_BYTES)[row[other]])
    one, other = one[alike], other[alike]
    found = np.stack([owner[one], row[other], distances(words[one], pool[other]).astype(np.int64)], axis=1)
    found = found[np.lexsort((found[:, 2], found[:, 1], found[:, 0]))]
    return found[np.unique(_code(found, rows), return_index=True)[1]]


def _clear(table: pa.Table) -> Index:
    """Positions with a hash that says something."""
    quality = table["pdq_quality"].fill_null(0).to_numpy()
    return np.flatnonzero(valid(table["pdq"]) & (quality >= MIN_QUALITY))
