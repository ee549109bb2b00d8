"""The closed set of outcomes: every input row ends in exactly one (status, reason)."""

from typing import Final

REASONS: Final[dict[str, tuple[str, ...]]] = {
    "ok": (),
    "failed": (
        "dns",
        "connect",
        "tls",
        "timeout",
        "http_error",
        "bad_headers",
        "truncated",
        "too_large",
        "too_many_redirects",
        "not_an_image",
        "decode_error",
        "decoder_crash",
        "hash_mismatch",
        "host_down",
        "host_budget",
        "internal",
    ),
    "refused": (
        "bad_url",
        "bad_scheme",
        "blocked_address",
        "blocklisted",
        "robots",
        "opt_out",
        "retracted",
    ),
    "rejected": (
        "bad_row",
        "missing_text",
        "duplicate",
        "text_rule",
        "unsupported_format",
        "too_many_pixels",
        "too_small",
        "aspect_ratio",
    ),
}

STATUS_OF: Final[dict[str, str]] = {reason: status for status, reasons in REASONS.items() for reason in reasons}

MEANING: Final[dict[str, str]] = {
    "ok": "in the pool",
    "failed": "the web, or we, did not manage",
    "refused": "we must not have it",
    "rejected": "we do not want it",
}
