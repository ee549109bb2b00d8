"""`select` over a whole round: vectors asked for, top, balance, weights and sweeps, against plain Python."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from hashlib import blake2b
from itertools import pairwise
from math import prod, sqrt
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs.build
from jobs.arguments import load_recipe
from pipeline.check import check_recipe, named_contents
from pipeline.dedupe.stage import run_dedupe
from pipeline.errors import InputError
from pipeline.rounds import read_rounds
from pipeline.select.sweep import parse_sweep, run_sweep
from pipeline.stages import stage_folders
from pipeline.stop import StopFlag
from pipeline.storage import Store, open_store
from schemas.recipe import Recipe, RecipeError, fingerprint
from schemas.records import Batch
from tests.running import REPOSITORY, snapshot
from tests.select_fixture import ENCODER, Scored, asked, uid


def score(number: int) -> float | None:
    """Pseudo-random, with ties; one row in ten has none."""
    if number % 10 == 3:
        return None
    return float(np.float32(int(hashlib.md5(str(number).encode()).hexdigest()[:3], 16) / 4096))


def width(number: int) -> int:
    return 100 + number * 7919 % 400


SCORED: dict[str, Any] = {"scores": {ENCODER: score}, "columns": {"original_width": width}}


def test_a_row_without_an_ok_vector_of_every_encoder_is_not_embedded(tmp_path: Path) -> None:
    def vectors(number: int, encoder: str) -> list[float] | None:
        """Some failed, some were never read."""
        failed, unread = (4, 5) if encoder == "b32" else (6, 7)
        return [] if number == failed else None if number == unread else [1.0]

    pool = Scored(tmp_path).rows(range(10), parts=2, scores={"b32": score, "l14": score}, vectors=vectors)
    pool.run(asked(["b32", "l14"], rules={"few": "uid < '0000000000000000000000000000000a'", "none": "1 = 1"}))
    assert pool.drop("not_embedded") == {4, 5, 6, 7}
    assert pool.kept() == {0, 1, 2, 3, 8, 9}
    assert pool.decisions()[4]["pass_few"] is True, "rules are told for every row"
    counts = pool.folders["select"].record("0001-0000000", 0).counts
    assert counts == {"ok": {"": 4}, "rejected": {"not_embedded": 1}}
    without = Scored(tmp_path / "without").rows(range(10), scores={"b32": score}, vectors=vectors)
    without.folders.pop("embed/b32")
    assert len(without.run(asked()).kept()) == 10, "a recipe without encoders asks for no vector"


def test_vectors_of_rows_that_embed_would_not_make_now_count_as_if_they_were_not_there(tmp_path: Path) -> None:
    """Made when `embed.eligible` or dedupe said otherwise: what a ROOT was before does not shape its dataset."""
    recipe = asked(
        [ENCODER], dedupe={"levels": {"bytes": True}}, rules={"scored": "clip_score >= 0"}, weight="clip_score",
        top={"column": "clip_score", "fraction": 0.5, "of": "pool"},
    )  # fmt: skip
    embed = recipe.embed.model_copy(update={"eligible": {"wide": "original_width >= 200"}})
    columns = {
        **SCORED["columns"], "sha256": lambda number: f"{number // 2 if number < 6 else number:064x}",
        "text": lambda number: "one",
    }  # fmt: skip

    def decided(folder: Path, without: set[int]) -> dict[int, dict[str, Any]]:
        pool = Scored(folder).rows(
            range(60), 2, scores={ENCODER: lambda number: number / 60}, columns=columns,
            vectors=lambda number, encoder: None if number in without else [1.0],
        )  # fmt: skip
        return pool.run(recipe.model_copy(update={"embed": embed})).decisions()

    once = decided(tmp_path / "once", set())
    twins = {number for number, row in once.items() if row["dropped_by"] == "duplicate"}
    narrow = {number for number in range(60) if width(number) < 200}
    assert len(twins) == 3
    assert narrow - twins
    assert {number for number, row in once.items() if row["dropped_by"] == "not_embedded"} == narrow - twins
    assert once == decided(tmp_path / "now", twins | narrow)


@pytest.mark.parametrize("of", ["pool", "survivors"])
@pytest.mark.parametrize("share", [{"fraction": 0.3}, {"count": 37}, {"fraction": 1}, {"count": 10_000}])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_top_keeps_what_a_sort_of_its_population_says(
    tmp_path: Path, of: str, share: dict[str, float], parts: int
) -> None:
    rules = {"wide": "original_width >= 200"}
    pool = Scored(tmp_path).rows(range(500), parts, **SCORED)
    pool.run(asked([ENCODER], rules=rules, top={"column": "clip_score", "of": of, **share}))
    scores = {number: found for number in range(500) if (found := score(number)) is not None}
    population = sorted((scores[n] for n in scores if of == "pool" or width(n) >= 200), reverse=True)
    place = int(len(population) * share["fraction"]) if "fraction" in share else int(share["count"]) - 1
    least = population[min(place, len(population) - 1)]
    passes = {number for number, found in scores.items() if found >= least}
    decided = pool.decisions()
    assert {number for number, row in decided.items() if row["pass_top"]} == passes
    assert pool.kept() == {number for number in passes if width(number) >= 200}
    assert pool.drop("top") == {number for number in range(500) if width(number) >= 200} - passes
    told = read_rounds(pool.folders["select"])[0].plan["top"]
    assert told["rows"] == len(population)
    assert told["at"] == (least if place < len(population) else None)


def test_top_of_a_whole_number_is_exact_beyond_what_a_float_holds(tmp_path: Path) -> None:
    sizes = [2**60 + n for n in (3, 1, 2, 0, 2)]
    pool = Scored(tmp_path).rows(range(5), 2, columns={"bytes": sizes.__getitem__})
    assert pool.run(asked(top={"column": "bytes", "count": 2})).kept() == {0, 2, 4}


def test_top_ranks_within_the_round_and_changes_no_earlier_decision(tmp_path: Path) -> None:
    recipe = asked([ENCODER], top={"column": f"clip_score_{ENCODER}", "fraction": 0.5})
    pool = Scored(tmp_path).rows(range(100), **SCORED).run(recipe)
    first = pool.kept()
    better = {"scores": {ENCODER: lambda number: 2.0 + number}, "columns": SCORED["columns"]}
    pool.rows(range(100, 140), **better).run(recipe, "second")
    assert pool.kept() - first == set(range(119, 140)), "n + 1 of the second round's own"
    assert pool.kept() & set(range(100)) == first


WORDS = ["the", "dog", "cat", "house", "red", "tree", "old", "car", "boat", "sky", "猫", "x9"]


def sentence(number: int) -> str:
    """Words by a long-tailed draw; every thirteenth text has none of the entries."""
    random = Random(number)
    if number % 13 == 0:
        return f"nothing {number}"
    common = [WORDS[min(int(random.paretovariate(0.6)) - 1, len(WORDS) - 1)] for _ in range(random.randrange(1, 5))]
    return " ".join([*common, f"tag{number % 997}"])


ENTRIES = [*WORDS, *(f"tag{number}" for number in range(997)), "dog house", "never there"]
HELD: dict[str, Any] = {"columns": {"text": sentence, "original_width": width}}


def entries_of(number: int) -> list[str]:
    spaced = f" {sentence(number)} "
    words = sentence(number).split()
    return [entry for entry in ("dog house", "猫") if f" {entry} " in spaced] + [
        word for word in sorted(set(words)) if word != "猫" and (word in WORDS or word.startswith("tag"))
    ]


def drawn(number: int, entry: str, share: tuple[int, int], seed: int) -> bool:
    draw = int.from_bytes(blake2b(f"{seed}{uid(number)}{entry}".encode(), digest_size=8).digest(), "big")
    return draw * share[1] < share[0] * 2**64


def balanced(
    counted: list[int], judged: list[int], t: int, seed: int = 0, earlier: Counter[str] | None = None
) -> tuple[set[int], float, float]:
    """MetaCLIP in plain Python: who passes, how many are to be expected, and the standard deviation of that."""
    counts = Counter(entry for number in counted for entry in entries_of(number)) + (earlier or Counter())
    kept, expected, variance = set(), 0.0, 0.0
    for number in judged:
        shares = {entry: (t, max(counts[entry], t)) for entry in entries_of(number)}
        if any(drawn(number, entry, share, seed) for entry, share in shares.items()):
            kept.add(number)
        chance = 1 - prod(1 - one / of for one, of in shares.values())
        expected, variance = expected + chance, variance + chance * (1 - chance)
    return kept, expected, sqrt(variance)


@pytest.fixture
def entries(tmp_path: Path) -> str:
    path = tmp_path / "entries.txt"
    path.write_text("\n".join(ENTRIES))
    return str(path)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_ten_thousand_rows_are_balanced_as_brute_force_balances_them(tmp_path: Path, parts: int, entries: str) -> None:
    pool = Scored(tmp_path / "root").rows(range(10_000), parts, **HELD)
    pool.run(asked(rules={"wide": "original_width >= 200"}, balance={"entries": entries, "t": 5, "seed": 3}))
    left = [number for number in range(10_000) if width(number) >= 200]
    passes, _, _ = balanced(left, list(range(10_000)), t=5, seed=3)
    assert {number for number, row in pool.decisions().items() if row["pass_balance"]} == passes
    assert pool.kept() == passes & set(left)
    assert not any(number % 13 == 0 for number in pool.kept()), "a text without an entry is dropped"
    _, expected, sigma = balanced(left, left, t=5, seed=3)
    assert sigma > 10
    assert abs(len(pool.kept()) - expected) < 4 * sigma


def test_balance_counts_the_rows_that_all_else_leaves_top_too(tmp_path: Path, entries: str) -> None:
    everything = {**SCORED, "columns": {**HELD["columns"]}}
    pool = Scored(tmp_path / "root").rows(range(2000), 3, **everything)
    top = {"column": "clip_score", "fraction": 0.4, "of": "survivors"}
    pool.run(asked([ENCODER], rules={"wide": "original_width >= 200"}, top=top, balance={"entries": entries, "t": 2}))
    left = [n for n, row in pool.decisions().items() if row["pass_wide"] and row["pass_top"]]
    assert len(left) > 400
    passes, _, _ = balanced(left, left, t=2)
    assert pool.kept() == passes
    plan = read_rounds(pool.folders["select"])[0].plan["balance"]
    assert (plan["t"], plan["rows"]) == (2, len(left))


def test_a_later_round_counts_on_and_changes_no_earlier_decision(tmp_path: Path, entries: str) -> None:
    recipe = asked(balance={"entries": entries, "t": 10})
    pool = Scored(tmp_path / "root").rows(range(3000), 2, **HELD).run(recipe)
    first = pool.kept()
    assert first == balanced(list(range(3000)), list(range(3000)), t=10)[0]
    pool.rows(range(3000, 5000), 2, **HELD).run(recipe, "second")
    earlier = Counter(entry for number in range(3000) for entry in entries_of(number))
    later = list(range(3000, 5000))
    assert pool.kept() == first | balanced(later, later, t=10, earlier=earlier)[0]
    plans = [round_.plan["balance"]["counts"] for round_ in read_rounds(pool.folders["select"])]
    tables = [pq.read_table(tmp_path / "root" / pool.folders["select"].base / path) for path in plans]
    assert [table.column_names for table in tables] == [["entry", "texts", "total"]] * 2
    assert tables[1]["total"].to_pylist() == [
        sum(pair) for pair in zip(tables[0]["texts"].to_pylist(), tables[1]["texts"].to_pylist(), strict=True)
    ]


def test_the_pool_s_own_n_grams_stay_the_entries_of_later_rounds(tmp_path: Path) -> None:
    recipe = asked(balance={"entries": "ngrams:6", "tail": 0.3})
    pool = Scored(tmp_path).rows(range(500), 2, columns={"text": sentence}).run(recipe)
    pool.rows(range(500, 900), columns={"text": lambda number: "quite other words"}).run(recipe, "second")
    plans = [round_.plan["balance"] for round_ in read_rounds(pool.folders["select"])]
    tables = [pq.read_table(tmp_path / pool.folders["select"].base / plan["counts"]) for plan in plans]
    assert tables[0]["entry"].equals(tables[1]["entry"])
    grams: Counter[str] = Counter()
    for number in range(500):
        words = sentence(number).split()
        grams.update({*words} | {f"{one} {two}" for one, two in pairwise(words)})
    assert (
        tables[0]["entry"].to_pylist()
        == [g for g, _ in sorted(grams.items(), key=lambda item: (-item[1], item[0]))][:6]
    )
    ordered = np.sort([grams[entry] for entry in tables[0]["entry"].to_pylist()])
    share = np.cumsum(ordered) / ordered.sum()
    assert plans[0]["t"] == ordered[np.abs(share - 0.3).argmin()]
    assert not pool.kept() & set(range(500, 900))


def files_of(root: Path) -> dict[str, str]:
    """Tables of `select`, by unit, and what its rounds fixed."""
    found = {
        f"{path.parent.name}/{path.name.split('.')[0]}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "select").rglob("*.parquet"))
    }
    return found | {"plan": str(read_rounds(Scored(root).run_of("b0"))[0].plan)}


def asked_whole(entries: str) -> Recipe:
    return asked(
        [ENCODER], rules={"wide": "original_width >= 150"}, weight="clip_score * 2",
        top={"column": "clip_score", "fraction": 0.8, "of": "survivors"}, balance={"entries": entries, "t": 3},
    )  # fmt: skip


RUN = """
import sys
from pathlib import Path
from tests.integration.test_select_whole import ENCODER, asked_whole
from tests.select_fixture import Scored
pool = Scored(Path(sys.argv[1]))
pool.adopt("embed/" + ENCODER, "scores/" + ENCODER)
pool.run(asked_whole(sys.argv[2]), sys.argv[3])
"""


def whole(root: Path | Store) -> Scored:
    return Scored(root).rows(range(900), 3, **{**SCORED, "columns": HELD["columns"]})


@pytest.mark.parametrize("fault", ["before-round", "mid-publish", "after-record"])
def test_a_killed_run_is_finished_to_the_same_bytes(tmp_path: Path, fault: str, entries: str) -> None:
    undisturbed = whole(tmp_path / "undisturbed").run(asked_whole(entries))
    assert 50 < len(undisturbed.kept()) < 700
    pool = whole(tmp_path / "killed")
    env = {**os.environ, "PAIRMILL_FAULT": f"{fault}@select:kill:{tmp_path}/fault"}
    command = [sys.executable, "-c", RUN, str(tmp_path / "killed"), entries, "first"]
    assert subprocess.run(command, cwd=REPOSITORY, env=env, timeout=120, check=False).returncode == -9
    opened = read_rounds(pool.run_of("b0"))
    assert len(opened) == (fault != "before-round")
    pool.run(asked_whole(entries), "second")
    assert read_rounds(pool.folders["select"])[: len(opened)] == opened
    pool.folders["select"].sweep()
    assert pool.decisions() == undisturbed.decisions()
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "undisturbed")


def test_a_second_run_changes_nothing_and_another_folder_gets_the_same_bytes(tmp_path: Path, entries: str) -> None:
    pool = whole(tmp_path / "root").run(asked_whole(entries))
    before, tables = snapshot(tmp_path / "root"), files_of(tmp_path / "root")
    pool.run(asked_whole(entries), "second")
    assert snapshot(tmp_path / "root") == before
    whole(tmp_path / "again").run(asked_whole(entries))
    assert files_of(tmp_path / "again") == tables


def test_a_root_in_s3_is_decided_as_one_on_a_disk(tmp_path: Path, entries: str, s3: str) -> None:
    there, here = whole(open_store(s3)), whole(tmp_path / "root")
    for pool in (there, here):
        pool.run(asked_whole(entries))
        pool.rows(range(900, 1200), **{**SCORED, "columns": HELD["columns"]}).run(asked_whole(entries), "second")
    assert there.decisions() == here.decisions()
    plans = [[round_.plan for round_ in read_rounds(pool.folders["select"])] for pool in (there, here)]
    assert plans[0] == plans[1]


def test_a_weight_is_a_number_of_each_kept_row_and_0_where_there_is_none(tmp_path: Path) -> None:
    values = {0: 2, 1: 0, 2: -3, 3: None, 4: 10**9, 5: 7}
    pool = Scored(tmp_path).rows(range(6), columns={"original_width": values.get})
    weight = "CASE WHEN original_width = 7 THEN 'inf'::DOUBLE ELSE original_width * 1e30 / 1e30 END"
    decided = pool.run(asked(rules={"not_4": "uid NOT LIKE '%4'"}, weight=weight)).decisions()
    assert {number: row["weight"] for number, row in decided.items()} == {0: 2, 1: 0, 2: 0, 3: 0, 4: None, 5: 0}
    plain = Scored(tmp_path / "plain").rows(range(3)).run(asked())
    assert {row["weight"] for row in plain.decisions().values()} == {1.0}


def clustered(tmp_path: Path) -> tuple[Scored, Recipe]:
    """Rows east or, every third, north; the reference images lie east."""
    np.save(tmp_path / "east.npy", np.array([[1.0, 0.1], [1.0, -0.1]], np.float32))
    vectors: dict[int, list[float]] = {0: [0.0, 1.0], 1: [1.0, 0.0], 2: [1.0, 0.0]}
    images = {"encoder": ENCODER, "reference": str(tmp_path / "east.npy"), "clusters": 2}
    top = {"column": "clip_score", "fraction": 0.5, "of": "survivors"}
    recipe = asked([ENCODER], rules={"wide": "original_width >= 200"}, image_based=images, top=top)
    pool = Scored(tmp_path / "root").rows(range(300), 2, **SCORED, vectors=lambda number, _: vectors[number % 3])
    return pool, recipe


def test_rows_far_from_the_references_are_dropped_after_the_rules_and_before_top(tmp_path: Path) -> None:
    pool, recipe = clustered(tmp_path)
    decided = pool.run(recipe).decisions()
    assert {number for number, row in decided.items() if row["pass_image_based"]} == {n for n in range(300) if n % 3}
    assert pool.drop("wide") == {n for n in range(300) if width(n) < 200}
    assert pool.drop("image_based") == {n for n in range(300) if width(n) >= 200 and n % 3 == 0}
    left = [found for n in range(300) if width(n) >= 200 and n % 3 and (found := score(n)) is not None]
    least = sorted(left, reverse=True)[int(len(left) * 0.5)]
    assert len(pool.kept()) == sum(found >= least for found in left)


def test_a_sweep_clusters_aside(tmp_path: Path) -> None:
    pool, recipe = clustered(tmp_path)
    pool.run(recipe)
    before = snapshot(tmp_path / "root")
    found = run_sweep(pool.store, recipe, pool.folders, "clip_score", ["0.2", "0.6"])
    wanted = [
        sum(width(n) >= 200 and n % 3 > 0 and (score(n) or 0) >= least for n in range(300)) for least in (0.2, 0.6)
    ]
    assert found.both.diagonal().tolist() == wanted
    assert snapshot(tmp_path / "root") == before


def test_only_rows_with_a_listed_word_between_white_space_are_kept(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Dog\nhouse's\n")
    texts = ["a dog", "DOG", "a dog.", "the house's\u3000roof", "house", None, ""]
    pool = Scored(tmp_path / "root").rows(range(7), columns={"text": texts.__getitem__})
    pool.run(asked(words=str(tmp_path / "words.txt")))
    assert pool.kept() == {0, 1, 3}
    assert pool.drop("listed_words") == {2, 4, 5, 6}


def test_a_sweep_says_what_each_threshold_would_keep_and_writes_nothing(tmp_path: Path) -> None:
    pool = Scored(tmp_path).rows(range(800), 3, **SCORED)
    rules = {"wide": "original_width >= 200", "aligned": "clip_score >= 0.9"}
    recipe = asked([ENCODER], rules=rules)
    pool.run(recipe)
    before = snapshot(tmp_path)
    thresholds = [0.2, 0.5, 0.7, 2.0]
    found = run_sweep(pool.store, recipe, pool.folders, "clip_score", [str(value) for value in thresholds])
    sets = [
        {n for n in range(800) if width(n) >= 200 and (given := score(n)) is not None and given >= value}
        for value in thresholds
    ]
    assert found.both.tolist() == [[len(one & other) for other in sets] for one in sets]
    assert (found.rows, found.replaced) == (800, ["aligned"])
    assert found.jaccard(0, 1) == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert "aligned" in found.told()
    assert f"{len(sets[1]):,}" in found.told()
    assert snapshot(tmp_path) == before


def test_a_sweep_balances_each_threshold_s_own_rows(tmp_path: Path, entries: str) -> None:
    pool = whole(tmp_path / "root")
    recipe = asked([ENCODER], balance={"entries": entries, "t": 2}, top={"column": "clip_score", "fraction": 0.1})
    pool.run(recipe)
    found = run_sweep(pool.store, recipe, pool.folders, "clip_score", ["0.3", "0.6"])
    sets = []
    for value in (0.3, 0.6):
        left = [number for number in range(900) if (given := score(number)) is not None and given >= value]
        sets.append(balanced(left, left, t=2)[0])
    assert found.both.tolist() == [[len(one & other) for other in sets] for one in sets]
    assert found.replaced == ["top"]


def test_the_command_prints_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, written = tmp_path / "root", tmp_path / "recipe.yaml"
    written.write_text("{dedupe: {levels: {}}, select: {rules: {wide: original_width >= 300, some: n_words > 0}}}")
    pool, recipe = Scored(root), load_recipe(str(written), [])
    pool.folders |= stage_folders(pool.store, recipe)
    pool.rows(range(50), columns={"original_width": width, "n_words": lambda number: number % 5})
    stop = StopFlag(pool.store.uri, "run")
    run_dedupe(pool.store, recipe, pool.folders, pool.folders["dedupe"], "run", stop, lambda result: None)
    pool.store.create("batches/0001.json", Batch(
        batch="0001", created_at="", run="run", files=[], rows=50, settings={}, units=[]
    ).to_bytes())  # fmt: skip
    before = snapshot(root)
    flags = ["--recipe", str(written), "--output", str(root), "--sweep", "original_width=200, 400"]
    assert jobs.build.main(flags, stage="select") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = [sum(width(n) >= least and n % 5 > 0 for n in range(50)) for least in (200, 400)]
    share = found[1] / found[0]
    assert [line for line in lines if line[:1] in (["200"], ["400"])] == [
        ["200", f"{found[0]}", f"{found[0] / 50:.2%}", "1.000", f"{share:.3f}"],
        ["400", f"{found[1]}", f"{found[1] / 50:.2%}", f"{share:.3f}", "1.000"],
    ]
    assert snapshot(root) == before
    assert jobs.build.main([*flags, "--set", "dedupe.scope=image"], stage="select") == 2
    assert "run jobs.dedupe first" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["clip_score", "clip_score=", "=1", "clip_score=a", "clip_score=0.1,,0.2", "x=nan"])
def test_a_sweep_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected column=a,b,c"):
        parse_sweep(text)


@pytest.mark.parametrize(
    ("select", "told"),
    [
        ({"top": {"column": "text", "fraction": 0.3}}, "select.top.column: text is not a number"),
        ({"top": {"column": "src_score", "fraction": 0.3}}, "select.top.column: src_score is not a number"),
        ({"top": {"column": "clip_scroe", "count": 3}}, "there are .*clip_score"),
        ({"balance": {"entries": "none.txt", "t": 3}}, "select.balance.entries: none.txt: cannot be read"),
        ({"balance": {"entries": "ngrams:x", "t": 3}}, "ngrams:N"),
        ({"words": "none.txt"}, "select.words: none.txt: cannot be read"),
        ({"weight": "nowhere + 1"}, "select.weight: 'nowhere"),
        ({"weight": "text"}, "gives VARCHAR, not a number"),
        ({"weight": "sum(bytes)"}, "select.weight"),
        ({"weight": "random()"}, "select.weight"),
        ({"weight": "(SELECT 1)"}, "select.weight"),
        ({"image_based": {"encoder": "h14", "reference": "x.npy"}}, "none of embed.encoders"),
        ({"rules": {"image_based": "1 = 1"}}, "choose another"),
    ],
)
def test_what_cannot_be_selected_by_is_refused_at_once(select: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_recipe(asked(**select))


def test_scores_of_the_recipe_s_own_encoders_can_be_ranked_and_named() -> None:
    for column in ("clip_score", "clip_score_l14"):
        check_recipe(asked(["l14"], rules={"aligned": f"{column} > 0"}, top={"column": column, "count": 1},
                           weight=f"{column} + 1"))  # fmt: skip
    for both in ({"fraction": 0.3, "count": 3}, {}):
        with pytest.raises(RecipeError, match="fraction or count"):
            asked(top={"column": "clip_score", **both})


def test_other_entries_are_another_select(tmp_path: Path, entries: str) -> None:
    def printed() -> str:
        recipe = asked(balance={"entries": entries, "t": 5})
        return fingerprint(recipe, "select", {}, named_contents(recipe))

    first = printed()
    Path(entries).write_text("other\n")
    assert printed() != first
