"""What `/.well-known/tdmrep.json` says of a URL (TDM Reservation Protocol, W3C community group, 10 May 2024)."""

import json
from dataclasses import dataclass
from typing import Any

from pipeline.download.paths import matches, path_of

WELL_KNOWN = "/.well-known/tdmrep.json"


@dataclass(frozen=True, slots=True)
class Rule:
    location: str
    reserved: bool | None
    """None: neither 1 nor 0, which the report calls a protocol error and reads as unset."""
    policy: str | None


class TdmRules:
    """The rules of one origin's tdmrep.json, in their order; without a body, none."""

    def __init__(self, source: str, body: bytes = b"") -> None:
        self.source = source
        self._rules = _rules(body)

    def rule(self, url: str) -> Rule | None:
        """The first rule that matches, which the report calls the most specific; None: nothing is said of `url`.

        A response's own `tdm-reservation: 0` would supersede the rule; as the file is asked first, a URL that it
        reserves is not requested, and so is never freed that way: the stricter of two readings.
        """
        path = path_of(url)
        return next((rule for rule in self._rules if matches(rule.location, path)), None)


def claims_rules(body: bytes) -> bool:
    """Whether a body sets out to be a list of rules, as a page that answers every path does not."""
    return body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{")


def _rules(body: bytes) -> list[Rule]:
    """The report on a file that is no JSON array of rules: the server does not implement the protocol. One rule that
    lost its brackets is read as meant: when in doubt about consent, there is none."""
    if not claims_rules(body):
        return []
    try:
        parsed = json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return []
    entries = [parsed] if isinstance(parsed, dict) else parsed
    return [_rule(entry) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("location"), str)]


def _rule(entry: dict[str, Any]) -> Rule:
    value = entry.get("tdm-reservation")
    said = value.strip() if isinstance(value, str) else str(value) if type(value) is int else None
    policy = entry.get("tdm-policy")
    reserved = {"1": True, "0": False}.get(said) if said is not None else None
    return Rule(entry["location"], reserved, policy if isinstance(policy, str) else None)
