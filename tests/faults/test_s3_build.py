"""A whole build with its input and its ROOT in S3, while the store fails one request in five."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from jobs.demo.web import Web
from tests.fault_proxy import FaultProxy, Rule
from tests.running import job, write_recipe


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=400, seed=11) as web:
        yield web


def test_a_build_in_s3_verifies_although_a_fifth_of_all_requests_fail(
    web: Web, s3: str, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    bucket = s3.split("/")[2]
    boto3.client("s3").upload_file(str(web.list_path), bucket, "lists/list.parquet")
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe, shard={"number_sample_per_shard": 200})
    s3_proxy.rules = [
        Rule(answer=500, share=0.05),
        Rule(answer=503, share=0.05),
        Rule(answer="reset", share=0.05),
        Rule(answer="reset", after=True, share=0.05, method="PUT|POST|DELETE"),
    ]
    done = job("build", "--recipe", recipe, "--input", f"s3://{bucket}/lists", "--output", s3)
    assert done.returncode == 0, done.stderr
    assert s3_proxy.faults > 20
    s3_proxy.rules = []
    checked = job("verify", s3)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    hits = web.hits()
    again = job("build", "--recipe", recipe, "--input", f"s3://{bucket}/lists", "--output", s3)
    assert again.returncode == 0, again.stderr
    assert web.hits() == hits
    assert job("show", s3).returncode == 0


def test_a_bucket_that_is_not_there_is_one_line_before_any_work(web: Web, s3: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", "s3://no-such-bucket/root")
    assert done.returncode == 2
    assert "no-such-bucket" in done.stderr
    assert "Traceback" not in done.stderr
