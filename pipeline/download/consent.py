"""Consent signals that come with a response: X-Robots-Tag, TDM reservation, Content-Usage."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Literal

RULE_VERSION: Final = "1"

DEFAULTS: Final = {
    "robots": True,
    "x_robots_tag": True,
    "tdm_reservation": True,
    "content_usage": True,
    "tdmrep": False,
}
"""Which signals are honoured unless the recipe says otherwise; what costs a request a host is off."""


@dataclass(frozen=True, slots=True)
class Signal:
    signal: str
    value: str
    source: str
    """A header's name, or the URL of a file."""
    verdict: Literal["allow", "deny"]
    rule_version: str = RULE_VERSION


# Directives that are never a bot's name, though a value with a colon follows (Google's list of robots directives).
_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_PREFIX = re.compile(r"\s*([^\s:,;]+)\s*:")


def robots_tag_denies(line: str, token: str, disallowed: Collection[str]) -> bool:
    """Whether one X-Robots-Tag line opts out for the crawler `token`.

    A `bot:` prefix holds until the next prefix or the end of the line, so `noai, googlebot: nofollow` is `noai` for
    everybody. Directives with values may hold colons and commas: `unavailable_after: Friday, 25 Jun 2010 15:00:00 PST`.
    """
    ours = True
    for part in line.lower().split(","):
        prefix = _PREFIX.match(part)
        while prefix and prefix[1] not in _WITH_VALUE and not prefix[1].isdigit():
            ours = prefix[1] in (token, "*")
            part = part[prefix.end() :]
            prefix = _PREFIX.match(part)
        if ours and part.strip() in disallowed:
            return True
    return False


_MEMBER = re.compile(r"\s*train-ai\s*=\s*(?:\"([^\"]*)\"|([^\s;,]+))", re.IGNORECASE)


def content_usage_verdict(value: str) -> Literal["allow", "deny"] | None:
    """What a Content-Usage value says of training: a structured-field dictionary whose `train-ai` is y or n
    (draft-ietf-aipref-attach, draft-ietf-aipref-vocab); None where it says nothing. Of several, n wins."""
    said = set()
    for member in re.split(r",(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", value):
        if found := _MEMBER.match(member):
            said.add((found[1] or found[2] or "").strip().lower())
    if said & {"n", "?0"}:
        return "deny"
    return "allow" if said & {"y", "?1"} else None


def header_signals(
    headers: Iterable[tuple[str, str]], evaluated: Collection[str], token: str, disallowed: Collection[str]
) -> list[Signal]:
    """The signals among a response's headers, in their order."""
    signals = []
    for name, value in headers:
        match name.lower():
            case "x-robots-tag" if "x_robots_tag" in evaluated:
                denied = robots_tag_denies(value, token, disallowed)
                signals.append(_signal("x_robots_tag", value, name, denied))
            case "tdm-reservation" if "tdm_reservation" in evaluated:
                signals.append(_signal("tdm_reservation", value, name, value.strip() == "1"))
            case "content-usage" if "content_usage" in evaluated:
                verdict = content_usage_verdict(value)
                if verdict is not None:
                    signals.append(_signal("content_usage", value, name, verdict == "deny"))
    return signals


def _signal(signal: str, value: str, header: str, denied: bool) -> Signal:
    # What a row records is text: a header's stray bytes become U+FFFD.
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:1000]
    return Signal(signal, text, header.lower(), "deny" if denied else "allow")
