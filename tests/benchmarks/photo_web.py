"""A web of photos on loopback, cheap enough to share two cores with the downloader it is measuring.

One process, one epoll loop, bodies ready in memory: about 0.1 ms of CPU a request over http. It counts what was asked
of it, so that a benchmark can prove that every URL was attempted.
"""

import contextlib
import io
import ipaddress
import multiprocessing
import random
import select
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

CACHE = Path.home() / ".cache" / "pairmill" / "bench"
PHOTO_COUNT = 300
PHOTO_SIDE = 800
PHOTO_BYTES = 138 * 1024
FIRST_ADDRESS = ipaddress.IPv4Address("127.64.1.1")
HOSTS_A_CERTIFICATE = 10
SOURCES = (
    "astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "hubble_deep_field.jpg",
    "ihc.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
"""scikit-image's packaged photos."""


def photos() -> list[bytes]:
    """300 different JPEGs, 800 px on the longer side, 138 KiB on average; made once and cached."""
    folder = CACHE / f"photos-{PHOTO_COUNT}-{PHOTO_SIDE}-{PHOTO_BYTES}"
    names = [folder / f"{number:03d}.jpg" for number in range(PHOTO_COUNT)]
    if not all(name.exists() for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            name.write_bytes(_photo(number))
    return [name.read_bytes() for name in names]


def _photo(number: int) -> bytes:
    """A crop of a packaged photo, mirrored or not, with sensor-like noise, at the quality that gives its size."""
    import skimage

    draw = random.Random(number)
    source = Path(skimage.__file__).parent / "data" / SOURCES[number % len(SOURCES)]
    image = Image.open(source).convert("RGB")
    width, height = (PHOTO_SIDE, draw.choice([533, 600, 640, 800])) if draw.random() < 0.75 else (600, PHOTO_SIDE)
    share = draw.uniform(0.6, 1.0) * min(image.width / width, image.height / height)
    left = draw.uniform(0, image.width - width * share)
    top = draw.uniform(0, image.height - height * share)
    box = (left, top, left + width * share, top + height * share)
    image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    noise = np.random.default_rng(number).normal(0, 4, (height, width, 1))
    image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    wanted = PHOTO_BYTES * draw.uniform(0.7, 1.3)
    best = b""
    low, high = 40, 97
    while low <= high:
        quality = (low + high) // 2
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        if not best or abs(data.tell() - wanted) < abs(len(best) - wanted):
            best = data.getvalue()
        low, high = (quality + 1, high) if data.tell() < wanted else (low, quality - 1)
    return best


@dataclass(frozen=True)
class Web:
    """Which hosts there are and what goes wrong on them; every choice follows from the URL's number."""

    images: int
    hosts: int
    tls: bool = False
    bad: bool = False

    def address(self, host: int) -> str:
        return str(FIRST_ADDRESS + host)

    def host_of(self, number: int) -> int:
        return number % self.hosts

    def url(self, number: int, port: int) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{self.address(self.host_of(number))}:{port}/photos/{number}.jpg"

    def fate(self, number: int) -> str:
        """ok, stall, 404 or reset: a bad web has 5% of its hosts stalled, 10% of URLs 404 and 2% reset."""
        if not self.bad:
            return "ok"
        if self.host_of(number) % 20 == 7:
            return "stall"
        lot = random.Random(number).random()
        return "404" if lot < 0.10 else "reset" if lot < 0.12 else "ok"

    def closes(self, number: int) -> bool:
        """Nine responses in ten end the connection."""
        return random.Random(-number).random() < 0.9


@dataclass
class Served:
    """What the server saw between two resets."""

    first: float | None = None
    """time.time() of the first request of any kind."""
    requests: int = 0
    robots: int = 0
    connections: int = 0
    cpu_s: float = 0.0
    numbers: set[int] = field(default_factory=set)
    times: list[float] = field(default_factory=list)

    def rate(self) -> float:
        """Photo requests a second between the 5th and the 95th percentile of their times."""
        times = sorted(self.times)
        low, high = times[len(times) // 20], times[-1 - len(times) // 20]
        return 0.9 * len(times) / (high - low) if high > low else 0.0


class PhotoServer:
    """The web as a process of its own; a context manager."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.ca_file = CACHE / "test-ca.pem"
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(web, str(self.ca_file), theirs), daemon=True)

    def __enter__(self) -> "PhotoServer":
        photos()
        self._process.start()
        self.port = self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def urls(self) -> list[str]:
        """Every URL once, in an order without regard to hosts, as in a list from a crawl."""
        numbers = list(range(self.web.images))
        random.Random(0).shuffle(numbers)
        return [self.web.url(number, self.port) for number in numbers]

    def take(self) -> Served:
        """What was served since the last call."""
        self._pipe.send("take")
        served: Served = self._pipe.recv()
        return served


def _serve(web: Web, ca_file: str, pipe: Connection) -> None:
    _Loop(web, ca_file, pipe).run()


class _Client:
    __slots__ = ("close", "held", "output", "sock", "waits_for", "wants_handshake")

    def __init__(self, sock: socket.socket, tls: bool) -> None:
        self.sock = sock
        self.wants_handshake = tls
        self.held = b""
        self.output: memoryview | None = None
        self.close = False
        self.waits_for = select.EPOLLIN


class _Loop:
    def __init__(self, web: Web, ca_file: str, pipe: Connection) -> None:
        self._web = web
        self._pipe = pipe
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._listeners: dict[int, tuple[socket.socket, ssl.SSLContext | None]] = {}
        self._served = Served()
        self._fates = [web.fate(number) for number in range(web.images)]
        self._closes = [web.closes(number) for number in range(web.images)]
        bodies = photos()
        self._answers = {
            close: [memoryview(_head("200 OK", len(body), close, "image/jpeg") + body) for body in bodies]
            for close in (True, False)
        }
        self._missing = {close: memoryview(_head("404 Not Found", 0, close)) for close in (True, False)}
        self._listen(ca_file)
        self._cpu = time.process_time()

    def _listen(self, ca_file: str) -> None:
        contexts = _certificates(self._web, ca_file) if self._web.tls else [None] * self._web.hosts
        port = 0
        for host in range(self._web.hosts):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
            listener.bind((self._web.address(host), port))
            listener.listen(256)
            listener.setblocking(False)
            port = listener.getsockname()[1]
            self._listeners[listener.fileno()] = (listener, contexts[host])
            self._poll.register(listener, select.EPOLLIN)
        self._poll.register(self._pipe.fileno(), select.EPOLLIN)
        self._pipe.send(port)

    def run(self) -> None:
        pipe = self._pipe.fileno()
        while True:
            for number, events in self._poll.poll():
                if number in self._clients:
                    self._serve_one(number, events)
                elif number in self._listeners:
                    self._accept(*self._listeners[number])
                elif number == pipe:
                    self._pipe.recv()
                    served, self._served = self._served, Served()
                    now = time.process_time()
                    served.cpu_s, self._cpu = now - self._cpu, now
                    self._pipe.send(served)

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = listener.accept()
            sock.setblocking(False)
            self._served.connections += 1
            if context:
                sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            self._clients[sock.fileno()] = _Client(sock, context is not None)
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _serve_one(self, number: int, events: int) -> None:
        client = self._clients[number]
        waits_for = select.EPOLLIN
        try:
            if client.wants_handshake:
                client.sock.do_handshake()  # type: ignore[attr-defined]
                client.wants_handshake = False
            if client.output is None:
                data = client.sock.recv(16384)
                if not data:
                    return self._drop(number)
                client.held += data
                if not client.held.endswith(b"\r\n\r\n"):
                    return None
                request, client.held = client.held, b""
                if not self._answer(client, request):
                    return self._drop(number)
            while client.output is not None:
                sent = client.sock.send(client.output)
                if sent == len(client.output):
                    client.output = None
                else:
                    client.output = client.output[sent:]
            if client.close:
                return self._drop(number)
        except (BlockingIOError, ssl.SSLWantReadError):
            waits_for = select.EPOLLOUT if client.output is not None else select.EPOLLIN
        except ssl.SSLWantWriteError:
            waits_for = select.EPOLLOUT
        except OSError:
            return self._drop(number)
        if waits_for != client.waits_for:
            client.waits_for = waits_for
            self._poll.modify(number, waits_for)
        return None

    def _answer(self, client: _Client, request: bytes) -> bool:
        """Set the client's output; False where the connection is to be reset. A stalled URL gets no output."""
        served = self._served
        served.requests += 1
        served.first = served.first or time.time()
        path = request.split(b" ", 2)[1]
        if not path.startswith(b"/photos/"):
            served.robots += path == b"/robots.txt"
            client.output = self._missing[False]
            return True
        number = int(path[8:-4])
        served.numbers.add(number)
        served.times.append(time.time())
        fate = self._fates[number]
        if fate == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        close = self._closes[number]
        if fate == "ok":
            client.output = self._answers[close][number % PHOTO_COUNT]
        elif fate == "404":
            client.output = self._missing[close]
        client.close = close and client.output is not None
        return True

    def _drop(self, number: int) -> None:
        self._clients.pop(number).sock.close()


def _head(status: str, length: int, close: bool, kind: str = "text/plain") -> bytes:
    connection = "close" if close else "keep-alive"
    head = f"HTTP/1.1 {status}\r\nServer: photos\r\nDate: Sat, 21 Nov 2026 09:00:00 GMT\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {length}\r\nConnection: {connection}\r\n\r\n".encode()


def _certificates(web: Web, ca_file: str) -> list[ssl.SSLContext | None]:
    """A TLS context a host; ten neighbours share a certificate, so that it stays small."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca_file)
    contexts: list[ssl.SSLContext | None] = []
    for first in range(0, web.hosts, HOSTS_A_CERTIFICATE):
        names = [web.address(host) for host in range(first, min(web.hosts, first + HOSTS_A_CERTIFICATE))]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0
        authority.issue_cert(*names).configure_cert(context)
        contexts += [context] * len(names)
    return contexts
