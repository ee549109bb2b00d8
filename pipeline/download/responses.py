"""What a response says of the next request: where it goes to, and when it may be made."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

from pipeline.ingest.normalise import Fetchable, Unfetchable, normalise_url

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
"""A server that asks for more patience than this gets no retry."""


def backoff(number: int, asked: float | None) -> float:
    """Seconds to wait after try `number` (from 0), jittered; at least what the server asked for."""
    return max(BACKOFF_S * float(2**number) * random.uniform(0.5, 1.5), asked or 0.0)


def joined(url: Fetchable, location: str) -> Fetchable | Unfetchable:
    """The URL a redirect leads to, judged as a new one."""
    try:
        return normalise_url(urljoin(url.url, header_text(location) or ""))
    except ValueError as error:
        return Unfetchable("bad_url", str(error))


def header_text(header: str | None) -> str | None:
    """A header as text: stray bytes become U+FFFD."""
    return None if header is None else header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), a number or a date; None where it says nothing."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
