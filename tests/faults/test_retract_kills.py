"""A retraction killed at any point: nothing withdrawn is shown as kept, and running it or a build again finishes it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.retract import main
from pipeline.retract.run import finish
from pipeline.retract.tombstone import read_retractions, unfinished_retraction
from pipeline.storage import LocalStore, Store, open_store
from pipeline.verify.run import verify
from tests import handmade
from tests.handmade import HandmadeRoot
from tests.integration.test_retract import everything, of, table
from tests.running import job
from tests.traces_left import needles, traces

BEFORE_THE_INTENT = ("before-intent", "mid-intent")
POINTS = (
    "after-intent",
    "mid-publish@shard", "before-record@shard", "after-record@shard",
    "after-record@select", "before-record@dedupe",
    "mid-publish@download", "after-record@download",
    "before-record@ingest", "before-publication",
    "before-latest@outcomes", "before-views",
    "mid-removal@download", "before-receipt",
)  # fmt: skip


IN_S3 = ("mid-publish@shard", "before-record@download", "before-latest@outcomes", "mid-removal@download")


def made_in(store: Store, tmp_path: Path, rows: int = 45) -> HandmadeRoot:
    made = HandmadeRoot(store)
    made.batch(rows)
    made.finish()
    (tmp_path / "list.txt").write_text(f"uid:{of(table(made.store, 'outcomes'), 11)['uid']}\nhost3.test\n")
    return made


@pytest.fixture
def made(tmp_path: Path) -> HandmadeRoot:
    return made_in(LocalStore(tmp_path / "root"), tmp_path)


def arguments(store: Store, tmp_path: Path) -> list[str]:
    return [store.uri, "--list", str(tmp_path / "list.txt"), "--why", "the owner asked"]


def kill(store: Store, tmp_path: Path, point: str) -> None:
    env = {"PAIRMILL_FAULT": f"{point}:kill:{tmp_path / 'killed'}"}
    done = job("retract", *arguments(store, tmp_path), env=env)
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "killed").exists()


def breaches(store: Store) -> list[str]:
    return [line for check in verify(store).checks for line in check.first]


def content(store: Store) -> Iterator[tuple[str, bytes]]:
    """What readers see, whatever the attempts were called: the dataset, and the published tables' files."""
    for path, data in sorted(everything(store).items()):
        if "/dataset/" in path or (path.startswith("tables/") and path.endswith(".parquet")):
            yield path.partition("/v")[0] + path.rpartition("/")[2], data


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_what_the_same_command_finishes(made: HandmadeRoot, tmp_path: Path, point: str) -> None:
    finishes(made.store, tmp_path, point)


@pytest.mark.parametrize("point", IN_S3)
def test_a_kill_in_s3_leaves_what_the_same_command_finishes(s3: str, tmp_path: Path, point: str) -> None:
    finishes(made_in(open_store(s3), tmp_path, rows=20).store, tmp_path, point)


def finishes(store: Store, tmp_path: Path, point: str) -> None:
    before = table(store, "outcomes")
    everywhere = needles(store, before)
    kill(store, tmp_path, point)
    assert unfinished_retraction(store)
    assert breaches(store) == [
        "retraction 0001 is unfinished; run jobs.retract or jobs.build again to finish it"
    ]  # fmt: skip
    assert main(arguments(store, tmp_path)) == 0
    assert len(read_retractions(store)) == 1
    left = table(store, "outcomes")
    assert 0 < len(left) < len(before)
    stays = set(needles(store, left))
    assert traces(store, [value for value in everywhere if value not in stays]) == []
    assert breaches(store) == []


@pytest.mark.parametrize("point", BEFORE_THE_INTENT)
def test_a_kill_before_the_intent_changes_nothing(made: HandmadeRoot, tmp_path: Path, point: str) -> None:
    store = made.store
    before = {path: data for path, data in everything(store).items() if not path.startswith("lease")}
    kill(store, tmp_path, point)
    after = everything(store)
    assert {path: data for path, data in after.items() if path in before} == before
    assert set(after) - set(before) <= {"lease.json", "retractions/0001.tombstone", "retractions/fence"}
    assert breaches(store) == []
    assert main(arguments(store, tmp_path)) == 0
    assert breaches(store) == []


def test_a_killed_and_finished_retraction_leaves_the_same_data_as_one_that_was_not(tmp_path: Path) -> None:
    made = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        one = HandmadeRoot(LocalStore(tmp_path / name / "root"))
        one.batch(45)
        one.finish()
        (tmp_path / name / "list.txt").write_text("host3.test\n")
        made.append(one.store)
    assert main(arguments(made[0], tmp_path / "whole")) == 0
    kill(made[1], tmp_path / "killed", "mid-publish@shard")
    assert main(arguments(made[1], tmp_path / "killed")) == 0
    shards = [{path: data for path, data in content(store) if "_stats" not in path and "dataset.json" not in path
               and "outcomes" not in path} for store in made]  # fmt: skip
    assert shards[0] == shards[1]


@pytest.mark.parametrize("moved", [1, 2, 3, 7, 12])
def test_loose_files_that_were_half_moved_up_are_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    settings = handmade.RECIPE.shard.model_copy(update={"output_format": "files", "number_sample_per_shard": 16})
    monkeypatch.setattr(handmade, "RECIPE", handmade.RECIPE.model_copy(update={"shard": settings}))
    made = HandmadeRoot(LocalStore(tmp_path / "root"))
    made.batch(25)
    made.finish()
    (tmp_path / "list.txt").write_text("host3.test\nhost1.test\n")
    shutil.copytree(tmp_path / "root", tmp_path / "finished")
    assert main(arguments(LocalStore(tmp_path / "finished"), tmp_path)) == 0
    kill(made.store, tmp_path, "mid-publish@shard")
    shard = Path(made.folders["shard"].base) / "dataset/00000"
    # The order in which a commit publishes: sample by sample, image, JSON, text.
    order = sorted((tmp_path / "finished" / shard).iterdir(), key=lambda path: (path.stem, path.suffix != ".jpg", path))
    for path in order[:moved]:
        shutil.copyfile(path, tmp_path / "root" / shard / path.name)
    assert main(arguments(made.store, tmp_path)) == 0
    assert breaches(made.store) == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "root" / shard).iterdir()} == {
        path.name: path.read_bytes() for path in order
    }


def test_whoever_comes_next_finishes_it_without_the_list(made: HandmadeRoot, tmp_path: Path) -> None:
    kill(made.store, tmp_path, "after-record@select")
    (tmp_path / "list.txt").unlink()
    assert finish(made.store, lambda: None)
    assert breaches(made.store) == []
