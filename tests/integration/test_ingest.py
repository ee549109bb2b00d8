"""Ingest as a stage: batches, limits, readmission, earlier duplicates, resumption, and S3; over Ray and without."""

import csv
import gzip
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from pipeline.errors import InputError
from pipeline.ingest import batch as batch_module
from pipeline.ingest import partition, stage
from pipeline.ingest.scan import PieceReader, plan_pieces
from pipeline.ingest.sources import find_sources
from pipeline.ingest.stage import count_new_rows, make_batches, run_ingest
from pipeline.root import read_batches
from pipeline.runner import Result
from pipeline.stop import StopFlag
from pipeline.storage import Store, open_store
from pipeline.units import StageFolder, add_counts
from schemas.recipe import Recipe, fingerprint, parse_recipe
from schemas.records import Batch
from schemas.tables import PAIRS


def recipe(**ingest: Any) -> Recipe:
    return parse_recipe({"ingest": ingest}, "test")


class Ingested:
    """A ROOT that is fed: `add` makes a batch and ingests all that is missing."""

    def __init__(self, root: Path | str, settings: Recipe | None = None) -> None:
        self.store: Store = open_store(str(root))
        self.settings = settings or recipe()
        self.folder = StageFolder(self.store, "ingest", fingerprint(self.settings, "ingest", {}))

    def make(
        self, *inputs: object, limit: int | None = None, readmit: str | None = None, **ingest: Any
    ) -> Batch | None:
        self.settings = recipe(**ingest) if ingest else self.settings
        return make_batches(self.store, self.settings, list(map(str, inputs)), limit, readmit, "run")

    def run(self, stop_after: int | None = None) -> list[Result]:
        stop = StopFlag(self.store.uri, "run")
        results: list[Result] = []

        def report(result: Result) -> None:
            results.append(result)
            if stop_after is not None and len(results) == stop_after:
                stop.raise_flag()

        run_ingest(self.store, self.settings, list(read_batches(self.store).values()), self.folder, "run", stop, report)
        stop.lower()
        return results

    def add(self, *inputs: object, **options: Any) -> Batch | None:
        made = self.make(*inputs, **options)
        self.run()
        return made

    def table(self, name: str) -> list[dict[str, Any]]:
        """All current rows of a table, units in order."""
        rows: list[dict[str, Any]] = []
        for record in self.folder.records().values():
            for entry in record.files:
                if entry.table == name:
                    data = self.store.read(f"{self.folder.base}/{entry.path}")
                    assert hashlib.sha256(data).hexdigest() == entry.sha256
                    found = pq.read_table(pa.BufferReader(data)).to_pylist()
                    assert len(found) == entry.rows
                    rows += found
        return rows

    def digests(self) -> dict[str, list[tuple[str, str]]]:
        """unit → (table, sha256) of its files."""
        return {u: [(f.table, f.sha256) for f in r.files] for u, r in self.folder.records().items()}


def check_every_row_once(ingested: Ingested) -> None:
    """Invariant 1 as far as ingest goes, and that no uid is a pair twice."""
    pairs, rejects = ingested.table("pairs"), ingested.table("rejects")
    places = Counter((row["source"], row["source_row"]) for row in pairs + rejects)
    assert not [place for place, times in places.items() if times > 1]
    batches = list(read_batches(ingested.store).values())
    records = ingested.folder.records()
    fed = sum(batch.rows for batch in batches if batch.readmits is None)
    assert len(places) == fed == sum(record.rows for record in records.values())
    assert [unit.unit for batch in batches for unit in batch.units] == list(records)
    uids = Counter(row["uid"] for row in pairs)
    assert max(uids.values(), default=1) == 1
    kept = set(uids)
    assert all(row["dup_of"] in kept for row in rejects if row["reason"] == "duplicate")
    counts = add_counts(record.counts for record in records.values())
    ended = Counter((row["status"], row["reason"]) for row in rejects)
    assert {(s, r): n for s, reasons in counts.items() if s != "ok" for r, n in reasons.items()} == dict(ended)
    assert counts.get("ok", {}).get("", 0) == len(pairs)
    assert not list(ingested.store.files(f"{ingested.folder.base}/scratch"))


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("url", "caption")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def many(count: int, hosts: int, start: int = 0) -> list[tuple[str, str]]:
    return [
        (f"http://h{i * i % hosts}.example/{i // 2}.jpg", f"text {i % 3} of {i}") for i in range(start, start + count)
    ]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with a file of every format, each with good rows and its own kinds of trouble."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    write_csv(folder / "a.csv", [*many(300, 40), ("x.jpg", "relative"), ("ftp://x/", "scheme"), ("http://a/", "")])
    with (folder / "a.csv").open("a") as file:
        file.write('\nhttp://b/,"unclosed\nhttp://c/,fine\nhttp://d/,one,more\n')
    rows = [{"url": url, "caption": text, "w": i} for i, (url, text) in enumerate(many(200, 40, 250))]
    (folder / "b.jsonl.gz").write_bytes(
        gzip.compress(b"\n".join(json.dumps(row).encode() for row in rows) + b"\n{oops\n")
    )
    (folder / "deep" / "c.json").write_text(json.dumps([*rows[:20], 7]))
    pq.write_table(pa.Table.from_pylist(rows), folder / "d.parquet", row_group_size=64)
    (folder / "e.txt").write_text("http://h1.example/1,2.jpg\n\nhttp://h1.example/0.jpg\n")
    (folder / "f.tsv").write_text('url\tcaption\nhttp://g/\t"Home" by a lake\n')
    return folder


