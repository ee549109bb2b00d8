"""An HTTP proxy in front of an S3 server that goes wrong on request: errors, resets and lost replies, by rule."""

import http.client
import logging
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal

from moto.server import ThreadedMotoServer

CODES = {409: "ConditionalRequestConflict", 500: "InternalError", 503: "SlowDown"}


@dataclass
class Rule:
    """What goes wrong with the requests it matches; the first rule that matches and is not used up applies."""

    answer: Literal["reset", "cut", 409, 500, 503, None] = None
    """`reset`: the connection is reset; `cut`: the answer's body ends half-way; a number: that error."""
    after: bool = False
    """The store acts first, and its reply is lost."""
    delay: float = 0.0
    """Seconds before the first byte of the answer."""
    strip: str | None = None
    """A request header that the store never sees."""
    method: str = ""
    """Regular expression, searched for."""
    key: str = ""
    """Regular expression, searched for in the path and query."""
    count: int | None = None
    """How many requests it applies to; None: all."""
    share: float = 1.0


class FaultProxy:
    """A context manager: moto's S3 server on an ephemeral port of loopback, and the proxy at `url` before it.

    moto looks and then writes; S3 does both at once. So the proxy passes on one write at a time.
    """

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.requests: Counter[str] = Counter()
        """method → requests that came, faults included"""
        self.faults = 0
        self._random = random.Random(7)
        self._choosing = threading.Lock()
        self.writing = threading.Lock()

    def __enter__(self) -> "FaultProxy":
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        self.upstream = self._moto.get_host_and_port()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._moto.stop()

    def choose(self, method: str, path: str) -> Rule | None:
        with self._choosing:
            self.requests[method] += 1
            for rule in self.rules:
                if rule.count == 0 or not re.search(rule.method, method) or not re.search(rule.key, path):
                    continue
                if rule.share < 1 and self._random.random() >= rule.share:
                    continue
                if rule.count is not None:
                    rule.count -= 1
                self.faults += 1
                return rule
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed or reset its connection is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    _store: http.client.HTTPConnection | None = None

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rule = self.server.proxy.choose(self.command, self.path) or Rule()
        if rule.answer in (None, "cut") or rule.after:
            status, headers, data = self._pass_on(body, rule.strip)
        time.sleep(rule.delay)
        if rule.answer == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif isinstance(rule.answer, int):
            code = CODES[rule.answer]
            text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self._answer(rule.answer, [("Content-Type", "application/xml")], text, len(text))
        elif rule.answer == "cut":
            self._answer(status, headers, data[: len(data) // 2], len(data))
            self.close_connection = True
        else:
            self._answer(status, headers, data, len(data))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def _pass_on(self, body: bytes, strip: str | None) -> tuple[int, list[tuple[str, str]], bytes]:
        dropped = {"expect", "connection", "content-length", (strip or "").lower()}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        headers["Content-Length"] = str(len(body))
        if self._store is None:
            self._store = http.client.HTTPConnection(*self.server.proxy.upstream)
        if self.command in ("GET", "HEAD"):
            return self._exchange(self._store, body, headers)
        with self.server.proxy.writing:
            return self._exchange(self._store, body, headers)

    def _exchange(
        self, store: http.client.HTTPConnection, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        store.request(self.command, self.path, body, headers)
        answer = store.getresponse()
        data = answer.read()
        if self.command == "HEAD":
            return answer.status, answer.getheaders(), b""
        kept = [
            (n, v)
            for n, v in answer.getheaders()
            if n.lower() not in ("content-length", "connection", "transfer-encoding")
        ]
        return answer.status, kept, data

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" or not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass
