"""`balance` against MetaCLIP's words in plain Python: which entries a text holds, how they count, which rows pass."""

import json
from collections import Counter
from hashlib import blake2b
from itertools import pairwise
from math import prod, sqrt
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.select.balance import Draws, threshold
from pipeline.select.entries import Matcher, most_frequent, ngrams_wanted, read_entries, spaced
from schemas.recipe import Balance

PUNCTUATION = ",.;:?!`"


def spacing(text: str) -> str:
    """metaclip/substr_matching.py: spaces around the text and its punctuation, and for tab and line ends."""
    text = f" {text} "
    for mark in PUNCTUATION:
        text = text.replace(mark, f" {mark} ")
    for space in "\t\n\r":
        text = text.replace(space, " ")
    return text


def held(text: str, entries: list[str]) -> list[int]:
    return [number for number, entry in enumerate(entries) if f" {entry} " in spacing(text)]


TEXTS = ["a dog", "A Dog, a dog.", "hot dog", "hotdog", "", "dog\tdog\ndog\rdog", "dog!dog", "the dog's 'dog'", "dog"]


def test_a_text_is_spaced_as_metaclip_spaces_it() -> None:
    texts = [*TEXTS, "猫,犬", "…`x`…", " two  spaces ", "," * 5]
    for array in (pa.array(texts), pa.array(["cut off", *texts]).slice(1), pa.chunked_array([texts[:3], texts[3:]])):
        data, places = spaced(array)
        found = [data[first:last].tobytes().decode() for first, last in pairwise(places)]
        assert found == [spacing(text) for text in texts]
    assert spaced(pa.array([None], pa.string()))[0].tobytes() == b"  "


def test_an_entry_is_a_whole_word_in_its_own_letter_case_and_counts_once_a_text() -> None:
    entries = ["dog", "Dog", "hot dog", "a", "dog ' s", ","]
    matched = Matcher(entries).match(pa.chunked_array([TEXTS]))
    assert matched.to_pylist() == [held(text, entries) for text in TEXTS]
    assert matched.to_pylist()[1] == [0, 1, 3, 5]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab ,.\té", max_size=12), max_size=8),
    st.lists(st.text("ab ,é", min_size=1, max_size=4).map(str.strip).filter(bool), min_size=1, max_size=6, unique=True),
)
def test_any_entries_are_found_in_any_texts_as_a_search_finds_them(texts: list[str], entries: list[str]) -> None:
    matched = Matcher(entries).match(pa.chunked_array([pa.array(texts, pa.string())]))
    assert matched.to_pylist() == [held(text, entries) for text in texts]


def test_an_entry_in_a_script_without_spaces_is_found_within_a_text() -> None:
    """As MetaCLIP 2: no space at an end that is an ideograph, Thai, Lao, Burmese, Khmer, Tibetan or its punctuation."""
    entries = ["東京", "ไทย", "東京 tower", "カメラ", "dog"]
    texts = ["私は東京にいる", "ประเทศไทยสวย", "大東京 tower", "大東京 towers", "カメラ", "黒いカメラ", "犬dog犬"]
    matched = Matcher(entries).match(pa.chunked_array([texts]))
    assert matched.to_pylist() == [[0], [1], [0, 2], [0], [3], [], []]


def test_entries_are_lines_or_a_json_list_each_once(tmp_path: Path) -> None:
    (tmp_path / "entries.txt").write_text("dog\n cat \n\ndog\r\nhot dog")
    (tmp_path / "metadata.json").write_text(json.dumps(["dog", "cat", "dog", "hot dog"]))
    for name in ("entries.txt", "metadata.json"):
        assert read_entries(str(tmp_path / name)) == ["dog", "cat", "hot dog"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("e.txt", b"\n \n", "holds no entry"),
        ("e.txt", b"\xff", "cannot be read"),
        ("e.json", b'{"a": 1}', "is no list of strings"),
        ("e.json", b"[1", "cannot be read"),
    ],
)
def test_entries_that_are_none_are_refused_by_name(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"select.balance.entries: .*{name}: {told}"):
        read_entries(str(tmp_path / name))
    with pytest.raises(InputError, match="cannot be read"):
        read_entries(str(tmp_path / "none.txt"))


@pytest.mark.parametrize("given_", ["ngrams:", "ngrams:0", "ngrams:many"])
def test_a_number_of_n_grams_is_a_number(given_: str) -> None:
    with pytest.raises(InputError, match="ngrams:N with N from 1"):
        ngrams_wanted(given_)


