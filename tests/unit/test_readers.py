"""Reading every input format: round trips, differentials on clean input, and broken input of every kind."""

import csv
import gzip
import io
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ingest.parquet import open_parquet, read_parquet, row_group_runs
from pipeline.ingest.readers import read_text
from pipeline.ingest.records import CsvRecords, JsonArrayError, JsonElements
from pipeline.ingest.sources import find_sources, opened
from schemas.recipe import Ingest

FORMATS = ["csv", "tsv", "json", "jsonl", "parquet"]


def read(path: Path, **ingest: Any) -> pa.Table:
    source = find_sources([str(path)])[0]
    if source.format == "parquet":
        return pa.concat_tables(read_parquet(source.source, 0, None, Ingest(**ingest)))
    with opened(source.source) as stream:
        tables = list(read_text(stream, source.format, Ingest(**ingest), source.source))
    return pa.concat_tables(tables, promote_options="default") if tables else pa.table({"row": [], "url": []})


def rows(path: Path, **ingest: Any) -> list[tuple[Any, ...]]:
    """(row, url, text, problem) of each row."""
    table = read(path, **ingest)
    return list(zip(*(table[name].to_pylist() for name in ("row", "url", "text", "reason")), strict=True))


def write(path: Path, pairs: list[tuple[str, str]], header: tuple[str, str] = ("url", "caption")) -> Path:
    """A file in the format its name says, written by another library's writer."""
    plain = path.name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        columns = list(zip(*pairs, strict=True)) or [(), ()]
        pq.write_table(pa.table({n: pa.array(c, pa.string()) for n, c in zip(header, columns, strict=True)}), path)
        return path
    text = io.StringIO(newline="")
    if plain.endswith((".csv", ".tsv")):
        writer = csv.writer(text, delimiter="," if plain.endswith(".csv") else "\t", quoting=csv.QUOTE_ALL)
        writer.writerows([header, *pairs])
    elif plain.endswith(".json"):
        json.dump([dict(zip(header, pair, strict=True)) for pair in pairs], text, ensure_ascii=False)
    elif plain.endswith(".jsonl"):
        text.writelines(json.dumps(dict(zip(header, pair, strict=True))) + "\n" for pair in pairs)
    else:
        text.writelines(url + "\n" for url, _ in pairs)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


NASTY = [
    ("http://a/1", 'commas, "quotes", and\nnew\r\nlines\rinside'),
    ("http://a/2,3;4", "=cmd|' /C calc'!A0"),
    ("http://a/../../x", "NUL \0 inside"),
    ("http://a/ü?q=日本", "\ufeffBOM, \u2028 line separator, \x85, \x1c, emoji 👩‍👩‍👧"),
    ("http://a/5", 'ends with a quote"'),
    ("http://a/6", '"begins with a quote'),
    ("http://a/7", "tab\there"),
    ("http://a/8", "<start_of_text> \ufffd"),
]


