"""The guarded, polite fetch: robots.txt, redirects by hand, retries, consent; one Fetcher a worker."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.download.addresses import AddressPolicy
from pipeline.download.body import LARGE_BYTES, ByteBudget, Hold
from pipeline.download.client import Client, Reply, token
from pipeline.download.consent import (
    IN_BYTES,
    IN_HEADERS,
    Signal,
    content_usage_verdict,
    header_signals,
    honoured,
    tdmrep_signal,
)
from pipeline.download.failure import Failure
from pipeline.download.hosts import Host, Hosts
from pipeline.download.origin_files import OriginFiles
from pipeline.download.places import FIRST, Places
from pipeline.download.resolver import Lookup, Resolver
from pipeline.download.responses import (
    MAX_BACKOFF_S,
    MAX_REDIRECTS,
    REDIRECTS,
    backoff,
    header_text,
    joined,
    retry_after,
)
from pipeline.ingest.normalise import Fetchable, Unfetchable, normalise_url
from schemas.recipe import Download


@dataclass(slots=True)
class Fetched:
    reason: str | None = None
    """None: got a body."""
    detail: str | None = None
    body: bytes | None = None
    http_status: int | None = None
    final_url: str | None = None
    content_type: str | None = None
    attempts: int = 0
    fetch_ms: int = 0
    """Wall milliseconds from the first request for the URL itself to the last byte, waits between tries included."""
    fetched_at: datetime | None = None
    signals: list[Signal] = field(default_factory=list)
    evaluated: list[str] = field(default_factory=list)
    """Names of the consent signals that were looked at."""

    def denied(self) -> Signal | None:
        """The first signal that forbids."""
        return next((signal for signal in self.signals if signal.verdict == "deny"), None)


class Fetcher:
    """Fetches for all units of a worker, on one event loop. Use as an async context manager.

    `policy` and `lookup` (host name → addresses) stand in for the real ones in tests. `concurrency` bounds the
    requests on the wire and the bodies in use together.
    """

    def __init__(
        self, settings: Download, policy: AddressPolicy | None = None, lookup: Lookup | None = None,
        concurrency: int = 256,
    ) -> None:  # fmt: skip
        self._settings = settings
        policy = policy or AddressPolicy(settings.allow_addresses)
        self._client = Client(settings, policy, Resolver(policy, settings.hosts_file, lookup, settings.retries))
        self._hosts = Hosts(settings)
        self._places = Places(concurrency)
        self._budget = ByteBudget(max(LARGE_BYTES, 2 * settings.max_bytes))
        self._honoured = honoured(settings.consent)
        self._in_headers = [name for name in self._honoured if name in IN_HEADERS]
        self._before_body = [name for name in self._honoured if name not in IN_BYTES]
        self._disallowed = frozenset(directive.lower() for directive in settings.disallowed_header_directives)
        self._token = token(settings).lower()
        self._origin_files = OriginFiles(settings, self._hosts, self._token, self._exchange, self._hold)
        self._spacing = 1 / settings.per_host.per_second if settings.per_host.per_second else 0.0

    def _hold(self, turn: int = FIRST) -> Hold:
        return Hold(self._places, self._budget, turn)

    async def __aenter__(self) -> "Fetcher":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.__aexit__(*exception)

    def forget(self, host: str) -> None:
        """A unit is done with `host` (lower-case, no port)."""
        self._hosts.forget(host.strip("[]"))

    @asynccontextmanager
    async def fetch(self, url: str, turn: int = FIRST) -> AsyncIterator[Fetched]:
        """Fetch one URL; whatever the web does is in the Fetched. The body's memory counts as used until the end of
        the `async with`. Where requests wait for places, those of a lower `turn` go first."""
        hold = self._hold(turn)
        try:
            yield await self._fetch(url, hold)
        finally:
            hold.release()

    async def _fetch(self, url: str, hold: Hold) -> Fetched:
        fetched = Fetched()
        first = normalise_url(url)
        if isinstance(first, Unfetchable):
            fetched.reason, fetched.detail = first
            return fetched
        started: list[float] = []
        host = self._hosts.get(first.host.strip("[]"))
        for number in range(self._settings.retries + 1):
            try:
                await self._try(first, fetched, hold, started)
                fetched.reason = None
                break
            except Failure as failure:
                hold.release()
                fetched.reason, fetched.detail = failure.reason, failure.detail
                if not failure.retry or number == self._settings.retries or host.silent or host.given_up():
                    break
                wait = backoff(number, failure.retry_after)
                if wait > MAX_BACKOFF_S:
                    break
                await asyncio.sleep(wait)
                if host.silent:  # by now: others have timed out meanwhile
                    break
        if started:
            fetched.fetch_ms = round((time.monotonic() - started[0]) * 1000)
        fetched.fetched_at = datetime.now(UTC)
        return fetched

    async def _try(self, first: Fetchable, fetched: Fetched, hold: Hold, started: list[float]) -> None:
        """One try: follow redirects to a body. Raises Failure."""
        url = first
        downgrade = None
        fetched.signals, fetched.evaluated = [], []
        seconds: float | None = None
        for hop in range(MAX_REDIRECTS + 1):
            host = self._hosts.get(url.host.strip("[]"))
            try:
                if given_up := host.given_up():
                    raise Failure(*given_up)
                await self._ask_origin(url, host, fetched)
                if hop == 0:
                    fetched.attempts += 1
                reply, took = await self._exchange(url, host, seconds, hold, started, self._wanted(url, fetched))
            except Failure as failure:
                if not failure.reached:
                    host.unreached()
                if failure.reason in ("host_down", "host_budget", "blocked_address") and hop == 0 and fetched.attempts:
                    fetched.attempts -= 1
                raise
            seconds = (self._settings.timeout if seconds is None else seconds) - took
            location = reply.headers.get("Location")
            if reply.status in REDIRECTS and location is not None:
                hold.release()
                following = joined(url, location)
                if isinstance(following, Unfetchable):
                    raise Failure(following.reason, f"redirect to {location[:300]}: {following.detail}")
                if url.url.startswith("https:") and following.url.startswith("http:"):
                    downgrade = f"redirected from https to {following.url}"
                url = following
                continue
            if not 200 <= reply.status < 300:
                retry = reply.status == 429 or reply.status >= 500
                after = retry_after(reply.headers.get("Retry-After")) if retry else None
                raise Failure("http_error", f"HTTP {reply.status}", retry=retry, retry_after=after)
            if reply.body is None:
                denied = fetched.denied()
                assert denied is not None
                raise Failure("opt_out", f"{denied.source}: {denied.value}")
            fetched.body, fetched.detail = reply.body, downgrade
            return
        raise Failure("too_many_redirects", f"more than {MAX_REDIRECTS}, the last to {url.url}")

    def _wanted(self, url: Fetchable, fetched: Fetched) -> Any:
        """Judges a response by its headers: how many bytes of its body are wanted."""

        def wanted(status: int, headers: Any) -> int:
            # Told also where the body fails.
            fetched.http_status, fetched.final_url = status, url.url
            fetched.content_type = header_text(headers.get("Content-Type"))
            if not 200 <= status < 300:
                return 0
            signals = header_signals(headers.items(), self._in_headers, self._token, self._disallowed)
            fetched.signals.extend(signals)
            self._evaluate(fetched, *self._before_body)
            if fetched.denied():
                return 0
            return self._settings.max_bytes

        return wanted

    async def _exchange(
        self, url: Fetchable, host: Host, seconds: float | None, hold: Hold, started: list[float], wanted: Any,
        cut: bool = False,
    ) -> tuple[Reply, float]:  # fmt: skip
        """One request within the host's limits; the reply and the seconds it took. Raises Failure."""
        host.users += 1
        try:
            async with host.connections:
                async with host.starting:
                    if self._spacing and (wait := host.next_start - time.monotonic()) > 0:
                        await asyncio.sleep(wait)
                    if given_up := host.given_up():
                        raise Failure(*given_up)
                    await hold.enter(host)
                    began = time.monotonic()
                    host.next_start = began + self._spacing
                if not started:
                    started.append(began)
                limit = host.deadline() if seconds is None else max(seconds, 0.001)
                try:
                    reply = await self._client.get(url.url, url.host.strip("[]"), limit, hold.loan, wanted, cut)
                except Failure as failure:
                    if failure.reason == "timeout":
                        host.timed_out(began, time.monotonic())
                    elif failure.reached and failure.reason != "blocked_address":
                        host.answered(image=not cut)
                    if failure.reached:
                        host.connected()
                    raise
                host.connected()
                host.answered(image=not cut)
                return reply, time.monotonic() - began
        finally:
            host.users -= 1

    async def _ask_origin(self, url: Fetchable, host: Host, fetched: Fetched) -> None:
        """Raises Failure where the origin's own files forbid the URL, or could not be had."""
        if "robots" in self._honoured:
            rules = await self._origin_files.robots(url, host)
            self._evaluate(fetched, "robots")
            if not rules.allowed(url.url):
                fetched.signals.append(Signal("robots", rules.denied or "disallow", rules.source, "deny"))
                raise Failure("robots", rules.denied or f"disallowed by {rules.source}")
            if rules.found:
                fetched.signals.append(Signal("robots", "allow", rules.source, "allow"))
            if "content_usage" in self._honoured:
                for value in rules.content_usage(url.url):
                    if verdict := content_usage_verdict(value):
                        fetched.signals.append(Signal("content_usage", value[:1000], rules.source, verdict))
                self._refuse_denied(fetched, "content_usage")
        if "tdmrep" in self._honoured:
            if signal := tdmrep_signal(await self._origin_files.tdmrep(url, host), url.url):
                fetched.signals.append(signal)
            self._refuse_denied(fetched, "tdmrep")

    def _evaluate(self, fetched: Fetched, *names: str) -> None:
        fetched.evaluated = [name for name in self._honoured if name in fetched.evaluated or name in names]

    def _refuse_denied(self, fetched: Fetched, evaluated: str) -> None:
        if denied := fetched.denied():
            self._evaluate(fetched, evaluated)
            raise Failure("opt_out", f"{denied.source}: {denied.value}")
