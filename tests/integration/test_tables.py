"""What is published is what the records say: current rows only, sorted, once, under one number."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline import external_sort, tables
from pipeline.external_sort import Source, by_uid, sorted_chunks
from pipeline.storage import LocalStore, Store, open_store
from pipeline.tables import SOURCES_OF, publish, read_published
from pipeline.units import Output, measure
from schemas.tables import TABLES
from tests.handmade import HandmadeRoot


def published(store: Store, table: str) -> pa.Table:
    latest = read_published(store, table)
    assert latest
    filesystem, root = store.arrow()
    return ds.dataset([f"{root}/{file.path}" for file in latest.files], filesystem=filesystem).to_table()


def written(made: HandmadeRoot, table: str) -> list[dict[str, Any]]:
    """Every row of the units' own files, by brute force."""
    if SOURCES_OF[table][0] not in made.folders:
        return []
    folder = made.folders[SOURCES_OF[table][0]]
    filesystem, root = made.store.arrow()
    rows: list[dict[str, Any]] = []
    for record in folder.records().values():
        for entry in record.files:
            if entry.table == table:
                rows += ds.dataset(f"{root}/{folder.base}/{entry.path}", filesystem=filesystem).to_table().to_pylist()
    return rows


def test_the_first_publication_holds_every_row_sorted_with_the_documented_types(root: str) -> None:
    made = HandmadeRoot(open_store(root))
    made.batch(45)
    assert made.finish() == 1
    for table, schema in TABLES.items():
        if table not in SOURCES_OF:
            continue
        found = published(made.store, table)
        assert found.schema.equals(schema), table
        keys = ["batch", "source", "source_row"] if table == "rejects" else ["uid"]
        rows = found.to_pylist()
        assert rows == sorted(rows, key=lambda row: [row[key] for key in keys])
        assert sorted(map(str, rows)) == sorted(map(str, written(made, table)))


