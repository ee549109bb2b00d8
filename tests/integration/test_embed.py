"""The embed stage on a real pool: one row a due pair, vectors of the right pixels, and nothing embedded twice."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.dedupe.stage import run_dedupe
from pipeline.embed.decode import decode_image
from pipeline.embed.stage import embed_due
from pipeline.encoders.preprocess import Preprocess
from pipeline.root import encoder_folders
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore, open_store
from pipeline.units import StageFolder
from schemas.recipe import Recipe, parse_recipe
from tests.embed_fixture import ENCODER, Plain, byte_tokens, embed, embeddings, tables
from tests.pool_fixture import Pool, caption_of, curate, picture, uid_of
from tests.running import snapshot


def recipe(**sections: Any) -> Recipe:
    return parse_recipe({"dedupe": {"levels": {}}, "embed": {"batch_size": 8}} | sections, "test")


def embedded(pool: Pool, made: Recipe, run: str = "run", **how: Any) -> dict[str, StageFolder]:
    """Curate, then embed; the folders."""
    folders = curate(pool, made, run)
    folders["embed/plain"] = StageFolder(pool.store, "embed", "e0")
    embed(pool.store, folders, made, run, **how)
    return folders


def expected(image: bytes, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The pair's unit vectors, computed by themselves."""
    plain = Plain()
    pixels = decode_image(image, plain.preprocess, scaled=False).transpose(2, 0, 1)[None]
    vectors = plain.encode_images(pixels)[0], plain.encode_texts(byte_tokens([text]))[0]
    return tuple(vector / np.linalg.norm(vector) for vector in vectors)  # type: ignore[return-value]


def test_every_kept_row_has_the_vectors_of_its_own_image_and_caption_in_the_order_of_its_outcomes(
    tmp_path: Path,
) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(30), failed={3, 4})
    pool.unit("0001-0000001", range(30, 41), extension="png")
    folders = embedded(pool, recipe())
    found = tables(folders["embed/plain"])
    assert found["0001-0000000"]["uid"].to_pylist() == [uid_of(n) for n in range(30) if n not in (3, 4)]
    assert found["0001-0000001"]["uid"].to_pylist() == [uid_of(n) for n in range(30, 41)]
    for uid, row in embeddings(folders["embed/plain"]).items():
        number = next(n for n in range(41) if uid_of(n) == uid)
        image, text = expected(picture(number, "png" if number >= 30 else "jpg"), caption_of(number))
        assert (row["status"], row["encoder"]) == ("ok", "plain")
        np.testing.assert_allclose(row["image_embedding"], image, atol=1e-6)
        np.testing.assert_allclose(row["text_embedding"], text, atol=1e-6)
        assert row["clip_score"] == pytest.approx(float(image @ text), abs=1e-5)


def test_running_again_embeds_nothing_and_touches_nothing(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(12))
    folders = embedded(pool, recipe())
    before = snapshot(tmp_path)
    assert embed_due(pool.store, recipe(), folders, ENCODER) == []
    embedded(pool, recipe(), "again")
    assert snapshot(tmp_path) == before


def test_images_of_another_day_are_embedded_alone(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(12))
    folders = embedded(pool, recipe())
    before = snapshot(tmp_path / "embed")
    pool.unit("0002-0000000", range(12, 20))
    plain = Plain()
    folders = embedded(pool, recipe(), "second", plain=plain)
    now = snapshot(tmp_path / "embed")
    assert {name: state for name, state in now.items() if name in before} == before
    assert sorted(plain.batches) == [("image", (8, 3, 32, 32)), ("text", (8, 24))]
    assert len(embeddings(folders["embed/plain"])) == 20


def twins(root: Path) -> Pool:
    """A pool whose rows 5 and 9 are bytes of the same image under the same text."""
    pool = Pool(root)
    pool.unit("0001-0000000", range(12), images={5: picture(5), 9: picture(5)}, texts={5: "one", 9: "one"})
    return pool


