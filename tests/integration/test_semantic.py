"""The semantic stage on a pool whose near-duplicates are planted as vectors, round by round."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dedupe.stage import needs_hashes, run_dedupe, run_hashes
from pipeline.errors import InputError, StoreError
from pipeline.root import adopted_scores
from pipeline.runner import Result
from pipeline.semantic import decision
from pipeline.semantic.stage import run_semantic
from pipeline.stop import StopFlag
from pipeline.units import Output, StageFolder, count
from schemas.recipe import Recipe, parse_recipe
from schemas.tables import EMBEDDINGS
from tests.integration.test_dedupe import rows_of
from tests.pool_fixture import Pool, picture, uid_of
from tests.running import REPOSITORY, snapshot

Vectors = Mapping[int, npt.NDArray[np.float64]]


def recipe(scope: str = "image", dedupe: dict[str, Any] | None = None, **semantic: Any) -> Recipe:
    sections = {
        "dedupe": {"levels": {}, "scope": scope, **(dedupe or {})},
        "embed": {"encoders": [{"name": "tiny", "weights": "untrained", "arch": "ViT-B-32"}]},
        "semantic": {"encoder": "tiny", **semantic},
    }
    return parse_recipe(sections, "test")


def at(degrees: float) -> npt.NDArray[np.float64]:
    """A point of the circle: eps .05 reaches 18.19 degrees."""
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


class Embedded:
    """A pool with units of `embed` written by hand, as the embed stage would."""

    def __init__(self, root: Path) -> None:
        self.pool = Pool(root)
        store = self.pool.store
        self.folders = {
            "download": self.pool.folder,
            "embed/tiny": StageFolder(store, "embed", "e0"),
            **{stage: StageFolder(store, stage, f"{stage[0]}0") for stage in ("hashes", "dedupe")},
            "semantic": StageFolder(store, "semantic", "s0"),
        }

    def unit(
        self, name: str, vectors: Vectors, scores: Mapping[int, float] | None = None, without: Sequence[int] = (),
        encoder: str = "tiny", **pool: Any,
    ) -> None:  # fmt: skip
        """A download unit of the numbers from the first of `vectors` on, with these; `without`: failed in embed."""
        numbers = range(min(vectors), max(vectors) + 1)
        self.pool.unit(name, numbers, **pool)
        folder, scratch = self.folders["embed/tiny"], self.pool.store.scratch()
        lines = []
        for number in numbers:
            failed = number in without
            vector = (vectors[number] / np.linalg.norm(vectors[number])).astype(np.float32)
            lines.append({
                "uid": uid_of(number), "encoder": encoder, "status": "failed" if failed else "ok",
                "reason": "internal" if failed else None, "image_embedding": None if failed else vector,
                "text_embedding": None if failed else vector, "clip_score": (scores or {}).get(number, 0.25),
            })  # fmt: skip
        pq.write_table(pa.Table.from_pylist(lines, schema=EMBEDDINGS), scratch / "embeddings.parquet")
        counts = count([line["status"] for line in lines], [line["reason"] for line in lines])
        outputs = [Output("embeddings", scratch / "embeddings.parquet", len(lines))]
        folder.commit(folder.begin(name, 0, "fixture", False), outputs, counts, len(lines), "fixture")

    def run(self, recipe: Recipe, run: str = "run") -> list[Result]:
        """Run `dedupe` and `semantic`; the results of the latter's units."""
        store, stop = self.pool.store, StopFlag(self.pool.store.uri, run)
        if needs_hashes(recipe.dedupe):
            run_hashes(store, recipe, self.folders, self.folders["hashes"], run, stop, lambda result: None)
        run_dedupe(store, recipe, self.folders, self.folders["dedupe"], run, stop, lambda result: None)
        told: list[Result] = []
        run_semantic(store, recipe, self.folders, self.folders["semantic"], run, stop, told.append)
        return told

    def gone(self) -> dict[str, str]:
        return {row["uid"]: row["dup_of"] for row in rows_of(self.folders["semantic"], "duplicates")}


def test_the_best_aligned_stays_then_the_largest_then_the_lowest_uid(tmp_path: Path) -> None:
    root = Embedded(tmp_path)
    vectors = {0: at(0), 1: at(5), 2: at(90), 3: at(91), 4: at(180), 5: at(181), 6: at(270)}
    root.unit("0001-0000000", vectors, {0: 0.3, 1: 0.2}, sizes={0: (10, 10), 2: (9, 9), 3: (90, 90)})
    told = root.run(recipe())
    lower, higher = sorted([uid_of(4), uid_of(5)])
    assert root.gone() == {uid_of(1): uid_of(0), uid_of(2): uid_of(3), higher: lower}
    rows = {row["uid"]: row for row in rows_of(root.folders["semantic"], "duplicates")}
    assert rows[uid_of(1)]["level"] == "semantic"
    assert rows[uid_of(1)]["group_id"] == uid_of(0)
    assert rows[uid_of(1)]["distance"] == pytest.approx(1 - np.cos(np.radians(5)), abs=2e-7)
    assert told == [
        {"unit": "0001-0000000", "state": "done", "rows": 7,
         "counts": {"ok": {"": 4}, "rejected": {"duplicate": 3}}}
    ]  # fmt: skip


