"""jobs.adopt takes over what the real img2dataset made: the same totals, keys and pixels, and nothing is fetched."""

import hashlib
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.adoptable import ENCODERS, ROWS, make_download, number_of, vectors
from tests.running import endings, job, snapshot, stage_folder, table, write_recipe

THEIR_CLASS = {"not_an_image": "failed_to_resize", "decode_error": "failed_to_resize", "too_small": "failed_to_resize"}


@pytest.fixture(scope="module")
def adopted(download: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ROOTs by mode, with shards made; the dataset that was adopted is as it was before."""
    before = snapshot(download)
    roots = {}
    for mode in ("in place", "copied"):
        root = roots[mode] = tmp_path_factory.mktemp("root") / "root"
        run = job("adopt", download, "--output", root, *(["--copy"] if mode == "copied" else []))
        assert run.returncode == 0, run.stderr
        built = job("build", "--recipe", recipe(root), "--output", root, "--until", "shard")
        assert built.returncode == 0, built.stderr
    assert snapshot(download) == before
    return roots


def recipe(root: Path) -> Path:
    """Samples are counted here, so nothing is a duplicate."""
    return write_recipe(root.parent / "r.yaml", {"dedupe": {"levels": {}}})


def theirs(download: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(download.glob("shards/*.parquet")) for row in pq.read_table(path).to_pylist()]


def images(folder: Path) -> dict[str, bytes]:
    """key → image, of a folder of tars"""
    found = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith(".jpg"):
                    found[info.name.removesuffix(".jpg")] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("mode", ["in place", "copied"])
def test_every_input_row_ends_once_and_as_in_the_download(download: Path, adopted: dict[str, Path], mode: str) -> None:
    ended = endings(adopted[mode])
    wanted = {}
    for path in sorted(download.glob("shards/*.parquet")):
        for number, row in enumerate(pq.read_table(path).to_pylist()):
            wanted[str(path), number] = row["status"]
    assert ended.keys() == wanted.keys()
    found = Counter()
    for place, (status, reason) in ended.items():
        if status == "rejected" and reason in ("duplicate", "missing_text"):
            found[reason] += 1
            continue
        kind = "success" if status == "ok" else THEIR_CLASS.get(reason or "", "failed_to_download")
        assert kind == wanted[place], place
    assert found == {"duplicate": 1, "missing_text": 1}


@pytest.mark.parametrize("mode", ["in place", "copied"])
def test_hashes_sizes_and_details_are_the_download_s_own(download: Path, adopted: dict[str, Path], mode: str) -> None:
    by_key = {row["key"]: row for row in theirs(download)}
    pixels = images(download / "shards")
    for row in table(adopted[mode], "outcomes").to_pylist():
        own = by_key[row["src_key"]]
        assert row["src_uid"] == own["uid"]
        for name in ("sha256", "width", "height", "original_width", "original_height"):
            assert row[name] == own[name]
        if row["status"] == "ok":
            image = pixels[row["src_key"]]
            assert (row["pool_size"], row["pool_sha256"]) == (len(image), hashlib.sha256(image).hexdigest())
            assert row["pool_file"].startswith("download/" if mode == "copied" else f"file://{download}/shards/")
            file = adopted[mode] / row["pool_file"] if mode == "copied" else Path(row["pool_file"][7:])
            with file.open("rb") as tar:
                tar.seek(row["pool_offset"])
                assert tar.read(row["pool_size"]) == image
        else:
            assert row["pool_file"] is None
            assert own["error_message"].strip() in row["detail"]
        assert row["bytes"] is None
        assert row["fetched_at"] is None
        assert row["consent_ok"] is None


@pytest.mark.parametrize("mode", ["in place", "copied"])
def test_shards_hold_the_same_pixels_under_keys_that_trace_back(
    download: Path, adopted: dict[str, Path], mode: str
) -> None:
    dataset = stage_folder(adopted[mode], "shard") / "dataset"
    samples = pa.concat_tables(pq.read_table(path) for path in dataset.glob("*.parquet")).to_pylist()
    ours, original = images(dataset), images(download / "shards")
    key_of = {row["uid"]: row["src_key"] for row in table(adopted[mode], "outcomes").to_pylist()}
    rejected = set(original) - set(key_of.values())
    assert len(samples) == len(original) - len(rejected)
    assert len(rejected) == 2
    for sample in samples:
        assert ours[sample["key"]] == original[key_of[sample["uid"]]]
    told = job("trace", adopted[mode], "--key", samples[0]["key"])
    assert told.returncode == 0, told.stderr
    assert "sha256 matches" in told.stdout


@pytest.mark.parametrize("mode", ["in place", "copied"])
def test_verify_is_clean(adopted: dict[str, Path], mode: str) -> None:
    for flags in ([], ["--quick"], ["--sample", "0.3"]):
        checked = job("verify", adopted[mode], *flags)
        assert checked.returncode == 0, checked.stdout


def test_adopting_again_does_nothing(download: Path, adopted: dict[str, Path]) -> None:
    root = adopted["in place"]
    before = snapshot(root)
    again = job("adopt", download, "--output", root)
    assert again.returncode == 0, again.stderr
    changed = {path for path, seen in snapshot(root).items() if before.get(path) != seen}
    assert all(path.startswith(("run", ".tmp/")) for path in changed), changed


def test_another_folder_is_another_batch(download: Path, adopted: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(adopted["copied"], root)
    second = make_download(tmp_path / "second", 30, first=5_000)
    more = job("adopt", second / "shards", "--output", root)
    assert more.returncode == 0, more.stderr
    built = job("build", "--recipe", recipe(root), "--output", root)
    assert built.returncode == 0, built.stderr
    rows = table(root, "outcomes").to_pylist()
    assert Counter(row["batch"] for row in rows) == {"0001": ROWS, "0002": 30}
    assert {row["pool_file"][:4] for row in rows if row["batch"] == "0002" and row["pool_file"]} == {"file"}
    assert len(json.loads((root / "batches/0002.json").read_text())["files"]) == 2
    checked = job("verify", root)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    "point",
    ["after-measure", "before-record@ingest", "after-record@download", "mid-publish@download", "mid-publish@embed"],
)
def test_a_killed_adoption_is_finished_by_the_next_and_never_fetched(
    download: Path, adopted: dict[str, Path], tmp_path: Path, point: str
) -> None:
    root = tmp_path / "root"
    fault = {"PAIRMILL_FAULT": f"{point}:kill:{tmp_path / 'killed'}"}
    killed = job("adopt", download, "--output", root, env=fault)
    assert killed.returncode == -9
    if point.endswith("download"):
        built = job("build", "--recipe", recipe(root), "--output", root)
        assert built.returncode == 2
        assert "jobs.adopt" in built.stderr
    again = job("adopt", download, "--output", root)
    assert again.returncode == 0, again.stderr
    assert endings(root) == endings(adopted["in place"])
    assert table(root, "scores").equals(table(adopted["in place"], "scores"))
    assert not list(root.glob("ingest/*/scratch/**/*.parquet"))
    checked = job("verify", root)
    assert checked.returncode == 0, checked.stdout
    assert "no record names" not in checked.stdout


def test_scores_and_vectors_become_tables(download: Path, adopted: dict[str, Path]) -> None:
    root = adopted["in place"]
    outcomes = {row["uid"]: row for row in table(root, "outcomes").to_pylist() if row["status"] == "ok"}
    scores = table(root, "scores").to_pylist()
    assert {(row["uid"], row["encoder"]) for row in scores} == {(uid, name) for uid in outcomes for name in ENCODERS}
    for row in scores:
        number = number_of(outcomes[row["uid"]]["url"])
        wanted = number / 1000 if row["encoder"] == "b32" else number / 500
        assert row["clip_score"] == pytest.approx(wanted, abs=1e-6)
        assert row["punsafe"] == pytest.approx((number % 10) / 10, abs=1e-6)
        assert row["weights_sha256"] is None
    with duckdb.connect() as engine:
        engine.execute((root / "views.sql").read_text())
        found = engine.execute("SELECT uid, encoder, image_embedding, text_embedding FROM embeddings").fetchall()
    assert len(found) == len(scores)
    for uid, encoder, *sides in found:
        for given, stored in zip(vectors(number_of(outcomes[uid]["url"]), encoder), sides, strict=True):
            exact = given.astype(np.float64) / np.linalg.norm(given.astype(np.float64))
            assert np.abs(np.asarray(stored) - exact).max() < 1e-6


def test_scores_are_columns_of_rules_and_the_input_s_uids_may_be_listed(
    download: Path, adopted: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(adopted["in place"], root)
    rules = {"l14": "clip_score_l14 >= 0.5", "safe": "punsafe <= 0.5", "b32": "clip_score < 0.5"}
    chosen = write_recipe(tmp_path / "chosen.yaml", {"dedupe": {"levels": {}}, "select": {"rules": rules}})
    built = job("build", "--recipe", chosen, "--output", root)
    assert built.returncode == 0, built.stderr
    numbers = {row["uid"]: number_of(row["url"]) for row in table(root, "outcomes").to_pylist()}
    for row in table(root, "decisions").to_pylist():
        number = numbers[row["uid"]]
        # In float32, as the scores are: 0.5 is exact, and so is every comparison with it.
        wanted = {"l14": number >= 250, "safe": number % 10 <= 5, "b32": number < 500}
        assert {name: row[f"pass_{name}"] for name in rules} == wanted
        assert row["kept"] == all(wanted.values())
    assert job("verify", root).returncode == 0


def test_clip_retrieval_vectors_are_found_by_key(download: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(download / "shards", folder / "shards")
    rows = [row for row in theirs(download) if row["status"] == "success"][::-1]
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / "embeddings" / name).mkdir(parents=True)
    metadata = pa.table({"image_path": [row["key"] for row in rows], "caption": [row["caption"] for row in rows]})
    pq.write_table(metadata, folder / "embeddings/metadata/metadata_0.parquet")
    pairs = [vectors(number_of(row["url"]), "b32") for row in rows]
    for name, side in (("img_emb", 0), ("text_emb", 1)):
        np.save(folder / f"embeddings/{name}/{name}_0.npy", np.stack([pair[side] for pair in pairs]))
    run = job("adopt", folder, "--output", tmp_path / "root")
    assert run.returncode == 0, run.stderr
    key_of = {row["uid"]: row["src_key"] for row in table(tmp_path / "root", "outcomes").to_pylist()}
    wanted = {row["key"]: pair for row, pair in zip(rows, pairs, strict=True)}
    scores = [row for row in table(tmp_path / "root", "scores").to_pylist() if row["encoder"] == "clip_retrieval"]
    assert len(scores) == sum(row["caption"] != "" for row in rows) - 1  # one is a duplicate
    for row in scores:
        image, text = (side.astype(np.float64) for side in wanted[key_of[row["uid"]]])
        cosine = image @ text / np.linalg.norm(image) / np.linalg.norm(text)
        assert row["clip_score"] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("flags", [[], ["--copy"]])
def test_from_s3_to_s3(download: Path, s3: str, tmp_path: Path, flags: list[str]) -> None:
    bucket = s3.removeprefix("s3://").partition("/")[0]
    client = boto3.client("s3")
    for path in download.rglob("*"):
        # Two shards are enough: every image is a request here.
        if path.is_file() and (path.parent.name == "metadata" or path.name < "00000002"):
            client.upload_file(str(path), bucket, f"their/{path.relative_to(download)}")
    run = job("adopt", f"s3://{bucket}/their", "--output", s3, *flags)
    assert run.returncode == 0, run.stderr
    built = job("build", "--recipe", recipe(tmp_path / "root"), "--output", s3)
    assert built.returncode == 0, built.stderr
    checked = job("verify", s3)
    assert checked.returncode == 0, checked.stdout
    shown = json.loads(job("show", s3, "--json").stdout)
    successes = sum(row["status"] == "success" for row in theirs(download) if row["key"] < "0000000200")
    assert successes - 2 <= shown["samples"] <= successes
