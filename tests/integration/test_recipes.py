"""Shipped recipes that judge a row alone, against the papers' words in plain Python, on rows around every threshold."""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from random import Random
from string import ascii_lowercase
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.arguments import load_recipe, recipe_names
from pipeline.ingest.describe import TextDescriber
from pipeline.ingest.text import make_caption
from pipeline.metadata import TEXT_COUNT, schema_of
from pipeline.rules import Rules
from pipeline.select.decide import RESERVED
from schemas.recipe import Ingest

ROWS = 100_000
SCORES = ("punsafe", "pwatermark")
Row = dict[str, Any]


SHORT = (
    "ab cd",
    "ab cdefg",
    "abcdefgh",
    "a b c",
    "ab c d",
    "abc d e",
    "a  b   c",
    " ab c d ",
    "ab\tc de",
    "abcd",
    "",
    " ",
)
"""Forms of texts near 2 and 3 words, 5 and 6 characters, as given and with white space collapsed."""
TWO_LETTERS = [a + b for a in ascii_lowercase for b in ascii_lowercase]


def words_of(random: Random) -> str:
    """A text near the limits of 2, 3 and 256 words, 5 and 1000 characters, one word in five repeated; mostly unique."""
    kind = random.random()
    if kind < 0.3:
        return "".join(random.choice(ascii_lowercase) if c.isalpha() else c for c in random.choice(SHORT))
    if kind < 0.45:
        return " ".join(random.sample(TWO_LETTERS, random.choice((1, 2, 3, 4, 255, 256, 257, 300))))
    if kind < 0.55:
        words = "".join(f"{random.randrange(10**9):09d} " for _ in range(99))
        return words + "x" * random.choice((9, 10, 11, 12))
    if kind < 0.75:
        size = random.choice((5, 10, 15, 20, 30))
        repeats = max(0, size // 5 + random.choice((-1, 0, 0, 1, 2)))
        fresh = random.sample(TWO_LETTERS, size - repeats)
        return " ".join([*fresh, *(fresh[0].upper() for _ in range(repeats))])
    return f"a picture of item {random.randrange(30_000)} on a table"


def side(random: Random) -> int | None:
    return random.choice((None, 1, 199, 200, 201, 399, 400, 401, 402, 500, 600, 640, 800, 1000))


def shape(random: Random) -> tuple[int | None, int | None]:
    """Sides near 200 and 400, and ratios on, just below and just above 2.5 and 3, either way round."""
    if random.random() < 0.4:
        return side(random), side(random)
    short = random.choice((200, 201, 210, 400, 401, 402, 410, 600, 1000))
    ratio = random.choice((1.0, 2.4, 2.45, 2.5, 2.5, 2.55, 2.6, 2.9, 2.95, 3.0, 3.0, 3.05, 3.1))
    long = max(1, round(short * ratio) + random.choice((-1, 0, 0, 0, 1)))
    return (short, long) if random.random() < 0.5 else (long, short)


@cache
def generated() -> list[Row]:
    random = Random(11)
    rows: list[Row] = []
    for number in range(ROWS):
        width, height = shape(random)
        rows.append({
            "uid": f"{number:032x}", "text": words_of(random), "original_width": width, "original_height": height,
            "bytes": random.choice((None, 0, 4998, 4999, 5000, 5001, 5120, *[20_000] * 8)),
            "format": random.choice(("jpeg", "jpeg", "jpeg", "jpeg", "png", "webp", "gif", None)),
            "lang": random.choice((*["en"] * 7, "de", "und", "eng", "EN", None)),
            "src_punsafe": random.choice((None, "", "nan", "x", "0.4", "0.499999", "0.5", "0.500001", "0.6", "0", "1")),
            "src_pwatermark": random.choice((None, "0.7", "0.799999", "0.8", "0.800001", "0.9", "0", "1")),
        })  # fmt: skip
    cosines = Random(12)
    for row in rows:
        cosine = cosines.choice((None, 0.27, 0.279999, 0.28, 0.280001, 0.29, 0.299999, 0.3, 0.300001, 0.31, 0.5, -0.1))
        row["clip_score_b32"] = None if cosine is None else float(np.float32(cosine))
    for count in (9, 10, 11, 12) * 12:
        text = f"a text that was seen {count} times {random.random()}"
        for place in random.sample(range(ROWS), count):
            rows[place]["text"] = text
    return rows


@cache
def seen() -> Counter[str]:
    return Counter(row["text"] for row in generated())


@cache
def joined() -> pa.Table:
    """The rows as rules see them; what ingest makes of a text is made by ingest's own code."""
    rows = generated()
    texts = [row["text"] for row in rows]
    described = TextDescriber(Ingest(lang_model="none"))(pa.array(texts, pa.large_string()))
    columns = {
        **described,
        **{name: [row[name] for row in rows] for name in rows[0]},
        "caption": [make_caption(text, normalise=True, redact=False) for text in texts],
        "text_count": [seen()[text] for text in texts],
    }
    schema = full_schema()
    return pa.table([
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(ROWS, field.type)
        for field in schema
    ], schema=schema)  # fmt: skip


def full_schema() -> pa.Schema:
    return schema_of(SCORES, ["clip_score_b32"]).append(TEXT_COUNT)


def sizes(row: Row) -> tuple[int, int] | None:
    if row["original_width"] is None or row["original_height"] is None:
        return None
    return min(row["original_width"], row["original_height"]), max(row["original_width"], row["original_height"])


def datacomp_basic(row: Row, times: int) -> bool:
    """English, words > 2, chars > 5, min original side >= 200, original aspect <= 3.0"""
    found = sizes(row)
    if found is None or row["lang"] != "en":
        return False
    if len(row["text"].split()) <= 2 or len(row["text"]) <= 5:
        return False
    return found[0] >= 200 and found[1] / found[0] <= 3.0


def cc12m_size_text(row: Row, times: int) -> bool:
    """JPEG, both sides > 400, aspect <= 2.5, 3-256 words, repetition <= 0.2"""
    found = sizes(row)
    words = row["text"].lower().split()
    if row["format"] != "jpeg" or found is None or not 3 <= len(words) <= 256:
        return False
    earlier = sum(word in words[:place] for place, word in enumerate(words))
    return found[0] > 400 and found[1] / found[0] <= 2.5 and earlier / len(words) <= 0.2


def coyo_size_text(row: Row, times: int) -> bool:
    """>= 5 KB, min side >= 200, aspect <= 3, English, chars > 5, 3-256 words, <= 1000 chars, text seen <= 10 times"""
    found = sizes(row)
    collapsed = " ".join(row["text"].split())
    if row["bytes"] is None or row["bytes"] < 5000 or found is None or row["lang"] != "en":
        return False
    if found[0] < 200 or found[1] / found[0] > 3 or times > 10:
        return False
    return 5 < len(collapsed) <= 1000 and 3 <= len(collapsed.split(" ")) <= 256


def laion_safe(row: Row, times: int) -> bool:
    """punsafe <= 0.5 and pwatermark <= 0.8"""
    try:
        return float(row["src_punsafe"]) <= 0.5 and float(row["src_pwatermark"]) <= 0.8
    except (TypeError, ValueError):
        return False


def laion400m(row: Row, times: int) -> bool:
    """text >= 5 chars, file >= 5 KB, CLIP B/32 cosine >= 0.30"""
    if len(row["text"]) < 5 or row["bytes"] is None or row["bytes"] < 5000:
        return False
    return row["clip_score_b32"] is not None and row["clip_score_b32"] >= 0.30


def datacomp_laion2b(row: Row, times: int) -> bool:
    """English and B/32 >= 0.28"""
    return row["lang"] == "en" and row["clip_score_b32"] is not None and row["clip_score_b32"] >= 0.28


PAPERS: dict[str, Callable[[Row, int], bool]] = {
    "datacomp_basic": datacomp_basic, "cc12m_size_text": cc12m_size_text, "coyo_size_text": coyo_size_text,
    "laion_safe": laion_safe, "laion400m": laion400m, "datacomp_laion2b": datacomp_laion2b,
}  # fmt: skip


def kept(rules: dict[str, str]) -> list[bool]:
    passes = Rules(rules, full_schema(), "select.rules").judge(joined())
    verdicts: list[bool] = np.all([column.to_numpy() for column in passes.columns], axis=0).tolist()
    return verdicts


@cache
def wanted(name: str) -> list[bool]:
    return [PAPERS[name](row, seen()[row["text"]]) for row in generated()]


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_keeps_what_the_paper_s_words_keep(name: str) -> None:
    found = kept(load_recipe(name, []).select.rules)
    assert found == wanted(name)
    assert ROWS // 100 < sum(found) < ROWS // 2


NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


def changed(rules: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Each number one unit of its last digit up and down, each string another."""
    found = []
    for name, predicate in rules.items():
        for number in NUMBER.finditer(predicate):
            digits = len(number[0].partition(".")[2])
            for step in (-1, 1):
                value = f"{float(number[0]) + step / 10**digits:.{digits}f}"
                text = predicate[: number.start()] + value + predicate[number.end() :]
                found.append((f"{name}: {text}", {**rules, name: text}))
        for string in re.finditer(r"'(\w+)'", predicate):
            text = predicate.replace(string[0], f"'{string[1]}x'")
            found.append((f"{name}: {text}", {**rules, name: text}))
    return found


@pytest.mark.parametrize("name", PAPERS)
def test_a_threshold_changed_by_one_unit_is_noticed(name: str) -> None:
    rules = load_recipe(name, []).select.rules
    mutations = changed(rules)
    assert {text.partition(":")[0] for text, _ in mutations} == set(rules), "every rule has something to change"
    assert [text for text, mutated in mutations if kept(mutated) == wanted(name)] == []


@pytest.mark.parametrize("name", PAPERS)
def test_every_rule_decides_some_row_alone(name: str) -> None:
    rules = load_recipe(name, []).select.rules
    for rule in rules:
        assert kept({other: sql for other, sql in rules.items() if other != rule}) != wanted(name), rule


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_s_header_says_what_it_is(name: str) -> None:
    header = [line for line in (files("jobs.recipes") / f"{name}.yaml").read_text().splitlines() if line[:1] == "#"]
    text = " ".join(line.lstrip("# ") for line in header)
    assert re.search(r"exact: (yes|no)$", header[0])
    for said in ("Source: ", "Left out: ", f"python -m jobs.build --recipe {name} ", f", {sum(wanted(name)):,}."):
        assert said in text


def test_only_rows_that_pass_a_recipe_s_own_rules_compete_in_dedupe() -> None:
    recipe = load_recipe("coyo_size_text", [])
    rules = dict(recipe.select.rules)
    assert rules.pop("seen")
    assert recipe.dedupe.eligible == rules
    Rules(recipe.dedupe.eligible, schema_of(()), "dedupe.eligible")
    for name in set(PAPERS) - {"coyo_size_text"}:
        assert load_recipe(name, []).dedupe.levels == {}


@pytest.mark.parametrize(
    "name",
    [
        "datacomp_basic",
        "coyo_size_text",
        "datacomp_laion2b",
        "datacomp_image",
        "datacomp_image_clip30",
        "datacomp_text",
    ],
)
def test_the_language_is_the_first_label_whatever_its_score(name: str) -> None:
    settings = load_recipe(name, []).ingest
    described = TextDescriber(settings)(pa.array(["ok ok ok", "xx 12 34"], pa.large_string()))
    assert "und" not in described["lang"].to_pylist()


def test_every_shipped_recipe_is_one() -> None:
    for name in recipe_names():
        rules = load_recipe(name, []).select.rules
        assert not {rule.lower() for rule in rules} & set(RESERVED), name
