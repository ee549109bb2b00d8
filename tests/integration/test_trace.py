"""jobs.trace tells a row's story from its input row to its shard, whichever handle one has of it."""

import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.trace import main
from pipeline.storage import LocalStore, open_store
from pipeline.trace import Trace
from pipeline.units import Output
from tests.handmade import HandmadeRoot

OK, NO_TEXT, DUPLICATE, TIMED_OUT, ROBOTS, SHARED = 6, 3, 5, 7, 8, 9
"""Numbers of rows by what becomes of them."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> HandmadeRoot:
    made = HandmadeRoot(LocalStore(tmp_path_factory.mktemp("traced") / "root"))
    made.batch(45)
    made.finish()
    return made


def outcome(made: HandmadeRoot, number: int) -> dict[str, Any]:
    rows = pq.read_table(f"{made.store.uri}/tables/outcomes/v1").to_pylist()
    return next(row for row in rows if row["source_row"] == number)


def test_uid_url_key_and_hashes_lead_to_the_same_row(made: HandmadeRoot) -> None:
    row = outcome(made, 1)
    trace = Trace(made.store)
    (story,) = trace.find("uid", row["uid"])
    (sample,) = story["samples"]
    assert trace.find("url", row["url"]) == [story]
    assert trace.find("key", sample["key"]) == [story]
    assert trace.find("sha256", row["pool_sha256"]) == [story]


def test_a_sample_is_told_from_its_input_row_to_its_tar(made: HandmadeRoot) -> None:
    row = outcome(made, 1)
    (story,) = Trace(made.store).find("uid", row["uid"])
    assert (story["input"]["source"], story["input"]["source_row"], story["input"]["batch"]) == (
        "/lists/0001.csv",
        1,
        "0001",
    )
    assert story["unit"] == "0001-0000000"
    (ended,) = story["outcomes"]
    assert (ended["status"], ended["http_status"], ended["of_generation"]) == ("ok", 200, 0)
    assert story["pool"]["verified"] == "sha256 matches"
    (sample,) = story["samples"]
    assert f"{made.store.uri}/{sample['file']}".endswith(f"/dataset/{sample['shard']}.tar")
    did = [line for run in story["runs"] for line in run["did"]]
    assert "made batch 0001" in did
    assert {line.split("/")[0] for line in did if line.startswith("committed")} == {
        "committed ingest", "committed download", "committed dedupe", "committed select", "committed shard",
    }  # fmt: skip
    (decision,) = story["decision"]
    assert decision["kept"]


def test_a_refused_row_shows_the_signal_that_refused_it(made: HandmadeRoot) -> None:
    (story,) = Trace(made.store).find("uid", outcome(made, ROBOTS)["uid"])
    assert story["outcomes"][0]["reason"] == "robots"
    assert story["consent"][0]["verdict"] == "deny"
    assert story["samples"] == []
    assert "pool" not in story


def test_a_duplicate_is_listed_beside_its_witness_and_names_it(made: HandmadeRoot) -> None:
    uid = outcome(made, DUPLICATE - 1)["uid"]
    witness, duplicate = Trace(made.store).find("uid", uid)
    assert [row["source_row"] for row in witness["duplicates"]] == [DUPLICATE]
    assert duplicate["input"]["source_row"] == DUPLICATE
    assert duplicate["rejected"]["dup_of"] == uid
    assert [row["source_row"] for row in duplicate["witness"]] == [DUPLICATE - 1]


def test_rows_that_share_a_url_are_all_listed(made: HandmadeRoot) -> None:
    stories = Trace(made.store).find("url", outcome(made, SHARED)["url"])
    assert {story["input"]["source_row"] for story in stories} == {OK, SHARED}


def test_a_changed_image_is_said_not_to_match(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    made.finish()
    row = outcome(made, 1)
    path = tmp_path / row["pool_file"]
    data = bytearray(path.read_bytes())
    data[row["pool_offset"]] ^= 1
    path.write_bytes(data)
    (story,) = Trace(made.store).find("uid", row["uid"])
    assert story["pool"]["verified"] == "sha256 does NOT match"


def test_every_generation_of_a_retried_row_is_told(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    made.finish()
    uid = outcome(made, TIMED_OUT)["uid"]
    folder = made.folders["download"]
    record = folder.records()["0001-0000000"]
    scratch = made.store.scratch()
    entry = next(entry for entry in record.files if entry.table == "outcomes")
    rows = pq.read_table(tmp_path / folder.base / entry.path)
    again = [{**row, "reason": "dns", "generation": 1} if row["uid"] == uid else row for row in rows.to_pylist()]
    pq.write_table(type(rows).from_pylist(again, schema=rows.schema), scratch / "outcomes.parquet")
    attempt = folder.begin("0001-0000000", 1, "retry", alone=False)
    keep = [entry for entry in record.files if entry.table != "outcomes"]
    outputs = [Output("outcomes", scratch / "outcomes.parquet", record.rows)]
    folder.commit(attempt, outputs, record.counts, record.rows, "handmade", keep)
    (story,) = Trace(made.store).find("uid", uid)
    assert [(row["of_generation"], row["reason"]) for row in story["outcomes"]] == [(0, "timeout"), (1, "dns")]
    assert "retry" in [run["run"] for run in story["runs"]]


def test_a_root_under_way_is_traced_by_the_units_own_files(root: str) -> None:
    made = HandmadeRoot(open_store(root))
    made.batch(20)
    folder = made.folders["download"]
    filesystem, base = made.store.arrow()
    (record,) = folder.records().values()
    entry = next(entry for entry in record.files if entry.table == "outcomes")
    rows = ds.dataset(f"{base}/{folder.base}/{entry.path}", filesystem=filesystem).to_table().to_pylist()
    for row in (rows[0], rows[-1]):
        (story,) = Trace(made.store).find("url", row["url"])[:1]
        assert story["unit"] == "0001-0000000"
        assert story["outcomes"][0]["status"] == row["status"]
        assert story["samples"] == []


def test_the_job_prints_json_for_machines_and_lines_for_people(
    made: HandmadeRoot, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = outcome(made, 1)["uid"]
    assert main([made.store.uri, "--uid", uid, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["uid"] == uid
    assert main([made.store.uri, "--uid", uid]) == 0
    assert "source: /lists/0001.csv\n" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--uid", "--key", "--url", "--sha256"])
def test_what_is_not_there_exits_1_with_one_line(
    made: HandmadeRoot, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([made.store.uri, flag, "nothing"]) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "no row has" in told.err
    assert not told.out
