"""The embed stage's worker and clip-retrieval 2.45.0's inference on the same tars, with the same random weights.

    python tests/benchmarks/embed_peer.py [--pairs 512] [--model null ViT-B-32] [--rounds 2]

clip-retrieval lives in an environment of its own (.peers/clip-retrieval, made when missing: some GB). Its reader,
mapper, runner and writer run as they are; only what loads a model is replaced, since nothing may be downloaded: by
open_clip's architecture with random weights, or by a null model that gives constant vectors, so that what remains is
each side's own work. Tars are webdataset's, 256-px photos with a caption each; ours reads them in place as of an
adopted set. Three images are broken: what became of their rows is told. CPU time is the measure where others share the
machine: of the whole tree of processes, from the first image to the end of writing. Their decode workers are as many as
ours, 2; both sides use 2 threads.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from embed import Null, pool_images, run, settings_of  # noqa: E402

from pipeline.encoders.load import load  # noqa: E402
from pipeline.units import StageFolder  # noqa: E402
from schemas.recipe import Encoder  # noqa: E402
from tests.embed_fixture import embeddings  # noqa: E402
from tests.pool_fixture import Pool, caption_of, uid_of  # noqa: E402

PEER = REPOSITORY / ".peers" / "clip-retrieval"
UNIT = 128
BROKEN = (17, 40, 99)
BATCH = 64

THEIRS = """
import json, os, resource, sys, time
import numpy as np, torch, open_clip
torch.set_num_threads(2)
tars, output, model_name, tokens = sys.argv[1], sys.argv[2], sys.argv[3], None
arch = "ViT-B-32"
model, _, preprocess = open_clip.create_model_and_transforms(arch)
tokenizer = open_clip.get_tokenizer(arch)

class Null:
    def encode_image(self, pixels):
        return torch.ones((len(pixels), 512))
    encode_text = encode_image

def load_clip(**_):
    return (Null() if model_name == "null" else model.eval()), preprocess, tokenizer

import clip_retrieval
mapper, worker = (sys.modules[f"clip_retrieval.clip_inference.{name}"] for name in ("mapper", "worker"))
mapper.load_clip = worker.load_clip = load_clip

def cpu():
    mine, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in (mine, children))

os.makedirs(output + "/stats", exist_ok=True)
before, start = cpu(), time.perf_counter()
worker.worker([0], tars, output, 1, input_format="webdataset", batch_size=BATCH, num_prepro_workers=2, use_jit=False)
seconds, spent = time.perf_counter() - start, cpu() - before
rows = len(np.load(output + "/img_emb/img_emb_0.npy"))
print("RESULT " + json.dumps({"seconds": seconds, "cpu_s": spent, "rows": rows,
                              "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
""".replace("BATCH", str(BATCH))


def make_peer() -> None:
    if not (PEER / "bin" / "clip-retrieval").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
        subprocess.run([PEER / "bin" / "pip", "install", "-q", "clip-retrieval==2.45.0"], check=True)
        # Its clip-anytorch imports pkg_resources, which newer ones lack; torch asks for a newer one and runs without.
        subprocess.run([PEER / "bin" / "pip", "install", "-q", "setuptools<70"], check=True)


def make_tars(folder: Path, pairs: int) -> Pool:
    """Tars of `UNIT` pairs as webdataset writes them, and a pool whose rows point into them."""
    images = pool_images(200)
    (folder / "tars").mkdir()
    pool = Pool(folder / "root")
    for unit, first in enumerate(range(0, pairs, UNIT)):
        numbers = range(first, min(first + UNIT, pairs))
        chosen = {n: images[n % len(images)] if n not in BROKEN else images[n][:3000] for n in numbers}
        record = pool.unit(f"0001-{unit:07d}", numbers, images=chosen)
        path = folder / "tars" / f"{unit:05d}.tar"
        places: dict[str, int] = {}
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                for extension, data in (("jpg", chosen[number]), ("txt", caption_of(number).encode())):
                    info = tarfile.TarInfo(f"{number:09d}.{extension}")
                    info.size = len(data)
                    if extension == "jpg":
                        places[uid_of(number)] = tar.offset + tarfile.BLOCKSIZE
                    tar.addfile(info, io.BytesIO(data))
        outcomes = next(folder / "root" / pool.folder.base / entry.path for entry in record.files
                        if entry.table == "outcomes")  # fmt: skip
        table = pq.read_table(outcomes)
        rows = [{**row, "pool_file": f"file://{path}", "pool_offset": places[row["uid"]]} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), outcomes)
    return pool


def theirs(folder: Path, pairs: int, model: str, number: int) -> dict[str, Any]:
    tars = f"{folder}/tars/{{00000..{-(-pairs // UNIT) - 1:05d}}}.tar"
    command = [PEER / "bin" / "python", "-c", THEIRS, tars, str(folder / f"theirs-{model}-{number}"), model]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return found
    raise SystemExit(f"clip-retrieval failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")


def ours(pool: Pool, model: str, number: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(2)
    encoder: Any = Null() if model == "null" else load(Encoder(name="b32", arch=model, weights="untrained"))
    with contextlib.suppress(AttributeError):
        encoder.reset = getattr(encoder, "reset", lambda: None)
    name = f"{model}{number}".replace("-", "")
    ran = run(pool, encoder, settings_of(batch=BATCH), name=name, warm=0)
    found = embeddings(StageFolder(pool.store, "embed", name))
    failed = [row["reason"] for row in found.values() if row["status"] == "failed"]
    return {
        "seconds": ran.seconds, "cpu_s": ran.cpu_s, "rows": len(found) - len(failed), "peak_mb": ran.own_mb,
        "failed": {reason: failed.count(reason) for reason in set(failed)},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--model", nargs="+", default=["null", "ViT-B-32"], choices=["null", "ViT-B-32"])
    parser.add_argument("--rounds", type=int, default=2)
    flags = parser.parse_args()
    make_peer()
    print(f"load {os.getloadavg()[0]:.1f}; {flags.pairs} pairs, {len(BROKEN)} of them broken")
    print("| model | side | wall s | CPU ms a pair | vectors | rows lost without a word | peak MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in flags.model:
        with tempfile.TemporaryDirectory() as folder:
            pool = make_tars(Path(folder), flags.pairs)
            found: dict[str, list[dict[str, Any]]] = {"ours": [], "clip-retrieval": []}
            for number in range(flags.rounds):
                found["clip-retrieval"].append(theirs(Path(folder), flags.pairs, model, number))
                found["ours"].append(ours(pool, model, number))
            best = {side: min(results, key=lambda one: one["cpu_s"]) for side, results in found.items()}
            for side, one in best.items():
                told = one.get("failed", {})
                lost = flags.pairs - one["rows"] - sum(told.values())
                print(
                    f"| {model} | {side} | {one['seconds']:.1f} | {1000 * one['cpu_s'] / flags.pairs:.2f} | "
                    f"{one['rows']} | {lost} (told: {told or 'none'}) | {one['peak_mb']:.0f} |"
                )
            cpu, wall = (best["clip-retrieval"][key] / best["ours"][key] for key in ("cpu_s", "seconds"))
            print(
                f"  {model}: clip-retrieval takes {cpu:.2f} times the CPU, {wall:.2f} times the wall time", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
