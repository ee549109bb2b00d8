"""`select.balance`: MetaCLIP's balancing of texts by metadata entries (Xu et al. 2023, arXiv 2309.16671, section 3.3).

An entry counts once a text. Each (uid, entry) is drawn on its own: blake2b of seed, uid and entry in a row (UTF-8, the
seed in decimal), 8 bytes as a big-endian number, over 2**64, below t / max(count, t). A row passes by any of its
entries; one without an entry does not pass. So a decision depends on the counts and the row alone, not on an order.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.recipe import Balance

Counts = npt.NDArray[np.int64]


def threshold(settings: Balance, counts: Counts) -> int:
    """t, given or solved for the counts [entries].

    By `tail` as MetaCLIP 2's p_to_t (metaclip/curation/curate.py): the count up to which, in ascending order, entries
    have the share of all matches that is nearest to it; at least 1.
    """
    if settings.t is not None:
        return settings.t
    ascending = np.sort(counts)
    share = np.cumsum(ascending) / max(1, ascending.sum())
    return max(1, int(ascending[np.abs(share - settings.tail).argmin()]))


class Draws:
    """Decides rows by their entries. Safe to use from several threads."""

    def __init__(self, seed: int, t: int, entries: Sequence[str], counts: Counts) -> None:
        """`counts` [entries]: texts with the entry."""
        self._counts = counts
        self._seed = str(seed)
        self._certain = counts <= t
        self._heads = {
            # draw / 2**64 < t / count, in whole numbers
            head: (entries[head].encode(), (-(-(t << 64) // int(counts[head]))).to_bytes(8, "big"))
            for head in np.flatnonzero(~self._certain).tolist()
        }

    def passes(self, uids: Sequence[str], matched: pa.ListArray) -> npt.NDArray[np.bool_]:
        """Boolean mask [n]; `matched` are the numbers of the entries of each row."""
        ends = matched.offsets.to_numpy()
        entries = matched.values.to_numpy()[ends[0] : ends[-1]]
        ends = ends - ends[0]
        sizes = np.diff(ends)
        row = np.repeat(np.arange(len(uids)), sizes)
        kept = np.zeros(len(uids), np.bool_)
        kept[row[self._certain[entries]]] = True
        # The likeliest first: the first draw that passes is enough.
        likeliest = entries[np.lexsort((self._counts[entries], row))].tolist()
        heads, seed = self._heads, self._seed
        for number in np.flatnonzero(~kept & (sizes > 0)).tolist():
            begun = f"{seed}{uids[number]}".encode()
            for head in likeliest[ends[number] : ends[number + 1]]:
                entry, limit = heads[head]
                if blake2b(begun + entry, digest_size=8).digest() < limit:
                    kept[number] = True
                    break
        return kept
