"""Lists of what to withdraw: forms, kinds and columns, and one clear line for what is none of them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.retract.listing import read_list

MD5, SHA1, SHA256 = "0123456789abcdef" * 2, "0123456789abcdef01234567" + "89abcdef01234567", "0123456789abcdef" * 4


def read(path: Path, text: str) -> dict[str, set[str]]:
    path.write_text(text, "utf-8")
    return {kind: set(values) for kind, values in read_list(str(path)).values.items()}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("https://Example.org/a b#top", {"url": {"https://example.org/a%20b"}}),
        ("url:http://example.org:80/x", {"url": {"http://example.org/x"}}),
        ("Example.ORG", {"host": {"example.org"}}),
        ("bücher.example", {"host": {"xn--bcher-kva.example"}}),
        ("host:localhost", {"host": {"localhost"}}),
        ("192.0.2.7", {"host": {"192.0.2.7"}}),
        ("[2001:db8::1]", {"host": {"[2001:db8::1]"}}),
        (MD5.upper(), {"md5": {MD5}, "url_md5": {MD5}, "uid": {MD5}}),
        (f"uid:{MD5}", {"uid": {MD5}}),
        (f"url_md5: {MD5}", {"url_md5": {MD5}}),
        (SHA1, {"sha1": {SHA1}}),
        (SHA256, {"sha256": {SHA256}, "pdq": {SHA256}}),
        (f"pdq:{SHA256}", {"pdq": {SHA256}}),
    ],
)
def test_a_line_is_known_by_its_form_or_by_what_stands_before_it(
    tmp_path: Path, line: str, wanted: dict[str, set[str]]
) -> None:
    assert read(tmp_path / "list.txt", f"# why\n\n{line}\r\n") == wanted


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no-host", "no URL, no host and no hash"),
        ("abc123", "no URL, no host and no hash"),
        ("0" * 33, "no URL, no host and no hash"),
        ("g" * 32, "no URL, no host and no hash"),
        ("sha256:abc", "no sha256"),
        (f"sha1:{MD5}", "no sha1"),
        ("host:example.org/path", "no host name"),
        ("example.org/path", "no URL, no host and no hash"),
        ("..", "no URL, no host and no hash"),
    ],
)
def test_what_is_nothing_we_know_is_one_line_with_its_place(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path / "list.txt", f"example.org\n{line}\n")
    assert f"list.txt:2: '{line.rpartition(':')[2][:40]}" in str(error.value)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "\n# nothing\n"])
def test_an_empty_list_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path / "list.txt", text)


def test_a_list_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_list(str(tmp_path / "none.txt"))


def test_csv_columns_are_named_by_their_kind(tmp_path: Path) -> None:
    found = read(tmp_path / "list.csv", f'note,host,url_md5\n"a, b",example.org,\n,,{MD5}\n')
    assert found == {"host": {"example.org"}, "url_md5": {MD5}}


def test_parquet_columns_are_named_by_their_kind(tmp_path: Path) -> None:
    table = pa.table({"sha256": [SHA256, None], "url": [None, "http://example.org/1"], "other": ["x", "y"]})
    pq.write_table(table, tmp_path / "list.parquet")
    found = read_list(str(tmp_path / "list.parquet"))
    assert {kind: set(of) for kind, of in found.values.items()} == {
        "sha256": {SHA256}, "url": {"http://example.org/1"},
    }  # fmt: skip
    assert found.entries == 2


def test_columns_of_no_known_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its columns"):
        read(tmp_path / "list.csv", "hash\nabc\n")
