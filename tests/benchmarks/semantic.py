"""Near-duplicates in embedding space among generated vectors: what clusters find of all there is, cost, and growth.

    python tests/benchmarks/semantic.py [--rows N...] [--recall N] [--dimensions D] [--only recall growth]

Vectors are laid out much as CLIP's image vectors are: strangers have a mean cosine of 0.5 and few effective dimensions
(64 factors of falling weight). 10% of the rows are in groups of 2 to 5 whose copies are 0.005 to 0.1 from their first,
2% in 20 hot groups; the rest are strangers. `continuum` is the hard case, with 8 factors: no groups stand out, every
row has neighbours at every distance, and clusters cut between them.

recall: against brute force over all pairs (faiss, IndexFlatIP.range_search), by k and probes: of the matching pairs
those found, of the rows that brute force drops those dropped, and how many rows stay beside a better one that stays.
growth: CPU seconds, pairs compared and peak memory beside the vectors, by rows, at the defaults; on one thread, since
threads that wait for each other on busy cores spend CPU seconds too.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

EPS, PROBES = 0.05, 8

RUN = """
import json, resource, sys, time
import numpy as np
from pipeline.semantic.clusters import POINTS, kmeans, several_nearest
from pipeline.semantic.find import Clusters, Search, kept_witnesses
from tests.benchmarks.semantic import generate
import faiss
rows, dimensions, k, probes, eps = json.loads(sys.argv[1])
vectors = generate(rows, dimensions)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def now(): return int(open("/proc/self/statm").read().split()[1]) * 4096
held = now()
open("/proc/self/clear_refs", "w").write("5")
marks = [time.process_time()]
centroids = kmeans(vectors[: POINTS * k], k, spherical=True)
marks.append(time.process_time())
found = several_nearest(vectors, centroids, probes).astype(np.int32)
clusters = Clusters(np.ascontiguousarray(found[:, 0]), found, centroids)
marks.append(time.process_time())
search = Search(vectors, eps, clusters)
witness = kept_witnesses(search, np.arange(rows), 0)
marks.append(time.process_time())
print(json.dumps({"cpu": np.diff(marks).tolist(), "compared": search.compared, "peak": peak() - held,
    "gone": int((witness != np.arange(rows)).sum()), "largest": int(np.bincount(found[:, 0]).max())}))