def test_a_changed_dedupe_embeds_only_the_rows_it_newly_keeps_and_carries_the_others_over(tmp_path: Path) -> None:
    pool = twins(tmp_path)
    strict = recipe(dedupe={"levels": {"bytes": True}})
    folders = curate(pool, strict)
    folders["embed/plain"] = StageFolder(pool.store, "embed", "e0")
    embed(pool.store, folders, strict)
    first = embeddings(folders["embed/plain"])
    assert len(first) == 11
    loose = {**folders, "dedupe": StageFolder(pool.store, "dedupe", "d1")}
    run_dedupe(pool.store, recipe(), loose, loose["dedupe"], "x", StopFlag(pool.store.uri, "x"), lambda result: None)
    plain = Plain()
    results = embed(pool.store, loose, recipe(), "second", plain=plain)
    assert [result["rows"] for result in results] == [1]
    assert [shape[0] for _, shape in plain.batches] == [1, 1]
    second = embeddings(folders["embed/plain"])
    assert len(second) == 12
    assert {uid: second[uid] for uid in first} == first
    assert tables(folders["embed/plain"])["0001-0000000"]["uid"].to_pylist() == [uid_of(n) for n in range(12)]
    # Back under the strict rule nothing is due, and what was embedded stays.
    assert embed_due(pool.store, strict, folders, ENCODER) == []


