"""The funnel is the sum of the records, batch by batch."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.funnel import stage_rows, sum_rows
from schemas.records import Counts, Round, UnitRecord


def record(unit: str, counts: Counts) -> UnitRecord:
    rows = sum(rows for reasons in counts.values() for rows in reasons.values())
    return UnitRecord(unit=unit, generation=0, attempt=1, input_digest="", rows=rows, counts=counts, files=[])


def round_over(name: str, *units: str) -> Round:
    batches = sorted({unit.split("-")[0] for unit in units})
    return Round(round=name, upstream=dict.fromkeys(units, 0), units=[], run="r", created_at="", batches=batches)


def test_units_of_a_batch_are_added_up_and_batches_kept_apart() -> None:
    records = [
        record("0001-0000000", {"ok": {"": 5}, "failed": {"dns": 2}}),
        record("0001-0000001", {"ok": {"": 1}, "failed": {"tls": 1}}),
        record("0002-0000000", {"failed": {"dns": 4}}),
    ]
    assert stage_rows("download", records) == [
        {"batch": "0001", "stage": "download", "encoder": "", "status": "failed", "reason": "dns", "rows": 2},
        {"batch": "0001", "stage": "download", "encoder": "", "status": "failed", "reason": "tls", "rows": 1},
        {"batch": "0001", "stage": "download", "encoder": "", "status": "ok", "reason": "", "rows": 6},
        {"batch": "0002", "stage": "download", "encoder": "", "status": "failed", "reason": "dns", "rows": 4},
    ]


def test_rows_of_embed_name_their_encoder() -> None:
    found = stage_rows("embed/b32", [record("0001-0000000", {"ok": {"": 5}})])
    assert [(row["stage"], row["encoder"], row["batch"], row["rows"]) for row in found] == [("embed", "b32", "0001", 5)]


def test_a_round_over_one_batch_belongs_to_that_batch() -> None:
    rows = stage_rows(
        "shard", [record("0002-0000000", {"ok": {"": 3}})], [round_over("0002", "0007-0000000", "0007-0000001")]
    )
    assert [(row["batch"], row["rows"]) for row in rows] == [("0007", 3)]


def test_a_round_over_several_batches_belongs_to_none() -> None:
    rows = stage_rows(
        "shard", [record("0001-0000000", {"ok": {"": 3}})], [round_over("0001", "0001-0000000", "0002-0000000")]
    )
    assert [(row["batch"], row["rows"]) for row in rows] == [("", 3)]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.dictionaries(st.sampled_from(["dns", "tls", "timeout"]), st.integers(0, 1000)),
            st.integers(0, 1000),
        )
    )
)
def test_no_row_is_lost_or_counted_twice(units: list[tuple[int, dict[str, int], int]]) -> None:
    records = [
        record(f"{batch:04d}-{number:07d}", {"ok": {"": ok}, "failed": failed})
        for number, (batch, failed, ok) in enumerate(units)
    ]
    rows = stage_rows("download", records)
    assert sum_rows(rows) == sum(one.rows for one in records)
    assert sum_rows(rows, status="ok") == sum(ok for _, _, ok in units)
    for batch in (1, 2, 3):
        mine = sum(one.rows for one in records if one.unit.startswith(f"{batch:04d}"))
        assert sum_rows(rows, batch=f"{batch:04d}") == mine
