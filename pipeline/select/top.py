"""`select.top`: the exact value at a place from the top of any number of rows, by a radix histogram.

Numbers become unsigned keys in the same order; passes over the rows count one 16-bit digit of the keys at a time, from
the highest, of those keys that agree with what is known so far. Two passes for float32 and int32, four for 64 bits;
memory is one histogram of 65,536 counts, whatever the rows.
"""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.recipe import Top

Flags = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.unsignedinteger[Any]]

DIGIT = 16


def number_columns(schema: pa.Schema) -> list[str]:
    """Columns that can be ranked."""
    return [field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]


def ranked_type(type_: pa.DataType) -> pa.DataType:
    """The type a column is ranked as: integers are int64, which holds them all."""
    return pa.int64() if pa.types.is_integer(type_) else type_


def key_bits(type_: pa.DataType) -> int:
    """Bits of the keys of a ranked type."""
    return int(type_.bit_width)


def keys_of(values: pa.ChunkedArray) -> tuple[Keys, Flags]:
    """Keys [n] in the order of the values, and which values there are: null and NaN are none. −0 is 0."""
    there = pc.is_valid(values).to_numpy()
    if pa.types.is_floating(values.type):
        unsigned: Any = np.uint32 if values.type.bit_width == 32 else np.uint64
        numbers = pc.fill_null(values, float("nan")).to_numpy() + 0.0
        there &= ~np.isnan(numbers)
        bits = numbers.view(unsigned)
        top = unsigned(1) << unsigned(values.type.bit_width - 1)
        # IEEE 754: positive numbers are ordered as their bits are, negative ones the other way round.
        return np.where(bits & top, ~bits, bits | top), there
    numbers = pc.fill_null(values, 0).to_numpy().astype(np.int64)
    return numbers.view(np.uint64) ^ np.uint64(1 << 63), there


def value_of(key: int | None, type_: pa.DataType) -> float | int | None:
    """The number of a key; None for the lowest key of all, which every number has, and where there is none."""
    if not key:
        return None
    if not pa.types.is_floating(type_):
        return key - (1 << 63)
    top = 1 << (type_.bit_width - 1)
    bits = key ^ top if key & top else key ^ (2 * top - 1)
    number = float(np.frombuffer(bits.to_bytes(type_.bit_width // 8, "little"), f"<f{type_.bit_width // 8}")[0])
    return number if np.isfinite(number) else None


@dataclass(frozen=True)
class Cut:
    """Where `top` cuts."""

    rows: int
    """Rows of the population with a value."""
    key: int | None
    """Rows with at least this key pass; None where the population has no value at all."""

    def passes(self, values: pa.ChunkedArray) -> Flags:
        """Boolean mask; null and NaN never pass."""
        keys, there = keys_of(values)
        return np.zeros_like(there) if self.key is None else there & (keys >= keys.dtype.type(self.key))


class Search:
    """Finds the cut: give each pass all rows by `add` (from several threads), then ask `close`."""

    def __init__(self, settings: Top, bits: int) -> None:
        self._settings = settings
        self._shift = bits - DIGIT
        self._prefix = 0
        self._place = 0
        self._rows = 0
        self._first = True
        self._counts = np.zeros(1 << DIGIT, np.int64)
        self._lock = threading.Lock()

    def add(self, keys: Keys) -> None:
        """Count the population's keys of some rows."""
        of = keys.dtype.type
        if not self._first:
            keys = keys[keys >> of(self._shift + DIGIT) == of(self._prefix)]
        digits = (keys >> of(self._shift)) & of((1 << DIGIT) - 1)
        counts = np.bincount(digits.astype(np.int64), minlength=1 << DIGIT)
        with self._lock:
            self._counts += counts

    def close(self) -> Cut | None:
        """End a pass: the cut, or None where another pass is needed."""
        if self._first:
            self._first = False
            self._rows = int(self._counts.sum())
            self._place = place(self._settings, self._rows)
            if not self._rows:
                return Cut(0, None)
            if self._place >= self._rows:
                return Cut(self._rows, 0)
        above = np.cumsum(self._counts[::-1])
        step = int(np.searchsorted(above, self._place, side="right"))
        if step:
            self._place -= int(above[step - 1])
        self._prefix = self._prefix << DIGIT | ((1 << DIGIT) - 1 - step)
        if self._shift == 0:
            return Cut(self._rows, self._prefix)
        self._shift -= DIGIT
        self._counts = np.zeros(1 << DIGIT, np.int64)
        return None


def place(settings: Top, rows: int) -> int:
    """Place of the last value that passes, 0 the highest; `rows` or more: all pass.

    A fraction is DataComp's (baselines/apply_filter.py, get_threshold): sorted_desc[int(n * fraction)].
    """
    if settings.fraction is not None:
        return int(rows * settings.fraction)
    assert settings.count is not None
    return settings.count - 1
