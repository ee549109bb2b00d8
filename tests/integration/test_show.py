"""jobs.show tells the funnel of a ROOT, finished or under way, and what is in a column."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.show import main
from pipeline.storage import LocalStore, open_store
from schemas.records import RunRecord
from tests.handmade import HandmadeRoot
from tests.integration.test_retract import table
from tests.scored import HEAD, ScoredRoot, cosine, has


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


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> ScoredRoot:
    made = ScoredRoot(LocalStore(tmp_path_factory.mktemp("scored") / "root"))
    made.batch(60)
    made.finish()
    return made


def scores_of(made: ScoredRoot, encoder: str) -> list[float]:
    rows = [row for row in table(made.store, "outcomes") if row["status"] == "ok" and has(row, encoder)]
    return sorted(cosine(row["uid"], encoder) for row in rows)


def test_a_score_is_told_once_an_encoder(scored: ScoredRoot, capsys: pytest.CaptureFixture[str]) -> None:
    for column in ("clip_score", "scores.clip_score"):
        told = shown(capsys, scored.store.uri, "--column", column)
        assert list(told) == ["b32", "l14"]
        for encoder, block in told.items():
            values = scores_of(scored, encoder)
            assert (block["rows"], block["nulls"]) == (len(values), 0)
            assert block["quantiles"]["50%"] == pytest.approx(values[(len(values) + 1) // 2 - 1], abs=1e-6)
            assert block["quantiles"]["100%"] == pytest.approx(values[-1], abs=1e-6)
            assert sum(rows for _, _, rows in block["histogram"]) == len(values)
    assert main([scored.store.uri, "--column", "clip_score"]) == 0
    lines = capsys.readouterr().out
    assert "scores.clip_score of b32" in lines
    assert "scores.clip_score of l14" in lines


@pytest.mark.parametrize("arguments", [("clip_score", "--encoder", "l14"), ("clip_score_l14",)])
def test_one_encoder_may_be_chosen(
    scored: ScoredRoot, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    told = shown(capsys, scored.store.uri, "--column", *arguments)
    assert list(told) == ["l14"]
    assert told["l14"]["rows"] == len(scores_of(scored, "l14"))


def test_a_head_is_told_of_the_encoder_it_belongs_to(scored: ScoredRoot, capsys: pytest.CaptureFixture[str]) -> None:
    for column in (HEAD, f"scores.{HEAD}"):
        told = shown(capsys, scored.store.uri, "--column", column)
        assert list(told) == ["l14"]


def test_what_select_and_dedupe_said_can_be_asked_for(scored: ScoredRoot, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, scored.store.uri, "--column", "kept")["table"] == "decisions"
    assert shown(capsys, scored.store.uri, "--column", "level")["table"] == "duplicates"
    assert shown(capsys, scored.store.uri, "--column", "embeddings.status")["b32"]["top"][0][0] == "ok"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("clip_score", "--encoder", "b16"), "there are b32, l14"),
        (("clip_score_b16",), "clip_score_b32 or clip_score?"),
        (("status", "--encoder", "b32"), "is of no encoder"),
    ],
)
def test_an_unknown_encoder_is_one_line(
    scored: ScoredRoot, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([scored.store.uri, "--column", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words in told


@pytest.mark.parametrize("uri", ["/nowhere/at/all", "ftp://host/x", __file__])
def test_no_root_is_one_clear_line_and_exit_2(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([uri]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_bucket_is_one_clear_line_and_exit_2(s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["s3://no-such-bucket-here/root"]) == 2
    assert main([s3]) == 2
    assert "is no ROOT" in capsys.readouterr().err
