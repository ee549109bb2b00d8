"""What a robots.txt says to us (RFC 9309), Content-Usage lines included."""

from protego import Protego

from pipeline.download.paths import comparable, matches, path_of

MAX_BYTES = 500 * 1024
"""RFC 9309, 2.5: at least 500 KiB are parsed."""
KEEP_S = 24 * 3600.0
"""RFC 9309, 2.4."""
MAX_PREFERENCES = 10_000
"""Characters of a Content-Usage line that are read: it is read again for every URL."""


class RobotsRules:
    """The rules of one robots.txt for the crawler `token`; `denied` says why everything is disallowed."""

    def __init__(self, source: str, body: bytes = b"", token: str = "", denied: str | None = None) -> None:
        self.source = source
        self.denied = denied
        self.found = bool(body.strip())
        self._token = token
        text = body[:MAX_BYTES].decode("utf-8-sig", "replace") if self.found else ""
        self._parsed = Protego.parse(text) if self.found else None
        self._usage = _usage_lines(text, token) if "content-usage" in text.lower() else []

    def allowed(self, url: str) -> bool:
        """Whether `url`, of this robots.txt's origin, may be fetched."""
        if self.denied is not None:
            return False
        return self._parsed is None or bool(self._parsed.can_fetch(url, self._token))

    def content_usage(self, url: str) -> list[str]:
        """The preferences for `url`: of the lines whose path matches, those with the longest path."""
        if not self._usage:
            return []
        path = path_of(url)
        matching = [(len(comparable(pattern)), value) for pattern, value in self._usage if matches(pattern, path)]
        longest = max((length for length, _ in matching), default=0)
        return [value for length, value in matching if length == longest]


def _usage_lines(text: str, token: str) -> list[tuple[str, str]]:
    """(path pattern, preferences) of the groups for `token`, else of those for `*` (draft-ietf-aipref-attach-04).

    Lines before any group are read as meant for everybody, though a rule there has no effect by RFC 9309: when in
    doubt about consent, there is none.
    """
    everybody: list[tuple[str, str]] = []
    groups: dict[str, list[tuple[str, str]]] = {}
    agents: list[str] = []
    in_rules = True
    for line in text.splitlines():
        field, colon, value = line.partition("#")[0].partition(":")
        field, value = field.strip().lower(), value.strip()
        if not colon:
            continue
        if field == "user-agent":
            agents = [value.lower()] if in_rules else [*agents, value.lower()]
            in_rules = False
            # A group for us without a preference is still the group that counts.
            groups.setdefault(value.lower(), [])
        elif field != "sitemap":
            in_rules = True
        if field == "content-usage" and value:
            pattern, rest = (*value.split(None, 1), "")[:2] if value.startswith("/") else ("/", value)
            for lines in [groups[agent] for agent in agents] or [everybody]:
                lines.append((pattern, rest[:MAX_PREFERENCES]))
    return everybody + groups.get(token.lower(), groups.get("*", []))
