"""What only all units together can prove: uids and input rows are unique, witnesses exist, samples trace back.

The keys of every row go to a DuckDB file in a temporary folder, so that memory stays bounded whatever the ROOT's size.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any

import pyarrow as pa

from pipeline.verify.report import SHOWN, Check
from schemas.records import Batch, Round

MEMORY_LIMIT = "1GB"
INSERT_ROWS = 100_000
"""Rows that wait for one INSERT: each is a transaction, which costs milliseconds on disk."""

_TABLES = """
CREATE TABLE pairs (uid VARCHAR, source VARCHAR, source_row BIGINT, batch VARCHAR);
CREATE TABLE rejects (uid VARCHAR, source VARCHAR, source_row BIGINT, batch VARCHAR, reason VARCHAR, dup_of VARCHAR);
CREATE TABLE outcomes (uid VARCHAR, folder VARCHAR, unit VARCHAR, generation INT, pool_sha256 VARCHAR,
                       sha256 VARCHAR, text_key UBIGINT);
CREATE TABLE hashes (uid VARCHAR, pdq VARCHAR, folder VARCHAR);
CREATE TABLE duplicates (uid VARCHAR, dup_of VARCHAR, level VARCHAR, distance DOUBLE, group_id VARCHAR, folder VARCHAR);
CREATE TABLE embeddings (uid VARCHAR, status VARCHAR, clip_score FLOAT, folder VARCHAR);
CREATE TABLE scores (uid VARCHAR, clip_score FLOAT, folder VARCHAR);
CREATE TABLE decisions (uid VARCHAR, kept BOOLEAN, dropped_by VARCHAR, unit VARCHAR, folder VARCHAR);
CREATE TABLE read (unit VARCHAR, generation INT, folder VARCHAR);
CREATE TABLE samples (uid VARCHAR, key VARCHAR, shard VARCHAR, caption VARCHAR);
CREATE TABLE files (batch VARCHAR, source VARCHAR, rows BIGINT, whole BOOLEAN);
CREATE TABLE taken (unit VARCHAR, generation INT);
"""
COLUMNS = {
    "pairs": ("uid", "source", "source_row", "batch"),
    "rejects": ("uid", "source", "source_row", "batch", "reason", "dup_of"),
    "outcomes": ("uid", "folder", "unit", "generation", "pool_sha256", "sha256", "text"),
    "hashes": ("uid", "pdq", "folder"),
    "duplicates": ("uid", "dup_of", "level", "distance", "group_id", "folder"),
    "embeddings": ("uid", "status", "clip_score", "folder"),
    "scores": ("uid", "clip_score", "folder"),
    "decisions": ("uid", "kept", "dropped_by", "unit", "folder"),
    "read": ("unit", "generation", "folder"),
    "samples": ("uid", "key", "shard", "caption"),
    "files": ("batch", "source", "rows", "whole"),
    "taken": ("unit", "generation"),
}
"""`outcomes` holds the ok rows alone."""

_STORED = {"text": "md5_number_lower(coalesce(text, ''))"}
"""Columns that are stored as something shorter."""

_INPUT_ROWS = "SELECT batch, source, source_row FROM pairs UNION ALL SELECT batch, source, source_row FROM rejects"

_ROWS = (
    f"""SELECT format('{{}} row {{}} has {{}} outcomes', source, source_row, count(*)) FROM ({_INPUT_ROWS})
        GROUP BY source, source_row HAVING count(*) > 1""",
    f"""SELECT format('{{}} row {{}} is in no file of batch {{}}', r.source, r.source_row, r.batch)
        FROM ({_INPUT_ROWS}) r LEFT JOIN files f USING (batch, source)
        WHERE f.rows IS NULL OR r.source_row < 0 OR r.source_row >= f.rows OR r.source_row IS NULL""",
    f"""SELECT format('batch {{}}: {{}} has {{}} rows, {{}} have an outcome', f.batch, f.source, f.rows, coalesce(n, 0))
        FROM files f
        LEFT JOIN (SELECT batch, source, count(*) AS n FROM ({_INPUT_ROWS}) GROUP BY ALL) USING (batch, source)
        WHERE f.whole AND f.rows != coalesce(n, 0)""",
)
_UIDS = (
    "SELECT format('uid {} is of {} pairs', uid, count(*)) FROM pairs GROUP BY uid HAVING count(*) > 1",
    """SELECT format('folder {}: uid {} is ok in {} units', folder, uid, count(*)) FROM outcomes
       GROUP BY folder, uid HAVING count(*) > 1""",
)
_WITNESSES = (
    """SELECT format('{} row {} is a duplicate of {}, no pair', r.source, r.source_row, coalesce(dup_of, 'nothing'))
       FROM rejects r LEFT JOIN pairs p ON r.dup_of = p.uid WHERE r.reason = 'duplicate' AND p.uid IS NULL""",
    """SELECT format('{} row {} (batch {}) gave way to {} (batch {})', r.source, r.source_row, r.batch, p.uid, p.batch)
       FROM rejects r JOIN pairs p ON r.dup_of = p.uid WHERE r.reason = 'duplicate' AND p.batch::INT > r.batch::INT""",
    """SELECT format('{} row {} names a witness but is {}, no duplicate', source, source_row, reason)
       FROM rejects WHERE reason != 'duplicate' AND dup_of IS NOT NULL""",
)
_SAMPLES = (
    "SELECT format('key {} is of {} samples', key, count(*)) FROM samples GROUP BY key HAVING count(*) > 1",
    "SELECT format('uid {} is in {} samples', uid, count(*)) FROM samples GROUP BY uid HAVING count(*) > 1",
    """SELECT format('{}: key {} has uid {}, which is no ok outcome', s.shard, s.key, coalesce(s.uid, 'null'))
       FROM samples s LEFT JOIN (FROM outcomes WHERE folder = $folder) o USING (uid) WHERE o.uid IS NULL""",
    """SELECT format('{}: key {} has uid {}, which is no pair', s.shard, s.key, s.uid)
       FROM samples s LEFT JOIN pairs p USING (uid) WHERE p.uid IS NULL""",
)


class Keys:
    """The keys of a ROOT's rows. Use it in a `with`; it removes its file."""

    def __enter__(self) -> "Keys":
        import duckdb

        self._folder = mkdtemp(prefix="pairmill-verify-")
        settings: dict[str, Any] = {"memory_limit": MEMORY_LIMIT, "temp_directory": f"{self._folder}/spill"}
        self._engine = duckdb.connect(Path(self._folder) / "keys.duckdb", config=settings)
        self._engine.execute(_TABLES)
        self._waiting: dict[str, list[pa.Table]] = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, table: str, rows: pa.Table) -> None:
        """Append rows with the table's columns, in any order; more columns are left out."""
        waiting = self._waiting.setdefault(table, [])
        waiting.append(rows.select(COLUMNS[table]))
        if sum(part.num_rows for part in waiting) >= INSERT_ROWS:
            self._insert(table)

    def _insert(self, table: str) -> None:
        parts = self._waiting.pop(table, [])
        if parts:
            self._engine.register("added", pa.concat_tables(parts, promote_options="permissive"))
            stored = ", ".join(_STORED.get(name, name) for name in COLUMNS[table])
            self._engine.execute(f"INSERT INTO {table} SELECT {stored} FROM added")
            self._engine.unregister("added")

    def _flush(self) -> None:
        for table in list(self._waiting):
            self._insert(table)

    def add_batches(self, batches: dict[str, Batch]) -> None:
        """Name the input files. A batch of whole files (no limit, nothing readmitted) must answer for every row."""
        parted = {batch.readmits for batch in batches.values()}
        rows = [
            (batch.batch, file.source, file.rows, batch.limit is None and not batch.readmits and name not in parted)
            for name, batch in batches.items()
            for file in batch.files
        ]
        if rows:
            self._engine.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", rows)

    def add_rounds(self, rounds: list[Round]) -> None:
        """Say which units of `select` the rounds of `shard` have read."""
        read: dict[str, int] = {}
        for round_ in rounds:
            read.update(round_.upstream)
        table = pa.table({"unit": list(read), "generation": list(read.values())})
        if read:
            self.add("taken", table)

    def check_rows(self, check: Check) -> None:
        self.run(check, _ROWS, f"SELECT count(*) FROM ({_INPUT_ROWS})")

    def check_uids(self, check: Check) -> None:
        self.run(check, _UIDS, "SELECT count(*) FROM pairs")

    def check_witnesses(self, check: Check) -> None:
        self.run(check, _WITNESSES, "SELECT count(*) FROM rejects WHERE reason = 'duplicate'")

    def check_samples(self, check: Check, folder: str) -> None:
        """`folder` is the download folder that the dataset was made from."""
        self.run(check, _SAMPLES, "SELECT count(*) FROM samples", {"folder": folder})

    def samples(self, folder: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(shard, its samples in the order of their keys), each with the pool_sha256 of its outcome in `folder`."""
        self._flush()
        reader = self._engine.cursor().execute(
            """SELECT s.shard, s.key, s.uid, s.caption, o.pool_sha256
               FROM samples s LEFT JOIN (FROM outcomes WHERE folder = $folder) o USING (uid)
               ORDER BY s.shard, s.key""",
            {"folder": folder},
        )
        shard = ""
        rows: list[dict[str, Any]] = []
        while found := reader.fetchmany(10_000):
            for name, key, uid, caption, sha256 in found:
                if name != shard and rows:
                    yield shard, rows
                    rows = []
                shard = name
                rows.append({"key": key, "uid": uid, "caption": caption, "sha256": sha256})
        if rows:
            yield shard, rows

    def run(self, check: Check, queries: Sequence[str], count: str, values: Mapping[str, object] | None = None) -> None:
        """Each row that a query gives is a breach; `count` gives how many rows were looked at."""
        self._flush()
        found = self._engine.execute(count, _named(values, count)).fetchone()
        check.add(found[0] if found else 0)
        for query in queries:
            mine = _named(values, query)
            breaches = self._engine.execute(f"{query} ORDER BY 1 LIMIT {SHOWN + 1}", mine).fetchall()
            check.add(0, (line for (line,) in breaches))
            if len(breaches) > SHOWN:
                total = self._engine.execute(f"SELECT count(*) FROM ({query})", mine).fetchone()
                check.add_more((total[0] if total else 0) - len(breaches))


def _named(values: Mapping[str, object] | None, query: str) -> dict[str, object] | None:
    """The values whose names are in the query, as DuckDB wants them."""
    mine = {name: value for name, value in (values or {}).items() if f"${name}" in query}
    return mine or None
