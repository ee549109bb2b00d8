"""jobs.show --slices tells, for every language, host and size, what each rule and each level dropped there."""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.show import main
from pipeline.slices import read_slices
from pipeline.storage import Store, open_store
from schemas.records import Published, PublishedFile, now
from schemas.tables import DECISIONS, DUPLICATES, OUTCOMES, PAIRS, REJECTS

SIZES = {None: "no image", 99: "0 to 99 px", 100: "100 to 199 px", 199: "100 to 199 px", 200: "200 to 399 px",
         399: "200 to 399 px", 400: "400 to 799 px", 800: "800 to 1599 px", 1600: "1600 px and more"}  # fmt: skip
HOSTS = {"http://a.test/1.jpg": "a.test", "HTTPS://A.test:8443/x?y=//b.test": "a.test", "http://u:p@b.test/x": "b.test",
         "http://c.test": "c.test", "not a url": "none", "http://[2001:db8::1]:80/x": "[2001:db8::1]"}  # fmt: skip

Row = dict[str, Any]


def published(store: Store, name: str, schema: pa.Schema, rows: list[Row], scratch: Path) -> None:
    local = scratch / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), local)
    size = local.stat().st_size
    store.publish(local, f"tables/{name}/v1/part-00000.parquet")
    file = PublishedFile(path=f"tables/{name}/v1/part-00000.parquet", bytes=size, sha256="0" * 64, rows=len(rows))
    latest = Published(version=1, files=[file], rows=len(rows), written_at=now(), made_from={})
    store.replace(f"tables/{name}/latest.json", latest.to_bytes())


def make(store: Store, scratch: Path, count: int, decided: bool = True) -> list[Row]:
    """Publish random rows; returns them with the `slice` of each kind and how they `ended`."""
    chance = random.Random(count)
    tables: dict[str, list[Row]] = {name: [] for name in ("pairs", "outcomes", "rejects", "duplicates", "decisions")}
    told: list[Row] = []
    for number in range(count):
        url, side = chance.choice(list(HOSTS)), chance.choice(list(SIZES))
        lang = chance.choice(["en", "en", "de", None])
        row = {
            "uid": f"{number:032x}",
            "source": "l.csv",
            "source_row": number,
            "batch": "0001",
            "url": url,
            "text": "t",
        }
        kind = chance.choice(["reject", "dup_url", "failed", "refused", "image", "bytes", "perceptual", "rule", "kept"])
        seen: Row = {"host": HOSTS[url], "lang": lang or "unknown", "size": "no image"}
        if kind == "reject":
            reject = {"status": "rejected", "reason": "text_rule", "detail": "min_chars", "lang": lang}
            tables["rejects"].append({**row, **reject})
            told.append({**seen, "ended": "text_rule min_chars"})
            continue
        if kind == "dup_url" and tables["pairs"]:
            witness = chance.choice(tables["pairs"])
            duplicate = {"status": "rejected", "reason": "duplicate", "dup_of": witness["uid"], "lang": lang}
            tables["rejects"].append({**row, **duplicate})
            told.append({**seen, "lang": lang or witness["lang"] or "unknown", "ended": "duplicate url"})
            continue
        tables["pairs"].append({**row, "lang": lang})
        if kind in ("failed", "refused"):
            tables["outcomes"].append({**row, "status": kind, "reason": "timeout" if kind == "failed" else "robots"})
            told.append({**seen, "ended": kind})
            continue
        side = side or 99
        size = {"original_width": side, "original_height": side + chance.choice([0, 5_000])}
        if kind == "image":
            tables["outcomes"].append({**row, **size, "status": "rejected", "reason": "too_small"})
            told.append({**seen, "size": SIZES[side], "ended": "too_small"})
            continue
        tables["outcomes"].append({**row, **size, "status": "ok"})
        if kind in ("bytes", "perceptual"):
            tables["duplicates"].append({"uid": row["uid"], "dup_of": "0" * 32, "level": kind, "distance": 1.0})
            decision: Row = {"kept": False, "dropped_by": "duplicate"}
        else:
            decision = {"kept": kind != "rule", "dropped_by": "square" if kind == "rule" else None}
        tables["decisions"].append({"uid": row["uid"], **decision, "weight": 1.0})
        ended = f"duplicate {kind}" if decision["dropped_by"] == "duplicate" else decision["dropped_by"] or "kept"
        told.append({**seen, "size": SIZES[side], "ended": ended if decided or ended != "square" else "kept"})
    schemas = {"pairs": PAIRS, "outcomes": OUTCOMES, "rejects": REJECTS, "duplicates": DUPLICATES}
    for name, schema in {**schemas, **({"decisions": DECISIONS} if decided else {})}.items():
        published(store, name, schema, tables[name], scratch)
    store.replace("run.json", b"{}")
    return told


