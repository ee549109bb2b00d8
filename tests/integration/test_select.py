"""The select stage: rules, keep lists and text counts on a pool, and what reaches the shards."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.select.uids import read_uids
from pipeline.shard.stage import run_shard
from pipeline.stop import StopFlag
from pipeline.units import StageFolder
from schemas.recipe import Recipe, parse_recipe
from tests.integration.test_dedupe import drawing, kept, rows_of
from tests.pool_fixture import Pool, curate, uid_of
from tests.running import snapshot


def recipe(dedupe: dict[str, Any] | None = None, **select: Any) -> Recipe:
    return parse_recipe({"dedupe": dedupe or {"levels": {}}, "select": select}, "test")


def decided(folders: dict[str, StageFolder]) -> dict[str, dict[str, Any]]:
    return {row["uid"]: row for row in rows_of(folders["select"], "decisions")}


def numbers(uids: set[str], among: range) -> set[int]:
    return {number for number in among if uid_of(number) in uids}


def test_every_rule_is_told_for_every_row_and_the_first_that_fails_drops_it(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(20), sizes={3: (100, 480), 4: (100, 100), 5: (640, 100)})
    rules = {
        "wide": "original_width >= 200",
        "high": "original_height >= 200",
        "null_fails": "exif IS NOT NULL OR 1 < NULL",
    }
    folders = curate(pool, recipe(rules=rules))
    rows = decided(folders)
    assert len(rows) == 20
    told = {n: [rows[uid_of(n)][f"pass_{rule}"] for rule in rules] for n in (0, 1, 3, 4, 5)}
    assert told == {
        0: [True, True, True], 1: [True, True, False], 3: [False, True, False], 4: [False, False, False],
        5: [True, False, False],
    }  # fmt: skip
    assert {n: rows[uid_of(n)]["dropped_by"] for n in told} == {
        0: None,
        1: "null_fails",
        3: "wide",
        4: "wide",
        5: "high",
    }
    assert numbers(kept(folders), range(20)) == {0, 10}
    counts = folders["select"].record("0001-0000000", 0).counts
    assert counts == {"ok": {"": 2}, "rejected": {"high": 1, "null_fails": 15, "wide": 2}}


def test_what_drops_a_row_comes_in_one_order(tmp_path: Path) -> None:
    """duplicate before contaminated before the rules before uids."""
    (tmp_path / "set").mkdir()
    for number in (1, 2):
        (tmp_path / "set" / f"{number}.png").write_bytes(drawing(number, extension="PNG"))
    pool = Pool(tmp_path / "root")
    images = {number: drawing(number) for number in range(6)} | {5: drawing(1)}
    pool.unit("0001-0000000", range(6), images=images, texts={1: "one", 5: "one"}, sizes={1: (50, 50), 3: (50, 50)})
    listed = tmp_path / "uids.txt"
    listed.write_text(f"{uid_of(0)}\n{uid_of(1)}\n")
    dedupe = {"levels": {"bytes": True}, "against": {"set": str(tmp_path / "set")}}
    folders = curate(pool, recipe(dedupe, rules={"wide": "original_width >= 200"}, uids=str(listed)))
    rows = decided(folders)
    assert {n: rows[uid_of(n)]["dropped_by"] for n in range(6)} == {
        0: None, 1: "duplicate", 2: "contaminated", 3: "wide", 4: "uids", 5: "contaminated",
    }  # fmt: skip
    assert [rows[uid_of(n)]["pass_uids"] for n in range(6)] == [True, True, False, False, False, False]


def test_a_text_is_counted_over_the_pool_of_this_round_and_earlier_ones(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(10), texts=dict.fromkeys(range(4), "same"))
    asked = recipe(rules={"seldom": "text_count <= 5"})
    first = curate(pool, asked)
    assert len(kept(first)) == 10
    pool.unit("0002-0000000", range(10, 20), texts=dict.fromkeys(range(10, 12), "same"))
    second = curate(pool, asked, run="second")
    assert numbers(kept(second), range(20)) == {*range(10), *range(12, 20)}, "what is kept stays, the sixth is too many"


@pytest.mark.parametrize("form", ["npy", "parquet", "txt"])
def test_only_listed_uids_are_kept_whatever_file_lists_them(tmp_path: Path, form: str) -> None:
    wanted = [uid_of(number) for number in (2, 3, 5, 7)] + ["f" * 32]
    path = tmp_path / f"uids.{form}"
    if form == "npy":
        np.save(path, np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in wanted], "u8,u8"))
    elif form == "parquet":
        pq.write_table(pa.table({"uid": wanted}), path)
    else:
        path.write_text("\n".join(wanted))
    pool = Pool(tmp_path / "root")
    pool.unit("0001-0000000", range(10))
    assert numbers(kept(curate(pool, recipe(uids=str(path)))), range(10)) == {2, 3, 5, 7}


def test_an_uid_that_the_input_gave_is_listed_as_well_as_ours(tmp_path: Path) -> None:
    path = tmp_path / "uids.txt"
    path.write_text(f"{'0' * 31}4\n{uid_of(6)}\n")
    pool = Pool(tmp_path / "root")
    pool.unit("0001-0000000", range(10), kept={"uid": "0" * 31})
    (tmp_path / "root" / "batches").mkdir()
    batch = {
        "batch": "0001", "created_at": "", "run": "r", "files": [], "rows": 10, "settings": {}, "kept": ["uid"],
        "units": [],
    }  # fmt: skip
    (tmp_path / "root" / "batches" / "0001.json").write_text(json.dumps(batch))
    assert numbers(kept(curate(pool, recipe(uids=str(path)))), range(10)) == {4, 6}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.txt", b"0123\n", "line 1 is '0123'"),
        ("u.txt", b"\xff\xfe", "cannot be read"),
        ("u.parquet", b"PAR1", "cannot be read"),
        ("u.npy", b"", "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_uids(str(tmp_path / name))


def test_a_later_round_takes_what_was_not_there_and_changes_no_decision_and_no_shard(tmp_path: Path) -> None:
    asked = recipe({"levels": {"bytes": True, "pdq": 31}}, rules={"wide": "original_width >= 200"})
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(10), images={n: drawing(n) for n in range(10)}, texts={4: "four"})
    dataset = make(pool, asked, "first")
    before = {path.name: (state, hashlib.sha256(path.read_bytes()).hexdigest())
              for path, state in ((dataset / name, state) for name, state in snapshot(dataset).items())}  # fmt: skip
    larger = {n: drawing(n) for n in range(10, 20)} | {15: drawing(4, side=300)}
    pool.unit("0002-0000000", range(10, 20), images=larger, texts={15: "four"}, sizes={15: (4000, 3000), 16: (9, 9)})
    assert make(pool, asked, "second") == dataset
    after = {path.name: (state, hashlib.sha256(path.read_bytes()).hexdigest())
             for path, state in ((dataset / name, state) for name, state in snapshot(dataset).items())}  # fmt: skip
    index = {"sizes.json", "dataset.json"}
    assert {name: what for name, what in after.items() if name in before and name not in index} == {
        name: what for name, what in before.items() if name not in index
    }
    samples = [uid for path in sorted(dataset.glob("*.parquet")) for uid in pq.read_table(path)["uid"].to_pylist()]
    assert numbers(set(samples), range(20)) == {*range(15), 17, 18, 19}
    assert len(samples) == 18
    told = json.loads((dataset / "dataset.json").read_text())
    assert told["decisions"] == {"ok": {"": 18}, "rejected": {"duplicate": 1, "wide": 1}}
    assert told["batches"] == ["0001", "0002"]


def make(pool: Pool, asked: Recipe, run: str) -> Path:
    folders = curate(pool, asked, run)
    folder = StageFolder(pool.store, "shard", "s0")
    run_shard(pool.store, asked, folders, folder, run, StopFlag(pool.store.uri, run), lambda result: None)
    return Path(pool.store.uri) / folder.base / "dataset"
