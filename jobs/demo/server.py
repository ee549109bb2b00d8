"""The web's server: HTTP/1.1 for hundreds of addresses in one event loop, and all the ways a server can misbehave.

Run as `python -m jobs.demo.server FOLDER ROWS SEED HTTP_PORT HTTPS_PORT CACHE`: prints one line of JSON with its
ports once it listens, then answers each line `stats` on standard input with one line of JSON, and ends at end of file.
"""

import asyncio
import json
import os
import resource
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.demo.answers import Answer, answer, misbehave
from jobs.demo.certificates import contexts
from jobs.demo.hosts import Host, make_hosts
from jobs.demo.pictures import compose, picture_count, picture_name

MAX_HEAD = 64 * 1024


class WebServer:
    """All of the web. `hits` counts requests by URL, `peak` the most connections at a time by host's name."""

    def __init__(self, rows: int, seed: int, cache: Path) -> None:
        self.hosts = make_hosts(rows)
        self.seed = seed
        self.pictures = picture_count(rows)
        self.hits: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self.canary = 0
        self.ports = {"http": 0, "https": 0}
        self._cache = cache
        self._servers: list[asyncio.Server] = []
        self._threads = ThreadPoolExecutor(2, "compose")
        self._composing: dict[int, asyncio.Future[bytes]] = {}

    async def start(self, http_port: int, https_port: int, folder: Path) -> None:
        """Listen everywhere; port 0 takes a free one. Writes the CA into `folder`. Raises OSError."""
        self._cache.mkdir(parents=True, exist_ok=True)
        tls = contexts(folder / "ca.pem")
        self.ports = {"http": http_port, "https": https_port}
        loop = asyncio.get_running_loop()
        for host in filter(lambda host: host.bound, self.hosts):
            context = tls[host.role if host.role in tls else "plain"] if host.scheme == "https" else None
            server = await loop.create_server(
                lambda host=host: Connection(self, host),
                host.address, self.ports[host.scheme], ssl=context, backlog=512,
            )  # fmt: skip
            self.ports[host.scheme] = server.sockets[0].getsockname()[1]
            self._servers.append(server)
        for address in ("127.0.0.1", "::1"):
            try:
                server = await loop.create_server(lambda: Canary(self), address, self.ports["http"])
            except OSError:
                if address == "127.0.0.1":
                    raise
            else:
                self._servers.append(server)

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def picture(self, number: int) -> bytes:
        """A picture's bytes, from the cache, else composed now and kept there."""
        path = self._cache / picture_name(number)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            pass
        if number not in self._composing:
            loop = asyncio.get_running_loop()
            self._composing[number] = loop.run_in_executor(self._threads, self._compose, number, path)
        try:
            return await asyncio.shield(self._composing[number])
        finally:
            self._composing.pop(number, None)

    def _compose(self, number: int, path: Path) -> bytes:
        data = compose(self.seed, number)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(data)
        draft.rename(path)
        return data

    async def compose_ahead(self) -> None:
        """Compose what the cache lacks, one at a time, passing over those whose turn comes while clients wait."""
        for number in range(self.pictures):
            if not self._composing:
                await self.picture(number)

    def stats(self) -> dict[str, object]:
        return {"hits": self.hits, "peak": self.peak, "canary": self.canary}


class Canary(asyncio.Protocol):
    """Listens where no connection may come from."""

    def __init__(self, web: WebServer) -> None:
        self._web = web

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._web.canary += 1
        transport.close()


class Connection(asyncio.Protocol):
    """One client; requests are answered one after another."""

    transport: asyncio.Transport

    def __init__(self, web: WebServer, host: Host) -> None:
        self.web = web
        self.host = host
        self._received = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.web.open[self.host.name] += 1
        self.web.peak[self.host.name] = max(self.web.peak.get(self.host.name, 0), self.web.open[self.host.name])

    def connection_lost(self, error: Exception | None) -> None:
        self.web.open[self.host.name] -= 1
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > MAX_HEAD:
            self.transport.abort()
        elif self._task is None and b"\r\n\r\n" in self._received:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            target, closes = self._parse(head)
            url = f"{self.host.scheme}://{self.host.name}:{self.web.ports[self.host.scheme]}{target}"
            self.web.hits[url] += 1
            if await misbehave(self, target, self.web.hits[url]):
                return
            reply = await answer(self.web, self.host, target, self.web.hits[url])
            if self.transport.is_closing():
                return
            self._send(reply, closes or self.host.closes)
            if self.transport.is_closing():
                return
        self._task = None

    def _parse(self, head: bytes) -> tuple[str, bool]:
        """(request target, whether the client wants the connection closed)."""
        line, _, headers = head.partition(b"\r\n")
        target = line.split(b" ")[1].decode("latin-1") if line.count(b" ") == 2 else "/"
        return target, b"connection: close" in headers.lower()

    def _send(self, reply: Answer, closes: bool) -> None:
        closes = closes or reply.closes
        headers = dict(reply.headers)
        if reply.length >= 0:
            headers.setdefault("Content-Length", str(reply.length or len(reply.body)))
        if closes:
            headers["Connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {reply.status} {reply.phrase}\r\nServer: pairmill-demo\r\n{lines}\r\n"
        self.transport.write(head.encode("latin-1") + reply.body)
        if closes:
            self.transport.close()


async def _main(folder: Path, rows: int, seed: int, http_port: int, https_port: int, cache: Path) -> None:
    web = WebServer(rows, seed, cache)
    try:
        await web.start(http_port, https_port, folder)
    except OSError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    print(json.dumps(web.ports), flush=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    ahead = None
    while line := await reader.readline():
        if line == b"compose\n" and ahead is None:
            ahead = loop.create_task(web.compose_ahead())
        elif line == b"stats\n":
            print(json.dumps(web.stats()), flush=True)
    if ahead is not None:
        ahead.cancel()
    await web.stop()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def main(argv: list[str]) -> None:
    """Serve until standard input ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 20_000 if hard == resource.RLIM_INFINITY else min(hard, 20_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    folder, rows, seed, http_port, https_port, cache = argv
    asyncio.run(_main(Path(folder), int(rows), int(seed), int(http_port), int(https_port), Path(cache)))


if __name__ == "__main__":
    main(sys.argv[1:])
