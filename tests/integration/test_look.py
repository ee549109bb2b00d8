"""jobs.look shows a seeded sample of rows as one self-contained page or sheet, whatever the web has put in them."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.look import main
from pipeline.look.page import told
from pipeline.look.rows import Rows, _pieces
from pipeline.retract.tombstone import tombstone
from pipeline.storage import LocalStore, open_store
from pipeline.tables import publish
from schemas.records import Retraction, now
from schemas.tables import DECISIONS, DUPLICATES
from tests.fault_proxy import FaultProxy, Rule
from tests.handmade import HandmadeRoot, Vandal
from tests.scored import HEAD, ScoredRoot, cosine, has, head

HOSTILE = '<script>alert(1)</script>"><img src=http://evil.test/x onerror=alert(1)>\x00\u202etxt.exe'


class Page(HTMLParser):
    """Tags with their attributes, the images' bytes, and the text between."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.images: list[bytes] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            head, _, data = str(dict(attrs)["src"]).partition(",")
            assert re.fullmatch(r"data:image/(jpeg|png|webp|gif|avif);base64", head)
            self.images.append(base64.b64decode(data))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> HandmadeRoot:
    made = HandmadeRoot(LocalStore(tmp_path_factory.mktemp("looked-at") / "root"))
    made.batch(60)
    made.finish()
    return made


def outcomes(made: HandmadeRoot) -> list[dict[str, object]]:
    filesystem, root = made.store.arrow()
    return ds.dataset(f"{root}/tables/outcomes/v1", filesystem=filesystem).to_table().to_pylist()


def test_a_page_shows_exactly_the_pool_images_of_the_rows_that_match(root: str, tmp_path: Path) -> None:
    made = HandmadeRoot(open_store(root))
    made.batch(60)
    made.finish()
    out = tmp_path / "page.html"
    assert main([root, "--where", "status = 'ok' AND source_row < 30", "--out", str(out)]) == 0
    wanted = [row["pool_sha256"] for row in outcomes(made) if row["status"] == "ok" and row["source_row"] < 30]
    assert sorted(hashlib.sha256(image).hexdigest() for image in Page(out).images) == sorted(wanted)


def test_each_image_is_one_range_request_and_no_tar_is_read(s3: str, s3_proxy: FaultProxy, tmp_path: Path) -> None:
    made = HandmadeRoot(open_store(s3))
    made.batch(60)
    made.finish()
    s3_proxy.faults, s3_proxy.rules = 0, [Rule(method="GET", key="/pool/")]
    assert main([s3, "--where", "status = 'ok'", "--out", str(tmp_path / "page.html")]) == 0
    places = {(row["pool_file"], row["pool_offset"]) for row in outcomes(made) if row["pool_file"]}
    assert s3_proxy.faults == len(places) > 20
    s3_proxy.rules = [Rule(method="GET", key="/pool/", strip="range")]  # whole tars would be read as well without it
    assert main([s3, "--where", "status = 'ok'", "--out", str(tmp_path / "page.html")]) == 0
    assert not Page(tmp_path / "page.html").images


