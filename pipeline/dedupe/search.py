"""Near pairs of PDQ hashes: for each row the best-ranked row within the radius, without comparing all with all.

Method: 256 bits are dealt to 5 groups, a group's 51 or 52 bits to 16 bands of 3 or 4: the points of the affine space of
4 dimensions over two elements. Its 30 planes of 8 points cover any 4 points: 4 independent ones lie in one of them,
others in several. A table is keyed by the 24 to 28 bits of one group off one such plane; there are 150. Two hashes at
most 24 bits apart differ in at most 4 bits of some group, so in at most 4 bands, which lie in a plane: they share that
table's key. Up to EXACT = 24 bits the search is therefore exact. Beyond, since a pair has many chances, it finds of
random differences 99.9% at 26 bits, 99.8% at 28, 99% at 30 and 98% at 31 (tests/unit/test_dedupe_search.py).

Rows share a bucket only where they may be duplicates at all: with scope `pair`, where their texts are equal. Groups of
rows (equal texts, or all rows) of at most SMALL are compared whole, with no loss up to the radius.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

EXACT: Final = 24
"""Bits up to which every pair is found."""
RADIUS: Final = 31
"""Largest radius served: PDQ's own threshold."""
MIN_QUALITY: Final = 50
"""PDQ quality below which a hash says nothing (PDQ paper, section 6; blank and nearly blank images)."""
COLOUR_RADIUS: Final = 8.0
"""CIE76 difference allowed in each of the 16 cells. Measured on 250 twemoji on white and 108 crops of photos: 99% of
copies (JPEG 30 to 75, WebP, resized, blurred, 1% cropped, captioned) stay within it. Of the 4,009 twemoji's pairs that
PDQ takes for one image it parts 92% that differ in skin tone and 97% of flags (the rest: skiers, whose skin is a few
pixels; flags drawn alike)."""
SMALL: Final = 1024
"""Rows of a group that are compared whole."""
WHOLE: Final = 1 << 26
"""Pairs of two sets that are simply compared."""
_BLOCK: Final = 1 << 16
STEPS: Final = 256
"""Rows of a bucket that each row is compared with before the bucket counts as hot and is split, and then of the part.
What is left after that is lost to this table, and reported; families of near copies lose nothing, since each row of
them matches the first that it meets."""
SPLIT_BITS: Final = 12

