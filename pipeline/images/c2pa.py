"""What a C2PA manifest store says of training: `c2pa.training-mining` (C2PA 1.4, 18.21) and `cawg.training-mining`
(CAWG Training and Data Mining Assertion 1.1) assertions, read from the store's boxes (JUMBF, ISO 19566-5).

Signatures are not checked: a refusal counts whoever signed it, and an allowance changes nothing. For the same reason
all manifests of a store count, those of ingredients too: their pixels are in the picture. Not read: manifests kept
elsewhere (a request to whomever the image names), and compressed ones (`brob` boxes).
"""

import json
import struct
from collections.abc import Iterator
from typing import Any, Final

from pipeline.images.cbor import decode_cbor

LABELS: Final = ("c2pa.training-mining", "cawg.training-mining")
MAX_BOXES: Final = 10_000
MAX_DEPTH: Final = 8
MAX_ASSERTION: Final = 1 << 18
"""Bytes of an assertion; what is larger is unreadable, as a million items would cost a second and 100 MB."""
FORBIDDING: Final = ("notallowed", "constrained")
"""Uses that deny; the assertion's own rule takes `constrained` for notAllowed without further information."""

_COMMON: Final = b".training-mining"


def training_entries(store: bytes) -> list[tuple[str, str]]:
    """(entry, use) of every training-mining assertion, such as (c2pa.ai_training, notAllowed).

    An assertion that cannot be read gives (its label, "unreadable"): somebody had something to say of training.
    """
    if _COMMON not in store:
        return []
    found: list[tuple[str, str]] = []
    try:
        for label, kind, body in _assertions(store):
            found.extend(_entries(label, kind, body))
    except (ValueError, struct.error) as error:
        return [*found, (f"manifest store: {error}", "unreadable")]
    return found


def forbids(use: str) -> bool:
    """Whether an entry keeps an image out of a training set. All entries count: collecting a set is data mining,
    training on it is training of whatever kind its readers choose, and scoring it is inference."""
    return use.lower() in FORBIDDING or use == "unreadable"


def _assertions(store: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    """(label, kind of content box, content) of the training-mining assertions."""
    pending = [(0, len(store), "", 0)]
    boxes = 0
    while pending:
        at, end, label, depth = pending.pop()
        while at + 8 <= end:
            boxes += 1
            if boxes > MAX_BOXES or depth > MAX_DEPTH:
                raise ValueError(f"more than {MAX_BOXES} boxes" if boxes > MAX_BOXES else f"deeper than {MAX_DEPTH}")
            size, kind = struct.unpack_from(">I4s", store, at)
            start = at + 8
            if size == 1:
                (size,) = struct.unpack_from(">Q", store, start)
                start += 8
            stop = end if size == 0 else min(end, at + size)
            if stop < start:
                raise ValueError(f"box {kind!r} of {size} bytes")
            if kind == b"jumb":
                pending.append((start, stop, "", depth + 1))
            elif kind == b"jumd" and stop > start + 17 and store[start + 16] & 2:
                # A type of 16 bytes, flags, and, where flag 2 is set, a label up to a zero.
                label = store[start + 17 : min(stop, start + 273)].partition(b"\0")[0].decode("utf-8", "replace")
            elif kind in (b"cbor", b"json") and label.startswith(LABELS):
                yield label, kind, store[start:stop]
            at = stop


def _entries(label: str, kind: bytes, body: bytes) -> list[tuple[str, str]]:
    if len(body) > MAX_ASSERTION:
        return [(label, "unreadable")]
    try:
        value = decode_cbor(body) if kind == b"cbor" else json.loads(body.rstrip(b"\0"))
    except (ValueError, RecursionError):
        return [(label, "unreadable")]
    # The first version of CAWG's assertion left the `entries` map out of its definition.
    entries = value.get("entries", value) if isinstance(value, dict) else None
    if not isinstance(entries, dict):
        return [(label, "unreadable")]
    return [(str(name), use) for name, entry in entries.items() if (use := _use(entry)) is not None]


def _use(entry: Any) -> str | None:
    use = entry.get("use") if isinstance(entry, dict) else None
    return use if isinstance(use, str) else None
