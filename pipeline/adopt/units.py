"""Download units of an adopted batch: pairs in, outcomes out, with images where they are or copied into the pool."""

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.adopt.measure import COLUMNS
from pipeline.download.blocklist import OF_THE_IMAGE, Blocklist, Match, is_withdrawn
from pipeline.download.pool import PoolWriter
from pipeline.errors import StoreError
from pipeline.images.errors import ImageError
from pipeline.images.sniff import sniff
from pipeline.retract.tombstone import Tombstones
from pipeline.runner import Result
from pipeline.shard.pool import PoolReader
from pipeline.shard.writer import EXTENSIONS
from pipeline.storage import Store
from pipeline.units import Output, StageFolder, count
from schemas.recipe import Recipe
from schemas.records import Batch, UnitRange, UnitRecord
from schemas.statuses import STATUS_OF
from schemas.tables import CONSENT, OUTCOMES

FROM_PAIRS = ("uid", "source", "source_row", "batch", "url", "text", "caption")
POOL = ("pool_file", "pool_offset", "pool_size", "pool_sha256")


class UnitAdopter:
    """Holds the batch's measured rows (memory maps) and the blocklists; `run` may be called from several threads."""

    def __init__(
        self, store: Store, recipe: Recipe, batch: Batch, ingest: StageFolder, folder: StageFolder, run: str,
        measured: Mapping[str, Path],
    ) -> None:  # fmt: skip
        self._store = store
        self._ingest = ingest
        self._folder = folder
        self._run = run
        assert batch.adopted is not None
        self._copied = batch.adopted.copied
        self._generations = ingest.generations()
        self._blocklist = Blocklist(recipe.download.blocklists, Tombstones.load(store))
        self._measured = measured
        self._maps: dict[str, pa.Table] = {}
        self._lock = threading.Lock()
        self._reader = PoolReader(store)

    def __enter__(self) -> "UnitAdopter":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._maps.clear()
        self._reader.close()

    def run(self, unit: UnitRange) -> Result:
        """Commit one unit. Raises PoolMismatchError where a tar no longer holds what was measured."""
        attempt = self._folder.begin(unit.unit, 0, self._run, alone=True)
        with self._folder.working(attempt) as scratch:
            upstream = self._ingest.record(unit.unit, self._generations[unit.unit])
            pairs = self._pairs(upstream)
            outcomes = self._outcomes(unit.unit, pairs)
            outputs = []
            if self._copied:
                pool = f"{self._folder.base}/pool/{unit.unit}.0.{attempt.number}.tar"
                outcomes, members = self._copy(outcomes, scratch / "pool.tar", pool)
                if members:
                    outputs.append(Output("pool", scratch / "pool.tar", members))
            for name, table in (("outcomes", outcomes), ("consent", CONSENT.empty_table())):
                pq.write_table(table, scratch / f"{name}.parquet", compression="zstd")
                outputs.append(Output(name, scratch / f"{name}.parquet", table.num_rows))
            counts = count(outcomes["status"].to_pylist(), outcomes["reason"].to_pylist())
            digest = hashlib.sha256("".join(entry.sha256 for entry in upstream.files).encode()).hexdigest()
            record = self._folder.commit(attempt, outputs, counts, outcomes.num_rows, digest)
        return {"unit": unit.unit, "state": "done", "rows": record.rows, "counts": record.counts}

    def _pairs(self, record: UnitRecord) -> pa.Table:
        entry = next(entry for entry in record.files if entry.table == "pairs")
        return pq.read_table(pa.BufferReader(self._store.read(f"{self._ingest.base}/{entry.path}")))

    def _outcomes(self, unit: str, pairs: pa.Table) -> pa.Table:
        found = self._blocked(pairs, self._rows_of(pairs))
        count_ = pairs.num_rows
        own = {
            "url_md5": pa.array([_md5(url) for url in pairs["url"].to_pylist()], pa.string()),
            "unit": pa.repeat(pa.scalar(unit), count_),
            "generation": pa.repeat(pa.scalar(0, pa.int32()), count_),
        }
        columns = {}
        for field in OUTCOMES:
            if field.name in FROM_PAIRS:
                columns[field.name] = pairs[field.name].cast(field.type)
            elif field.name in COLUMNS:
                columns[field.name] = found[field.name]
            else:
                columns[field.name] = own.get(field.name, pa.nulls(count_, field.type))
        columns |= {name: pairs[name] for name in pairs.column_names if name.startswith("src_")}
        return pa.table(columns)

    def _rows_of(self, pairs: pa.Table) -> pa.Table:
        """The measured rows of the pairs, in their order."""
        sources = pairs["source"].combine_chunks().dictionary_encode()
        which = sources.indices.to_numpy()
        numbers = pairs["source_row"].to_numpy()
        tables, places = [], []
        for code, source in enumerate(sources.dictionary.to_pylist()):
            here = np.flatnonzero(which == code)
            tables.append(self._table(source).take(pa.array(numbers[here])))
            places.append(here)
        if not tables:
            return pa.schema([OUTCOMES.field(name) for name in COLUMNS]).empty_table()
        table = pa.concat_tables(tables).combine_chunks()
        return table.take(pa.array(np.argsort(np.concatenate(places), kind="stable")))

    def _table(self, source: str) -> pa.Table:
        with self._lock:
            if source not in self._maps:
                self._maps[source] = pa.ipc.open_file(pa.memory_map(str(self._measured[source]))).read_all()
            return self._maps[source]

    def _blocked(self, pairs: pa.Table, rows: pa.Table) -> pa.Table:
        """The recipe's hash lists hold for adopted images as for fetched ones, by what is known of them."""
        if not self._blocklist:
            return rows
        found = rows.to_pylist()
        matches = [self._match(url, row) for url, row in zip(pairs["url"].to_pylist(), found, strict=True)]
        if self._blocklist.has_pdq:
            left = [n for n, match in enumerate(matches) if match is None and found[n]["pool_file"]]
            wanted = pairs.select(["uid"]).take(pa.array(left, pa.int64()))
            for name in POOL:
                wanted = wanted.append_column(name, rows[name].take(pa.array(left, pa.int64())))
            for start, images in self._reader.blocks(wanted):
                for place, image in enumerate(images, start):
                    matches[left[place]] = self._match_picture(image)
        for row, match in zip(found, matches, strict=True):
            if match is not None:
                row |= {"status": STATUS_OF[match.reason], "reason": match.reason, "detail": match.detail}
                row |= dict.fromkeys(POOL)
            if match is not None and is_withdrawn(*match):
                row |= dict.fromkeys(name for name in row if name in OF_THE_IMAGE)
        return pa.Table.from_pylist(found, rows.schema)

    def _match(self, url: str, row: dict[str, str | None]) -> Match | None:
        if match := self._blocklist.url(url):
            return match
        # A hash that is not known matches nothing.
        original = {kind: row.get(kind) or "-" for kind in ("sha256", "sha1", "md5")}
        stored = {**original, "sha256": row["pool_sha256"] or "-"}
        return self._blocklist.body(b"", original) or self._blocklist.body(b"", stored)

    def _match_picture(self, image: bytes) -> Match | None:
        from pipeline.dedupe.hashes import hash_image

        try:
            hashes = hash_image(image)
        except ImageError:
            return None
        return self._blocklist.image(hashes.pdq, hashes.quality)

    def _copy(self, outcomes: pa.Table, local: Path, path: str) -> tuple[pa.Table, int]:
        """Copy the ok rows' images into a pool tar of the unit; the outcomes that say so, and its members."""
        ok = np.flatnonzero(pc.equal(outcomes["status"], "ok").to_numpy())
        wanted = outcomes.take(pa.array(ok))
        files: list[str | None] = [None] * outcomes.num_rows
        offsets: list[int | None] = [None] * outcomes.num_rows
        uids = wanted["uid"].to_pylist()
        writer = PoolWriter(local)
        try:
            for start, images in self._reader.blocks(wanted):
                for place, image in enumerate(images, start):
                    member = writer.add(f"{uids[place]}.{EXTENSIONS[sniff(image) or '']}", image)
                    files[ok[place]], offsets[ok[place]] = path, member.offset
        finally:
            writer.close()
        if writer.members != len(ok):
            raise StoreError(f"{path}: {writer.members} images copied of {len(ok)}")
        for name, values in (("pool_file", files), ("pool_offset", offsets)):
            index = outcomes.column_names.index(name)
            outcomes = outcomes.set_column(index, OUTCOMES.field(name), pa.array(values, OUTCOMES.field(name).type))
        return outcomes, writer.members


def _md5(url: str) -> str:
    return hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
