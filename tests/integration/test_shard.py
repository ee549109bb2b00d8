"""From a pool to a dataset: what shard writes, over rounds, retries, kills and worker counts."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoreError
from pipeline.runner import Result
from pipeline.shard.stage import ShardWorker, expected, run_shard
from pipeline.stop import StopFlag
from pipeline.storage import Store, open_store
from pipeline.units import MAX_LONE_DEATHS, StageFolder
from schemas.recipe import Recipe, parse_recipe
from tests.fault_proxy import FaultProxy, Rule
from tests.pool_fixture import Pool, caption_of, curate, exif_of, picture, uid_of, url_of
from tests.running import REPOSITORY, snapshot

UNITS = {f"0001-{number:07d}": range(number * 30, number * 30 + 30) for number in range(4)}
FAILED = {3, 31, 32, 95}
OK = sorted(set(range(120)) - FAILED, key=uid_of)


def recipe(**shard: object) -> Recipe:
    return parse_recipe({"shard": {"number_sample_per_shard": 50, "oom_shard_count": 3, **shard}}, "test")


def make_pool(root: Path | Store) -> Pool:
    pool = Pool(root)
    for name, numbers in UNITS.items():
        pool.unit(name, numbers, failed=FAILED)
    curate(pool)
    return pool


def shard(pool: Pool, asked: Recipe | None = None, run: str = "run", stop: StopFlag | None = None) -> list[Result]:
    """Run the stage as a build does; returns the results of its units."""
    folder, results = own(pool), list[Result]()
    folders = {**curate(pool, run=run), "shard": folder}
    stop = stop or StopFlag(pool.store.uri, run)
    run_shard(pool.store, asked or recipe(), folders, folder, run, stop, results.append)
    return results


def own(pool: Pool) -> StageFolder:
    return StageFolder(pool.store, "shard", "s0")


def dataset(root: Path) -> Path:
    return root / "shard" / "s0" / "dataset"


def digests(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dataset(root).iterdir()}


def members(tar: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as opened:
        return [(info.name, opened.extractfile(info).read()) for info in opened]  # type: ignore[union-attr]


def numbers_of(root: Path, name: str) -> list[int]:
    """Which rows of the pool a shard holds, in order, by their URLs."""
    urls = pq.read_table(dataset(root) / f"{name}.parquet")["url"].to_pylist()
    return [int(url.rpartition("/")[2].removesuffix(".jpg")) for url in urls]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ROOT whose four units went to shards in this process, undisturbed."""
    root = tmp_path_factory.mktemp("built")
    shard(make_pool(root))
    return root


def test_every_ok_row_is_one_sample_in_uid_order_and_shards_are_full(built: Path) -> None:
    assert json.loads((dataset(built) / "sizes.json").read_text()) == {"000.tar": 50, "001.tar": 50, "002.tar": 16}
    assert [number for name in ("000", "001", "002") for number in numbers_of(built, name)] == OK


def test_a_sample_is_an_image_its_json_and_its_caption_in_that_order(built: Path) -> None:
    found = members(dataset(built) / "001.tar")
    keys = [f"001{place:02d}" for place in range(50)]
    assert [name for name, _ in found] == [f"{key}.{ending}" for key in keys for ending in ("jpg", "json", "txt")]
    for place, number in enumerate(OK[50:100]):
        image, described, caption = (data for _, data in found[3 * place : 3 * place + 3])
        assert image == picture(number)
        assert caption.decode() == caption_of(number)
        assert json.loads(described) == {
            "caption": caption_of(number), "url": url_of(number), "key": keys[place], "status": "success",
            "error_message": None, "width": 16 + number % 5, "height": 16, "original_width": 640,
            "original_height": 480, "exif": exif_of(number) or "{}", "sha256": hashlib.sha256(image).hexdigest(),
            "uid": uid_of(number),
        }  # fmt: skip


