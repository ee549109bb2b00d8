"""The search's guarantee, its hot buckets and its parts."""

import itertools

import numpy as np
import pytest

from pipeline.dedupe import search
from pipeline.dedupe.search import (
    DEAL,
    EXACT,
    GROUPS,
    KEYS,
    TABLES,
    Points,
    _edges,
    best_neighbours,
    deal,
    distances,
    matches,
    same_colours,
)


def points(hashes: np.ndarray, group: np.ndarray | None = None) -> Points:
    count = len(hashes)
    groups = np.zeros(count, np.int64) if group is None else group
    colours = np.full((count, 48), 128, np.uint8)
    return Points(deal(hashes), colours, np.arange(count), np.ones(count, np.bool_), groups)


def planted(count: int, bits: int, seed: int = 0) -> np.ndarray:
    """`count` pairs next to each other, `bits` apart."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (count, 32), np.uint8)
    flips = np.packbits(np.argsort(rng.random((count, 256)), axis=1) < bits, axis=1)
    return np.stack([first, first ^ flips], axis=1).reshape(-1, 32)


def everyone(count: int) -> np.ndarray:
    return np.ones(count, np.bool_)


def brute(made: Points, radius: int) -> np.ndarray:
    """The first better row of the group within the radius."""
    count = len(made.row)
    best = np.full(count, count)
    for place in range(1, count):
        near = distances(made.words[:place], made.words[place][None]) <= radius
        near &= made.group[:place] == made.group[place]
        if near.any():
            best[place] = near.argmax()
    return best


def test_four_bands_of_a_group_are_off_some_key_of_24_to_28_bits() -> None:
    keys = [{band for band in range(16) if mask >> _edges(group)[band] - _edges(group)[0] & 1} for group, mask in KEYS]
    assert all(len(key) == 8 for key in keys)
    assert {mask.bit_count() for _, mask in KEYS} <= set(range(24, 29))
    for group in range(GROUPS):
        mine = [key for key, (owner, _) in zip(keys, KEYS, strict=True) if owner == group]
        for four in itertools.combinations(range(16), 4):
            assert any(key.isdisjoint(four) for key in mine)


def test_dealing_moves_bits_and_keeps_distances() -> None:
    hashes = np.random.default_rng(1).integers(0, 256, (50, 32), np.uint8)
    bits = np.unpackbits(hashes, axis=1)
    assert (np.unpackbits(deal(hashes).view(np.uint8), axis=1, bitorder="little") == bits[:, DEAL]).all()
    expected = (bits[0] != bits).sum(axis=1)
    assert (distances(deal(hashes), deal(hashes[:1])) == expected).all()
    assert distances(deal(hashes), deal(~hashes)).tolist() == [256] * 50


@pytest.mark.parametrize("bits", [0, 1, 7, 8, 15, 16, 23, EXACT])
def test_every_pair_up_to_the_guarantee_is_found(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SMALL", 0)
    hashes = planted(3000, bits)
    best, effort = best_neighbours(points(hashes), everyone(6000), everyone(6000), 31)
    assert (best[1::2] == np.arange(0, 6000, 2)).all()
    assert effort.skipped == 0


def test_errors_spread_worst_over_the_groups_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 bits, 4 or 5 in every group and no two of a group's in one band."""
    monkeypatch.setattr(search, "SMALL", 0)
    rng = np.random.default_rng(3)
    bits = np.unpackbits(rng.integers(0, 256, (400, 32), np.uint8), axis=1)
    other = bits.copy()
    for row in range(400):
        for group in range(GROUPS):
            edges = _edges(group)
            for band in rng.permutation(16)[: 4 if group == row % GROUPS else 5]:
                other[row, edges[band] + rng.integers(3)] ^= 1
    where = np.argsort(DEAL)  # so that dealing puts them there
    hashes = np.packbits(np.stack([bits, other], axis=1).reshape(-1, 256)[:, where], axis=1)
    assert (distances(deal(hashes[::2]), deal(hashes[1::2])) == EXACT).all()
    best, _ = best_neighbours(points(hashes), everyone(800), everyone(800), 31)
    assert (best[1::2] == np.arange(0, 800, 2)).all()


