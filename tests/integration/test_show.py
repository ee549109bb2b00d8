"""jobs.show tells the funnel of a ROOT, finished or under way, and what is in a column."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.show import main
from pipeline.storage import LocalStore, open_store
from schemas.records import RunRecord
from tests.handmade import HandmadeRoot


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_in_and_out_follow_from_stage_to_stage(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = HandmadeRoot(open_store(root))
    made.batch(40)
    made.batch(20)
    made.finish()
    told = shown(capsys, root)
    assert told["input_rows"] == 60
    stages = {stage["stage"]: (stage["rows_in"], stage["rows_out"], stage["pending"]) for stage in told["stages"]}
    assert stages == {"ingest": (60, 48, 0), "download": (48, 36, 0)} | dict.fromkeys(
        ("dedupe", "select", "shard"), (36, 36, 0)
    )
    assert told["batches"][1]["ok"]["download"] == 12
    assert (told["samples"], told["shards"]) == (36, 3)
    assert told["dataset"].startswith(root)


def test_a_root_under_way_shows_what_is_pending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(40)
    (record, *_) = (tmp_path / made.folders["download"].base / "units").iterdir()
    record.unlink()
    told = shown(capsys, str(tmp_path))
    download = told["stages"][1]
    assert (download["rows_in"], download["pending"], download["finished_at"]) == (32, 16, None)
    assert main([str(tmp_path)]) == 0
    assert "download is not finished" in capsys.readouterr().out


def test_people_see_reasons_with_their_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(40)
    made.finish()
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("robots" in line and " 4 " in line and "12.5%" in line for line in lines)
    assert any(line.startswith("dataset: ") for line in lines)


def test_gates_of_the_last_run_that_failed_are_shown_until_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(40)
    made.finish()
    last = max((tmp_path / "runs").iterdir())
    run = RunRecord.model_validate_json(last.read_bytes())
    gated = run.model_copy(update={"recipe": {"download": {"min_success": 0.99}}})
    last.write_bytes(gated.to_bytes())
    assert [gate["gate"] for gate in shown(capsys, str(tmp_path))["failed_gates"]] == ["min_success"]
    last.write_bytes(gated.model_copy(update={"accepts": ["0001"]}).to_bytes())
    assert shown(capsys, str(tmp_path))["failed_gates"] == []


def test_a_column_of_numbers_has_quantiles_and_a_histogram(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(40)
    made.finish()
    told = shown(capsys, str(tmp_path), "--column", "source_row")
    assert told["table"] == "outcomes"
    assert (told["quantiles"]["0%"], told["quantiles"]["100%"]) == (0, 39)
    assert sum(rows for _, _, rows in told["histogram"]) == told["rows"] - told["nulls"] == 32
    assert main([str(tmp_path), "--column", "source_row"]) == 0
    assert "█" in capsys.readouterr().out


def test_a_column_of_words_has_its_top_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(40)
    made.finish()
    told = shown(capsys, str(tmp_path), "--column", "rejects.reason")
    assert told["top"] == [["duplicate", 4], ["missing_text", 4]]


@pytest.mark.parametrize(
    ("column", "words"), [("statuss", "did you mean status"), ("pool_fil", "pool_file"), ("zzzz", "there are")]
)
def test_an_unknown_column_names_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, words: str
) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    made.finish()
    assert main([str(tmp_path), "--column", column]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["/nowhere/at/all", "ftp://host/x", __file__])
def test_no_root_is_one_clear_line_and_exit_2(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([uri]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_bucket_is_one_clear_line_and_exit_2(s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["s3://no-such-bucket-here/root"]) == 2
    assert main([s3]) == 2
    assert "is no ROOT" in capsys.readouterr().err
