"""The README's queries over tables/ run as they stand, where the demo's output lies."""

import importlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.storage import LocalStore
from schemas.recipe import Recipe
from tests.running import REPOSITORY
from tests.scored import ScoredRoot

SECTION = "Ask the tables"
RECIPE = Recipe.model_validate(
    {
        "shard": {"number_sample_per_shard": 16},
        "dedupe": {"levels": {"bytes": True}},
        "select": {"rules": {"early": "source_row < 90", "agrees": "clip_score > -0.3"}},
    }
)


def blocks(language: str) -> list[str]:
    """The section's code blocks of a language, in order."""
    (section,) = re.findall(rf"^### {SECTION}\n(.*?)(?=^##)", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    found = re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)
    assert found, f"README: no {language} block in the section {SECTION}"
    return found


@pytest.fixture(scope="module", autouse=True)
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the README is read: a folder with demo-output/root in it."""
    folder = tmp_path_factory.mktemp("readme")
    made = ScoredRoot(LocalStore(folder / "demo-output" / "root"), RECIPE)
    made.batch(100)
    made.finish()
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def test_every_command_runs(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("sh")
    for line in block.splitlines():
        python, flag, module, *arguments = shlex.split(line, comments=True)
        assert (python, flag) == ("python", "-m")
        assert importlib.import_module(module).main(arguments) == 0
    assert (demo / "deciles.html").exists()
    assert "scores.clip_score of b32" in capsys.readouterr().out


def test_every_query_runs_in_duckdb_and_finds_rows(demo: Path) -> None:
    (block,) = blocks("sql")
    assert block.startswith("-- duckdb -init demo-output/root/views.sql\n")
    with duckdb.connect() as engine:
        engine.execute((demo / "demo-output/root/views.sql").read_text())
        statements = engine.extract_statements(block)
        assert len(statements) > 5
        for statement in statements:
            assert engine.execute(statement).fetchall(), statement.query


def test_every_python_block_runs_after_those_before_it(
    demo: Path, spark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    named: dict[str, Any] = {}
    for block in blocks("python"):
        # Spark's JVM keeps the folder it began in, which may be another test's.
        block = block.replace('"demo-output/root"', repr(str(demo / "demo-output/root")))
        exec(compile(block, "README.md", "exec"), named)
        told = capsys.readouterr().out
        assert told.count("\n") > 5, block
    captions = named["vectors"]["caption"]
    assert named["places"][0][0] == 0
    assert captions.iloc[0] in captions.iloc[named["places"][0]].tolist()


def test_duckdb_and_spark_see_the_same_histogram(demo: Path, spark: Any) -> None:
    """The first query of the SQL block is the first of the Spark block."""
    with duckdb.connect() as engine:
        engine.execute((demo / "demo-output/root/views.sql").read_text())
        (first, *_) = engine.extract_statements(blocks("sql")[0])
        wanted = engine.execute(first).fetchall()
    query = re.findall(r'spark\.sql\("""(.*?)"""\)', blocks("python")[-1], re.S)[0]
    named: dict[str, Any] = {}
    exec(blocks("python")[0], named)
    named["ROOT"] = str(demo / "demo-output/root")
    for table in ("pairs", "scores"):
        spark.read.parquet(*named["files"](table)).createOrReplaceTempView(table)
    found = [tuple(row) for row in spark.sql(query).collect()]
    rounded = [
        [(lang, encoder, round(float(score), 3), pairs) for lang, encoder, score, pairs in rows]
        for rows in (found, wanted)
    ]
    assert rounded[0] == rounded[1]
