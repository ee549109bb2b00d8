"""jobs.verify finds every way in which we could break an invariant, names the place, and is content with the rest."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.verify import main
from pipeline.storage import LocalStore, open_store
from pipeline.units import measure
from pipeline.verify.run import verify
from tests.handmade import HandmadeRoot, Vandal

UNIT, OTHER = "0001-0000000", "0001-0000001"
SHARD = "0001-0000000"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "root"
    made = HandmadeRoot(LocalStore(root))
    made.batch(45)
    made.finish()
    made.batch(20, kept=True)
    made.finish()
    return root


@pytest.fixture
def vandal(pristine: Path, tmp_path: Path) -> Vandal:
    shutil.copytree(pristine, tmp_path / "root")
    return Vandal(tmp_path / "root")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_whole_root_verifies(pristine: Path, share: float) -> None:
    report = verify(LocalStore(pristine), share)
    assert not report.breaches, [check.first for check in report.checks]
    assert {check.invariant for check in report.checks} == {1, 2, 3, 4, 5}
    assert not report.notes


def test_a_root_in_s3_verifies(s3: str) -> None:
    made = HandmadeRoot(open_store(s3))
    made.batch(30)
    made.finish()
    report = verify(open_store(s3))
    assert not report.breaches, [check.first for check in report.checks]


def test_a_root_with_only_ingest_done_verifies(tmp_path: Path) -> None:
    made = HandmadeRoot(LocalStore(tmp_path))
    made.batch(30)
    shutil.rmtree(tmp_path / "download")
    made.complete("ingest")
    assert not verify(LocalStore(tmp_path)).breaches


def _lose_outcome(vandal: Vandal) -> None:
    vandal.rows("download", UNIT, "outcomes", lambda rows: rows[1:])


def _double_outcome(vandal: Vandal) -> None:
    vandal.rows("download", UNIT, "outcomes", lambda rows: [rows[0], *rows])


def _unknown_reason(vandal: Vandal) -> None:
    vandal.rows("download", UNIT, "outcomes", lambda rows: [{**rows[0], "reason": "bad_luck"}, *rows[1:]])


def _other_text(vandal: Vandal) -> None:
    vandal.rows("download", UNIT, "outcomes", lambda rows: [{**rows[0], "text": "other"}, *rows[1:]])


def _miscounted(vandal: Vandal) -> None:
    vandal.rewrite_record("download", UNIT, lambda told: told["counts"]["ok"].update({"": 99}))


def _unknown_status_in_record(vandal: Vandal) -> None:
    vandal.rewrite_record("ingest", UNIT, lambda told: told["counts"].update(lost={"": 0}))


def _lose_download_record(vandal: Vandal) -> None:
    (vandal.root / vandal.made.folders["download"].base / "units" / f"{UNIT}.0.json").unlink()


def _lose_ingest_record(vandal: Vandal) -> None:
    (vandal.root / vandal.made.folders["ingest"].base / "units" / f"{UNIT}.0.json").unlink()


def _wrong_completion(vandal: Vandal) -> None:
    path = vandal.root / vandal.made.folders["download"].base / "complete.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "rows": told["rows"] + 1}))


def _uid_of_two_units(vandal: Vandal) -> None:
    taken = pq.read_table(vandal.path("ingest", UNIT, "pairs"))["uid"][0].as_py()
    for stage, table in (("ingest", "pairs"), ("download", "outcomes")):
        vandal.rows(stage, OTHER, table, lambda rows: [{**rows[0], "uid": taken}, *rows[1:]])


def _input_row_twice(vandal: Vandal) -> None:
    vandal.rows("ingest", UNIT, "rejects", lambda rows: [{**row, "source_row": 0} for row in rows[:1]] + rows[1:])


def _row_beyond_the_file(vandal: Vandal) -> None:
    vandal.rows("ingest", UNIT, "rejects", lambda rows: [{**rows[0], "source_row": 1_000}, *rows[1:]])


def _unknown_file(vandal: Vandal) -> None:
    vandal.rows("ingest", UNIT, "rejects", lambda rows: [{**rows[0], "source": "/lists/none.csv"}, *rows[1:]])


def _published_twice(vandal: Vandal) -> None:
    (part,) = (vandal.root / "tables/outcomes/v2").iterdir()
    table = pq.read_table(part)
    pq.write_table(pa.concat_tables([table.slice(0, 1), table]), part)
    latest = vandal.root / "tables/outcomes/latest.json"
    told = json.loads(latest.read_text())
    size, digest = measure(part)
    told["files"][0].update(bytes=size, sha256=digest, rows=told["rows"] + 1)
    latest.write_text(json.dumps({**told, "rows": told["rows"] + 1}))


def _published_part_lost(vandal: Vandal) -> None:
    (part,) = (vandal.root / "tables/pairs/v2").iterdir()
    part.unlink()


def _point_elsewhere(vandal: Vandal) -> None:
    vandal.rows(
        "download", UNIT, "outcomes", lambda rows: [{**rows[0], "pool_offset": rows[0]["pool_offset"] + 1}, *rows[1:]]
    )


def _other_pool_sha256(vandal: Vandal) -> None:
    vandal.rows("download", UNIT, "outcomes", lambda rows: [{**rows[0], "pool_sha256": "0" * 64}, *rows[1:]])


def _ok_without_member(vandal: Vandal) -> None:
    none = {"pool_file": None, "pool_offset": None, "pool_size": None, "pool_sha256": None}
    vandal.rows("download", UNIT, "outcomes", lambda rows: [{**rows[0], **none}, *rows[1:]])


def _strange_pool_file(vandal: Vandal) -> None:
    vandal.rows("download", UNIT, "outcomes", lambda rows: [{**rows[0], "pool_file": "download/x.tar"}, *rows[1:]])


def _member_of_nobody(vandal: Vandal) -> None:
    path = vandal.path("download", UNIT, "pool")
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("nobody.jpg"))
    vandal.tell_again("download", UNIT, "pool")


def _failed_with_member(vandal: Vandal) -> None:
    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        member = {name: rows[0][name] for name in ("pool_file", "pool_offset", "pool_size", "pool_sha256")}
        return [{**row, **member} if row["status"] == "failed" else row for row in rows]

    vandal.rows("download", UNIT, "outcomes", edit)


def _pool_byte(vandal: Vandal) -> None:
    path = vandal.path("download", UNIT, "pool")
    vandal.bytes(path, lambda data: data.__setitem__(600, data[600] ^ 1))
    vandal.tell_again("download", UNIT, "pool")


def _no_witness(vandal: Vandal) -> None:
    vandal.rows(
        "ingest", UNIT, "rejects",
        lambda rows: [{**row, "dup_of": "f" * 32} if row["reason"] == "duplicate" else row for row in rows],
    )  # fmt: skip


def _later_witness(vandal: Vandal) -> None:
    later = pq.read_table(vandal.path("ingest", "0002-0000000", "pairs"))["uid"][0].as_py()
    vandal.rows(
        "ingest", UNIT, "rejects",
        lambda rows: [{**row, "dup_of": later} if row["reason"] == "duplicate" else row for row in rows],
    )  # fmt: skip


def _lose_file(vandal: Vandal) -> None:
    vandal.path("download", UNIT, "consent").unlink()


def _cut_table(vandal: Vandal) -> None:
    vandal.bytes(vandal.path("download", UNIT, "outcomes"), lambda data: data.__delitem__(slice(-10, None)))


def _cut_pool(vandal: Vandal) -> None:
    vandal.bytes(vandal.path("download", UNIT, "pool"), lambda data: data.__delitem__(slice(-1500, None)))


def _stats_byte(vandal: Vandal) -> None:
    vandal.bytes(vandal.path("shard", SHARD, "stats"), lambda data: data.__setitem__(0, 0x20))


def _tar_header(vandal: Vandal) -> None:
    vandal.bytes(vandal.path("shard", SHARD, "tar"), lambda data: data.__setitem__(0, data[0] ^ 1))


def _sample_of_nobody(vandal: Vandal) -> None:
    vandal.rows("shard", SHARD, "samples", lambda rows: [{**rows[0], "uid": "f" * 32}, *rows[1:]])


def _gap_in_keys(vandal: Vandal) -> None:
    vandal.rows("shard", SHARD, "samples", lambda rows: [*rows[:-1], {**rows[-1], "key": "0000099"}])


def _sample_twice(vandal: Vandal) -> None:
    vandal.rows("shard", SHARD, "samples", lambda rows: [*rows[:-1], {**rows[0], "key": rows[-1]["key"]}])


def _other_caption(vandal: Vandal) -> None:
    vandal.rows("shard", SHARD, "samples", lambda rows: [{**rows[0], "caption": "other"}, *rows[1:]])


def _wrong_sizes(vandal: Vandal) -> None:
    path = vandal.root / vandal.made.folders["shard"].base / "dataset/sizes.json"
    path.write_text(path.read_text().replace("16", "15", 1))


def _tar_of_another_image(vandal: Vandal) -> None:
    path = vandal.path("shard", SHARD, "tar")
    with tarfile.open(path) as tar:
        first, second = [member for member in tar.getmembers() if member.name.endswith(".jpg")][:2]
    vandal.bytes(path, lambda data: data.__setitem__(first.offset_data + 100, data[first.offset_data + 100] ^ 1))
    assert first.name != second.name
    vandal.tell_again("shard", SHARD, "tar")


@pytest.mark.parametrize(
    ("break_it", "invariant", "words"),
    [
        (_lose_outcome, 1, "has no outcome"),
        (_double_outcome, 1, "has 2 outcomes"),
        (_unknown_reason, 1, "'bad_luck', which is not in the closed set"),
        (_other_text, 1, "has another text than its pair"),
        (_miscounted, 1, "its counts sum to"),
        (_unknown_status_in_record, 1, "status 'lost'"),
        (_lose_download_record, 1, f"download unit {UNIT}: its 16 pairs have no outcome"),
        (_lose_ingest_record, 1, f"unit {UNIT} (20 rows) has no ingest record"),
        (_wrong_completion, 1, "complete.json: says"),
        (_uid_of_two_units, 1, "is of 2 pairs"),
        (_input_row_twice, 1, "/lists/0001.csv row 0 has 2 outcomes"),
        (_row_beyond_the_file, 1, "row 1000 is in no file of batch 0001"),
        (_unknown_file, 1, "/lists/none.csv"),
        (_published_twice, 1, "is there twice or out of order"),
        (_published_part_lost, 1, "latest.json names it, but it is missing"),
        (_point_elsewhere, 2, "where no such member is"),
        (_other_pool_sha256, 2, "does not have its pool_sha256"),
        (_ok_without_member, 2, "is ok but points to no pool member"),
        (_strange_pool_file, 2, "which its record does not name"),
        (_member_of_nobody, 2, "no ok row points to the member from"),
        (_failed_with_member, 2, "is not ok but points to a pool member"),
        (_pool_byte, 2, "does not have its pool_sha256"),
        (_no_witness, 3, "no pair"),
        (_later_witness, 3, "(batch 0002)"),
        (_lose_file, 4, "is recorded but missing"),
        (_cut_table, 4, "is no whole Parquet file"),
        (_cut_pool, 4, "is cut short in member"),
        (_stats_byte, 4, "00000_stats.json: its sha256 is"),
        (_tar_header, 4, "has a damaged header at byte 0"),
        (_sample_of_nobody, 5, "which is no ok outcome"),
        (_gap_in_keys, 5, "has key 0000099"),
        (_sample_twice, 5, "is in 2 samples"),
        (_other_caption, 5, ".txt is not the sample's caption"),
        (_wrong_sizes, 5, "sizes.json: says 15 samples in shard 00000"),
        (_tar_of_another_image, 5, "is not the pool image of"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_breach_is_named(vandal: Vandal, break_it: Callable[[Vandal], None], invariant: int, words: str) -> None:
    break_it(vandal)
    report = verify(LocalStore(vandal.root))
    told = [line for check in report.checks if check.invariant == invariant for line in check.first]
    assert any(words in line for line in told), [check.first for check in report.checks]


def test_quick_reads_no_images_yet_sees_a_file_of_another_size(vandal: Vandal) -> None:
    _pool_byte(vandal)
    assert not verify(LocalStore(vandal.root), 0.0).breaches
    _cut_pool(vandal)
    assert verify(LocalStore(vandal.root), 0.0).breaches


def test_a_sample_takes_the_same_files_every_time(vandal: Vandal) -> None:
    _stats_byte(vandal)
    shares = [0.05 * step for step in range(21)]
    found = [bool(verify(LocalStore(vandal.root), share).breaches) for share in shares]
    assert found == sorted(found), "a larger share holds the smaller one"
    assert found[-1]
    assert not found[0]
    assert found == [bool(verify(LocalStore(vandal.root), share).breaches) for share in shares]


def test_files_that_no_record_names_are_no_breach_but_noted(vandal: Vandal) -> None:
    stray = vandal.path("download", UNIT, "outcomes").with_name(f"{UNIT}.0.7.parquet")
    stray.write_bytes(b"half a fi")
    report = verify(LocalStore(vandal.root))
    assert not report.breaches
    assert "1 files that no record names" in report.notes[0]


def test_the_job_says_each_breach_in_a_line_and_exits_1(vandal: Vandal, capsys: pytest.CaptureFixture[str]) -> None:
    _lose_file(vandal)
    assert main([str(vandal.root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("breach of invariant 4: download/") for line in lines) == 1
    assert lines[-1].endswith("1 breaches")


def test_the_job_exits_0_on_a_whole_root_and_2_on_none(
    pristine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(pristine), "--quick"]) == 0
    assert main([str(tmp_path)]) == 2
    assert "is no ROOT" in capsys.readouterr().err
