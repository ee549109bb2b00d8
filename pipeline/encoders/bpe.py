"""The tokenizer of CLIP, as OpenAI published it and open_clip carries it, without torch.

Merges of byte pairs in the vocabulary's order (Sennrich et al., arXiv:1508.07909), over words of lower-case text. Two
things differ from open_clip's class, and no token of ordinary text does: strings such as "<end_of_text>" are text like
any other here, and a word of n characters costs n log n, not n².
"""

import gzip
import heapq
import html
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

START, END = 49406, 49407
_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # those that print stand for themselves
_BYTES += [byte for byte in range(256) if byte not in _BYTES]
_LETTERS = {byte: chr(byte if place < 188 else 256 + place - 188) for place, byte in enumerate(_BYTES)}


@lru_cache(1)
def _vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Token → id, and pair of tokens → its place among the merges."""
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("open_clip is not installed: pip install 'pairmill[encode]'")
    packed = Path(spec.submodule_search_locations[0], "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    letters = [_LETTERS[byte] for byte in _BYTES]
    tokens = letters + [letter + "</w>" for letter in letters] + [first + second for first, second in merges]
    return {token: id for id, token in enumerate(tokens)}, {pair: place for place, pair in enumerate(merges)}


@lru_cache(1 << 17)
def _word(word: str) -> tuple[int, ...]:
    """Ids of one word: the pair that was merged first in training is merged first, the leftmost of equals."""
    ids, places = _vocabulary()
    parts: list[str] = [_LETTERS[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    after = [*range(1, len(parts)), -1]
    before = [-1, *range(len(parts) - 1)]
    queue = [
        (places[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in places
    ]  # of (place, index of the pair's first part); entries that no longer hold are skipped when met
    heapq.heapify(queue)
    while queue:
        place, at = heapq.heappop(queue)
        other = after[at]
        if not parts[at] or other < 0 or places.get((parts[at], parts[other])) != place:
            continue
        parts[at] += parts[other]
        parts[other] = ""
        after[at] = after[other]
        if after[at] >= 0:
            before[after[at]] = at
        for first, second in ((before[at], at), (at, after[at])):
            if first >= 0 <= second and (next_place := places.get((parts[first], parts[second]))) is not None:
                heapq.heappush(queue, (next_place, first))
    return tuple(ids[part] for part in parts if part)


@lru_cache(1)
def _pattern() -> Any:
    import regex

    return regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


def basic_clean(text: str) -> str:
    """Mojibake mended and HTML entities read, twice, as open_clip does before any tokenizer."""
    if text.isascii() and text.isprintable() and "&" not in text:  # nothing ftfy or html would change
        return text.strip()
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def token_ids(text: str, at_most: int) -> list[int]:
    """The first `at_most` ids of a text, without start and end; `text` as clean functions leave it."""
    found: list[int] = []
    for match in _pattern().finditer(text):
        found.extend(_word(match.group()))
        if len(found) >= at_most:
            break
    return found[:at_most]


def framed(contents: list[list[int]], context: int) -> NDArray[np.int64]:
    """Ids [n, context] of contents of at most context − 2: start, content, end, then zeros."""
    tokens = np.zeros((len(contents), context), np.int64)
    for row, content in zip(tokens, contents, strict=True):
        row[0], row[1 : len(content) + 1], row[len(content) + 1] = START, content, END
    return tokens
