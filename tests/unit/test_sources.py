"""Which files --input stands for."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.ingest.sources import find_sources


def test_inputs_are_files_folders_and_globs_once_each(tmp_path: Path) -> None:
    for name in (
        "b/x.csv",
        "a/y.jsonl.gz",
        "a/_SUCCESS",
        "a/.hidden.csv",
        "a/notes.md",
        "a/deep/z.txt",
        "a/p.parquet.gz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    given = [str(tmp_path / "a"), str(tmp_path / "b" / "*.csv"), str(tmp_path / "b" / "x.csv")]
    names = [Path(source.source).name for source in find_sources(given)]
    assert names == ["z.txt", "y.jsonl.gz", "x.csv"]


@pytest.mark.parametrize("given", ["nowhere", "nowhere/*.csv", "empty", "notes.md"])
def test_inputs_that_are_not_there_are_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(InputError, match=given.split("/")[0]):
        find_sources([str(tmp_path / given)])
