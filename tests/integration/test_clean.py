"""jobs.clean removes what is no longer current, and nothing else, wherever it is killed."""

import os
import subprocess
import sys
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest

from jobs.clean import main
from pipeline.lease import Lease
from pipeline.storage import LocalStore, Store, open_store
from pipeline.tables import publish
from pipeline.units import StageFolder
from pipeline.verify.run import verify
from schemas.records import RunRecord, now
from tests.handmade import HandmadeRoot
from tests.running import REPOSITORY

KEPT_ALWAYS = ("batches/", "runs/", "run.json", "views.sql")


def files(store: Store) -> dict[str, int]:
    return {path: size for path, size in store.files("") if not path.startswith("lease.json")}


def build(store: Store, days: int = 1) -> HandmadeRoot:
    made = HandmadeRoot(store)
    for _ in range(days):
        made.batch(40)
        made.finish()
    if isinstance(store, LocalStore):
        store.clear_scratch()  # which it does not tidy
    return made


def run_of(store: Store, name: str, stages: dict[str, str]) -> None:
    """Record a run, the newest, that used these fingerprints."""
    before = RunRecord.model_validate_json(store.read("run.json"))
    record = before.model_copy(update={"run": name, "started_at": now(), "stages": stages})
    store.replace(f"runs/{name}.json", record.to_bytes())
    store.replace("run.json", record.to_bytes())


def copied(store: Store, folder: StageFolder, name: str, complete: bool = True) -> StageFolder:
    """Another fingerprint's folder with the same units; complete, it is the stage's current one."""
    other = StageFolder(store, folder.stage, name)
    for path, _ in list(store.files(folder.base)):
        inside = path.removeprefix(f"{folder.base}/")
        if inside != "complete.json":
            store.create(f"{other.base}/{inside}", store.read(path))
    if complete:
        done = folder.completed()
        assert done
        other.complete(other.records(), done.batches, done.finished_at)
    return other


def clean(store: Store, *flags: str) -> set[str]:
    """Run the job; the files that went."""
    before = files(store)
    assert main([store.uri, *flags]) == 0
    after = files(store)
    assert after.items() <= before.items()
    assert store.size("lease.json") is None
    return before.keys() - after.keys()


