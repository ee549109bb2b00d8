"""A recipe is rolled back by running the old one, as the runbook says."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.demo.web import Web
from tests.running import job, more_hits, table, write_recipe


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=80, seed=21) as web:
        yield web


def test_the_old_recipe_makes_its_folders_current_again_without_a_request(web: Web, tmp_path: Path) -> None:
    root = tmp_path / "root"
    old = write_recipe(tmp_path / "old.yaml", web.recipe, select={"rules": {"wide": "original_width >= 100"}})
    new = write_recipe(tmp_path / "new.yaml", web.recipe, select={"rules": {"none": "original_width < 0"}})

    def build(recipe: Path) -> int:
        done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
        assert done.returncode == 0, done.stderr
        return int(json.loads(job("show", root, "--json").stdout)["samples"])

    kept = build(old)
    before = table(root, "decisions")
    hits = web.hits()
    assert build(new) == 0 < kept
    shards = {path: path.stat().st_mtime_ns for path in root.glob("shard/*/dataset/*.tar")}
    assert build(old) == kept
    assert table(root, "decisions").equals(before)
    assert {path: path.stat().st_mtime_ns for path in root.glob("shard/*/dataset/*.tar")} == shards
    assert more_hits(hits, web.hits()) == {}
    assert job("verify", root).returncode == 0
