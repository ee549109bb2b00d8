"""Our shards through webdataset, open_clip, Hugging Face datasets and pandas, and beside img2dataset's own."""

import inspect
import json
import os
import subprocess
import sys
import tarfile
import threading
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.shard.stage import run_shard
from pipeline.stop import StopFlag
from pipeline.units import StageFolder
from schemas.recipe import parse_recipe
from tests.pool_fixture import Pool, caption_of, curate, picture

SAMPLES = 46
"""Rows of the pool that are ok; of fifty, four are not."""
FAILED = {0, 7, 8, 49}
CAPTIONS = Counter(caption_of(number) for number in set(range(50)) - FAILED)
FORMS = ("webdataset", "parquet")


def make_dataset(root: Path, form: str = "webdataset") -> Path:
    pool = Pool(root)
    for number in range(5):
        numbers = range(number * 10, number * 10 + 10)
        pool.unit(f"0001-{number:07d}", numbers, failed=FAILED, kept={"license": "cc"})
    shard = {"number_sample_per_shard": 20, "oom_shard_count": 3, "output_format": form}
    folder = StageFolder(pool.store, "shard", "s0")
    folders = {**curate(pool), "shard": folder}
    run_shard(
        pool.store, parse_recipe({"shard": shard}, "test"), folders, folder, "run", StopFlag(str(root), "run"), print
    )
    return root / "shard/s0/dataset"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {form: make_dataset(tmp_path_factory.mktemp(form), form) for form in FORMS}


@pytest.fixture(scope="module")
def dataset(ours: dict[str, Path]) -> Path:
    return ours["webdataset"]


