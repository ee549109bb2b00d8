"""The published tables: whole files, sorted without a duplicate, and the rows complete.json speaks of."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.root import stage_of
from pipeline.storage import Store
from pipeline.tables import ORDER_BY, SOURCES_OF, read_published, stamp
from pipeline.units import add_counts, count
from pipeline.verify.files import chosen, sha256_of
from pipeline.verify.report import Report
from pipeline.verify.state import State
from schemas.records import Counts, Published
from schemas.tables import TABLES

UNIQUE = ("pairs", "rejects", "outcomes", "scores")


def check_published(state: State, report: Report, share: float) -> None:
    """Tables that are older than the last complete.json are checked in themselves alone; the next run replaces them."""
    check = report.check(1, "published tables")
    done = {stage: folder.folder.completed() for stage, folder in state.current.items()}
    now = {stage: stamp(state.current[stage].folder, one) for stage, one in done.items() if one}
    for table in SOURCES_OF:
        published = read_published(state.store, table)
        if published is None:
            continue
        broken = list(_files(state.store, published, share))
        check.add(published.rows, broken)
        if broken:
            continue
        breaches: list[str] = []
        counts = _rows(state.store, table, published, breaches)
        said = [one for key, one in done.items() if one and stage_of(key) in SOURCES_OF[table]]
        if published.made_from == now and said:
            breaches += _against(table, published, counts, add_counts(one.counts for one in said))
        check.add(0, breaches)


def _files(store: Store, published: Published, share: float) -> Iterator[str]:
    for file in published.files:
        size = store.size(file.path)
        if size is None:
            yield f"{file.path}: latest.json names it, but it is missing"
        elif size != file.bytes:
            yield f"{file.path}: has {size} bytes, latest.json says {file.bytes}"
        elif chosen(file.path, share) and sha256_of(store, file.path) != file.sha256:
            yield f"{file.path}: its sha256 is not the one latest.json says"


def _rows(store: Store, table: str, published: Published, breaches: list[str]) -> Counts:
    """Read the keys and statuses part by part, in order; returns the rows by status and reason."""
    filesystem, root = store.arrow()
    keys = list(ORDER_BY.get(table, ("uid",)))
    judged = "status" in TABLES[table].names
    counts: Counts = {}
    last: tuple[object, ...] | None = None
    rows = 0
    for part in published.files:
        with filesystem.open_input_file(f"{root}/{part.path}") as source:
            file = pq.ParquetFile(source)
            if file.metadata.num_rows != part.rows:
                breaches.append(f"{part.path}: has {file.metadata.num_rows} rows, latest.json says {part.rows}")
            columns = [*keys, *(["status", "reason"] if judged else [])]
            for batch in file.iter_batches(1 << 17, columns=columns):
                rows += batch.num_rows
                if judged:
                    own = count(batch["status"].to_pylist(), batch["reason"].to_pylist())
                    counts = add_counts([counts, own])
                if table in UNIQUE and batch.num_rows:
                    last = _ascending(part.path, pa.Table.from_batches([batch]), keys, last, breaches)
    if rows != published.rows:
        breaches.append(f"tables/{table}/latest.json: says {published.rows} rows, its files have {rows}")
    return counts


def _ascending(
    path: str, batch: pa.Table, keys: list[str], last: tuple[object, ...] | None, breaches: list[str]
) -> tuple[object, ...]:
    """Rows that rise strictly by their key hold no key twice."""
    if len(keys) == 1:
        column = batch[keys[0]].combine_chunks()
        rises = pc.less(column[:-1], column[1:])
        if not pc.all(rises).as_py() and len(column) > 1:
            place = pc.index(rises, False).as_py()
            breaches.append(f"{path}: {keys[0]} {column[place + 1].as_py()} is there twice or out of order")
        first, final = (column[0].as_py(),), (column[-1].as_py(),)
    else:
        rows = list(zip(*(batch[key].to_pylist() for key in keys), strict=True))
        wrong = next((place for place in range(1, len(rows)) if not rows[place - 1] < rows[place]), None)
        if wrong is not None:
            breaches.append(f"{path}: {' '.join(map(str, rows[wrong]))} is there twice or out of order")
        first, final = rows[0], rows[-1]
    if last is not None and not last < first:
        breaches.append(f"{path}: {' '.join(map(str, first))} is there twice or out of order")
    return final


def _against(table: str, published: Published, counts: Counts, complete: Counts) -> Iterator[str]:
    """`complete`: what complete.json of the table's stages says, added up."""
    place = f"tables/{table}/v{published.version}"
    ok = complete.get("ok", {}).get("", 0)
    if table == "pairs" and published.rows != ok:
        yield f"{place}: has {published.rows} rows, ingest left {ok} pairs"
    if table == "rejects":
        wanted = {status: reasons for status, reasons in complete.items() if status != "ok"}
        if counts != wanted:
            yield f"{place}: its counts by status and reason are not those of ingest's complete.json"
    if table == "outcomes" and counts != complete:
        yield f"{place}: its counts by status and reason are not those of download's complete.json"
    if table == "embeddings" and counts != complete:
        yield f"{place}: its counts by status and reason are not those of the complete.json of its encoders"