@pytest.mark.parametrize(("bits", "least"), [(26, 0.999), (28, 0.99), (30, 0.98), (31, 0.97)])
def test_the_recall_that_is_stated_beyond_it(bits: int, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SMALL", 0)
    best, _ = best_neighbours(points(planted(4000, bits)), everyone(8000), everyone(8000), 31)
    assert np.mean(best[1::2] == np.arange(0, 8000, 2)) >= least


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_parts_of_the_tables_add_up_to_the_whole(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SMALL", 40)
    rng = np.random.default_rng(5)
    hashes = np.concatenate([planted(300, bits, seed=bits) for bits in (0, 6, 20)])
    made = points(hashes[rng.permutation(len(hashes))], group=np.minimum(rng.integers(0, 200, len(hashes)), 60))
    all_rows = everyone(len(hashes))
    cuts = [TABLES * part // parts for part in range(parts + 1)]
    found = [
        best_neighbours(made, all_rows, all_rows, 31, threads=1 + part, tables=range(cuts[part], cuts[part + 1]))[0]
        for part in range(parts)
    ]
    assert (np.minimum.reduce(found) == brute(made, 31)).all()


def test_only_those_that_ask_and_answer_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SMALL", 0)
    hashes = np.repeat(planted(1, 0)[:1], 5000, axis=0)
    asks, answers = np.zeros(5000, np.bool_), np.zeros(5000, np.bool_)
    asks[[10, 4000]] = answers[[20, 30]] = True
    best, _ = best_neighbours(points(hashes), asks, answers, 0)
    assert {place: int(best[place]) for place in np.flatnonzero(best < 5000)} == {4000: 20}


def test_a_hot_family_costs_each_row_one_comparison_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SMALL", 0)
    rng = np.random.default_rng(6)
    head = rng.integers(0, 256, (1, 32), np.uint8)
    family = head ^ np.packbits(np.argsort(rng.random((20_000, 256)), axis=1) < 6, axis=1)
    best, effort = best_neighbours(points(family), everyone(20_000), everyone(20_000), 31)
    assert best[1:].max() == 0
    assert effort.compared < TABLES * 20_000


def test_a_hot_bucket_that_does_not_match_is_split_and_the_loss_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key in table 0, all else random: the bucket's pairs are not all compared; a true pair is found elsewhere."""
    monkeypatch.setattr(search, "SMALL", 0)
    monkeypatch.setattr(search, "STEPS", 16)
    hashes = np.random.default_rng(7).integers(0, 256, (3000, 32), np.uint8)
    hashes[-1] = hashes[-2]
    bits = np.unpackbits(hashes, axis=1)
    bits[:, DEAL[: _edges(0)[-1]]] = 0
    made = points(np.packbits(bits, axis=1))
    best, effort = best_neighbours(made, everyone(3000), everyone(3000), 31)
    assert best[-1] == 2998
    assert effort.hot_buckets == TABLES // GROUPS
    assert 0.9 < effort.skipped / (TABLES // GROUPS * 3000 * 2999 / 2) < 1
    assert effort.compared < 0.1 * 3000 * 2999 / 2 * TABLES // GROUPS


def test_colours_agree_up_to_the_threshold_in_every_cell() -> None:
    one = np.full((4, 48), 128, np.uint8)
    other = one.copy()
    other[1, 1] += 8  # a* by 8
    other[2, 46] += 9  # a* of the last cell by 9
    other[3, 0] += 20  # L* by 7.8
    assert same_colours(one, other).tolist() == [True, True, False, True]


@pytest.mark.parametrize("whole", [0, 1 << 26])
def test_pairs_of_two_sets_are_those_of_brute_force(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "WHOLE", whole)
    hashes = np.concatenate([planted(60, bits, seed=bits) for bits in (0, 4, 16, 22)])
    few, many = deal(np.concatenate([hashes[::2], hashes[:20:2]])), deal(np.concatenate([hashes[1::2], hashes[1:9:2]]))
    one, other = matches(few, many, EXACT)
    expected = [(a, b) for a in range(len(few)) for b in np.flatnonzero(distances(many, few[a][None]) <= EXACT)]
    assert list(zip(one.tolist(), other.tolist(), strict=True)) == expected


def test_one_hash_in_many_colours_costs_no_more_than_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "STEPS", 16)
    count = 2000
    made = points(np.zeros((count, 32), np.uint8))
    bits = np.arange(count)[:, None] >> np.arange(11) & 1
    made.colours[:, 1:34:3] = 90 * bits  # a* of a cell each
    best, effort = best_neighbours(made, everyone(count), everyone(count), 31)
    assert (best == count).all()
    assert effort.compared <= TABLES * count * 2 * 16
    assert effort.skipped > 0
