"""jobs.adopt on downloads that are broken, changed or not wanted: typed outcomes, or one clear line."""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.test_adopt import images, recipe, theirs
from tests.running import job, table


def rewrite_tar(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write a tar again with members changed or left out."""
    made = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=made, mode="w") as new:
        for info in old:
            data = change(info.name, old.extractfile(info).read())  # type: ignore[union-attr]
            if data is not None:
                info.size = len(data)
                info.pax_headers.clear()
                new.addfile(info, io.BytesIO(data))
    path.write_bytes(made.getvalue())


def test_broken_shards_end_in_typed_outcomes(download: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(download / "shards", folder)
    cut, gaps = folder / "00000000.tar", folder / "00000001.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    success = [
        row["key"] for row in pq.read_table(folder / "00000001.parquet").to_pylist() if row["status"] == "success"
    ]
    missing, text, tiff = success[:3]
    lies = {f"{missing}.jpg": None, f"{text}.jpg": b"<html>", f"{tiff}.jpg": b"II*\0" + bytes(80)}
    rewrite_tar(gaps, lambda name, data: lies.get(name, data))
    orphan = pq.read_table(folder / "00000002.parquet")
    named = [row["status"] == "success" for row in orphan.to_pylist()].index(True)
    pq.write_table(pa.concat_tables([orphan.slice(0, named), orphan.slice(named + 1)]), folder / "00000002.parquet")
    shutil.copy(folder / "00000003.tar", folder / "00000099.tar")
    run = job("adopt", folder, "--output", tmp_path / "root", "--set", "download.min_success=0")
    assert run.returncode == 0, run.stderr
    assert "00000000.tar: " in run.stderr
    assert "end as truncated" in run.stderr
    assert "1 images in its tars belong to no successful row" in run.stderr
    assert "without a Parquet file beside it, which says what it holds: 00000099.tar" in run.stderr
    by_key = {row["src_key"]: row for row in table(tmp_path / "root", "outcomes").to_pylist()}
    assert [by_key[key]["reason"] for key in (missing, text, tiff)] == [
        "truncated", "not_an_image", "unsupported_format"]  # fmt: skip
    first = [row for row in by_key.values() if row["source"].endswith("00000000.parquet")]
    assert {row["reason"] for row in first if (row["detail"] or "").startswith("success, but 00000000.tar")} == {
        "truncated"
    }
    assert any(row["status"] == "ok" for row in first)
    assert job("verify", tmp_path / "root").returncode == 0


def _tar_gone(folder: Path) -> None:
    (folder / "00000002.tar").unlink()


def _no_parquet(folder: Path) -> None:
    (folder / "00000002.parquet").write_bytes(b"PAR1")


def _other_shard(folder: Path) -> None:
    doubled = pq.read_table(folder / "00000002.parquet")
    renamed = doubled.set_column(
        doubled.column_names.index("key"), "key", pa.array([f"x{key}" for key in doubled["key"].to_pylist()])
    )
    pq.write_table(pa.concat_tables([doubled, renamed]), folder / "00000002.parquet")


def _keys_twice(folder: Path) -> None:
    rows = pq.read_table(folder / "00000002.parquet")
    same = rows.set_column(rows.column_names.index("key"), "key", pa.array(["0"] * len(rows)))
    pq.write_table(same, folder / "00000002.parquet")


def _other_columns(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "00000002.parquet").drop_columns(["punsafe"]), folder / "00000002.parquet")


def _no_status(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "00000002.parquet").drop_columns(["status"]), folder / "00000002.parquet")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_tar_gone, "the tar beside it is gone; put 00000002.tar back"),
        (_no_parquet, "is not a whole Parquet file"),
        (_other_shard, "rows, 00000002_stats.json says"),
        (_keys_twice, "a key is there twice"),
        (_other_columns, "do not both have a column 'punsafe'"),
        (_no_status, "has no column 'status'"),
    ],
)
def test_a_download_that_cannot_be_adopted_is_one_line_and_makes_nothing(
    download: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(download / "shards", folder)
    spoil(folder)
    run = job("adopt", folder, "--output", tmp_path / "root")
    assert run.returncode == 2, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("pairmill adopt:")]
    assert said in line
    assert "00000002" in line
    assert not list((tmp_path / "root").glob("batches/*"))


def test_a_changed_tar_is_a_breach_and_stops_sharding(download: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(download / "shards", folder)
    root = tmp_path / "root"
    assert job("adopt", folder, "--output", root).returncode == 0
    row = next(row for row in table(root, "outcomes").to_pylist() if row["status"] == "ok")
    path = Path(row["pool_file"].removeprefix("file://"))
    data = bytearray(path.read_bytes())
    data[row["pool_offset"] + 20] ^= 1
    path.write_bytes(data)
    checked = job("verify", root)
    assert checked.returncode != 0
    assert f"{row['pool_file']}: the member of {row['uid']}" in checked.stdout + checked.stderr
    built = job("build", "--recipe", recipe(root), "--output", root)
    assert built.returncode == 1
    assert row["uid"] in built.stderr


def test_a_hash_list_holds_for_adopted_images(download: Path, tmp_path: Path) -> None:
    success = [row for row in theirs(download) if row["status"] == "success"]
    pixels = images(download / "shards")
    lines = [success[0]["sha256"], hashlib.sha256(pixels[success[1]["key"]]).hexdigest(),
             hashlib.md5(success[2]["url"].encode()).hexdigest()]  # fmt: skip
    (tmp_path / "list").write_text("\n".join(lines))
    setting = f"download.blocklists=[{tmp_path / 'list'}]"

    def listed(row: dict[str, Any]) -> bool:
        image = hashlib.sha256(pixels[row["key"]]).hexdigest()
        return bool({row["sha256"], image, hashlib.md5(row["url"].encode()).hexdigest()} & {*lines})

    for flags in ([], ["--copy"]):
        root = tmp_path / f"root{len(flags)}"
        run = job("adopt", download, "--output", root, "--set", setting, *flags)
        assert run.returncode == 0, run.stderr
        ended = [row for name in ("rejects", "outcomes") for row in table(root, name).to_pylist()]
        before = {row["src_key"] for row in ended if row["reason"] in ("missing_text", "duplicate")}
        assert {row["src_key"] for row in ended if row["reason"] == "blocklisted"} == {
            row["key"] for row in success if listed(row) and row["key"] not in before
        }
        assert job("verify", root).returncode == 0


def test_tars_without_parquet_are_left_out_and_said_in_one_line(download: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(download / "shards", folder)
    for number in range(5):
        shutil.copyfile(folder / "00000000.tar", folder / f"9000000{number}.tar")
    run = job("adopt", folder, "--output", tmp_path / "root")
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if "left out" in line]
    assert line.endswith("what it holds: 90000000.tar, 90000001.tar, 90000002.tar and 2 more")
