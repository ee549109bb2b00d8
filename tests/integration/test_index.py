"""shard.mode index: a dataset that says where its images lie in the pool, and holds none of their bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.clean import main as clean_main
from jobs.retract import main as retract_main
from jobs.show import main as show_main
from jobs.trace import main as trace_main
from pipeline.check import check_recipe
from pipeline.errors import InputError
from pipeline.shard.index import Index
from pipeline.shard.pool import PoolMismatchError
from pipeline.storage import LocalStore, open_store
from pipeline.verify.run import verify
from schemas.recipe import Recipe
from schemas.tables import INDEX
from tests.handmade import HandmadeRoot, Vandal
from tests.integration.test_shard import OK, dataset, digests, make_pool, members, numbers_of, own, recipe, shard
from tests.pool_fixture import Pool, caption_of, picture, uid_of
from tests.running import REPOSITORY
from tests.scored import ScoredRoot, cosine
from tests.traces_left import needles, traces

INDEXED = Recipe.model_validate(
    {"shard": {"number_sample_per_shard": 16, "mode": "index"}, "dedupe": {"levels": {"bytes": True}}}
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("indexed")
    shard(make_pool(root), recipe(mode="index"))
    return root


def made_root(uri: str, rows: int = 45) -> HandmadeRoot:
    made = HandmadeRoot(open_store(uri), INDEXED)
    made.batch(rows)
    made.finish()
    return made


def breaches(made: HandmadeRoot) -> list[str]:
    return [line for check in verify(made.store).checks for line in check.first]


def test_an_index_holds_the_samples_of_the_tars_and_no_image(built: Path, tmp_path: Path) -> None:
    shard(make_pool(tmp_path), recipe())
    names = sorted(path.name for path in dataset(built).iterdir())
    assert names == sorted(path.name for path in dataset(tmp_path).iterdir() if path.suffix != ".tar")
    for name in ("000", "001", "002"):
        found, tars = (pq.read_table(dataset(root) / f"{name}.parquet") for root in (built, tmp_path))
        assert found.schema.names == INDEX.names
        assert found.select(tars.column_names) == tars
    told = json.loads((dataset(built) / "dataset.json").read_text())
    assert (told["mode"], told["samples"]) == ("index", 116)
    assert json.loads((dataset(built) / "sizes.json").read_text()) == {
        "000.parquet": 50, "001.parquet": 50, "002.parquet": 16,
    }  # fmt: skip


def test_the_reader_gives_each_image_with_its_caption_in_the_order_of_keys(built: Path) -> None:
    index = Index(LocalStore(built), "s0")
    found = list(index.read())
    assert [sample.uid for sample in found] == [uid_of(number) for number in OK]
    assert [sample.image for sample in found] == [picture(number) for number in OK]
    assert [sample.caption for sample in found] == [caption_of(number) for number in OK]
    assert {sample.weight for sample in found} == {1.0}
    assert list(index.read(["001.parquet"])) == found[50:100]


def test_an_index_in_s3_is_read_by_ranges(s3: str) -> None:
    store = open_store(s3)
    shard(make_pool(store), recipe(mode="index"))
    assert [sample.image for sample in Index(store, "s0").read()] == [picture(number) for number in OK]


def test_a_pool_image_that_changed_is_never_given(tmp_path: Path) -> None:
    shard(make_pool(tmp_path), recipe(mode="index"))
    (path,) = tmp_path.glob("download/d0/pool/0001-0000002.*")
    victim = picture(70)
    path.write_bytes(path.read_bytes().replace(victim, victim[:-1] + b"X"))
    with pytest.raises(PoolMismatchError, match=f"the image of {uid_of(70)} "):
        list(Index(LocalStore(tmp_path), "s0").read())


def test_tars_are_no_index_and_a_root_without_a_dataset_has_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no dataset"):
        Index(LocalStore(tmp_path))
    shard(make_pool(tmp_path))
    with pytest.raises(InputError, match="is no index"):
        Index(LocalStore(tmp_path), "s0")


def test_a_rerun_writes_the_same_bytes_and_a_new_batch_adds_shards(tmp_path: Path, built: Path) -> None:
    pool = make_pool(tmp_path)
    shard(pool, recipe(mode="index"))
    assert digests(tmp_path) == digests(built)
    pool.unit("0002-0000000", range(500, 510))
    shard(pool, recipe(mode="index"), run="second")
    after = digests(tmp_path)
    assert {name: after[name] for name in digests(built) if name[0].isdigit()} == {
        name: digest for name, digest in digests(built).items() if name[0].isdigit()
    }
    assert numbers_of(tmp_path, "003") == sorted(range(500, 510), key=uid_of)


KILLED = """
import sys, pathlib
from tests.integration.test_shard import recipe, shard
from tests.pool_fixture import Pool
shard(Pool(pathlib.Path(sys.argv[1])), recipe(mode="index"), "killed")
"""


@pytest.mark.parametrize("point", ["mid-publish", "before-record"])
def test_a_killed_run_is_finished_to_the_same_bytes(tmp_path: Path, built: Path, point: str) -> None:
    make_pool(tmp_path)
    env = {**os.environ, "PAIRMILL_FAULT": f"{point}@0001-0000001:kill:{tmp_path}/fault"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=REPOSITORY, env=env, check=False)
    assert done.returncode == -9
    shard(Pool(tmp_path), recipe(mode="index"), "second")
    assert digests(tmp_path) == digests(built)
    assert len(own(Pool(tmp_path)).generations()) == 3


def test_verify_proves_an_index_and_finds_a_place_that_is_not_the_images(tmp_path: Path) -> None:
    vandal = Vandal(tmp_path / "root", INDEXED)
    vandal.made.batch(45)
    vandal.made.finish()
    assert breaches(vandal.made) == []
    vandal.rows(
        "shard", "0001-0000000", "samples",
        lambda rows: [{**row, "pool_offset": row["pool_offset"] + (row is rows[3]) * 512} for row in rows],
    )  # fmt: skip
    (told,) = breaches(vandal.made)
    assert "is not the one recorded" in told


def test_verify_finds_an_index_with_another_rows_image(tmp_path: Path) -> None:
    vandal = Vandal(tmp_path / "root", INDEXED)
    vandal.made.batch(45)
    vandal.made.finish()

    def swap(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        places = ("pool_file", "pool_offset", "pool_size", "pool_sha256")
        return [{**rows[0], **{name: rows[1][name] for name in places}}, *rows[1:]]

    vandal.rows("shard", "0001-0000000", "samples", swap)
    assert any("is not the pool image of" in line for line in breaches(vandal.made))


def test_show_and_trace_know_the_samples_of_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_root(f"{tmp_path}/root")
    assert show_main([made.store.uri, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["shards"], told["mode"]) == (28, 2, "index")
    assert show_main([made.store.uri]) == 0
    assert "28 samples in 2 shards, an index over the pool" in capsys.readouterr().out.replace("\n", " ")
    (sample, *_) = Index(made.store).read()
    assert trace_main([made.store.uri, "--uid", sample.uid, "--json"]) == 0
    (story,) = json.loads(capsys.readouterr().out)
    (where,) = story["samples"]
    assert where["file"] == f"{made.folders['shard'].base}/dataset/00000.parquet"
    assert story["pool"]["verified"] == "sha256 matches"
    assert trace_main([made.store.uri, "--key", where["key"], "--json"]) == 0


def test_a_withdrawn_row_leaves_the_index_and_the_others_are_found_at_their_new_places(
    root: str, tmp_path: Path
) -> None:
    made = made_root(root)
    before = {sample.uid: sample.image for sample in Index(made.store).read()}
    outcomes = {row.uid: row for row in Index(made.store).read()}
    gone = sorted(outcomes)[5]
    shared = [uid for uid, image in before.items() if image == before[gone]]
    rows = [row for row in _outcomes(made) if row["uid"] in shared]
    everything = needles(made.store, rows)
    (tmp_path / "list.txt").write_text(f"uid:{gone}\n")
    assert retract_main([root, "--list", str(tmp_path / "list.txt"), "--why", "asked"]) == 0
    after = {sample.uid: sample.image for sample in Index(made.store).read()}
    assert after == {uid: image for uid, image in before.items() if uid not in shared}
    assert breaches(made) == []
    assert traces(made.store, everything) == []


def _outcomes(made: HandmadeRoot) -> list[dict[str, object]]:
    from tests.integration.test_retract import table

    return table(made.store, "outcomes")


RETRACT = """
import sys
from jobs.retract import main
main([sys.argv[1], "--list", sys.argv[2], "--why", "asked"])
"""


@pytest.mark.parametrize("point", ["mid-publish", "before-record", "after-record"])
def test_a_retraction_killed_while_it_moves_places_is_finished(tmp_path: Path, point: str) -> None:
    made = made_root(f"{tmp_path}/root")
    unit = {row["uid"]: row["unit"] for row in _outcomes(made)}
    index = Index(made.store)
    # Of the first shard, and of a download unit whose other rows are in the second one too, which loses no row.
    gone = next(sample for sample in index.read(["00000.parquet"]) if unit[sample.uid] == "0001-0000002")
    assert any(unit[sample.uid] == "0001-0000002" for sample in index.read(["00001.parquet"]))
    (tmp_path / "list.txt").write_text(f"uid:{gone.uid}\n")
    env = {**os.environ, "PAIRMILL_FAULT": f"{point}@0001-0000001:kill:{tmp_path}/fault"}
    command = [sys.executable, "-c", RETRACT, made.store.uri, str(tmp_path / "list.txt")]
    assert subprocess.run(command, cwd=REPOSITORY, env=env, check=False).returncode == -9
    assert (tmp_path / "root" / made.folders["shard"].base / "attempts" / "0001-0000001.1.1").exists()
    assert retract_main([made.store.uri, "--list", str(tmp_path / "list.txt"), "--why", "asked"]) == 0
    assert breaches(made) == []
    assert gone.image not in [sample.image for sample in index.read()]


def test_clip_score_and_weight_reach_the_samples_of_tars_and_indexes(tmp_path: Path) -> None:
    for mode in ("tars", "index"):
        chosen = INDEXED.model_copy(update={"shard": INDEXED.shard.model_copy(update={"mode": mode})})
        made = ScoredRoot(LocalStore(tmp_path / mode), chosen)
        made.batch(45)
        made.finish()
        paths = sorted((tmp_path / mode / made.folders["shard"].base / "dataset").glob("*.parquet"))
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        assert len(rows) == 28
        for row in rows:
            assert row["clip_score"] == pytest.approx(cosine(row["uid"], "b32"), abs=1e-6)
            assert row["weight"] == 1.0


def test_soft_weights_reach_the_index_and_the_json_of_tars(tmp_path: Path) -> None:
    asked = {"select": {"weight": "1 + clip_score"}, "dedupe": {"levels": {"bytes": True}}}
    for mode in ("tars", "index"):
        chosen = Recipe.model_validate({**asked, "shard": {"number_sample_per_shard": 16, "mode": mode}})
        made = ScoredRoot(LocalStore(tmp_path / mode), chosen)
        made.batch(45)
        made.finish()
    weights = {sample.uid: sample.weight for sample in Index(LocalStore(tmp_path / "index")).read()}
    assert weights == {uid: pytest.approx(1 + cosine(uid, "b32"), abs=1e-6) for uid in weights}
    told = [json.loads(data) for tar in sorted((tmp_path / "tars").glob("shard/*/dataset/*.tar"))
            for name, data in members(tar) if name.endswith("json")]  # fmt: skip
    assert {row["uid"]: row["weight"] for row in told} == weights


def test_clean_keeps_the_pool_that_an_index_points_to(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    before = list(Index(made.store).read())
    assert clean_main([made.store.uri, "--keep", "1"]) == 0
    assert list(Index(made.store).read()) == before


def test_images_of_adopted_tars_are_read_where_they_are(tmp_path: Path) -> None:
    vandal = Vandal(tmp_path / "root", INDEXED)
    vandal.made.batch(20)
    tar = vandal.path("download", "0001-0000000", "pool")
    images = tar.read_bytes()
    away = tmp_path / "elsewhere" / "00000.tar"
    away.parent.mkdir()
    away.write_bytes(images)
    vandal.rows(
        "download", "0001-0000000", "outcomes",
        lambda rows: [{**row, "pool_file": f"file://{away}" if row["pool_file"] else None} for row in rows],
    )  # fmt: skip
    tar.unlink()
    vandal.made.finish()
    index = Index(vandal.made.store)
    assert set(index.table("00000.parquet")["pool_file"].to_pylist()) == {f"file://{away}"}
    found = [sample.image for sample in index.read()]
    assert len(found) == 12
    assert all(image in images for image in found)


def test_an_index_of_another_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"shard\.output_format: an index has no files; leave it out"):
        check_recipe(Recipe.model_validate({"shard": {"mode": "index", "output_format": "files"}}))
