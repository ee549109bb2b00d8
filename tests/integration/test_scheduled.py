"""Daily runs on one ROOT: later input adds to it, and a changed setting costs no request that it need not."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.demo.web import Web
from tests.running import job, more_hits, snapshot, stage_folder, table, write_recipe


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=400, seed=3) as web:
        yield web


def days(web: Web, folder: Path) -> tuple[Path, Path]:
    """The list cut in two; some rows of the first day come again on the second."""
    rows = pq.read_table(web.list_path)
    half = rows.num_rows // 2
    first, second = folder / "day1.parquet", folder / "day2.parquet"
    pq.write_table(rows.slice(0, half), first)
    pq.write_table(pa.concat_tables([rows.slice(half), rows.slice(0, 20)]), second)
    return first, second


def test_a_second_day_fetches_only_new_pairs_even_when_killed_once(web: Web, tmp_path: Path) -> None:
    first, second = days(web, tmp_path)
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe, shard={"number_sample_per_shard": 40})
    root = tmp_path / "root"
    done = job("build", "--recipe", recipe, "--input", first, "--output", root)
    assert done.returncode == 0, done.stderr
    shards, units = (
        snapshot(stage_folder(root, "shard") / "dataset"),
        snapshot(stage_folder(root, "download") / "units"),
    )
    hits = web.hits()

    fault = {"PAIRMILL_FAULT": f"before-record@download:kill:{tmp_path / 'killed'}"}
    job("build", "--recipe", recipe, "--input", first, second, "--output", root, env=fault)
    assert (tmp_path / "killed").exists()
    again = job("build", "--recipe", recipe, "--input", first, second, "--output", root)
    assert again.returncode == 0, again.stderr

    kept = {name: state for name, state in snapshot(stage_folder(root, "shard") / "dataset").items() if name in shards}
    changed = {name for name in shards if kept[name] != shards[name]}
    assert changed <= {"sizes.json", "dataset.json"}
    now = snapshot(stage_folder(root, "download") / "units")
    assert {name: now[name] for name in units} == units
    old_urls = set(table(root, "outcomes").filter(pa.compute.field("batch") == "0001")["url"].to_pylist())
    refetched = set(more_hits(hits, web.hits())) & old_urls
    shared = set(table(root, "pairs").filter(pa.compute.field("batch") == "0002")["url"].to_pylist())
    assert refetched <= shared  # a URL of the first day is asked again only for a new text of the second
    again_rows = [
        row for row in table(root, "rejects").to_pylist() if row["batch"] == "0002" and row["reason"] == "duplicate"
    ]
    assert len(again_rows) >= 15
    assert job("verify", root).returncode == 0


def test_a_changed_file_under_a_known_path_is_refused(web: Web, tmp_path: Path) -> None:
    first, second = days(web, tmp_path)
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    root = tmp_path / "root"
    assert job("build", "--recipe", recipe, "--input", first, "--output", root, "--until", "ingest").returncode == 0
    shutil.copy(second, first)
    refused = job("build", "--recipe", recipe, "--input", first, "--output", root, "--until", "ingest")
    assert refused.returncode == 2
    assert "day1.parquet" in refused.stderr


def test_a_changed_prefilter_makes_no_request_and_readmit_fetches_what_it_newly_admits(
    web: Web, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe, ingest={"prefilter": {"long": "n_chars >= 40"}})
    root = tmp_path / "root"
    assert job("build", "--recipe", recipe, "--input", web.list_path, "--output", root).returncode == 0
    hits = web.hits()
    looser = ["--set", "ingest.prefilter={long: n_chars >= 15}"]
    same = job("build", "--recipe", recipe, "--output", root, *looser)
    assert same.returncode == 0, same.stderr
    assert "later batches" in same.stderr
    assert web.hits() == hits

    rejected = {
        (r["source"], r["source_row"]): r["url"]
        for r in table(root, "rejects").to_pylist()
        if r["reason"] == "text_rule"
    }
    assert job("ingest", "--recipe", recipe, "--output", root, *looser, "--readmit", "0001").returncode == 0
    built = job("build", "--recipe", recipe, "--output", root, *looser)
    assert built.returncode == 0, built.stderr
    admitted = [row for row in table(root, "pairs").to_pylist() if row["batch"] == "0002"]
    assert admitted
    assert all(15 <= row["n_chars"] < 40 for row in admitted)
    assert {(row["source"], row["source_row"]) for row in admitted} <= set(rejected)
    assert job("verify", root).returncode == 0


def test_retry_fetches_only_rows_that_ended_for_the_named_reasons(web: Web, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe, shard={"number_sample_per_shard": 100})
    root = tmp_path / "root"
    assert job("build", "--recipe", recipe, "--input", web.list_path, "--output", root).returncode == 0
    before = table(root, "outcomes").to_pylist()
    failed = {row["url"] for row in before if row["reason"] == "http_error"}
    hits = web.hits()
    again = job("download", "--recipe", recipe, "--output", root, "--retry", "http_error")
    assert again.returncode == 0, again.stderr
    assert set(more_hits(hits, web.hits())) <= failed
    assert set(more_hits(hits, web.hits()))
    after = table(root, "outcomes").to_pylist()
    assert [row["uid"] for row in after] == [row["uid"] for row in before]
    stood = [(a, b) for a, b in zip(before, after, strict=True) if a["reason"] != "http_error"]
    assert all(a == b for a, b in stood)
    assert job("build", "--recipe", recipe, "--output", root).returncode == 0
    assert job("verify", root).returncode == 0
