"""Input files that are not what they say: each is refused in one line that names it."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from tests.unit.test_readers import FORMATS, read, write


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x.{suffix}", [("http://a", "t")], header=("URL_", "captions"))
    with pytest.raises(InputError, match=r"'URL_', 'captions'; did you mean 'captions'") as error:
        read(path, url_col="URL_", caption_col="caption")
    assert str(path) in str(error.value)


def broken_parquet(path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://a"] * 5000, "caption": [str(i) for i in range(5000)]}), path)


@pytest.mark.parametrize("damage", ["truncated", "middle", "empty", "text"])
def test_a_broken_parquet_file_is_refused_with_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.parquet"
    broken_parquet(path)
    data = bytearray(path.read_bytes())
    if damage == "middle":
        data[40 : len(data) // 2] = bytes(len(data) // 2 - 40)
    path.write_bytes(
        {"truncated": bytes(data[:-100]), "middle": bytes(data), "empty": b"", "text": b"url,caption"}[damage]
    )
    with pytest.raises(InputError, match=r"x\.parquet.*get it again") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["csv.gz", "tsv.gz", "json.gz", "jsonl.gz", "txt.gz"])
@pytest.mark.parametrize("damage", ["truncated", "corrupt", "garbage after", "not gzip", "empty"])
def test_a_broken_gz_file_is_refused_with_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    path = write(tmp_path / f"x.{suffix}", [(f"http://a/{i * 7919}", f"text {i * i}") for i in range(3000)])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    corrupt = bytes(data[:middle]) + bytes(64) + bytes(data[middle + 64 :])
    cases = {
        "truncated": bytes(data[:middle]),
        "corrupt": corrupt,
        "garbage after": bytes(data) + b"junk",
        "empty": b"",
    }
    path.write_bytes(cases.get(damage, gzip.decompress(data)))
    with pytest.raises(InputError, match=r"x\..*gz") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"url":"u"}\n{"url":"v"}', b"[", b'[{"url":"u"}', b'[{"url":"u"},]', b'[{"url":"u"} {"a":1}]',
     b'[{"url":"u]', b'[{"url":"u"}] x', b"[{url:1}]", b"[1,", b"[tru", b"[[[["],
)  # fmt: skip
def test_a_broken_json_array_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.json"):
        read(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.csv", "url,caption\nu,t\n".encode("utf-16"), "UTF-16"),
        ("x.csv", gzip.compress(b"url,caption\n", mtime=0), r"\.gz"),
        ("x.csv", b"url,url,caption\nu,u,t\n", "twice"),
        ("x.csv", b'"url,caption\nu,t\n', "header"),
        ("x.csv", b"\nurl,caption\nu,t\n", "no column 'url'"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=says):
        read(tmp_path / name)
