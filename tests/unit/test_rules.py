"""Rules over metadata: what is refused, and how rows are judged."""

import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.rules import Rules
from pipeline.select.decide import counts_of, decisions

ROWS = pa.table({"width": pa.array([10, 20, None, 30]), "text": ["a", "b'c", "", None], "src_x": ["1", "z", "3", None]})


def judged(**rules: str) -> dict[str, list[bool]]:
    return dict(Rules(rules, ROWS.schema, "select.rules").judge(ROWS).to_pydict())


def test_false_null_and_errors_fail() -> None:
    assert judged(wide="width >= 20", number="src_x::INT > 0", named="text IN ('a', 'b''c')") == {
        "wide": [False, True, False, True],
        "number": [True, False, True, False],
        "named": [True, True, False, False],
    }


def test_a_rule_without_a_column_is_judged_for_every_row() -> None:
    assert judged(always="true", never="1 < NULL") == {"always": [True] * 4, "never": [False] * 4}


def test_only_the_columns_that_rules_name_are_asked_for() -> None:
    assert Rules({"a": "WIDTH > 3 AND \"src_x\" = '1'"}, ROWS.schema, "p").columns == ["width", "src_x"]
    assert Rules({}, ROWS.schema, "p").columns == []


def test_many_rows_come_back_in_their_order() -> None:
    rows = pa.table({"width": list(range(300_000))})
    passed = Rules({"odd": "width % 2 = 1"}, rows.schema, "p").judge(rows)["odd"].to_pylist()
    assert passed == [bool(n % 2) for n in range(300_000)]


@pytest.mark.parametrize(
    ("name", "sql", "message"),
    [
        ("r", "widht > 3", "widht"),
        ("r", "width", "gives BIGINT"),
        ("r", "sum(width) > 3", "aggregate"),
        ("r", "row_number() OVER () > 3", "window"),
        ("r", "width > 3) OR (true", "no SQL condition"),
        ("r", "width IN (SELECT 1)", "no SQL condition"),
        ("r", "random() > 0.5", "no SQL condition"),
        ("r", "text IN (SELECT content FROM read_text('/etc/hostname'))", "no SQL condition"),
        ("r", "true; DROP TABLE rows_", "no SQL condition"),
        ("two words", "true", "no name"),
    ],
)
def test_what_is_no_condition_on_a_row_is_refused_by_name(name: str, sql: str, message: str) -> None:
    with pytest.raises(InputError, match=r"select\.rules") as refused:
        Rules({name: sql}, ROWS.schema, "select.rules")
    assert message.lower() in str(refused.value).lower()


def test_names_that_differ_in_case_alone_are_refused() -> None:
    with pytest.raises(InputError, match="'WIDE'"):
        Rules({"wide": "true", "WIDE": "true"}, ROWS.schema, "select.rules")


def test_the_first_that_takes_a_row_is_named() -> None:
    uids = pa.chunked_array([["a", "b", "c", "d"]])
    dropped = [("duplicate", pa.array([True, True, False, False]))]
    passes = pa.table({"one": [False, True, False, True], "two": [False, True, False, True]})
    table = decisions(uids, dropped, passes)
    assert table["dropped_by"].to_pylist() == ["duplicate", "duplicate", "one", None]
    assert table["kept"].to_pylist() == [False, False, False, True]
    assert table["pass_two"].to_pylist() == [False, True, False, True]
    assert counts_of(table) == {"ok": {"": 1}, "rejected": {"duplicate": 2, "one": 1}}


def test_no_rows_are_a_table_with_every_column() -> None:
    rules = Rules({"wide": "width > 1"}, ROWS.schema, "p")
    table = decisions(pa.chunked_array([[]], pa.string()), [], rules.judge(ROWS.slice(0, 0)))
    assert table.column_names == ["uid", "kept", "dropped_by", "weight", "pass_wide"]
    assert counts_of(table) == {}
