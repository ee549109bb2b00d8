"""A retraction while a batch made by --readmit is not ingested yet."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ingest.stage import make_batches, run_ingest
from pipeline.retract.listing import read_list
from pipeline.retract.run import retract
from pipeline.root import read_batches
from pipeline.runner import Result
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore
from pipeline.units import StageFolder
from pipeline.verify.run import verify
from schemas.recipe import fingerprint, parse_recipe

STRICT = parse_recipe({"ingest": {"prefilter": {"words": "n_words >= 4"}}}, "strict")
LOOSE = parse_recipe({"ingest": {"prefilter": {"words": "n_words >= 2"}}}, "loose")
ROWS = 900


class Input:
    def __init__(self, tmp_path: Path) -> None:
        self.store = LocalStore(tmp_path / "root")
        self.folder = StageFolder(self.store, "ingest", fingerprint(STRICT, "ingest", {}))
        with (tmp_path / "rows.csv").open("w") as file:
            lines = [(f"http://h{row % 9}.test/{row}", "word " * (row % 5 + 1)) for row in range(ROWS)]
            csv.writer(file).writerows([("url", "caption"), *lines])
        make_batches(self.store, STRICT, [str(tmp_path / "rows.csv")], None, None, "run")
        self.ingest()

    def readmit(self) -> None:
        assert make_batches(self.store, LOOSE, [], None, "0001", "run")

    def ingest(self, units: int | None = None) -> None:
        stop = StopFlag(self.store.uri, "run")
        done: list[Result] = []

        def report(result: Result) -> None:
            done.append(result)
            if len(done) == units:
                stop.raise_flag()

        run_ingest(self.store, LOOSE, list(read_batches(self.store).values()), self.folder, "run", stop, report)
        stop.lower()

    def rows(self, table: str) -> list[dict[str, object]]:
        return [
            row
            for record in self.folder.iter_records()
            for entry in record.files
            if entry.table == table
            for row in pq.read_table(pa.BufferReader(self.store.read(f"{self.folder.base}/{entry.path}"))).to_pylist()
        ]


def breaches(store: LocalStore) -> list[str]:
    return [line for check in verify(store).checks for line in check.first]


@pytest.mark.parametrize("ingested", [0, 1, "not released"])
def test_it_is_taken_back_and_made_again_of_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ingested: int | str
) -> None:
    made = Input(tmp_path)
    made.readmit()
    if ingested == "not released":
        monkeypatch.setattr("pipeline.ingest.stage.release", lambda *_: None)
        made.ingest()
        monkeypatch.undo()
    elif ingested:
        made.ingest(units=1)
    (tmp_path / "list.txt").write_text("host:h3.test\n")
    receipt = retract(made.store, read_list(str(tmp_path / "list.txt")), False, "asked", "run-2", lambda: None)
    assert receipt
    assert receipt.finished_at
    assert list(read_batches(made.store)) == ["0001"]
    assert breaches(made.store) == []
    made.readmit()
    made.ingest()
    assert breaches(made.store) == []
    pairs, rejects = made.rows("pairs"), made.rows("rejects")
    assert {row["source_row"] for row in pairs} == {row for row in range(ROWS) if row % 5 >= 1 and row % 9 != 3}
    withdrawn = [row["source_row"] for row in rejects if row["reason"] == "retracted"]
    assert sorted(withdrawn) == [row for row in range(ROWS) if row % 9 == 3]
    assert len(pairs) + len(rejects) == ROWS


def test_one_that_is_ingested_stays(tmp_path: Path) -> None:
    made = Input(tmp_path)
    made.readmit()
    made.ingest()
    (tmp_path / "list.txt").write_text("host:h3.test\n")
    assert retract(made.store, read_list(str(tmp_path / "list.txt")), False, "asked", "run-2", lambda: None)
    assert list(read_batches(made.store)) == ["0001", "0002"]
    assert breaches(made.store) == []
