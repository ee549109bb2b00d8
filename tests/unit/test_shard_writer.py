"""What stands in a shard's files."""

import io
import json
import tarfile
from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shard.rows import DECIDED
from pipeline.shard.writer import MEMBERS, kept_name, samples_table, stats_of
from schemas.tables import OUTCOMES, SAMPLES
from tests.pool_fixture import FETCHED


def outcomes(**columns: list[object]) -> pa.Table:
    count = len(next(iter(columns.values())))
    schema = pa.schema(
        [*OUTCOMES, *DECIDED, *(pa.field(name, pa.string()) for name in columns if name.startswith("src_"))]
    )
    return pa.Table.from_pydict({name: columns.get(name, [None] * count) for name in schema.names}, schema=schema)


@given(st.lists(st.tuples(st.from_regex(r"[0-9]{1,17}\.(jpg|json|txt)", fullmatch=True), st.binary(max_size=2000))))
def test_tar_members_are_read_back_by_tarfile_without_owner_or_time(members: list[tuple[str, bytes]]) -> None:
    file = io.BytesIO()
    for name, data in members:
        file.writelines(MEMBERS.member(name, data))
    file.write(bytes(1024))
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        found = tar.getmembers()
        assert [(info.name, tar.extractfile(info).read()) for info in found] == members  # type: ignore[union-attr]
    assert all((info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "") for info in found)
    assert all(info.mode == 0o444 and info.isreg() for info in found)


def test_kept_input_columns_come_first_under_their_own_names() -> None:
    table = samples_table(outcomes(uid=["a"], src_license=["cc"], src_lang=["nl"]), ["000"])
    assert table.column_names == ["license", "lang", *SAMPLES.names]
    assert table["license"].to_pylist() == ["cc"]


@pytest.mark.parametrize("name", ["width", "sha256", "uid", "jpg", "caption"])
def test_a_kept_column_named_like_one_of_the_shards_keeps_its_prefix(name: str) -> None:
    assert kept_name(f"src_{name}") == f"src_{name}"


def test_an_image_without_exif_has_an_empty_object_as_in_img2dataset() -> None:
    table = samples_table(outcomes(exif=[None, '{"Image Make": "X"}']), ["0", "1"])
    assert table["exif"].to_pylist() == ["{}", '{"Image Make": "X"}']


def test_stats_take_their_times_from_the_fetches() -> None:
    moments = [FETCHED + timedelta(seconds=5), FETCHED, FETCHED + timedelta(seconds=2)]
    stats = stats_of(outcomes(fetched_at=moments))
    assert stats == {
        "count": 3, "successes": 3, "failed_to_download": 0, "failed_to_resize": 0, "duration": 5.0,
        "start_time": FETCHED.timestamp(), "end_time": FETCHED.timestamp() + 5, "status_dict": {"success": 3},
    }  # fmt: skip


def test_stats_of_rows_without_times_are_still_valid_json() -> None:
    assert json.loads(json.dumps(stats_of(outcomes(fetched_at=[None]))))["duration"] == 0.0
