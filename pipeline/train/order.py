"""The order of training: every dataset a sequence of permutations, cut into global batches. Needs no memory.

Position p of a stream is place p mod n of permutation p div n. A permutation is a Feistel network over the bits of n
(Luby and Rackoff 1988) keyed by (seed, stream, epoch), walked until it lands below n (Black and Rogaway 2002, section
3), so that any worker finds any place of any permutation without holding it, and its inverse as well.

A batch may hold the tail of one permutation and the head of the next. A sample of the tail that would be in that head
too changes places with the first sample behind the head that is not in the tail.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

Numbers = NDArray[np.int64]
_ROUNDS = 8
_MASK = (1 << 64) - 1


def mix(*parts: int) -> int:
    """64 bits from integers, each of which matters (the finaliser of SplitMix64, Steele et al. 2014)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & _MASK)) & _MASK
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def _scrambled(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    values = values + np.uint64(key)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Permutation:
    """Of 0 … n − 1: `at` says which number is at a place, `place_of` at which place a number is."""

    def __init__(self, n: int, *key: int) -> None:
        self._n = np.uint64(n)
        bits = max(2, (n - 1).bit_length())
        self._low = bits // 2
        self._widths = (bits - self._low, self._low)
        self._keys = [mix(*key, number) for number in range(_ROUNDS)]

    def at(self, places: Numbers) -> Numbers:
        return self._walk(places, backwards=False)

    def place_of(self, numbers: Numbers) -> Numbers:
        return self._walk(numbers, backwards=True)

    def _walk(self, values: Numbers, backwards: bool) -> Numbers:
        found = self._once(values.astype(np.uint64), backwards)
        while (outside := found >= self._n).any():
            found[outside] = self._once(found[outside], backwards)
        return found.astype(np.int64)

    def _once(self, values: NDArray[np.uint64], backwards: bool) -> NDArray[np.uint64]:
        # The halves keep their widths: odd rounds change the right one, even rounds the left one.
        wide, narrow = self._widths
        left, right = values >> np.uint64(narrow), values & np.uint64((1 << narrow) - 1)
        order = range(_ROUNDS)
        for number in reversed(order) if backwards else order:
            if number % 2:
                right = right ^ (_scrambled(left, self._keys[number]) & np.uint64((1 << narrow) - 1))
            else:
                left = left ^ (_scrambled(right, self._keys[number]) & np.uint64((1 << wide) - 1))
        return (left << np.uint64(narrow)) | right


class Stream:
    """One dataset's samples in the order they are taken; `cuts(step)` is the position at which a step begins."""

    def __init__(self, samples: int, seed: int, number: int, share: "Share") -> None:
        self.samples = samples
        self._seed, self._number, self._share = seed, number, share
        self._small = samples < 4 * share.most
        """Where a swap could reach a permutation's own tail: the swaps of all epochs before are needed."""
        self._moved: dict[int, dict[int, int]] = {0: {}}

    def take(self, first: int, last: int) -> Numbers:
        """The samples at positions first … last − 1."""
        positions = np.arange(first, last, dtype=np.int64)
        epochs = positions // self.samples
        parts = [self._at(int(epoch), positions[epochs == epoch] % self.samples) for epoch in np.unique(epochs)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def times_seen(self, sample: int, until: int) -> list[int]:
        """The positions below `until` at which the sample was taken, in order."""
        found = []
        for epoch in range(-(-until // self.samples)):
            place = int(self._permutation(epoch).place_of(np.array([sample]))[0])
            moved = {number: at for at, number in self._moves(epoch).items()}
            position = epoch * self.samples + moved.get(sample, place)
            if position < until:
                found.append(position)
        return found

    def _permutation(self, epoch: int) -> Permutation:
        return Permutation(self.samples, self._seed, self._number, epoch)

    def _at(self, epoch: int, places: Numbers) -> Numbers:
        found = self._permutation(epoch).at(places)
        for place, number in self._moves(epoch).items():
            found[places == place] = number
        return found

    def _moves(self, epoch: int) -> dict[int, int]:
        """place → number for the places at which the epoch differs from its permutation."""
        first = epoch
        if self._small:
            while first not in self._moved:
                first -= 1
        for one in range(first, epoch + 1):
            if one not in self._moved:
                before = self._moved.get(one - 1, {}) if self._small else {}
                self._moved[one] = self._find_moves(one, before)
        return self._moved[epoch]

    def _find_moves(self, epoch: int, before: dict[int, int]) -> dict[int, int]:
        start = epoch * self.samples
        cut = self._share.cut_around(start)
        if cut is None:
            return {}
        tail_length, head = start - cut[0], cut[1] - start
        tail_places = np.arange(self.samples - tail_length, self.samples, dtype=np.int64)
        tail_numbers = self._permutation(epoch - 1).at(tail_places)
        for place, number in before.items():
            tail_numbers[tail_places == place] = number
        tail = set(tail_numbers.tolist())
        reach = min(self.samples, head + 2 * tail_length + 1)
        numbers = self._permutation(epoch).at(np.arange(reach, dtype=np.int64)).tolist()
        moves: dict[int, int] = {}
        behind = head
        for place in range(head):
            if numbers[place] in tail:
                while numbers[behind] in tail:
                    behind += 1
                moves[place], moves[behind] = numbers[behind], numbers[place]
                behind += 1
        return moves


class Share:
    """How many samples of each batch a stream gives: its weight's part of all before, rounded, less those given."""

    def __init__(self, below: float, above: float, batch: int) -> None:
        """`below` and `above`: the sums of the shares of the streams before this one, and with it; 0 … 1."""
        self._below, self._above, self._batch = below, above, batch
        self.least = (above - below) * batch
        self.most = batch if (below, above) == (0.0, 1.0) else int(np.ceil(self.least)) + 1

    def cut(self, step: int) -> int:
        """Samples given before the step."""
        if (self._below, self._above) == (0.0, 1.0):
            return step * self._batch
        # Each step's slots of one batch are dealt to the streams by the same rounding, so that they always add up.
        return _rounded(self._above * self._batch, step) - _rounded(self._below * self._batch, step)

    def cut_around(self, position: int) -> tuple[int, int] | None:
        """The cuts before and behind a position that lies inside a batch; None where a batch begins there."""
        low, high = 0, 1
        while self.cut(high) <= position:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.cut(middle) <= position else (low, middle)
        first, last = self.cut(low), self.cut(low + 1)
        return None if first == position else (first, last)


def _rounded(share: float, step: int) -> int:
    return int(np.floor(share * step + 0.5)) if share else 0


class Order:
    """The samples of every global batch: numbers over all datasets, one dataset's after another's."""

    def __init__(self, sizes: Sequence[int], batch: int, seed: int, weights: Sequence[float] | None = None) -> None:
        """`sizes`: samples of each dataset; without weights they are one stream.

        Raises InputError where a batch would hold a sample twice.
        """
        if weights is None:
            sizes, weights = [sum(sizes)], [1.0]
        if len(weights) != len(sizes):
            raise InputError(f"data_weights has {len(weights)} numbers for {len(sizes)} datasets; give one each")
        if min(weights) <= 0:
            raise InputError(f"data_weights {list(weights)}: every weight has to be above 0")
        self.batch = batch
        bounds = np.cumsum([0.0, *weights]) / sum(weights)
        bounds[-1] = 1.0
        self._shares = [Share(float(low), float(high), batch) for low, high in pairwise(bounds)]
        self._offsets = np.cumsum([0, *sizes])
        for size, share in zip(sizes, self._shares, strict=True):
            if share.least < 1:
                raise InputError(f"data_weights {list(weights)}: a batch of {batch} has no room for each dataset")
            if share.most > size:
                raise InputError(
                    f"batch_size {batch} takes {share.most} samples of a dataset of {size:,}, and a batch holds no "
                    f"sample twice; give more data or a smaller batch_size"
                )
        self._streams = [
            Stream(size, seed, number, share)
            for number, (size, share) in enumerate(zip(sizes, self._shares, strict=True))
        ]

    def samples(self, step: int) -> Numbers:
        """The sample numbers [batch] of a step."""
        parts = [
            stream.take(share.cut(step), share.cut(step + 1)) + offset
            for stream, share, offset in zip(self._streams, self._shares, self._offsets, strict=False)
        ]
        return np.concatenate(parts)

    def steps_seen(self, sample: int, until: int) -> list[int]:
        """The steps below `until` whose batch held the sample, in order."""
        number = int(np.searchsorted(self._offsets, sample, side="right")) - 1
        share, stream = self._shares[number], self._streams[number]
        positions = stream.times_seen(sample - int(self._offsets[number]), share.cut(until))
        return [_step_at(share, position) for position in positions]

    def epochs(self, step: int) -> list[float]:
        """How often each stream has been gone through before the step."""
        return [share.cut(step) / stream.samples for share, stream in zip(self._shares, self._streams, strict=True)]


@lru_cache(4096)
def _step_at(share: Share, position: int) -> int:
    low, high = 0, 1
    while share.cut(high) <= position:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if share.cut(middle) <= position else (low, middle)
    return low
