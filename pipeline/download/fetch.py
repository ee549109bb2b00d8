"""The guarded, polite fetch: robots.txt, redirects by hand, retries, consent; one Fetcher a worker."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin

from pipeline.download.addresses import AddressPolicy
from pipeline.download.body import LARGE_BYTES, ByteBudget, Loan
from pipeline.download.client import Client, Reply, token
from pipeline.download.consent import DEFAULTS, Signal, content_usage_verdict, header_signals
from pipeline.download.failure import Failure
from pipeline.download.hosts import Host, Hosts
from pipeline.download.resolver import Lookup, Resolver
from pipeline.download.robots import KEEP_S, MAX_BYTES, RobotsRules
from pipeline.ingest.normalise import Fetchable, Unfetchable, normalise_url
from schemas.recipe import Download

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
"""A server that asks for more patience than this gets no retry."""
ROBOTS_RETRY_S = 300.0
"""How long a robots.txt that could not be had is not asked for again."""


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


@dataclass(slots=True)
class _Robots:
    """A robots.txt asked for: its rules, or why it could not be had."""

    task: "asyncio.Task[RobotsRules | Failure]"
    expires: float = float("inf")
    keep: bool = True
    """Rules outlast the unit, failures do not."""


class _Hold:
    """What one fetch keeps from others: a place among the requests, and bytes of memory."""

    def __init__(self, places: asyncio.Semaphore, budget: ByteBudget) -> None:
        self._places = places
        self._held = False
        self.loan = Loan(budget)

    async def enter(self) -> None:
        await self._places.acquire()
        self._held = True

    def release(self) -> None:
        self.loan.settle()
        if self._held:
            self._held = False
            self._places.release()


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
        self._places = asyncio.Semaphore(concurrency)
        self._budget = ByteBudget(max(LARGE_BYTES, 2 * settings.max_bytes))
        switched: dict[str, bool] = DEFAULTS | dict(settings.consent.items())
        self._honoured = [name for name in DEFAULTS if switched[name] and name != "tdmrep"]
        self._in_headers = [name for name in self._honoured if name != "robots"]
        self._disallowed = frozenset(directive.lower() for directive in settings.disallowed_header_directives)
        self._token = token(settings).lower()
        self._spacing = 1 / settings.per_host.per_second if settings.per_host.per_second else 0.0

    async def __aenter__(self) -> "Fetcher":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.__aexit__(*exception)

    def forget(self, host: str) -> None:
        """A unit is done with `host` (lower-case, no port)."""
        self._hosts.forget(host.strip("[]"))

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[Fetched]:
        """Fetch one URL; whatever the web does is in the Fetched. The body's memory counts as used until the end of
        the `async with`."""
        hold = _Hold(self._places, self._budget)
        try:
            yield await self._fetch(url, hold)
        finally:
            hold.release()

    async def _fetch(self, url: str, hold: _Hold) -> Fetched:
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
                wait = BACKOFF_S * 2**number * random.uniform(0.5, 1.5)
                if failure.retry_after is not None:
                    wait = max(wait, failure.retry_after)
                if wait > MAX_BACKOFF_S:
                    break
                await asyncio.sleep(wait)
                if host.silent:  # by now: others have timed out meanwhile
                    break
        if started:
            fetched.fetch_ms = round((time.monotonic() - started[0]) * 1000)
        fetched.fetched_at = datetime.now(UTC)
        return fetched

    async def _try(self, first: Fetchable, fetched: Fetched, hold: _Hold, started: list[float]) -> None:
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
                if "robots" in self._honoured:
                    await self._ask_robots(url, host, fetched)
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
                following = _joined(url, location)
                if isinstance(following, Unfetchable):
                    raise Failure(following.reason, f"redirect to {location[:300]}: {following.detail}")
                if url.url.startswith("https:") and following.url.startswith("http:"):
                    downgrade = f"redirected from https to {following.url}"
                url = following
                continue
            if not 200 <= reply.status < 300:
                retry = reply.status == 429 or reply.status >= 500
                after = _retry_after(reply.headers.get("Retry-After")) if retry else None
                raise Failure("http_error", f"HTTP {reply.status}", retry=retry, retry_after=after)
            if reply.body is None:
                denied = next(signal for signal in fetched.signals if signal.verdict == "deny")
                raise Failure("opt_out", f"{denied.source}: {denied.value}")
            fetched.body, fetched.detail = reply.body, downgrade
            return
        raise Failure("too_many_redirects", f"more than {MAX_REDIRECTS}, the last to {url.url}")

    def _wanted(self, url: Fetchable, fetched: Fetched) -> Any:
        """Judges a response by its headers: how many bytes of its body are wanted."""

        def wanted(status: int, headers: Any) -> int:
            # Told also where the body fails.
            fetched.http_status, fetched.final_url = status, url.url
            fetched.content_type = _text(headers.get("Content-Type"))
            if not 200 <= status < 300:
                return 0
            signals = header_signals(headers.items(), self._in_headers, self._token, self._disallowed)
            fetched.signals.extend(signals)
            fetched.evaluated = list(self._honoured)
            if any(signal.verdict == "deny" for signal in fetched.signals):
                return 0
            return self._settings.max_bytes

        return wanted

    async def _exchange(
        self, url: Fetchable, host: Host, seconds: float | None, hold: _Hold, started: list[float], wanted: Any,
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
                    await hold.enter()
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
                        host.answered()
                    if failure.reached:
                        host.connected()
                    raise
                host.connected()
                host.answered()
                return reply, time.monotonic() - began
        finally:
            host.users -= 1

    async def _ask_robots(self, url: Fetchable, host: Host, fetched: Fetched) -> None:
        """Raises Failure where robots.txt disallows the URL, or could not be had."""
        origin = url.url[: url.url.index("/", 8)]
        entry = host.robots.get(origin)
        if entry is None or entry.expires < time.monotonic():
            entry = host.robots[origin] = _Robots(asyncio.create_task(self._fetch_robots(origin, host)))
        rules = await asyncio.shield(entry.task)
        if isinstance(rules, Failure):
            if entry.expires == float("inf"):
                entry.expires, entry.keep = time.monotonic() + ROBOTS_RETRY_S, False
            # The question was retried when it was asked.
            detail = rules.detail if rules.reason == "blocked_address" else f"robots.txt: {rules.detail}"
            raise Failure(rules.reason, detail, reached=rules.reached)
        if entry.expires == float("inf"):
            denied = rules.denied is not None
            entry.expires, entry.keep = time.monotonic() + (ROBOTS_RETRY_S if denied else KEEP_S), not denied
        allowed = rules.allowed(url.url)
        if "robots" not in fetched.evaluated:
            fetched.evaluated = ["robots"]
        if not allowed:
            fetched.signals.append(Signal("robots", rules.denied or "disallow", rules.source, "deny"))
            raise Failure("robots", rules.denied or f"disallowed by {rules.source}")
        if rules.found:
            fetched.signals.append(Signal("robots", "allow", rules.source, "allow"))
        if "content_usage" in self._honoured:
            for value in rules.content_usage(url.url):
                if verdict := content_usage_verdict(value):
                    fetched.signals.append(Signal("content_usage", value, rules.source, verdict))
            if any(signal.verdict == "deny" for signal in fetched.signals):
                fetched.evaluated = ["robots", "content_usage"]
                raise Failure("opt_out", f"{rules.source}: {fetched.signals[-1].value}")

    async def _fetch_robots(self, origin: str, host: Host) -> RobotsRules | Failure:
        """The rules of an origin, or why they could not be had: dns, connect, tls, timeout, a blocked address."""
        source = f"{origin}/robots.txt"
        for number in range(self._settings.retries + 1):
            hold = _Hold(self._places, self._budget)
            try:
                return await self._try_robots(source, host, hold)
            except Failure as failure:
                # A host that let robots.txt time out is asked once more, no oftener: its rows wait behind this.
                most = min(1, self._settings.retries) if failure.reason == "timeout" else self._settings.retries
                wait = max(BACKOFF_S * 2**number * random.uniform(0.5, 1.5), failure.retry_after or 0)
                if failure.retry and number < most and wait <= MAX_BACKOFF_S and not host.given_up():
                    pass
                elif failure.reason in ("http_error", "bad_headers", "truncated", "bad_url", "bad_scheme"):
                    # RFC 9309, 2.3.1.4: unreachable means that everything is disallowed.
                    return RobotsRules(source, denied=f"robots.txt: {failure.reason} {failure.detail}")
                else:
                    return failure
            finally:
                hold.release()
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns")

    async def _try_robots(self, source: str, host: Host, hold: _Hold) -> RobotsRules:
        url = normalise_url(source)
        seconds: float | None = None
        for _ in range(MAX_REDIRECTS + 1):
            if isinstance(url, Unfetchable):
                raise Failure(*url)
            reply, took = await self._exchange(
                url, host, seconds, hold, [], lambda status, _: MAX_BYTES if 200 <= status < 300 else 0, cut=True
            )
            hold.release()
            seconds = (self._settings.timeout if seconds is None else seconds) - took
            if 200 <= reply.status < 300:
                return RobotsRules(source, reply.body or b"", self._token)
            location = reply.headers.get("Location")
            if reply.status not in REDIRECTS or location is None:
                if reply.status == 429 or reply.status >= 500:
                    after = _retry_after(reply.headers.get("Retry-After"))
                    raise Failure("http_error", f"HTTP {reply.status}", retry=True, retry_after=after)
                return RobotsRules(source)
            url = _joined(url, location)
            if isinstance(url, Fetchable):
                host = self._hosts.get(url.host.strip("[]"))
        # RFC 9309, 2.3.1.2: more than five redirects may count as unavailable, which allows.
        return RobotsRules(source)


def _joined(url: Fetchable, location: str) -> Fetchable | Unfetchable:
    """The URL a redirect leads to, judged as a new one."""
    try:
        return normalise_url(urljoin(url.url, _text(location) or ""))
    except ValueError as error:
        return Unfetchable("bad_url", str(error))


def _text(header: str | None) -> str | None:
    """A header as text: stray bytes become U+FFFD."""
    return None if header is None else header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), a number or a date; None where it says nothing."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
