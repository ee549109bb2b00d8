"""What one worker knows of each host: its slots, its pace, and how it has been answering."""

import asyncio
from collections import OrderedDict
from typing import Any

from schemas.recipe import Download

DOWN_AFTER = 20
"""Connection failures in a row after which a host is down (design.md, "Statuses")."""
SILENT_AFTER = 4
"""Timeouts in a row after which a host gets no retries and shorter deadlines."""
SILENT_DEADLINE_S = 1.0
"""10 s, then 1 s: a stalled host's 18 rows over 4 connections hold a unit for 14 s, and each URL is asked for."""
MAX_IDLE = 20_000
"""Hosts remembered though nobody is fetching from them."""


class Host:
    """Connections and starts are limited exactly; both count robots.txt, tdmrep.json and redirects to this host too."""

    def __init__(self, name: str, settings: Download) -> None:
        self.name = name
        self.connections = asyncio.Semaphore(settings.per_host.connections)
        self.starting = asyncio.Lock()
        """Held by the one request that waits for its start, so that starts are spaced and none is lost."""
        self.next_start = 0.0
        self.users = 0
        self.files: dict[str, Any] = {}
        """URL of a robots.txt or tdmrep.json → what is known of it (origin_files.Asked)."""
        self._settings = settings
        self._round = max(SILENT_AFTER, settings.per_host.connections)
        self.fresh()

    def fresh(self) -> None:
        """Start counting failures anew, as for a new unit."""
        self.answers = False
        """Whether the last request for an image was answered: robots.txt often is where images stall."""
        self._unreached = 0
        self._timeouts = 0
        self._stalled = 0.0
        self._stalled_until = 0.0

    def connected(self) -> None:
        self._unreached = 0

    def unreached(self) -> None:
        self._unreached += 1

    def answered(self, image: bool) -> None:
        """A whole answer came, whatever it said; `image`: to a request for one."""
        self.answers = self.answers or image
        self._timeouts = 0

    def timed_out(self, began: float, ended: float) -> None:
        """Count a timeout; stalls at the same time count their wall seconds once."""
        self.answers = False
        self._timeouts += 1
        self._stalled += ended - max(began, min(self._stalled_until, ended))
        self._stalled_until = ended

    @property
    def silent(self) -> bool:
        return self._timeouts >= SILENT_AFTER

    def deadline(self) -> float:
        """Seconds for one try: fewer once every connection has timed out and nothing has been answered since."""
        timeout = self._settings.timeout
        return timeout if self._timeouts < self._round else min(SILENT_DEADLINE_S, timeout)

    def given_up(self) -> tuple[str, str] | None:
        """(reason, detail) where no further request should go to the host."""
        if self._unreached >= DOWN_AFTER:
            return "host_down", f"{self._unreached} connection failures in a row"
        if self._stalled > self._settings.host_budget:
            return "host_budget", f"{self._stalled:.0f} s of stalls"
        return None


class Hosts:
    """Hosts by name; idle ones are dropped, the longest unused first."""

    def __init__(self, settings: Download) -> None:
        self._settings = settings
        self._hosts: OrderedDict[str, Host] = OrderedDict()

    def get(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(name, self._settings)
            if len(self._hosts) > MAX_IDLE:
                oldest = next(iter(self._hosts.values()))
                if oldest.users == 0:
                    del self._hosts[oldest.name]
                else:
                    self._hosts.move_to_end(oldest.name)
        else:
            self._hosts.move_to_end(name)
        return host

    def forget(self, name: str) -> None:
        """A unit is done with the host: its failures count no longer. Its pace and its files stay, for other units
        of its lane and for redirects, until it is the longest unused."""
        host = self._hosts.get(name)
        if host is not None:
            host.fresh()
            host.files = {source: entry for source, entry in host.files.items() if entry.keep}
