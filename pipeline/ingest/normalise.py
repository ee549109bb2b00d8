"""URLs as fetched, and keys by which units are cut."""

import hashlib
import re
from typing import NamedTuple

import can_ada
import numpy as np
import pyarrow as pa


class Fetchable(NamedTuple):
    """A URL that may be fetched: WHATWG-normalised, without fragment; `host` is lower-case IDNA, no port."""

    url: str
    host: str


class Unfetchable(NamedTuple):
    reason: str
    """bad_url or bad_scheme"""
    detail: str


_PLAIN = re.compile(r"https?://[^/\\?#\x00-\x20][^\x00-\x20]*\Z", re.IGNORECASE)
"""What nearly every URL looks like, and passes every check below but the parser's."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_STRIPPED = "".join(map(chr, range(0x21)))
"""What the WHATWG parser strips from both ends: C0 controls and space."""
_REMOVED = str.maketrans("", "", "\t\n\r")
"""What it removes everywhere."""


def normalise_url(given: str | None) -> Fetchable | Unfetchable:
    """Judge and normalise a URL on its text alone; nothing is opened and no name is resolved.

    The URL Standard (url.spec.whatwg.org) as can_ada implements it: host lower-case and in punycode, default port and
    dot segments gone, spaces and non-ASCII escaped. Idempotent. Only http and https with a host pass; the slashes
    after the scheme have to be there (browsers forgive them, `http:x` in a data set is a relative URL gone wrong).
    """
    if given is None:
        return Unfetchable("bad_url", "no url")
    if _PLAIN.match(given):
        return _parsed(given)
    text = given.strip(_STRIPPED).translate(_REMOVED)
    if not text:
        return Unfetchable("bad_url", "empty")
    if "\x1f" in given:
        # U+001F joins url and text in a pair's uid, which must not have two readings.
        return Unfetchable("bad_url", "holds U+001F")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Unfetchable("bad_url", f"relative: {text[:200]}")
    if scheme[0].lower() not in ("http:", "https:"):
        return Unfetchable("bad_scheme", scheme[0][:200])
    if text[scheme.end() : scheme.end() + 2].replace("\\", "/") != "//":
        return Unfetchable("bad_url", f"no // after {scheme[0]} {text[:200]}")
    if text[scheme.end() + 2 : scheme.end() + 3] in ("", "/", "\\", "?", "#"):
        return Unfetchable("bad_url", f"no host: {text[:200]}")
    return _parsed(text)


def _parsed(text: str) -> Fetchable | Unfetchable:
    try:
        parsed = can_ada.parse(text)
    except ValueError:
        return Unfetchable("bad_url", f"cannot be parsed: {text[:200]}")
    return Fetchable(parsed.href.partition("#")[0], parsed.hostname)


def digest64(text: str) -> bytes:
    """The first 8 bytes of sha256 of the text in UTF-8."""
    return hashlib.sha256(text.encode()).digest()[:8]


def located(rows: pa.Table) -> pa.Table:
    """Add `fetch_url` and the key `hi` (host hash) and `lo` (URL hash), uint64; null where there is no usable URL.

    A row that cannot be fetched and has no reason yet gets its reason and detail.
    """
    urls = rows["url"].to_pylist()
    reasons = rows["reason"].to_pylist()
    details: list[str | None] | None = None
    fetch: list[str | None] = [None] * len(urls)
    keys = bytearray()
    usable = np.ones(len(urls), bool)
    hosts: dict[str, bytes] = {}
    for index, given in enumerate(urls):
        found = normalise_url(given) if reasons[index] is None else None
        if isinstance(found, Fetchable):
            fetch[index] = found.url
            host = hosts.get(found.host)
            if host is None:
                host = hosts[found.host] = digest64(found.host)
            keys += host
            keys += digest64(found.url)
            continue
        usable[index] = False
        keys += bytes(16)
        if found is not None:
            if details is None:
                details = rows["detail"].to_pylist()
            reasons[index], details[index] = found
    if details is not None:
        rows = rows.set_column(rows.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
        rows = rows.set_column(rows.column_names.index("detail"), "detail", pa.array(details, pa.large_string()))
    numbers = np.frombuffer(bytes(keys), ">u8").astype(np.uint64).reshape(-1, 2)
    rows = rows.append_column("fetch_url", pa.array(fetch, pa.large_string()))
    rows = rows.append_column("hi", pa.array(numbers[:, 0], mask=~usable))
    return rows.append_column("lo", pa.array(numbers[:, 1], mask=~usable))