def test_the_parquet_file_says_what_the_json_members_say(built: Path) -> None:
    rows = pq.read_table(dataset(built) / "002.parquet").to_pylist()
    described = [json.loads(data) for name, data in members(dataset(built) / "002.tar") if name.endswith("json")]
    ours = ("clip_score", "weight")
    assert [{name: value for name, value in row.items() if name not in ours} for row in rows] == described
    assert all((row["clip_score"], row["weight"]) == (None, 1.0) for row in rows)


def test_dataset_json_tells_what_the_dataset_is_made_of(built: Path) -> None:
    told = json.loads((dataset(built) / "dataset.json").read_text())
    assert (told["samples"], told["shards"], told["batches"]) == (116, 3, ["0001"])
    assert told["counts"] == {"ok": {"": 116}, "failed": {"timeout": 4}}
    assert told["fingerprints"] == {"download": "d0", "dedupe": "d0", "select": "s0", "shard": "s0"}
    assert told["rounds"] == [{"round": "0001", "units_read": 4, "shards": 3, "samples": 116}]
    assert told["recipe"]["shard"]["number_sample_per_shard"] == 50


def test_running_again_touches_nothing(built: Path) -> None:
    before = snapshot(built)
    assert shard(Pool(built), run="again") == []
    assert snapshot(built) == before


