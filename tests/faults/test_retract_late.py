"""A worker whose driver is dead and that goes on after a retraction commits nothing that was withdrawn."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.demo.web import Web
from jobs.retract import main
from pipeline.dedupe.stage import run_dedupe
from pipeline.rounds import open_round, read_rounds
from pipeline.select.stage import run_select
from pipeline.shard.plan import next_round
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore, Store, open_store
from pipeline.units import StageFolder
from pipeline.verify.run import verify
from tests.handmade import HandmadeRoot
from tests.integration.test_retract import of, table
from tests.late_worker import HASHES
from tests.running import REPOSITORY, job, start, write_recipe
from tests.traces_left import needles, traces

POINTS = ("before-publish", "mid-publish", "before-record", "after-check")
"""Of a commit. The last, between the look at the fence and the record's creation, is one request in S3."""


@pytest.fixture(params=[*POINTS, "s3: before-record"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, str]:
    """A ROOT's store, and the point at which a worker on it stops."""
    point = str(request.param)
    root = request.getfixturevalue("s3") if point.startswith("s3: ") else f"{tmp_path}/root"
    return open_store(root), point.removeprefix("s3: ")


@contextmanager
def stopped(store: Store, tmp_path: Path, stage: str, unit: str, point: str) -> Iterator[Callable[[], tuple[int, str]]]:
    """A worker stopped at a point of its commit; what is given lets it go on, to its exit code and last words."""
    where = point if point == "after-check" else f"{point}@{stage}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.late_worker", store.uri, stage, unit],
        cwd=REPOSITORY, env={**os.environ, "PAIRMILL_FAULT": f"{where}:stop:{tmp_path / 'stopped'}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def state() -> str:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0]

    def go_on() -> tuple[int, str]:
        process.send_signal(signal.SIGCONT)
        out, errors = process.communicate(timeout=60)
        return process.returncode, out + errors

    try:
        deadline = time.monotonic() + 60
        while state() != "T" and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert state() == "T", process.communicate(timeout=10)
        yield go_on
    finally:
        process.kill()
        process.communicate()


def withdraw(store: Store, tmp_path: Path, *lines: str) -> None:
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    assert main([store.uri, "--list", str(tmp_path / "list.txt"), "--why", "the owner asked"]) == 0


def breaches(store: Store) -> list[str]:
    return [line for check in verify(store).checks for line in check.first]


def refused(code: int, told: str) -> bool:
    return code != 0 and ("a retraction has begun since" in told or "No such file" in told)


def test_a_late_download_commits_nothing(place: tuple[Store, str], tmp_path: Path) -> None:
    store, point = place
    made = HandmadeRoot(store)
    made.batch(20)
    made.finish()
    host = of(table(store, "outcomes"), 11)["url"].split("/")[2]
    with stopped(store, tmp_path, "download", "0001-0000009", point) as go_on:
        withdraw(store, tmp_path, host)
        assert refused(*go_on())
    assert "0001-0000009" not in made.folders["download"].generations()
    assert not [path for path, _ in store.files("download") if "0001-0000009" in path and "/attempts/" not in path]
    assert store.unfinished() == []


@pytest.mark.parametrize("point", POINTS)
def test_late_hashes_commit_nothing(tmp_path: Path, point: str) -> None:
    store = LocalStore(tmp_path / "root")
    made = HandmadeRoot(store)
    made.batch(20)
    made.finish()
    row = of(table(store, "outcomes"), 11)
    own = needles(store, [row])
    with stopped(store, tmp_path, "hashes", "0001-0000000", point) as go_on:
        withdraw(store, tmp_path, f"uid:{row['uid']}")
        assert refused(*go_on())
    assert not StageFolder(store, "hashes", HASHES).generations()
    stays = set(needles(store, table(store, "outcomes")))
    assert traces(store, [value for value in own if value not in stays]) == []
    assert breaches(store) == []


@pytest.mark.parametrize("point", POINTS)
def test_a_late_shard_commits_nothing_and_the_next_build_makes_it_anew(tmp_path: Path, point: str) -> None:
    made = HandmadeRoot(LocalStore(tmp_path / "root"))
    made.batch(45)
    made.finish()
    made.batch(45)
    made.complete("ingest", "download")
    store, folders, stop = made.store, made.folders, StopFlag(made.store.uri, "run")
    for stage, run in (("dedupe", run_dedupe), ("select", run_select)):
        run(store, made.recipe, folders, folders[stage], "run", stop, lambda result: None)
        made.complete(stage)
    rounds = read_rounds(folders["shard"])
    opened = next_round(made.recipe.shard, folders["download"], folders["select"], rounds, "dead")
    assert opened
    open_round(folders["shard"], opened)
    rows = [row for row in outcomes(folders["download"]) if row["batch"] == "0002" and row["status"] == "ok"]
    gone = rows[0]
    stays = set(needles(store, [row for row in rows if row["uid"] != gone["uid"]]))
    wanted = [value for value in needles(store, [gone]) if value not in stays]
    with stopped(store, tmp_path, "shard", str(opened.units[0]["unit"]), point) as go_on:
        withdraw(store, tmp_path, f"uid:{gone['uid']}")
        assert traces(store, wanted) == []
        made.finish()
        whole = {path: store.read(path) for path, _ in store.files(f"{folders['shard'].base}/dataset")}
        code, told = go_on()
        # Who finds the unit committed has nothing to publish.
        assert refused(code, told) or told.startswith("done")
    assert {path: store.read(path) for path, _ in store.files(f"{folders['shard'].base}/dataset")} == whole
    assert traces(store, wanted) == []
    assert breaches(store) == []


def outcomes(folder: StageFolder) -> list[dict[str, object]]:
    return [
        row
        for record in folder.iter_records()
        for entry in record.files
        if entry.table == "outcomes"
        for row in pq.read_table(pa.BufferReader(folder.store.read(f"{folder.base}/{entry.path}"))).to_pylist()
    ]


def test_a_run_that_begins_after_the_retraction_commits(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path / "root"))
    made.batch(20)
    made.finish()
    withdraw(made.store, tmp_path, "host3.test")
    done = subprocess.run(
        [sys.executable, "-m", "tests.late_worker", made.store.uri, "hashes", "0001-0000000"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr


def stopped_by(mark: str) -> list[int]:
    """Processes that stand still and were told of `mark` by their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(") ")[2][0]
            if state == "T" and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_build_s_own_worker_that_outlives_its_driver_commits_nothing(tmp_path: Path) -> None:
    root, mark = tmp_path / "root", str(tmp_path / "stopped")
    with Web(tmp_path / "web", rows=300, seed=5) as web:
        recipe = write_recipe(tmp_path / "r.yaml", web.recipe, ray={"pools": {"download": 1}})
        fault = {"PAIRMILL_FAULT": f"mid-pool:stop:{mark}"}
        driver = start("build", "--recipe", recipe, "--input", web.list_path, "--output", root, env=fault)
        workers: list[int] = []
        try:
            deadline = time.monotonic() + 120
            while not (workers := stopped_by(mark)) and driver.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            assert workers
        finally:
            driver.kill()
            driver.communicate()
        under_way = {path.name.rsplit(".", 2)[0] for path in root.glob("download/*/attempts/*")}
        under_way -= {path.name.rsplit(".", 2)[0] for path in root.glob("download/*/units/*")}
        pairs = [row for unit in under_way for path in root.glob(f"ingest/*/pairs/{unit}.*")
                 for row in pq.read_table(path).to_pylist()]  # fmt: skip
        row = pairs[0]
        wanted = [row["uid"].encode(), row["url"].encode()]
        withdraw(LocalStore(root), tmp_path, f"uid:{row['uid']}")
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [unit for unit in under_way if list(root.glob(f"download/*/units/{unit}.*"))]
        assert traces(LocalStore(root), wanted) == []
        again = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
        assert again.returncode == 0, again.stderr
        assert traces(LocalStore(root), wanted) == []
        assert breaches(LocalStore(root)) == []