def test_every_row_of_every_format_ends_once(tmp_path: Path, mixed: Path) -> None:
    ingested = Ingested(tmp_path / "root")
    assert count_new_rows(ingested.store, ingested.settings, [str(mixed)], []) == 307 + 201 + 21 + 200 + 3 + 1
    made = ingested.add(mixed)
    assert made is not None
    assert {Path(f.source).name: f.rows for f in made.files} == {
        "a.csv": 307, "b.jsonl.gz": 201, "c.json": 21, "d.parquet": 200, "e.txt": 3, "f.tsv": 1,
    }  # fmt: skip
    check_every_row_once(ingested)
    reasons = Counter(row["reason"] for row in ingested.table("rejects"))
    assert (reasons["bad_row"], reasons["missing_text"], reasons["bad_url"], reasons["bad_scheme"]) == (6, 1, 1, 1)
    pairs = ingested.table("pairs")
    assert list(pairs[0]) == PAIRS.names
    assert {"http://h1.example/1,2.jpg", "http://g/", "http://c/"} <= {row["url"] for row in pairs}


def test_units_follow_hosts_and_a_large_host_has_a_lane(tmp_path: Path) -> None:
    big = [(f"http://big.example/{i // 3}.jpg", f"text {i}") for i in range(1200)]
    path = write_csv(tmp_path / "x.csv", [*many(900, 60), *big, *[("bad", "x")] * 300])
    ingested = Ingested(tmp_path / "root")
    made = ingested.add(path)
    assert made is not None
    check_every_row_once(ingested)
    host = hashlib.sha256(b"big.example").hexdigest()[:16]
    lanes = [unit for unit in made.units if unit.lane]
    assert {unit.lane for unit in lanes} == {host}
    assert sum(unit.rows for unit in lanes) == 1200
    assert [unit.rows for unit in made.units[:2]] == [250, 50], "rows without a usable URL come first"
    owners: dict[str, set[str]] = {}
    for unit, record in ingested.folder.records().items():
        entry = next(entry for entry in record.files if entry.table == "pairs")
        for row in pq.read_table(tmp_path / "root" / ingested.folder.base / entry.path).to_pylist():
            owners.setdefault(row["fetch_url"], set()).add(unit)
            name = row["fetch_url"].split("/")[2]
            key = (
                hashlib.sha256(name.encode()).hexdigest()[:16]
                + hashlib.sha256(row["fetch_url"].encode()).hexdigest()[:16]
            )
            span = next(span for span in made.units if span.unit == unit)
            assert span.first <= key <= span.last
    assert all(len(units) == 1 for units in owners.values())


def test_known_files_are_skipped_and_changed_ones_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", many(30, 5))
    ingested = Ingested(tmp_path / "root")
    assert ingested.add(path) is not None
    before = ingested.digests()
    os.utime(path)
    assert ingested.add(path, tmp_path) is None
    assert ingested.run() == []
    write_csv(path, many(31, 5))
    with pytest.raises(InputError, match=r"x\.csv: batch 0001"):
        ingested.make(path)
    assert ingested.digests() == before
    assert len(list(read_batches(ingested.store).values())) == 1


