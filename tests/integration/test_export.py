"""jobs.export: a DataComp subset file, and an index without pixels that rebuilds what is still there."""

import io
import json
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

HOST = "127.64.0.11"
ROWS = 40
CHANGED, LOST = range(5), range(5, 12)


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50 + seed % 7, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class Shelf(BaseHTTPRequestHandler):
    bodies: dict[str, bytes]

    def do_GET(self) -> None:
        body = self.bodies.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def shelf() -> Iterator[tuple[dict[str, bytes], str]]:
    """Path → image, which a test may change; and the site's address."""
    Shelf.bodies = {f"/{number}.png": picture(number) for number in range(ROWS)}
    server = ThreadingHTTPServer((HOST, 0), Shelf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Shelf.bodies, f"http://{HOST}:{server.server_port}"
    server.shutdown()


SETTINGS: dict[str, Any] = {
    "download": {"allow_addresses": ["127.64.0.0/10"], "image_size": 32, "per_host": {"per_second": 0}},
    "dedupe": {"levels": {}},
}


@pytest.fixture(scope="module")
def root(shelf: tuple[dict[str, bytes], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of which a rule keeps all but four rows; its input has uids as DataComp's metadata."""
    folder = tmp_path_factory.mktemp("root")
    rows = [
        {"uid": f"{number * 7919:016x}{2**64 - 1 - number:016x}", "url": f"{shelf[1]}/{number}.png",
         "caption": f"picture {number}"}
        for number in range(ROWS)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    recipe = write_recipe(
        folder / "r.yaml", SETTINGS, ingest={"keep_columns": ["uid"]},
        select={"rules": {"early": f"source_row < {ROWS - 4}"}},
    )  # fmt: skip
    built = job("build", "--recipe", recipe, "--input", folder / "list.parquet", "--output", folder / "root")
    assert built.returncode == 0, built.stderr
    return folder / "root"


@pytest.fixture(scope="module")
def index(root: Path) -> Path:
    exported = job("export", root, "--urls", root.parent / "index", "--name", "pictures")
    assert exported.returncode == 0, exported.stderr
    return root.parent / "index"


def kept(root: Path) -> dict[str, dict[str, Any]]:
    chosen = {row["uid"] for row in table(root, "decisions").to_pylist() if row["kept"]}
    return {row["uid"]: row for row in table(root, "outcomes").to_pylist() if row["uid"] in chosen}


def test_a_datacomp_subset_is_the_sorted_uids_that_datacomp_gave(root: Path, tmp_path: Path) -> None:
    exported = job("export", root, "--datacomp-subset", tmp_path / "subset.npy")
    assert exported.returncode == 0, exported.stderr
    found = np.load(tmp_path / "subset.npy")
    # As DataComp's baselines make it: np.array([(int(uid[:16], 16), int(uid[16:32], 16)) …], np.dtype("u8,u8")).
    wanted = [(int(row["src_uid"][:16], 16), int(row["src_uid"][16:], 16)) for row in kept(root).values()]
    assert len(wanted) == ROWS - 4
    assert found.dtype == np.dtype("u8,u8")
    assert found.tolist() == sorted(wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["subset.npy"]


def test_select_takes_the_subset_file_that_export_wrote(root: Path, tmp_path: Path) -> None:
    assert job("export", root, "--datacomp-subset", tmp_path / "subset.npy").returncode == 0
    recipe = write_recipe(
        tmp_path / "r.yaml", SETTINGS, ingest={"keep_columns": ["uid"]}, select={"uids": str(tmp_path / "subset.npy")}
    )
    before = kept(root).keys()
    built = job("build", "--recipe", recipe, "--output", root)
    assert built.returncode == 0, built.stderr
    assert kept(root).keys() == before


def test_the_index_has_what_is_kept_and_no_pixel(root: Path, index: Path) -> None:
    rows = kept(root)
    found = pq.read_table(index / "index.parquet").to_pylist()
    assert [row["uid"] for row in found] == sorted(rows)
    for row in found:
        own = rows[row["uid"]]
        assert row == {name: own[name] for name in row}
    assert {"url", "caption", "sha256", "original_width", "original_height"} <= found[0].keys()


def test_croissant_metadata_is_valid_and_reads_the_index(index: Path, tmp_path: Path) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=index / "croissant.jsonld")
    assert not dataset.metadata.issues.errors
    rows = list(dataset.records(record_set="pairs"))
    assert len(rows) == ROWS - 4
    uids = {row["pairs/uid"] for row in rows}
    assert {uid.decode() if isinstance(uid, bytes) else uid for uid in uids} == set(
        pq.read_table(index / "index.parquet")["uid"].to_pylist()
    )


def test_an_index_rebuilds_what_is_still_there_and_says_what_is_not(
    shelf: tuple[dict[str, bytes], str], root: Path, index: Path, tmp_path: Path
) -> None:
    before = dict(shelf[0])
    original = kept(root)
    try:
        for number in CHANGED:
            shelf[0][f"/{number}.png"] = picture(1000 + number)
        for number in LOST:
            del shelf[0][f"/{number}.png"]
        recipe = write_recipe(tmp_path / "r.yaml", {
            **SETTINGS, "ingest": {"keep_columns": ["sha256"]},
            "download": {**SETTINGS["download"], "verify_hash": ["sha256", "sha256"]},
        })  # fmt: skip
        built = job("build", "--recipe", recipe, "--input", index, "--output", tmp_path / "root")
    finally:
        shelf[0].update(before)
    assert built.returncode == 0, built.stderr
    line = "rebuilt from hashes: of 36 rows 24 (66.7%) are as they were, 5 (13.9%) have changed, 7 (19.4%) are lost"
    assert line in built.stderr
    assert line in job("show", tmp_path / "root").stdout
    shown = json.loads(job("show", tmp_path / "root", "--json").stdout)
    assert shown["rebuilt"] == {"rows": 36, "same": 24, "changed": 5, "lost": 7}
    rebuilt = {row["uid"]: row for row in table(tmp_path / "root", "outcomes").to_pylist()}
    assert rebuilt.keys() == original.keys()
    for uid, row in rebuilt.items():
        number = int(row["url"].rpartition("/")[2].removesuffix(".png"))
        wanted = "hash_mismatch" if number in CHANGED else "http_error" if number in LOST else None
        assert row["reason"] == wanted
        if wanted is None:
            assert row["pool_sha256"] == original[uid]["pool_sha256"]


def test_nothing_asked_for_is_bad_usage(root: Path, tmp_path: Path) -> None:
    assert job("export", root).returncode == 2
    wrong = job("export", root, "--datacomp-subset", tmp_path / "subset.txt")
    assert wrong.returncode == 2
    assert "npy" in wrong.stderr


def test_exports_go_to_s3(root: Path, s3: str) -> None:
    exported = job("export", root, "--urls", f"{s3}/index", "--datacomp-subset", f"{s3}/subset.npy")
    assert exported.returncode == 0, exported.stderr
    import pyarrow.fs as pafs

    from pipeline.s3 import S3Bucket

    bucket = s3.removeprefix("s3://").partition("/")[0]
    filesystem: pafs.FileSystem = S3Bucket(bucket).arrow()
    assert pq.read_table(f"{bucket}/root/index/index.parquet", filesystem=filesystem).num_rows == ROWS - 4
