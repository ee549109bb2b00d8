"""shard.output_format: files and parquet, built and verified; verify sees what is broken in them."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.demo.web import Web
from tests.running import job, write_recipe


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=200, seed=21) as web:
        yield web


def build(web: Web, folder: Path, output_format: str) -> Path:
    shard = {"number_sample_per_shard": 50, "output_format": output_format}
    recipe = write_recipe(folder / "r.yaml", web.recipe, shard=shard)
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", folder / "root")
    assert done.returncode == 0, done.stderr
    checked = job("verify", folder / "root")
    assert checked.returncode == 0, checked.stdout
    [dataset] = (folder / "root").glob("shard/*/dataset")
    return dataset


def breaches(folder: Path) -> str:
    checked = job("verify", folder / "root")
    assert checked.returncode == 1, checked.stdout
    return str(checked.stdout)


def test_files_verify_until_one_is_changed_or_gone(web: Web, tmp_path: Path) -> None:
    dataset = build(web, tmp_path, "files")
    image = min(path for path in dataset.rglob("*") if path.suffix in (".jpg", ".png", ".webp"))
    data = image.read_bytes()
    image.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert image.name in breaches(tmp_path)
    image.unlink()
    assert image.name in breaches(tmp_path)


def test_parquet_verifies_until_an_image_is_changed(web: Web, tmp_path: Path) -> None:
    dataset = build(web, tmp_path, "parquet")
    path = min(dataset.glob("*.parquet"))
    table = pq.read_table(path)
    [name] = [field.name for field in table.schema if pa.types.is_binary(field.type)]
    images = table[name].to_pylist()
    images[0] = images[0][:-1] + bytes([images[0][-1] ^ 1])
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, table.schema.field(name), pa.array(images, pa.binary())), path)
    told = breaches(tmp_path)
    assert path.name in told
