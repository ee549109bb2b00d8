"""What the web's URLs do, and how a row with such a URL has to end under the default guards (design.md, Statuses)."""

from dataclasses import dataclass
from typing import Final, Literal

Place = Literal["any", "host", "list"]


@dataclass(frozen=True, slots=True)
class Kind:
    """`reason` is None where the row ends ok. `place` says what goes wrong: a path on any host, a whole host, or
    the row as it stands in the list. `rare` kinds cost seconds or megabytes and come a handful of times."""

    reason: str | None
    extension: str = "jpg"
    place: Place = "any"
    rare: bool = False


KINDS: Final[dict[str, Kind]] = {
    # Answers that are no image.
    "not-found": Kind("http_error"),
    "gone": Kind("http_error"),
    "error-500": Kind("http_error"),
    "busy-then-ok": Kind(None),
    "unavailable-then-ok": Kind(None),
    "html": Kind("not_an_image"),
    "empty": Kind("not_an_image"),
    "svg": Kind("unsupported_format", "svg"),
    "bmp": Kind("unsupported_format", "bmp"),
    # Broken connections and slow ones.
    "reset-at-once": Kind("connect"),
    "reset-in-body": Kind("connect"),
    "reset-then-ok": Kind(None),
    "short-body": Kind("truncated"),
    "stall": Kind("timeout", rare=True),
    "trickle": Kind("timeout", rare=True),
    "endless-100": Kind("timeout", rare=True),
    # Too much of something.
    "endless-body": Kind("too_large", rare=True),
    "declared-too-large": Kind("too_large"),
    "gzip-bomb": Kind("too_large", rare=True),
    "many-headers": Kind("bad_headers"),
    "huge-header": Kind("bad_headers"),
    "png-bomb": Kind("too_many_pixels", "png"),
    "gif-bomb": Kind("too_many_pixels", "gif"),
    "cut-jpeg": Kind("decode_error"),
    # Owners who say no.
    "noai": Kind("opt_out"),
    "noai-for-us": Kind("opt_out"),
    "tdm-reserved": Kind("opt_out"),
    "no-training": Kind("opt_out"),
    "disallowed-path": Kind("robots"),
    # Redirects.
    "redirect": Kind(None),
    "redirect-loop": Kind("too_many_redirects"),
    "six-hops": Kind("too_many_redirects"),
    "redirect-to-private": Kind("blocked_address"),
    "redirect-to-file": Kind("bad_scheme"),
    "redirect-to-disallowed": Kind("robots"),
    # Unusual, and fine.
    "turned": Kind(None),
    "cmyk": Kind(None),
    "grey": Kind(None),
    "progressive": Kind(None),
    "sixteen-bit": Kind(None, "png"),
    "alpha": Kind(None, "png"),
    "palette": Kind(None, "png"),
    "animated": Kind(None, "gif"),
    "chunked": Kind(None),
    "gzip-coded": Kind(None),
    "no-length": Kind(None),
    "wrong-type": Kind(None),
    "größe and spaces": Kind(None),
    # Whole hosts.
    "robots-all": Kind("robots", place="host"),
    "robots-us": Kind("robots", place="host"),
    "robots-500": Kind("robots", place="host"),
    "robots-403": Kind(None, place="host"),
    "robots-usage": Kind("opt_out", place="host"),
    "robots-stall": Kind("timeout", place="host", rare=True),
    "private-name": Kind("blocked_address", place="host"),
    "no-name": Kind("dns", place="host"),
    "closed": Kind("connect", place="host"),
    "unknown-ca": Kind("tls", place="host"),
    "wrong-name": Kind("tls", place="host"),
    "expired": Kind("tls", place="host"),
    # Rows that are wrong in the list.
    "duplicate": Kind("duplicate", place="list"),
    "no-text": Kind("missing_text", place="list"),
    "no-url": Kind("bad_url", place="list"),
    "bad-url": Kind("bad_url", place="list"),
    "bad-scheme": Kind("bad_scheme", place="list"),
    "private-url": Kind("blocked_address", place="list"),
}
TLS_KINDS: Final = ("unknown-ca", "wrong-name", "expired")
