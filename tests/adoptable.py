"""A download to adopt, made by the real img2dataset from an embedded web, with DataComp's metadata beside it."""

import hashlib
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.conformance.test_img2dataset import HOST, Pictures

SCRIPT = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(processes_count=1, thread_count=8, url_list=sys.argv[1] + "/list.parquet", input_format="parquet",
        url_col="url", caption_col="text", image_size=64, resize_mode="keep_ratio", output_format="webdataset",
        output_folder=sys.argv[1] + "/shards", number_sample_per_shard=int(sys.argv[2]), compute_hash="sha256",
        min_image_size=100, save_additional_columns=["uid", "clip_l14_similarity_score", "punsafe"], timeout=5,
        oom_shard_count=8)
"""

ROWS = 600
ENCODERS = {"b32": 512, "l14": 768}


def uid_at_datacomp(number: int) -> str:
    """DataComp's own uid: 32 hex digits that have nothing to do with ours."""
    return hashlib.md5(f"datacomp {number}".encode()).hexdigest()


def vectors(number: int, encoder: str) -> tuple[np.ndarray, np.ndarray]:
    """float16 image and text vectors, not of unit length."""
    generator = np.random.default_rng([number, ENCODERS[encoder]])
    image = generator.normal(size=ENCODERS[encoder]).astype(np.float16)
    return image, (image + generator.normal(size=len(image)).astype(np.float16)).astype(np.float16)


def make_download(folder: Path, rows: int, samples: int = 20, first: int = 0) -> Path:
    """`folder`/shards as DataComp's downloader leaves it: its list in metadata/, tars and Parquet in shards/."""
    folder.mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer((HOST, 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    listed = [
        {
            "uid": uid_at_datacomp(number),
            "url": f"http://{HOST}:{server.server_port}/picture/{number}.jpg",
            "text": f"picture {number}",
            "clip_b32_similarity_score": number / 1000,
            "clip_l14_similarity_score": number / 500,
            "punsafe": (number % 10) / 10,
        }
        for number in range(first, first + rows)
    ]
    # One row twice, one without text: what ingest rejects was downloaded all the same.
    listed += [dict(listed[3], uid=uid_at_datacomp(10**6)), dict(listed[2], uid=uid_at_datacomp(10**6 + 1), text="")]
    pq.write_table(pa.Table.from_pylist(listed), folder / "list.parquet")
    (folder / "run.py").write_text(SCRIPT)
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    try:
        done = subprocess.run(
            [sys.executable, str(folder / "run.py"), str(folder), str(samples)],
            env=env, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    finally:
        server.shutdown()
    (folder / "run.py").unlink()
    (folder / "list.parquet").unlink()
    return folder


def add_datacomp_metadata(folder: Path) -> None:
    """metadata/*.parquet and *.npz of the rows of a download, in another order than its shards, two files."""
    found = pa.concat_tables(
        pq.read_table(path, columns=["url", "caption", "uid", "clip_l14_similarity_score"])
        for path in sorted(folder.glob("shards/*.parquet"))
    ).to_pylist()
    found.sort(key=lambda row: row["uid"])
    (folder / "metadata").mkdir()
    for name, part in (("0a", found[::2]), ("0b", found[1::2])):
        numbers = [number_of(row["url"]) for row in part]
        table = pa.table(
            {
                "uid": [row["uid"] for row in part],
                "url": [row["url"] for row in part],
                "text": [row["caption"] for row in part],
                "clip_b32_similarity_score": pa.array([number / 1000 for number in numbers], pa.float64()),
                "clip_l14_similarity_score": pa.array([number / 500 for number in numbers], pa.float64()),
            }
        )
        pq.write_table(table, folder / f"metadata/{name}.parquet")
        arrays = {}
        for encoder in ENCODERS:
            pairs = [vectors(number, encoder) for number in numbers]
            arrays[f"{encoder}_img"] = np.stack([image for image, _ in pairs])
            arrays[f"{encoder}_txt"] = np.stack([text for _, text in pairs])
        np.savez(folder / f"metadata/{name}.npz", **arrays)


def number_of(url: str) -> int:
    return int(url.rpartition("/")[2].partition(".")[0])
