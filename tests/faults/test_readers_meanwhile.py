"""Five readers of the published tables while a build is killed and run again: never a duplicate, never a hole."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.demo.web import Web
from tests.running import job, write_recipe


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=400, seed=13) as web:
        yield web


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


def test_a_reader_never_sees_half_a_publication(web: Web, spark: SparkSession, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    root = tmp_path / "root"
    rows = pq.read_table(web.list_path)
    days = [tmp_path / "day1.parquet", tmp_path / "day2.parquet"]
    pq.write_table(rows.slice(0, 200), days[0])
    pq.write_table(rows.slice(200), days[1])
    assert job("build", "--recipe", recipe, "--input", days[0], "--output", root).returncode == 0
    readers: dict[str, Callable[[str], list[str]]] = {
        "pandas": lambda path: pd.read_parquet(path)["uid"].tolist(),
        "polars": lambda path: pl.read_parquet(f"{path}/*.parquet")["uid"].to_list(),
        "duckdb": lambda path: [uid for (uid,) in duckdb.sql(f"SELECT uid FROM '{path}/*.parquet'").fetchall()],
        "pyarrow": lambda path: pq.read_table(path)["uid"].to_pylist(),
        "spark": lambda path: [row.uid for row in spark.read.parquet(path).select("uid").collect()],
    }
    seen: dict[str, list[str]] = {name: [] for name in readers}
    failures: list[str] = []
    done = threading.Event()

    def current(table: str) -> str:
        version = json.loads((root / "tables" / table / "latest.json").read_text())["version"]
        return str(root / "tables" / table / f"v{version}")

    def read(name: str) -> None:
        while not done.is_set() or len(seen[name]) < 2:
            path = current("outcomes")
            uids = readers[name](path)
            pairs = set(readers[name](path.replace("outcomes", "pairs")))
            if len(uids) != len(set(uids)):
                failures.append(f"{name}: {path} has a uid twice")
            if set(uids) != pairs:
                failures.append(f"{name}: {path} and pairs of that version differ")
            seen[name].append(path)

    threads = [threading.Thread(target=read, args=(name,)) for name in readers]
    for thread in threads:
        thread.start()
    second = ("build", "--recipe", recipe, "--input", days[1], "--output", root)
    fault = {"PAIRMILL_FAULT": f"before-latest@outcomes:kill:{tmp_path / 'killed'}"}
    try:
        killed = job(*second, env=fault)
        assert killed.returncode == -9
        again = job(*second)
        assert again.returncode == 0, again.stderr
        retried = job("download", "--recipe", recipe, "--output", root, "--retry", "http_error,dns")
        assert retried.returncode == 0, retried.stderr
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert len({path for paths in seen.values() for path in paths}) > 1
