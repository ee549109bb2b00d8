"""The metadata entries that `select.balance` balances by, and which texts hold them, as MetaCLIP matches them.

Source: Xu et al. 2023, arXiv 2309.16671, and its code (facebookresearch/MetaCLIP: metaclip/substr_matching.py; for
scripts without spaces metaclip/curation/substr_matching.py, of MetaCLIP 2, arXiv 2507.22062).
"""

import json
import re
import string
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.select.uids import read_named

NGRAMS = "ngrams:"

_WRAPPED = np.isin(np.arange(256), list(b",.;:?!`"))
_TRANSLATED = np.arange(256, dtype=np.uint8)
_TRANSLATED[list(b"\t\n\r")] = ord(" ")

_UNSPACED = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0x2CEB0, 0x2EBEF), (0xF900, 0xFAFF), (0x2E80, 0x2EFF), (0x2F00, 0x2FDF), (0x2FF0, 0x2FFF),
    (0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x0F00, 0x0FFF),
)  # fmt: skip
"""MetaCLIP 2's code points of scripts without spaces: ideographs, Thai, Lao, Burmese, Khmer, Tibetan; not kana."""
_UNSPACED_CHAR = re.compile("[{}]".format("".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSPACED)))
_PUNCTUATION = frozenset(string.punctuation + "，。、；：？！“”‘’（）【】《》〈〉「」『』～—")

MEMORY = "1GB"
"""Of counting n-grams; what exceeds it is spilled to disk."""


def read_entries(path: str, key: str = "select.balance.entries") -> list[str]:
    """The distinct entries of a text file, one a line, or of a .json list of strings, as MetaCLIP's metadata.json is.

    Raises InputError, naming the recipe's key, for a file that cannot be read or holds none.
    """
    place = f"recipe {key}: {path}"
    try:
        text = read_named(path).decode()
        given = json.loads(text) if path.endswith(".json") else text.split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{place}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(given, list) or not all(isinstance(entry, str) for entry in given):
        raise InputError(f"{place}: is no list of strings")
    entries = list(dict.fromkeys(entry.strip() for entry in given))
    if not (entries := [entry for entry in entries if entry]):
        raise InputError(f"{place}: holds no entry")
    return entries


def ngrams_wanted(entries: str) -> int | None:
    """N of ngrams:N; None for a path. Raises InputError for another N than a whole number from 1."""
    if not entries.startswith(NGRAMS):
        return None
    number = entries.removeprefix(NGRAMS)
    if not number.isdecimal() or int(number) < 1:
        raise InputError(f"recipe select.balance.entries is {entries!r}: give {NGRAMS}N with N from 1, or a file")
    return int(number)


def pattern(entry: str) -> str:
    """An entry between spaces; one in a script without spaces has none at an end in that script or of punctuation."""
    if entry.isascii() or not _UNSPACED_CHAR.search(entry):
        return f" {entry} "
    first, last = (_UNSPACED_CHAR.match(char) or char in _PUNCTUATION for char in (entry[0], entry[-1]))
    return f"{'' if first else ' '}{entry}{'' if last else ' '}"


def spaced(texts: pa.ChunkedArray | pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The texts with a space before and behind, spaces around , . ; : ? ! ` and for tab and line ends.

    UTF-8 bytes of all texts in a row, and the [n + 1] places where they begin; a null is an empty text.
    """
    strings = pc.binary_join_element_wise(" ", pc.fill_null(texts, ""), " ", "").cast(pa.large_string())
    if isinstance(strings, pa.ChunkedArray):
        strings = strings.combine_chunks()
    rows = len(strings)
    _, starts, data = strings.buffers()
    places = np.frombuffer(starts, np.int64)[strings.offset : strings.offset + rows + 1] if rows else np.zeros(1, int)
    given = np.frombuffer(data, np.uint8)[places[0] : places[-1]] if rows else np.empty(0, np.uint8)
    places = places - places[0]
    wrapped = _WRAPPED[given]
    ends = np.concatenate(([0], np.cumsum(1 + 2 * wrapped)))
    made = np.repeat(_TRANSLATED[given], 1 + 2 * wrapped)
    around = ends[1:][wrapped]
    made[around - 1] = made[around - 3] = ord(" ")
    return made, ends[places]


class Matcher:
    """Which entries are in a text, by Aho–Corasick. Safe to use from several threads.

    ahocorasick-rs: it searches bytes, so a unit's texts at once, in place of a call a text, and without the GIL.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        import ahocorasick_rs

        self.entries = list(entries)
        self._automaton = ahocorasick_rs.BytesAhoCorasick([pattern(entry).encode() for entry in entries])

    def match(self, texts: pa.ChunkedArray) -> pa.ListArray:
        """The entries of each text as numbers from 0, ascending, each once."""
        data, places = spaced(texts)
        found = self._automaton.find_matches_as_indexes(data.tobytes(), overlapping=True)
        triples = np.fromiter(chain.from_iterable(found), np.int64, 3 * len(found)).reshape(-1, 3)
        entry, first, last = triples.T
        row = np.searchsorted(places, first, side="right") - 1
        inside = last <= places[row + 1]  # an entry with two spaces could reach into the next text
        pairs = np.sort(row[inside] * len(self.entries) + entry[inside])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # numpy's own unique takes ten times as long
        rows, numbers = np.divmod(pairs, len(self.entries))
        ends = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(texts)))))
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(numbers, pa.int32()))


class NgramCounts:
    """Counts the texts that hold each 1- and 2-gram, on disk where memory does not do. One object serves one thread.

    Words stand between spaces of the spaced text and hold a letter or digit; two in a row are a 2-gram.
    """

    def __init__(self, scratch: Path) -> None:
        self._engine = duckdb.connect(str(scratch / "ngrams.duckdb"), config={"memory_limit": MEMORY})
        self._engine.execute("CREATE TABLE grams (gram VARCHAR, texts BIGINT)")
        self._number = count()

    def add(self, texts: pa.ChunkedArray) -> None:
        data, places = spaced(texts)
        buffers = [None, pa.py_buffer(places), pa.py_buffer(data)]
        name = f"texts_{next(self._number)}"
        self._engine.register(name, pa.table({"text": pa.LargeStringArray.from_buffers(len(texts), *buffers[1:])}))
        try:
            self._engine.execute(_COUNT.format(texts=name))
        finally:
            self._engine.unregister(name)

    def most(self, number: int) -> list[str]:
        """The most frequent ones, among equals in the order of their code points."""
        query = "SELECT gram FROM grams GROUP BY gram ORDER BY sum(texts) DESC, gram LIMIT ?"
        found = [gram for (gram,) in self._engine.execute(query, [number]).fetchall()]
        self._engine.close()
        return found


_COUNT = r"""
INSERT INTO grams
SELECT unnest(list_distinct(list_concat(
           [word for word in words if word is not null],
           [words[n] || ' ' || words[n + 1] for n in range(1, len(words))
            if words[n] is not null and words[n + 1] is not null]))) AS gram, count(*) AS texts
FROM (SELECT [CASE WHEN regexp_matches(word, '[\pL\pN]') THEN word END
              for word in string_split(text, ' ') if word <> ''] AS words
      FROM {texts})
GROUP BY gram"""


def most_frequent(chunks: Iterable[pa.ChunkedArray], number: int, scratch: Path) -> list[str]:
    """The `number` most frequent 1- and 2-grams of texts."""
    counts = NgramCounts(scratch)
    for texts in chunks:
        counts.add(texts)
    return counts.most(number)
