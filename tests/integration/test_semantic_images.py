"""Images that are no pool images in embedding space: overlaps with evaluation sets, and references of selection."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.semantic import decision
from pipeline.semantic.clusters import kmeans, nearest
from pipeline.semantic.image_based import ClusterFilter, image_based
from pipeline.units import StageFolder
from schemas.recipe import Recipe, parse_recipe
from tests.integration.test_dedupe import drawing, rows_of
from tests.integration.test_semantic import Embedded
from tests.pool_fixture import uid_of
from tests.tiny_clip import tiny_clip

NUMBERS = range(20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def vectors(weights: Path) -> dict[int, Any]:
    """Of the pool's images, by open_clip itself."""
    import open_clip
    import torch

    torch.set_num_threads(1)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{weights}")
    images = [Image.open(io.BytesIO(drawing(number))).convert("RGB") for number in NUMBERS]
    with torch.no_grad():
        made = model.eval().encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
    return dict(zip(NUMBERS, made.double().numpy(), strict=True))


def embedded(root: Path, vectors: dict[int, Any]) -> Embedded:
    made = Embedded(root)
    made.unit("0001-0000000", vectors, images={number: drawing(number) for number in NUMBERS})
    return made


def recipe(weights: Path, **sections: Any) -> Recipe:
    encoders = {"encoders": [{"name": "tiny", "weights": str(weights)}]}
    return parse_recipe({"dedupe": {"levels": {}}, "embed": encoders, **sections}, "test")


def folder_of(path: Path, numbers: tuple[int, ...]) -> Path:
    """The pool's pictures again, as PNGs, beside what is no image."""
    path.mkdir()
    for number in numbers:
        Image.open(io.BytesIO(drawing(number))).convert("RGB").save(path / f"{number}.png")
    (path / "labels.txt").write_text("cat\n")
    (path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(99))
    return path


@pytest.mark.parametrize("exact", [True, False])
def test_images_of_an_evaluation_set_are_found_by_their_vectors(
    tmp_path: Path, weights: Path, vectors: dict[int, Any], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        monkeypatch.setattr(decision, "EXACT", 5)
    root = embedded(tmp_path / "root", vectors)
    against = {"pets": str(folder_of(tmp_path / "pets", (2, 9))), "birds": str(folder_of(tmp_path / "birds", (11,)))}
    eps = 1e-4
    near = 1 - np.stack(list(vectors.values())) @ np.stack(list(vectors.values())).T < eps
    truth = {
        (name, f"{item}.png", uid_of(number))
        for name, items in {"pets": (2, 9), "birds": (11,)}.items()
        for item in items for number in NUMBERS if near[item, number]
    }  # fmt: skip
    assert 3 <= len(truth) < 60
    semantic = {"encoder": "tiny", "eps": 0.0, "overlap_eps": eps}
    given = recipe(weights, dedupe={"levels": {}, "against": against}, semantic=semantic)
    root.run(given)
    overlaps = rows_of(root.folders["semantic"], "overlaps")
    assert {(row["eval_set"], row["eval_item"], row["uid"]) for row in overlaps} == truth
    assert {row["level"] for row in overlaps} == {"semantic"}
    assert root.gone() == {}


def test_images_are_not_embedded_twice(tmp_path: Path, weights: Path, vectors: dict[int, Any]) -> None:
    root = embedded(tmp_path / "root", vectors)
    place = folder_of(tmp_path / "pets", (2,))
    against = {"levels": {}, "against": {"pets": str(place)}}
    given = recipe(weights, dedupe=against, semantic={"encoder": "tiny", "eps": 0.0, "overlap_eps": 1e-6})
    root.run(given)
    items = tmp_path / "root/semantic/s0/items.parquet"
    before = items.stat().st_mtime_ns
    root.unit("0002-0000000", {100: vectors[2], 101: vectors[3]})
    root.run(given, "second")
    assert items.stat().st_mtime_ns == before
    assert uid_of(100) in {row["uid"] for row in rows_of(root.folders["semantic"], "overlaps")}


def test_a_set_known_by_its_hashes_alone_has_no_vectors(tmp_path: Path, weights: Path, vectors: dict[int, Any]) -> None:
    (tmp_path / "known.csv").write_text("sha256\n" + "0" * 64 + "\n")
    root = embedded(tmp_path / "root", vectors)
    against = {"levels": {}, "against": {"known": str(tmp_path / "known.csv")}}
    root.run(recipe(weights, dedupe=against, semantic={"encoder": "tiny", "eps": 0.0, "overlap_eps": 0.5}))
    assert rows_of(root.folders["semantic"], "overlaps") == []


def test_without_overlap_eps_no_image_is_read(tmp_path: Path, vectors: dict[int, Any]) -> None:
    root = embedded(tmp_path / "root", vectors)
    root.run(recipe(tmp_path / "no weights", semantic={"encoder": "tiny"}))
    assert rows_of(root.folders["semantic"], "overlaps") == []
    assert not (tmp_path / "root/semantic/s0/items.parquet").exists()


class Selected:
    """The groups of a pool whose vectors lie near the axes, and its filter."""

    def __init__(self, root: Path, reference: Path, clusters: int = 6) -> None:
        self.root = Embedded(root)
        rng = np.random.default_rng(0)
        self.group = {number: int(rng.integers(0, 6)) for number in range(300)}
        self.vectors = {n: np.eye(6)[g] + 0.02 * rng.normal(size=6) for n, g in self.group.items()}
        self.image_based = {"encoder": "tiny", "reference": str(reference), "clusters": clusters}
        self.select = StageFolder(self.root.pool.store, "select", "x0")

    def filter(self, *units: str, weights: str = "untrained") -> ClusterFilter:
        given = recipe(Path(weights), select={"image_based": self.image_based})
        return ClusterFilter(given, self.root.folders, self.select, [{"reads": unit} for unit in units])


def uids(numbers: Any) -> pa.ChunkedArray:
    return pa.chunked_array([[uid_of(number) for number in numbers]], pa.string())


def test_rows_pass_whose_cluster_some_reference_vector_is_in(tmp_path: Path) -> None:
    np.save(tmp_path / "reference.npy", 3 * np.eye(6, dtype=np.float64)[[1, 4, 4]])
    made = Selected(tmp_path / "root", tmp_path / "reference.npy")
    made.root.unit("0001-0000000", {n: made.vectors[n] for n in range(150)}, without=[7])
    made.root.unit("0001-0000001", {n: made.vectors[n] for n in range(150, 300)})
    judged = made.filter("0001-0000000", "0001-0000001")
    first = judged.of({"reads": "0001-0000000"}, uids(range(150)))
    assert first.tolist() == [made.group[n] in (1, 4) and n != 7 for n in range(150)]
    some = judged.of({"reads": "0001-0000001"}, uids([299, 160, 200]))
    assert some.tolist() == [made.group[n] in (1, 4) for n in (299, 160, 200)]


def test_a_later_round_is_judged_by_the_clusters_of_the_first(tmp_path: Path) -> None:
    np.save(tmp_path / "reference.npy", np.eye(6, dtype=np.float32)[[1]])
    made = Selected(tmp_path / "root", tmp_path / "reference.npy")
    made.root.unit("0001-0000000", {n: made.vectors[n] for n in range(290)})
    made.filter("0001-0000000")
    made.root.unit("0002-0000000", {n: made.vectors[n] for n in range(290, 300)})
    clusters = tmp_path / "root/select/x0/clusters.npz"
    before = clusters.read_bytes()
    later = made.filter("0002-0000000").of({"reads": "0002-0000000"}, uids(range(290, 300)))
    assert later.tolist() == [made.group[n] == 1 for n in range(290, 300)]
    assert clusters.read_bytes() == before


def test_the_partition_into_units_changes_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "reference.npy", np.eye(6, dtype=np.float32)[[1, 3]] + 0.3)
    told = []
    for parts in (1, 4):
        made = Selected(tmp_path / str(parts), tmp_path / "reference.npy", clusters=40)
        names = [f"0001-{part:07d}" for part in range(parts)]
        cut = np.array_split(np.arange(300), parts)
        for name, numbers in zip(names, cut, strict=True):
            made.root.unit(name, {int(n): made.vectors[int(n)] for n in numbers})
        judged = made.filter(*names)
        masks = [judged.of({"reads": name}, uids(numbers)) for name, numbers in zip(names, cut, strict=True)]
        told.append(np.concatenate(masks).tolist())
    assert told[0] == told[1]
    assert 0 < sum(told[0]) < 300


