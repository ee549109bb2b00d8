"""Consent signals: their names, the rules they are judged by, and the judging of headers and of an origin's files."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipeline.download.tdmrep import TdmRules
from schemas.recipe import CONSENT_DEFAULTS

RULE_VERSIONS: Final = {
    "robots": "RFC 9309",
    "x_robots_tag": "1",
    "tdm_reservation": "TDMRep 2024-05-10",
    "content_usage": "draft-ietf-aipref-attach-04, draft-ietf-aipref-vocab-06",
    "tdmrep": "TDMRep 2024-05-10",
    "iptc_plus": "IPTC Photo Metadata 2023.1",
    "c2pa": "C2PA 1.4, CAWG training-mining 1.1",
}
"""What each signal is judged by; a page's own meta tags are none of them, as images are fetched and no pages."""

IN_HEADERS: Final = ("x_robots_tag", "tdm_reservation", "content_usage")
IN_BYTES: Final = ("iptc_plus", "c2pa")


def honoured(consent: Mapping[Any, bool]) -> list[str]:
    """The signals to evaluate by a recipe's `download.consent`, in a fixed order."""
    return [name for name in RULE_VERSIONS if consent.get(name, CONSENT_DEFAULTS[name])]


@dataclass(frozen=True, slots=True)
class Signal:
    signal: str
    value: str
    source: str
    """A header's name, the URL of a file, or the place in an image: xmp, c2pa."""
    verdict: Literal["allow", "deny"]
    """allow: it does not forbid."""

    @property
    def rule_version(self) -> str:
        return RULE_VERSIONS[self.signal]


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


_MEMBERS = re.compile(r"(?:[^,\"]|\"[^\"]*\")+")
_MEMBER = re.compile(r"\s*([a-z-]+)\s*=\s*(?:\"([^\"]*)\"|([^\s;,]+))", re.IGNORECASE)


def content_usage_verdict(value: str) -> Literal["allow", "deny"] | None:
    """What a Content-Usage value says of training: a structured-field dictionary whose `train-ai` is y or n
    (draft-ietf-aipref-attach-04, 2 and 3; draft-ietf-aipref-vocab-06, 6); None where it says nothing.

    Labels of earlier drafts count too: `train-genai=n`, and `all=n` or `bots=n` where `train-ai` is not said. More
    is taken for a refusal than the drafts ask: capitals, a quoted "n", ?0, and of one label given twice the n, where
    RFC 9651 takes the last. Today's draft speaks of generative models; whatever a training set is used for later,
    `train-ai=n` keeps an image out of it.
    """
    said: dict[str, set[str]] = {}
    if value.count('"') % 2:
        value = value.replace('"', "")  # a quotation without an end hides nothing
    for member in _MEMBERS.findall(value):
        if found := _MEMBER.match(member):
            preference = (found[2] or found[3] or "").strip().lower()
            said.setdefault(found[1].lower(), set()).add({"?0": "n", "?1": "y"}.get(preference, preference))
    training = said.get("train-ai", set()) & {"y", "n"}
    broader = said.get("all", set()) | said.get("bots", set())
    if "n" in training | said.get("train-genai", set()) or ("n" in broader and not training):
        return "deny"
    return "allow" if training else None


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


def tdmrep_signal(rules: TdmRules, url: str) -> Signal | None:
    """What tdmrep.json says of `url`; None where it says nothing. A policy beside a reservation is recorded, not
    read: it tells people where to ask."""
    rule = rules.rule(url)
    if rule is None or rule.reserved is None:
        return None
    policy = f" {rule.policy}" if rule.policy else ""
    return Signal(
        "tdmrep", f"{rule.location} {int(rule.reserved)}{policy}"[:1000], rules.source, verdict(rule.reserved)
    )


def verdict(denied: bool) -> Literal["allow", "deny"]:
    return "deny" if denied else "allow"


def _signal(signal: str, value: str, header: str, denied: bool) -> Signal:
    # What a row records is text: a header's stray bytes become U+FFFD.
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:1000]
    return Signal(signal, text, header.lower(), verdict(denied))
