"""The download stage's small parts: pool tars and outcomes."""

import hashlib
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.download.pool import PoolWriter
from pipeline.download.rows import Outcomes, targets


@given(st.lists(st.binary(max_size=2000), max_size=8))
def test_every_pool_member_is_one_range_of_a_tar_that_tarfile_reads(bodies: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        pool = PoolWriter(Path(folder) / "pool.tar")
        members = [pool.add(f"{number:032x}.jpg", body) for number, body in enumerate(bodies)]
        pool.close()
        data = pool.path.read_bytes()
        with tarfile.open(pool.path) as tar:
            assert [tar.extractfile(member).read() for member in tar] == bodies  # type: ignore[union-attr]
    for body, member in zip(bodies, members, strict=True):
        assert data[member.offset : member.offset + member.size] == body
        assert member.sha256 == hashlib.sha256(body).hexdigest()


def pairs(urls: list[str]) -> pa.Table:
    rows = [
        {"uid": f"{n:032x}", "url": url, "text": "t", "caption": "t", "fetch_url": url, "source": "s", "source_row": n,
         "batch": "0001"}
        for n, url in enumerate(urls)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_rows_that_share_a_url_are_one_fetch() -> None:
    assert [target.rows for target in targets(pairs(["http://a/1", "http://a/2", "http://a/1"]))] == [[0, 2], [1]]


def test_a_unit_with_a_row_without_an_outcome_makes_no_table() -> None:
    made = Outcomes(pairs(["http://a/1", "http://a/2"]), "0001-0000000", 0)
    made.set(0, None, {})
    with pytest.raises(ValueError, match="1 rows have no outcome"):
        made.table()


def test_a_row_cannot_end_twice() -> None:
    made = Outcomes(pairs(["http://a/1"]), "0001-0000000", 0)
    made.set(0, "timeout", {})
    with pytest.raises(ValueError, match="ended twice"):
        made.set(0, None, {})