def test_pairs_that_share_an_image_share_its_vector_and_it_is_decoded_once(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    record = pool.unit("0001-0000000", range(10))
    members = ("pool_file", "pool_offset", "pool_size", "pool_sha256")
    rewrite(pool, record, lambda rows: rows[7].update({name: rows[2][name] for name in members}))
    plain = Plain()
    folders = embedded(pool, recipe(), plain=plain)
    assert sum(shape[0] for side, shape in plain.batches if side == "image") == 9
    found = embeddings(folders["embed/plain"])
    assert found[uid_of(2)]["image_embedding"] == found[uid_of(7)]["image_embedding"]
    assert found[uid_of(2)]["text_embedding"] != found[uid_of(7)]["text_embedding"]


def rewrite(pool: Pool, record: Any, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the rows of a unit's outcomes where they lie."""
    assert isinstance(pool.store, LocalStore)
    path = next(pool.store.root / pool.folder.base / entry.path for entry in record.files if entry.table == "outcomes")
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_images_of_adopted_tars_are_read_where_they_are(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "root")
    record = pool.unit("0001-0000000", range(9))
    [tar] = tmp_path.glob("root/download/d0/pool/*.tar")
    tar.rename(tmp_path / "elsewhere.tar")
    rewrite(pool, record, lambda rows: [row.update(pool_file=f"file://{tmp_path}/elsewhere.tar") for row in rows])
    found = embeddings(embedded(pool, recipe())["embed/plain"])
    assert [row["status"] for row in found.values()] == ["ok"] * 9


def test_rows_that_are_not_eligible_wait_until_they_are(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(10), sizes={3: (90, 90)})
    rule = recipe(embed={"eligible": {"large": "original_width >= 100"}})
    folders = embedded(pool, rule)
    assert uid_of(3) not in embeddings(folders["embed/plain"])
    assert embed_due(pool.store, rule, folders, ENCODER) == []
    assert [unit["rows"] for unit in embed_due(pool.store, recipe(), folders, ENCODER)] == [1]
    embed(pool.store, folders, recipe(embed={"eligible": {"large": "original_width >= 80"}}), "second")
    assert len(embeddings(folders["embed/plain"])) == 10


def test_an_image_that_does_not_decode_fails_alone(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(10), images={4: picture(4)[:200], 6: b"no image"})
    folders = embedded(pool, recipe())
    found = embeddings(folders["embed/plain"])
    assert {uid for uid, row in found.items() if row["status"] == "failed"} == {uid_of(4), uid_of(6)}
    assert found[uid_of(4)]["reason"] == found[uid_of(6)]["reason"] == "decode_error"
    assert found[uid_of(6)]["image_embedding"] is None
    assert folders["embed/plain"].records()["0001-0000000"].counts == {"failed": {"decode_error": 2}, "ok": {"": 8}}


def test_captions_go_by_length_and_equal_ones_go_once(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit(
        "0001-0000000", range(20), texts={n: "long " * 9 if n % 2 else "cat" if n % 4 else "dog" for n in range(20)}
    )
    plain = Plain()
    made = recipe(embed={"batch_size": 2})
    folders = embedded(pool, made, plain=plain)
    assert sorted(shape for side, shape in plain.batches if side == "text") == [(1, 24), (2, 8)]
    texts = {tuple(row["text_embedding"]) for row in embeddings(folders["embed/plain"]).values()}
    assert len(texts) == 3


class Sick(Plain):
    """Gives no number for the third image of a unit and nothing at all for the fourth; of texts, nothing for one."""

    def encode_images(self, pixels: Any) -> Any:
        vectors = super().encode_images(pixels)
        vectors[2, 0], vectors[3] = np.nan, 0
        return vectors

    def encode_texts(self, tokens: Any) -> Any:
        vectors = super().encode_texts(tokens)
        vectors[tokens[:, 0] == ord("!")] = np.inf
        return vectors


def test_vectors_that_are_not_finite_or_zero_fail_with_the_reason(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(8), texts={6: "! a shout"})
    folders = embedded(pool, recipe(), plain=Sick())
    found = embeddings(folders["embed/plain"])
    failed = {uid: (row["reason"], row["detail"]) for uid, row in found.items() if row["status"] == "failed"}
    assert failed == {
        uid_of(2): ("internal", "the image vector is not finite"),
        uid_of(3): ("internal", "the image vector is zero"),
        uid_of(6): ("internal", "the text vector is not finite"),
    }
    assert all(row["image_embedding"] is None for row in found.values() if row["status"] == "failed")


class Small(Plain):
    """Has memory for three images or two texts."""

    def encode_images(self, pixels: Any) -> Any:
        if len(pixels) > 3:
            raise MemoryError
        return super().encode_images(pixels)

    def encode_texts(self, tokens: Any) -> Any:
        import torch

        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode_texts(tokens)


def test_where_memory_runs_out_the_batch_is_halved_and_the_vectors_are_the_same(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(20))
    folders = embedded(pool, recipe())
    whole = embeddings(folders["embed/plain"])
    folders["embed/plain"] = StageFolder(pool.store, "embed", "e1")
    small = Small()
    embed(pool.store, folders, recipe(), plain=small)
    assert embeddings(folders["embed/plain"]) == whole
    assert max(shape[0] for _, shape in small.batches) == 2


def test_the_folder_says_whose_it_is(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(3))
    folders = embedded(pool, recipe())
    found = encoder_folders(pool.store)
    assert {name: folder.base for name, folder in found.items()} == {"plain": folders["embed/plain"].base}


def test_a_pool_that_changed_fails_its_unit_and_says_which_image(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(5))
    pool.unit("0001-0000001", range(5, 10))
    [tar] = tmp_path.glob("download/d0/pool/0001-0000001*")
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xdb", b"\xff\xdc", 1))
    folders = curate(pool, recipe())
    folders["embed/plain"] = StageFolder(pool.store, "embed", "e0")
    done, failed = sorted(embed(pool.store, folders, recipe()), key=lambda result: str(result["unit"]))
    assert (done["state"], failed["state"]) == ("done", "failed")
    assert uid_of(5) in failed["error"]


def test_the_same_comes_out_of_s3(s3: str, tmp_path: Path) -> None:
    remote, local = Pool(open_store(s3)), Pool(tmp_path)
    for pool in (remote, local):
        pool.unit("0001-0000000", range(20))
    found = [embeddings(embedded(pool, recipe())["embed/plain"]) for pool in (remote, local)]
    assert found[0] == found[1]


def noisy(size: tuple[int, int], mode: str = "RGB", grain: int = 8, **options: Any) -> bytes:
    """A JPEG of noise whose waves are about `grain` pixels long."""
    small = np.random.default_rng(1).integers(0, 256, (size[1] // grain + 1, size[0] // grain + 1, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(data, "JPEG", **options)
    return data.getvalue()


SIZES: Mapping[str, tuple[int, int]] = {"wide": (341, 256), "tall": (256, 399), "odd": (257, 301), "small": (40, 31)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["444", "420", "progressive", "grey", "cmyk"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_full_decode_is_open_clips_own_preprocessing_bit_for_bit(size: str, kind: str, mode: str) -> None:
    from open_clip.transform import image_transform

    options: dict[str, Any] = {"progressive": kind == "progressive", "subsampling": 0 if kind == "444" else 2}
    data = noisy(SIZES[size], {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB"), **options)
    theirs = image_transform(
        (224, 224), is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=mode, fill_color=7
    )(Image.open(io.BytesIO(data)).convert("RGB"))
    ours = decode_image(data, Preprocess((224, 224), MEAN0, STD1, "bicubic", mode, 7), scaled=False)  # type: ignore[arg-type]
    np.testing.assert_array_equal(ours, np.round(theirs.numpy() * 255).astype(np.uint8).transpose(1, 2, 0))


MEAN0, STD1 = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.mark.parametrize("size", SIZES)
def test_scaled_decode_gives_nearly_the_pixels_of_full_decode(size: str) -> None:
    data = noisy(SIZES[size], grain=40, quality=95)
    preprocess = Preprocess((224, 224), MEAN0, STD1)
    full, scaled = (decode_image(data, preprocess, scaled).astype(float) for scaled in (False, True))
    assert full.shape == scaled.shape
    assert np.abs(full - scaled).mean() < 3
