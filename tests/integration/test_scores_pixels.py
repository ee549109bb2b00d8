"""Heads over pixels in the scores stage: each image once, whatever else changes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.embed.decode import decode_image
from pipeline.embed.stage import run_embed
from pipeline.errors import StoreError
from pipeline.heads.head import Head, Spec, written
from pipeline.heads.pixels import PixelModel, backbone_of
from pipeline.rounds import table_path
from pipeline.scores.stage import heads_of, run_scores
from pipeline.stop import StopFlag
from pipeline.units import Output, StageFolder
from schemas.recipe import Recipe, digest
from schemas.tables import EMBEDDINGS
from tests.integration.test_scores import embeddings, sha_of, write_head
from tests.pool_fixture import Pool, curate, picture, uid_of
from tests.tiny_clip import DIM, tiny_clip


def write_model(path: Path, seed: int = 0) -> Head:
    """A small model of timm's with random weights."""
    import torch

    torch.manual_seed(seed)
    backbone = {"arch": "test_efficientnet", "size": (48, 40), "mean": (0.5,) * 3, "std": (0.5,) * 3,
                "resize_mode": "squash"}  # fmt: skip
    spec = Spec.model_validate({
        "column": "pwatermark", "input": "pixels", "backbone": backbone, "layers": [256, 1], "activation": ["sigmoid"]
    })  # fmt: skip
    state = {name: value.numpy() for name, value in backbone_of("test_efficientnet", "test").state_dict().items()}
    draw = np.random.default_rng(seed)
    tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in spec.tensors().items()}
    head = Head(spec, tensors, state)
    data, weights = written(head)
    path.with_suffix(".json").write_bytes(data)
    path.with_suffix(".safetensors").write_bytes(weights)
    return head


class Scored:
    """A pool, embedded as far as `embedded` says, and the scores stage on it."""

    def __init__(self, tmp: Path, weights: Path) -> None:
        self.pool, self.tmp = Pool(tmp / "root"), tmp
        self.recipe = Recipe.model_validate({
            "dedupe": {"levels": {}}, "embed": {
                "num_gpus": 0, "encoders": [{"name": "b32", "weights": str(weights)}], "decoders": 1,
                "heads": {name: str(tmp / f"{name}.json") for name in ("pwatermark", "nsfw")},
            }
        })  # fmt: skip
        self.model = write_model(tmp / "pwatermark")
        write_head(tmp / "nsfw", sha_of(self.recipe, "b32"))
        self.embed = StageFolder(self.pool.store, "embed", "e0")
        about = {"name": "b32", "weights_sha256": sha_of(self.recipe, "b32"), "dim": DIM, "decode": "full"}
        self.pool.store.create(f"{self.embed.base}/encoder.json", json.dumps(about).encode())

    def embedded(self, unit: str, numbers: range, generation: int = 0) -> None:
        table = embeddings(unit, "b32", len(numbers))
        uids = pa.array([uid_of(number) for number in numbers])
        table = table.set_column(0, EMBEDDINGS.field("uid"), uids)
        attempt = self.embed.begin(unit, generation, "run", alone=False)
        with self.embed.working(attempt) as scratch:
            pq.write_table(table, scratch / "embeddings.parquet")
            output = Output("embeddings", scratch / "embeddings.parquet", len(table))
            self.embed.commit(attempt, [output], {"ok": {"": len(table)}}, len(table), "made")

    def run(self) -> StageFolder:
        encoder = self.recipe.embed.encoders[0]
        name = digest(heads_of(self.recipe, encoder))
        folder = StageFolder(self.pool.store, "scores", name)
        folders = {"download": self.pool.folder, "embed/b32": self.embed, "scores/b32": folder}
        stop = StopFlag(self.pool.store.uri, "run")
        run_scores(self.pool.store, self.recipe, folders, encoder, folder, "run", stop, lambda result: None)
        return folder

    def column(self, folder: StageFolder, unit: str, name: str = "pwatermark") -> dict[str, float | None]:
        table = pq.read_table(Path(self.pool.store.uri) / table_path(folder, folder.records()[unit], "scores"))
        return dict(zip(table["uid"].to_pylist(), table[name].to_pylist(), strict=True))

    def expected(self, images: dict[int, bytes]) -> dict[str, float]:
        """What the model gives each image by itself."""
        model = PixelModel(self.model, "test")
        return {
            uid_of(number): float(model(np.array([decode_image(image, model.preprocess, scaled=False)]))[0, 0])
            for number, image in images.items()
        }


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("encoders") / "b32")


