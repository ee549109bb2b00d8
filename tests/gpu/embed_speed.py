"""Pairs a second through the embed stage on a GPU, beside what bounds it: the model alone, and decoding alone.

    python -m tests.gpu.embed_speed [--pairs 40000] [--arch ViT-B-32 ViT-L-14] [--decode full scaled] [--batch 512]

A pool of 256-px JPEGs of about 37 KB on the local disk, random weights, bf16, as many decode processes as cores. Aims:
the whole at 90% of the lower of the two alone; ViT-L-14 2,000 pairs/s, ViT-B-32 12,000 pairs/s with 16 cores.

On a machine without Ray and open_clip: carry the wheels of open_clip_torch, ftfy, wcwidth, pydantic, pydantic_core,
annotated_types, typing_inspection, duckdb, boto3, botocore, s3transfer, jmespath, simplejpeg and pdqhash, install them
with --no-deps, and run this from the repository's root. Nothing here needs Ray.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.embed.decode_pool import DecodePool
from pipeline.embed.forward import BUFFERS
from pipeline.embed.ring import Ring, Shape
from pipeline.embed.rows import DueRows
from pipeline.embed.stage import embed_due
from pipeline.embed.worker import EmbedWorker
from pipeline.encoders.load import load, tokenizer_of
from pipeline.encoders.preprocess import Preprocess
from pipeline.units import StageFolder
from schemas.recipe import Encoder, Recipe, parse_recipe
from tests.pool_fixture import Pool, caption_of, curate

UNIT = 5_000


def jpeg(seed: int) -> bytes:
    """256 x 341 pixels of smooth noise with grain, 30 to 40 KB at quality 95."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (9, 12, 3), np.uint8))
    smooth = np.asarray(small.resize((341, 256), Image.Resampling.BICUBIC), np.float32)
    data = io.BytesIO()
    Image.fromarray(np.clip(smooth + draw.normal(0, 6, (256, 341, 1)), 0, 255).astype(np.uint8)).save(
        data, "JPEG", quality=95
    )
    return data.getvalue()


def make_pool(root: Path, pairs: int) -> Pool:
    pool = Pool(root)
    images = [jpeg(seed) for seed in range(200)]
    for first in range(0, pairs, UNIT):
        numbers = range(first, min(first + UNIT, pairs))
        texts = {number: f"{caption_of(number)}, seen on an ordinary day by somebody passing" for number in numbers}
        chosen = {number: images[number % len(images)] for number in numbers}
        pool.unit(f"0001-{first // UNIT:07d}", numbers, images=chosen, texts=texts)
    return pool


def model_alone(encoder: Any, batch: int, device: str, seconds: float = 8.0) -> float:
    """Pairs/s through both towers, pixels copied from memory of this machine each time."""
    height, width = encoder.preprocess.size
    pixels = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
    if device != "cpu":
        pixels = pixels.pin_memory()
    tokens = encoder.tokenize([f"{caption_of(n)}, seen on an ordinary day by somebody passing" for n in range(batch)])
    if encoder.text_lengths_matter:
        tokens = np.ascontiguousarray(tokens[:, : int(encoder.text_lengths(tokens).max())])
    rounds, start = -3, time.perf_counter()
    while rounds < 1 or time.perf_counter() - start < seconds:
        if rounds == 0:  # warm now
            start = time.perf_counter()
        encoder.encode_images(pixels.to(device, non_blocking=True).permute(0, 3, 1, 2))
        encoder.encode_texts(tokens)
        rounds += 1
    return batch * rounds / (time.perf_counter() - start)


def decode_alone(pool: Pool, rows: Any, preprocess: Preprocess, decode: str, batch: int, processes: int) -> float:
    """Images/s by the decode processes into a ring that nobody empties."""
    ring = Ring(Shape(BUFFERS, batch, *preprocess.size))
    with closing(DecodePool(pool.store.uri, preprocess, decode == "scaled", ring, processes)) as decoders:
        decoders.decode(0, rows.slice(0, batch)).result()
        started = time.perf_counter()
        ahead: deque[Any] = deque()
        for number, start in enumerate(range(0, rows.num_rows, batch)):
            ahead.append(decoders.decode(number % BUFFERS, rows.slice(start, batch)))
            if len(ahead) == BUFFERS:
                ahead.popleft().result()
        for left in ahead:
            left.result()
        return float(rows.num_rows / (time.perf_counter() - started))


def whole(
    pool: Pool, folders: dict[str, StageFolder], settings: Recipe, encoder: Encoder, loaded: Any, device: str,
    decoders: int, own: str,
) -> float:  # fmt: skip
    """Pairs/s of the worker, from pool to committed tables, two units at a time; the first unit is not counted."""
    folders = {**folders, f"embed/{encoder.name}": StageFolder(pool.store, "embed", own)}
    due = embed_due(pool.store, settings, folders, encoder)
    upstream = {key: (one.stage, one.fingerprint) for key, one in folders.items() if "/" not in key}
    worker = EmbedWorker(
        pool.store.uri, upstream, own, settings.embed, encoder, lambda device: loaded, partial(tokenizer_of, encoder),
        "speed", device, decoders,
    )  # fmt: skip
    with closing(worker), ThreadPoolExecutor(2) as threads:
        worker.run(due[0], alone=True)
        spent = worker.forward.spent
        spent.clear()
        start = time.perf_counter()
        list(threads.map(lambda unit: worker.run(unit, alone=False), due[1:]))
        seconds = time.perf_counter() - start
        print("    wall s by part:", {name: round(value, 2) for name, value in spent.items()}, f"of {seconds:.2f}")
    return sum(unit["rows"] for unit in due[1:]) / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--arch", nargs="+", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--decode", nargs="+", default=["full", "scaled"], choices=["full", "scaled"])
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp16", "fp32"])
    parser.add_argument("--batch", type=int, default=512)
    flags = parser.parse_args()
    device, cores = "cuda" if torch.cuda.is_available() else "cpu", os.cpu_count() or 1
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'no GPU'}, {cores} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        pool = make_pool(Path(folder), flags.pairs)
        folders = curate(pool)
        encoders = [Encoder(name=f"e{number}", arch=arch, weights="untrained", dtype=flags.dtype)
                    for number, arch in enumerate(flags.arch)]  # fmt: skip
        for encoder in encoders:
            loaded = load(encoder, device)
            alone = model_alone(loaded, flags.batch, device)
            for decode in flags.decode:
                sections = {"decode": decode, "batch_size": flags.batch}
                settings = parse_recipe({"dedupe": {"levels": {}}, "embed": sections}, "speed")
                own = f"{encoder.name}{decode}"
                every = {**folders, f"embed/{encoder.name}": StageFolder(pool.store, "embed", own)}
                reads = [read for unit in embed_due(pool.store, settings, every, encoder) for read in unit["reads"]]
                rows = DueRows(folders, {}).read(reads)
                decoded = decode_alone(pool, rows, loaded.preprocess, decode, flags.batch, cores)
                pairs = whole(pool, folders, settings, encoder, loaded, device, cores, own)
                print(
                    f"{encoder.arch} {flags.dtype}, {decode} decode: {pairs:,.0f} pairs/s; model alone {alone:,.0f}, "
                    f"decode alone {decoded:,.0f}: {pairs / min(alone, decoded):.0%} of the lower",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