def test_no_row_of_a_chain_goes_without_a_kept_neighbour(tmp_path: Path) -> None:
    root = Embedded(tmp_path)
    root.unit("0001-0000000", {n: at(1.45 * n) for n in range(100)}, {n: 1 - n / 1000 for n in range(200)})
    root.unit("0001-0000001", {n: at(1.45 * n) for n in range(100, 200)}, {n: 1 - n / 1000 for n in range(200)})
    root.run(recipe())
    stay = {uid_of(n) for n in range(0, 200, 13)}
    assert len(stay) == 16
    assert root.gone().keys() == {uid_of(n) for n in range(200)} - stay
    assert set(root.gone().values()) <= stay


def test_with_the_scope_pair_only_equal_texts_are_compared(tmp_path: Path) -> None:
    root = Embedded(tmp_path)
    vectors = {0: at(0), 1: at(1), 2: at(2), 3: at(3)}
    root.unit("0001-0000000", vectors, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}, texts={0: "cat", 1: "cat", 2: "a", 3: "b"})
    root.run(recipe(scope="pair"))
    assert root.gone() == {uid_of(0): uid_of(1)}


def test_a_row_that_dedupe_dropped_is_no_witness_and_no_row_of_the_unit(tmp_path: Path) -> None:
    root = Embedded(tmp_path)
    same = picture(7)
    sizes = {1: (9, 9), 2: (8, 8)}
    root.unit(
        "0001-0000000", {0: at(0), 1: at(10), 2: at(100)}, {0: 0.1, 1: 0.9}, images={1: same, 2: same}, sizes=sizes
    )
    # 2 gives way to 1 by bytes, wherever its vector is.
    told = root.run(recipe(dedupe={"levels": {"bytes": True}}))
    assert root.gone() == {uid_of(0): uid_of(1)}
    assert told[0]["counts"] == {"ok": {"": 1}, "rejected": {"duplicate": 1}}


def test_rows_without_a_vector_or_not_eligible_neither_go_nor_make_others_go(tmp_path: Path) -> None:
    root = Embedded(tmp_path)
    vectors = {n: at(n) for n in range(5)}
    scores = {n: 1 - n / 10 for n in range(5)}
    root.unit("0001-0000000", vectors, scores, without=[0], sizes={1: (9, 9), 4: (9, 9)})
    root.run(recipe(dedupe={"eligible": {"large": "original_width > 100"}}))
    assert root.gone() == {uid_of(3): uid_of(2)}


def test_a_better_row_of_another_day_goes_and_nothing_of_the_first_day_changes(tmp_path: Path) -> None:
    root = Embedded(tmp_path)
    root.unit("0001-0000000", {n: at(10 * n) for n in range(6)}, {n: 0.3 - n / 100 for n in range(6)})
    root.run(recipe())
    first = {uid_of(n) for n in range(6)} - root.gone().keys()
    assert first == {uid_of(0), uid_of(2), uid_of(4)}
    before = snapshot(tmp_path)
    # 10 is better than all of them and near 4 alone; 11 is near 5 and 10, which went: it may stay.
    root.unit("0002-0000000", {10: at(55), 11: at(59), 12: at(200)}, {10: 0.9, 11: 0.9})
    root.run(recipe(), "second")
    assert {uid: of for uid, of in root.gone().items() if uid in {uid_of(n) for n in (10, 11, 12)}} == {
        uid_of(10): uid_of(4)
    }
    assert {name: state for name, state in snapshot(tmp_path).items() if name in before} == before


def test_running_again_touches_nothing(tmp_path: Path) -> None:
    root = planted(tmp_path)
    root.run(recipe())
    before = snapshot(tmp_path)
    assert root.run(recipe(), "second") == []
    assert snapshot(tmp_path) == before


def planted(root: Path, parts: int = 3) -> Embedded:
    """300 rows of 60 groups of near copies, in `parts` download units; of more than three the last comes first."""
    made = Embedded(root)
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(60, 16))
    vectors = {n: centres[n % 60] / 4 + 0.05 * rng.normal(size=16) for n in range(300)}
    scores = {n: round(float(rng.uniform(0.1, 0.4)), 2) for n in range(300)}
    for part, numbers in enumerate(np.array_split(np.arange(300), parts)):
        name = f"0001-{parts - part if parts > 3 else part:07d}"
        made.unit(name, {int(n): vectors[int(n)] for n in numbers}, scores)
    return made


def clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "EXACT", 50)