GROUPS: Final = 5
BANDS: Final = 16
Words = npt.NDArray[np.uint64]
Index = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def _edges(group: int) -> list[int]:
    """Where the bands of a group begin, and the last one ends, of 256."""
    low, high = 256 * group // GROUPS, 256 * (group + 1) // GROUPS
    return [low + (high - low) * band // BANDS for band in range(BANDS + 1)]


def _keys() -> list[tuple[int, int]]:
    """(group, mask of its bits) of each table: the bands x with parity(x & normal) = side make up one plane."""
    keys = []
    for group in range(GROUPS):
        edges = _edges(group)
        bands = [(1 << edges[band + 1] - edges[0]) - (1 << edges[band] - edges[0]) for band in range(BANDS)]
        for normal in range(1, BANDS):
            for side in (0, 1):
                keys.append((group, sum(bands[x] for x in range(BANDS) if (x & normal).bit_count() % 2 == side)))
    return keys


KEYS: Final = tuple(_keys())
TABLES: Final = len(KEYS)
DEAL: Final = np.random.default_rng(20).permutation(256)
"""Which bit of a hash goes where: neighbouring bits of PDQ (frequencies next to each other) are correlated."""


@dataclass(frozen=True)
class Points:
    """Hashes in rank order, best first; what a search looks through.

    `words` [n, 4]: 256 bits as `deal` gives them, bit p being bit p % 64 of word p // 64. `colours` [n, 48] uint8.
    `row` [n]: the row a hash belongs to, ascending, n rows where each has one hash; `own` [n]: the hash of the image as
    it is, not of a turned form.
    `group` [n]: only rows of one group can match.
    """

    words: Words
    colours: npt.NDArray[np.uint8]
    row: Index
    own: Flags
    group: Index

    @property
    def groups(self) -> int:
        """One more than the highest group."""
        return int(self.group.max(initial=-1)) + 1

    def take(self, chosen: Index) -> "Points":
        """The chosen positions; rows keep their numbers."""
        return Points(self.words[chosen], self.colours[chosen], self.row[chosen], self.own[chosen], self.group[chosen])


@dataclass
class Effort:
    """`compared`: candidate pairs, and the CPU `seconds` that they took; `skipped`: pairs of hot buckets that one table
    did not compare.
    """

    compared: int = 0
    seconds: float = 0.0
    skipped: int = 0
    hot_buckets: int = 0

    def add(self, other: "Effort") -> None:
        self.compared += other.compared
        self.seconds += other.seconds
        self.skipped += other.skipped
        self.hot_buckets += other.hot_buckets


def deal(hashes: npt.NDArray[np.uint8]) -> Words:
    """Hashes [n, 32] with their bits in the order of the tables, as words [n, 4]. Distances stay what they are."""
    dealt = np.empty((len(hashes), 32), np.uint8)
    for start in range(0, len(hashes), 1 << 14):  # in cache: ten times as fast as at once
        bits = np.unpackbits(hashes[start : start + (1 << 14)], axis=1)
        dealt[start : start + len(bits)] = np.packbits(
            np.take(bits, DEAL, axis=1, mode="clip"), axis=1, bitorder="little"
        )
    return dealt.view(np.dtype("<u8"))


def group_bits(words: Words, group: int) -> Words:
    """The 51 or 52 bits of a group [n], and others above them."""
    word, shift = divmod(256 * group // GROUPS, 64)
    bits = words[:, word] >> np.uint64(shift)
    return bits | words[:, word + 1] << np.uint64(64 - shift) if shift > 12 else bits


def key_of(bits: Words, mask: int) -> npt.NDArray[np.uint32]:
    """A table's key from a group's bits: as good as distinct for distinct bits."""
    return ((bits & np.uint64(mask)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype(np.uint32)


def distances(one: Words, other: Words) -> npt.NDArray[np.uint32]:
    """Bits by which the rows of two [n, 4] differ: [n]."""
    counts = np.bitwise_count(one ^ other).view(np.uint32)[:, 0]  # four counts of 0 to 64, a byte each
    pairs = (counts & 0x00FF00FF) + (counts >> 8 & 0x00FF00FF)
    return np.asarray((pairs & 0xFFFF) + (pairs >> 16), np.uint32)


def same_colours(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> Flags:
    """Whether no cell of two signatures [n, 48] differs by more than COLOUR_RADIUS."""
    apart = (one.astype(np.float32) - other).reshape(len(one), one.shape[1] // 3, 3)
    apart[..., 0] /= 2.55
    return np.asarray((np.einsum("ijk,ijk->ij", apart, apart) <= COLOUR_RADIUS**2).all(axis=1))


def best_neighbours(
    points: Points, asks: Flags, answers: Flags, radius: int, threads: int = 1, tables: range = range(TABLES)
) -> tuple[Index, Effort]:
    """For each row that asks, the lowest-numbered row before it that answers and matches, or the number of rows.

    `asks` and `answers` are by row. Any split of `tables` gives parts whose minimum is the whole's answer; groups
    small enough to be compared whole belong to table 0.
    """
    concerned = asks[points.row] | answers[points.row]
    concerned &= np.bincount(points.group[concerned], minlength=points.groups)[points.group] > 1
    if not concerned.all():
        points = points.take(np.flatnonzero(concerned))
    sizes = np.bincount(points.group, minlength=points.groups)[points.group]
    works = [_Work(points, asks, answers, radius) for _ in range(threads)]
    if 0 in tables:
        works[0].whole_groups(np.flatnonzero(sizes <= SMALL))
    large = np.flatnonzero(sizes > SMALL)
    if len(large):
        if len(large) < len(sizes):
            for work in works:
                work.points = points.take(large)
        with ThreadPoolExecutor(threads) as pool:
            for job in [pool.submit(work.keyed, tables[part::threads]) for part, work in enumerate(works)]:
                job.result()
    best, effort = works[0].best, works[0].effort
    for work in works[1:]:
        np.minimum(best, work.best, out=best)
        effort.add(work.effort)
    return best, effort


class _Work:
    """One thread's tables. What it has found spares it pairs that could not improve on it, and changes no answer."""

    def __init__(self, points: Points, asks: Flags, answers: Flags, radius: int) -> None:
        self.points = points
        self.asks = asks
        self.answers = answers
        self.radius = radius
        self.best = np.full(len(asks), len(asks), np.int64)
        self.effort = Effort()
        self._all_answer = bool(answers.all())
        self._all_ask = bool(asks.all())
        self._plain = len(points.row) == len(asks) and bool(points.own.all())
        self._turned = not points.own.all()
        self._grouped = bool(points.group.any())

    def whole_groups(self, chosen: Index) -> None:
        self._bucketed(self.points.group[chosen], chosen, SMALL, None)

    def keyed(self, tables: range) -> None:
        points = self.points
        spread = (points.group.astype(np.uint32) * np.uint32(0x9E3779B1)) if self._grouped else None
        asking = self.asks[points.row]
        few = 8 * int(asking.sum()) < len(asking)
        everyone = np.arange(len(points.row))
        last, bits = -1, np.empty(0, np.uint64)
        for table in tables:
            group, mask = KEYS[table]
            if group != last:
                last, bits = group, group_bits(points.words, group)
            keys = key_of(bits, mask)
            if spread is not None:
                keys ^= spread
            chosen = _sharing(keys, keys[asking]) if few else everyone
            self._bucketed(keys[chosen] if few else keys, chosen, STEPS, (group + 1) % GROUPS)

    def _bucketed(self, keys: npt.NDArray[Any], chosen: Index, steps: int, finer: int | None) -> None:
        """Compare within equal keys (below 2^32). `finer`: the group by whose bits a hot bucket is split, if any."""
        packed = keys.astype(np.uint64)
        packed <<= np.uint64(32)
        packed |= chosen.view(np.uint64)
        packed.sort()
        at = (packed & np.uint64(0xFFFFFFFF)).view(np.int64)
        packed >>= np.uint64(32)
        new = np.ones(len(at), np.bool_)
        np.not_equal(packed[1:], packed[:-1], out=new[1:])
        starts = np.flatnonzero(new)
        later = np.flatnonzero(~new)
        if not self._all_ask:
            later = later[self.asks[self.points.row[at[later]]]]
        start = starts[np.cumsum(new)[later] - 1]
        del packed, new, starts
        begun = time.thread_time()
        later, start = self._step(at, later, start, steps)
        self.effort.seconds += time.thread_time() - begun
        if len(later) and finer is not None:
            self._split(at, later, start, finer)

    def _step(self, at: Index, later: Index, start: Index, steps: int) -> tuple[Index, Index]:
        """Each position of `later` meets its bucket's rows from `start` on, best first, until one matches.

        Gives what is left after `steps`.
        """
        row, words, colours = self.points.row, self.points.words, self.points.colours
        for step in range(steps):
            if step:
                later, start = _where(later > start + step, later, start)
            one, other = at[start + step], at[later]
            if step or not self._plain:
                # Rows come best first: what one row cannot win, its successors cannot.
                mine = row[other]
                useful = row[one] < np.minimum(mine, self.best[mine])
                later, start, one, other = _where(useful, later, start, one, other)
            if not len(later):
                break
            hit = self._comparable(one, other)
            self.effort.compared += len(hit)
            hit = hit[distances(words[one[hit]], words[other[hit]]) <= self.radius]
            if len(hit):
                hit = hit[same_colours(colours[one[hit]], colours[other[hit]])]
                np.minimum.at(self.best, row[other[hit]], row[one[hit]])
                left = np.ones(len(later), np.bool_)
                left[hit] = False
                later, start = _where(left, later, start)
        return later, start

    def _comparable(self, one: Index, other: Index) -> Index:
        if self._all_answer and not self._turned and not self._grouped:
            return np.arange(len(one))
        able = np.ones(len(one), np.bool_)
        if self._turned:
            able &= self.points.own[one] | self.points.own[other]
        if self._grouped:
            able &= self.points.group[one] == self.points.group[other]
        if not self._all_answer:
            able &= self.answers[self.points.row[one]]
        return able.nonzero()[0]

    def _split(self, at: Index, later: Index, start: Index, finer: int) -> None:
        """Hot buckets: what the first rows did not match meets the bucket's others only where more bits agree."""
        hot, bucket = np.unique(start, return_inverse=True)
        unmet = int((later - start - STEPS).sum())
        ends = np.zeros(len(hot), np.int64)
        np.maximum.at(ends, bucket, later)
        members = np.concatenate([np.arange(s + STEPS, e + 1) for s, e in zip(hot, ends, strict=True)])
        number = np.repeat(np.arange(len(hot)), ends + 1 - hot - STEPS)
        bits = group_bits(self.points.words[at[members]], finer) & np.uint64((1 << SPLIT_BITS) - 1)
        before = self.effort.compared
        self._bucketed((number << SPLIT_BITS).astype(np.uint64) | bits, at[members], STEPS, None)
        self.effort.hot_buckets += len(hot)
        self.effort.skipped += max(0, unmet - (self.effort.compared - before))


def _where(chosen: Flags, *arrays: Index) -> tuple[Index, ...]:
    return arrays if chosen.all() else tuple(array[chosen] for array in arrays)


def _sharing(keys: npt.NDArray[np.uint32], sought: npt.NDArray[np.uint32]) -> Index:
    """Positions whose key is among those sought, and a few more."""
    wanted = np.zeros(1 << 24, np.bool_)
    wanted[_slots(sought)] = True
    return np.flatnonzero(wanted[_slots(keys)])


def _slots(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return (keys * np.uint32(0x85EBCA6B)) >> np.uint32(8)


def matches(few: Words, many: Words, radius: int) -> tuple[Index, Index]:
    """Every pair (position in `few`, position in `many`) within the radius, sorted; both as `deal` gives them."""
    if len(few) * len(many) <= WHOLE:
        hits = [np.flatnonzero(distances(many, one[None]) <= radius) for one in few]
        position = np.repeat(np.arange(len(few)), [len(hit) for hit in hits])
        return position, np.concatenate([np.empty(0, np.int64), *hits])
    codes = [np.empty(0, np.int64)]
    for group in range(GROUPS):
        mine, yours = group_bits(few, group), group_bits(many, group)
        for mask in [mask for owner, mask in KEYS if owner == group]:
            keys = key_of(mine, mask)
            order = np.argsort(keys)
            keys = keys[order]
            theirs = key_of(yours, mask)
            other = _sharing(theirs, keys)
            sought = theirs[other]
            first = np.searchsorted(keys, sought)
            count = np.searchsorted(keys, sought, "right") - first
            for start in range(0, len(other), _BLOCK):
                block = slice(start, start + _BLOCK)
                pairs = count[block]
                within = np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs)
                one, two = order[np.repeat(first[block], pairs) + within], np.repeat(other[block], pairs)
                near = distances(few[one], many[two]) <= radius
                codes.append(one[near] * len(many) + two[near])
    found = np.unique(np.concatenate(codes))
    return found // len(many), found % len(many)