def test_a_later_batch_gives_way_to_earlier_pairs(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "zzz.csv", many(600, 30))
    second = write_csv(tmp_path / "aaa.csv", [*many(600, 30, 300), ("HTTP://H0.example:80/0.jpg#new", "text 0 of 0")])
    ingested = Ingested(tmp_path / "root")
    ingested.add(first)
    before = ingested.digests()
    ingested.add(first, second)
    check_every_row_once(ingested)
    after = ingested.digests()
    assert {unit: after[unit] for unit in before} == before
    later = [row for row in ingested.table("pairs") if row["batch"] == "0002"]
    assert {row["text"] for row in later} == {text for _, text in many(300, 30, 600)}
    assert len([r for r in ingested.table("rejects") if r["batch"] == "0002" and r["reason"] == "duplicate"]) == 301


def test_by_url_an_earlier_batch_s_pair_wins_whatever_the_text(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "a.csv", [("http://a/1", "one"), ("http://a/1", "two")])
    second = write_csv(tmp_path / "b.csv", [("http://a/1", "three"), ("http://a/2", "x"), ("http://a/2", "y")])
    ingested = Ingested(tmp_path / "root")
    ingested.add(first)
    ingested.add(second, dedupe="url")
    check_every_row_once(ingested)
    assert [(row["batch"], row["text"]) for row in ingested.table("pairs")] in (
        [("0001", "one"), ("0001", "two"), ("0002", "x")],
    )


def test_a_limit_takes_the_rows_with_the_lowest_hashes(tmp_path: Path) -> None:
    files = [write_csv(tmp_path / f"{name}.csv", [*many(200, 20), ("bad", "x")]) for name in "ab"]
    ingested = Ingested(tmp_path / "root")
    made = ingested.add(*files, limit=50)
    assert made is not None
    assert (made.rows, made.limit, [file.rows for file in made.files]) == (50, 50, [201, 201])
    check_every_row_once(ingested)
    every = [(str(path), row) for path in files for row in range(201)]
    lowest = sorted(every, key=lambda place: hashlib.sha256(f"{place[0]}\x1f{place[1]}".encode()).digest())[:50]
    rows = ingested.table("pairs") + ingested.table("rejects")
    assert {(row["source"], row["source_row"]) for row in rows} == set(lowest)
    assert ingested.add(*files, limit=50) is None
    more = write_csv(tmp_path / "c.csv", many(10, 2))
    for limit in (49, None):
        with pytest.raises(InputError, match="limit"):
            ingested.make(*files, more, limit=limit)
    assert ingested.add(more, limit=50) is not None


def test_a_limit_on_a_root_without_one_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", many(30, 5))
    ingested = Ingested(tmp_path / "root")
    ingested.add(path)
    with pytest.raises(InputError, match="no limit"):
        ingested.make(path, limit=7)


@pytest.mark.parametrize("scratch", ["kept", "lost"])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, mixed: Path, scratch: str) -> None:
    whole = Ingested(tmp_path / "whole")
    whole.add(mixed)
    stopped = Ingested(tmp_path / "stopped")
    stopped.make(mixed)
    assert len(stopped.run(stop_after=1)) == 1
    if scratch == "lost":
        shutil.rmtree(tmp_path / "stopped" / stopped.folder.base / "scratch")
    stopped.run()
    check_every_row_once(stopped)
    assert stopped.digests() == whole.digests()


def test_a_unit_whose_worker_died_is_done_alone_and_committed_ones_are_left(tmp_path: Path, mixed: Path) -> None:
    whole = Ingested(tmp_path / "whole")
    whole.add(mixed)
    died = Ingested(tmp_path / "died")
    made = died.make(mixed)
    assert made is not None
    died.folder.begin(made.units[1].unit, 0, "earlier run", alone=False)
    states = {result["unit"]: result["state"] for result in died.run()}
    assert set(states.values()) == {"done"}
    assert died.digests() == whole.digests()


def test_a_file_that_changed_before_its_units_were_ingested_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", many(30, 5))
    ingested = Ingested(tmp_path / "root")
    ingested.make(path)
    shutil.rmtree(tmp_path / "root" / ingested.folder.base / "scratch")
    write_csv(path, many(29, 5))
    with pytest.raises(InputError, match="put the file back"):
        ingested.run()