def test_the_most_frequent_1_and_2_grams_are_counted_once_a_text(tmp_path: Path) -> None:
    random = Random(1)
    words = ["red", "Red", "house", "dog", "tree", ",", "--", "1", "a,b", "ä"]
    texts = [" ".join(random.choices(words, k=random.randrange(8))) for _ in range(500)]
    counts: Counter[str] = Counter()
    for text in texts:
        found = [word if any(char.isalnum() for char in word) else "" for word in spacing(text).split()]
        pairs = {f"{one} {two}" for one, two in pairwise(found) if one and two}
        counts.update(({*found} - {""}) | pairs)
    wanted = [gram for gram, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    chunks = [pa.chunked_array([texts[:200]]), pa.chunked_array([texts[200:]])]
    assert most_frequent(chunks, 30, tmp_path) == wanted[:30]
    (tmp_path / "all").mkdir()
    assert most_frequent(chunks, 10_000, tmp_path / "all") == wanted


def drawn(seed: int, t: int, entries: list[str], counts: list[int], uid: str, numbers: list[int]) -> bool:
    """peers.md: an independent draw for each (uid, entry): blake2b(seed, uid, entry) / 2**64 < t / max(count, t)."""
    for number in numbers:
        key = f"{seed}{uid}{entries[number]}".encode()
        draw = int.from_bytes(blake2b(key, digest_size=8).digest(), "big")
        if draw * max(counts[number], t) < t * 2**64:
            return True
    return False


def rows(count: int, entries: int, seed: int) -> tuple[list[str], list[list[int]], list[int]]:
    """uids, the entries of each row (a few are everywhere, most are rare), and in how many rows each entry is."""
    random = np.random.default_rng(seed)
    uids = [f"{number:032x}" for number in range(count)]
    matched = [sorted(set(np.minimum(random.zipf(1.3, random.integers(0, 6)), entries).astype(int) - 1)) for _ in uids]
    matched = [[int(number) for number in found] for found in matched]
    counts = Counter(number for found in matched for number in found)
    return uids, matched, [counts[number] for number in range(entries)]


@pytest.mark.parametrize("t", [1, 20, 300, 10**6])
def test_ten_thousand_rows_are_drawn_as_brute_force_draws_them(t: int) -> None:
    uids, matched, counts = rows(10_000, 500, seed=t)
    entries = [f"entry {number}" for number in range(500)]
    draws = Draws(7, t, entries, np.array(counts))
    found = draws.passes(uids, pa.array(matched, pa.list_(pa.int32()))).tolist()
    wanted = [drawn(7, t, entries, counts, uid, numbers) for uid, numbers in zip(uids, matched, strict=True)]
    assert found == wanted
    certain = [min(counts[number] for number in numbers) <= t for numbers in matched if numbers]
    assert sum(found) >= sum(certain)
    parts = [draws.passes(uids[first : first + 997], pa.array(matched, pa.list_(pa.int32())).slice(first, 997)).tolist()
             for first in range(0, 10_000, 997)]  # fmt: skip
    assert [flag for part in parts for flag in part] == wanted, "a row's draw depends on no other row"


@pytest.mark.parametrize("seed", range(4))
def test_as_many_rows_are_kept_as_the_draws_make_one_expect(seed: int) -> None:
    """Σ(1 − ∏(1 − p)) within 4σ."""
    uids, matched, counts = rows(20_000, 300, seed=100 + seed)
    t = 50
    draws = Draws(seed, t, [f"entry {number}" for number in range(300)], np.array(counts))
    found = draws.passes(uids, pa.array(matched, pa.list_(pa.int32())))
    chances = [1 - prod(1 - t / max(counts[number], t) for number in numbers) for numbers in matched]
    sigma = sqrt(sum(chance * (1 - chance) for chance in chances))
    assert sigma > 10
    assert abs(int(found.sum()) - sum(chances)) < 4 * sigma


def test_another_seed_draws_other_rows() -> None:
    uids, matched, counts = rows(5_000, 50, seed=1)
    array = pa.array(matched, pa.list_(pa.int32()))
    first, second = (Draws(seed, 20, [str(n) for n in range(50)], np.array(counts)).passes(uids, array)
                     for seed in (0, 1))  # fmt: skip
    assert 0 < (first & second).sum() < first.sum()


def test_t_is_solved_from_the_share_of_matches_in_the_entries_below_it() -> None:
    counts = np.array([1000, 1, 2, 3, 94, 0, 900])  # ascending: 0 1 2 3 94 900 1000 of 2000

    def solved(tail: float) -> int:
        return threshold(Balance(entries="e", tail=tail), counts)

    assert [solved(share) for share in (0.0014, 0.05, 0.49, 0.5, 0.9)] == [2, 94, 900, 900, 1000]
    assert threshold(Balance(entries="e", t=17), counts) == 17
    assert threshold(Balance(entries="e", tail=0.1), np.zeros(3, int)) == 1
