"""The embedded web as its users see it: a list of pairs, what must come of each, and a server in its own process."""

import json
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.hosts import hosts_file, make_hosts
from jobs.demo.pairs import Pair, make_pairs, to_csv, to_jsonl
from jobs.demo.pictures import VERSION
from jobs.demo.sources import versions

CACHE = Path.home() / ".cache" / "pairmill" / "web"
ADDRESSES = "127.64.0.0/10"


class Web:
    """A web on loopback; `with Web(folder) as web:` serves it.

    `folder` gets the list (list.parquet), the hosts file and the CA's certificate. Ports 0 are free ones, and part of
    every URL in the list, which exists once the web serves. `rows` from 400 on has every kind of failure at least once.
    """

    def __init__(
        self, folder: Path | str, rows: int = 8000, seed: int = 0, http_port: int = 0, https_port: int = 0,
        cache: Path | None = None,
    ) -> None:  # fmt: skip
        self.folder = Path(folder).absolute()
        self.rows = rows
        self.seed = seed
        self.hosts = make_hosts(rows)
        self.pairs: list[Pair] = []
        self.list_path = self.folder / "list.parquet"
        self.ports = {"http": http_port, "https": https_port}
        # Another version of a package draws other pixels: they must not mix.
        made_by = sha256(f"{VERSION} {seed} {versions()}".encode()).hexdigest()[:16]
        self.cache = (CACHE if cache is None else Path(cache).absolute()) / made_by
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Serve, and write the list. Raises OSError when a port is taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = (self.folder, self.rows, self.seed, self.ports["http"], self.ports["https"], self.cache)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jobs.demo.server", *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert self._process.stdout is not None
        said = json.loads(self._process.stdout.readline() or '{"error": "the server died at its start"}')
        if "error" in said:
            self.stop()
            raise OSError(f"the embedded web cannot listen: {said['error']}")
        self.ports = said
        self.pairs = make_pairs(self.rows, self.seed, self.ports["http"], self.ports["https"])
        (self.folder / "hosts").write_text(hosts_file(self.hosts))
        self._write_list()

    def stop(self) -> None:
        """End the server; its counts are lost."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> "Web":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def recipe(self) -> dict[str, dict[str, object]]:
        """What a recipe needs to reach this web, and to lose little time where it misbehaves."""
        return {
            "download": {
                "hosts_file": str(self.folder / "hosts"),
                "ca_file": str(self.folder / "ca.pem"),
                "allow_addresses": [ADDRESSES],
                "timeout": 10,
                "retries": 1,
            }
        }

    def hits(self) -> dict[str, int]:
        """Requests so far, by URL as asked for."""
        return dict(self._stats()["hits"])

    def peaks(self) -> dict[str, int]:
        """Most connections at a time, by name of the host asked."""
        return dict(self._stats()["peak"])

    def canary(self) -> int:
        """Connections to a private address: has to be 0."""
        return int(self._stats()["canary"])

    def compose_ahead(self) -> None:
        """Have pictures composed before they are asked for, while nothing else is going on."""
        self._tell("compose")

    def write(self, path: Path) -> Path:
        """Write the list as .csv or .jsonl, as `path` ends."""
        writers = {".csv": to_csv, ".jsonl": to_jsonl}
        path.write_text(writers[path.suffix](self.pairs), "utf-8", newline="")
        return path

    def _stats(self) -> dict[str, Any]:
        with self._lock:
            process = self._tell("stats")
            assert process.stdout is not None
            return dict(json.loads(process.stdout.readline()))

    def _tell(self, order: str) -> "subprocess.Popen[str]":
        if self._process is None:
            raise RuntimeError("the web is not started")
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return self._process

    def _write_list(self) -> None:
        """Leaves a list with the same content alone: its modification time is part of a batch's identity."""
        table = pa.table(
            {
                "url": pa.array([pair.url for pair in self.pairs], pa.string()),
                "caption": pa.array([pair.caption for pair in self.pairs], pa.string()),
                "language": pa.array([pair.language for pair in self.pairs], pa.string()),
                "kind": pa.array([pair.kind for pair in self.pairs], pa.string()),
                "number": pa.array(range(len(self.pairs)), pa.int64()),
            }
        )
        if self.list_path.exists() and pq.read_table(self.list_path).equals(table):
            return
        draft = self.list_path.with_suffix(".draft")
        pq.write_table(table, draft, compression="zstd")
        draft.rename(self.list_path)
