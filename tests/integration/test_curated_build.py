"""dedupe and select as a user runs them: in a build, as jobs of their own, again with other rules."""

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from jobs.demo.web import Web
from tests.running import job, more_hits, snapshot, stage_folder, table, write_recipe

RULES = {"wide": "original_width >= 100", "worded": "n_words >= 2 AND text_count < 50"}
BEFORE_SELECT = ("ingest", "download", "hashes", "dedupe")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=260, seed=21) as web:
        yield web


@pytest.fixture(scope="module")
def recipe(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    levels = {"levels": {"bytes": True, "pdq": 31}, "scope": "image"}
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    return write_recipe(path, web.recipe, dedupe=levels, select={"rules": RULES})


@pytest.fixture(scope="module")
def root(web: Web, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built stage by stage, dedupe killed once on the way."""
    folder = tmp_path_factory.mktemp("root")
    root = folder / "root"
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root, "--until", "download")
    assert done.returncode == 0, done.stderr
    fault = {"PAIRMILL_FAULT": f"before-record@dedupe:kill:{folder / 'killed'}"}
    assert job("dedupe", "--recipe", recipe, "--output", root, env=fault).returncode == -9
    for stage in ("dedupe", "select", "shard"):
        done = job(stage, "--recipe", recipe, "--output", root)
        assert done.returncode == 0, done.stderr
    return root


def test_the_funnel_goes_through_every_stage(root: Path) -> None:
    told = json.loads(job("show", root, "--json").stdout)
    stages = {stage["stage"]: stage for stage in told["stages"]}
    assert list(stages) == ["ingest", "download", "dedupe", "select", "shard"]
    ok = stages["download"]["rows_out"]
    reasons = {row["reason"]: row["rows"] for row in stages["select"]["rows"]}
    assert stages["dedupe"]["rows_in"] == stages["select"]["rows_in"] == ok
    assert reasons["duplicate"] == ok - stages["dedupe"]["rows_out"] > 0
    assert set(reasons) == {"", "duplicate", *RULES}
    assert sum(reasons.values()) == ok
    assert stages["shard"]["rows_out"] == reasons[""] == told["samples"]
    assert all(stage["pending"] == 0 and stage["finished_at"] for stage in stages.values())


def test_it_verifies_and_every_dropped_row_names_its_witness(root: Path) -> None:
    checked = job("verify", root)
    assert checked.returncode == 0, checked.stdout
    dropped = {row["uid"] for row in table(root, "decisions").to_pylist() if row["dropped_by"] == "duplicate"}
    found = [row for row in table(root, "duplicates").to_pylist() if row["level"] != "url"]
    assert {row["uid"] for row in found} == dropped
    assert not dropped & {row["group_id"] for row in found}
    told = job("trace", root, "--uid", found[0]["uid"]).stdout
    assert f"dup_of: {found[0]['dup_of']}" in told
    assert "dropped_by: duplicate" in told


def test_the_samples_view_says_why_each_row_is_there_or_not(root: Path) -> None:
    with duckdb.connect() as engine:
        engine.execute((root / "views.sql").read_text())
        rows = engine.execute("SELECT status, kept, dropped_by, dup_of, key FROM samples").fetchall()
        assert len(rows) == 260
    for status, kept, dropped_by, dup_of, key in rows:
        assert (kept is None) == (status != "ok")
        assert (key is not None) == bool(kept)
        if status == "ok":
            assert (dropped_by == "duplicate") == (dup_of is not None)


def test_another_rule_is_another_folder_without_a_request_or_a_hash(web: Web, recipe: Path, root: Path) -> None:
    hits, before = web.hits(), {stage: snapshot(root / stage) for stage in BEFORE_SELECT}
    old = stage_folder(root, "select")
    kept = snapshot(old)
    done = job("build", "--recipe", recipe, "--output", root, "--set", "select.rules.wide=original_width >= 200")
    assert done.returncode == 0, done.stderr
    assert more_hits(hits, web.hits()) == {}
    assert {stage: snapshot(root / stage) for stage in BEFORE_SELECT} == before
    assert snapshot(old) == kept
    assert len(list((root / "select").iterdir())) == len(list((root / "shard").iterdir())) == 2
    assert job("verify", root).returncode == 0
    passed = table(root, "decisions").to_pylist()
    assert any(row["dropped_by"] == "wide" for row in passed)


@pytest.mark.parametrize(
    ("stage", "setting", "missing"),
    [("select", "dedupe.scope=pair", "dedupe"), ("shard", "select.rules.wide=width > 7", "select")],
)
def test_a_stage_alone_publishes_nothing_where_the_one_before_it_has_not_run(
    recipe: Path, root: Path, stage: str, setting: str, missing: str
) -> None:
    before = {name: snapshot(root / name) for name in ("select", "shard", "tables", "runs")}
    done = job(stage, "--recipe", recipe, "--output", root, "--set", setting)
    assert done.returncode == 2
    assert f"has nothing from {missing} under these settings; run jobs.{missing} or jobs.build" in done.stderr
    assert {name: snapshot(root / name) for name in before} == before


def test_another_scope_compares_again_but_hashes_nothing(web: Web, recipe: Path, root: Path) -> None:
    hits, before = web.hits(), snapshot(root / "hashes")
    done = job("build", "--recipe", recipe, "--output", root, "--set", "dedupe.scope=pair", "--until", "dedupe")
    assert done.returncode == 0, done.stderr
    assert more_hits(hits, web.hits()) == {}
    assert snapshot(root / "hashes") == before
    assert len(list((root / "dedupe").iterdir())) == 2


def test_running_again_does_nothing(web: Web, recipe: Path, root: Path) -> None:
    assert job("build", "--recipe", recipe, "--output", root).returncode == 0  # back to these rules
    hits, before = (
        web.hits(),
        {stage: snapshot(root / stage) for stage in (*BEFORE_SELECT, "select", "shard", "tables")},
    )
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    assert done.returncode == 0, done.stderr
    assert web.hits() == hits
    assert {stage: snapshot(root / stage) for stage in before} == before
    planned = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root, "--plan").stdout
    assert [line.split()[1:3] for line in planned.splitlines()[1:6]] == [["0", "0"]] * 5
