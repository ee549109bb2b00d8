"""What is told of a row beside its image: its verdict, its words and a few facts, as a page and a sheet show them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pipeline.look.images import Picture
from pipeline.look.rows import Row

Tone = Literal["good", "bad", "plain"]

_TOLD = {"caption", "text", "url", "status", "reason", "detail", "kept", "dropped_by", "dup_of", "level", "distance"}
"""Columns that a card always tells in its own way."""


@dataclass(frozen=True)
class Card:
    """Nothing in it is escaped: texts and URLs are as the web gave them."""

    picture: Picture
    verdict: str
    tone: Tone
    text: str
    rules: list[tuple[str, bool]]
    """pass_<rule> of every rule, in order."""
    facts: list[tuple[str, str]]


def make_card(row: Row, picture: Picture, named: Collection[str] = (), by: str | None = None) -> Card:
    """The card of a row; the columns that a predicate `named` are among its facts, its value in `by` comes first."""
    verdict, tone = _verdict(row)
    if by and by in row:
        verdict = f"{by} {_value(row[by])} · {verdict}"
    rules = [(name.removeprefix("pass_"), bool(row[name])) for name in row if name.startswith("pass_")]
    return Card(picture, verdict, tone, row.get("caption") or row.get("text") or "", rules, _facts(row, named))


def _verdict(row: Row) -> tuple[str, Tone]:
    if row["status"] != "ok":
        return " · ".join(str(row[name]) for name in ("status", "reason") if name in row), "bad"
    if "level" in row:
        distance = f" · distance {row['distance']:g}" if row.get("distance") else ""
        return f"duplicate · {row['level']}{distance}", "bad"
    if row.get("kept") is False:
        return f"dropped · {row.get('dropped_by', '')}", "bad"
    return ("kept", "good") if row.get("kept") else ("ok", "plain")


def _facts(row: Row, named: Collection[str]) -> list[tuple[str, str]]:
    facts = []
    if "original_width" in row:
        size = f"{row['original_width']}×{row['original_height']}"
        pool = f" → {row['width']}×{row['height']}" if "width" in row else ""
        kind = f" {row['format']}" if "format" in row else ""
        weight = f", {row['bytes'] / 1000:,.0f} kB" if "bytes" in row else ""
        facts.append(("image", f"{size}{kind}{weight}{pool}"))
    if row.get("lang"):
        facts.append(("language", f"{row['lang']} {row.get('lang_score', 0):.2f}"))
    facts.append(("host", _host(row.get("url", ""))))
    if row.get("detail"):
        facts.append(("detail", str(row["detail"])))
    facts += [(name, _value(row.get(name))) for name in named if name not in _TOLD and not name.startswith("pass_")]
    facts.append(("input", f"{str(row['source']).rpartition('/')[2]} row {row['source_row']}"))
    if "uid" in row:
        facts.append(("uid", row["uid"]))
    return facts


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "none"
    except ValueError:
        return "none"


def _value(value: object) -> str:
    return "null" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
