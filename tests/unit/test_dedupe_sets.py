"""Evaluation sets wherever they lie: the same items from a disk and from S3, and a digest that sees every change."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from pipeline.check import named_contents
from pipeline.dedupe.sets import load_sets
from pipeline.errors import InputError
from pipeline.storage import open_store
from schemas.recipe import Recipe
from tests.benchmarks.recall import picture
from tests.fault_proxy import FaultProxy, Rule
from tests.unit.test_dedupe_against import png


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Sets of every form, of the same two images: `loose`, one.tar, `shards`, hashes.parquet and hashes.csv."""
    files = {"0.png": png(picture(0)), "deep/1.png": png(picture(1)), "labels.txt": b"cat\ndog\n"}
    (tmp_path / "sets/loose/deep").mkdir(parents=True)
    (tmp_path / "sets/shards").mkdir()
    for name, data in files.items():
        (tmp_path / "sets/loose" / name).write_bytes(data)
    for name in ("one.tar", "shards/00000.tar", "shards/00001.tar.gz"):
        with tarfile.open(tmp_path / "sets" / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for member, data in files.items():
                told = tarfile.TarInfo(member)
                told.size = len(data)
                archive.addfile(told, io.BytesIO(data))
    items = load_sets({"set": str(tmp_path / "sets/loose")})
    table = pa.table({name: [value.hex() for value in items[name].to_pylist()] for name in ("sha256", "pdq")})
    pq.write_table(table, tmp_path / "sets/hashes.parquet")
    pacsv.write_csv(table, tmp_path / "sets/hashes.csv")
    return tmp_path / "sets"


def copied(local: Path, uri: str) -> str:
    """The files of a folder, copied to a store."""
    store = open_store(uri)
    for path in sorted(path for path in local.rglob("*") if path.is_file()):
        copy = store.scratch() / path.name
        shutil.copyfile(path, copy)
        store.publish(copy, path.relative_to(local).as_posix())
    return uri


FORMS = ("loose", "loose/", "one.tar", "shards", "hashes.parquet", "hashes.csv")


def test_a_set_in_s3_holds_what_it_holds_on_a_disk(local: Path, s3: str) -> None:
    copied(local, s3)
    for form in FORMS:
        there = load_sets({"set": f"{s3}/{form}"})
        assert there.equals(load_sets({"set": f"{local}/{form}"})), form
        assert len(there) == (4 if form == "shards" else 2), form


def test_a_whole_bucket_is_a_set(local: Path, s3: str) -> None:
    bucket = copied(local / "loose", s3.rpartition("/")[0])
    assert load_sets({"set": bucket})["eval_item"].to_pylist() == ["0.png", "deep/1.png"]


@pytest.mark.parametrize("form", ["loose", "one.tar", "hashes.parquet"])
def test_a_store_that_fails_now_and_then_changes_nothing(local: Path, s3: str, s3_proxy: FaultProxy, form: str) -> None:
    copied(local, s3)
    s3_proxy.rules = [Rule(answer="cut", method="GET", share=0.3), Rule(answer=503, share=0.2)]
    assert load_sets({"set": f"{s3}/{form}"}).equals(load_sets({"set": f"{local}/{form}"}))
    assert s3_proxy.faults


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing", None, "is no folder, tar, .parquet or .csv file"),
        ("labels.txt", b"cat", "is no folder, tar, .parquet or .csv file"),
        ("labels/a.txt", b"cat", "holds no image and no hash"),
        ("t.csv", b"url\nhttp://a\n", "needs a column sha256 or pdq"),
        ("t.csv", b"pdq\nabc\n", "row 0: pdq 'abc' is not 64 hex digits"),
        ("t.csv", b"pdq\n", "holds no image and no hash"),
        ("t.parquet", b"no parquet", "cannot be read"),
        ("missing.parquet", None, "cannot be read"),
        ("t/cut.tar", b"no tar at all", "cannot be read to its end"),
    ],
)
def test_what_is_no_set_is_refused_in_one_line(root: str, name: str, content: bytes | None, says: str) -> None:
    store = open_store(root)
    if content is not None:
        store.replace(name, content)
    with pytest.raises(InputError, match=r"dedupe\.against\.coco: ") as caught:
        load_sets({"coco": f"{root}/{name if name.count('/') == 0 else name.partition('/')[0]}"})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def digest(place: str) -> str:
    recipe = Recipe.model_validate({"dedupe": {"against": {"coco": place}}})
    return named_contents(recipe)["dedupe"]["against.coco"]


def test_a_byte_changed_a_name_changed_or_a_file_more_is_another_set(local: Path, root: str) -> None:
    store = open_store(copied(local, root))
    seen = {digest(f"{root}/loose")}
    changed = bytearray(store.read("loose/0.png"))
    changed[-1] ^= 1
    store.replace("loose/0.png", bytes(changed))
    seen.add(digest(f"{root}/loose"))
    store.replace("loose/00.png", bytes(changed))
    seen.add(digest(f"{root}/loose"))
    store.delete("loose/0.png")
    seen.add(digest(f"{root}/loose"))
    assert len(seen) == 4
    store.replace("loose/0.png", store.read("loose/00.png"))
    store.delete("loose/00.png")
    assert digest(f"{root}/loose") in seen


@pytest.mark.parametrize("form", ["one.tar", "hashes.csv"])
def test_a_file_of_equal_size_is_another_set(local: Path, root: str, form: str) -> None:
    store = open_store(copied(local, root))
    before, data = digest(f"{root}/{form}"), bytearray(store.read(form))
    data[len(data) // 2] ^= 1
    store.replace(form, bytes(data))
    assert digest(f"{root}/{form}") != before


def test_a_set_that_was_moved_or_touched_is_the_same(local: Path, root: str) -> None:
    before = digest(f"{copied(local, root)}/loose")
    assert digest(f"{copied(local / 'loose', root + '-moved')}/") == before
    if not root.startswith("s3://"):
        os.utime(f"{root}/loose/0.png", (1, 1))
        assert digest(f"{root}/loose") == before


def test_what_cannot_be_read_is_refused_before_anything_is_made(root: str) -> None:
    with pytest.raises(InputError, match=r"recipe dedupe\.against\.coco: .*/nowhere cannot be read"):
        digest(f"{root}/nowhere")


def test_a_link_to_a_folder_is_refused_not_passed_over(local: Path, tmp_path: Path) -> None:
    (local / "loose/more").symlink_to(local / "shards")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        digest(f"{local}/loose")


def test_numbers_of_images_do_not_depend_on_threads(tmp_path: Path) -> None:
    for number in range(300):
        pixels = np.full((8, 8, 3), number % 251, np.uint8)
        pixels[0, 0] = (number // 251, 0, 0)
        (tmp_path / f"{number}.png").write_bytes(png(pixels))
    assert len(load_sets({"set": str(tmp_path)})) == 300
