"""jobs.ingest --readmit: a batch of the rejected rows that the present prefilter admits."""

import shutil
from pathlib import Path

import pytest

from pipeline.errors import InputError
from tests.integration.test_ingest import Ingested, check_every_row_once, recipe, write_csv


def test_readmission_makes_a_batch_of_what_the_present_prefilter_admits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(f"http://h{i % 9}/{i}", "word " * (i % 5 + 1), i) for i in range(400)]
    path = write_csv(tmp_path / "x.csv", [*rows, ("bad", "x", 1)], ("url", "caption", "w"))
    old = {"keep_columns": ["w"], "prefilter": {"words": "n_words >= 4"}}
    looser = {"keep_columns": ["w"], "prefilter": {"words": "n_words >= 2", "odd": "CAST(src_w AS INTEGER) % 2 = 1"}}
    ingested = Ingested(tmp_path / "root", recipe(**old))
    ingested.add(path)
    rejected = {r["source_row"] for r in ingested.table("rejects") if r["reason"] == "text_rule"}
    path.unlink()
    made = ingested.add(readmit="0001", **looser)
    assert "later batches" in caplog.text
    assert made is not None
    assert (made.readmits, made.batch) == ("0001", "0002")
    check_every_row_once(ingested)
    expected = {i for i, (_, text, w) in enumerate(rows) if 2 <= len(text.split()) < 4 and w % 2 == 1}
    admitted = [row for row in ingested.table("pairs") if row["batch"] == "0002"]
    assert {row["source_row"] for row in admitted} == expected
    assert all(row["src_w"] == str(row["source_row"]) for row in admitted)
    left = {r["source_row"] for r in ingested.table("rejects") if r["reason"] == "text_rule"}
    assert left == rejected - expected
    generations = ingested.folder.generations()
    assert ingested.run() == []
    assert ingested.folder.generations() == generations
    assert ingested.add(readmit="0001", **looser) is None
    for wrong in ("0009", "1"):
        with pytest.raises(InputError, match="no such batch"):
            ingested.make(readmit=wrong)


def test_a_readmission_that_was_interrupted_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "x.csv", [(f"http://h{i % 9}/{i}", "word " * (i % 5 + 1)) for i in range(900)])
    ingested = Ingested(tmp_path / "root", recipe(prefilter={"words": "n_words >= 4"}))
    ingested.add(path)
    assert ingested.make(readmit="0001", prefilter={"words": "n_words >= 2"}) is not None
    shutil.rmtree(tmp_path / "root" / ingested.folder.base / "scratch")
    with pytest.raises(InputError, match="still to be ingested"):
        ingested.make(readmit="0001")
    ingested.run(stop_after=1)
    ingested.run()
    check_every_row_once(ingested)
