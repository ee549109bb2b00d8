"""Units over a real Ray actor pool: a worker that dies takes no innocent unit along and loops over none."""

import os
from pathlib import Path

import pytest
import ray

from pipeline.errors import InputError
from pipeline.runner import Pass, Result, Unit, run_units
from pipeline.stop import StopFlag
from schemas.recipe import Recipe

RECIPE = Recipe.model_validate({"ray": {"address": "local", "pools": {"download": 2}}})


class MarkingWorker:
    """Leaves a mark at each begin, as stages do, and dies for real over the unit named poison in the first pass."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def run(self, unit: Unit, alone: bool) -> Result:
        marks = list(self.folder.glob(f"{unit['unit']}.*"))
        if marks and not alone:
            return {"unit": unit["unit"], "state": "deferred", "rows": 0}
        (self.folder / f"{unit['unit']}.{len(marks)}").touch()
        if unit["unit"] == "poison" and not alone:
            os.kill(os.getpid(), 9)
        return {"unit": unit["unit"], "state": "done", "rows": unit["rows"], "counts": {"ok": {"": 1}}}


@pytest.fixture(autouse=True)
def _disconnected() -> object:
    yield
    ray.shutdown()


def run(folder: Path, names: list[str], stop: StopFlag) -> list[Result]:
    results: list[Result] = []
    lanes = [[{"unit": name, "generation": 0, "rows": 1}] for name in names]
    marks = folder / "marks"
    marks.mkdir()
    run_units(RECIPE, Pass("download", lambda: MarkingWorker(str(marks)), 3), lanes, stop, results.append)
    return results


def test_every_unit_ends_once_although_a_worker_dies(tmp_path: Path) -> None:
    names = [f"u{number}" for number in range(12)] + ["poison"]
    results = run(tmp_path, names, StopFlag(str(tmp_path), "r"))
    assert sorted(result["unit"] for result in results if result["state"] == "done") == sorted(names)
    assert all(len(list((tmp_path / "marks").glob(f"{name}.*"))) <= 2 for name in names)


def test_a_raised_stop_flag_lets_no_further_unit_begin(tmp_path: Path) -> None:
    stop = StopFlag(str(tmp_path), "r")
    stop.raise_flag()
    assert not run(tmp_path, ["a", "b"], stop)
    assert not list((tmp_path / "marks").iterdir())


def test_what_a_worker_cannot_use_is_told_as_bad_input_and_not_as_a_death(tmp_path: Path) -> None:
    def refuse() -> MarkingWorker:
        raise InputError("encoder b32: weights b32.pt lack visual.proj")

    lanes = [[{"unit": "a", "generation": 0, "rows": 1}], [{"unit": "b", "generation": 0, "rows": 1}]]
    with pytest.raises(InputError, match=r"^encoder b32: weights b32\.pt lack visual\.proj"):
        run_units(RECIPE, Pass("download", refuse), lanes, StopFlag(str(tmp_path), "r"), lambda result: None)


def test_actors_that_there_is_no_room_for_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    results: list[Result] = []
    lanes = [[{"unit": f"u{number}", "generation": 0, "rows": 1}] for number in range(6)]
    plan = Pass("download", lambda: MarkingWorker(str(tmp_path / "marks")), actors=6, cpus=(os.cpu_count() or 1) / 2)
    run_units(RECIPE, plan, lanes, StopFlag(str(tmp_path), "r"), results.append)
    assert len(results) == 6
