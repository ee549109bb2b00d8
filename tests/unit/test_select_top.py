"""`top` against a sort: the value at a place from the top, exactly, whatever the numbers and how they are cut up."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.select.top import Cut, Search, key_bits, keys_of, ranked_type, value_of
from schemas.recipe import Top

TYPES = [pa.float32(), pa.float64(), pa.int64(), pa.int32(), pa.uint8()]


def cut(values: pa.Array, top: Top, parts: int = 3) -> Cut:
    """Pass after pass over the values in parts."""
    values = values.cast(ranked_type(values.type))
    ends = np.linspace(0, len(values), parts + 1).astype(int)
    chunks = [pa.chunked_array([values.slice(first, last - first)]) for first, last in pairwise(ends)]
    search = Search(top, key_bits(values.type))
    for _ in range(4):
        for chunk in chunks:
            keys, there = keys_of(chunk)
            search.add(keys[there])
        if (found := search.close()) is not None:
            return found
    raise AssertionError("four passes are enough for 64 bits")


def kept(values: pa.Array, top: Top) -> list[bool]:
    ranked = pa.chunked_array([values.cast(ranked_type(values.type))])
    flags: list[bool] = cut(values, top).passes(ranked).tolist()
    return flags


def by_sorting(values: pa.Array, top: Top) -> list[bool]:
    """DataComp's `sorted_desc[int(n * f)]`, nulls and NaN outside; a count: the value of the last one."""
    given = values.to_pylist()
    there = sorted((value for value in given if value is not None and value == value), reverse=True)
    place = int(len(there) * top.fraction) if top.fraction is not None else (top.count or 1) - 1
    if not there:
        return [False] * len(given)
    least = there[place] if place < len(there) else there[-1]
    return [value is not None and value == value and value >= least for value in given]


def generated(type_: pa.DataType, rows: int, ties: int, seed: int = 0) -> pa.Array:
    random = np.random.default_rng(seed)
    if pa.types.is_floating(type_):
        numbers = random.standard_normal(ties) * 10.0 ** random.integers(-30, 30, ties)
        drawn = random.choice(np.concatenate((numbers, [0.0, -0.0, np.inf, -np.inf, 1e-42, -1e-42])), rows)
        drawn[random.random(rows) < 0.05] = np.nan
    else:
        whole = np.iinfo(type_.to_pandas_dtype())
        numbers = random.integers(whole.min, whole.max, ties, whole.dtype, endpoint=True)
        drawn = random.choice(np.concatenate((numbers, [whole.min, whole.max])), rows)
    return pa.array(drawn, type_, mask=random.random(rows) < 0.05)


@pytest.mark.parametrize("type_", TYPES, ids=str)
@pytest.mark.parametrize("ties", [3, 100_000])
@pytest.mark.parametrize("top", [{"fraction": f} for f in (1e-9, 0.1, 0.3, 0.5, 1)] + [{"count": n} for n in (1, 777)])
def test_what_passes_is_what_a_sort_says(type_: pa.DataType, ties: int, top: dict[str, float]) -> None:
    values = generated(type_, 20_000, ties)
    asked = Top(column="x", **top)
    assert kept(values, asked) == by_sorting(values, asked)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.none() | st.floats(width=32)), st.floats(0.001, 1), st.integers(1, 12), st.booleans())
def test_any_floats_are_ranked_as_a_sort_ranks_them(
    numbers: list[float | None], fraction: float, count: int, by_count: bool
) -> None:
    values = pa.array(numbers, pa.float32())
    asked = Top(column="x", count=count) if by_count else Top(column="x", fraction=fraction)
    assert kept(values, asked) == by_sorting(values, asked)


@pytest.mark.parametrize("type_", [pa.float32(), pa.float64(), pa.int64()], ids=str)
def test_a_cut_tells_the_least_value_that_passes(type_: pa.DataType) -> None:
    for number in (-7, -1, 0, 3, 1000):
        values = pa.array([-1000, number, 2000, 3000], type_)
        assert value_of(cut(values, Top(column="x", count=len([v for v in values.to_pylist() if v >= number]))).key,
                        type_) == number  # fmt: skip
    assert value_of(cut(pa.array([1, 2], type_), Top(column="x", count=2)).key, type_) == 1
    assert value_of(cut(pa.array([1, 2], type_), Top(column="x", count=3)).key, type_) is None


def test_a_fraction_keeps_one_more_and_all_equals_of_the_last() -> None:
    values = pa.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], pa.float32())
    assert sum(kept(values, Top(column="x", fraction=0.3))) == 4
    tied = pa.array([1.0, 2.0, 2.0, 2.0, 3.0], pa.float32())
    assert kept(tied, Top(column="x", count=2)) == [False, True, True, True, True]


def test_minus_zero_is_zero_and_a_null_or_nan_is_no_value() -> None:
    values = pa.array([-0.0, 0.0, None, float("nan"), -1.0], pa.float32())
    assert kept(values, Top(column="x", count=1)) == [True, True, False, False, False]
    assert kept(values, Top(column="x", fraction=1)) == [True, True, False, False, True]
    assert cut(values, Top(column="x", count=1)).rows == 3


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_a_population_without_a_value_lets_nothing_pass(type_: pa.DataType) -> None:
    assert kept(pa.nulls(5, type_), Top(column="x", fraction=1)) == [False] * 5


@pytest.mark.parametrize(("type_", "passes"), [(pa.float32(), 2), (pa.int64(), 4)])
def test_two_passes_are_enough_for_scores_and_four_for_64_bits(type_: pa.DataType, passes: int) -> None:
    search = Search(Top(column="x", count=5), key_bits(type_))
    keys, _ = keys_of(pa.chunked_array([pa.array(range(100), type_)]))
    for number in range(1, passes + 1):
        search.add(keys)
        assert (search.close() is not None) == (number == passes)
