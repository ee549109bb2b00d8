"""The rules in their order, duplicates against brute force, and the SQL prefilter."""

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.download.blocklist import Blocklist
from pipeline.errors import InputError
from pipeline.ingest.describe import TextDescriber
from pipeline.ingest.judge import Judge, Judged, Kept, uid_of
from pipeline.ingest.normalise import located, normalise_url
from pipeline.ingest.prefilter import Prefilter
from schemas.recipe import Ingest
from schemas.tables import PAIRS, REJECTS

Given = tuple[str | None, str | None]


def unit(rows: list[Given], reasons: dict[int, str] | None = None, files: list[int] | None = None) -> pa.Table:
    count = len(rows)
    bad = reasons or {}
    table = located(
        pa.table(
            {
                "row": pa.array(range(count), pa.int64()),
                "url": pa.array([url for url, _ in rows], pa.large_string()),
                "text": pa.array([text for _, text in rows], pa.large_string()),
                "repaired": np.zeros(count, bool),
                "reason": pa.array([bad.get(index) for index in range(count)], pa.string()),
                "detail": pa.array([bad.get(index) for index in range(count)], pa.large_string()),
            }
        )
    ).append_column("file", pa.array(files or [0] * count, pa.int32()))
    return table.sort_by([(name, "ascending") for name in ("hi", "lo", "file", "row")])


def judge(rows: pa.Table, earlier: list[Kept] | None = None, untexted: tuple[int, ...] = (), **ingest: Any) -> Judged:
    settings_ = Ingest(**ingest)
    sources = ["/a.csv", "/b.csv"]
    found = Judge("0002", settings_, settings_.keep_columns, sources, untexted, TextDescriber(settings_))
    return found(rows, earlier or [])


def blocked(rows: pa.Table, *urls: str, reason: str = "blocklisted", **ingest: Any) -> Judged:
    blocklist = Blocklist()
    blocklist.add([f"url_md5:{hashlib.md5(url.encode()).hexdigest()}" for url in urls], "a list", reason)
    settings_ = Ingest(**ingest)
    return Judge("0002", settings_, [], ["/a.csv"], (), TextDescriber(settings_), blocklist)(rows, [])


def outcomes(judged: Judged) -> dict[int, str]:
    found = dict.fromkeys(judged.pairs["source_row"].to_pylist(), "pair")
    for row, reason in zip(judged.rejects["source_row"].to_pylist(), judged.rejects["reason"].to_pylist(), strict=True):
        assert row not in found
        found[row] = reason
    return found


def test_the_first_rule_that_fits_a_row_is_its_reason() -> None:
    rows = unit(
        [(None, None), (None, None), ("ftp://x", " "), (None, "x"), ("ftp://x", "x"), ("http://a/", "x"),
         ("http://a/", "long"), ("http://a/#again", "long"), ("http://a/", ""), ("nowhere", "x")],
        {0: "bad_row"},
    )  # fmt: skip
    judged = judge(rows, prefilter={"long": "n_chars >= 4"})
    assert outcomes(judged) == {
        0: "bad_row", 1: "missing_text", 2: "missing_text", 3: "bad_url", 4: "bad_scheme", 5: "text_rule",
        6: "pair", 7: "duplicate", 8: "missing_text", 9: "bad_url",
    }  # fmt: skip
    rejects = {row["source_row"]: row for row in judged.rejects.to_pylist()}
    assert rejects[5]["detail"] == "long"
    assert rejects[4]["status"] == "refused"
    assert rejects[7]["dup_of"] == uid_of("http://a/", "long")
    assert rejects[7]["uid"] == uid_of("http://a/#again", "long")
    assert [rejects[row]["uid"] is None for row in (0, 1, 2, 3, 4)] == [True, True, True, True, False]


