"""jobs.retract on whole ROOTs, local and in S3: what goes, what stays, and that it does not come back."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.retract import main
from jobs.trace import main as trace_main
from pipeline.fence import PATH as FENCE
from pipeline.lease import Lease
from pipeline.retract.run import finish
from pipeline.retract.tombstone import Tombstones, read_retractions
from pipeline.storage import LocalStore, Store, open_store
from pipeline.tables import read_published
from pipeline.units import Output, StageFolder
from pipeline.verify.run import verify
from schemas.recipe import Recipe
from tests import handmade
from tests.handmade import HandmadeRoot
from tests.traces_left import needles, traces

OK, NO_TEXT, WITNESS, DUPLICATE, SHARED = 6, 3, 4, 5, 9
"""Numbers of rows by what becomes of them."""


def table(store: Store, name: str) -> list[dict[str, Any]]:
    latest = read_published(store, name)
    assert latest
    filesystem, root = store.arrow()
    if not latest.files:
        return []
    paths = [f"{root}/{file.path}" for file in latest.files]
    rows: list[dict[str, Any]] = ds.dataset(paths, filesystem=filesystem, format="parquet").to_table().to_pylist()
    return rows


def made_root(uri: str, *batches: int) -> HandmadeRoot:
    made = HandmadeRoot(open_store(uri))
    for rows in batches or (45,):
        made.batch(rows)
    made.finish()
    return made


def retract(store: Store, tmp_path: Path, *lines: str, flags: tuple[str, ...] = ()) -> int:
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return main([store.uri, "--list", str(tmp_path / "list.txt"), "--why", "the owner asked", *flags])


def breaches(store: Store) -> list[str]:
    return [line for check in verify(store).checks for line in check.first]


def of(rows: list[dict[str, Any]], number: int) -> dict[str, Any]:
    return next(row for row in rows if row["source_row"] == number)


def everything(store: Store) -> dict[str, bytes]:
    return {path: store.read(path) for path, _ in store.files("")}


@pytest.mark.parametrize("kind", ["uid", "url", "url_md5", "host", "sha256", "pool_sha256"])
def test_nothing_of_what_a_list_names_stays_and_all_else_verifies(tmp_path: Path, kind: str) -> None:
    made = made_root(f"{tmp_path}/root")
    store, before = made.store, table(made.store, "outcomes")
    row = of(before, 11)
    entry = {
        "uid": f"uid:{row['uid']}", "url": row["url"], "host": row["url"].split("/")[2], "sha256": row["sha256"],
        "url_md5": hashlib.md5(row["url"].encode()).hexdigest(), "pool_sha256": f"sha256:{row['pool_sha256']}",
    }[kind]  # fmt: skip
    rejects_before = len(table(store, "rejects"))
    everywhere = needles(store, before)
    assert retract(store, tmp_path, entry) == 0
    left = table(store, "outcomes")
    gone = [one for one in before if one["uid"] not in {row["uid"] for row in left}]
    assert row["uid"] in {one["uid"] for one in gone}
    if kind == "host":
        assert {one["uid"] for one in gone} == {one["uid"] for one in before if one["url"].split("/")[2] == entry}
    else:
        assert [one["uid"] for one in gone] == [row["uid"]]
    stays = set(needles(store, left))
    assert [value for value in everywhere if value not in stays]
    assert traces(store, [value for value in everywhere if value not in stays]) == []
    withdrawn = [one for one in table(store, "rejects") if one["reason"] == "retracted"]
    assert len(table(store, "rejects")) == rejects_before + len(gone)
    assert {(one["source"], one["source_row"]) for one in withdrawn} >= {(row["source"], 11)}
    for one in withdrawn:
        assert (one["status"], one["url"], one["text"], one["uid"], one["detail"]) == (
            "refused", None, None, None, "0001",
        )  # fmt: skip
    assert breaches(store) == []


def test_rows_that_share_the_image_and_duplicates_of_the_input_go_along(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    before = table(made.store, "outcomes")
    assert retract(made.store, tmp_path, of(before, SHARED)["uid"], of(before, WITNESS)["url"]) == 0
    left = {row["source_row"] for row in table(made.store, "outcomes")}
    assert not left & {OK, SHARED, WITNESS}
    rejects = {row["source_row"]: row for row in table(made.store, "rejects")}
    assert {number for number, row in rejects.items() if row["reason"] == "retracted"} == {
        OK, SHARED, WITNESS, DUPLICATE,
    }  # fmt: skip
    assert rejects[DUPLICATE]["dup_of"] is None
    assert breaches(made.store) == []


def test_a_row_rejected_for_an_earlier_reason_keeps_it_and_forgets_its_url(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    url = of(table(made.store, "rejects"), NO_TEXT)["url"]
    assert retract(made.store, tmp_path, url) == 0
    row = of(table(made.store, "rejects"), NO_TEXT)
    assert (row["status"], row["reason"], row["url"], row["detail"]) == ("rejected", "missing_text", None, None)
    assert traces(made.store, [url.encode()]) == []
    assert breaches(made.store) == []


def test_shards_lose_the_sample_alone_and_keys_have_no_gap(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    folder = tmp_path / "root" / made.folders["shard"].base / "dataset"
    before = {path.name: pq.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))}
    images = {path.name: members(path) for path in sorted(folder.glob("*.tar"))}
    first = before["00000.parquet"]
    others = {path.name: path.read_bytes() for path in folder.glob("0000[1-9]*")}
    assert retract(made.store, tmp_path, f"uid:{first[3]['uid']}") == 0
    after = pq.read_table(folder / "00000.parquet").to_pylist()
    kept = first[:3] + first[4:]
    assert [row["key"] for row in after] == [row["key"] for row in first[:-1]]
    assert [{**row, "key": ""} for row in after] == [{**row, "key": ""} for row in kept]
    told = members(folder / "00000.tar")
    for row, old in zip(after, kept, strict=True):
        assert told[f"{row['key']}.jpg"] == images["00000.tar"][f"{old['key']}.jpg"]
        assert json.loads(told[f"{row['key']}.json"])["key"] == row["key"]
    assert len(told) == 3 * len(after)
    assert {path.name: path.read_bytes() for path in folder.glob("0000[1-9]*")} == others
    sizes = json.loads((folder / "sizes.json").read_text())
    assert sizes["00000.tar"] == len(after)
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["samples"] == sum(sizes.values()) == sum(map(len, before.values())) - 1
    assert dataset["retractions"] == ["0001"]
    assert json.loads((folder / "00000_stats.json").read_text())["successes"] == len(after)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["parquet", "files"])
def test_every_output_format_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    settings = {"number_sample_per_shard": 8, "output_format": form}
    recipe = Recipe.model_validate({**handmade.RECIPE.model_dump(mode="json"), "shard": settings})
    monkeypatch.setattr(handmade, "RECIPE", recipe)
    made = made_root(f"{tmp_path}/root")
    before = table(made.store, "outcomes")
    wanted = needles(made.store, [of(before, 11)])
    assert retract(made.store, tmp_path, of(before, 11)["url"]) == 0
    assert traces(made.store, wanted) == []
    assert breaches(made.store) == []


def test_the_same_list_again_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_root(f"{tmp_path}/root")
    row = of(table(made.store, "outcomes"), 11)
    assert retract(made.store, tmp_path, row["url"], "sha256:" + "0" * 64) == 0
    before = everything(made.store)
    assert retract(made.store, tmp_path, row["url"], "sha256:" + "0" * 64) == 0
    assert "nothing to withdraw" in capsys.readouterr().out
    assert {**everything(made.store), FENCE: before[FENCE]} == before


def test_a_list_that_matches_nothing_is_kept_for_later_runs(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    version = read_published(made.store, "pairs")
    assert retract(made.store, tmp_path, "https://nowhere.test/1.jpg") == 0
    assert Tombstones.load(made.store).url("https://nowhere.test/1.jpg") == "0001"
    assert version
    assert breaches(made.store) == []


def test_a_second_retraction_of_the_same_unit_goes_on_from_the_first(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    before = table(made.store, "outcomes")
    wanted = needles(made.store, [of(before, 11), of(before, 14)])
    assert retract(made.store, tmp_path, of(before, 11)["url"]) == 0
    assert retract(made.store, tmp_path, of(before, 14)["url"]) == 0
    assert traces(made.store, wanted) == []
    assert [one.retraction for one in read_retractions(made.store)] == ["0001", "0002"]
    assert breaches(made.store) == []


def test_a_dry_run_says_what_would_go_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    made = made_root(f"{tmp_path}/root")
    before = everything(made.store)
    row = of(table(made.store, "outcomes"), 11)
    assert retract(made.store, tmp_path, row["url"], flags=("--dry-run",)) == 0
    told = capsys.readouterr().out
    assert "1 outcomes would go" in told
    assert "1 samples would go" in told
    assert everything(made.store) == before


def test_the_receipt_tells_numbers_and_nothing_of_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_root(f"{tmp_path}/root")
    row = of(table(made.store, "outcomes"), 11)
    values = [row[name] for name in ("uid", "url", "text", "sha256", "pool_sha256")]
    assert retract(made.store, tmp_path, row["url"]) == 0
    (receipt,) = read_retractions(made.store)
    assert receipt.finished_at
    assert receipt.why == "the owner asked"
    assert receipt.rows[made.folders["shard"].base] == {"samples": 1}
    assert receipt.rows[made.folders["download"].base] == {"outcomes": 1}
    assert receipt.datasets == [{"path": f"{made.folders['shard'].base}/dataset", "samples": 1}]
    assert receipt.tables == {"before": 1, "after": 2}
    said = capsys.readouterr().out + receipt.model_dump_json()
    assert [value for value in values if value in said] == []


def test_old_tables_generations_leftovers_and_pages_go_too(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    before = table(made.store, "outcomes")
    row = of(before, 11)
    wanted = needles(made.store, [row])
    folder = made.folders["download"]
    record = folder.records()["0001-0000000"]
    again = folder.begin("0001-0000000", 1, "a retry", alone=False)
    scratch = made.store.scratch()
    outcomes = next(entry for entry in record.files if entry.table == "outcomes")
    (scratch / "o.parquet").write_bytes(made.store.read(f"{folder.base}/{outcomes.path}"))
    keep = [entry for entry in record.files if entry.table != "outcomes"]
    outputs = [Output("outcomes", scratch / "o.parquet", record.rows)]
    folder.commit(again, outputs, record.counts, record.rows, "handmade", keep)
    image = made.store.read_range(row["pool_file"], row["pool_offset"], row["pool_size"])
    made.store.replace("look/sheet.html", image + row["url"].encode())
    made.store.replace("notes.txt", f"mine: {of(before, 14)['url']}".encode())
    made.store.replace("export/urls.csv", f"uid,url\n1,{row['url']}\n".encode())
    pq.write_table(pa.table({"uid": [row["uid"]]}), tmp_path / "root/export/uids.parquet")
    made.store.replace(f"{folder.base}/pool/0001-0000007.0.1.tar", image)
    made.store.replace(f"{made.folders['ingest'].base}/scratch/0002-x/0-keyed.parquet", row["url"].encode())
    assert retract(made.store, tmp_path, row["url"]) == 0
    assert traces(made.store, wanted) == []
    assert made.store.size("look/sheet.html") is None
    (receipt,) = read_retractions(made.store)
    assert receipt.removed_pages == ["export/uids.parquet", "export/urls.csv", "look/sheet.html"]
    assert receipt.other_files == ["notes.txt"]
    assert {path.name for path in (tmp_path / "root/tables/outcomes").iterdir()} == {"latest.json", "v2"}
    assert set(folder.generations().values()) == {2, 0}
    assert breaches(made.store) == []


def test_folders_of_other_settings_are_cleaned_and_do_not_become_current(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    row = of(table(made.store, "outcomes"), 11)
    wanted = needles(made.store, [row])
    old = StageFolder(made.store, "download", "0ld0ld0ld0")
    for path, _ in list(made.store.files(made.folders["download"].base)):
        inside = path.removeprefix(made.folders["download"].base)
        data = made.store.read(path)
        if path.endswith("outcomes/0001-0000000.0.1.parquet"):
            rows = pq.read_table(pa.BufferReader(data))
            files = [name and name.replace(made.folders["download"].base, old.base) for name in
                     rows["pool_file"].to_pylist()]  # fmt: skip
            index = rows.column_names.index("pool_file")
            (tmp_path / "rows.parquet").write_bytes(b"")
            pq.write_table(rows.set_column(index, "pool_file", pa.array(files, pa.string())), tmp_path / "rows.parquet")
            data = (tmp_path / "rows.parquet").read_bytes()
        made.store.replace(f"{old.base}{inside}", data)
    done = old.completed()
    assert done
    made.store.replace(
        f"{old.base}/complete.json", done.model_copy(update={"finished_at": "2020-01-01T00:00:00+00:00"}).to_bytes()
    )
    assert retract(made.store, tmp_path, row["url"]) == 0
    assert traces(made.store, wanted) == []
    after = old.completed()
    assert after
    assert (after.rows, after.finished_at) == (done.rows - 1, "2020-01-01T00:00:00+00:00")
    published = read_published(made.store, "outcomes")
    assert published
    assert published.made_from["download"].split()[0] == made.folders["download"].fingerprint


def test_trace_says_when_and_why_and_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_root(f"{tmp_path}/root")
    row = of(table(made.store, "outcomes"), 11)
    assert retract(made.store, tmp_path, row["url"].split("/")[2]) == 0
    capsys.readouterr()
    for flag in ("uid", "url", "sha256"):
        assert trace_main([made.store.uri, f"--{flag}", row[flag], "--json"]) == 0
        (story,) = json.loads(capsys.readouterr().out)
        assert list(story) == ["withdrawn"]
        assert story["withdrawn"]["retraction"] == "0001"
        assert story["withdrawn"]["why"] == "the owner asked"
    other = of(table(made.store, "outcomes"), 14)
    assert trace_main([made.store.uri, "--uid", other["uid"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["uid"] == other["uid"]


def test_verify_notices_a_withdrawn_row_that_is_back(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    row = of(table(made.store, "outcomes"), 11)
    assert retract(made.store, tmp_path, "https://nowhere.test/1.jpg", "uid:" + "0" * 32) == 0
    store = made.store
    path = "retractions/0001.tombstone"
    line = "uid " + hashlib.sha256(f"uid\x1f{row['uid']}".encode()).hexdigest() + "\n"
    store.replace(path, store.read(path) + line.encode())
    assert any("was withdrawn by retraction 0001" in told for told in breaches(store))


def test_a_held_root_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_root(f"{tmp_path}/root")
    row = of(table(made.store, "outcomes"), 11)
    with Lease.acquire(made.store, "another"):
        before = everything(made.store)
        assert retract(made.store, tmp_path, row["url"]) == 4
        assert "held by run another" in capsys.readouterr().err
        assert set(everything(made.store)) == set(before)


def test_an_unknown_line_is_one_line_and_nothing_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_root(f"{tmp_path}/root")
    before = everything(made.store)
    assert retract(made.store, tmp_path, "http://host1.test/0001/1.jpg", "what is this") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "list.txt:2: 'what is this'" in told
    assert everything(made.store) == before


def test_in_a_bucket_nothing_stays_but_old_versions_which_are_reported(
    s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import boto3

    made = made_root(s3, 25)
    store = made.store
    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket=s3.split("/")[2], VersioningConfiguration={"Status": "Enabled"})
    upload = client.create_multipart_upload(Bucket=s3.split("/")[2], Key="root/download/killed.tar")
    before = table(store, "outcomes")
    everywhere = needles(store, before)
    lines = [before[0]["url"], "host3.test"]
    assert retract(store, tmp_path, *lines) == 0
    assert "its owner removes those too" in capsys.readouterr().out
    assert read_retractions(store)[0].bucket_versioned is True
    left = table(store, "outcomes")
    assert {row["uid"] for row in before} - {row["uid"] for row in left} == {
        row["uid"] for row in before if row["url"] == lines[0] or "//host3.test/" in row["url"]
    }
    stays = set(needles(store, left))
    assert traces(store, [value for value in everywhere if value not in stays]) == []
    with pytest.raises(client.exceptions.NoSuchUpload):
        client.list_parts(Bucket=s3.split("/")[2], Key="root/download/killed.tar", UploadId=upload["UploadId"])
    assert breaches(store) == []
    assert retract(store, tmp_path, *lines) == 0
    assert "nothing to withdraw" in capsys.readouterr().out


def test_nothing_is_left_to_finish_afterwards(tmp_path: Path) -> None:
    made = made_root(f"{tmp_path}/root")
    assert retract(made.store, tmp_path, of(table(made.store, "outcomes"), 11)["url"]) == 0
    assert finish(made.store, lambda: None) is None
    assert isinstance(made.store, LocalStore)
    assert list((tmp_path / "root/.tmp").glob("*/*")) == []
