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


def test_a_worker_killed_after_a_record_whose_reply_was_lost_has_committed(
    web: Web, s3: str, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    unit = "0001-0000001"
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe, ray={"pools": {"download": 1}})
    lost = Rule(answer="reset", after=True, method="PUT", key=rf"download/\w+/units/{unit}\.0\.json", count=1)
    s3_proxy.rules = [lost]
    flag = tmp_path / "killed"
    assert job("ingest", "--recipe", recipe, "--input", web.list_path, "--output", s3).returncode == 0
    fault = {"PAIRMILL_FAULT": f"after-record@{unit}:kill:{flag}"}
    done = job("download", "--recipe", recipe, "--output", s3, env=fault)
    assert done.returncode == 0, done.stderr
    assert lost.count == 0, "the reply was lost"
    assert flag.exists(), "the worker was killed"
    bucket = s3.split("/")[2]
    keys = [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]]
    marks = [key for key in keys if f"/attempts/{unit}." in key and key.split("/")[-4] == "download"]
    assert len(marks) == 1, "the unit was not begun again"
    checked = job("verify", s3)
    assert checked.returncode == 0, checked.stdout + checked.stderr