@pytest.mark.parametrize("decided", [True, False])
def test_every_slice_counts_what_ended_its_rows(root: str, tmp_path: Path, decided: bool) -> None:
    store = open_store(root)
    told = make(store, tmp_path, 1_500, decided)
    for kind, slices in read_slices(store, least=1, top=100).items():
        wanted: dict[str, Counter[str]] = defaultdict(Counter)
        for row in told:
            wanted[row[kind]][row["ended"]] += 1
        found = {one.name: Counter({**one.dropped, **one.lost, "kept": one.kept}) for one in slices}
        assert found == {name: ended + Counter(kept=0) for name, ended in wanted.items()}
        for one in slices:
            assert one.rows == sum(wanted[one.name].values())
            assert one.share_kept == pytest.approx(one.kept / one.rows)
            assert one.share_dropped == pytest.approx(sum(one.dropped.values()) / one.rows)
            assert set(one.lost) <= {"failed", "refused"}


def test_the_most_affected_come_first_and_small_slices_and_more_hosts_are_one_line(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    told = make(store, tmp_path, 1_500)
    by_host = Counter(row["host"] for row in told)
    slices = read_slices(store, ["host"], least=200, top=3)["host"]
    *shown, other = slices
    assert len(shown) == 3
    assert [one.share_dropped for one in shown] == sorted((one.share_dropped for one in shown), reverse=True)
    assert min(one.rows for one in shown) >= 200
    assert (other.name, other.folded) == ("other", len(by_host) - 3)
    assert sum(one.rows for one in slices) == len(told)
    all_ = read_slices(store, ["lang"], least=10_000)["lang"]
    assert [(one.name, one.rows) for one in all_] == [("other", 1_500)]


def test_rows_no_round_has_decided_on_are_pending_not_dropped(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    make(store, tmp_path, 300)
    pairs = [{"uid": "f" * 32, "lang": "xx", "url": "http://x.test/1"}]
    path = tmp_path / "root" / "tables"
    for name, rows in (("pairs", pairs), ("outcomes", [{**pairs[0], "status": "ok"}])):
        file = path / name / "v1" / "part-00000.parquet"
        table = pq.read_table(file)
        known = [{key: value for key, value in row.items() if key in table.column_names} for row in rows]
        pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(known, schema=table.schema)]), file)
    (found,) = [one for one in read_slices(store, ["lang"], least=1)["lang"] if one.name == "xx"]
    assert (found.kept, found.dropped, found.lost) == (0, {}, {"pending": 1})


def test_the_job_prints_tables_for_people_and_json_for_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "root")
    make(open_store(root), tmp_path, 800)
    assert main([root, "--slices"]) == 0
    lines = capsys.readouterr().out
    for word in ("by lang", "by host", "by size", "duplicate perceptual", "text_rule min_chars", "a.test"):
        assert word in lines
    assert main([root, "--slices", "--by", "size", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["size"]
    assert sum(one["rows"] for one in told["size"]) == 800
    with pytest.raises(SystemExit) as stopped:
        main([root, "--by", "size"])
    assert stopped.value.code == 2


def test_a_root_without_tables_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert main([str(tmp_path), "--slices"]) == 2
    assert "no tables are published yet" in capsys.readouterr().err
