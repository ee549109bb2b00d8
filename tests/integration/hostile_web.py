"""A web that misbehaves, on loopback: raw sockets, one behaviour a path, and a count of everything that was asked."""

import asyncio
import gzip
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, urlsplit

PUBLIC = "127.64.0.1"
PRIVATE = "127.0.0.1"
Behaviour = Callable[[asyncio.StreamWriter, str], Awaitable[None]]


def answer(status: str = "200 OK", body: bytes = b"", **headers: str) -> bytes:
    """A whole response; header names are given with underscores."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


async def ok(writer: asyncio.StreamWriter, query: str) -> None:
    """The query's names and values come back as headers."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in parse_qsl(query, keep_blank_values=True))
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 5\r\n{lines}\r\nimage".encode())


async def slow(writer: asyncio.StreamWriter, query: str) -> None:
    await asyncio.sleep(0.1)
    writer.write(answer(body=b"image"))


async def silent(writer: asyncio.StreamWriter, query: str) -> None:
    await asyncio.sleep(30)


async def trickle(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


async def endless_continue(writer: asyncio.StreamWriter, query: str) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def endless_header(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    await trickle(writer, query)


async def endless_body(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        await writer.drain()


_BOMB = gzip.compress(bytes(1 << 28), 9)


async def bomb(writer: asyncio.StreamWriter, query: str) -> None:
    """About 256 KiB that inflate to 256 MiB."""
    writer.write(answer(body=_BOMB, Content_Encoding="gzip"))


async def zipped(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(answer(body=gzip.compress(b"image"), Content_Encoding="gzip"))


async def huge_length(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nimage")
    await asyncio.sleep(30)


async def short_body(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nimage")


async def many_headers(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(answer(body=b"image", **{f"X_{number}": "x" for number in range(200)}))


async def large_header(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(answer(body=b"image", X="x" * 100_000))


async def no_http(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def reset(writer: asyncio.StreamWriter, query: str) -> None:
    _reset(writer)


async def reset_in_body(writer: asyncio.StreamWriter, query: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nimage")
    await writer.drain()
    await asyncio.sleep(0.05)
    _reset(writer)


async def redirect(writer: asyncio.StreamWriter, query: str) -> None:
    """To the URL that the query is."""
    writer.write(answer("302 Found", Location=query))


async def hops(writer: asyncio.StreamWriter, query: str) -> None:
    """As many redirects as the query says, then an image."""
    left = int(query)
    writer.write(answer("301 Moved", Location=f"/hops?{left - 1}") if left else answer(body=b"image"))


async def status(writer: asyncio.StreamWriter, query: str) -> None:
    code, _, after = query.partition("&")
    writer.write(
        answer(f"{code} Status", b"" if code == "304" else b"page", **({"Retry_After": after} if after else {}))
    )


BEHAVIOURS: dict[str, Behaviour] = {
    f"/{behaviour.__name__}": behaviour
    for behaviour in (
        ok, slow, silent, trickle, endless_continue, endless_header, endless_body, bomb, zipped, huge_length,
        short_body, many_headers, large_header, no_http, reset, reset_in_body, redirect, hops, status,
    )
}  # fmt: skip


class HostileWeb:
    """Serves one address; path /<behaviour>/… misbehaves so. `robots` is the answer to /robots.txt as raw bytes, or
    a behaviour, and `tdmrep` the one to /.well-known/tdmrep.json. `first` are raw answers given before the behaviour,
    one a request, those two files aside; `greeting` is
    sent on connection. /once resets a connection on which it has served before."""

    def __init__(self, address: str = PUBLIC, tls: ssl.SSLContext | None = None) -> None:
        self.address = address
        self.robots: bytes | Behaviour = answer("404 Not Found")
        self.tdmrep: bytes | Behaviour = answer("404 Not Found")
        self.first: list[bytes] = []
        self.greeting = b""
        self.hits: Counter[str] = Counter()
        self.heads: list[str] = []
        self.starts: list[float] = []
        self.connections = 0
        self.peak = 0
        self._active = 0
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "HostileWeb":
        self._server = await asyncio.start_server(self._serve, self.address, 0, ssl=self._tls, backlog=512)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, path: str, host: str | None = None) -> str:
        return f"http{'s' if self._tls else ''}://{host or self.address}:{self.port}/{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            writer.write(self.greeting)
            served = 0
            while await self._one(reader, writer, served):
                served += 1
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, served: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        target = urlsplit(head.split(" ")[1])
        self.hits[target.path] += 1
        self.heads.append(head)
        self._active += 1
        self.peak = max(self.peak, self._active)
        try:
            if target.path in ("/robots.txt", "/.well-known/tdmrep.json"):
                file = self.robots if target.path == "/robots.txt" else self.tdmrep
                if callable(file):
                    await file(writer, "")
                    return False
                writer.write(file)
                return True
            self.starts.append(time.monotonic())
            if self.first:
                writer.write(self.first.pop(0))
                return True
            name = "/" + target.path.split("/")[1]
            if name == "/once":
                name = "/reset" if served else "/ok"
            await BEHAVIOURS[name](writer, target.query)
            await writer.drain()
            return name in ("/ok", "/slow", "/hops", "/redirect", "/status")
        finally:
            self._active -= 1
