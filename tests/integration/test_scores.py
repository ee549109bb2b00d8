"""Scores of embedded pairs: cosines and heads as columns, in a folder of an encoder and its heads."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.encoders.identity import identify
from pipeline.errors import InputError, StoreError
from pipeline.heads.head import Evaluator, Head, Spec, written
from pipeline.root import encoder_folders
from pipeline.rounds import table_path
from pipeline.runner import Result
from pipeline.scores.stage import heads_of, run_scores, scores_due
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore, Store
from pipeline.units import Output, StageFolder, count
from schemas.recipe import Recipe
from schemas.records import UnitRecord
from schemas.tables import EMBEDDINGS, SCORES
from tests.tiny_clip import DIM, tiny_clip

UNITS = {"0001-0000000": 12, "0001-0000001": 5}


class Embedded:
    """A ROOT whose units were embedded: random vectors, every fifth row failed."""

    def __init__(self, root: Path, recipe: Recipe, name: str) -> None:
        self.store: Store = LocalStore(root)
        self.recipe = recipe
        self.encoder = next(encoder for encoder in recipe.embed.encoders if encoder.name == name)
        self.embed = StageFolder(self.store, "embed", f"embed-{name}")
        about = {"name": name, "weights_sha256": identify(self.encoder).weights_sha256, "dim": DIM}
        self.store.create(f"{self.embed.base}/encoder.json", json.dumps(about).encode())

    def unit(self, unit: str, rows: int, generation: int = 0) -> pa.Table:
        table = embeddings(unit, self.encoder.name, rows)
        attempt = self.embed.begin(unit, generation, "run", alone=False)
        with self.embed.working(attempt) as scratch:
            pq.write_table(table, scratch / "embeddings.parquet")
            counts = count(table["status"].to_pylist(), table["reason"].to_pylist())
            output = Output("embeddings", scratch / "embeddings.parquet", rows)
            self.embed.commit(attempt, [output], counts, rows, "made")
        return table

    def scores(self, run: str = "run") -> StageFolder:
        """The scores folder after the stage has run."""
        told = json.dumps([self.embed.fingerprint, heads_of(self.recipe, self.encoder)])
        folder = StageFolder(self.store, "scores", hashlib.sha256(told.encode()).hexdigest()[:16])
        self.run(folder, run)
        return folder

    def run(self, folder: StageFolder, run: str = "run") -> list[str]:
        """Run the stage; returns the units it made."""
        folders = self.folders(folder)
        self.reported: list[Result] = []
        stop = StopFlag(self.store.uri, run)
        run_scores(self.store, self.recipe, folders, self.encoder, folder, run, stop, self.reported.append)
        return [result["unit"] for result in self.reported]

    def folders(self, folder: StageFolder) -> dict[str, StageFolder]:
        return {f"embed/{self.encoder.name}": self.embed, f"scores/{self.encoder.name}": folder}

    def table(self, folder: StageFolder, unit: str) -> pa.Table:
        return pq.read_table(self.path(folder, folder.records()[unit]))

    def path(self, folder: StageFolder, record: UnitRecord) -> Path:
        return Path(self.store.uri) / table_path(folder, record, "scores")


def embeddings(unit: str, encoder: str, rows: int) -> pa.Table:
    rng = np.random.default_rng(int(unit[-3:]))
    made = []
    for row in range(rows):
        failed = row % 5 == 4
        image, text = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, DIM)))
        made.append({
            "uid": hashlib.sha256(f"{unit}/{row}".encode()).hexdigest()[:32], "encoder": encoder,
            "status": "failed" if failed else "ok", "reason": "internal" if failed else None,
            "clip_score": None if failed else float(image @ text), "image_norm": None if failed else 10.0 + row,
            "image_embedding": None if failed else image.tolist(), "text_embedding": None if failed else text.tolist(),
        })  # fmt: skip
    return pa.Table.from_pylist(made, schema=EMBEDDINGS)


def write_head(path: Path, encoder_sha256: str, seed: int = 0, **changes: Any) -> Head:
    spec = Spec.model_validate({
        "column": "nsfw", "encoder_sha256": encoder_sha256, "layers": [DIM, 8, 1], "activation": ["relu", "sigmoid"],
        **changes,
    })  # fmt: skip
    rng = np.random.default_rng(seed)
    head = Head(spec, {name: rng.normal(size=shape).astype(np.float32) for name, shape in spec.tensors().items()})
    data, tensors = written(head)
    path.with_suffix(".json").write_bytes(data)
    path.with_suffix(".safetensors").write_bytes(tensors)
    return head


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    return {name: tiny_clip(folder / name, seed) for seed, name in enumerate(("b32", "l14"))}


def recipe_of(weights: Mapping[str, Path], heads: Mapping[str, Path] = {}, names: str = "b32") -> Recipe:
    encoders = [{"name": name, "weights": str(weights[name])} for name in names.split()]
    return Recipe.model_validate(
        {"embed": {"encoders": encoders, "heads": {name: str(path) for name, path in heads.items()}}}
    )


def sha_of(recipe: Recipe, name: str) -> str:
    return identify(next(one for one in recipe.embed.encoders if one.name == name)).weights_sha256


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array([row for row in table["image_embedding"].to_pylist() if row is not None], np.float32)


def test_without_heads_scores_are_the_cosines_and_whose_weights_made_them(
    tmp_path: Path, weights: dict[str, Path]
) -> None:
    made = Embedded(tmp_path / "root", recipe_of(weights), "b32")
    embedded = {unit: made.unit(unit, rows) for unit, rows in UNITS.items()}
    folder = made.scores()
    assert folder.generations() == dict.fromkeys(UNITS, 0)
    for unit, table in embedded.items():
        scores = made.table(folder, unit)
        assert scores.schema.names == SCORES.names
        assert scores["uid"].equals(table["uid"])
        assert scores["clip_score"].equals(table["clip_score"])
        assert set(scores["weights_sha256"].to_pylist()) == {sha_of(made.recipe, "b32")}
        assert folder.records()[unit].counts == made.embed.records()[unit].counts
    assert [result["rows"] for result in made.reported] == [12, 5]


def test_a_head_is_a_column_with_nulls_where_the_row_failed(tmp_path: Path, weights: dict[str, Path]) -> None:
    recipe = recipe_of(weights, {"nsfw": tmp_path / "nsfw.json"})
    head = write_head(tmp_path / "nsfw", sha_of(recipe, "b32"))
    made = Embedded(tmp_path / "root", recipe, "b32")
    table = made.unit("0001-0000000", 12)
    scores = made.table(made.scores(), "0001-0000000")
    expected = iter(Evaluator(head)(vectors_of(table))[:, 0].tolist())
    for status, score in zip(table["status"].to_pylist(), scores["nsfw"].to_pylist(), strict=True):
        assert score == (pytest.approx(next(expected), rel=1e-5) if status == "ok" else None)


def test_a_head_of_raw_input_reads_vectors_at_their_length(tmp_path: Path, weights: dict[str, Path]) -> None:
    recipe = recipe_of(weights, {"nsfw": tmp_path / "nsfw.json"})
    head = write_head(tmp_path / "nsfw", sha_of(recipe, "b32"), input="raw", activation=["relu", "none"])
    made = Embedded(tmp_path / "root", recipe, "b32")
    table = made.unit("0001-0000000", 4)
    scores = made.table(made.scores(), "0001-0000000")
    norms = np.array(table["image_norm"].to_pylist(), np.float32)
    np.testing.assert_allclose(
        scores["nsfw"].to_numpy(), Evaluator(head)(vectors_of(table), norms)[:, 0], rtol=1e-5, atol=1e-5
    )


def test_a_unit_whose_every_row_failed_has_rows_of_nulls(tmp_path: Path, weights: dict[str, Path]) -> None:
    recipe = recipe_of(weights, {"nsfw": tmp_path / "nsfw.json"})
    write_head(tmp_path / "nsfw", sha_of(recipe, "b32"))
    made = Embedded(tmp_path / "root", recipe, "b32")
    failed = embeddings("0001-0000000", "b32", 5).slice(4, 1)
    attempt = made.embed.begin("0001-0000000", 0, "run", alone=False)
    with made.embed.working(attempt) as scratch:
        pq.write_table(failed, scratch / "embeddings.parquet")
        output = Output("embeddings", scratch / "embeddings.parquet", 1)
        made.embed.commit(attempt, [output], {"failed": {"internal": 1}}, 1, "made")
    scores = made.table(made.scores(), "0001-0000000")
    assert scores["nsfw"].to_pylist() == scores["clip_score"].to_pylist() == [None]


def test_a_head_belongs_to_the_encoder_whose_weights_it_names(tmp_path: Path, weights: dict[str, Path]) -> None:
    heads = {"nsfw": tmp_path / "nsfw.json", "aesthetic_l14": tmp_path / "aesthetic.json"}
    recipe = recipe_of(weights, heads, "b32 l14")
    write_head(tmp_path / "nsfw", sha_of(recipe, "b32"))
    write_head(tmp_path / "aesthetic", sha_of(recipe, "l14"), column="aesthetic")
    b32, l14 = recipe.embed.encoders
    assert heads_of(recipe, b32).keys() == {"nsfw"}
    assert heads_of(recipe, l14).keys() == {"aesthetic_l14"}
    made = Embedded(tmp_path / "root", recipe, "l14")
    made.unit("0001-0000000", 3)
    assert made.table(made.scores(), "0001-0000000").schema.names == [*SCORES.names, "aesthetic_l14"]


def test_a_head_of_another_encoder_is_refused_with_both_digests(tmp_path: Path, weights: dict[str, Path]) -> None:
    recipe = recipe_of(weights, {"nsfw": tmp_path / "nsfw.json"})
    write_head(tmp_path / "nsfw", "cd" * 32)
    with pytest.raises(InputError) as caught:
        heads_of(recipe, recipe.embed.encoders[0])
    assert "cd" * 32 in str(caught.value)
    assert sha_of(recipe, "b32") in str(caught.value)


@pytest.mark.parametrize(
    ("key", "head", "said"),
    [
        ("uid", {"column": "uid"}, "there is a column uid already"),
        ("clip_score_b32", {"column": "clip_score_b32"}, "there is a column clip_score_b32 already"),
        ("aesthetic", {}, "gives nsfw; name it nsfw or nsfw_<more>"),
        ("Nsfw", {}, "lower-case"),
        ("order", {"column": "order"}, "order is a word of SQL"),
    ],
)
def test_a_column_that_cannot_be_is_refused(
    key: str, head: dict[str, Any], said: str, tmp_path: Path, weights: dict[str, Path]
) -> None:
    recipe = recipe_of(weights, {key: tmp_path / "h.json"})
    write_head(tmp_path / "h", sha_of(recipe, "b32"), **head)
    with pytest.raises(InputError, match=said):
        heads_of(recipe, recipe.embed.encoders[0])


def test_a_missing_head_is_one_line(tmp_path: Path, weights: dict[str, Path]) -> None:
    for name, said in (("none.json", "cannot be read"), ("model.pth", "python -m jobs.heads converts")):
        recipe = recipe_of(weights, {"nsfw": tmp_path / name})
        with pytest.raises(InputError, match=said):
            heads_of(recipe, recipe.embed.encoders[0])


def test_changed_weights_of_a_head_are_another_digest_and_another_source_is_not(
    tmp_path: Path, weights: dict[str, Path]
) -> None:
    recipe = recipe_of(weights, {"nsfw": tmp_path / "nsfw.json"})
    encoder, sha = recipe.embed.encoders[0], sha_of(recipe, "b32")
    write_head(tmp_path / "nsfw", sha)
    first = heads_of(recipe, encoder)
    write_head(tmp_path / "nsfw", sha, source="found elsewhere")
    assert heads_of(recipe, encoder) == first
    write_head(tmp_path / "nsfw", sha, seed=1)
    assert heads_of(recipe, encoder) != first


def test_a_new_generation_is_scored_whole_and_the_rest_not_again(tmp_path: Path, weights: dict[str, Path]) -> None:
    made = Embedded(tmp_path / "root", recipe_of(weights), "b32")
    for unit, rows in UNITS.items():
        made.unit(unit, rows)
    folder = made.scores()
    made.unit("0001-0000001", 8, generation=1)
    assert [unit["unit"] for unit in scores_due(made.folders(folder), "b32")] == ["0001-0000001"]
    made.scores()
    assert folder.generations() == {"0001-0000000": 0, "0001-0000001": 1}
    assert made.table(folder, "0001-0000001").num_rows == 8
    made.scores()
    assert made.reported == []


def test_the_heads_lie_beside_the_scores_they_made(tmp_path: Path, weights: dict[str, Path]) -> None:
    recipe = recipe_of(weights, {"nsfw": tmp_path / "nsfw.json"})
    write_head(tmp_path / "nsfw", sha_of(recipe, "b32"))
    made = Embedded(tmp_path / "root", recipe, "b32")
    made.unit("0001-0000000", 3)
    folder = made.scores()
    listed = json.loads(made.store.read(f"{folder.base}/heads.json"))
    assert listed["weights_sha256"] == sha_of(recipe, "b32")
    assert listed["heads"] == heads_of(recipe, made.encoder)
    assert [one.base for one in encoder_folders(made.store, "scores").values()] == [folder.base]
    for suffix in (".json", ".safetensors"):
        beside = json.loads if suffix == ".json" else bytes
        assert beside(made.store.read(f"{folder.base}/heads/nsfw{suffix}")) == beside(
            (tmp_path / f"nsfw{suffix}").read_bytes()
        )


def test_labels_are_columns_that_add_up_and_the_text_tower_runs_once(tmp_path: Path, weights: dict[str, Path]) -> None:
    recipe = recipe_of(weights, {"animals": tmp_path / "animals.yaml"})
    (tmp_path / "animals.yaml").write_text("labels: [dog, cat, landscape]\ntemplates: ['a photo of a {}.']")
    made = Embedded(tmp_path / "root", recipe, "b32")
    table = made.unit("0001-0000000", 6)
    folder = made.scores()
    scores = made.table(folder, "0001-0000000")
    names = ["animals_dog", "animals_cat", "animals_landscape"]
    assert scores.schema.names == [*SCORES.names, *sorted(names)]
    for row, status in enumerate(table["status"].to_pylist()):
        values = [scores[name][row].as_py() for name in names]
        assert sum(values) == pytest.approx(1) if status == "ok" else values == [None] * 3
    kept = made.store.read(f"{folder.base}/heads/animals.safetensors")
    made.unit("0001-0000001", 3)
    (weights["b32"] / "open_clip_model.safetensors").rename(tmp_path / "aside")  # the tower is not needed again
    try:
        assert made.run(folder) == ["0001-0000001"]
    finally:
        (tmp_path / "aside").rename(weights["b32"] / "open_clip_model.safetensors")
    assert made.store.read(f"{folder.base}/heads/animals.safetensors") == kept


def test_an_attempt_that_died_is_made_again(tmp_path: Path, weights: dict[str, Path]) -> None:
    made = Embedded(tmp_path / "root", recipe_of(weights), "b32")
    made.unit("0001-0000000", 3)
    folder = made.scores()
    unit = folder.records()["0001-0000000"]
    made.store.delete(f"{folder.base}/units/0001-0000000.0.json")
    made.scores("another")
    again = folder.records()["0001-0000000"]
    assert again.attempt == unit.attempt + 1
    assert again.files[0].sha256 == unit.files[0].sha256


def test_a_raw_head_over_vectors_of_unknown_length_is_a_clear_error(tmp_path: Path, weights: dict[str, Path]) -> None:
    recipe = recipe_of(weights, {"nsfw": tmp_path / "nsfw.json"})
    write_head(tmp_path / "nsfw", sha_of(recipe, "b32"), input="raw")
    made = Embedded(tmp_path / "root", recipe, "b32")
    table = embeddings("0001-0000000", "b32", 3)
    table = table.set_column(
        table.schema.get_field_index("image_norm"), EMBEDDINGS.field("image_norm"), pa.nulls(3, pa.float32())
    )
    attempt = made.embed.begin("0001-0000000", 0, "run", alone=False)
    with made.embed.working(attempt) as scratch:
        pq.write_table(table, scratch / "embeddings.parquet")
        made.embed.commit(
            attempt, [Output("embeddings", scratch / "embeddings.parquet", 3)], {"ok": {"": 3}}, 3, "made"
        )
    with pytest.raises(StoreError, match="no image_norm for each vector"):
        made.scores()


def test_finding_a_recipes_heads_imports_no_torch(tmp_path: Path, weights: dict[str, Path]) -> None:
    recipe = recipe_of(weights, {"nsfw": tmp_path / "nsfw.json"})
    write_head(tmp_path / "nsfw", sha_of(recipe, "b32"))
    code = (
        "import sys; from schemas.recipe import Recipe; from pipeline.scores.stage import heads_of;"
        f"recipe = Recipe.model_validate_json({recipe.model_dump_json()!r});"
        "print(heads_of(recipe, recipe.embed.encoders[0])); assert 'torch' not in sys.modules, 'torch'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
