"""jobs.export --clip-retrieval: vectors of the kept rows as autofaiss and clip-retrieval's back end read them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from jobs.export import main
from jobs.retract import main as retract_main
from pipeline.export.clip_retrieval import write_clip_retrieval
from pipeline.storage import LocalStore, Store, open_store
from schemas.recipe import Recipe
from tests.integration.test_retract import table
from tests.scored import ENCODERS, HEAD, ScoredRoot, cosine, has, head, vectors

RECIPE = Recipe.model_validate(
    {
        "shard": {"number_sample_per_shard": 16},
        "dedupe": {"levels": {"bytes": True}},
        "select": {"rules": {"early": "source_row < 50"}},
    }
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ScoredRoot:
    made = ScoredRoot(LocalStore(tmp_path_factory.mktemp("scored") / "root"), RECIPE)
    made.batch(60)
    made.finish()
    return made


def wanted(made: ScoredRoot, encoder: str) -> dict[str, dict[str, Any]]:
    """uid → outcome of the rows that belong into an export."""
    kept = {row["uid"] for row in table(made.store, "decisions") if row["kept"]}
    return {row["uid"]: row for row in table(made.store, "outcomes") if row["uid"] in kept and has(row, encoder)}


def read_back(folder: Path) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """As embedding_reader (autofaiss) and clip-retrieval do: files in the order of their names, one after another."""
    parts = {
        kind: sorted((folder / kind).iterdir(), key=lambda path: path.name)
        for kind in ("img_emb", "text_emb", "metadata")
    }
    images, texts = ([np.load(path, mmap_mode="r") for path in parts[kind]] for kind in ("img_emb", "text_emb"))
    frames = [pd.read_parquet(path) for path in parts["metadata"]]
    assert [len(part) for part in images] == [len(part) for part in texts] == [len(part) for part in frames]
    return np.concatenate(images), np.concatenate(texts), pd.concat(frames, ignore_index=True)


def check(made: ScoredRoot, folder: Path, encoder: str) -> None:
    images, texts, metadata = read_back(folder)
    rows = wanted(made, encoder)
    assert images.dtype == texts.dtype == np.float16
    assert images.shape == texts.shape == (len(rows), ENCODERS[encoder])
    assert sorted(metadata["uid"]) == sorted(rows)
    for row, told in enumerate(metadata.to_dict("records")):
        image, text = vectors(told["uid"], encoder)
        assert np.array_equal(images[row], image.astype(np.float16))
        assert np.array_equal(texts[row], text.astype(np.float16))
        assert (told["caption"], told["url"]) == (rows[told["uid"]]["caption"], rows[told["uid"]]["url"])
        assert told[f"clip_score_{encoder}"] == pytest.approx(cosine(told["uid"], encoder), abs=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_row_i_of_each_array_and_of_the_metadata_is_one_pair(made: ScoredRoot, encoder: str, tmp_path: Path) -> None:
    assert main([made.store.uri, "--clip-retrieval", str(tmp_path / "out"), "--encoder", encoder]) == 0
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")) == [
        "img_emb/img_emb_0.npy", "metadata/metadata_0.parquet", "text_emb/text_emb_0.npy",
    ]  # fmt: skip
    check(made, tmp_path / "out", encoder)


def test_image_path_is_the_samples_key_and_heads_are_there(made: ScoredRoot, tmp_path: Path) -> None:
    write_clip_retrieval(made.store, str(tmp_path / "out"), "l14")
    dataset = Path(made.store.uri) / made.folders["shard"].base / "dataset"
    keys = {row["uid"]: row["key"] for path in dataset.glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    for row in read_back(tmp_path / "out")[2].to_dict("records"):
        assert row["image_path"] == keys[row["uid"]]
        assert row[HEAD] == pytest.approx(head(row["uid"]), abs=1e-6)


@pytest.mark.parametrize("part_rows", [1, 7, 10, 13])
def test_parts_are_bounded_and_their_names_sort_as_their_numbers(
    made: ScoredRoot, part_rows: int, tmp_path: Path
) -> None:
    written = write_clip_retrieval(made.store, str(tmp_path / "out"), "b32", part_rows)
    sizes = [len(np.load(path)) for path in sorted((tmp_path / "out/img_emb").iterdir())]
    assert (sum(sizes), len(sizes)) == (written.rows, written.parts)
    assert set(sizes[:-1]) <= {part_rows}
    assert len({len(path.name) for path in (tmp_path / "out/img_emb").iterdir()}) == 1
    check(made, tmp_path / "out", "b32")


def test_faiss_finds_each_row_by_its_own_vector(made: ScoredRoot, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    write_clip_retrieval(made.store, str(tmp_path / "out"), "b32")
    images, _, metadata = read_back(tmp_path / "out")
    index = faiss.IndexFlatIP(images.shape[1])
    index.add(images.astype(np.float32))
    _, nearest = index.search(np.stack([vectors(uid, "b32")[0] for uid in metadata["uid"]]), 1)
    assert nearest[:, 0].tolist() == list(range(len(metadata)))


def test_kept_rows_without_vectors_are_counted(
    made: ScoredRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([made.store.uri, "--clip-retrieval", str(tmp_path / "out"), "--encoder", "l14"]) == 0
    without = len(wanted(made, "b32")) - len(wanted(made, "l14"))
    assert without > 0
    assert f"{len(wanted(made, 'l14'))} rows of l14 in 1 part; {without} kept rows have no" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "vectors of b32, l14; choose with --encoder"), (("--encoder", "b16"), "no vectors of b16; there are")],
)
def test_the_encoder_must_be_one_of_those_there_are(
    made: ScoredRoot, arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([made.store.uri, "--clip-retrieval", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_exports_are_never_mixed(made: ScoredRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [made.store.uri, "--clip-retrieval", str(tmp_path / "out"), "--encoder", "b32"]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert main(arguments) == 2
    assert "img_emb/img_emb_0.npy already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


def test_an_export_goes_from_s3_to_s3(s3: str, tmp_path: Path) -> None:
    made = ScoredRoot(open_store(s3), RECIPE)
    made.batch(60)
    made.finish()
    assert main([s3, "--clip-retrieval", f"{s3}-exported", "--encoder", "b32"]) == 0
    fetch(open_store(f"{s3}-exported"), tmp_path / "out")
    check(made, tmp_path / "out", "b32")


def fetch(store: Store, folder: Path) -> None:
    for path, _ in list(store.files("")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(store.read(path))


def test_what_was_exported_can_be_adopted_beside_its_shards(made: ScoredRoot, tmp_path: Path) -> None:
    """The other way round: our reader of clip-retrieval's layout finds every vector by its key."""
    from pipeline.adopt.dataset import open_dataset
    from pipeline.adopt.sidecars import read_sidecars

    dataset = Path(made.store.uri) / made.folders["shard"].base / "dataset"
    for path in dataset.iterdir():
        (tmp_path / "download").mkdir(exist_ok=True)
        (tmp_path / "download" / path.name).write_bytes(path.read_bytes())
    write_clip_retrieval(made.store, str(tmp_path / "download"), "b32")
    (sidecars,) = read_sidecars(open_dataset(str(tmp_path / "download")), tmp_path / "unpacked")
    keys = read_back(tmp_path / "download")[2]
    found, given = sidecars.vectors(("clip_retrieval", "image"), sidecars.find(keys["image_path"].tolist()))
    assert given.all()
    assert np.array_equal(found, np.stack([vectors(uid, "b32")[0] for uid in keys["uid"]]).astype(np.float16))


def test_a_retraction_removes_an_export_that_lies_in_the_root(tmp_path: Path) -> None:
    made = ScoredRoot(LocalStore(tmp_path / "root"), RECIPE)
    made.batch(40)
    made.finish()
    out = tmp_path / "root" / "exported"
    write_clip_retrieval(made.store, str(out), "b32")
    (tmp_path / "list.txt").write_text(f"uid:{min(wanted(made, 'b32'))}\n")
    assert retract_main([made.store.uri, "--list", str(tmp_path / "list.txt"), "--why", "asked"]) == 0
    assert not [path for path in out.rglob("*") if path.is_file()]
