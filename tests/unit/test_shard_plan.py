"""Which rows go to which shard, from counts alone."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from pipeline.shard.plan import Naming, cut, windows


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12), st.integers(1, 250))
def test_shards_hold_every_row_once_in_order_and_all_but_the_last_are_full(sizes: list[int], samples: int) -> None:
    shards = cut(sizes, samples)
    rows = [[(window, row) for window, start, stop in shard for row in range(start, stop)] for shard in shards]
    assert list(chain(*rows)) == [(window, row) for window, size in enumerate(sizes) for row in range(size)]
    assert all(len(shard) == samples for shard in rows[:-1])
    assert all(0 < len(shard) <= samples for shard in rows[-1:])


@given(st.integers(1, 300), st.integers(1, 20))
def test_windows_are_strides_that_hold_every_unit_once(count: int, strides: int) -> None:
    units = [f"0001-{number:07d}" for number in range(count)]
    dealt = windows(units, strides)
    assert sorted(chain(*dealt)) == units
    assert all(window == units[number::strides] for number, window in enumerate(dealt))


def test_a_shard_number_of_more_digits_than_asked_for_is_written_in_full() -> None:
    assert Naming(1000, 2).shard(7) == "07"
    assert Naming(1000, 2).shard(123) == "123"
    assert Naming(1000, 2).key(123, 45) == "123045"
