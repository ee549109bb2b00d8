"""ingest.preset: files in the form in which the sets were published are read without naming a column."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.arguments import load_recipe
from pipeline.ingest.parquet import read_parquet
from pipeline.ingest.readers import read_text
from pipeline.ingest.sources import opened
from schemas.recipe import RecipeError, parse_recipe

URL, TEXT = "http://a.example/1.jpg", "a dog, a cat"
PUBLISHED = {
    "datacomp": {"uid": "0" * 32, "url": URL, "text": TEXT, "clip_l14_similarity_score": 0.3},
    "laion400m": {"SAMPLE_ID": 1.0, "URL": URL, "TEXT": TEXT, "HEIGHT": 3, "WIDTH": 4, "NSFW": "UNLIKELY"},
    "laion2b": {"URL": URL, "TEXT": TEXT, "WIDTH": 4, "HEIGHT": 3, "similarity": 0.3, "punsafe": 0.1},
    "coyo": {"id": 1, "url": URL, "text": TEXT, "width": 4, "height": 3, "clip_similarity_vitb32": 0.3},
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_parquet_is_read_without_naming_a_column(preset: str, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([PUBLISHED[preset]]), tmp_path / "part.parquet")
    settings = load_recipe("default", [f"ingest.preset={preset}"]).ingest
    (rows,) = read_parquet(str(tmp_path / "part.parquet"), 0, None, settings)
    assert (rows["url"].to_pylist(), rows["text"].to_pylist()) == ([URL], [TEXT])


@pytest.mark.parametrize(("preset", "line"), [("cc3m", f"{TEXT}\t{URL}\n"), ("cc12m", f"{URL}\t{TEXT}\n")])
def test_published_tsv_without_a_header_is_read(preset: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text(line)
    settings = load_recipe("default", [f"ingest.preset={preset}"]).ingest
    with opened(str(tmp_path / "list.tsv")) as stream:
        (rows,) = read_text(stream, "tsv", settings, "list.tsv")
    assert (rows["url"].to_pylist(), rows["text"].to_pylist()) == ([URL], [TEXT])


def test_a_column_that_is_named_beats_the_preset() -> None:
    settings = parse_recipe({"ingest": {"preset": "laion2b", "caption_col": "top_caption"}}, "r.yaml").ingest
    assert (settings.url_col, settings.caption_col) == ("URL", "top_caption")


def test_an_unknown_preset_is_refused_naming_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"ingest\.preset is 'laion5b': .*laion2b"):
        parse_recipe({"ingest": {"preset": "laion5b"}}, "r.yaml")