def test_plan_tells_samples_and_shards_before_and_after(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    assert expected(recipe(), curate(pool), own(pool)) == {"samples": 116, "shards": 3}
    shard(pool)
    assert expected(recipe(), curate(pool), own(pool)) == {"samples": 0, "shards": 0}


def test_windows_stride_over_the_units_and_shards_run_on_across_them(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    names = [f"0001-{number:07d}" for number in range(70)]
    for number, name in enumerate(names):
        pool.unit(name, range(number * 2, number * 2 + 2), side=2)
    shard(pool)
    # Seventy units are two windows of 64 at most: the even ones, then the odd ones, each in uid order.
    windows = [[number for unit in range(first, 70, 2) for number in (2 * unit, 2 * unit + 1)] for first in (0, 1)]
    wanted = [number for window in windows for number in sorted(window, key=uid_of)]
    assert numbers_of(tmp_path, "000") + numbers_of(tmp_path, "001") + numbers_of(tmp_path, "002") == wanted


def test_members_have_the_extension_of_their_bytes(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    for number, extension in enumerate(("jpg", "png", "webp")):
        pool.unit(f"0001-{number:07d}", range(number * 5, number * 5 + 5), extension=extension)
    shard(pool)
    endings = {"jpg": 0, "png": 0, "webp": 0, "json": 0, "txt": 0}
    for name, data in members(dataset(tmp_path) / "000.tar"):
        ending = name.rpartition(".")[2]
        endings[ending] += 1
        assert ending in ("json", "txt") or data in [picture(number, ending) for number in range(15)]
    assert endings == {"jpg": 5, "png": 5, "webp": 5, "json": 15, "txt": 15}


def test_kept_input_columns_reach_parquet_and_json_also_where_a_batch_lacks_them(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(4), kept={"license": "cc"})
    pool.unit("0002-0000000", range(4, 8), kept={"width": "w"})
    shard(pool)
    table = pq.read_table(dataset(tmp_path) / "000.parquet")
    assert table.column_names[:3] == ["license", "src_width", "caption"]
    numbers = numbers_of(tmp_path, "000")
    assert table["license"].to_pylist() == [f"cc{number}" if number < 4 else None for number in numbers]
    assert table["src_width"].to_pylist() == [None if number < 4 else f"w{number}" for number in numbers]


def test_a_new_batch_adds_shards_and_leaves_the_old_ones_as_they_are(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    shard(pool)
    before = snapshot(dataset(tmp_path))
    pool.unit("0002-0000000", range(500, 560), failed={501})
    shard(pool, run="second")
    after = snapshot(dataset(tmp_path))
    assert {name: after[name] for name in before if name not in ("sizes.json", "dataset.json")} == {
        name: entry for name, entry in before.items() if name not in ("sizes.json", "dataset.json")
    }
    sizes = json.loads((dataset(tmp_path) / "sizes.json").read_text())
    assert sizes == {"000.tar": 50, "001.tar": 50, "002.tar": 16, "003.tar": 50, "004.tar": 9}
    added = sorted(set(range(500, 560)) - {501}, key=uid_of)
    assert numbers_of(tmp_path, "003") + numbers_of(tmp_path, "004") == added


def test_a_retry_adds_only_the_rows_it_cured(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    shard(pool)
    pool.retry("0001-0000001", {32})
    pool.unit("0002-0000000", range(500, 503))
    shard(pool, run="second")
    pool.retry("0001-0000001", {31})
    shard(pool, run="third")
    assert numbers_of(tmp_path, "003") == sorted([32, 500, 501, 502], key=uid_of)
    assert numbers_of(tmp_path, "004") == [31]


def test_a_new_generation_without_a_new_image_opens_no_round(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    shard(pool)
    pool.retry("0001-0000001", set())
    assert shard(pool, run="second") == []
    assert len(list((tmp_path / "shard/s0/rounds").iterdir())) == 1


def test_a_pool_without_an_image_gives_an_empty_dataset_that_says_so(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(3), failed={0, 1, 2})
    assert shard(pool) == []
    assert json.loads((dataset(tmp_path) / "sizes.json").read_text()) == {}
    assert json.loads((dataset(tmp_path) / "dataset.json").read_text())["samples"] == 0


def test_a_stopped_run_takes_no_unit_and_the_next_one_goes_on(tmp_path: Path, built: Path) -> None:
    pool = make_pool(tmp_path)
    stop = StopFlag(str(tmp_path), "run")
    stop.raise_flag()
    assert shard(pool, stop=stop) == []
    assert not dataset(tmp_path).exists()
    shard(pool, run="second")
    assert digests(tmp_path) == digests(built)


def test_a_changed_pool_image_fails_its_shard_by_name_and_no_other(tmp_path: Path, built: Path) -> None:
    pool = make_pool(tmp_path)
    (path,) = tmp_path.glob("download/d0/pool/0001-0000002.*")
    whole = path.read_bytes()
    victim = picture(70)
    path.write_bytes(whole.replace(victim, victim[:-1] + b"X"))
    with pytest.raises(StoreError, match=rf"{path.name}: the image of {uid_of(70)} "):
        shard(pool)
    assert len(own(pool).generations()) == 2
    assert not (dataset(tmp_path) / "sizes.json").exists()
    path.write_bytes(whole)
    shard(pool, run="second")
    assert digests(tmp_path) == digests(built)


def test_a_unit_that_killed_its_lone_workers_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    stop = StopFlag(str(tmp_path), "run")
    shard(pool, stop=stop)
    folder = StageFolder(pool.store, "shard", "s1")
    rounds = "shard/{}/rounds/0001.json"
    pool.store.create(rounds.format("s1"), pool.store.read(rounds.format("s0")))
    for _ in range(MAX_LONE_DEATHS):
        folder.begin("0001-0000000", 0, "run", alone=True)
    worker = ShardWorker(str(tmp_path), recipe(), {"download": "d0", "select": "s0", "shard": "s1"}, "run")
    unit = {"unit": "0001-0000000", "generation": 0, "rows": 50}
    with pytest.raises(StoreError, match=r"5 workers died making it alone.*attempts/0001-0000000"):
        worker.run(unit, alone=True)


def test_a_unit_whose_attempt_died_waits_for_the_lone_pass(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    shard(pool)
    pool.store.delete("shard/s0/units/0001-0000001.0.json")
    before = snapshot(dataset(tmp_path))
    worker = ShardWorker(str(tmp_path), recipe(), {"download": "d0", "select": "s0", "shard": "s0"}, "second")
    unit = {"unit": "0001-0000001", "generation": 0, "rows": 50}
    assert worker.run(unit, alone=False)["state"] == "deferred"
    assert snapshot(dataset(tmp_path)) == before
    assert worker.run(unit, alone=True)["state"] == "done"


def test_output_as_parquet_holds_the_images_in_a_column_named_by_their_format(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    shard(pool, recipe(output_format="parquet"))
    assert json.loads((dataset(tmp_path) / "sizes.json").read_text()) == {
        "000.parquet": 50, "001.parquet": 50, "002.parquet": 16,
    }  # fmt: skip
    table = pq.read_table(dataset(tmp_path) / "001.parquet")
    assert table["jpg"].to_pylist() == [picture(number) for number in OK[50:100]]
    assert not list(dataset(tmp_path).glob("*.tar"))


def test_output_as_files_holds_what_the_tars_hold(tmp_path: Path, built: Path) -> None:
    shard(make_pool(tmp_path), recipe(output_format="files"))
    found = sorted((path.name, path.read_bytes()) for path in (dataset(tmp_path) / "001").iterdir())
    assert found == sorted(members(dataset(built) / "001.tar"))
    assert digests_of_parquet(tmp_path) == digests_of_parquet(built)
    assert json.loads((dataset(tmp_path) / "sizes.json").read_text()) == {"000": 50, "001": 50, "002": 16}


def digests_of_parquet(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dataset(root).glob("*.parquet")}


RUN = """
import sys
from tests.integration.test_shard import recipe, shard
from tests.pool_fixture import Pool
root, workers, run = sys.argv[1:]
if workers != "0":
    import ray
    from pipeline.shard import stage
    stage.FEW = 0
    ray.init(address="local", num_cpus=int(workers), include_dashboard=False, log_to_driver=False)
shard(Pool(__import__("pathlib").Path(root)), recipe(), run)
"""


def run_process(root: Path, workers: int = 0, run: str = "run", fault: str | None = None) -> int:
    """The stage in a process of its own: in that process, or on Ray with as many workers. Returns its exit code."""
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"} | ({"PAIRMILL_FAULT": f"{fault}:{root}/fault"} if fault else {})
    command = [sys.executable, "-c", RUN, str(root), str(workers), run]
    return subprocess.run(command, cwd=REPOSITORY, env=env, timeout=120, check=False).returncode


@pytest.mark.parametrize("point", ["mid-shard", "before-publish", "before-record", "after-record"])
def test_a_run_killed_at_any_point_is_finished_to_the_same_bytes(tmp_path: Path, built: Path, point: str) -> None:
    pool = make_pool(tmp_path)
    assert run_process(tmp_path, fault=f"{point}@0001-0000001:kill") == -9
    assert (tmp_path / "fault").exists()
    # What comes in between belongs to the next round, not to the one that was killed.
    pool.unit("0002-0000000", range(500, 505))
    shard(pool, run="second")
    made = digests(tmp_path)
    assert {name: digest for name, digest in made.items() if name[:3] in ("000", "001", "002")} == {
        name: digest for name, digest in digests(built).items() if name[:3] in ("000", "001", "002")
    }
    assert numbers_of(tmp_path, "003") == sorted(range(500, 505), key=uid_of)


def test_two_workers_on_ray_one_of_them_killed_write_the_same_bytes_as_one_process(tmp_path: Path, built: Path) -> None:
    make_pool(tmp_path)
    assert run_process(tmp_path, workers=2, fault="mid-shard@0001-0000001:kill") == 0
    assert (tmp_path / "fault").exists()
    assert digests(tmp_path) == digests(built)


def test_a_root_in_s3_whose_store_fails_one_request_in_five_holds_the_same_bytes(
    s3: str, s3_proxy: FaultProxy, built: Path
) -> None:
    store = open_store(s3)
    pool = make_pool(store)
    s3_proxy.rules = [
        Rule("reset", share=0.05), Rule("cut", method="GET", share=0.05), Rule(500, share=0.04),
        Rule(503, after=True, share=0.04), Rule("reset", after=True, share=0.04),
    ]  # fmt: skip
    shard(pool)
    assert s3_proxy.faults > 10
    s3_proxy.rules = []
    for path in dataset(built).iterdir():
        assert store.read(f"shard/s0/dataset/{path.name}") == path.read_bytes(), path.name