def test_a_listed_url_is_refused_before_any_text_rule_and_after_what_is_no_url() -> None:
    rows = unit(
        [("http://a/", "x"), ("http://a/", "long"), ("http://b/", "long"), ("ftp://x", "long"), ("http://a/", "")]
    )
    judged = blocked(rows, "http://a/", "ftp://x", prefilter={"long": "n_chars >= 4"})
    assert outcomes(judged) == {0: "blocklisted", 1: "blocklisted", 2: "pair", 3: "bad_scheme", 4: "missing_text"}
    told = {row["source_row"]: row for row in judged.rejects.to_pylist()}
    digest = hashlib.md5(b"http://a/").hexdigest()
    assert (told[0]["status"], told[0]["detail"]) == ("refused", f"url_md5 {digest}")
    assert told[1]["uid"] == uid_of("http://a/", "long")
    assert outcomes(blocked(rows, "http://a/", reason="retracted"))[0] == "retracted"


def test_tables_have_the_contract_s_columns_in_order() -> None:
    judged = judge(unit([("http://a/", "x"), ("b", "x")]), keep_columns=["w"])
    assert judged.pairs.schema.names == [*PAIRS.names, "src_w"]
    assert judged.rejects.schema.names == [*REJECTS.names, "src_w"]
    assert judged.pairs.schema.field("uid").type == pa.string()
    empty = judge(unit([("b", "x")]))
    assert empty.pairs.schema.equals(PAIRS)
    assert empty.rejects.schema.equals(REJECTS)


def test_text_may_be_missing_where_the_recipe_or_the_format_says_so() -> None:
    rows = unit([("http://a/1", None), ("http://a/2", "")], files=[0, 1])
    assert set(outcomes(judge(rows)).values()) == {"missing_text"}
    judged = judge(rows, require_text=False)
    assert outcomes(judged) == {0: "pair", 1: "pair"}
    assert judged.pairs["text"].to_pylist() == ["", ""]
    assert outcomes(judge(rows, untexted=(1,))) == {0: "missing_text", 1: "pair"}


def test_captions_are_texts_unless_the_recipe_changes_them() -> None:
    rows = unit([("http://a/1", " a\u0301  b@c.example ")])
    plain = judge(rows).pairs
    assert plain["caption"].to_pylist() == plain["text"].to_pylist() == [" a\u0301  b@c.example "]
    made = judge(rows, normalise=True, redact=True).pairs
    assert (made["caption"].to_pylist(), made["text"].to_pylist()) == (["\xe1 [email]"], [" a\u0301  b@c.example "])


pairs = st.tuples(
    st.sampled_from(["http://a/", "HTTP://A:80/", "http://a/#x", "http://a/2", "https://a/"]), st.sampled_from("xyz")
)


@settings(deadline=None)
@given(rows=st.lists(pairs, max_size=25), earlier=st.lists(pairs, max_size=5), by=st.sampled_from(["url_text", "url"]))
def test_of_equal_pairs_the_first_stays_and_every_other_names_it(
    rows: list[Given], earlier: list[Given], by: str
) -> None:
    def key(fetch_url: str, text: str) -> tuple[str, ...]:
        return (fetch_url, text) if by == "url_text" else (fetch_url,)

    table = unit(rows)
    place = dict(zip(table["row"].to_pylist(), table["fetch_url"].to_pylist(), strict=True))
    before = [Kept(normalise_url(url)[0], str(text), uid_of(str(url), str(text))) for url, text in earlier]
    survivors: dict[tuple[str, ...], str] = {}
    for pair in before:
        survivors.setdefault(key(pair.fetch_url, pair.text), pair.uid)
    expected = {}
    for index, (url, text) in enumerate(rows):
        own = uid_of(str(url), str(text))
        survivor = survivors.setdefault(key(place[index], str(text)), own if index not in expected else "")
        expected[index] = survivor
    judged = judge(table, before, dedupe=by)
    kept = dict(zip(judged.pairs["source_row"].to_pylist(), judged.pairs["uid"].to_pylist(), strict=True))
    dropped = dict(zip(judged.rejects["source_row"].to_pylist(), judged.rejects["dup_of"].to_pylist(), strict=True))
    assert {**kept, **dropped} == expected
    assert len(kept) + len(dropped) == len(rows)
    assert len(set(kept.values())) == len(kept)
    assert not set(kept.values()) & {pair.uid for pair in before}


