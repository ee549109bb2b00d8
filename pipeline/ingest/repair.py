"""UTF-8 repair: what is not UTF-8 becomes U+FFFD, one for each maximal broken sequence (WHATWG Encoding).

Bytes are decoded with the error handler LONE, which leaves a lone surrogate for each broken sequence; lone surrogates
from JSON escapes look the same. `string_array` makes U+FFFD of both, so a U+FFFD that was in the input is not taken
for a repair.
"""

import codecs
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LONE = "pairmill.lone"
codecs.register_error(LONE, lambda error: ("\udfff", error.end))  # type: ignore[attr-defined]

_SURROGATE = re.compile("[\ud800-\udfff]")


def string_array(values: Sequence[str | None]) -> tuple[pa.Array, np.ndarray]:
    """A large_string array of `values`, and a mask of those that had to be repaired."""
    try:
        return pa.array(values, pa.large_string()), np.zeros(len(values), bool)
    except UnicodeEncodeError:
        mask = np.zeros(len(values), bool)
        fixed = list(values)
        for index, value in enumerate(values):
            if value is not None and _SURROGATE.search(value):
                fixed[index], mask[index] = _SURROGATE.sub("\ufffd", value), True
        return pa.array(fixed, pa.large_string()), mask


def repaired(text: str) -> str:
    """One text, such as a column's name, with every lone surrogate made U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def valid_utf8(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """A string or binary array as large_string, and a mask of the values that had to be repaired."""
    data = array.cast(pa.large_binary())
    try:
        return pc.cast(data, pa.large_string()), np.zeros(len(array), bool)
    except pa.ArrowInvalid:
        fixed: list[str | None] = []
        mask = np.zeros(len(array), bool)
        for index, value in enumerate(data.to_pylist()):
            text = None if value is None else value.decode("utf-8", "replace")
            fixed.append(text)
            mask[index] = text is not None and text.encode() != value
        return pa.array(fixed, pa.large_string()), mask
