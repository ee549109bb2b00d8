"""One request on the wire: aiohttp, told to connect to checked addresses only, its errors as reasons."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import aiohttp
from aiohttp import ClientRequest, ClientTimeout, TCPConnector
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

from pipeline.download.addresses import AddressPolicy
from pipeline.download.body import Loan, read_body
from pipeline.download.failure import Failure
from pipeline.download.resolver import Resolver
from schemas.recipe import Download

VERSION = "0.1"
MAX_LINE = 16 * 1024
"""Bytes of a header line; 100 of them are the most a response may have."""
MAX_HEADERS = 100
KEEP_ALIVE_S = 5.0


@dataclass(slots=True)
class Progress:
    """How far the current request came, for who judges its failure."""

    connected: bool = False


_progress: ContextVar[Progress] = ContextVar("progress")


class _GuardedConnector(TCPConnector):
    """Checks the peer's address when a socket is made and again when it is connected, before anything is sent."""

    def __init__(self, policy: AddressPolicy, resolver: Resolver, tls: ssl.SSLContext) -> None:
        super().__init__(
            resolver=resolver, use_dns_cache=False, ssl=tls, limit=0, keepalive_timeout=KEEP_ALIVE_S,
            socket_factory=self._socket,
        )  # fmt: skip
        self._policy = policy
        self._used: WeakSet[asyncio.BaseTransport] = WeakSet()

    def _socket(self, info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        self._check(address[0])
        return socket.socket(family, kind, protocol)

    def _check(self, address: str) -> None:
        if why := self._policy.blocked(address):
            raise Failure("blocked_address", f"{address}: {why}")

    async def connect(self, req: ClientRequest, traces: Any, timeout: ClientTimeout) -> Connection:  # noqa: ASYNC109
        connection = await super().connect(req, traces, timeout)
        progress = _progress.get()
        progress.connected = True
        transport = connection.transport
        if transport is not None and transport not in self._used:
            self._used.add(transport)
            try:
                self._check(transport.get_extra_info("peername")[0])
            except Failure:
                connection.close()
                raise
        return connection


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes | None
    """None where the headers were enough."""


class Client:
    """One session for all hosts. Use as an async context manager, on one event loop."""

    def __init__(self, settings: Download, policy: AddressPolicy, resolver: Resolver) -> None:
        self._settings = settings
        self._policy = policy
        self._resolver = resolver

    async def __aenter__(self) -> "Client":
        tls = ssl.create_default_context()
        if self._settings.ca_file:
            tls.load_verify_locations(self._settings.ca_file)
        self._session = aiohttp.ClientSession(
            connector=_GuardedConnector(self._policy, self._resolver, tls),
            timeout=ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
            headers={
                "User-Agent": user_agent(self._settings),
                "Accept": "image/avif,image/webp,image/png,image/jpeg,image/*;q=0.9,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
        )
        # Otherwise aiohttp sends every GET again whose connection is reset: tries are counted here, not there.
        self._session._retry_connection = False
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._resolver.close()

    async def get(
        self, url: str, host: str, seconds: float, loan: Loan, wanted: Callable[[int, Any], int], cut: bool = False
    ) -> Reply:
        """GET `url` (normalised) within `seconds`. `wanted` says from status and headers how many bytes of body are
        wanted at most; 0 leaves it unread. Raises Failure."""
        progress = Progress()
        _progress.set(progress)
        try:
            async with asyncio.timeout(seconds) as scope:
                await self._resolver.addresses(host)
                async with self._session.get(URL(url, encoded=True), allow_redirects=False) as response:
                    limit = wanted(response.status, response.headers)
                    body = None
                    if limit:
                        body = await read_body(response, limit, self._settings.min_rate, loan, scope, cut)
                        if cut:
                            response.close()
                    return Reply(response.status, response.headers, body)
        except TimeoutError:
            doing = "waiting for the answer" if progress.connected else "connecting"
            failure = Failure("timeout", f"{seconds:.3g} s were over {doing}", retry=True, reached=progress.connected)
            raise failure from None
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            raise _failure(error, progress) from error
        except ValueError as error:
            raise Failure("bad_url", f"{type(error).__name__}: {error}") from error


def _failure(error: Exception, progress: Progress) -> Failure:
    text = f"{type(error).__name__}: {error}"
    match error:
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return Failure("tls", text)
        case aiohttp.ClientPayloadError():
            # aiohttp tells a reset from a short body in the message alone.
            if "ConnectionResetError" in str(error):
                return Failure("connect", text, retry=True)
            return Failure("truncated", text)
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return Failure("bad_headers", text)
        case aiohttp.InvalidURL():
            return Failure("bad_url", text)
        case aiohttp.ServerDisconnectedError():
            return Failure("connect", text, retry=True)
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return Failure("internal", text, retry=True)
        case OSError():
            if isinstance(error.__cause__, ssl.SSLError):
                return Failure("tls", text)
            reset = isinstance(error, ConnectionResetError | BrokenPipeError) or progress.connected
            return Failure("connect", text, retry=reset, reached=progress.connected)
    return Failure("connect", text, retry=progress.connected, reached=progress.connected)


def user_agent(settings: Download) -> str:
    """Honest, with the token that robots.txt may name and the contact, if set."""
    contact = f"; +{settings.contact}" if settings.contact else ""
    return f"Mozilla/5.0 (compatible; {token(settings)}/{VERSION}{contact})"


def token(settings: Download) -> str:
    return settings.user_agent_token or "pairmill"
