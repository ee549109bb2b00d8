"""Fixtures every suite may use: an S3 store on loopback that can be told to fail."""

import uuid
from collections.abc import Iterator

import pytest

from tests.fault_proxy import FaultProxy


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[FaultProxy]:
    with FaultProxy() as proxy:
        yield proxy


@pytest.fixture
def s3(_s3_server: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket/root` in an empty bucket; the environment leads boto3, pyarrow and child processes to it."""
    for name, value in {
        "AWS_ENDPOINT_URL": _s3_server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    _s3_server.rules = []
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    import boto3

    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/root"


@pytest.fixture
def s3_proxy(_s3_server: FaultProxy, s3: str) -> Iterator[FaultProxy]:
    """The proxy in front of `s3`: set its `rules` to make the store fail."""
    _s3_server.requests.clear()
    _s3_server.faults = 0
    yield _s3_server
    _s3_server.rules = []


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: object) -> str:
    """A ROOT's URI, on a local disk and in S3."""
    return str(request.getfixturevalue("s3")) if request.param == "s3" else f"{tmp_path}/root"
