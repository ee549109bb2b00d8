"""Shipped recipes that judge a row by all the others, against the papers' words in plain Python."""

import io
import re
from collections import Counter
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from jobs.arguments import load_recipe
from schemas.recipe import Recipe
from tests.select_fixture import Scored, uid

ALL = ["datacomp_clip30", "datacomp_image", "datacomp_image_clip30", "datacomp_text", "metaclip"]
NO_VECTORS = ("metaclip", "datacomp_text")
ROWS = 20_000
CLUSTERS = 40
DIM = 4
Row = dict[str, Any]


def vector_of(random: Random) -> list[float]:
    """Near one of a few directions, of unit length."""
    centre = random.randrange(30)
    point = np.random.default_rng(centre).normal(size=DIM) + 0.2 * np.array([random.gauss(0, 1) for _ in range(DIM)])
    return [float(value) for value in (point / np.linalg.norm(point)).astype(np.float32)]


@cache
def generated() -> list[Row]:
    """Texts near 1 and 2 words, 5 and 6 characters; cosines with many ties; one row in twelve has no vector."""
    random = Random(5)
    things = [f"thing{number}" for number in range(2000)]
    rows: list[Row] = []
    for number in range(ROWS):
        few = random.choice(("ab cd", "abcdef", "ab cde", "abcde", "abc def g"))
        many = " ".join(things[min(1999, int(random.paretovariate(0.5)) - 1)] for _ in range(random.randrange(1, 6)))
        text = few if random.random() < 0.4 else many
        rows.append({
            "number": number, "text": text, "n_words": len(text.split()), "n_chars": len(text),
            "lang": random.choice(("en", "en", "en", "de", "und", None)),
            "vector": vector_of(random) if random.random() < 11 / 12 else None,
            "cosine": float(np.float32(round(random.gauss(0.2, 0.08), 3))),
        })  # fmt: skip
    return rows


def reference() -> npt.NDArray[np.float32]:
    """Images near five of the directions."""
    random = np.random.default_rng(77)
    centres = np.stack([np.random.default_rng(centre).normal(size=DIM) for centre in range(5)])
    made = np.repeat(centres, 10, axis=0) + 0.05 * random.normal(size=(50, DIM))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


@cache
def entries() -> list[str]:
    return [f"thing{number}" for number in range(1, 1500)]


def pool(root: Path) -> Scored:
    rows = generated()
    told = ("text", "n_words", "n_chars", "lang")
    return Scored(root).rows(
        range(ROWS), 5, {name: (lambda number, name=name: rows[number][name]) for name in told},  # type: ignore[misc]
        {"l14": lambda number: rows[number]["cosine"]}, lambda number, encoder: rows[number]["vector"],
    )  # fmt: skip


def best_30_percent() -> set[int]:
    """The score is at least sorted_desc[int(n * f)], over all rows that have one."""
    scores = {row["number"]: row["cosine"] for row in generated() if row["vector"]}
    least = sorted(scores.values(), reverse=True)[int(len(scores) * 0.3)]
    return {number for number, score in scores.items() if score >= least}


def near_references(centroids: npt.NDArray[np.float32]) -> set[int]:
    """English, words > 1, chars > 5, and the nearest centroid is the nearest of some reference image."""
    targets = {int(np.argmax(centroids @ image)) for image in reference()}
    return {
        row["number"] for row in generated()
        if row["lang"] == "en" and len(row["text"].split()) > 1 and len(row["text"]) > 5
        and row["vector"] and int(np.argmax(centroids @ np.array(row["vector"], np.float32))) in targets
    }  # fmt: skip


def balanced(t: int, seed: int) -> set[int]:
    """An entry counts once a text; a draw for each (uid, entry) below t / max(count, t); any is enough."""
    known = set(entries())
    held = {row["number"]: known & set(row["text"].split()) for row in generated()}
    counts = Counter(entry for found in held.values() for entry in found)

    def passes(number: int, entry: str) -> bool:
        draw = int.from_bytes(blake2b(f"{seed}{uid(number)}{entry}".encode(), digest_size=8).digest(), "big")
        return draw * max(counts[entry], t) < t * 2**64

    return {number for number, found in held.items() if any(passes(number, entry) for entry in found)}


def with_a_listed_word() -> set[int]:
    """English and some word is in the list."""
    listed = set(entries()[:200])
    return {
        row["number"] for row in generated() if row["lang"] == "en" and any(w in listed for w in row["text"].split())
    }


def recipe_of(name: str, folder: Path) -> Recipe:
    """The shipped recipe with its files, and with clusters and t of a pool of this size."""
    changes = []
    if "image" in name:
        np.save(folder / "reference.npy", reference())
        changes += [f"select.image_based.reference={folder}/reference.npy", f"select.image_based.clusters={CLUSTERS}"]
    if name == "metaclip":
        (folder / "entries.txt").write_text("\n".join(entries()))
        changes += [f"select.balance.entries={folder}/entries.txt", "select.balance.t=20"]
    if name == "datacomp_text":
        (folder / "words.txt").write_text("\n".join(word.title() for word in entries()[:200]))
        changes.append(f"select.words={folder}/words.txt")
    return load_recipe(name, changes)


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_keeps_what_the_paper_s_words_keep(tmp_path: Path, name: str) -> None:
    made = pool(tmp_path / "root")
    if name in NO_VECTORS:
        made.folders = {key: folder for key, folder in made.folders.items() if "/" not in key}
    recipe = recipe_of(name, tmp_path)
    assert recipe.dedupe.levels == {}
    kept = made.run(recipe).kept()
    clusters = tmp_path / "root" / made.folders["select"].base / "clusters.npz"
    near = near_references(np.load(io.BytesIO(clusters.read_bytes()))["centroids"]) if clusters.exists() else set()
    wanted = {
        "datacomp_clip30": best_30_percent, "datacomp_image": lambda: near,
        "datacomp_image_clip30": lambda: near & best_30_percent(), "metaclip": lambda: balanced(20, 0),
        "datacomp_text": with_a_listed_word,
    }[name]()  # fmt: skip
    assert kept == wanted
    assert ROWS // 100 < len(kept) < ROWS // 2
    header = [line for line in (files("jobs.recipes") / f"{name}.yaml").read_text().splitlines() if line[:1] == "#"]
    text = " ".join(line.lstrip("# ") for line in header)
    assert re.search(r"exact: (yes|no)$", header[0])
    for said in ("Source: ", "Left out: ", "Substituted: ", f"python -m jobs.build --recipe {name} "):
        assert said in text
    assert "Population" in text or name == "datacomp_text", "a rule over a set names its population"
    if "image" not in name:  # k-means is not the same in every version of faiss
        assert f", {len(kept):,}." in text, f"the header's count is not {len(kept):,}"
