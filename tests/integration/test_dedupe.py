"""The dedupe stage on a pool whose duplicates are planted, round by round."""

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from pipeline.dedupe.stage import hashes_due
from pipeline.storage import open_store
from pipeline.units import StageFolder
from schemas.recipe import Recipe, parse_recipe
from tests.pool_fixture import Pool, curate, uid_of
from tests.running import REPOSITORY, snapshot


def drawing(seed: int, side: int = 256, quality: int = 92, extension: str = "JPEG") -> bytes:
    """A picture of shapes: copies of any size look the same, and no other seed's picture is near it."""
    draw_at = 512
    image = Image.new("RGB", (draw_at, draw_at), (30 * (seed % 7), 50, 200 - 20 * (seed % 9)))
    pen = ImageDraw.Draw(image)
    state = int.from_bytes(hashlib.sha256(str(seed).encode()).digest())
    for _ in range(24):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 256)
        x, y, w, h, c = (state >> shift & 0x1FF for shift in (20, 40, 60, 80, 100))
        pen.ellipse((x, y, x + 40 + w // 2, y + 40 + h // 2), fill=(c & 255, (c * 7) & 255, (c * 13) & 255))
    data = io.BytesIO()
    image.resize((side, side), Image.Resampling.LANCZOS).save(data, extension, quality=quality)
    return data.getvalue()


def recipe(**sections: dict[str, Any]) -> Recipe:
    return parse_recipe(sections, "test")


def rows_of(folder: StageFolder, table: str) -> list[dict[str, Any]]:
    """All rows of a table that current records name."""
    found: list[dict[str, Any]] = []
    for record in folder.iter_records():
        for entry in record.files:
            if entry.table == table:
                found += pq.read_table(Path(folder.store.uri) / folder.base / entry.path).to_pylist()
    return found


def witnesses(folder: StageFolder) -> dict[str, tuple[str, str]]:
    return {row["uid"]: (row["dup_of"], row["level"]) for row in rows_of(folder, "duplicates")}


def kept(folders: dict[str, StageFolder]) -> set[str]:
    return {row["uid"] for row in rows_of(folders["select"], "decisions") if row["kept"]}


def planted(root: Path) -> Pool:
    """Two units; 3 and 40 are 2 again, byte for byte; 41 is 5 at half its size; 42 is 6 under another text."""
    pool = Pool(root)
    images = {number: drawing(number) for number in range(60)}
    images |= {3: images[2], 40: images[2], 41: drawing(5, side=128), 42: images[6]}
    texts = {3: "text of 2", 2: "text of 2", 40: "text of 2", 5: "text of 5", 41: "text of 5"}
    sizes = {41: (320, 240), 40: (900, 700)}
    pool.unit("0001-0000000", range(30), images=images, texts=texts, sizes=sizes)
    pool.unit("0001-0000001", range(30, 60), images=images, texts=texts, sizes=sizes)
    return pool


def test_each_level_drops_its_copies_for_the_largest_and_says_for_which(tmp_path: Path) -> None:
    folders = curate(planted(tmp_path), recipe())
    assert witnesses(folders["dedupe"]) == {
        uid_of(2): (uid_of(40), "bytes"), uid_of(3): (uid_of(40), "bytes"), uid_of(41): (uid_of(5), "perceptual"),
    }  # fmt: skip
    assert kept(folders) == {uid_of(number) for number in range(60)} - {uid_of(2), uid_of(3), uid_of(41)}


def test_with_the_scope_image_the_text_does_not_count(tmp_path: Path) -> None:
    folders = curate(planted(tmp_path), recipe(dedupe={"scope": "image", "levels": {"bytes": True}}))
    lower, higher = sorted([uid_of(6), uid_of(42)])
    assert witnesses(folders["dedupe"])[higher] == (lower, "bytes")


def test_without_a_level_nothing_is_hashed_and_nothing_dropped(tmp_path: Path) -> None:
    folders = curate(planted(tmp_path))
    assert "hashes" not in folders
    assert len(kept(folders)) == 60


def test_a_row_that_is_not_eligible_neither_goes_nor_makes_another_go(tmp_path: Path) -> None:
    rule = {"eligible": {"small": "original_width < 900"}, "levels": {"bytes": True}}
    folders = curate(planted(tmp_path), recipe(dedupe=rule))
    lower, higher = sorted([uid_of(2), uid_of(3)])
    assert witnesses(folders["dedupe"]) == {higher: (lower, "bytes")}
    assert uid_of(40) in kept(folders)


def test_rank_by_bytes_prefers_the_larger_file(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    images = {0: drawing(0, quality=60), 1: drawing(0, quality=95)}
    pool.unit("0001-0000000", range(2), images=images, texts=dict.fromkeys(range(2), "one"))
    folders = curate(pool, recipe(dedupe={"rank": ["bytes", "uid"]}))
    assert witnesses(folders["dedupe"]) == {uid_of(0): (uid_of(1), "perceptual")}


def test_a_larger_copy_of_another_day_goes_and_nothing_of_the_first_day_changes(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(10), images={n: drawing(n) for n in range(10)}, texts={4: "four"})
    first = curate(pool, recipe())
    before = snapshot(tmp_path)
    larger = {n: drawing(n) for n in range(10, 20)} | {15: drawing(4, side=300)}
    pool.unit("0002-0000000", range(10, 20), images=larger, texts={15: "four"}, sizes={15: (4000, 3000)})
    second = curate(pool, recipe(), run="second")
    assert witnesses(second["dedupe"]) == {uid_of(15): (uid_of(4), "perceptual")}
    assert uid_of(4) in kept(second)
    assert {name: state for name, state in snapshot(tmp_path).items() if name in before} == before
    assert second["dedupe"].base == first["dedupe"].base


def test_a_retry_adds_a_round_of_the_cured_rows_alone_and_hashes_them_alone(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(20), failed={7, 8})
    folders = curate(pool, recipe())
    hashed = {row["uid"]: row for row in rows_of(folders["hashes"], "hashes")}
    assert len(hashed) == 18
    pool.retry("0001-0000000", {7})
    assert [unit["generation"] for unit in hashes_due(pool.folder, folders["hashes"])] == [1]
    again = curate(pool, recipe(), run="second")
    assert again["dedupe"].record("0002-0000000", 0).rows == 1
    assert len(kept(again)) == 19
    now = {row["uid"]: row for row in rows_of(again["hashes"], "hashes")}
    assert {uid: now[uid] for uid in hashed} == hashed
    assert len(now) == 19


def test_running_again_touches_nothing(tmp_path: Path) -> None:
    pool = planted(tmp_path)
    curate(pool, recipe())
    before = snapshot(tmp_path)
    curate(pool, recipe(), run="second")
    assert snapshot(tmp_path) == before


def tables_of(root: Path) -> dict[str, str]:
    """Unit's table → sha256, for what the set-level stages have written."""
    return {
        f"{path.parent.parent.parent.name}/{path.parent.name}/{path.name.split('.')[0]}":
            hashlib.sha256(path.read_bytes()).hexdigest()
        for stage in ("hashes", "dedupe", "select") for path in sorted((root / stage).rglob("*.parquet"))
    }  # fmt: skip


RUN = """
import sys
from pathlib import Path
from tests.integration.test_dedupe import recipe
from tests.pool_fixture import Pool, curate
curate(Pool(Path(sys.argv[1])), recipe(), sys.argv[2])
"""


@pytest.mark.parametrize("stage", ["hashes", "dedupe", "select"])
@pytest.mark.parametrize("point", ["before-publish", "before-record", "after-record"])
def test_a_run_killed_in_any_stage_is_finished_to_the_same_bytes(tmp_path: Path, stage: str, point: str) -> None:
    pool = planted(tmp_path / "killed")
    env = {**os.environ, "PAIRMILL_FAULT": f"{point}@{stage}:kill:{tmp_path}/fault"}
    command = [sys.executable, "-c", RUN, str(tmp_path / "killed"), "first"]
    assert subprocess.run(command, cwd=REPOSITORY, env=env, timeout=120, check=False).returncode == -9
    # What comes in between belongs to the next round, not to the one that was killed.
    folders = curate(pool, recipe(), run="second")
    for folder in folders.values():
        folder.sweep()
    curate(planted(tmp_path / "undisturbed"), recipe())
    assert tables_of(tmp_path / "killed") == tables_of(tmp_path / "undisturbed")


def test_every_unit_made_twice_leaves_what_was_there(tmp_path: Path) -> None:
    """The retry that peers fail: all records of the stages are lost, all their work is done once more."""
    pool = planted(tmp_path)
    curate(pool, recipe())
    before = tables_of(tmp_path)
    for stage in ("hashes", "dedupe", "select"):
        for path in (tmp_path / stage).rglob("units/*.json"):
            path.unlink()
    folders = curate(pool, recipe(), run="second")
    for folder in folders.values():
        folder.sweep()
    assert tables_of(tmp_path) == before


def test_images_of_an_evaluation_set_are_listed_and_select_drops_those_it_is_told_to(root: str, tmp_path: Path) -> None:
    against = {name: f"{root}-sets/{name}" for name in ("flowers", "birds")}
    for name, numbers in {"flowers": (2, 9), "birds": (11,)}.items():
        for number in numbers:
            open_store(against[name]).replace(f"{number}.png", drawing(number, extension="PNG"))
    pool = Pool(tmp_path / "root")
    pool.unit("0001-0000000", range(20), images={number: drawing(number) for number in range(20)})
    dedupe = {"against": against, "levels": {}}
    folders = curate(pool, recipe(dedupe=dedupe, select={"decontaminate": ["flowers"]}))
    overlaps = rows_of(folders["select"], "overlaps")
    assert {(row["eval_set"], row["eval_item"], row["uid"], row["removed"]) for row in overlaps} == {
        ("flowers", "2.png", uid_of(2), True), ("flowers", "9.png", uid_of(9), True),
        ("birds", "11.png", uid_of(11), False),
    }  # fmt: skip
    dropped = {row["uid"]: row["dropped_by"] for row in rows_of(folders["select"], "decisions") if not row["kept"]}
    assert dropped == dict.fromkeys([uid_of(2), uid_of(9)], "contaminated")
