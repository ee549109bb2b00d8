"""img2dataset's status and error_message as our closed set of reasons."""

import re
from functools import lru_cache
from typing import Final

SUCCESS: Final = "success"

_DOWNLOAD: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"X-Robots-Tag", "opt_out"),
        (r"hash mismatch", "hash_mismatch"),
        (r"infinite loop|redirect error", "too_many_redirects"),
        (r"HTTP Error \d+", "http_error"),
        (r"Name or service not known|getaddrinfo|nodename nor servname|name resolution|No address associated", "dns"),
        (r"timed out|timeout", "timeout"),
        (r"\bSSL|\bTLS|certificate", "tls"),
        (r"IncompleteRead", "truncated"),
        (r"unknown url type|urlopen error unknown", "bad_scheme"),
        (
            r"no host given|invalid URL|nonnumeric port|invalid IPv6|control characters|codec can't encode|"
            r"label (empty or )?too long|label empty|URL can't contain",
            "bad_url",
        ),
        (r"BadStatusLine|got more than \d+|status line|chunk", "bad_headers"),
    )
)
_RESIZE: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"too small", "too_small"),
        (r"area too large", "too_many_pixels"),
        (r"aspect ratio", "aspect_ratio"),
    )
)
_CODE: Final = re.compile(r"HTTP Error (\d{3})")


@lru_cache(10_000)
def reason_of(status: str | None, message: str | None) -> tuple[str | None, int | None]:
    """(reason, HTTP status) of a row; reason None for success.

    What names no cause of ours is `connect` for a failed download (urllib says `urlopen error`, `Connection reset`,
    `Remote end closed`), `decode_error` for a failed resize, `internal` for a status img2dataset does not have.
    """
    if status == SUCCESS:
        return None, None
    said = message or ""
    code = _CODE.search(said)
    http_status = int(code[1]) if code else None
    if status == "failed_to_download":
        return _first(_DOWNLOAD, said) or "connect", http_status
    if status == "failed_to_resize":
        return _first(_RESIZE, said) or "decode_error", http_status
    return "internal", http_status


def _first(patterns: tuple[tuple[re.Pattern[str], str], ...], said: str) -> str | None:
    return next((reason for pattern, reason in patterns if pattern.search(said)), None)