def test_rows_without_an_image_say_why(made: HandmadeRoot, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main([made.store.uri, "--where", "status <> 'ok'", "--out", str(out)]) == 0
    page = Page(out)
    assert not page.images
    for why in ("failed timeout 10 s", "refused robots", "a duplicate: never fetched", "rejected missing_text"):
        assert page.text.count(why) == 6


def test_a_seed_decides_the_sample_and_another_takes_other_rows(made: HandmadeRoot) -> None:
    def rows(seed: int) -> list[object]:
        return [(row["source"], row["source_row"]) for row in Rows(made.store).sample("true", 12, seed)]

    assert rows(7) == rows(7)
    assert len(set(rows(7))) == 12
    assert len({tuple(rows(seed)) for seed in range(8)}) > 4
    everything = Rows(made.store).sample("true", 1_000, 3)
    assert sorted(row["source_row"] for row in everything) == list(range(60))


def test_a_sample_does_not_depend_on_how_the_tables_are_cut_for_reading(
    made: HandmadeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = Rows(made.store).sample("source_row % 2 = 0", 20, 5)
    monkeypatch.setattr("pipeline.look.rows._FIRST_ROWS", 0.01)
    assert Rows(made.store).sample("source_row % 2 = 0", 20, 5) == at_once


@pytest.mark.parametrize("start", [0, 1, 1 << 127, (1 << 128) - 1])
@pytest.mark.parametrize("first", [0.001, 0.3, 1.0])
def test_the_pieces_of_a_sample_cover_every_uid_once(start: int, first: float) -> None:
    uids = [f"{number:032x}" for number in (0, 1, start, (start + 1) % 2**128, 2**127 + 5, 2**128 - 1, 12345 << 90)]
    pieces = list(_pieces(start, first))
    for uid in uids:
        assert sum(low <= uid < high for low, high in pieces) == 1
    low, high = pieces[0]
    assert low <= f"{start:032x}" < high


def test_alt_text_is_shown_as_text_whatever_it_says(tmp_path: Path) -> None:
    vandal = Vandal(tmp_path / "root")
    vandal.made.batch(20)
    for stage, table in (("ingest", "pairs"), ("download", "outcomes")):
        vandal.rows(
            stage, "0001-0000000", table,
            lambda rows: [{**row, "text": HOSTILE, "caption": HOSTILE, "url": f"javascript:{HOSTILE}"} for row in rows],
        )  # fmt: skip
    vandal.made.finish()
    out = tmp_path / "page.html"
    where = "caption <> '<b>' AND url IS NOT NULL"
    assert main([str(tmp_path / "root"), "--where", where, "--out", str(out)]) == 0
    page = Page(out)
    used = {tag for tag, _ in page.tags}
    assert not used & {"script", "link", "iframe", "object", "embed", "a", "form", "base", "b"}
    assert all(set(found) <= {"src", "alt"} for tag, found in page.tags if tag == "img")
    assert not any(name.startswith("on") or name == "href" for _, found in page.tags for name in found)
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "<script>alert(1)</script>" in page.text
    assert where in page.text
    assert not {"\x00", "\u202e"} & set(out.read_text())
    assert "url(" not in out.read_text()


def test_letters_of_every_script_and_joined_emoji_are_shown_as_they_are() -> None:
    wales = "🏴" + "".join(chr(0xE0000 + ord(char)) for char in "gbwls\x7f")
    texts = ["猫と\u3000犬", "café\u00a0noir", "👩\u200d👩\u200d👧", wales, "می\u200cخواهم", "क्षि", "\U0001fae8"]
    assert [told(text) for text in texts] == texts
    assert told("a\x1b[2J\u202eb\u2066\x00<&") == r"a\x1b[2J\u202eb\u2066\x00&lt;&amp;"


def test_an_image_that_is_not_the_recorded_one_is_not_shown(tmp_path: Path) -> None:
    vandal = Vandal(tmp_path / "root")
    vandal.made.batch(20)
    vandal.made.finish()
    row = next(row for row in outcomes(vandal.made) if row["source_row"] == 1)
    vandal.bytes(vandal.path("download", "0001-0000000", "pool"), lambda data: data.__setitem__(row["pool_offset"], 0))
    out = tmp_path / "page.html"
    assert main([str(tmp_path / "root"), "--where", "source_row = 1", "--out", str(out)]) == 0
    assert not Page(out).images
    assert "its bytes do not have the recorded sha256" in Page(out).text


def test_images_of_adopted_tars_are_read_where_they_are(tmp_path: Path) -> None:
    vandal = Vandal(tmp_path / "root")
    vandal.made.batch(20)
    tar = vandal.path("download", "0001-0000000", "pool")
    away = tmp_path / "elsewhere" / "00000.tar"
    away.parent.mkdir()
    away.write_bytes(tar.read_bytes())
    vandal.rows(
        "download", "0001-0000000", "outcomes",
        lambda rows: [{**row, "pool_file": f"file://{away}" if row["pool_file"] else None} for row in rows],
    )  # fmt: skip
    vandal.made.complete("ingest", "download")
    publish(vandal.made.store, ("ingest", "download"))
    tar.unlink()
    out = tmp_path / "page.html"
    assert main([str(tmp_path / "root"), "--where", "status = 'ok'", "--out", str(out)]) == 0
    assert len(Page(out).images) == 12


def test_groups_show_the_row_that_stayed_with_those_dropped_for_it(made: HandmadeRoot, tmp_path: Path) -> None:
    groups = Rows(made.store).groups("source_row < 30", 64, 0)
    assert sorted((group.witness["source_row"], [row["source_row"] for row in group.members]) for group in groups) == [
        (4, [5]), (14, [15]), (24, [25]),
    ]  # fmt: skip
    assert len(Rows(made.store).groups("true", 2, 0)) == 2
    out = tmp_path / "page.html"
    assert main([made.store.uri, "--groups", "--out", str(out)]) == 0
    assert Page(out).text.count("1 row dropped for it") == 6


def decided(tmp_path: Path) -> tuple[HandmadeRoot, list[dict[str, object]]]:
    """A ROOT of 30 rows in which a rule dropped every ok row of an odd number, and its ok rows."""
    made = HandmadeRoot(LocalStore(tmp_path / "root"))
    made.batch(30)
    made.finish()
    ok = [row for row in outcomes(made) if row["status"] == "ok"]
    folder = tmp_path / "root" / "tables" / "decisions" / "v1"
    (part,) = folder.glob("*.parquet")
    kept = {row["uid"]: row["source_row"] % 2 == 0 for row in ok}
    rows = [{**row, "kept": kept[row["uid"]], "dropped_by": None if kept[row["uid"]] else "even",
             "pass_even": kept[row["uid"]]} for row in pq.read_table(part).to_pylist()]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=DECISIONS.append(pa.field("pass_even", pa.bool_()))), part)
    return made, ok


