"""Peak memory of one download worker under large bodies: `python -m tests.benchmarks.bodies`.

Six hosts send at the same time, beside 256 ordinary images: bodies that never end; bodies a little under `max_bytes`
that are no image; gzip that inflates to more than `max_bytes`. The worker is the one that builds use, in a process of
its own; the web is in this one. Bound: 1.5 GB each.
"""

import asyncio
import gzip
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

BOUND_MB = 1500
SIX = [f"127.64.7.{number}" for number in range(1, 7)]
ORDINARY = [f"127.64.8.{number}" for number in range(1, 33)]
UNDER = 49_900_000
Writer = asyncio.StreamWriter


def picture() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((800, 800), 60).convert("RGB").save(out, "JPEG", quality=80)
    return out.getvalue()


async def endless(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"40000\r\n\xff\xd8\xff" + bytes(0x40000 - 3) + b"\r\n")
        await writer.drain()


async def large(writer: Writer) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {UNDER}\r\n\r\n".encode() + b"\xff\xd8\xff" + bytes(UNDER - 3))
    await writer.drain()


_BOMB = gzip.compress(bytes(200_000_000), 9)


async def bomb(writer: Writer) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(_BOMB)}\r\n\r\n"
    writer.write(head.encode() + _BOMB)
    await writer.drain()


CASES: dict[str, Callable[[Writer], Awaitable[None]]] = {"endless": endless, "large": large, "bomb": bomb}


async def serve(case: str, ready: Callable[[int], None]) -> None:
    """The web of one case, for ever."""
    image = picture()

    async def answer(reader: asyncio.StreamReader, writer: Writer) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
            if path == b"/robots.txt":
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif path == b"/six":
                await CASES[case](writer)
            else:
                writer.write(
                    f"HTTP/1.1 200 OK\r\nContent-Length: {len(image)}\r\nConnection: close\r\n\r\n".encode() + image
                )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    port = 0
    for address in (*SIX, *ORDINARY):
        server = await asyncio.start_server(answer, address, port)
        port = port or server.sockets[0].getsockname()[1]
    ready(port)
    await asyncio.Event().wait()


def work(root: str, recipe: str, queue: "multiprocessing.Queue[tuple[float, dict[str, int]]]") -> None:
    """Run the ROOT's units in a worker and report this process's peak RSS in MB (10⁶ bytes), and the rows by status."""
    import yaml

    from pipeline.download.worker import DownloadWorker
    from pipeline.storage import open_store
    from pipeline.units import StageFolder
    from schemas.recipe import parse_recipe

    settings = parse_recipe(yaml.safe_load(Path(recipe).read_text()), recipe)
    (ingest,) = (Path(root) / "ingest").iterdir()
    units = StageFolder(open_store(root), "ingest", ingest.name).records()
    worker = DownloadWorker(root, ingest.name, "0" * 16, settings.download, "bench")
    counts = {"MB at the start": round(peak_mb())}

    def run(name: str) -> None:
        record = units[name]
        unit = {"unit": name, "generation": 0, "ingest_generation": record.generation, "rows": record.rows}
        for status, reasons in worker.run(unit, False)["counts"].items():
            counts[status] = counts.get(status, 0) + sum(reasons.values())

    with ThreadPoolExecutor(len(units)) as threads:  # a worker holds several units at a time
        list(threads.map(run, units))
    queue.put((peak_mb(), counts))


def peak_mb() -> float:
    """This program's own peak: ru_maxrss would count what forked it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def measure(case: str) -> float:
    ports: list[int] = []
    started = threading.Event()

    def ready(port: int) -> None:
        ports.append(port)
        started.set()

    threading.Thread(target=lambda: asyncio.run(serve(case, ready)), daemon=True).start()
    started.wait()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        urls = [f"http://{address}:{ports[0]}/six" for address in SIX]
        urls += [f"http://{address}:{ports[0]}/{number}" for address in ORDINARY for number in range(8)]
        (folder / "list.txt").write_text("\n".join(urls))
        recipe = folder / "r.yaml"
        recipe.write_text(json.dumps({"download": {"allow_addresses": ["127.64.0.0/10"], "timeout": 30, "retries": 0}}))
        command = [sys.executable, "-m", "jobs.ingest", "--recipe", recipe, "--input", folder / "list.txt"]
        subprocess.run([*map(str, command), "--output", scratch + "/root"], check=True, capture_output=True)
        context = multiprocessing.get_context("spawn")
        queue: multiprocessing.Queue[tuple[float, dict[str, int]]] = context.Queue()
        child = context.Process(target=work, args=(scratch + "/root", str(recipe), queue))
        child.start()
        peak, counts = queue.get(timeout=150)
        child.join()
    print(f"{case:8} {peak:6.0f} MB peak; {counts}", flush=True)
    return peak


def main() -> None:
    peaks = [measure(case) for case in sys.argv[1:] or CASES]
    if max(peaks) > BOUND_MB:
        raise SystemExit(f"above {BOUND_MB} MB")


if __name__ == "__main__":
    main()
