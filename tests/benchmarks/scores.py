"""Scores of embedded pairs: rows a CPU second of the scores stage's worker, by head, on one core.

    python tests/benchmarks/scores.py [ROWS]        50,000 unless told, in units of 10,000

Vectors are random, stored as embed stores them (float32 that hold float16's values, byte stream split, zstd); heads are
of LAION's published shapes with random weights. `layers in torch` is the head alone, over the same vectors in memory,
its layers one after another as published.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before numpy: what an actor of one CPU has
REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from pipeline.heads.head import Head, Spec, written  # noqa: E402
from pipeline.scores.worker import ScoreWorker  # noqa: E402
from pipeline.storage import LocalStore  # noqa: E402
from pipeline.units import Output, StageFolder  # noqa: E402
from schemas.tables import EMBEDDINGS  # noqa: E402

UNIT = 10_000
HEADS: dict[str, dict[str, Any]] = {
    "none": {},
    "aesthetic, linear MLP": {"layers": [1024, 128, 64, 16, 1], "activation": ["none"] * 5},
    "aesthetic, ReLU MLP": {"layers": [1024, 128, 64, 16, 1], "activation": ["relu"] * 4 + ["none"]},
    "NSFW of B/32": {"layers": [32, 32, 1], "activation": ["relu", "relu", "sigmoid"], "normalisation": "mean_std"},
    "NSFW of L/14": {
        "layers": [64, 512, 256, 1], "activation": ["relu"] * 3 + ["sigmoid"], "normalisation": "mean_std",
    },
    "zero-shot, 20 labels": {
        "layers": [20], "activation": ["softmax"], "labels": [f"label_{number}" for number in range(20)],
    },
}  # fmt: skip


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    print(f"{rows:,} rows, one core\n{'':>34}{'rows a CPU second':>20}{'layers in torch':>18}{'folder MB':>11}")
    for dim in (512, 768):
        with tempfile.TemporaryDirectory() as folder:
            store = LocalStore(Path(folder))
            embed = StageFolder(store, "embed", "0" * 16)
            vectors = [fill(embed, f"0001-{number:07d}", dim, number) for number in range(max(1, rows // UNIT))]
            for name, shape in HEADS.items():
                head = make(shape, dim) if shape else None
                speed, size = measure(store, embed, name, head, len(vectors))
                beside = f"{in_torch(head, vectors):,.0f}" if head else ""
                print(f"{f'{dim} dimensions, {name}':>34}{speed:>20,.0f}{beside:>18}{size / 1e6:>11.1f}", flush=True)


def fill(embed: StageFolder, unit: str, dim: int, seed: int) -> np.ndarray:
    """An embed unit; returns its image vectors."""
    vectors = np.random.default_rng(seed).normal(size=(UNIT, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors.astype(np.float16).astype(np.float32)
    offsets = pa.array(np.arange(UNIT + 1) * dim, pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
    columns = {
        "uid": pa.array([hashlib.sha256(f"{unit}/{row}".encode()).hexdigest()[:32] for row in range(UNIT)]),
        "encoder": pa.repeat(pa.scalar("b32"), UNIT), "status": pa.repeat(pa.scalar("ok"), UNIT),
        "reason": pa.nulls(UNIT, pa.string()), "detail": pa.nulls(UNIT, pa.string()),
        "clip_score": pa.array(vectors[:, 0]), "image_norm": pa.array(np.ones(UNIT, np.float32)),
        "image_embedding": lists, "text_embedding": lists,
    }  # fmt: skip
    attempt = embed.begin(unit, 0, "run", alone=False)
    with embed.working(attempt) as scratch:
        table = pa.table(columns, schema=EMBEDDINGS)
        encodings = {f"{side}_embedding.list.element": "BYTE_STREAM_SPLIT" for side in ("image", "text")}
        path = scratch / "e.parquet"
        pq.write_table(table, path, compression="zstd", use_dictionary=["encoder"], column_encoding=encodings)
        embed.commit(attempt, [Output("embeddings", path, UNIT)], {"ok": {"": UNIT}}, UNIT, "made")
    return vectors


def make(shape: dict[str, Any], dim: int) -> Head:
    layers = [dim, *shape["layers"]]
    spec = Spec.model_validate({"column": "score", "encoder_sha256": "0" * 64, **shape, "layers": layers})
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=size, scale=0.05).astype(np.float32) for name, size in spec.tensors().items()}
    if "std" in tensors:
        tensors["std"] = np.abs(tensors["std"]) + np.float32(0.01)
    return Head(spec, tensors)


def measure(store: LocalStore, embed: StageFolder, name: str, head: Head | None, units: int) -> tuple[float, int]:
    """Rows a CPU second through the worker, best of 3; bytes of its folder."""
    best = 0.0
    for attempt in range(3):
        own = StageFolder(store, "scores", hashlib.sha256(f"{name}{attempt}".encode()).hexdigest()[:16])
        heads = {"score": "0" * 16} if head else {}
        store.create(f"{own.base}/heads.json", json.dumps({"weights_sha256": "0" * 64, "heads": heads}).encode())
        if head:
            spec, tensors = written(head)
            store.replace(f"{own.base}/heads/score.safetensors", tensors)
            store.replace(f"{own.base}/heads/score.json", spec)
        worker = ScoreWorker(store.uri, embed.fingerprint, own.fingerprint, "run")
        before = time.process_time()
        for number in range(units):
            worker.run({"unit": f"0001-{number:07d}", "generation": 0, "rows": UNIT}, alone=True)
        best = max(best, units * UNIT / (time.process_time() - before))
    return best, sum(entry.size for entry in store.files(own.base))


def in_torch(head: Head, vectors: list[np.ndarray]) -> float:
    """Rows a CPU second of the head's layers one after another, best of 3."""
    import torch

    torch.set_num_threads(1)
    tensors = {name: torch.from_numpy(values) for name, values in head.tensors.items()}
    kinds = {
        "none": lambda rows: rows, "relu": torch.relu, "sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(-1)
    }  # fmt: skip
    best = 0.0
    for _ in range(3):
        before = time.process_time()
        for unit in vectors:
            rows = torch.from_numpy(unit)
            rows = (rows - tensors["mean"]) / tensors["std"] if "mean" in tensors else rows
            for i, activation in enumerate(head.spec.activation):
                rows = torch.nn.functional.linear(rows, tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"])
                rows = kinds[activation](rows)
        best = max(best, len(vectors) * UNIT / (time.process_time() - before))
    return best


if __name__ == "__main__":
    main()