@pytest.mark.parametrize("suffix", [*FORMATS, "csv.gz", "tsv.gz", "json.gz", "jsonl.gz"])
def test_every_format_gives_back_what_was_written(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x.{suffix}", NASTY)
    assert rows(path) == [(i, url, text, None) for i, (url, text) in enumerate(NASTY)]
    assert not any(read(path)["repaired"].to_pylist())


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(st.text(), st.text(max_size=60)), min_size=1, max_size=8))
def test_any_text_round_trips(tmp_path: Path, suffix: str, pairs: list[tuple[str, str]]) -> None:
    path = write(tmp_path / f"x.{suffix}", pairs)
    assert rows(path) == [(i, url, text, None) for i, (url, text) in enumerate(pairs)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_ten_megabyte_text_round_trips(tmp_path: Path, suffix: str) -> None:
    text = 'word, "quoted"\n' * (10_000_000 // 15)
    path = write(tmp_path / f"x.{suffix}", [("http://a/1", text), ("http://a/2", "after")])
    assert rows(path) == [(0, "http://a/1", text, None), (1, "http://a/2", "after", None)]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_txt_lines_with_commas_stay_whole_and_have_no_text(tmp_path: Path, suffix: str, newline: str) -> None:
    path = tmp_path / f"x.{suffix}"
    data = newline.join(['\ufeffhttp://a/1,2,"3"', "", "http://a/4\u2028x"]).encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    expected = [(0, 'http://a/1,2,"3"', "", None), (1, None, "", "bad_row"), (2, "http://a/4\u2028x", "", None)]
    assert rows(path) == expected


@pytest.mark.parametrize(
    ("name", "data", "count"),
    [
        ("a.csv", b"", 0),
        ("a.csv", b"url,caption", 0),
        ("a.csv", b"url,caption\n", 0),
        ("a.csv", b"url,caption\nu,t", 1),
        ("a.csv", b"url,caption\nu,t\n", 1),
        ("a.csv", b"url,caption\nu,t\n\n", 2),
        ("a.csv", b"url,caption\ru,t\rv,w\r", 2),
        ("a.txt", b"", 0),
        ("a.txt", b"\xef\xbb\xbf", 0),
        ("a.txt", b"\n", 1),
        ("a.txt", b"u\nv", 2),
        ("a.jsonl", b'{"url":"u","caption":"t"}\n\n', 2),
        ("a.json", b" [ ] \n", 0),
        ("a.json", b'[{"url":"u","caption":"t"},3]', 2),
    ],
)
def test_rows_are_counted_as_the_contract_says(tmp_path: Path, name: str, data: bytes, count: int) -> None:
    (tmp_path / name).write_bytes(data)
    table = read(tmp_path / name)
    assert table["row"].to_pylist() == list(range(count))


def test_headerless_files_take_their_columns_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a cat\thttp://a/1\nno url\na dog\thttp://a/2\n")
    found = rows(tmp_path / "x.tsv", columns=["caption", "url"])
    assert found == [(0, "http://a/1", "a cat", None), (1, None, None, "bad_row"), (2, "http://a/2", "a dog", None)]


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        (["http://a/0,zero", 'http://a/1,"never closed', "http://a/2,two", 'http://a/3,"th""ree"'], {1}),
        (["http://a/0,zero", 'http://a/1,"text" after it', "http://a/2,two"], {1}),
        (["http://a/0,zero", 'http://a/1,"open', 'http://a/2,"two"', "http://a/3,three"], {1}),
        (["http://a/0,zero", "http://a/1", "http://a/2,two"], {1}),
        (["http://a/0,zero", "http://a/1,one,more", "http://a/2,two"], {1}),
        (["http://a/0,zero", "", "http://a/2,two"], {1}),
        (["http://a/0,zero", "   ", "http://a/2,two"], {1}),
        (['http://a/0,"', "http://a/1,one"], {0}),
        (['"', "http://a/1,one", "http://a/2,two"], {0}),
    ],
)
def test_a_broken_csv_record_is_a_bad_row_and_shifts_no_neighbour(
    tmp_path: Path, lines: list[str], bad: set[int]
) -> None:
    (tmp_path / "x.csv").write_text("url,caption\n" + "\n".join(lines) + "\n")
    table = read(tmp_path / "x.csv")
    assert len(table) == len(lines)
    for index, (url, reason, detail) in enumerate(
        zip(*(table[name].to_pylist() for name in ("url", "reason", "detail")), strict=True)
    ):
        if index in bad:
            assert (url, reason) == (None, "bad_row")
            assert detail
        else:
            assert (url, reason) == (f"http://a/{index}", None)


def test_a_quote_inside_an_unquoted_field_is_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('url,caption\nhttp://a/0,a 5" nail\nhttp://a/1,b\n')
    assert [row[2] for row in rows(tmp_path / "x.csv")] == ['a 5" nail', "b"]


def test_a_quote_never_closed_does_not_hold_the_rest_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.records.MAX_RECORD", 1_000)
    lines = ['http://a/0,"open', *[f"http://a/{i},text" for i in range(1, 500)]]
    (tmp_path / "x.csv").write_text("url,caption\n" + "\n".join(lines))
    assert [row[1] for row in rows(tmp_path / "x.csv")] == [None, *[f"http://a/{i}" for i in range(1, 500)]]


