"""What the web's server says to a request: `answer` for what is a whole response, `misbehave` for what is not one."""

import asyncio
import gzip
import socket
import struct
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from jobs.demo.hosts import PLAIN, Host
from jobs.demo.kinds import KINDS
from jobs.demo.oddities import MADE, gzip_bomb, make

if TYPE_CHECKING:
    from jobs.demo.server import Connection, WebServer

_TYPES: Final = {
    "jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "avif": "image/avif", "gif": "image/gif",
    "svg": "image/svg+xml", "bmp": "image/bmp",
}  # fmt: skip
_OWNERS_WORDS: Final = {
    "noai": {"X-Robots-Tag": "noai, noimageai"},
    "noai-for-us": {"X-Robots-Tag": "otherbot: all, pairmill: NoAI"},
    "tdm-reserved": {"tdm-reservation": "1"},
    "no-training": {"Content-Usage": "train-ai=n"},
}
_STATUSES: Final = {"not-found": 404, "gone": 410, "error-500": 500}
_ONCE: Final = {"busy-then-ok": 429, "unavailable-then-ok": 503}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int = 0
    """Content-Length; 0: that of the body, −1: no such header."""
    closes: bool = False

    @property
    def phrase(self) -> str:
        return HTTPStatus(self.status).phrase


async def answer(web: "WebServer", host: Host, target: str, hits: int) -> Answer:
    """The response to a GET of `target`, asked for the `hits`th time."""
    kind, name, number = _read(target)
    if target == "/robots.txt":
        return _robots(host)
    if kind == "pictures":
        return _image(name, await web.picture(number % web.pictures))
    if kind in _STATUSES:
        return Answer(_STATUSES[kind], {"Content-Type": "text/html"}, b"<h1>no</h1>")
    if kind in _ONCE and hits == 1:
        return Answer(_ONCE[kind], {"Retry-After": "1"})
    if kind.startswith(("redirect", "six-hops")):
        return _redirect(web, host, target, kind, number)
    if kind == "html":
        return Answer(200, {"Content-Type": "text/html"}, b"<!doctype html><title>No picture</title><p>Sign in.")
    if kind == "empty":
        return Answer(200, {"Content-Type": "image/jpeg"})
    if kind == "declared-too-large":
        return Answer(200, {"Content-Type": "image/jpeg"}, b"\xff\xd8\xff", 5_000_000_000, closes=True)
    if kind == "many-headers":
        return Answer(200, {f"X-Filler-{line}": "x" for line in range(200)}, await web.picture(_jpeg(web, number)))
    if kind == "huge-header":
        return Answer(200, {"X-Filler": "x" * 100_000}, await web.picture(_jpeg(web, number)))
    if kind == "gzip-bomb":
        return Answer(200, {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}, gzip_bomb())
    if kind in MADE:
        return _image(name, make(kind, number))
    if kind not in KINDS:
        return Answer(404)
    body = await web.picture(_jpeg(web, number))
    if kind == "short-body":
        return Answer(200, {"Content-Type": "image/jpeg"}, body, len(body) + 5000, closes=True)
    if kind == "gzip-coded":
        return Answer(200, {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}, gzip.compress(body, 1))
    if kind == "chunked":
        halves = body[: len(body) // 2], body[len(body) // 2 :], b""
        framed = b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves)
        return Answer(200, {"Content-Type": "image/jpeg", "Transfer-Encoding": "chunked"}, framed, -1)
    if kind == "no-length":
        return Answer(200, {"Content-Type": "image/jpeg"}, body, -1, closes=True)
    if kind == "wrong-type":
        return Answer(200, {"Content-Type": "application/octet-stream"}, body)
    return _image(name, body, _OWNERS_WORDS.get(kind, {}))


def _read(target: str) -> tuple[str, str, int]:
    """(first folder, file name, number in it) of a target such as /pictures/0/00012.jpg."""
    parts = unquote(target.partition("?")[0]).strip("/").split("/")
    digits = parts[-1].partition(".")[0]
    return parts[0], parts[-1], int(digits) if digits.isdecimal() else 0


def _jpeg(web: "WebServer", number: int) -> int:
    """A picture that is a JPEG of at most 640 px."""
    return number % 7 * 28 % web.pictures


def _image(name: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    kind = _TYPES.get(name.rpartition(".")[2], "application/octet-stream")
    return Answer(200, {"Content-Type": kind, **(headers or {})}, body)


def _robots(host: Host) -> Answer:
    if host.role in ("robots-500", "robots-403"):
        return Answer(int(host.role[-3:]))
    if host.robots is None:
        return Answer(404)
    return Answer(200, {"Content-Type": "text/plain"}, host.robots.encode())


def _redirect(web: "WebServer", host: Host, target: str, kind: str, number: int) -> Answer:
    def url(other: Host, path: str) -> str:
        return f"{other.scheme}://{other.name}:{web.ports[other.scheme]}{path}"

    plain = [other for other in web.hosts if other.role == PLAIN]
    picture = f"/pictures/redirected/{_jpeg(web, number):05d}.jpg"
    there = url(plain[number * 7 % len(plain)], picture)
    match kind:
        case "redirect-loop":
            there = target
        case "six-hops":
            hop = int(target.partition("?hop=")[2] or 0) + 1
            there = f"{target.partition('?')[0]}?hop={hop}" if hop < 6 else picture
        case "redirect-to-private":
            there = f"http://127.0.0.1:{web.ports['http']}{picture}"
        case "redirect-to-file":
            there = "file:///etc/hostname"
        case "redirect-to-disallowed":
            there = url(next(other for other in web.hosts if other.role == "robots-all"), picture)
    return Answer(302 if number % 2 else 301, {"Location": there})


async def misbehave(connection: "Connection", target: str, hits: int) -> bool:
    """Do what is no response at all; False where the target asks for nothing of the kind."""
    web, transport = connection.web, connection.transport
    kind, _, number = _read(target)
    if target == "/robots.txt":
        kind = "stall" if connection.host.role == "robots-stall" else ""
    if kind == "reset-then-ok":
        kind = "reset-at-once" if hits == 1 else ""
    match kind:
        case "reset-at-once":
            _reset(transport)
        case "reset-in-body":
            body = await web.picture(_jpeg(web, number))
            transport.write(_head(len(body)) + body[: len(body) // 2])
            await asyncio.sleep(0.05)
            _reset(transport)
        case "stall":
            await asyncio.sleep(3600)
        case "trickle":
            transport.write(_head(100_000) + b"\xff\xd8\xff")
            await _every(0.5, transport, b"\xe0")
        case "endless-100":
            await _every(0.2, transport, b"HTTP/1.1 100 Continue\r\n\r\n")
        case "endless-body":
            transport.write(_head(None) + b"\xff\xd8\xff")
            await _every(0, transport, bytes(1 << 18))
        case _:
            return False
    return True


def _head(length: int | None) -> bytes:
    size = f"Content-Length: {length}\r\n" if length is not None else ""
    return f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n{size}Connection: close\r\n\r\n".encode()


async def _every(seconds: float, transport: asyncio.Transport, data: bytes) -> None:
    while not transport.is_closing():
        if transport.get_write_buffer_size() < 1 << 20:
            transport.write(data)
        await asyncio.sleep(seconds or 0.001)


def _reset(transport: asyncio.Transport) -> None:
    """End with RST instead of FIN."""
    plain = transport.get_extra_info("socket")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
