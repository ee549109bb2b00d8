"""Evaluation sets: how they are read, and which pool images are in them."""

import hashlib
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from pipeline.dedupe.against import find_overlaps, held
from pipeline.dedupe.find import ROWS
from pipeline.dedupe.hashes import hash_image
from pipeline.dedupe.sets import load_sets
from pipeline.errors import InputError
from tests.benchmarks.recall import jpeg, picture
from tests.unit.test_dedupe_find import row, uid


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()


def pool_row(name: str, data: bytes) -> dict[str, object]:
    made = hash_image(data)
    return row(
        name,
        bytes.fromhex(made.pdq),
        sha256=hashlib.sha256(data).digest(),
        pdq_quality=made.quality,
        colour=bytes.fromhex(made.colour),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one of them in a sub-folder, and files that are none."""
    (tmp_path / "set" / "deep").mkdir(parents=True)
    (tmp_path / "set" / "0.png").write_bytes(png(picture(0)))
    (tmp_path / "set" / "deep" / "1.png").write_bytes(png(picture(1)))
    (tmp_path / "set" / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "set" / "broken.png").write_bytes(png(picture(2))[:300])
    return tmp_path / "set"


@pytest.fixture
def pool() -> pa.Table:
    """The first picture as it is, the first and second as JPEG, a mirrored one and a stranger."""
    rows = [
        pool_row("same", png(picture(0))),
        pool_row("near", png(jpeg(60)(picture(0)))),
        pool_row("second", png(jpeg(60)(picture(1)))),
        pool_row("mirrored", png(picture(1)[:, ::-1])),
        pool_row("stranger", png(picture(9))),
    ]
    return pa.Table.from_pylist(rows, schema=ROWS)


def test_a_folder_of_images(folder: Path, pool: pa.Table) -> None:
    sets = load_sets({"imagenet": str(folder)})
    assert sets["eval_item"].to_pylist() == ["0.png", "broken.png", "deep/1.png"]
    found = find_overlaps(pool, sets).to_pylist()
    assert [(line["eval_item"], line["uid"], line["level"]) for line in found] == sorted(
        [
            ("0.png", uid("same"), "bytes"),
            ("0.png", uid("near"), "perceptual"),
            ("deep/1.png", uid("second"), "perceptual"),
        ]
    )
    assert all((line["distance"] == 0) if line["level"] == "bytes" else line["distance"] <= 31 for line in found)


def test_both_ways_how_much_is_held(folder: Path, pool: pa.Table) -> None:
    sets = load_sets({"imagenet": str(folder)})
    assert held(find_overlaps(pool, sets), sets, len(pool)) == [
        {
            "eval_set": "imagenet",
            "items": 3,
            "items_held": 2,
            "items_bytes": 1,
            "items_perceptual": 2,
            "pool_rows": 5,
            "rows_held": 3,
            "rows_bytes": 1,
            "rows_perceptual": 2,
        }
    ]


def test_turned_forms_see_mirror_images(folder: Path, pool: pa.Table) -> None:
    found = find_overlaps(pool, load_sets({"imagenet": str(folder)}, dihedral=True))
    assert uid("mirrored") in found["uid"].to_pylist()


def test_a_tar_and_a_folder_of_tars_hold_the_same(folder: Path, pool: pa.Table) -> None:
    (folder.parent / "shards").mkdir()
    place = folder.parent / "shards" / "00000.tar"
    with tarfile.open(place, "w") as archive:
        for name in ("0.png", "deep/1.png", "labels.txt"):
            data = (folder / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    by_tar = find_overlaps(pool, load_sets({"set": str(place)}))
    by_shards = find_overlaps(pool, load_sets({"set": str(place.parent)}))
    assert by_tar["eval_item"].to_pylist() == ["0.png", "0.png", "deep/1.png"]
    assert by_shards["eval_item"].to_pylist() == [f"00000.tar/{item}" for item in by_tar["eval_item"].to_pylist()]
    assert by_tar["uid"] == by_shards["uid"]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_of_hashes(suffix: str, tmp_path: Path, pool: pa.Table) -> None:
    made = [hash_image(png(picture(number))) for number in (0, 1)]
    shas = [hashlib.sha256(png(picture(number))).hexdigest() for number in (0, 1)]
    table = pa.table({"uid": ["a", "b"], "pdq": [made[0].pdq, None], "sha256": [shas[0], shas[1]]})
    place = tmp_path / f"hashes.{suffix}"
    (pq.write_table if suffix == "parquet" else pacsv.write_csv)(table, place)
    found = find_overlaps(pool, load_sets({"hashes": str(place)})).to_pylist()
    assert [(line["eval_item"], line["uid"], line["level"]) for line in found] == sorted(
        [("a", uid("same"), "bytes"), ("a", uid("near"), "perceptual")]
    )


def test_rows_in_parts_give_what_the_whole_gives(folder: Path, pool: pa.Table) -> None:
    sets = load_sets({"a": str(folder), "b": str(folder)})
    whole = find_overlaps(pool, sets)
    parts = pa.concat_tables([find_overlaps(pool.slice(start, 2), sets) for start in (0, 2, 4)])
    order = [(name, "ascending") for name in ("eval_set", "eval_item", "uid")]
    assert parts.sort_by(order).equals(whole)
    assert find_overlaps(pool.slice(0, 0), sets).num_rows == 0


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        load_sets({"coco": str(tmp_path)})


def test_a_tar_that_ends_too_soon_is_refused(folder: Path) -> None:
    place = folder / "cut.tar"
    with tarfile.open(place, "w") as archive:
        archive.add(folder / "0.png", "0.png")
    place.write_bytes(place.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be read to its end"):
        load_sets({"coco": str(folder)})