def test_a_fresh_root_has_nothing_to_remove(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(root)
    build(store)
    assert not clean(store)
    assert "nothing to remove" in capsys.readouterr().out


def test_old_versions_of_tables_go_and_the_newest_stay(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(root)
    build(store, days=4)
    dry = clean(store, "--dry-run")
    assert not dry
    assert "would remove tables/outcomes/v2/" in capsys.readouterr().out
    gone = clean(store)
    assert {path.split("/")[0] for path in gone} == {"tables"}
    assert {path.split("/")[2] for path in gone} == {"v1", "v2"}
    gone = clean(store, "--keep", "1")
    assert {path.split("/")[2] for path in gone} == {"v3"}
    assert store.folders("tables/pairs") == ["v4"]
    assert not clean(store, "--keep", "1")
    assert verify(store).breaches == 0


def test_versions_that_were_never_published_stay_until_they_are_passed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    made = build(store)
    (tmp_path / "tables" / "outcomes" / "v2").mkdir()
    (tmp_path / "tables" / "outcomes" / "v2" / "part-00000.parquet").write_bytes(b"killed before latest.json")
    assert not clean(store, "--keep", "1")
    made.batch(20)
    assert made.finish() == 3
    clean(store, "--keep", "1")
    assert store.folders("tables/outcomes") == ["v3"]


def test_a_reader_of_the_latest_tables_reads_on(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    made = build(store)
    reader = pq.ParquetFile(tmp_path / "tables" / "outcomes" / "v1" / "part-00000.parquet")
    for _ in range(3):
        made.batch(20)
        made.finish()
    clean(store, "--keep", "1")
    assert store.folders("tables/outcomes") == ["v4"]
    assert reader.read().num_rows == 32


def test_folders_of_other_settings_go_once_nothing_current_reads_them(root: str) -> None:
    store = open_store(root)
    made = build(store)
    old = made.folders
    stages = {stage: folder.fingerprint for stage, folder in old.items()}
    new = copied(store, old["download"], "d" * 16)
    # The dataset still comes from the old folder: the run ended after its download.
    run_of(store, "20270101T000000-new", {**stages, "download": new.fingerprint, "shard": "e" * 16})
    publish(store, stages)
    assert not clean(store, "--keep", "9")
    newer = copied(store, old["shard"], "e" * 16)
    dataset = f"{newer.base}/dataset/dataset.json"
    store.replace(dataset, store.read(dataset).replace(old["download"].fingerprint.encode(), b"d" * 16))
    publish(store, stages)
    gone = clean(store, "--keep", "9")
    assert {"/".join(path.split("/")[:2]) for path in gone} == {old["download"].base, old["shard"].base}
    assert not any(store.files(old["download"].base))
    assert newer.completed()


def test_what_the_newest_run_began_stays_though_it_is_not_finished(root: str) -> None:
    store = open_store(root)
    made = build(store)
    stages = {stage: folder.fingerprint for stage, folder in made.folders.items()}
    begun = copied(store, made.folders["download"], "b" * 16, complete=False)
    run_of(store, "20270101T000000-begun", {**stages, "download": "b" * 16})
    assert not clean(store, "--keep", "9")
    run_of(store, "20270102T000000-back", stages)
    gone = clean(store, "--keep", "9")
    assert {"/".join(path.split("/")[:2]) for path in gone} == {begun.base}
    assert verify(store).breaches == 0


def test_the_folder_that_published_tables_point_into_stays(root: str) -> None:
    store = open_store(root)
    made = HandmadeRoot(store)
    made.batch(20)
    made.complete("ingest", "download")
    publish(store, ("ingest", "download"))
    stages = {stage: folder.fingerprint for stage, folder in made.folders.items()}
    copied(store, made.folders["download"], "d" * 16)  # killed before its tables were published
    run_of(store, "20270101T000000-new", {**stages, "download": "d" * 16})
    assert not clean(store)
    publish(store, ("ingest", "download"))
    assert any(path.startswith(made.folders["download"].base) for path in clean(store))


def test_files_of_attempts_that_did_not_commit_go(root: str) -> None:
    store = open_store(root)
    made = build(store)
    base = made.folders["download"].base
    store.create(f"{base}/pool/0001-0000000.0.7.tar", b"beaten")
    store.create(f"{base}/pool/0001-0000000.1.1.tar", b"may still commit")
    assert clean(store) == {f"{base}/pool/0001-0000000.0.7.tar"}


def test_scratch_of_killed_runs_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LocalStore(tmp_path)
    build(store)
    scratch = store.scratch()
    (scratch / "half.tar").write_bytes(b"x" * 2_000)
    assert main([str(tmp_path), "--dry-run"]) == 0
    assert "unfinished, 2.0 kB" in capsys.readouterr().out
    assert scratch.exists()
    assert main([str(tmp_path)]) == 0
    assert not scratch.exists()


def test_uploads_of_killed_runs_go(s3: str) -> None:
    store = open_store(s3)
    build(store)
    client = boto3.client("s3")
    bucket = s3.split("/")[2]
    for key in ("root/download/x/pool/1.tar", "elsewhere/1.tar"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 1_000)
    (left,) = store.unfinished()
    assert left.size == 1_000
    clean(store)
    assert [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["elsewhere/1.tar"]


def test_a_held_root_is_left_alone(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(root)
    build(store, days=4)
    before = files(store)
    with Lease.acquire(store, "another-run"):
        assert main([root]) == 4
        assert main([root, "--dry-run"]) == 4
    assert "another-run" in capsys.readouterr().err
    assert files(store) == before


@pytest.mark.parametrize("point", ["before-remove", "mid-remove"])
def test_killed_in_the_middle_it_leaves_a_root_that_verifies(root: str, point: str, tmp_path: Path) -> None:
    store = open_store(root)
    made = build(store)
    stages = {stage: folder.fingerprint for stage, folder in made.folders.items()}
    copied(store, made.folders["download"], "b" * 16)
    copied(store, made.folders["shard"], "b" * 16)
    for stage in ("download", "shard"):
        done = made.folders[stage].completed()
        assert done
        made.folders[stage].complete(made.folders[stage].records(), done.batches, now())
    run_of(store, "20270101T000000-back", stages)
    publish(store, stages)
    for where in ("tables/outcomes/v1/", f"download/{'b' * 16}/", f"shard/{'b' * 16}/"):
        flag = tmp_path / f"{point}-{where.replace('/', '-')}"
        killed = subprocess.run(
            [sys.executable, "-m", "jobs.clean", root, "--keep", "1"],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
            env={**os.environ, "PAIRMILL_FAULT": f"{point}@{where}:kill:{flag}"},
        )  # fmt: skip
        assert killed.returncode == -9, killed.stderr
        assert verify(store).breaches == 0
    assert main([root, "--keep", "1"]) == 0
    assert not any(store.files(f"download/{'b' * 16}"))
    assert not any(store.files("tables/outcomes/v1"))
    assert not store.unfinished()
    assert verify(store).breaches == 0


@pytest.mark.parametrize("keep", ["0", "-1", "two"])
def test_fewer_than_one_version_is_refused(tmp_path: Path, keep: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--keep", keep])
    assert stopped.value.code == 2


def test_what_is_no_root_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tables").mkdir()
    assert main([str(tmp_path)]) == 2
    assert "is no ROOT" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]