def test_verdicts_of_every_rule_and_the_columns_asked_about_are_told(tmp_path: Path) -> None:
    made, ok = decided(tmp_path)
    out = tmp_path / "page.html"
    assert main([made.store.uri, "--where", "NOT pass_even AND pixels > 1", "--out", str(out)]) == 0
    page = Page(out)
    odd = [row for row in ok if row["source_row"] % 2]
    assert len(page.images) == len(odd) > 3
    assert page.text.count("dropped · even") == page.text.count("✗ even") == page.text.count("pixels256") == len(odd)
    assert main([made.store.uri, "--where", "kept", "--out", str(out)]) == 0
    assert Page(out).text.count("✓ even") == len(ok) - len(odd)


def test_groups_of_dedupe_show_the_images_that_were_dropped_the_nearest_first(tmp_path: Path) -> None:
    made, ok = decided(tmp_path)
    witness, *others = ok[:4]
    rows = [{"uid": row["uid"], "dup_of": witness["uid"], "level": "perceptual", "distance": float(9 - number),
             "group_id": witness["uid"]} for number, row in enumerate(others)]  # fmt: skip
    # As ingest's duplicates are told: in rejects, and of the level `url`.
    (part,) = (tmp_path / "root" / "tables" / "rejects" / "v1").glob("*.parquet")
    rejects = pq.read_table(part)
    again = {**rejects.to_pylist()[1], "reason": "duplicate", "uid": "e" * 32, "dup_of": witness["uid"]}
    pq.write_table(pa.Table.from_pylist([again], schema=rejects.schema), part)
    rows.append({**rows[0], "uid": "e" * 32, "level": "url", "distance": 0.0})
    (part,) = (tmp_path / "root" / "tables" / "duplicates" / "v1").glob("*.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=DUPLICATES), part)
    (group,) = Rows(made.store).groups("level = 'perceptual' AND distance = 8", 64, 0)
    assert group.witness["uid"] == witness["uid"]
    assert [row["uid"] for row in group.members] == [*(row["uid"] for row in reversed(others)), "e" * 32]
    assert group.dropped == 4
    assert len(Rows(made.store).groups("level = 'url'", 64, 0)) == 1
    out = tmp_path / "page.html"
    assert main([made.store.uri, "--groups", "--where", "level = 'perceptual'", "--out", str(out)]) == 0
    page = Page(out)
    assert [hashlib.sha256(image).hexdigest() for image in page.images[:2]] == [
        witness["pool_sha256"], others[-1]["pool_sha256"],
    ]  # fmt: skip
    assert "duplicate · perceptual · distance 7" in page.text


def test_what_a_retraction_names_is_not_shown_though_the_tables_still_have_it(tmp_path: Path) -> None:
    made, ok = decided(tmp_path)
    lines = [tombstone("uid", str(ok[0]["uid"])), tombstone("sha256", str(ok[1]["sha256"]))]
    described = Retraction(
        retraction="0001", begun_at=now(), run="r", who="w", host="h", why="asked", keep_group=False,
        list_sha256="0" * 64, listed={}, rows={},
    )  # fmt: skip
    made.store.replace("retractions/0001.tombstone", ("\n".join(lines) + "\n").encode())
    made.store.replace("retractions/0001.json", described.to_bytes())
    out = tmp_path / "page.html"
    assert main([made.store.uri, "--where", "status = 'ok'", "--out", str(out)]) == 0
    page = Page(out)
    gone = [row for row in ok if row["sha256"] == ok[1]["sha256"] or row["uid"] == ok[0]["uid"]]
    assert len(page.images) == len(ok) - len(gone)
    assert page.text.count("refused retracted") == len(gone)
    for row in gone:
        assert str(row["uid"]) not in page.text


def test_a_sheet_is_one_png_of_the_same_rows(made: HandmadeRoot, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    for more in ([], ["--groups"]):
        assert main([made.store.uri, "-n", "24", *more, "--out", str(out)]) == 0
        with Image.open(io.BytesIO(out.read_bytes())) as image:
            assert image.format == "PNG"
            assert image.width > 400
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 1_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.png"]


@pytest.mark.parametrize(
    "where",
    ["widht > 3", "count(*) > 1", "status", "true; DROP TABLE x", "true) OR (true", "random() < 0.5", "",
     "uid IN (SELECT uid FROM outcomes_)", "(SELECT true FROM read_text('/etc/hostname'))"],
)  # fmt: skip
def test_a_bad_condition_is_one_line_that_names_the_columns(
    made: HandmadeRoot, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([made.store.uri, "--where", where, "--out", str(tmp_path / "page.html")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "original_width" in told
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("out", ["page.pdf", "page", "no/such/folder/page.html"])
def test_an_impossible_output_is_one_line_before_anything_is_read(
    made: HandmadeRoot, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([made.store.uri, "--out", str(tmp_path / out)]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_root_without_tables_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = HandmadeRoot(LocalStore(tmp_path / "root"))
    made.batch(20)
    assert main([str(tmp_path / "root"), "--out", str(tmp_path / "page.html")]) == 2
    assert "no tables are published yet" in capsys.readouterr().err


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> ScoredRoot:
    made = ScoredRoot(LocalStore(tmp_path_factory.mktemp("scored") / "root"))
    made.batch(200)
    made.finish()
    return made


def values(made: HandmadeRoot, encoder: str) -> dict[str, float]:
    """uid → score of the rows that have one."""
    ok = [row for row in outcomes(made) if row["status"] == "ok" and has(row, encoder)]
    return {str(row["uid"]): cosine(str(row["uid"]), encoder) for row in ok}


def test_deciles_are_tenths_of_the_values_the_worst_first(scored: ScoredRoot) -> None:
    every = values(scored, "b32")
    ranked = sorted(every, key=lambda uid: every[uid])
    deciles = Rows(scored.store, ["clip_score"]).deciles("true", "clip_score", 60, 0)
    assert [one.number for one in deciles] == list(range(1, 11))
    assert sum(one.rows for one in deciles) == len(ranked)
    begin = 0
    for one in deciles:
        tenth = ranked[begin : begin + one.rows]
        begin += one.rows
        assert abs(one.rows - len(ranked) / 10) <= 1
        assert (one.low, one.high) == (pytest.approx(every[tenth[0]]), pytest.approx(every[tenth[-1]]))
        assert len(one.sample) == 6
        assert {row["uid"] for row in one.sample} <= set(tenth)
        shown = [row["clip_score"] for row in one.sample]
        assert shown == sorted(shown) == [pytest.approx(every[row["uid"]]) for row in one.sample]


def test_a_seed_decides_which_rows_of_a_decile_are_shown(scored: ScoredRoot) -> None:
    def uids(seed: int) -> tuple[str, ...]:
        deciles = Rows(scored.store, [HEAD]).deciles("true", HEAD, 40, seed)
        return tuple(row["uid"] for one in deciles for row in one.sample)

    assert uids(3) == uids(3)
    assert len({uids(seed) for seed in range(6)}) > 3


def test_equal_values_are_in_one_decile_and_rows_without_a_value_in_none(scored: ScoredRoot) -> None:
    deciles = Rows(scored.store, ["original_width"]).deciles("true", "original_width", 10, 0)
    assert [(one.number, one.low, one.high) for one in deciles] == [(1, 16.0, 16.0)]
    assert deciles[0].rows == sum(row["status"] == "ok" for row in outcomes(scored))
    assert Rows(scored.store, ["original_width"]).deciles("status <> 'ok'", "original_width", 10, 0) == []


def test_each_encoders_score_and_every_head_can_be_asked_for(scored: ScoredRoot) -> None:
    for encoder in ("b32", "l14"):
        every, column = values(scored, encoder), f"clip_score_{encoder}"
        rows = Rows(scored.store, [column]).ordered("true", column, 1_000, 0)
        assert {row["uid"]: row[column] for row in rows} == {uid: pytest.approx(one) for uid, one in every.items()}
        middle = sorted(every.values())[len(every) // 2]
        found = Rows(scored.store).sample(f"{column} > {middle!r}", 1_000, 0)
        assert {row["uid"] for row in found} == {uid for uid, one in every.items() if one > middle}
    rows = Rows(scored.store, [HEAD]).ordered("true", HEAD, 1_000, 0)
    assert [row[HEAD] for row in rows] == pytest.approx(sorted(head(uid) for uid in values(scored, "l14")))


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_a_page_by_deciles_labels_every_row_with_its_value(scored: ScoredRoot, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"deciles.{suffix}"
    where = "source_row < 150"
    by = ["--by", "clip_score", "--deciles", "-n", "40", "--where", where]
    assert main([scored.store.uri, *by, "--out", str(out)]) == 0
    if suffix == "png":
        with Image.open(io.BytesIO(out.read_bytes())) as image:
            assert image.height > 10 * 184
        return
    page = Page(out)
    assert len(page.images) == 40
    labels = [float(value) for value in re.findall(r"clip_score (-?[0-9.e-]+) · kept", page.text)]
    assert len(labels) == 40
    assert labels == sorted(labels)
    assert len(re.findall(r"decile \d+ of clip_score: \S+ to \S+, \d+ rows", page.text)) == 10
    assert not [found for _, found in page.tags if "witnesses" in (found.get("class") or "")]


def test_by_a_column_alone_sorts_the_sample(scored: ScoredRoot, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main([scored.store.uri, "--by", "clip_score_l14", "-n", "12", "--out", str(out)]) == 0
    labels = [float(value) for value in re.findall(r"clip_score_l14 (-?[0-9.e-]+) ·", Page(out).text)]
    assert len(labels) == 12
    assert labels == sorted(labels)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--by", "clip_scor"], "did you mean clip_score?"),
        (["--by", "caption"], "is no number of each row"),
        (["--deciles"], "--deciles goes with --by"),
        (["--by", "clip_score", "--groups"], "--by goes without --groups"),
    ],
)
def test_what_cannot_be_ordered_is_one_line(
    scored: ScoredRoot, flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main([scored.store.uri, *flags, "--out", str(tmp_path / "page.html")])
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert words in told
