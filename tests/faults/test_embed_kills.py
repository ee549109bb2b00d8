"""Kills in the embed stage: afterwards one row for each due pair, with the vectors of a run that nothing disturbed."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.embed.stage import embed_due
from pipeline.units import StageFolder
from schemas.recipe import Recipe, parse_recipe
from tests.embed_fixture import ENCODER, Plain, embed, embeddings
from tests.pool_fixture import Pool, curate, picture, uid_of
from tests.running import REPOSITORY

POISON = 13

RUN = """
import sys
from pathlib import Path
from tests.faults.test_embed_kills import folders_of, pool_of, recipe
from tests.embed_fixture import embed
pool = pool_of(Path(sys.argv[1]))
for result in embed(pool.store, folders_of(pool), recipe(), sys.argv[2], actors=int(sys.argv[3])):
    print(result["unit"], result["state"], flush=True)
"""


ON_TWO_NODES = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tests.faults.test_embed_kills import Slow, folders_of, pool_of, recipe
from tests.embed_fixture import embed
root = Path(sys.argv[1])
pool = pool_of(root)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()
ray.init(cluster.address, log_to_driver=False)

def kill() -> None:
    while not (root / "node").exists():
        time.sleep(0.05)
    name = (root / "node").read_text()
    cluster.remove_node(next(node for node in nodes if node.node_id == name), allow_graceful=False)

threading.Thread(target=kill, daemon=True).start()
slow = Slow(root / "node")
for result in embed(pool.store, folders_of(pool), recipe(), "first", plain=slow, decoders=1, actors=1):
    print(result["unit"], result["state"], flush=True)
"""


class Slow(Plain):
    """Takes its time, so that something can happen meanwhile, and says on which node it is."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self._place = place

    def encode_images(self, pixels: Any) -> Any:
        import ray

        if not self._place.exists():
            self._place.with_suffix(".part").write_text(ray.get_runtime_context().get_node_id())
            self._place.with_suffix(".part").rename(self._place)
        time.sleep(1)
        return super().encode_images(pixels)


def recipe() -> Recipe:
    return parse_recipe({"dedupe": {"levels": {}}, "embed": {"batch_size": 4}}, "test")


def pool_of(root: Path) -> Pool:
    """30 pairs in three units, curated; or the pool that is there."""
    pool = Pool(root)
    if not pool.folder.generations():
        for unit in range(3):
            pool.unit(f"0001-000000{unit}", range(10 * unit, 10 * unit + 10))
        curate(pool, recipe())
    return pool


def folders_of(pool: Pool) -> dict[str, StageFolder]:
    places = {"download": "d0", "dedupe": "d0", "embed/plain": "e0"}
    return {key: StageFolder(pool.store, key.split("/")[0], place) for key, place in places.items()}


def run(root: Path, name: str, fault: str = "", actors: int = 0) -> Any:
    env = {**os.environ, **({"PAIRMILL_FAULT": fault} if fault else {})}
    command = [sys.executable, "-c", RUN, str(root), name, str(actors)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=env, timeout=120, check=False, capture_output=True, text=True
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """uid → row of a run without a fault."""
    pool = pool_of(tmp_path_factory.mktemp("undisturbed"))
    folders = folders_of(pool)
    embed(pool.store, folders, recipe())
    found = embeddings(folders["embed/plain"])
    assert len(found) == 30
    return found


@pytest.mark.parametrize("point", ["mid-embed@0001-0000001", "before-publish", "before-record", "after-record"])
def test_a_killed_driver_resumes_to_the_same_vectors(
    tmp_path: Path, undisturbed: dict[str, dict[str, Any]], point: str
) -> None:
    pool = pool_of(tmp_path / "root")
    assert run(tmp_path / "root", "first", f"{point}:kill:{tmp_path / 'killed'}").returncode == -9
    folders = folders_of(pool)
    committed = folders["embed/plain"].generations()
    due = embed_due(pool.store, recipe(), folders, ENCODER)
    assert {unit["unit"] for unit in due}.isdisjoint(committed)
    plain = Plain()
    embed(pool.store, folders, recipe(), "second", plain=plain)
    assert sum(shape[0] for side, shape in plain.batches if side == "image") == 10 * len(due)
    assert embeddings(folders["embed/plain"]) == undisturbed
    assert embed_due(pool.store, recipe(), folders, ENCODER) == []


def test_a_killed_actor_takes_no_row_along(tmp_path: Path, undisturbed: dict[str, dict[str, Any]]) -> None:
    pool = pool_of(tmp_path / "root")
    done = run(tmp_path / "root", "first", f"mid-embed@0001-0000001:kill:{tmp_path / 'killed'}", actors=1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    folder = folders_of(pool)["embed/plain"]
    assert embeddings(folder) == undisturbed
    assert set(folder.generations().values()) == {0}


def test_a_node_that_is_gone_takes_no_row_along(tmp_path: Path, undisturbed: dict[str, dict[str, Any]]) -> None:
    pool = pool_of(tmp_path / "root")
    command = [sys.executable, "-c", ON_TWO_NODES, str(tmp_path / "root")]
    done = subprocess.run(command, cwd=REPOSITORY, timeout=120, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deferred" not in done.stdout
    folder = folders_of(pool)["embed/plain"]
    assert embeddings(folder) == undisturbed
    marks = [path.name for path in (tmp_path / "root/embed/e0/attempts").iterdir()]
    assert any(name.endswith(".0.2") for name in marks), "a unit was begun twice"


def test_an_image_that_kills_its_decoder_fails_alone(
    tmp_path: Path, undisturbed: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(tmp_path / "root")
    poison = hashlib.sha256(picture(POISON)).hexdigest()
    monkeypatch.setenv("PAIRMILL_FAULT", f"decode@{poison}:kill:{tmp_path / 'killed'}")
    folders = folders_of(pool)
    embed(pool.store, folders, recipe(), decoders=1)
    found = embeddings(folders["embed/plain"])
    crashed = found.pop(uid_of(POISON))
    assert (crashed["status"], crashed["reason"]) == ("failed", "decoder_crash")
    assert "SIGKILL" in crashed["detail"]
    assert found == {uid: row for uid, row in undisturbed.items() if uid != uid_of(POISON)}


def test_a_unit_whose_workers_keep_dying_ends_as_internal(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "root")
    folders = folders_of(pool)
    for _ in range(6):
        folders["embed/plain"].begin("0001-0000002", 0, "run", alone=True)
    embed(pool.store, folders, recipe(), "run")
    failed = {row["uid"]: row["reason"] for row in embeddings(folders["embed/plain"]).values() if row["reason"]}
    assert failed == dict.fromkeys(map(uid_of, range(20, 30)), "internal")


def test_a_killed_run_leaves_no_child_behind(tmp_path: Path) -> None:
    pool_of(tmp_path / "root")
    run(tmp_path / "root", "first", f"mid-embed:kill:{tmp_path / 'killed'}")
    assert (tmp_path / "killed").exists()
    deadline = time.monotonic() + 20  # they end once they see that nobody asks any more
    while left := [path for path in Path("/proc").glob("[0-9]*/environ") if str(tmp_path).encode() in _read(path)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