def test_tsv_lines_with_stray_quotes_are_taken_literally(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('url\tcaption\nhttp://a/0\t"Home" by a lake\nhttp://a/1\tnext\n')
    assert rows(tmp_path / "x.tsv") == [
        (0, "http://a/0", '"Home" by a lake', None),
        (1, "http://a/1", "next", None),
    ]


LATIN = "café".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.csv", b"url,caption\nhttp://a/0," + LATIN + b"\nhttp://a/1,ok\n"),
        ("x.tsv", b"url\tcaption\nhttp://a/0\t" + LATIN + b"\nhttp://a/1\tok\n"),
        ("x.jsonl", b'{"url":"http://a/0","caption":"' + LATIN + b'"}\n{"url":"http://a/1","caption":"ok"}\n'),
        ("x.json", b'[{"url":"http://a/0","caption":"' + LATIN + b'"},{"url":"http://a/1","caption":"ok"}]'),
        ("x.jsonl", b'{"url":"http://a/0","caption":"caf\\ud83d"}\n{"url":"http://a/1","caption":"ok"}\n'),
        ("x.json", b'[{"url":"http://a/0","caption":"caf\\udfff"},{"url":"http://a/1","caption":"ok"}]'),
    ],
)
def test_what_is_not_utf8_becomes_a_replacement_character_and_is_marked(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    table = read(tmp_path / name)
    assert table["text"].to_pylist() == ["caf\ufffd", "ok"]
    assert table["repaired"].to_pylist() == [True, False]


@given(data=st.binary(max_size=40))
def test_repair_agrees_with_the_encoding_standard(data: bytes) -> None:
    from pipeline.ingest.repair import LONE, string_array, valid_utf8

    expected = data.decode("utf-8", "replace")
    for array, mask in (string_array([data.decode("utf-8", LONE)]), valid_utf8(pa.array([data], pa.binary()))):
        assert array.to_pylist() == [expected]
        assert mask.tolist() == [expected.encode() != data]


def test_parquet_strings_that_are_not_utf8_are_repaired(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"ok"], pa.binary()).buffers())
    pq.write_table(pa.table({"url": ["http://a/0", "http://a/1"], "caption": broken}), tmp_path / "x.parquet")
    table = read(tmp_path / "x.parquet")
    assert table["text"].to_pylist() == ["caf\ufffd", "ok"]
    assert table["repaired"].to_pylist() == [True, False]


def test_values_that_are_no_strings(tmp_path: Path) -> None:
    values: list[Any] = ["s", 7, 1.5, None, True, ["x"], {"a": 1}, float("nan")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"url": "u", "caption": v}) + "\n" for v in values))
    found = [(text, reason) for _, _, text, reason in rows(tmp_path / "x.jsonl")]
    bad = (None, "bad_row")
    assert found == [("s", None), ("7", None), ("1.5", None), (None, None), bad, bad, bad, (None, None)]


@pytest.mark.parametrize("line", [b"{broken", b"[1]", b"3", b"null", b'{"url": "u"} x', b"[" * 100_000, b"9" * 5_000])
def test_a_broken_json_line_is_a_bad_row_of_its_own(tmp_path: Path, line: bytes) -> None:
    good = b'{"url":"u","caption":"t"}\n'
    (tmp_path / "x.jsonl").write_bytes(good + line + b"\n" + good)
    assert [row[3] for row in rows(tmp_path / "x.jsonl")] == [None, "bad_row", None]


def test_all_columns_are_kept_as_text_on_request(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"url": ["u"], "caption": ["t"], "n": [3], "box": [[[0.1, 0.2, 0.3, 0.4]]], "name": ["x"]}),
        tmp_path / "x.parquet",
    )
    table = read(tmp_path / "x.parquet", keep_columns=["*"])
    kept = {name: table[name].to_pylist() for name in table.column_names if name.startswith("src_")}
    assert kept == {"src_n": ["3"], "src_box": ["[[0.1, 0.2, 0.3, 0.4]]"], "src_name": ["x"]}
    (tmp_path / "x.jsonl").write_text('{"url":"u","caption":"t","n":3}\n{"url":"u","caption":"t","box":[1,"é"]}\n')
    table = read(tmp_path / "x.jsonl", keep_columns=["*"])
    assert table["src_n"].to_pylist() == ["3", None]
    assert table["src_box"].to_pylist() == [None, '[1, "é"]']