def sizes(dataset: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((dataset / "sizes.json").read_text())
    assert sum(found.values()) == SAMPLES
    return found


def tars(dataset: Path) -> list[str]:
    return [str(dataset / name) for name in sizes(dataset)]


def test_webdataset_reads_exactly_the_samples_that_sizes_json_counts(dataset: Path) -> None:
    import webdataset as wds

    captions: Counter[str] = Counter()
    for name, count in sizes(dataset).items():
        samples = list(wds.WebDataset(str(dataset / name), shardshuffle=False).decode("pil"))
        assert len(samples) == count
        assert all(sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"]) for sample in samples)
        assert all(sample["json"]["key"] == sample["__key__"] for sample in samples)
        captions.update(sample["txt"] for sample in samples)
    assert captions == CAPTIONS


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("train", [True, False])
def test_open_clip_reads_every_sample_once_an_epoch(
    dataset: Path, workers: int, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from open_clip_train import data as reader

    if "eof_value" in inspect.signature(reader.tar_file_expander).parameters:
        # open_clip asks for webdataset up to 0.2.86; later ones mark the end of a tar in a way it does not know.
        monkeypatch.setattr(reader, "tar_file_expander", partial(reader.tar_file_expander, eof_value=None))
    shards = str(dataset / "{000..002}.tar")
    arguments = Namespace(
        train_data=shards, val_data=shards, train_num_samples=None, val_num_samples=None, dataset_resampled=False,
        train_data_upsampling_factors=None, batch_size=2, workers=workers, world_size=1, seed=0,
    )  # fmt: skip

    def preprocess(image: Any) -> torch.Tensor:
        return torch.tensor([image.width, image.height])

    def tokenizer(text: str) -> list[torch.Tensor]:
        return [torch.tensor(list(text.encode().ljust(100)))]

    data = reader.get_wds_dataset(arguments, preprocess, is_train=train, tokenizer=tokenizer)
    if train:
        assert data.dataloader.num_samples == SAMPLES
    captions = Counter(bytes(row.tolist()).decode().rstrip() for _, texts in data.dataloader for row in texts)
    assert captions == CAPTIONS


HUGGING_FACE = """
import json, sys
from datasets import load_dataset
files, streaming = sys.argv[2:], sys.argv[1] == "streaming"
rows = list(load_dataset("webdataset", data_files={"train": files}, split="train", streaming=streaming))
assert all(row["jpg"].size == (row["json"]["width"], row["json"]["height"]) for row in rows)
print(json.dumps([row["txt"] for row in rows]))
"""


@pytest.mark.parametrize("way", ["streaming", "whole"])
def test_hugging_face_datasets_reads_every_sample(dataset: Path, tmp_path: Path, way: str) -> None:
    # In a process of its own: the library takes these settings when it is imported.
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    env |= {"HF_DATASETS_CACHE": str(tmp_path), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUGGING_FACE, way, *tars(dataset)],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Counter(json.loads(done.stdout.splitlines()[-1])) == CAPTIONS


def test_pandas_reads_the_parquet_files_of_a_dataset(dataset: Path) -> None:
    frames = [pd.read_parquet(dataset / name.replace(".tar", ".parquet")) for name in sizes(dataset)]
    assert [len(frame) for frame in frames] == list(sizes(dataset).values())
    frame = pd.concat(frames)
    assert frame["key"].is_unique
    assert frame["uid"].is_unique
    assert set(frame["status"]) == {"success"}
    assert Counter(frame["caption"]) == CAPTIONS


IMG2DATASET = """
import sys
from img2dataset import download
if __name__ == "__main__":
    for form in sys.argv[2:]:
        download(
            processes_count=2, thread_count=2, url_list=sys.argv[1] + "/list.parquet", input_format="parquet",
            url_col="url", caption_col="caption", save_additional_columns=["license"], image_size=16,
            output_folder=sys.argv[1] + "/" + form, output_format=form, number_sample_per_shard=20, oom_shard_count=3,
        )
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same number of rows through img2dataset, from a server on loopback."""
    folder = tmp_path_factory.mktemp("theirs")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    rows = [{"url": f"{base}/{row}.jpg", "caption": caption_of(row), "license": f"cc{row}"} for row in range(SAMPLES)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    script = folder / "run.py"
    script.write_text(IMG2DATASET)
    # Without this variable a dependency of img2dataset asks the package index for its newest version.
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    try:
        done = subprocess.run(
            [sys.executable, str(script), str(folder), *FORMS],
            env=env, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    return {form: folder / form for form in FORMS}


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = picture(int(self.path.strip("/").removesuffix(".jpg")))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *_: Any) -> None:
        pass


@pytest.mark.parametrize("form", FORMS)
def test_parquet_columns_are_img2datasets_names_types_and_order_then_ours(
    ours: dict[str, Path], theirs: dict[str, Path], form: str
) -> None:
    ours_alone = [("uid", pa.string()), ("clip_score", pa.float32()), ("weight", pa.float32())]
    for shard in ("000", "001", "002"):
        wanted = [(field.name, field.type) for field in pq.read_schema(theirs[form] / f"{shard}.parquet")]
        found = [(field.name, field.type) for field in pq.read_schema(ours[form] / f"{shard}.parquet")]
        assert found == [*wanted, *ours_alone]
        keys = [set(pq.read_table(side[form] / f"{shard}.parquet")["key"].to_pylist()) for side in (ours, theirs)]
        assert keys[0] == keys[1]


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_has_img2datasets_files_and_an_index(
    ours: dict[str, Path], theirs: dict[str, Path], form: str
) -> None:
    found, wanted = ({str(path.relative_to(side[form])) for path in files(side[form])} for side in (ours, theirs))
    assert found == wanted | {"sizes.json", "dataset.json"}


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "_tmp" not in path.parts)


def test_tar_members_and_json_fields_are_img2datasets_in_its_order(
    ours: dict[str, Path], theirs: dict[str, Path]
) -> None:
    for shard in ("000", "001", "002"):
        found, wanted = (grouped(side["webdataset"] / f"{shard}.tar") for side in (ours, theirs))
        assert found.keys() == wanted.keys()
        for key, (endings, described) in wanted.items():
            assert found[key][0] == endings
            assert list(found[key][1]) == [*described, "uid"]
            assert type(found[key][1]["exif"]) is type(described["exif"])


def grouped(tar: Path) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """key → (its members' endings in order, its JSON); fails where a sample's members are not side by side."""
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    last = ""
    with tarfile.open(tar) as opened:
        for info in opened:
            key, _, ending = info.name.partition(".")
            assert key == last or key not in found
            found.setdefault(key, ([], {}))[0].append(ending)
            if ending == "json":
                found[key][1].update(json.load(opened.extractfile(info)))  # type: ignore[arg-type]
            last = key
    return found


def test_stats_have_img2datasets_fields(ours: dict[str, Path], theirs: dict[str, Path]) -> None:
    found, wanted = (json.loads((side["webdataset"] / "002_stats.json").read_text()) for side in (ours, theirs))
    assert list(found) == list(wanted)
    assert {name: found[name] for name in found if "time" not in name and name != "duration"} == {
        name: wanted[name] for name in wanted if "time" not in name and name != "duration"
    }
