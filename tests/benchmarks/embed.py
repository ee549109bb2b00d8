"""The embed stage's worker against what bounds it: bare decoding, the device, the towers.

    python tests/benchmarks/embed.py [--images 1500] [--only null device vit agreement]

The pool is 300 photos of 256 px on the shorter side, JPEG of 37 KB, as `download` makes them of photos of 138 KiB. The
worker runs in this process as it does in an actor, two units at a time, its decode processes beside it.

* null: an encoder that gives the same vector for everything, beside a bare loop of as many processes that decode the
  same bytes from memory. The aim is 80% of that loop. Wall time says so on a quiet machine; CPU time an image on any.
* device: an encoder that sleeps batch/2,000 s, aim: busy 95% where decoding keeps up. Images of 224 x 224, so that it
  does, on a quiet machine of two cores; `idle` is what each batch waited, whatever it waited for.
* vit: ViT-B/32 with random weights; all CPU time outside its towers, aim 2.5 ms an image.
* agreement: cosines between full and scaled decode and between fp32 and bf16. The weights are random: how many rows
  change side at a published threshold is told, but means little before weights are trained.
"""

import argparse
import contextlib
import gc
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from photo_web import photos  # noqa: E402

from pipeline.embed.decode import decode_image  # noqa: E402
from pipeline.embed.stage import embed_due  # noqa: E402
from pipeline.embed.worker import EmbedWorker  # noqa: E402
from pipeline.encoders.load import tokenizer_of  # noqa: E402
from pipeline.encoders.preprocess import Preprocess  # noqa: E402
from pipeline.images.process import ImageProcessor  # noqa: E402
from pipeline.units import StageFolder  # noqa: E402
from schemas.recipe import Download, Encoder, Recipe, parse_recipe  # noqa: E402
from tests.pool_fixture import Pool, caption_of, curate  # noqa: E402

