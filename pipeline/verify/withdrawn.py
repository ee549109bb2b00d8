"""What was withdrawn is not there: no row has the uid, the URL or the image of a tombstone."""

from collections.abc import Iterator

from pipeline.retract.tombstone import Tombstones
from pipeline.verify.units import UnitTables


def check_withdrawn(stones: Tombstones, unit: UnitTables) -> Iterator[str]:
    """Breaches in a unit's tables; they name the retraction and the row's place, nothing else of it."""
    for name, table in (("pairs", unit.pairs), ("rejects", unit.rejects)):
        if table is None:
            continue
        urls = table["url"].to_pylist() if "url" in table.column_names else [None] * table.num_rows
        places = zip(table["source"].to_pylist(), table["source_row"].to_pylist(), strict=True)
        for uid, url, (source, row) in zip(table["uid"].to_pylist(), urls, places, strict=True):
            if retraction := stones.has("uid", uid) or stones.url(url):
                yield f"{source} row {row} was withdrawn by retraction {retraction}, but {name} has it"
    if unit.outcomes is not None:
        columns = (unit.outcomes[name].to_pylist() for name in ("source", "source_row", "pool_sha256"))
        for source, row, digest in zip(*columns, strict=True):
            if retraction := stones.has("sha256", digest):
                yield f"{source} row {row} has an image that was withdrawn by retraction {retraction}"
