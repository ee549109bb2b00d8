"""Names to checked addresses: hosts file, then the system's resolver; each name asked once."""

import asyncio
import random
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.download.addresses import AddressPolicy, read_hosts
from pipeline.download.failure import Failure

Lookup = Callable[[str], Awaitable[list[str]]]
"""All addresses (A and AAAA) of a host name; raises socket.gaierror."""

POSITIVE_S = 3600.0
NEGATIVE_S = 300.0
TEMPORARY_S = 30.0
MAX_NAMES = 100_000
LOOKUP_THREADS = 64
"""getaddrinfo blocks its thread for as long as a name server is silent."""


class _Answer(NamedTuple):
    addresses: tuple[str, ...]
    failure: Failure | None
    expires: float


class Resolver(AbstractResolver):
    """Gives out only addresses that passed the policy; one blocked address refuses the name.

    aiohttp connects to what `resolve` returns, so the address checked is the address connected to.
    """

    def __init__(
        self, policy: AddressPolicy, hosts_file: str | None = None, lookup: Lookup | None = None, retries: int = 2
    ) -> None:
        self._policy = policy
        self._hosts = read_hosts(Path(hosts_file)) if hosts_file else {}
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="dns")
        self._lookup = lookup or self._getaddrinfo
        self._retries = retries
        self._known: OrderedDict[str, _Answer] = OrderedDict()
        self._asking: dict[str, asyncio.Task[_Answer]] = {}

    async def addresses(self, host: str) -> tuple[str, ...]:
        """The host's addresses, all checked. Raises Failure: `dns`, or `blocked_address`."""
        answer = self._known.get(host)
        if answer is None or answer.expires < asyncio.get_running_loop().time():
            task = self._asking.get(host)
            if task is None:
                task = self._asking[host] = asyncio.create_task(self._ask(host))
            # One caller's deadline must not end the question for the others.
            answer = await asyncio.shield(task)
        if answer.failure is not None:
            failure = answer.failure
            raise Failure(failure.reason, failure.detail, reached=failure.reached)
        return answer.addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """aiohttp's interface."""
        flags = socket.AI_NUMERICHOST
        return [
            ResolveResult(hostname=host, host=address, port=port, proto=0, flags=flags, family=_family(address))
            for address in await self.addresses(host)
        ]

    async def close(self) -> None:
        for task in self._asking.values():
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, host: str) -> _Answer:
        try:
            answer = await self._answer(host)
            self._known[host] = answer
            if len(self._known) > MAX_NAMES:
                self._known.popitem(last=False)
            return answer
        finally:
            del self._asking[host]

    async def _answer(self, host: str) -> _Answer:
        clock = asyncio.get_running_loop().time
        literal = host.strip("[]")
        if ":" in literal or literal.replace(".", "").isdigit():
            found = [literal]
        elif host.rstrip(".") in self._hosts:
            found = self._hosts[host.rstrip(".")]
        else:
            for attempt in range(self._retries + 1):
                try:
                    found = await self._lookup(host)
                    break
                except (OSError, UnicodeError) as error:
                    detail = f"{host}: {getattr(error, 'strerror', None) or error}"
                    temporary = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
                    if not temporary or attempt == self._retries:
                        keep = TEMPORARY_S if temporary else NEGATIVE_S
                        return _Answer((), Failure("dns", detail, reached=False), clock() + keep)
                await asyncio.sleep(random.uniform(0.1, 0.3) * 2**attempt)
        addresses = tuple(dict.fromkeys(found))
        if not addresses:
            return _Answer((), Failure("dns", f"{host}: no address", reached=False), clock() + NEGATIVE_S)
        for address in addresses:
            if why := self._policy.blocked(address):
                failure = Failure("blocked_address", f"{host} is {address}: {why}")
                return _Answer((), failure, clock() + POSITIVE_S)
        return _Answer(addresses, None, clock() + POSITIVE_S)

    async def _getaddrinfo(self, host: str) -> list[str]:
        found = await asyncio.get_running_loop().run_in_executor(self._threads, _system_lookup, host)
        return [str(entry[4][0]) for entry in found]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _system_lookup(host: str) -> list[tuple[int, int, int, str, tuple[str | int, ...]]]:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)  # type: ignore[return-value]