def test_ray_and_this_process_write_the_same_bytes(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in {"g.csv": many(2000, 100, 5000), "h.csv": many(1500, 3, 9000)}.items():
        write_csv(mixed / name, [(url, text) for url, text in rows])
    here = Ingested(tmp_path / "here")
    here.add(mixed, keep_columns=["*"])
    monkeypatch.setattr(stage, "SMALL_ROWS", 0)
    monkeypatch.setattr(batch_module, "SMALL_BYTES", 0)
    monkeypatch.setattr(stage, "NEIGHBOURS_ROWS", 600)
    over_ray = Ingested(tmp_path / "ray")
    over_ray.add(mixed, keep_columns=["*"])
    check_every_row_once(over_ray)
    assert over_ray.digests() == here.digests()
    assert [row["src_w"] for row in here.table("pairs") if row["source"].endswith("b.jsonl.gz")]


def test_small_parts_and_large_ones_give_the_same_units(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Ingested(tmp_path / "large")
    large.add(mixed)
    monkeypatch.setattr(partition, "PART_ROWS", 50)
    monkeypatch.setattr(partition, "GROUP_ROWS", 16)
    monkeypatch.setattr("pipeline.ingest.readers.BATCH_ROWS", 37)
    small = Ingested(tmp_path / "small")
    small.add(mixed)
    assert small.digests() == large.digests()


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.csv.gz", gzip.compress(b"url,caption\n" + b"http://a,b\n" * 999, mtime=0)[:-20], r"x\.csv\.gz"),
        ("x.parquet", b"PAR1 but no more", r"x\.parquet"),
        ("x.json", b'[{"url": "http://a", "caption": "b"}', r"x\.json"),
        ("x.csv", b"link,caption\nhttp://a,b\n", "'link'"),
    ],
)
def test_input_that_cannot_be_read_makes_no_batch(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    good = write_csv(tmp_path / "good.csv", many(10, 2))
    (tmp_path / name).write_bytes(data)
    ingested = Ingested(tmp_path / "root")
    with pytest.raises(InputError, match=says) as error:
        ingested.make(good, tmp_path / name)
    assert "\n" not in str(error.value)
    assert list(read_batches(ingested.store).values()) == []
    ingested.add(good)
    check_every_row_once(ingested)


def test_a_file_that_keeps_killing_its_readers_ends_the_run(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", many(10, 2))
    (piece,) = plan_pieces(find_sources([str(path)]))
    readers = [PieceReader(str(tmp_path / "root"), "scratch", recipe().ingest, None, "run") for _ in range(6)]
    answers = [json.loads(reader.run(piece, alone=False)["answer"]) for reader in readers]
    assert ["error" in answer for answer in answers] == [False] * 5 + [True]
    another_run = PieceReader(str(tmp_path / "root"), "scratch", recipe().ingest, None, "another")
    assert "error" not in json.loads(another_run.run(piece, alone=False)["answer"])


def test_a_bad_prefilter_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    ingested = Ingested(tmp_path / "root", recipe(prefilter={"p": "n_chrs > 3"}))
    with pytest.raises(InputError, match=r"ingest\.prefilter\.p.*n_chrs"):
        ingested.make(tmp_path / "nowhere.csv")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x",
                        "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="sets")
    yield client
    server.stop()


def test_s3_input_and_output_are_as_local_ones(tmp_path: Path, mixed: Path, bucket: Any) -> None:
    for path in sorted(mixed.rglob("*")):
        if path.is_file():
            bucket.upload_file(str(path), "sets", f"in/{path.relative_to(mixed)}")
    bucket.put_object(Bucket="sets", Key="in/_SUCCESS", Body=b"")
    there = Ingested("s3://sets/root")
    assert there.add("s3://sets/in/*.csv") is not None
    made = there.add("s3://sets/in", "s3://sets/in/deep/c.json")
    assert made is not None
    assert [file.source for file in made.files] == [
        "s3://sets/in/b.jsonl.gz", "s3://sets/in/d.parquet", "s3://sets/in/deep/c.json",
        "s3://sets/in/e.txt", "s3://sets/in/f.tsv",
    ]  # fmt: skip
    check_every_row_once(there)
    local = Ingested(tmp_path / "root")
    local.add(mixed / "a.csv")
    local.add(mixed)
    assert sorted(row["uid"] for row in there.table("pairs")) == sorted(row["uid"] for row in local.table("pairs"))
    bucket.put_object(Bucket="sets", Key="in/e.txt", Body=b"http://other/\n")
    with pytest.raises(InputError, match=r"s3://sets/in/e\.txt"):
        there.make("s3://sets/in")
    with pytest.raises(InputError, match="nothing"):
        there.make("s3://sets/nothing")
