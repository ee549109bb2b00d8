"""Which addresses may be connected to: global unicast, and what the recipe opens."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path

_IPv4 = ipaddress.IPv4Network
_IPv6 = ipaddress.IPv6Network

# IANA IPv4 Special-Purpose Address Registry (RFC 6890), and one address that clouds serve to their own guests.
_BLOCKED_4 = {
    _IPv4("0.0.0.0/8"): "unspecified",
    _IPv4("10.0.0.0/8"): "private",
    _IPv4("100.64.0.0/10"): "shared (CGNAT)",
    _IPv4("127.0.0.0/8"): "loopback",
    _IPv4("168.63.129.16/32"): "cloud host agent",
    _IPv4("169.254.0.0/16"): "link-local",
    _IPv4("172.16.0.0/12"): "private",
    _IPv4("192.0.0.0/24"): "reserved",
    _IPv4("192.0.2.0/24"): "documentation",
    _IPv4("192.88.99.0/24"): "6to4 relay",
    _IPv4("192.168.0.0/16"): "private",
    _IPv4("198.18.0.0/15"): "benchmarking",
    _IPv4("198.51.100.0/24"): "documentation",
    _IPv4("203.0.113.0/24"): "documentation",
    _IPv4("224.0.0.0/4"): "multicast",
    _IPv4("240.0.0.0/4"): "reserved",
}
_GLOBAL_6 = _IPv6("2000::/3")
"""All global unicast there is (RFC 3587): what lies outside is refused, named or not."""
_BLOCKED_6 = {
    _IPv6("::/128"): "unspecified",
    _IPv6("::1/128"): "loopback",
    _IPv6("::ffff:0:0/96"): "IPv4-mapped",
    _IPv6("::ffff:0:0:0/96"): "IPv4-translated",
    _IPv6("64:ff9b::/96"): "NAT64",
    _IPv6("64:ff9b:1::/48"): "NAT64",
    _IPv6("100::/64"): "discard",
    _IPv6("2001::/32"): "Teredo",
    _IPv6("2001::/23"): "reserved",
    _IPv6("2001:db8::/32"): "documentation",
    _IPv6("2002::/16"): "6to4",
    _IPv6("3fff::/20"): "documentation",
    _IPv6("fc00::/7"): "private",
    _IPv6("fe80::/10"): "link-local",
    _IPv6("fec0::/10"): "site-local",
    _IPv6("ff00::/8"): "multicast",
}


class AddressPolicy:
    """Says why an address must not be connected to. `allow` opens ranges (CIDR) whatever they are."""

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self._allow = [ipaddress.ip_network(range_, strict=False) for range_ in allow]
        self._judged: dict[str, str | None] = {}

    def blocked(self, address: str) -> str | None:
        """Why `address` (an IP literal, with or without a scope) is refused, or None where it may be used."""
        try:
            return self._judged[address]
        except KeyError:
            pass
        if len(self._judged) >= 100_000:
            self._judged.clear()
        verdict = self._judged[address] = self._judge(address)
        return verdict

    def _judge(self, address: str) -> str | None:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return "not an address"
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.scope_id is not None:
            return "scoped"
        if any(parsed.version == range_.version and parsed in range_ for range_ in self._allow):
            return None
        if isinstance(parsed, ipaddress.IPv4Address):
            return next((why for range_, why in _BLOCKED_4.items() if parsed in range_), None)
        if why := next((why for range_, why in _BLOCKED_6.items() if parsed in range_), None):
            return why
        return None if parsed in _GLOBAL_6 else "reserved"


def read_hosts(path: Path) -> dict[str, list[str]]:
    """Name (lower-case) → addresses of a hosts(5) file. Raises OSError."""
    hosts: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        address, *names = line.split("#")[0].split() or [""]
        for name in names:
            hosts.setdefault(name.lower(), []).append(address)
    return hosts