def test_columns_of_odd_types_and_names_can_be_kept(tmp_path: Path) -> None:
    table = pa.table(
        {
            "url": pa.array(["u"]).dictionary_encode(), "caption": [None], "when": [datetime(2026, 1, 2, 3)],
            "took": [timedelta(seconds=5)], "raw": [b"\xff"], "yes": [True], "x y": [1.5],
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet")
    (row,) = (
        read(tmp_path / "x.parquet", keep_columns=["*"])
        .select(["url", "text", "src_raw", "src_yes", "src_x y"])
        .to_pylist()
    )
    assert row == {"url": "u", "text": None, "src_raw": "\ufffd", "src_yes": "true", "src_x y": "1.5"}
    (tmp_path / "x.csv").write_bytes(b"url,caption,caf\xe9\nu,t,v\n")
    assert read(tmp_path / "x.csv", keep_columns=["*"])["src_caf\ufffd"].to_pylist() == ["v"]
    (tmp_path / "x.jsonl").write_text('{"url":"u","caption":"t","\\ud800":"v"}\n')
    assert read(tmp_path / "x.jsonl", keep_columns=["*"])["src_\ufffd"].to_pylist() == ["v"]


@given(
    values=st.lists(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                                 lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)),
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
)  # fmt: skip
def test_json_elements_are_those_of_the_whole_array_whatever_the_chunks(
    values: list[Any], chunk: int, indent: int | None
) -> None:
    text = json.dumps(values, indent=indent)
    assert list(JsonElements(io.StringIO(text), chunk)) == json.loads(text)


@given(cut=st.integers(0, 60), chunk=st.integers(1, 20))
def test_a_json_array_cut_anywhere_is_broken(cut: int, chunk: int) -> None:
    text = '[{"url": "http://a", "n": 1.5e3, "x": [true, null]}, -7, "end"]'
    with pytest.raises(JsonArrayError):
        list(JsonElements(io.StringIO(text[:cut]), chunk))


@given(st.lists(st.lists(st.text(), min_size=2, max_size=4), max_size=6))
def test_csv_records_are_those_of_the_csv_module_on_well_formed_text(records: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(records)
    text.seek(0)
    assert list(CsvRecords(text, ",")) == records


CLEAN = [(f"https://h{i % 7}.example/{i}.jpg", f'caption {i}, number "{i}"') for i in range(3000)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_clean_input_reads_as_pandas_and_pyarrow_read_it(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x.{suffix}", CLEAN)
    ours = [(url, text) for _, url, text, _ in rows(path)]
    peers: dict[str, Any] = {
        "csv": [lambda: pd.read_csv(path), lambda: pacsv.read_csv(path).to_pandas()],
        "tsv": [
            lambda: pd.read_csv(path, sep="\t"),
            lambda: pacsv.read_csv(path, parse_options=pacsv.ParseOptions(delimiter="\t")).to_pandas(),
        ],
        "json": [lambda: pd.read_json(path)],
        "jsonl": [lambda: pd.read_json(path, lines=True), lambda: pajson.read_json(path).to_pandas()],
        "parquet": [lambda: pd.read_parquet(path), lambda: pq.read_table(path).to_pandas()],
    }
    for peer in peers[suffix]:
        assert ours == list(peer()[["url", "caption"]].itertuples(index=False, name=None))


def test_row_groups_are_read_in_pieces_with_the_file_s_row_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.parquet.PIECE_ROWS", 700)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"url": [u for u, _ in CLEAN], "caption": [t for _, t in CLEAN]}), path, row_group_size=400)
    runs = row_group_runs(open_parquet(str(path)))
    assert len(runs) > 2
    pieces = [table for first, groups in runs for table in read_parquet(str(path), first, groups, Ingest())]
    together = pa.concat_tables(pieces)
    assert together["row"].to_pylist() == list(range(len(CLEAN)))
    assert together["url"].to_pylist() == [url for url, _ in CLEAN]


def test_batches_stay_small_whatever_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [("http://a", "x" * 1_000_000)] * 80)
    with opened(str(path)) as stream:
        sizes = [table.nbytes for table in read_text(stream, "jsonl", Ingest(), str(path))]
    assert len(sizes) >= 2
    assert max(sizes) < 40 * 1024 * 1024
