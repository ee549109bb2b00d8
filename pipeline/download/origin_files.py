"""The files by which an origin speaks to crawlers, robots.txt and tdmrep.json: each asked for once and kept a day.

Both go through the same guarded, polite exchange as images do: addresses checked, the host's connections and pace, at
most five redirects, one deadline, and MAX_BYTES read.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pipeline.download.body import Hold
from pipeline.download.client import Reply
from pipeline.download.failure import Failure
from pipeline.download.hosts import Host, Hosts
from pipeline.download.responses import MAX_BACKOFF_S, MAX_REDIRECTS, REDIRECTS, backoff, joined, retry_after
from pipeline.download.robots import KEEP_S, MAX_BYTES, RobotsRules
from pipeline.download.tdmrep import WELL_KNOWN, TdmRules, claims_rules
from pipeline.ingest.normalise import Fetchable, Unfetchable, normalise_url
from schemas.recipe import Download

RETRY_S = 300.0
"""How long a file that could not be had is not asked for again."""

Rules = RobotsRules | TdmRules
Reading = Callable[[str, "bytes | Failure"], "Rules | Failure"]
"""(the file's URL, its body or why there is none) → what that means."""


@dataclass(slots=True)
class Asked:
    """A file asked for: its rules, or why it could not be had."""

    task: "asyncio.Task[Rules | Failure]"
    expires: float = float("inf")
    keep: bool = True
    """Rules outlast the unit, failures do not."""


class OriginFiles:
    def __init__(
        self, settings: Download, hosts: Hosts, token: str, exchange: Callable[..., Awaitable[tuple[Reply, float]]],
        hold: Callable[[], Hold],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._hosts = hosts
        self._token = token
        self._exchange = exchange
        self._hold = hold

    async def robots(self, url: Fetchable, host: Host) -> RobotsRules:
        """The origin's robots.txt. Raises Failure where it could not be had: dns, connect, tls, timeout, a blocked
        address."""
        rules = await self._rules(url, host, "/robots.txt", self._read_robots)
        assert isinstance(rules, RobotsRules)
        return rules

    async def tdmrep(self, url: Fetchable, host: Host) -> TdmRules:
        """The origin's tdmrep.json. Raises Failure where nobody can say whether there is one: as for robots.txt, and
        where the server answers 429 or 5xx, breaks off or sends too much."""
        rules = await self._rules(url, host, WELL_KNOWN, _read_tdmrep)
        assert isinstance(rules, TdmRules)
        return rules

    async def _rules(self, url: Fetchable, host: Host, path: str, read: Reading) -> Rules:
        source = url.url[: url.url.index("/", 8)] + path
        entry = host.files.get(source)
        if entry is None or entry.expires < time.monotonic():
            entry = host.files[source] = Asked(asyncio.create_task(self._ask(source, host, read)))
        rules: Rules | Failure = await asyncio.shield(entry.task)
        if entry.expires == float("inf"):
            # A robots.txt that answers with an error disallows for now, not for a day.
            entry.keep = isinstance(rules, TdmRules) or (isinstance(rules, RobotsRules) and rules.denied is None)
            entry.expires = time.monotonic() + (KEEP_S if entry.keep else RETRY_S)
        if isinstance(rules, Failure):
            # The question was retried when it was asked.
            name = path.rpartition("/")[2]
            detail = rules.detail if rules.reason == "blocked_address" else f"{name}: {rules.detail}"
            raise Failure(rules.reason, detail, reached=rules.reached)
        return rules

    async def _ask(self, source: str, host: Host, read: Reading) -> Rules | Failure:
        for number in range(self._settings.retries + 1):
            hold = self._hold()
            try:
                return read(source, await self._try(source, host, hold))
            except Failure as failure:
                # A host that let the file time out is asked once more, no oftener: its rows wait behind this.
                most = min(1, self._settings.retries) if failure.reason == "timeout" else self._settings.retries
                wait = backoff(number, failure.retry_after)
                if not failure.retry or number >= most or wait > MAX_BACKOFF_S or host.given_up():
                    return read(source, failure)
            finally:
                hold.release()
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns")

    async def _try(self, source: str, host: Host, hold: Hold) -> bytes:
        """The file's body; empty where there is no such file. Raises Failure."""
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
                return reply.body or b""
            location = reply.headers.get("Location")
            if reply.status not in REDIRECTS or location is None:
                if reply.status == 429 or reply.status >= 500:
                    after = retry_after(reply.headers.get("Retry-After"))
                    raise Failure("http_error", f"HTTP {reply.status}", retry=True, retry_after=after)
                return b""
            url = joined(url, location)
            if isinstance(url, Fetchable):
                host = self._hosts.get(url.host.strip("[]"))
        # RFC 9309, 2.3.1.2: more than five redirects may count as unavailable, which allows.
        return b""

    def _read_robots(self, source: str, answer: bytes | Failure) -> RobotsRules | Failure:
        if isinstance(answer, bytes):
            return RobotsRules(source, answer, self._token)
        if answer.reason in ("http_error", "bad_headers", "truncated", "bad_url", "bad_scheme"):
            # RFC 9309, 2.3.1.4: unreachable means that everything is disallowed.
            return RobotsRules(source, denied=f"robots.txt: {answer.reason} {answer.detail}")
        return answer


def _read_tdmrep(source: str, answer: bytes | Failure) -> TdmRules | Failure:
    """TDMRep has no rule for servers in trouble. 503 is no reservation, so the rows are not `opt_out`; nor is it the
    absence of one, so they are not fetched: they end as `failed`, and a retry asks again."""
    if isinstance(answer, Failure):
        # A redirect to nowhere leads to no representation: "the server does not implement this protocol".
        return TdmRules(source) if answer.reason in ("bad_url", "bad_scheme") else answer
    if len(answer) >= MAX_BYTES and claims_rules(answer):
        return Failure("too_large", f"{MAX_BYTES} bytes and more")
    return TdmRules(source, answer)
