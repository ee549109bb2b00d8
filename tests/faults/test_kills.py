"""Kills, stops and full disks at every point of a build: afterwards the same outcomes, and nothing done twice."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.demo.web import Web
from tests.running import endings, job, more_hits, start, table, write_recipe


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=300, seed=5) as web:
        yield web


@pytest.fixture(scope="module")
def clean(web: Web, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[str, str | None]]:
    """How rows end when nothing is killed."""
    folder = tmp_path_factory.mktemp("clean")
    recipe = write_recipe(folder / "r.yaml", web.recipe)
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", folder / "root")
    assert done.returncode == 0, done.stderr
    return endings(folder / "root")


@pytest.mark.parametrize(
    "point",
    ["mid-pool", "before-publish@download", "mid-publish@download", "before-record@download", "after-record@download"],
)
def test_a_killed_worker_changes_no_outcome(
    web: Web, clean: dict[tuple[str, int], tuple[str, str | None]], tmp_path: Path, point: str
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    fault = {"PAIRMILL_FAULT": f"{point}:kill:{tmp_path / 'killed'}"}
    root = tmp_path / "root"
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root, env=fault)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert endings(root) == clean
    checked = job("verify", root)
    assert checked.returncode == 0, checked.stdout


def committed(root: Path) -> set[str]:
    return {path.name for path in root.glob("download/*/units/*.json")}


def test_a_killed_driver_resumes_and_fetches_no_committed_unit_again(
    web: Web, clean: dict[tuple[str, int], tuple[str, str | None]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe, ray={"pools": {"download": 1}})
    root = tmp_path / "root"
    driver = start("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    deadline = time.monotonic() + 60
    while not committed(root) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # Ray's own processes end with the driver; what they still commit counts as committed
    units = committed(root)
    urls = set()
    for path in root.glob("download/*/outcomes/*.parquet"):
        import pyarrow.parquet as pq

        urls |= set(pq.read_table(path)["url"].to_pylist())
    hits = web.hits()
    again = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    assert again.returncode == 0, again.stderr
    assert units
    assert not set(more_hits(hits, web.hits())) & urls
    assert endings(root) == clean
    assert job("verify", root).returncode == 0


def test_sigterm_commits_what_it_can_and_gives_the_root_back(web: Web, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    root = tmp_path / "root"
    driver = start("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    deadline = time.monotonic() + 60
    while not list(root.glob("download/*/attempts/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1, errors
    assert "the same command" in errors
    assert not (root / "lease.json").exists()
    assert job("build", "--recipe", recipe, "--output", root, "--input", web.list_path).returncode == 0
    assert job("verify", root).returncode == 0


def test_two_builds_on_one_root_do_not_both_run(web: Web, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    root = tmp_path / "root"
    first = start("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    deadline = time.monotonic() + 60
    while not (root / "lease.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    second = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    assert second.returncode == 4, second.stderr
    assert json.loads((root / "run.json").read_text())["run"] in second.stderr
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors


def test_a_build_stopped_past_its_lease_and_continued_harms_nothing(
    web: Web, clean: dict[tuple[str, int], tuple[str, str | None]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    root = tmp_path / "root"
    driver = start("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    deadline = time.monotonic() + 60
    while not list(root.glob("download/*/attempts/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGSTOP)
    # What another host's build does once the lease has not been renewed for long enough: it takes the ROOT over.
    lease = json.loads((root / "lease.json").read_text())
    taken = {**lease, "holder": "another", "epoch": lease["epoch"] + 1, "pid": os.getpid(), "host": "elsewhere"}
    (root / "lease.json").write_text(json.dumps(taken))
    driver.send_signal(signal.SIGCONT)
    _, errors = driver.communicate(timeout=90)
    assert driver.returncode != 0
    assert "another" in errors
    assert "Traceback" not in errors
    assert json.loads((root / "lease.json").read_text())["holder"] == "another"
    (root / "lease.json").unlink()
    assert job("build", "--recipe", recipe, "--input", web.list_path, "--output", root).returncode == 0
    assert endings(root) == clean


@pytest.mark.parametrize("point", ["mid-pool", "before-publish@download"])
def test_a_full_disk_is_one_line_and_loses_nothing(
    web: Web, clean: dict[tuple[str, int], tuple[str, str | None]], tmp_path: Path, point: str
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    root = tmp_path / "root"
    fault = {"PAIRMILL_FAULT": f"{point}:enospc:{tmp_path / 'full'}"}
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root, env=fault)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    again = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    assert again.returncode == 0, again.stderr
    assert endings(root) == clean


def test_a_poison_image_ends_its_own_row_and_no_url_is_hit_more_than_twice(
    web: Web, clean: dict[tuple[str, int], tuple[str, str | None]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    first = tmp_path / "first"
    assert job("build", "--recipe", recipe, "--input", web.list_path, "--output", first).returncode == 0
    poison = next(row for row in table(first, "outcomes").to_pylist() if row["status"] == "ok")
    hits = web.hits()
    root = tmp_path / "root"
    env = {"PAIRMILL_POISON_SHA256": poison["sha256"]}
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root, env=env)
    assert done.returncode == 0, done.stderr
    bodies = {row["sha256"]: row for row in table(root, "outcomes").to_pylist() if row["reason"] == "decoder_crash"}
    assert set(bodies) == {poison["sha256"]}
    crashed = {
        (row["source"], row["source_row"])
        for row in table(root, "outcomes").to_pylist()
        if row["reason"] == "decoder_crash"
    }
    plain = endings(first)
    assert {row: ending for row, ending in endings(root).items() if row not in crashed} == {
        row: ending for row, ending in plain.items() if row not in crashed
    }
    plain_urls = {
        row["url"] for row in table(first, "outcomes").to_pylist() if row["status"] == "ok" and row["attempts"] == 1
    }
    extra = more_hits(hits, web.hits())
    assert max(extra.get(url, 0) for url in plain_urls) <= 2