"""


def generate(rows: int, dimensions: int, factored: int = 64, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((factored, dimensions), np.float32) / np.sqrt(1 + np.arange(factored))[:, None]
    centre = _unit(rng.standard_normal((1, dimensions), np.float32))
    vectors = np.empty((rows, dimensions), np.float32)
    for start in range(0, rows, 1 << 16):
        part = vectors[start : start + (1 << 16)]
        own = rng.standard_normal((len(part), factored), np.float32) @ factors.astype(np.float32)
        part[:] = _unit(_unit(own) + centre)
    place, near_end, hot_end = 0, rows // 10, rows // 10 + rows // 50
    while place < near_end:
        size = min(int(rng.integers(2, 6)), near_end - place)
        vectors[place + 1 : place + size] = _copies(rng, np.repeat(vectors[place][None], size - 1, 0))
        place += size
    family = rng.integers(0, 20, hot_end - near_end)
    vectors[near_end:hot_end] = _copies(rng, vectors[near_end : near_end + 20].copy()[family])
    for start in range(0, rows, 1 << 16):  # in place: a permutation of all would hold them twice
        rng.shuffle(vectors[start : start + (1 << 16)])
    return vectors


def _copies(rng: np.random.Generator, of: np.ndarray) -> np.ndarray:
    """Each 0.005 to 0.1 away (1 − cosine) from its original, in any direction."""
    cosine = 1 - rng.uniform(0.005, 0.1, (len(of), 1))
    away = rng.standard_normal(of.shape, np.float32)
    away -= (away * of).sum(axis=1, keepdims=True) * of
    return _unit(cosine * of + np.sqrt(1 - cosine**2) * _unit(away)).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(rows: int, dimensions: int, k: int, probes: int) -> dict[str, Any]:
    command = [sys.executable, "-c", RUN, json.dumps([rows, dimensions, k, probes, EPS])]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def recall(rows: int, dimensions: int, name: str, factored: int) -> None:
    import faiss

    from pipeline.semantic.clusters import POINTS, kmeans, several_nearest
    from pipeline.semantic.find import Clusters, Search, kept_witnesses

    vectors = generate(rows, dimensions, factored)
    began = time.process_time()
    index = faiss.IndexFlatIP(dimensions)
    index.add(vectors)
    limits, _, near = index.range_search(vectors, 1 - EPS)
    brute = time.process_time() - began
    asking = np.repeat(np.arange(rows), np.diff(limits.astype(np.int64)))
    pairs = np.stack([asking, near])[:, near < asking]
    began = time.process_time()
    exact = kept_witnesses(Search(vectors, EPS), np.arange(rows), 0) != np.arange(rows)
    whole = time.process_time() - began
    print(f"\n{name}, {rows:,} rows: {pairs.shape[1]:,} matching pairs; brute force drops {exact.sum():,}")
    print(f"CPU s: faiss range_search {brute:.1f}, kept witnesses over all pairs {whole:.1f}")
    print("| k | probes | pairs found | rows dropped | near pairs left | CPU s: k-means | nearest | search |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    root = round(rows**0.5)
    for k in (root // 2, root, 2 * root):
        began = time.process_time()
        centroids = kmeans(vectors[: POINTS * k], k, spherical=True)
        learnt = time.process_time() - began
        for probes in (1, 4, 8, 16):
            began = time.process_time()
            found = several_nearest(vectors, centroids, probes).astype(np.int32)
            placed = time.process_time() - began
            clusters = Clusters(np.ascontiguousarray(found[:, 0]), found, centroids)
            began = time.process_time()
            gone = kept_witnesses(Search(vectors, EPS, clusters), np.arange(rows), 0) != np.arange(rows)
            searched = time.process_time() - began
            met = (found[pairs[0]] == clusters.home[pairs[1]][:, None]).any(axis=1)
            left = (~gone[pairs]).all(axis=0).sum()
            share = f"{met.mean():.2%} | {gone.sum() / exact.sum():.2%} | {left:,}"
            print(f"| {k} | {probes} | {share} | {learnt:.1f} | {placed:.1f} | {searched:.1f} |", flush=True)


def growth(sizes: list[int], dimensions: int) -> None:
    print(f"\nk √rows, {PROBES} probes, {dimensions} dimensions")
    print("| rows | CPU s: k-means | nearest | search | n^ | pairs compared | of all | largest cluster | peak beside |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    before: tuple[int, float] | None = None
    for rows in sizes:
        k = round(rows**0.5)
        got = measure(rows, dimensions, k, PROBES)
        total = sum(got["cpu"])
        power = np.log(total / before[1]) / np.log(rows / before[0]) if before else float("nan")
        before = rows, total
        parts = " | ".join(f"{part:.1f}" for part in got["cpu"])
        share = got["compared"] / (rows * (rows - 1) / 2)
        beside = f"{got['peak'] / 2**20:,.0f} MiB ({got['peak'] / rows:,.0f} B a row)"
        print(
            f"| {rows:,} | {parts} | {power:.2f} | {got['compared']:,} | {share:.2%} | {got['largest']:,} | {beside} |",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", type=int, default=[25_000, 100_000, 400_000])
    parser.add_argument("--recall", type=int, default=30_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--only", nargs="*", choices=["recall", "growth"], default=["recall", "growth"])
    flags = parser.parse_args()
    if "recall" in flags.only:
        recall(flags.recall, flags.dimensions, "copies", 64)
        recall(flags.recall, flags.dimensions, "continuum", 8)
    if "growth" in flags.only:
        growth(flags.rows, flags.dimensions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
