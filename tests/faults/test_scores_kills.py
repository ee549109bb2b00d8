"""The scores stage killed wherever it may be: the next run ends with the same files, one row a row of embeddings."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.test_scores import UNITS, Embedded, recipe_of, sha_of, write_head
from tests.running import REPOSITORY
from tests.tiny_clip import tiny_clip

SCRIPT = """
import sys
from pathlib import Path
from schemas.recipe import Recipe
from tests.integration.test_scores import Embedded
if len(sys.argv) > 4:
    import ray
    from pipeline.scores import stage
    stage.FEW_HEADED = 0
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
Embedded(Path(sys.argv[1]), Recipe.model_validate_json(sys.argv[2]), "b32").scores(sys.argv[3])
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("encoders") / "b32")


def embedded(tmp: Path, name: str, weights: Path) -> Embedded:
    recipe = recipe_of({"b32": weights}, {"nsfw": tmp / "nsfw.json"})
    write_head(tmp / "nsfw", sha_of(recipe, "b32"))
    made = Embedded(tmp / name, recipe, "b32")
    for unit, rows in UNITS.items():
        made.unit(unit, rows)
    return made


def run_process(made: Embedded, tmp: Path, fault: str, *ray: str) -> int:
    """The stage in a process of its own, by two actors where `ray` is given; returns its exit code."""
    command = [sys.executable, "-c", SCRIPT, made.store.uri, made.recipe.model_dump_json(), "first", *ray]
    env = {**os.environ, "PAIRMILL_FAULT": f"{fault}:{tmp / 'fired'}", "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(command, cwd=REPOSITORY, env=env, timeout=120, check=False).returncode


@pytest.mark.parametrize(
    "point", ["mid-heads", "mid-scores", "before-publish@scores", "before-record@scores", "after-record@scores"]
)
def test_a_killed_run_is_finished_by_the_next(point: str, tmp_path: Path, weights: Path) -> None:
    killed, whole = (embedded(tmp_path, name, weights) for name in ("killed", "whole"))
    assert run_process(killed, tmp_path, f"{point}:kill") == -signal.SIGKILL
    folder, expected = killed.scores("second"), whole.scores("only")
    assert folder.generations() == dict.fromkeys(UNITS, 0)
    for unit, rows in UNITS.items():
        mine, theirs = folder.records()[unit], expected.records()[unit]
        assert [entry.sha256 for entry in mine.files] == [entry.sha256 for entry in theirs.files]
        table = pq.read_table(killed.path(folder, mine))
        assert table.num_rows == len(set(table["uid"].to_pylist())) == rows
    folder.sweep()
    assert {entry.path for entry in folder.store.files(f"{folder.base}/scores")} == {
        f"{folder.base}/{entry.path}" for record in folder.iter_records() for entry in record.files
    }


def test_two_actors_one_of_them_killed_write_the_same_bytes_as_one_process(tmp_path: Path, weights: Path) -> None:
    killed, whole = (embedded(tmp_path, name, weights) for name in ("killed", "whole"))
    assert run_process(killed, tmp_path, "mid-scores@0001-0000001:kill", "ray") == 0
    assert (tmp_path / "fired").exists()
    made, expected = killed.scores("second"), whole.scores("only")
    assert killed.reported == []
    digests = [{unit: [entry.sha256 for entry in record.files] for unit, record in folder.records().items()}
               for folder in (made, expected)]  # fmt: skip
    assert digests[0] == digests[1]
