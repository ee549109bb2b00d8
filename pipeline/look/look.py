"""Rows of a ROOT as a page or a sheet: sample, read their images, lay them out."""

from collections.abc import Sequence

from pipeline.look.cards import Card, make_card
from pipeline.look.images import read_pictures
from pipeline.look.page import page, told
from pipeline.look.rows import Row, Rows
from pipeline.look.sheet import sheet
from pipeline.retract.tombstone import Tombstones
from pipeline.root import open_root

_JUDGED = ("fetch_url", "sha256", "sha1", "md5", "pdq", "pdq_quality")
"""Columns that say whether a row was withdrawn."""


def look(
    root: str, where: str, count: int, seed: int, groups: bool, suffix: str, by: str | None = None,
    deciles: bool = False,
) -> tuple[int, bytes]:  # fmt: skip
    """How many rows (or groups) are shown, and the bytes of a `.html` page or `.png` sheet that shows them.

    `by` is a column that orders them, the lowest value first; with `deciles` some rows of each tenth of its values are
    shown. Reads the published tables alone, and of the pool's tars one range an image. Raises InputError for a ROOT
    that is none, a `where` that is no condition on a row, and a `by` that is no number.
    """
    store = open_root(root)
    tombstones = Tombstones.load(store)
    rows = Rows(store, [*(_JUDGED if tombstones else ()), *([by] if by else [])])
    named = rows.named(where)
    if by:
        rows.number(by)
    laid: list[tuple[str, Sequence[Row]]]
    if groups:
        found = rows.groups(where, count, seed)
        laid = []
        for group in found:
            more = f", {len(group.members)} of them shown" if group.dropped > len(group.members) else ""
            many = f"{group.dropped:,} row{'' if group.dropped == 1 else 's'} dropped for it{more}"
            laid.append((f"{group.witness['uid']} stayed, {many}", [group.witness, *group.members]))
        shown = len(found)
    elif by and deciles:
        tenths = rows.deciles(where, by, count, seed)
        laid = [
            (f"decile {one.number} of {by}: {one.low:.4g} to {one.high:.4g}, {one.rows:,} rows", one.sample)
            for one in tenths
        ]
        shown = sum(len(one.sample) for one in tenths)
    else:
        sample = rows.ordered(where, by, count, seed) if by else rows.sample(where, count, seed)
        laid = [("", sample)]
        shown = len(sample)
    png = suffix == ".png"
    laid = [(heading, [_unless_withdrawn(row, tombstones) for row in rows_]) for heading, rows_ in laid]
    flat = [row for _, rows_ in laid for row in rows_]
    pictures = iter(read_pictures(store, flat, redraw=png))
    cards: list[tuple[str, list[Card]]] = [
        (heading, [make_card(row, next(pictures), named, by) for row in rows_]) for heading, rows_ in laid
    ]
    title = f"{shown:,} {'group' if groups else 'row'}{'' if shown == 1 else 's'} of {store.uri}"
    about = f"seed {seed}, tables v{rows.version}"
    if by:
        about = f"by {by}, the lowest first; {about}"
    if not shown:
        about += "; nothing matches"
    if png:
        return shown, sheet(title, [f"where {where}", about], cards)
    return shown, page(title, [f"where <code>{told(where)}</code>", told(about)], cards, witnesses=groups).encode()


def _unless_withdrawn(row: Row, tombstones: Tombstones) -> Row:
    """The row; one that a retraction not yet finished names, and that the tables still have, without its content."""
    url, fetched = row.get("url"), row.get("fetch_url")
    if not (
        tombstones.has("uid", row.get("uid"))
        or tombstones.url(url, fetched)
        or tombstones.body(row)
        or tombstones.pdq(row.get("pdq"), row.get("pdq_quality"))
    ):
        return row
    told = {name: row[name] for name in ("source", "source_row", "batch")}
    return {**told, "status": "refused", "reason": "retracted"}
