"""pandas, polars, DuckDB, pyarrow and PySpark read every published table, and see the same rows."""

from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import LocalStore
from pipeline.tables import SOURCES_OF
from tests.handmade import HandmadeRoot

CHECKED = {
    "pairs": ["uid", "text", "text_repaired", "source_row", "n_chars", "lang_score", "src_licence"],
    "rejects": ["uid", "source", "source_row", "batch", "status", "reason", "dup_of"],
    "outcomes": ["uid", "status", "reason", "http_status", "bytes", "pool_offset", "consent_ok", "fetched_at"],
    "consent": ["uid", "signal", "verdict", "observed_at"],
}
"""Columns of every type the tables have, nulls among them."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published") / "root"
    made = HandmadeRoot(LocalStore(root))
    made.batch(45)
    made.batch(20, kept=True)
    made.finish()
    return root


def expected(root: Path, table: str) -> list[tuple[Any, ...]]:
    rows = pq.read_table(root / "tables" / table / "v1").select(CHECKED[table]).to_pylist()
    return [tuple(row.values()) for row in rows]


def glob(root: Path, table: str) -> str:
    return f"{root}/tables/{table}/v1/*.parquet"


@pytest.mark.parametrize("table", CHECKED)
def test_polars_reads_the_table(root: Path, table: str) -> None:
    frame = pl.read_parquet(glob(root, table))
    assert frame.select(CHECKED[table]).rows() == expected(root, table)


@pytest.mark.parametrize("table", CHECKED)
def test_duckdb_reads_the_table(root: Path, table: str) -> None:
    columns = ", ".join(CHECKED[table])
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        rows = engine.execute(f"SELECT {columns} FROM read_parquet('{glob(root, table)}')").fetchall()
    assert rows == expected(root, table)


@pytest.mark.parametrize("table", CHECKED)
def test_pandas_reads_the_table(root: Path, table: str) -> None:
    frame = pd.read_parquet(root / "tables" / table / "v1", columns=CHECKED[table], dtype_backend="pyarrow")
    found = pa.Table.from_pandas(frame, preserve_index=False).to_pylist()
    assert [tuple(row.values()) for row in found] == expected(root, table)
    plain = pd.read_parquet(root / "tables" / table / "v1")
    assert len(plain) == len(found)


@pytest.mark.parametrize("table", CHECKED)
def test_spark_reads_the_table(root: Path, spark: Any, table: str) -> None:
    frame = spark.read.parquet(glob(root, table)).select(*CHECKED[table])
    found = frame.toArrow().to_pylist()
    assert sorted(map(str, (tuple(row.values()) for row in found))) == sorted(map(str, expected(root, table)))


def test_spark_counts_what_latest_counts(root: Path, spark: Any) -> None:
    from pipeline.tables import read_published

    for table in SOURCES_OF:
        latest = read_published(LocalStore(root), table)
        assert latest
        assert spark.read.parquet(glob(root, table)).count() == latest.rows


def test_spark_reads_the_dataset(root: Path, spark: Any) -> None:
    (dataset,) = root.glob("shard/*/dataset")
    frame = spark.read.parquet(f"{dataset}/*.parquet")
    assert frame.select("uid").distinct().count() == frame.count() > 0
