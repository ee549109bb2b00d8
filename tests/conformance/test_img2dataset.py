"""One list through img2dataset and through us: the same samples, fields and pixels (`pixels: img2dataset`)."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.running import job, table, write_recipe

HOST = "127.64.0.9"
ROWS = 72
THEIR_CLASS = {"failed": "failed_to_download", "refused": "failed_to_download", "rejected": "failed_to_resize"}

SCRIPT = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(processes_count=1, thread_count=8, url_list=sys.argv[1] + "/list.parquet", input_format="parquet",
        url_col="url", caption_col="caption", image_size=64, resize_mode="keep_ratio", output_format="webdataset",
        output_folder=sys.argv[1] + "/theirs", number_sample_per_shard=1000, compute_hash="sha256", timeout=5)
"""


def body(number: int) -> bytes:
    """Photographs cut and scaled in many ways, as JPEG, PNG or WebP; some bodies are no image."""
    from skimage import data

    photo = Image.fromarray((data.astronaut, data.chelsea, data.coffee)[number % 3]())
    image = photo.crop((number, 2 * number, number + 90 + 5 * number, 2 * number + 120)).convert("RGB")
    out = io.BytesIO()
    image.save(out, ("JPEG", "PNG", "WEBP")[number % 3 if number % 2 else 0], quality=80 + number % 15)
    data_ = out.getvalue()
    return {5: b"<html>no image</html>", 6: data_[: len(data_) // 3], 7: b""}.get(number % 12, data_)


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        number = int(self.path.rpartition("/")[2].partition(".")[0]) if "picture" in self.path else -1
        if number < 0 or number % 12 == 8:
            self.send_error(404)
            return
        data = body(number)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *_: Any) -> None:
        pass


Samples = dict[tuple[str, str], tuple[dict[str, Any], bytes]]


def samples(tars: Iterator[Path]) -> Samples:
    """(url, caption) → (JSON, image bytes)"""
    found: Samples = {}
    for path in tars:
        members: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, ending = info.name.partition(".")
                members.setdefault(key, {})[ending] = tar.extractfile(info).read()  # type: ignore[union-attr]
        for parts in members.values():
            described = json.loads(parts["json"])
            found[described["url"], described["caption"]] = (described, parts["jpg"])
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of img2dataset's run, and our ROOT."""
    folder = tmp_path_factory.mktemp("both")
    server = ThreadingHTTPServer((HOST, 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://{HOST}:{server.server_port}/picture"
    rows = [{"url": f"{url}/{number}.jpg", "caption": f"picture {number}"} for number in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    (folder / "run.py").write_text(SCRIPT)
    recipe = write_recipe(
        folder / "r.yaml",
        {"download": {"allow_addresses": ["127.64.0.0/10"], "image_size": 64, "pixels": "img2dataset",
                      "per_host": {"per_second": 0}}},
    )  # fmt: skip
    try:
        env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
        command = [sys.executable, str(folder / "run.py"), str(folder)]
        theirs = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
        assert theirs.returncode == 0, theirs.stderr
        ours = job("build", "--recipe", recipe, "--input", folder / "list.parquet", "--output", folder / "root")
        assert ours.returncode == 0, ours.stderr
    finally:
        server.shutdown()
    return folder / "theirs", folder / "root"


def test_every_row_ends_in_the_same_class(both: tuple[Path, Path]) -> None:
    theirs = pq.read_table(both[0] / "00000.parquet").to_pylist()
    wanted = {(row["url"], row["caption"]): row["status"] for row in theirs}
    # Bodies that are no image: img2dataset counts them as failed to resize, we as failed, since no pixel was refused.
    not_images = {"not_an_image", "decode_error"}
    found = {
        (row["url"], row["text"]): "success" if row["status"] == "ok"
        else "failed_to_resize" if row["reason"] in not_images else THEIR_CLASS[row["status"]]
        for row in table(both[1], "outcomes").to_pylist()
    }  # fmt: skip
    assert found == wanted
    assert set(wanted.values()) == {"success", "failed_to_download", "failed_to_resize"}


def test_samples_have_identical_pixels_and_fields(both: tuple[Path, Path]) -> None:
    theirs = samples(both[0].glob("*.tar"))
    ours = samples(both[1].glob("shard/*/dataset/*.tar"))
    assert ours.keys() == theirs.keys()
    assert len(ours) > ROWS // 2
    for pair, (described, image) in theirs.items():
        mine, pixels = ours[pair]
        assert {name: mine[name] for name in described if name != "key"} == {
            name: value for name, value in described.items() if name != "key"
        }
        assert pixels == image
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(pixels))), np.asarray(Image.open(io.BytesIO(image))))
