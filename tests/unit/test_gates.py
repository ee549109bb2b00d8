"""Gates judge each batch by its own funnel, and say what was measured against what was wanted."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.gates import accepted_batches, check_gates, failed_gates
from pipeline.storage import LocalStore
from schemas.recipe import Recipe, parse_recipe
from schemas.records import RunRecord

SHARE_OK = "(SELECT sum(rows) FILTER (status = 'ok') / sum(rows) FROM funnel WHERE stage = 'download')"


def recipe(min_success: float = 0.0, **gates: str) -> Recipe:
    return parse_recipe({"gates": gates, "download": {"min_success": min_success}}, "test")


def funnel(batch: str = "0001", stage: str = "download", **reasons: int) -> list[dict[str, Any]]:
    statuses = {"ok": "ok", "internal": "failed", "dns": "failed", "robots": "refused"}
    named = {"ok": "", **{reason: reason for reason in statuses if reason != "ok"}}
    return [
        {"batch": batch, "stage": stage, "status": statuses[reason], "reason": named[reason], "rows": rows}
        for reason, rows in reasons.items()
    ]


def names(failed: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(gate["batch"], gate["gate"]) for gate in failed]


def test_a_gate_that_holds_says_nothing() -> None:
    assert failed_gates(recipe(share=f"{SHARE_OK} >= 0.7"), funnel(ok=7, dns=3)) == []


def test_a_gate_that_fails_tells_value_and_bound() -> None:
    (gate,) = failed_gates(recipe(share=f"{SHARE_OK} >= 0.9"), funnel(ok=7, dns=3))
    assert (gate["batch"], gate["gate"], gate["value"], gate["bound"]) == ("0001", "share", 0.7, ">= 0.9")
    assert "0.7 is not >= 0.9" in gate["detail"]


def test_a_gate_that_is_no_comparison_tells_its_verdict() -> None:
    (gate,) = failed_gates(recipe(g="(SELECT count(*) FROM funnel) BETWEEN 5 AND 9"), funnel(ok=7))
    assert gate["value"] is False
    assert gate["bound"] is None


def test_null_fails() -> None:
    (gate,) = failed_gates(recipe(g="(SELECT sum(rows) FROM funnel WHERE reason = 'tls') < 5"), funnel(ok=7))
    assert gate["value"] is None


def test_each_batch_is_judged_by_its_own_rows() -> None:
    rows = funnel("0001", ok=9, dns=1) + funnel("0002", ok=1, dns=9)
    assert names(failed_gates(recipe(share=f"{SHARE_OK} >= 0.5"), rows)) == [("0002", "share")]


def test_an_accepted_batch_does_not_count() -> None:
    rows = funnel("0001", ok=1, dns=9) + funnel("0002", ok=1, dns=9)
    assert names(failed_gates(recipe(share=f"{SHARE_OK} >= 0.5"), rows, {"0001"})) == [("0002", "share")]


def test_a_gate_on_a_stage_that_has_not_come_is_not_judged() -> None:
    assert failed_gates(recipe(share=f"{SHARE_OK} >= 0.5"), funnel(stage="ingest", ok=1)) == []


def test_a_gate_that_breaks_on_the_rows_fails_with_the_reason() -> None:
    (gate,) = failed_gates(recipe(g="(SELECT reason::INT FROM funnel) > 0"), funnel(dns=1))
    assert "Could not convert" in gate["value"]


@pytest.mark.parametrize(("rows", "fails"), [({"ok": 8, "dns": 2}, False), ({"ok": 7, "dns": 3}, True)])
def test_min_success_is_the_share_of_attempted_rows_that_are_ok(rows: dict[str, int], fails: bool) -> None:
    assert names(failed_gates(recipe(min_success=0.8), funnel(**rows))) == [("0001", "min_success")] * fails


@pytest.mark.parametrize(("internal", "fails"), [(1, False), (2, True)])
def test_vectors_that_are_none_fail_as_faults_of_ours_an_encoder_at_a_time(internal: int, fails: bool) -> None:
    mine, other = ({"encoder": encoder} for encoder in ("b32", "l14"))
    own = [row | mine for row in funnel(stage="embed", ok=1000 - internal, internal=internal)]
    own += [row | other for row in funnel(stage="embed", ok=1000)]
    assert names(failed_gates(recipe(), [*funnel(ok=1000), *own])) == [("0001", "internal")] * fails


@pytest.mark.parametrize(("internal", "fails"), [(1, False), (2, True)])
def test_more_than_one_in_a_thousand_of_our_own_faults_fail(internal: int, fails: bool) -> None:
    rows = funnel(ok=1000 - internal, internal=internal)
    assert names(failed_gates(recipe(), rows)) == [("0001", "internal")] * fails


def test_no_rows_attempted_is_no_failure() -> None:
    assert failed_gates(recipe(min_success=1.0), funnel(stage="ingest", ok=0)) == []


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT 1 FROM", "syntax error"),
        ("nope > 3", "nope"),
        ("1 > 0) ; DROP TABLE funnel; SELECT (1", "Only SELECT"),
        ("1 > 0) ; SELECT (1", "give one expression"),
        ("1 > 0), (2 > 1", "give one expression"),
        ("(SELECT sum(rows) FROM funnel)", "not true or false"),
        ("(SELECT count(*) FROM read_text('/etc/hostname')) = 1", "disabled"),
        ("(SELECT count(*) FROM 'https://127.0.0.1/x.csv') = 1", ""),
    ],
)
def test_a_bad_gate_is_refused_before_the_run(sql: str, words: str) -> None:
    with pytest.raises(InputError, match=r"recipe gates\.bad: ") as caught:
        check_gates(recipe(bad=sql))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_good_gates_pass_the_check_on_an_empty_funnel() -> None:
    check_gates(recipe(share=f"{SHARE_OK} >= 0.9", comment="1 > 0 -- always"))


def test_what_any_run_accepted_stays_accepted(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for number, accepts in enumerate([["0001"], [], ["0003"]]):
        run = RunRecord(
            run=str(number), started_at="", command=[], who="", host="", recipe={}, versions={}, stages={},
            accepts=accepts,
        )  # fmt: skip
        store.replace(f"runs/{number}.json", run.to_bytes())
    assert accepted_batches(store) == {"0001", "0003"}
