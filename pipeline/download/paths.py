"""Path patterns as robots.txt and tdmrep.json write them, matched in linear time on hostile input."""

import re
from urllib.parse import quote, urlsplit

_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def path_of(url: str) -> str:
    """The part of a URL that patterns speak of: its path and query."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` matches the beginning of `path`, or all of it where it ends in `$`; `*` is any characters.

    Compared as RFC 9309, 2.2.2, says (TDMRep says the same): percent-encoded unreserved characters are decoded, what
    is not ASCII is encoded. Each piece between stars is looked for once, from the left: no pattern backtracks.
    """
    anchored = pattern.endswith("$")
    first, *rest = comparable(pattern.removesuffix("$")).split("*")
    path = comparable(path)
    if not path.startswith(first):
        return False
    at = len(first)
    if anchored:
        if not rest:
            return at == len(path)
        last = rest.pop()
        if not path.endswith(last):
            return False
        path = path[: len(path) - len(last)]
        if at > len(path):
            return False
    for piece in rest:
        found = path.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def comparable(text: str) -> str:
    """One spelling of a path: `%61` is `a`, `%2f` is `%2F`, `ä` is `%C3%A4`."""
    if not text.isascii():
        text = "".join(char if char.isascii() else quote(char, errors="replace") for char in text)
    return _ENCODED.sub(_decoded, text) if "%" in text else text


def _decoded(found: re.Match[str]) -> str:
    char = chr(int(found[1], 16))
    return char if char in _UNRESERVED else found[0].upper()