def test_kept_columns_of_one_batch_are_null_in_the_others(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    made.batch(20, kept=True)
    made.finish()
    rows = published(made.store, "pairs").to_pylist()
    assert {(row["batch"], row["src_licence"] is None) for row in rows} == {("0001", True), ("0002", False)}


def test_nothing_is_published_again_until_something_is_completed(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    assert made.finish() == 1
    assert publish(made.store, made.folders) is None
    assert made.finish() is None
    made.batch(20)
    assert made.finish() == 2
    assert {path.name for path in (tmp_path / "tables/pairs").iterdir()} == {"v1", "v2", "latest.json"}


def test_a_batch_under_way_is_not_published(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    made.finish()
    made.batch(20)
    made.complete("ingest")
    publish(made.store, made.folders)
    assert set(published(made.store, "pairs")["batch"].to_pylist()) == {"0001", "0002"}
    assert set(published(made.store, "outcomes")["batch"].to_pylist()) == {"0001"}


def test_only_the_current_generation_of_a_row_is_published(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    made.finish()
    folder = made.folders["download"]
    record = folder.records()["0001-0000000"]
    scratch = made.store.scratch()
    filesystem, root = made.store.arrow()
    outputs = []
    for table in ("outcomes", "consent"):
        entry = next(entry for entry in record.files if entry.table == table)
        rows = ds.dataset(f"{root}/{folder.base}/{entry.path}", filesystem=filesystem).to_table()
        if table == "outcomes":
            rows = rows.set_column(
                rows.schema.get_field_index("generation"), "generation", pa.array([1] * len(rows), pa.int32())
            )
        pq.write_table(rows, scratch / f"{table}.parquet")
        outputs.append(Output(table, scratch / f"{table}.parquet", len(rows)))
    keep = [entry for entry in record.files if entry.table == "pool"]
    attempt = folder.begin("0001-0000000", 1, "retry", alone=False)
    folder.commit(attempt, outputs, record.counts, record.rows, "handmade", keep)
    assert publish(made.store, made.folders) is None, "the retry has not been completed"
    (tmp_path / folder.base / "complete.json").unlink()
    made.complete("download")
    assert publish(made.store, made.folders) == 2
    assert published(made.store, "outcomes")["generation"].to_pylist() == [1] * record.rows


@pytest.mark.parametrize("point", ["before-tables", "before-latest@outcomes", "before-views"])
def test_a_failure_while_publishing_leaves_the_old_tables_whole_and_the_next_run_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    made = HandmadeRoot(LocalStore(tmp_path / "root"))
    made.batch(20)
    made.finish()
    old = {path: path.read_bytes() for path in (tmp_path / "root/tables").glob("*/v1/*")}
    made.batch(20)
    monkeypatch.setenv("PAIRMILL_FAULT", f"{point}:enospc:{tmp_path}/flag")
    with pytest.raises(OSError, match="space"):
        made.finish()
    for table in SOURCES_OF:
        latest = read_published(made.store, table)
        assert latest
        assert all(measure(tmp_path / "root" / file.path) == (file.bytes, file.sha256) for file in latest.files)
    assert {path: path.read_bytes() for path in old} == old
    assert (tmp_path / "root/views.sql").read_text().count("/v1/") == len(SOURCES_OF)
    again = publish(made.store, made.folders)
    assert {read.version for table in SOURCES_OF if (read := read_published(made.store, table))} == {again}


@pytest.mark.parametrize("lost", ["tables/consent/latest.json", "views.sql"])
def test_a_publication_cut_short_is_made_again_under_a_new_number(tmp_path: Path, lost: str) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    made.finish()
    (tmp_path / lost).unlink()
    assert publish(made.store, made.folders) == 2
    assert {read.version for table in SOURCES_OF if (read := read_published(made.store, table))} == {2}


def test_a_dead_number_is_never_used_again(root: str, tmp_path: Path) -> None:
    made = HandmadeRoot(open_store(root))
    made.batch(20)
    made.finish()
    dead = tmp_path / "half"
    dead.write_bytes(b"half")
    made.store.publish(dead, "tables/outcomes/v7/part-00000.parquet")
    made.batch(20)
    assert made.finish() == 8


def test_latest_tells_sizes_sums_and_rows(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    made.finish()
    told = json.loads((tmp_path / "tables/outcomes/latest.json").read_text())
    assert told["rows"] == sum(file["rows"] for file in told["files"]) == 16
    for file in told["files"]:
        assert measure(tmp_path / file["path"]) == (file["bytes"], file["sha256"])


def test_samples_has_one_row_for_every_input_row_from_source_to_key(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(45)
    made.finish()
    text = (tmp_path / "views.sql").read_text()
    assert (tmp_path / "tables/views.sql").read_text() == text
    with duckdb.connect() as engine:
        engine.execute(text)
        rows = engine.execute("SELECT source, source_row, status, key, shard, dup_of, uid FROM samples").fetchall()
        assert sorted((source, row) for source, row, *_ in rows) == [("/lists/0001.csv", row) for row in range(45)]
        assert {status == "ok" for _, _, status, key, *_ in rows if key} == {True}
        assert sum(key is not None for _, _, _, key, *_ in rows) == sum(status == "ok" for _, _, status, *_ in rows)
        assert engine.execute("SELECT count(*) FROM outcomes WHERE uid NOT IN (SELECT uid FROM pairs)").fetchone() == (
            0,
        )


def test_samples_without_a_dataset_say_no_key(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(20)
    made.complete("ingest", "download")
    publish(made.store, made.folders)
    with duckdb.connect() as engine:
        engine.execute((tmp_path / "views.sql").read_text())
        assert engine.execute("SELECT count(*), count(key) FROM samples").fetchone() == (20, 0)


def test_many_files_are_sorted_in_ranges_and_cut_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = HandmadeRoot(LocalStore(tmp_path / "whole"))
    ranged = HandmadeRoot(LocalStore(tmp_path / "ranged"))
    for made in (whole, ranged):
        made.batch(110)
        made.batch(70, kept=True)
        made.complete("ingest", "download")
    publish(whole.store, whole.folders)
    monkeypatch.setattr(external_sort, "CHUNK_ROWS", 25)
    monkeypatch.setattr(tables, "PART_BYTES", 20_000)
    publish(ranged.store, ranged.folders)
    for table in SOURCES_OF:
        same = [published(made.store, table) for made in (whole, ranged)]
        assert (
            same[0]
            .drop_columns([c for c in ("pool_file",) if c in same[0].column_names])
            .equals(same[1].drop_columns([c for c in ("pool_file",) if c in same[1].column_names]))
        )
    latest = read_published(ranged.store, "outcomes")
    assert latest
    assert len(latest.files) > 2


@pytest.mark.parametrize("files", [1, 2, 7])
def test_sorted_chunks_agree_with_sorting_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    monkeypatch.setattr(external_sort, "CHUNK_ROWS", 40)
    random = np.random.default_rng(files)
    parts = {
        str(number): pa.table({
            "uid": [f"{value:016x}" for value in random.integers(0, 2**63, 50)], "value": random.integers(0, 9, 50)
        }) for number in range(files)
    }  # fmt: skip
    sources = [Source(name, 50, 1) for name in parts]

    def read(paths: list[str]) -> pa.Table:
        return pa.concat_tables([parts[path] for path in paths])

    chunks = list(sorted_chunks(sources, read, ["uid", "value"], by_uid, tmp_path / "sort"))
    assert pa.concat_tables(chunks).to_pylist() == read(list(parts)).sort_by("uid").to_pylist()
    assert len(chunks) == files
