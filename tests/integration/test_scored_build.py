"""A build with encoders as a user runs it: embedded, scored, compared, selected; again the next day; withdrawn from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from jobs.demo.web import Web
from tests.running import job, more_hits, snapshot, table, write_recipe

TINY = {"arch": "pairmill-tiny", "weights": "untrained"}
LABELS = {"columns": {"people": ["person", "man", "woman"], "things": ["flag", "car", "tree"]}}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=300, seed=31) as web:
        yield web


def days(web: Web, folder: Path) -> list[Path]:
    """The list in two files: what comes first, and what comes the next day."""
    pairs = pq.read_table(web.list_path)
    cut = 2 * pairs.num_rows // 3
    files = [folder / "monday.parquet", folder / "tuesday.parquet"]
    pq.write_table(pairs.slice(0, cut), files[0])
    pq.write_table(pairs.slice(cut), files[1])
    return files


def settings(web: Web, path: Path, **more: Any) -> Path:
    return write_recipe(
        path, web.recipe,
        embed={"encoders": [{"name": "one", **TINY}, {"name": "two", **TINY, "dtype": "bf16"}]},
        semantic={"encoder": "one", "eps": 0.01},
        select={"rules": {"wide": "original_width >= 96"},
                "top": {"column": "clip_score_one", "fraction": 0.5, "of": "survivors"}},
        **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(web: Web, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path]]:
    """(root, recipe, inputs): the first day, built."""
    folder = tmp_path_factory.mktemp("scored")
    inputs, recipe = days(web, folder), settings(web, folder / "r.yaml")
    done = job("build", "--recipe", recipe, "--input", inputs[0], "--output", folder / "root")
    assert done.returncode == 0, done.stderr
    return folder / "root", recipe, inputs


def test_every_kept_row_has_a_vector_and_a_score_of_each_encoder_and_the_dataset_the_first_ones_score(
    built: tuple[Path, Path, list[Path]],
) -> None:
    root, _, _ = built
    decisions = {row["uid"]: row for row in table(root, "decisions").to_pylist()}
    due = {uid for uid, row in decisions.items() if row["dropped_by"] not in ("duplicate", "contaminated")}
    scores = {(row["uid"], row["encoder"]): row["clip_score"] for row in table(root, "scores").to_pylist()}
    assert {(uid, encoder) for uid in due for encoder in ("one", "two")} <= scores.keys()
    ranked = sorted((scores[uid, "one"] for uid in due if decisions[uid]["pass_wide"]), reverse=True)
    kept = {uid for uid, row in decisions.items() if row["kept"]}
    assert {uid for uid in due if decisions[uid]["pass_wide"]
            and scores[uid, "one"] >= ranked[int(len(ranked) * 0.5)]} == kept  # fmt: skip
    samples = pq.read_table(next((root / "shard").glob("*/dataset/00000.parquet"))).to_pylist()
    assert {sample["uid"] for sample in samples} == kept
    assert all(sample["clip_score"] == scores[sample["uid"], "one"] for sample in samples)
    told = json.loads(job("show", root, "--json").stdout)
    assert [(stage["stage"], stage["encoder"], stage["pending"]) for stage in told["stages"]] == [
        ("ingest", "", 0), ("download", "", 0), ("dedupe", "", 0), ("embed", "one", 0), ("embed", "two", 0),
        ("semantic", "", 0), ("select", "", 0), ("shard", "", 0),
    ]  # fmt: skip
    checked = job("verify", root)
    assert checked.returncode == 0, checked.stdout


def test_another_day_and_other_rules_embed_only_new_rows_and_fetch_only_new_urls(
    web: Web, built: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    root, recipe, inputs = built
    embedded = snapshot(root / "embed")
    before = web.hits()
    looser = settings(web, tmp_path / "r.yaml", dedupe={"levels": {}})
    assert job("build", "--recipe", looser, "--output", root).returncode == 0
    assert more_hits(before, web.hits()) == {}
    after = snapshot(root / "embed")
    assert {path for path in embedded if after[path] != embedded[path] and "complete" not in path} == set()
    done = job("build", "--recipe", recipe, "--input", *inputs, "--output", root)
    assert done.returncode == 0, done.stderr
    embeddings = table(root, "embeddings").select(["uid", "encoder"]).to_pylist()
    assert len({(row["uid"], row["encoder"]) for row in embeddings}) == len(embeddings)
    assert {row["batch"] for row in table(root, "outcomes").to_pylist()} == {"0001", "0002"}
    checked = job("verify", root)
    assert checked.returncode == 0, checked.stdout
    assert job("build", "--recipe", recipe, "--input", *inputs, "--output", root).returncode == 0
    cleaned = job("clean", root)
    assert cleaned.returncode == 0, cleaned.stderr
    assert len(list((root / "embed").iterdir())) == 2, "vectors of both encoders stay"
    assert job("verify", root).returncode == 0


def test_a_withdrawn_row_leaves_vectors_scores_and_decisions_and_stays_away(
    web: Web, built: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    root, recipe, inputs = built
    kept = next(row["uid"] for row in table(root, "decisions").to_pylist() if row["kept"])
    (tmp_path / "list").write_text(f"uid:{kept}\n")
    done = job("retract", root, "--list", tmp_path / "list", "--why", "a test")
    assert done.returncode == 0, done.stderr
    for name in ("embeddings", "scores", "decisions", "duplicates"):
        assert kept not in {row["uid"] for row in table(root, name).select(["uid"]).to_pylist()}, name
    assert job("verify", root).returncode == 0
    before = web.hits()
    assert job("build", "--recipe", recipe, "--input", *inputs, "--output", root).returncode == 0
    assert more_hits(before, web.hits()) == {}
    assert job("verify", root).returncode == 0
    assert not [path for path in root.rglob("*") if path.is_file() and kept.encode() in path.read_bytes()]


def test_semantic_and_select_before_embed_say_what_to_run_first(
    web: Web, built: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    _, recipe, inputs = built
    root = tmp_path / "root"
    done = job(
        "build", "--recipe", recipe, "--input", inputs[0], "--output", root, "--until", "dedupe", "--limit", "40"
    )
    assert done.returncode == 0, done.stderr
    early = job("semantic", "--recipe", recipe, "--output", root, "--limit", "40")
    assert early.returncode == 2
    assert "run jobs.embed" in early.stderr
    assert len(early.stderr.strip().splitlines()) == 1
    early = job("select", "--recipe", recipe, "--output", root, "--limit", "40", "--set", "semantic.encoder=null")
    assert early.returncode == 2, "it would drop every row as not embedded"
    assert "rows have no vectors of one yet; run jobs.embed" in early.stderr
    assert not (root / "select").exists()


def test_an_encoder_that_cannot_be_is_refused_before_anything_is_made(web: Web, tmp_path: Path) -> None:
    for change, told in (
        ({"weights": str(tmp_path / "gone.pt")}, "gone.pt"),
        ({"arch": "ViT-Z-99"}, "ViT-Z-99"),
        ({"name": "B/32"}, "B/32"),
    ):
        recipe = tmp_path / "r.yaml"
        recipe.write_text(yaml.safe_dump({"embed": {"encoders": [{"name": "x", **TINY, **change}]}}))
        done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", tmp_path / "root")
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "root").exists() or not list((tmp_path / "root").rglob("batches/*"))