def test_a_folder_of_images_is_embedded_by_the_encoder(tmp_path: Path, weights: Path, vectors: dict[int, Any]) -> None:
    root = embedded(tmp_path / "root", vectors)
    place = folder_of(tmp_path / "reference", (3, 8))
    settings = {"encoder": "tiny", "reference": str(place), "clusters": 20}
    given = recipe(weights, select={"image_based": settings})
    judged = ClusterFilter(
        given, root.folders, StageFolder(root.pool.store, "select", "x0"), [{"reads": "0001-0000000"}]
    )
    # A cluster a row: those pass that are themselves the reference.
    passes = judged.of({"reads": "0001-0000000"}, uids(NUMBERS))
    by_uid = np.stack([vectors[n] for n in sorted(NUMBERS, key=uid_of)]).astype(np.float32)
    centroids = kmeans(by_uid, 20)
    wanted = nearest(np.stack([vectors[3], vectors[8]]).astype(np.float32), centroids)
    mine = nearest(np.stack([vectors[n] for n in NUMBERS]).astype(np.float32), centroids)
    assert passes.tolist() == np.isin(mine, wanted).tolist()
    assert passes[[3, 8]].all()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (np.eye(5, dtype=np.float32), r"has 6; give vectors made by that encoder"),
        (np.zeros((2, 6), np.float32), r"row 0: a vector without a direction"),
        (np.ones(6, np.float32), r"holds no vectors \[n, dim\]"),
        (None, r"cannot be read"),
    ],
)
def test_a_reference_that_does_not_fit_is_said_so(tmp_path: Path, content: Any, told: str) -> None:
    if content is not None:
        np.save(tmp_path / "reference.npy", content)
    made = Selected(tmp_path / "root", tmp_path / "reference.npy")
    made.root.unit("0001-0000000", made.vectors)
    with pytest.raises(InputError, match=told):
        made.filter("0001-0000000")


def test_the_function_and_the_filter_are_one_rule(tmp_path: Path) -> None:
    reference = np.eye(6, dtype=np.float32)[[0, 2]]
    np.save(tmp_path / "reference.npy", reference)
    made = Selected(tmp_path / "root", tmp_path / "reference.npy", clusters=17)
    made.root.unit("0001-0000000", made.vectors)
    order = sorted(range(300), key=uid_of)
    stored = np.stack([made.vectors[n] / np.linalg.norm(made.vectors[n]) for n in order]).astype(np.float32)
    expected = image_based(stored, reference, 17)
    assert made.filter("0001-0000000").of({"reads": "0001-0000000"}, uids(order)).tolist() == expected.tolist()
