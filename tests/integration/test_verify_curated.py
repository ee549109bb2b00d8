"""jobs.verify finds what dedupe and select could have decided wrongly, and names the rows."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.dedupe.stage import run_dedupe
from pipeline.select.stage import run_select
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore
from pipeline.verify.run import verify
from schemas.recipe import Recipe
from tests.handmade import HandmadeRoot, Vandal

RECIPE = Recipe.model_validate(
    {
        "dedupe": {"levels": {"bytes": True}, "scope": "image"},
        "select": {"rules": {"early": "source_row < 40"}},
        "shard": {"number_sample_per_shard": 16},
    }
)
UNIT = "0001-0000000"
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every ten rows, 9 has 6's image under another text: one of the two goes. Then the rule."""
    root = tmp_path_factory.mktemp("pristine") / "root"
    made = HandmadeRoot(LocalStore(root), RECIPE)
    made.batch(60)
    made.finish()
    return root


@pytest.fixture
def vandal(pristine: Path, tmp_path: Path) -> Vandal:
    shutil.copytree(pristine, tmp_path / "root")
    return Vandal(tmp_path / "root", RECIPE)


def breaches(vandal: Vandal, invariant: int) -> list[str]:
    report = verify(LocalStore(vandal.root), 0.0)
    return [line for check in report.checks if check.invariant == invariant for line in check.first]


def test_what_was_decided_verifies(pristine: Path) -> None:
    report = verify(LocalStore(pristine))
    assert not report.breaches, [check.first for check in report.checks]
    looked = {check.name: check.checked for check in report.checks}
    assert looked["dropped duplicates have a kept witness"] == 6
    assert looked["ok rows have one decision each"] == 36
    assert looked["samples are what select keeps"] == 20


def drop_witness(rows: Rows) -> Rows:
    first = rows[0]
    return [*rows, {**first, "uid": first["dup_of"], "dup_of": rows[1]["uid"]}]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_witness, "had dropped"),
        (lambda rows: [{**rows[0], "dup_of": "f" * 32}, *rows[1:]], "which is no ok outcome"),
        (lambda rows: [{**rows[0], "uid": "f" * 32}, *rows[1:]], "but no ok outcome"),
        (lambda rows: [{**rows[0], "dup_of": rows[1]["dup_of"]}, *rows[1:]], "their sha256 differ"),
        (lambda rows: [{**rows[0], "level": "nearness"}, *rows[1:]], "which is none of dedupe"),
        (lambda rows: [{**rows[0], "level": "perceptual", "distance": 40.0}, *rows[1:]], "40.0 bits from"),
        (lambda rows: [{**rows[0], "group_id": rows[1]["uid"]}, *rows[1:]], "which is dropped itself"),
        (lambda rows: [*rows, rows[0]], "is dropped 2 times"),
    ],
)
def test_a_duplicate_without_a_kept_witness_is_found(
    vandal: Vandal, edit: Callable[[Rows], Rows], message: str
) -> None:
    vandal.rows("dedupe", UNIT, "duplicates", edit)
    assert any(message in line for line in breaches(vandal, 3))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[1:], "but it has no decision"),
        (lambda rows: [*rows, rows[0]], "has 2 decisions"),
        (lambda rows: [{**rows[0], "uid": "f" * 32}, *rows[1:]], "has a decision but is no ok outcome"),
        (lambda rows: [{**row, "dropped_by": None, "kept": True} for row in rows], "is a duplicate, but"),
        (lambda rows: [{**row, "kept": not row["kept"]} for row in rows], "dropped_by null"),
    ],
)
def test_a_decision_that_cannot_be_is_found(vandal: Vandal, edit: Callable[[Rows], Rows], message: str) -> None:
    vandal.rows("select", UNIT, "decisions", edit)
    assert any(message in line for line in breaches(vandal, 1))


def test_a_sample_that_select_dropped_and_a_kept_row_without_a_sample_are_found(vandal: Vandal) -> None:
    def swap(rows: Rows) -> Rows:
        return [{**row, "kept": not row["kept"], "dropped_by": "early" if row["kept"] else None} for row in rows]

    vandal.rows("select", UNIT, "decisions", swap)
    found = breaches(vandal, 5)
    assert any("which select does not keep" in line for line in found)
    assert any("is kept, a round has read its unit" in line for line in found)


@pytest.mark.parametrize("change", [{"select": {"rules": {"late": "source_row >= 40"}}}, {"dedupe": {"levels": {}}}])
def test_what_was_decided_since_and_no_dataset_uses_is_proven_too(
    vandal: Vandal, change: dict[str, dict[str, Any]]
) -> None:
    merged = RECIPE.model_dump() | {name: getattr(RECIPE, name).model_dump() | keys for name, keys in change.items()}
    since = HandmadeRoot(LocalStore(vandal.root), Recipe.model_validate(merged))
    since.record_run("20260102T000000-since")
    stop = StopFlag(str(vandal.root), "since")
    for stage, run in (("dedupe", run_dedupe), ("select", run_select)):
        run(since.store, since.recipe, since.folders, since.folders[stage], "since", stop, lambda result: None)
        folder = since.folders[stage]
        folder.complete(folder.records(), ["0001"], "2020-01-01T00:00:00.000000+00:00")
    report = verify(LocalStore(vandal.root))
    assert not report.breaches, [check.first for check in report.checks]
    looked = {check.name: check.checked for check in report.checks}
    assert looked["ok rows have one decision each"] == 72
    assert looked["samples are what select keeps"] == 20
    Vandal(vandal.root, since.recipe).rows("select", UNIT, "decisions", lambda rows: [*rows, rows[0]])
    assert any("has 2 decisions" in line for line in breaches(vandal, 1))


def test_counts_that_are_not_those_of_the_table_are_found(vandal: Vandal) -> None:
    vandal.rewrite_record("select", UNIT, lambda told: told.update(counts={"ok": {"": told["rows"]}}))
    assert any("its decisions' counts are not its record's" in line for line in breaches(vandal, 1))
