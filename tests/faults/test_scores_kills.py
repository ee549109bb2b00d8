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
Embedded(Path(sys.argv[1]), Recipe.model_validate_json(sys.argv[2]), "b32").scores(sys.argv[3])
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("encoders") / "b32")


@pytest.mark.parametrize(
    "point", ["mid-heads", "mid-scores", "before-publish@scores", "before-record@scores", "after-record@scores"]
)
def test_a_killed_run_is_finished_by_the_next(point: str, tmp_path: Path, weights: Path) -> None:
    recipe = recipe_of({"b32": weights}, {"nsfw": tmp_path / "nsfw.json"})
    write_head(tmp_path / "nsfw", sha_of(recipe, "b32"))
    roots = []
    for name in ("killed", "whole"):
        made = Embedded(tmp_path / name, recipe, "b32")
        for unit, rows in UNITS.items():
            made.unit(unit, rows)
        roots.append(made)
    killed, whole = roots
    fault = {"PAIRMILL_FAULT": f"{point}:kill:{tmp_path / 'fired'}"}
    died = subprocess.run(
        [sys.executable, "-c", SCRIPT, killed.store.uri, recipe.model_dump_json(), "first"],
        cwd=REPOSITORY, env={**os.environ, **fault}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
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
