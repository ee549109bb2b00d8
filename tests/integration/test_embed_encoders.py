"""The embed stage with encoders that open_clip builds, run as a build runs it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from pipeline.embed.decode import decode_image
from pipeline.embed.stage import FEW, embed_due, make_worker, run_embed
from pipeline.encoders.load import load
from pipeline.errors import InputError
from pipeline.runner import Result
from pipeline.stop import StopFlag
from pipeline.units import StageFolder
from schemas.recipe import Encoder, Recipe, parse_recipe
from tests.embed_fixture import embeddings
from tests.pool_fixture import Pool, caption_of, curate, picture, uid_of

TINY = Encoder(name="tiny", arch="pairmill-tiny", weights="untrained")


@pytest.fixture(autouse=True)
def _disconnected() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    ray.shutdown()


def recipe(**embed: Any) -> Recipe:
    sections = {"dedupe": {"levels": {}}, "embed": {"encoders": [TINY.model_dump()], "batch_size": 16, **embed}}
    return parse_recipe(sections, "test")


def run(pool: Pool, made: Recipe, own: str = "e0", name: str = "run") -> tuple[dict[str, StageFolder], list[Result]]:
    folders = curate(pool, made, name)
    folders["embed/tiny"] = StageFolder(pool.store, "embed", own)
    results: list[Result] = []
    stop = StopFlag(pool.store.uri, name)
    run_embed(pool.store, made, folders, TINY, folders["embed/tiny"], name, stop, results.append)
    return folders, results


def test_vectors_are_those_of_the_encoder_alone_and_the_same_bits_in_every_run(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(20), side=80)
    folders, _ = run(pool, recipe())
    found = embeddings(folders["embed/tiny"])
    encoder = load(TINY)
    for number in range(20):
        pixels = decode_image(picture(number, side=80), encoder.preprocess, scaled=False).transpose(2, 0, 1)[None]
        image = encoder.encode_images(np.ascontiguousarray(pixels))[0]
        text = encoder.encode_texts(encoder.tokenize([caption_of(number)]))[0]
        row = found[uid_of(number)]
        assert row["image_norm"] == pytest.approx(float(np.linalg.norm(image)), rel=1e-4)
        np.testing.assert_allclose(row["image_embedding"], image / np.linalg.norm(image), atol=1e-5)
        np.testing.assert_allclose(row["text_embedding"], text / np.linalg.norm(text), atol=1e-5)
    again, _ = run(pool, recipe(decoders=3), own="e1", name="again")
    assert embeddings(again["embed/tiny"]) == found


def test_actors_embed_every_unit_and_report_its_rows(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    count = FEW // 2
    for unit in range(3):
        pool.unit(f"0001-000000{unit}", range(count * unit, count * (unit + 1)), side=16)
    folders, results = run(pool, recipe())
    assert sum(result["rows"] for result in results) == 3 * count
    assert sum(result["counts"]["ok"][""] for result in results) == 3 * count
    assert len(embeddings(folders["embed/tiny"])) == 3 * count
    assert embed_due(pool.store, recipe(), folders, TINY) == []


def test_weights_that_changed_since_the_run_began_are_refused_where_they_are_read(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(4), side=80)
    made = recipe()
    folders = {key: (one.stage, one.fingerprint) for key, one in curate(pool, made, "run").items()}
    with pytest.raises(InputError, match="the same file there on every node"):
        make_worker(pool.store.uri, folders, "e0", made, TINY, "run", "0" * 64, False, 1, 1)