def test_the_order_of_sources_then_rows_decides_who_stays() -> None:
    rows = unit([("http://a/", "x")] * 3, files=[1, 0, 0])
    judged = judge(rows)
    assert judged.pairs.select(["source", "source_row"]).to_pylist() == [{"source": "/a.csv", "source_row": 1}]
    assert judged.rejects.select(["source", "source_row"]).to_pylist() == [
        {"source": "/a.csv", "source_row": 2},
        {"source": "/b.csv", "source_row": 0},
    ]


def test_pairs_of_one_fetch_url_are_neighbours() -> None:
    urls = [f"http://h{index % 3}/{index % 5}#{index}" for index in range(60)]
    fetched = judge(unit([(url, f"text {index}") for index, url in enumerate(urls)])).pairs["fetch_url"].to_pylist()
    changes = sum(a != b for a, b in pairwise(fetched))
    assert changes == len(set(fetched)) - 1


def described(texts: list[str]) -> pa.Table:
    count = len(texts)
    return pa.table(
        {
            "url": ["http://a/"] * count, "text": texts,
            **TextDescriber(Ingest(lang_model="none"))(pa.array(texts, pa.large_string())),
            "src_w": pa.array(["12", "x", None][:count], pa.large_string()),
        }
    )  # fmt: skip


def test_the_first_rule_that_a_row_fails_is_named_and_null_or_an_error_fails() -> None:
    texts = ["one two", "three", "four five"]
    rules = {"words": "n_words >= 2 -- comment", "wide": "CAST(src_w AS INTEGER) > 10", "lang": "lang = 'en' OR true"}
    assert Prefilter(rules, ["w"]).failing(described(texts)) == [None, "words", "wide"]
    assert Prefilter({"lang": "lang = 'en'"}, ["w"]).failing(described(texts)) == ["lang"] * 3
    assert Prefilter({"wide": "CAST(src_w AS INTEGER) > 10"}, ["w"]).failing(described(texts)) == [None, "wide", "wide"]


@pytest.mark.parametrize(
    "predicate",
    ["n_chrs > 3", "n_chars", "n_chars > ", "text; DROP TABLE x", "count(*) > 1", "row_number() OVER () > 1", "",
     "random() < 0.5", "(SELECT true)", "text IN (SELECT content FROM read_text('/etc/hostname'))",
     "EXISTS (FROM read_csv('/etc/passwd'))", "1) OR (1", "text IN (SELECT text FROM rows_)", "src_other = 'x'"],
)  # fmt: skip
def test_a_predicate_that_is_no_condition_on_a_row_is_refused(predicate: str) -> None:
    with pytest.raises(InputError, match=r"ingest\.prefilter\.rule"):
        Prefilter({"rule": predicate}, [])


def test_texts_of_any_content_pass_through_the_prefilter() -> None:
    texts = ["NUL \0 inside", "x" * 10_000_000, "'; DROP TABLE rows_; --"]
    assert Prefilter({"rule": "length(text) >= 10"}, ["w"]).failing(described(texts)) == [None, None, None]


def test_a_reject_says_its_language_as_a_pair_does() -> None:
    texts = ["Eine schwarze Katze sitzt auf dem Dach des Hauses", "A black cat is sitting on the roof of the house", ""]
    rows = unit([(f"http://a/{index}", text) for index, text in enumerate(texts)])
    pairs = judge(rows, untexted=(0,), require_text=False).pairs
    rejects = judge(rows, prefilter={"none": "false"}).rejects
    assert dict(zip(pairs["source_row"].to_pylist(), pairs["lang"].to_pylist(), strict=True)) == dict(
        zip(rejects["source_row"].to_pylist(), rejects["lang"].to_pylist(), strict=True)
    )
    assert rejects["lang"].to_pylist()[:2] == ["de", "en"]