@pytest.mark.parametrize("exact", [True, False])
def test_however_the_pool_is_partitioned_the_same_rows_go(
    tmp_path: Path, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        clustered(monkeypatch)
    told = []
    for parts in (1, 2, 7):
        root = planted(tmp_path / str(parts), parts)
        root.run(recipe(eps=0.1, probes=2))
        told.append(root.gone())
    assert told[0] == told[1] == told[2]
    assert 100 < len(told[0]) < 240


def test_clusters_lose_little_and_add_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = planted(tmp_path / "exact")
    exact.run(recipe(eps=0.1))
    clustered(monkeypatch)
    root = planted(tmp_path / "clusters")
    root.run(recipe(eps=0.1, clusters=30, probes=3))
    assert len(root.gone()) >= 0.97 * len(exact.gone())
    assert (tmp_path / "clusters/semantic/s0/centroids/0001.npy").exists()
    assert not (tmp_path / "exact/semantic/s0/centroids").exists()


RUN = """
import sys
from pathlib import Path
from pipeline.semantic import decision
from tests.integration.test_semantic import Embedded, recipe
decision.EXACT = 50
Embedded(Path(sys.argv[1])).run(recipe(eps=0.1), "first")
"""


@pytest.mark.parametrize("point", ["before-publish", "before-record", "after-record"])
def test_a_run_killed_between_units_is_finished_to_the_same_bytes(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = planted(tmp_path / "killed")
    env = {**os.environ, "PAIRMILL_FAULT": f"{point}@0001-0000001:kill:{tmp_path}/fault"}
    # dedupe passes the point first: its units are named as ours, so it is run ahead.
    run_dedupe(
        root.pool.store, recipe(), root.folders, root.folders["dedupe"], "first",
        StopFlag(root.pool.store.uri, "first"), lambda result: None,
    )  # fmt: skip
    command = [sys.executable, "-c", RUN, str(tmp_path / "killed")]
    assert subprocess.run(command, cwd=REPOSITORY, env=env, timeout=120, check=False).returncode == -9
    clustered(monkeypatch)
    told = root.run(recipe(eps=0.1), "second")
    assert len(told) == (1 if point == "after-record" else 2)
    root.folders["semantic"].sweep()
    undisturbed = planted(tmp_path / "undisturbed")
    undisturbed.run(recipe(eps=0.1))
    assert tables_of(tmp_path / "killed") == tables_of(tmp_path / "undisturbed")


def tables_of(root: Path) -> dict[str, str]:
    return {
        f"{path.parent.name}/{path.name.split('.')[0]}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "semantic").rglob("*.parquet"))
    }


def test_every_unit_made_twice_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clustered(monkeypatch)
    root = planted(tmp_path)
    root.run(recipe(eps=0.1))
    before = tables_of(tmp_path)
    for path in (tmp_path / "semantic").rglob("units/*.json"):
        path.unlink()
    (tmp_path / "semantic/s0/centroids/0001.npy").unlink()
    root.run(recipe(eps=0.1), "second")
    root.folders["semantic"].sweep()
    assert tables_of(tmp_path) == before
    assert len(before) == 6


def test_vectors_that_came_with_a_download_serve_as_well(tmp_path: Path) -> None:
    root = Embedded(tmp_path)
    root.folders["embed/tiny"] = adopted_scores(root.pool.store)
    root.unit("0001-0000000", {0: at(0), 1: at(5), 2: at(90)}, {0: 0.3, 1: 0.2, 2: 0.1}, encoder="l14")
    [path] = (tmp_path / "embed").rglob("embeddings/*.parquet")
    table = pq.read_table(path)
    other = [{**row, "encoder": "b32", "image_embedding": [0.0, 0.0, 1.0]} for row in table.to_pylist()]
    pq.write_table(pa.concat_tables([pa.Table.from_pylist(other, schema=table.schema), table]), path)
    del root.folders["embed/tiny"]
    root.run(parse_recipe({"dedupe": {"levels": {}, "scope": "image"}, "semantic": {"encoder": "l14"}}, "test"))
    assert root.gone() == {uid_of(1): uid_of(0)}


def test_an_encoder_that_embedded_nothing_is_said_so(tmp_path: Path) -> None:
    root = Embedded(tmp_path)
    root.pool.unit("0001-0000000", range(5))
    with pytest.raises(InputError, match=r"tiny has embedded nothing .* run jobs.embed first"):
        root.run(recipe())


def test_a_vector_that_is_not_of_unit_length_is_refused(tmp_path: Path) -> None:
    root = Embedded(tmp_path)
    root.unit("0001-0000000", {0: at(0), 1: at(90)})
    [path] = (tmp_path / "embed").rglob("embeddings/*.parquet")
    table = pq.read_table(path)
    rows = [{**row, "image_embedding": [2.0, 0.0]} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(StoreError, match=r"unit 0001-0000000, encoder tiny: the vector of .* is 2.0+ long, not 1"):
        root.run(recipe())