def test_every_image_has_the_score_of_its_own_pixels_and_a_broken_one_none(tmp_path: Path, weights: Path) -> None:
    made = Scored(tmp_path, weights)
    made.pool.unit("0001-0000000", range(70), images={7: b"\xff\xd8 no image"})
    made.embedded("0001-0000000", range(70))
    found = made.column(made.run(), "0001-0000000")
    expected = made.expected({number: picture(number) for number in range(70) if number != 7})
    assert found.pop(uid_of(7)) is None
    assert found == pytest.approx(expected, rel=1e-4)
    assert len({round(score, 4) for score in found.values() if score is not None}) > 30


def test_another_head_changed_decodes_no_image_again(tmp_path: Path, weights: Path) -> None:
    made = Scored(tmp_path, weights)
    made.pool.unit("0001-0000000", range(5))
    made.embedded("0001-0000000", range(5))
    first = made.run()
    (tar,) = (Path(made.pool.store.uri) / made.pool.folder.base).rglob("*.tar")
    tar.unlink()
    write_head(tmp_path / "nsfw", sha_of(made.recipe, "b32"), seed=1)
    second = made.run()
    assert second.base != first.base
    assert made.column(second, "0001-0000000") == made.column(first, "0001-0000000")
    assert made.column(second, "0001-0000000", "nsfw") != made.column(first, "0001-0000000", "nsfw")


def test_a_new_generation_decodes_its_new_rows_alone(tmp_path: Path, weights: Path) -> None:
    made = Scored(tmp_path, weights)
    made.pool.unit("0001-0000000", range(8))
    made.embedded("0001-0000000", range(5))
    before = made.column(made.run(), "0001-0000000")
    (tar,) = (Path(made.pool.store.uri) / made.pool.folder.base).rglob("*.tar")
    spoilt = bytearray(tar.read_bytes())
    spoilt[600] ^= 255  # in the first image: whoever read it would find it is not as recorded
    tar.write_bytes(spoilt)
    made.embedded("0001-0000000", range(8), generation=1)
    after = made.column(made.run(), "0001-0000000")
    assert {uid: after[uid] for uid in before} == before
    new = {uid: score for uid, score in after.items() if uid not in before}
    assert new == pytest.approx(made.expected({number: picture(number) for number in (5, 6, 7)}), rel=1e-4)


def test_a_pool_that_is_not_as_recorded_is_an_error_and_no_score(tmp_path: Path, weights: Path) -> None:
    made = Scored(tmp_path, weights)
    made.pool.unit("0001-0000000", range(3))
    made.embedded("0001-0000000", range(3))
    (tar,) = (Path(made.pool.store.uri) / made.pool.folder.base).rglob("*.tar")
    spoilt = bytearray(tar.read_bytes())
    spoilt[600] ^= 255
    tar.write_bytes(spoilt)
    with pytest.raises(StoreError, match="scores unit 0001-0000000"):
        made.run()


def test_a_head_that_the_recipe_names_sees_the_images_while_they_are_embedded(tmp_path: Path, weights: Path) -> None:
    """Once they are embedded nobody looks at the pool again: it may as well be gone."""
    made = Scored(tmp_path, weights)
    made.pool.unit("0001-0000000", range(20), images={3: b"\xff\xd8 no image"})
    folders = curate(made.pool, made.recipe)
    made.embed = folders["embed/b32"] = StageFolder(made.pool.store, "embed", "e1")
    stop, encoder = StopFlag(made.pool.store.uri, "run"), made.recipe.embed.encoders[0]
    run_embed(made.pool.store, made.recipe, folders, encoder, folders["embed/b32"], "run", stop, lambda result: None)
    for tar in (Path(made.pool.store.uri) / made.pool.folder.base).rglob("*.tar"):
        tar.unlink()
    found = made.column(made.run(), "0001-0000000")
    assert found.pop(uid_of(3)) is None
    expected = made.expected({number: picture(number) for number in range(20) if number != 3})
    assert found == pytest.approx(expected, rel=1e-4)
