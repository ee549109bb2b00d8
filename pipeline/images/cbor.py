"""The part of CBOR (RFC 8949) that says something in maps of texts: enough for assertions, little enough to trust.

A whole decoder makes decimals, dates, patterns and shared references of the tags it is sent; here a tag's value is its
content and nothing else is made than dict, list, str, bytes, int, float, bool and None.
"""

import struct
from typing import Any, Final

MAX_DEPTH: Final = 16

_BREAK: Final = object()
_SIMPLE: Final = {20: False, 21: True, 22: None, 23: None}


def decode_cbor(data: bytes) -> Any:
    """The first item in `data`. Raises ValueError for what is no CBOR, or nested deeper than MAX_DEPTH."""
    try:
        value, _ = _item(data, 0, 0)
    except (IndexError, struct.error):
        raise ValueError("CBOR ends early") from None
    if value is _BREAK:
        raise ValueError("a break outside of an item")
    return value


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    kind, short = data[at] >> 5, data[at] & 31
    at += 1
    if kind == 7:
        return _simple(data, at, short)
    size, at = _size(data, at, short)
    match kind:
        case 0 | 1:
            if size is None:
                raise ValueError("an integer without a size")
            return (size if kind == 0 else -1 - size), at
        case 2 | 3:
            raw, at = _string(data, at, size, kind)
            return (raw if kind == 2 else raw.decode("utf-8", "replace")), at
        case 6:
            return _item(data, at, depth + 1)
    items: list[Any] = []
    wanted = None if size is None else size * (kind - 3)
    # Every item takes a byte at least, so a size that lies runs into the end of the data.
    while wanted is None or len(items) < wanted:
        value, at = _item(data, at, depth + 1)
        if value is _BREAK:
            if wanted is not None:
                raise ValueError("a break in an item of known size")
            break
        items.append(value)
    if kind == 4:
        return items, at
    if len(items) % 2:
        raise ValueError("a map's key without a value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}, at


def _size(data: bytes, at: int, short: int) -> tuple[int | None, int]:
    if short < 24:
        return short, at
    if short == 31:
        return None, at
    if short > 27:
        raise ValueError(f"additional information {short}")
    length = 1 << short - 24
    if at + length > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + length], "big"), at + length


def _string(data: bytes, at: int, size: int | None, kind: int) -> tuple[bytes, int]:
    if size is not None:
        if at + size > len(data):
            raise IndexError
        return data[at : at + size], at + size
    parts: list[bytes] = []
    while data[at] != 0xFF:
        if data[at] >> 5 != kind or data[at] & 31 == 31:
            raise ValueError("a chunk of another kind in a string")
        length, at = _size(data, at + 1, data[at] & 31)
        part, at = _string(data, at, length, kind)
        parts.append(part)
    return b"".join(parts), at + 1


def _simple(data: bytes, at: int, short: int) -> tuple[Any, int]:
    match short:
        case 31:
            return _BREAK, at
        case 25 | 26 | 27:
            length = 1 << short - 24
            (value,) = struct.unpack_from({2: ">e", 4: ">f", 8: ">d"}[length], data, at)
            return value, at + length
        case 24:
            return _SIMPLE.get(data[at]), at + 1
    if short > 27:
        raise ValueError(f"simple value {short}")
    return _SIMPLE.get(short), at


def _key(key: Any) -> Any:
    return key if isinstance(key, str | int | bytes) else repr(key)[:100]
