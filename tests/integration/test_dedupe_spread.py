"""The search on Ray: the same table, byte for byte, from 1, 2 and 7 tasks, and when every task runs twice."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from pipeline.dedupe import search, spread
from pipeline.dedupe.find import ROWS, find_duplicates
from pipeline.dedupe.search import SMALL
from schemas.recipe import Dedupe
from tests.unit.test_dedupe_find import digest, near, row


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """More than are compared whole, in groups of three and chains."""
    rng = np.random.default_rng(8)
    made: list[dict[str, Any]] = []
    while len(made) < 3 * SMALL:
        head = digest(f"head {len(made)}")
        second = near(head, 18, rng)
        for pdq in (head, second, near(second, 18, rng)):
            made.append(row(f"{len(made)}", pdq, pixels=int(rng.integers(5)), text=digest(f"{len(made) % 2}")[:16]))
    return pa.Table.from_pylist(made, schema=ROWS)


@pytest.mark.parametrize("scope", ["image", "pair"])
def test_any_number_of_tasks_gives_one_process_s_table(rows: pa.Table, scope: str) -> None:
    settings = Dedupe(scope=scope)
    here = find_duplicates(rows, ROWS.empty_table(), settings, threads=1)
    assert len(here) > (500 if scope == "image" else 0)
    for tasks in (1, 2, 7):
        on_ray = partial(spread.best_neighbours_on_ray, tasks=tasks)
        assert find_duplicates(rows, ROWS.empty_table(), settings, search=on_ray).equals(here)


def test_tasks_that_run_twice_change_nothing(rows: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray does when a worker is lost after its work."""
    once = spread.parts
    monkeypatch.setattr(spread, "parts", lambda count: once(count) + once(count))
    settings = Dedupe(scope="image")
    on_ray = partial(spread.best_neighbours_on_ray, tasks=3)
    here = find_duplicates(rows, ROWS.empty_table(), settings)
    assert find_duplicates(rows, ROWS.empty_table(), settings, search=on_ray).equals(here)


def test_the_parts_are_all_tables_once() -> None:
    for count in (1, 2, 7, 150, 200):
        assert [table for part in spread.parts(count) for table in part] == list(range(search.TABLES))
