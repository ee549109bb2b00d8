"""The web's hosts: names, addresses in 127.64.0.0/10, and what is peculiar about some of them."""

from dataclasses import dataclass
from typing import Final

from jobs.demo.kinds import KINDS, TLS_KINDS

DOMAIN: Final = "pairmill.example"
PLAIN: Final = "plain"


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    address: str
    """Where the name points to; empty for a name that does not exist."""
    scheme: str
    role: str
    """PLAIN, or a kind whose place is `host`."""
    robots: str | None
    """Body of robots.txt; None answers 404, which allows everything (RFC 9309, 2.3.1.3)."""
    closes: bool
    """Answers with Connection: close."""

    @property
    def bound(self) -> bool:
        return self.role not in ("private-name", "no-name", "closed")


_SPECIAL_ROBOTS: Final = {
    "robots-all": "User-agent: *\nDisallow: /\n",
    "robots-us": "User-agent: *\nAllow: /\n\nUser-agent: pairmill\nDisallow: /\n",
    "robots-usage": "User-agent: *\nContent-Usage: train-ai=n\nAllow: /\n",
}
_PLAIN_ROBOTS: Final = (None, "User-agent: *\nAllow: /\n", "User-agent: *\nDisallow: /disallowed-path/\n")
"""By number of the host; a third of the hosts have something to hide."""
HIDES: Final = 2


def plain_count(rows: int) -> int:
    """300 at 8,000 rows; enough for every kind in a small web, and not more listeners than a process may have."""
    return min(2000, max(27, rows * 300 // 8000))


def make_hosts(rows: int) -> list[Host]:
    """The hosts of a web of that many rows, the same on every call."""
    hosts = []
    for number in range(plain_count(rows)):
        robots = _PLAIN_ROBOTS[number % 3]
        scheme = "https" if number % 5 < 2 else "http"
        hosts.append(Host(f"h{number:03d}.{DOMAIN}", _address(number), scheme, PLAIN, robots, closes=number % 4 == 0))
    for role in (name for name, kind in KINDS.items() if kind.place == "host"):
        for copy in range(1 if rows < 2000 or KINDS[role].rare else 2):
            address = {"private-name": "127.0.0.1", "no-name": ""}.get(role, _address(len(hosts)))
            scheme = "https" if role in TLS_KINDS else "http"
            robots = _SPECIAL_ROBOTS.get(role)
            hosts.append(Host(f"{role}-{copy}.{DOMAIN}", address, scheme, role, robots, closes=False))
    return hosts


def _address(number: int) -> str:
    """Distinct for the first 64 · 250 · 250 numbers, spread over 127.64.0.0/10."""
    return f"127.{64 + number % 64}.{number // 64 % 250}.{1 + number // 16_000}"


def hosts_file(hosts: list[Host]) -> str:
    """The text of a hosts(5) file."""
    return "".join(f"{host.address}\t{host.name}\n" for host in hosts if host.address)