CORES = 2
UNIT = 500
INPUT = Preprocess((224, 224), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
B32 = Encoder(name="b32", arch="ViT-B-32", weights="untrained")
THRESHOLDS = (0.28, 0.30)


class Null:
    """The same vector for everything; `seconds` a pair are slept through, as a device would be busy."""

    name, arch, dim, weights_sha256, text_lengths_matter = "null", "null", 512, "0" * 64, True
    preprocess = INPUT

    def __init__(self, seconds: float = 0.0, device: str = "cpu") -> None:
        self.seconds = seconds
        self.busy: list[tuple[float, float]] = []

    def reset(self) -> None:
        self.busy.clear()

    def encode_images(self, pixels: Any) -> Any:
        start = time.perf_counter()
        if self.seconds:
            time.sleep(self.seconds * len(pixels))
        self.busy.append((start, time.perf_counter()))
        return np.ones((len(pixels), self.dim), np.float32)

    def encode_texts(self, tokens: Any) -> Any:
        return np.ones((len(tokens), self.dim), np.float32)

    def text_lengths(self, tokens: Any) -> Any:
        return (tokens > 0).sum(axis=1)


@dataclass
class Ran:
    seconds: float
    """Wall time from the first unit to the last commit, processes started before."""
    cpu_s: float
    """CPU time of this process and its children in it; of children, their start too."""
    images: int
    parts: dict[str, float]
    own_mb: float
    child_mb: float


def pool_images(count: int = 300, **settings: Any) -> list[bytes]:
    process = ImageProcessor(Download(**settings))
    return [process(data).data for data in photos()[:count]]


def make_pool(root: Path, images: list[bytes], count: int, rows: int = UNIT) -> Pool:
    """`count` pairs in units of `rows`."""
    pool = Pool(root)
    for first in range(0, count, rows):
        numbers = range(first, min(first + rows, count))
        texts = {number: f"{caption_of(number)}, seen on an ordinary day by somebody passing" for number in numbers}
        pool.unit(
            f"0001-{first // rows:07d}", numbers, images={n: images[n % len(images)] for n in numbers}, texts=texts
        )
    return pool


def run(
    pool: Pool, encoder: Any, settings: Recipe, decoders: int = CORES, name: str = "e0", units_at_a_time: int = 2,
    most: int | None = None, warm: int = 1,
) -> Ran:  # fmt: skip
    """The worker over the pool, or `most` units of it, as an actor runs it, after `warm` units that are not counted."""
    folders = curate(pool)
    folders[f"embed/{B32.name}"] = StageFolder(pool.store, "embed", name)
    due = embed_due(pool.store, settings, folders, B32)[:most]
    upstream = {key: (one.stage, one.fingerprint) for key, one in folders.items() if "/" not in key}
    worker = EmbedWorker(
        pool.store.uri, upstream, name, settings.embed, B32, lambda device: encoder, partial(tokenizer_of, B32),
        "bench", decoders=decoders,
    )  # fmt: skip
    with closing(worker):
        for unit in due[:warm]:
            worker.run(unit, alone=True)
        for spent in (worker.forward.spent, worker.forward.decoders.spent, worker.forward._tokens.spent):
            spent.clear()
        encoder.reset()
        gc.collect()
        own, children = time.process_time(), sum(map(cpu_of, child_pids()))
        start = time.perf_counter()
        with ThreadPoolExecutor(units_at_a_time) as threads:
            list(threads.map(lambda unit: worker.run(unit, alone=False), due[warm:]))
        seconds = time.perf_counter() - start
        cpu = time.process_time() - own + sum(map(cpu_of, child_pids())) - children
        child_mb = max(peak_of(pid) for pid in child_pids())
        forward = worker.forward
        parts = {**forward.decoders.spent, **forward._tokens.spent, **forward.spent}
    images = sum(unit["rows"] for unit in due[warm:])
    return Ran(seconds, cpu, images, parts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, child_mb)


def child_pids() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_of(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def bare(images: list[bytes], count: int, scaled: bool) -> tuple[float, float]:
    """(images a second, CPU s an image) of a loop that only decodes, by as many processes, from memory."""
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_loop, images[:20], 20), [scaled] * CORES))  # started
        start = time.perf_counter()
        cpu = sum(pool.map(partial(_loop, images, count // CORES), [scaled] * CORES))
        seconds = time.perf_counter() - start
    return count / seconds, cpu / count


def _loop(images: list[bytes], count: int, scaled: bool) -> float:
    start = time.process_time()
    for number in range(count):
        decode_image(images[number % len(images)], INPUT, scaled)
    return time.process_time() - start


def settings_of(decode: str = "full", batch: int = 256) -> Recipe:
    return parse_recipe({"dedupe": {"levels": {}}, "embed": {"decode": decode, "batch_size": batch}}, "benchmark")


def case_null(count: int, folder: Path) -> None:
    images = pool_images()
    pool = make_pool(folder, images, count + UNIT)
    print("| decode | bare images/s | worker images/s | share | bare CPU ms | worker CPU ms | share by CPU | peak MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for decode in ("full", "scaled"):
        rounds = []
        for number in range(3):
            alone = bare(images, count, decode == "scaled")
            rounds.append((alone, run(pool, Null(), settings_of(decode), name=f"{decode}{number}")))
        (rate, cpu), ran = min(rounds, key=lambda pair: pair[1].cpu_s)
        shares = [ran.images / ran.seconds / rate for (rate, _), ran in rounds]
        cpus = [cpu / (ran.cpu_s / ran.images) for (_, cpu), ran in rounds]
        print(
            f"| {decode} | {rate:.0f} | {ran.images / ran.seconds:.0f} | {_spread(shares)} | {1000 * cpu:.2f} | "
            f"{1000 * ran.cpu_s / ran.images:.2f} | {_spread(cpus)} | {ran.own_mb:.0f} + {ran.child_mb:.0f} a child |"
        )
        print(f"  parts, ms an image ({decode}): {_parts(ran)}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0%} ({min(values):.0%} to {max(values):.0%})"


def _parts(ran: Ran) -> str:
    """read, decode, tokens: CPU of the children; transfer, image, text, write: wall time."""
    names = ("read", "decode", "tokens", "transfer", "image", "text", "write")
    return ", ".join(f"{name} {1000 * ran.parts.get(name, 0.0) / ran.images:.3f}" for name in names)


def case_device(count: int, folder: Path) -> None:
    pool = make_pool(folder, pool_images(image_size=224, resize_mode="center_crop"), 4 * count + UNIT)
    print("| device | units at a time | busy | images/s | idle ms a batch |\n| --- | --- | --- | --- | --- |")
    for rate in (2000, 200):
        for at_a_time in (1, 2):
            encoder = Null(1 / rate)
            # A slow device gets a few batches alone: what counts is what happens between them.
            ran = run(pool, encoder, settings_of(), name=f"d{rate}{at_a_time}", units_at_a_time=at_a_time,
                      most=len(pool.folder.generations()) if rate == 2000 else 6)  # fmt: skip
            slept = sum(end - start for start, end in encoder.busy)
            whole = encoder.busy[-1][1] - encoder.busy[0][0]
            idle = 1000 * (whole - slept) / len(encoder.busy)
            print(f"| {rate:,}/s | {at_a_time} | {slept / whole:.1%} | {ran.images / whole:.0f} | {idle:.1f} |")


class Clocked:
    """An encoder with the CPU time this process spends while it is in the towers."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.cpu_s = 0.0

    def reset(self) -> None:
        self.cpu_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def _timed(self, tower: Callable[[Any], Any], inputs: Any) -> Any:
        start = time.process_time()
        try:
            return tower(inputs)
        finally:
            self.cpu_s += time.process_time() - start

    def encode_images(self, pixels: Any) -> Any:
        return self._timed(self._encoder.encode_images, pixels)

    def encode_texts(self, tokens: Any) -> Any:
        return self._timed(self._encoder.encode_texts, tokens)


def case_vit(folder: Path) -> None:
    import torch

    from pipeline.encoders.load import load

    torch.set_num_threads(CORES)
    pool = make_pool(folder, pool_images(128), 128 + 64, rows=64)
    print("| ViT-B/32, random weights | pairs/s | CPU ms a pair | in the towers | outside | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for decode in ("full", "scaled"):
        encoder = Clocked(load(B32))
        # One unit at a time: nothing else is counted as the towers'.
        ran = run(pool, encoder, settings_of(decode, 64), name=f"v{decode}", units_at_a_time=1)
        print(
            f"| {decode} | {ran.images / ran.seconds:.1f} | {1000 * ran.cpu_s / ran.images:.1f} | "
            f"{1000 * encoder.cpu_s / ran.images:.1f} | {1000 * (ran.cpu_s - encoder.cpu_s) / ran.images:.2f} | "
            f"{ran.own_mb:.0f} + {ran.child_mb:.0f} a child |"
        )
        print(f"  parts, ms a pair ({decode}): {_parts(ran)}")


def case_agreement(folder: Path) -> None:
    """Cosines of image vectors, and rows that change side, against full decode in fp32."""
    import torch

    from pipeline.encoders.load import load

    torch.set_num_threads(CORES)
    images = pool_images(100)
    pool = make_pool(folder, images, len(images))
    tables = {}
    for decode, dtype in (("full", "fp32"), ("scaled", "fp32"), ("full", "bf16"), ("scaled", "bf16")):
        encoder = load(B32.model_copy(update={"dtype": dtype}))
        name = f"{decode}{dtype}"
        folders = curate(pool)
        folders["embed/b32"] = StageFolder(pool.store, "embed", name)
        settings = settings_of(decode, 64)
        upstream = {key: (one.stage, one.fingerprint) for key, one in folders.items() if "/" not in key}
        worker = EmbedWorker(
            pool.store.uri, upstream, name, settings.embed, B32, lambda device, made=encoder: made,
            partial(tokenizer_of, B32), "bench",
        )  # fmt: skip
        with closing(worker):
            for unit in embed_due(pool.store, settings, folders, B32):
                worker.run(unit, alone=True)
        [path] = (folder / "embed" / name / "embeddings").iterdir()
        tables[decode, dtype] = pq.read_table(path)
    base = tables["full", "fp32"]
    print("| against full decode, fp32 | cosine mean | least | score moves by, mean | most | change side at .28, .30 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (decode, dtype), table in list(tables.items())[1:]:
        vectors = [np.stack(one["image_embedding"].to_numpy()) for one in (base, table)]
        cosines = np.einsum("ij,ij->i", *vectors)
        scores = [one["clip_score"].to_numpy() for one in (base, table)]
        moved = np.abs(scores[0] - scores[1])
        sides = [int(((scores[0] >= at) != (scores[1] >= at)).sum()) for at in THRESHOLDS]
        middle = float(np.median(scores[0]))
        print(
            f"| {decode}, {dtype} | {cosines.mean():.6f} | {cosines.min():.6f} | {moved.mean():.5f} | "
            f"{moved.max():.5f} | {sides[0]}, {sides[1]} of {len(images)}; at the median {middle:.3f}: "
            f"{int(((scores[0] >= middle) != (scores[1] >= middle)).sum())} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    cases = ("null", "device", "vit", "agreement")
    parser.add_argument("--only", nargs="+", default=list(cases), choices=cases)
    flags = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {threading.active_count()} thread")
    for case in flags.only:
        with tempfile.TemporaryDirectory() as folder:
            if case in ("vit", "agreement"):
                {"vit": case_vit, "agreement": case_agreement}[case](Path(folder))
            else:
                {"null": case_null, "device": case_device}[case](flags.images, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
