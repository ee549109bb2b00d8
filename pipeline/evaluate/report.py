"""One page: bars of every task's main metric with its interval, beside chance and raw pixels, and the panel."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pyarrow as pa

from pipeline.evaluate.panel import Shown
from pipeline.evaluate.results import summary

WIDTH, LINE, LABEL = 420, 18, 180
COLOURS = {
    "zero_shot": "#3b6fb6", "probe": "#2f9e6e", "reference_probe": "#2f9e6e", "retrieval": "#3b6fb6",
    "raw_pixels": "#b0803a",
    "reference_raw_pixels": "#b0803a", "chance": "#999999",
}  # fmt: skip
STYLE = """body{font:14px system-ui,sans-serif;margin:2em;max-width:1000px}h2{margin:1.5em 0 .3em;font-size:16px}
table{border-collapse:collapse}td,th{padding:2px 10px;text-align:right}td:first-child,th:first-child{text-align:left}
figure{display:inline-block;width:130px;margin:4px;vertical-align:top;font-size:12px}.wrong{color:#b3261e}"""


def page(table: pa.Table, others: Sequence[pa.Table], shown: Sequence[Shown]) -> str:
    """HTML with its plots inside it; `others` are runs to compare with."""
    tables = [table, *others]
    lines = summary(tables)
    names = [_name(one) for one in tables]
    tasks: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        tasks.setdefault(str(line["task"]), []).append(line)
    parts = [f"<h1>{escape(names[0])}</h1>"]
    if others:
        parts.append(_comparison(lines, names))
    for task, mine in tasks.items():
        parts.append(f"<h2>{escape(task)}: {escape(str(mine[0]['metric']))}</h2>{_bars(mine, len(tables))}")
    if few := _curves(table):
        parts.append(few)
    if shown:
        parts.append("<h2>Predictions, drawn by the seed</h2>" + "".join(_figure(one) for one in shown))
    return f'<!doctype html><meta charset="utf-8"><title>Evaluation</title><style>{STYLE}</style>{"".join(parts)}\n'


def _name(table: pa.Table) -> str:
    if not len(table):
        return "empty"
    row = table.slice(0, 1).to_pylist()[0]
    return f"{row['model']} ({row['checkpoint_sha256'][:8]}) on {row['suite']}, {row['run']}"


def _bars(lines: list[dict[str, Any]], runs: int) -> str:
    drawn = []
    y = 0
    for line in lines:
        for number in range(runs):
            row = line.get(f"run {number}")
            if row is None or row["value"] is None:
                continue
            colour = COLOURS.get(str(line["setting"]), "#6b4fa0")
            drawn.append(_bar(y, str(line["setting"]) + (f" · {number}" if runs > 1 else ""), row, colour))
            y += LINE
    return f'<svg width="{LABEL + WIDTH + 80}" height="{y}" font-size="12">{"".join(drawn)}</svg>'


def _bar(y: int, label: str, row: dict[str, Any], colour: str) -> str:
    value = max(0.0, min(1.0, row["value"]))
    parts = [
        f'<text x="0" y="{y + 13}">{escape(label)}</text>',
        f'<rect x="{LABEL}" y="{y + 3}" width="{value * WIDTH:.1f}" height="12" fill="{colour}" opacity=".75"/>',
        f'<text x="{LABEL + WIDTH + 8}" y="{y + 13}">{row["value"]:.3f}</text>',
    ]
    if row["ci_low"] is not None:
        low, high = (LABEL + max(0.0, min(1.0, row[end])) * WIDTH for end in ("ci_low", "ci_high"))
        parts.append(f'<path d="M{low:.1f} {y + 9}H{high:.1f}" stroke="#111" stroke-width="1.5"/>')
    return "".join(parts)


def _comparison(lines: list[dict[str, Any]], names: list[str]) -> str:
    """A row a number; in brackets, how much more or less this run has than that one."""
    listed = "".join(f"<li>{escape(name)}</li>" for name in names)
    head = "".join(f"<th>{number}</th>" for number in range(len(names)))
    rows = []
    for line in lines:
        values = [(line.get(f"run {number}") or {}).get("value") for number in range(len(names))]
        told = "".join(f"<td>{_beside(values[0], value)}</td>" for value in values[1:])
        first = "" if values[0] is None else f"{values[0]:.4f}"
        named = f"<td>{escape(str(line['task']))}</td><td>{line['setting']} {line['metric']}</td>"
        rows.append(f"<tr>{named}<td>{first}</td>{told}</tr>")
    return f"<ol start=0>{listed}</ol><table><tr><th>task</th><th>number</th>{head}</tr>{''.join(rows)}</table>"


def _beside(mine: float | None, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if mine is None else f"{value:.4f} ({mine - value:+.4f})"


def _curves(table: pa.Table) -> str:
    """Few-shot curves: shots on a logarithmic axis, with zero-shot as a line across."""
    found: dict[str, list[tuple[int, float]]] = {}
    across: dict[str, float] = {}
    for row in table.to_pylist():
        setting = row["setting"]
        if setting.startswith("few_shot_") and row["value"] is not None:
            found.setdefault(row["task"], []).append((int(setting.rpartition("_")[2]), row["value"]))
        elif setting == "zero_shot" and row["main"]:
            across[row["task"]] = row["value"]
    parts = []
    for task, points in found.items():
        points.sort()
        places = [(30 + 50 * k.bit_length(), 110 - 100 * value) for k, value in points]
        line = " ".join(f"{x:.0f},{y:.1f}" for x, y in places)
        ticks = "".join(f'<text x="{x:.0f}" y="125">{k}</text>' for (k, _), (x, _) in zip(points, places, strict=True))
        level = 110 - 100 * across.get(task, -1)
        parts.append(
            f'<h2>{escape(task)}: shots a class (dashes: zero-shot)</h2><svg width="420" height="130" font-size="12">'
            f'<polyline points="{line}" fill="none" stroke="#2f9e6e" stroke-width="2"/>{ticks}'
            f'<path d="M60 {level:.1f}H360" stroke="#3b6fb6" stroke-dasharray="4"/></svg>'
        )
    return "".join(parts)


def _figure(one: Shown) -> str:
    mark = "" if one.right else " class=wrong"
    return (
        f'<figure><img src="{one.image}" alt=""><br>{escape(one.task)} {escape(one.key)}<br>'
        f"<b{mark}>{escape(one.said[0])}</b><br>{'<br>'.join(escape(name) for name in one.said[1:])}"
        f"<br><i>is {escape(one.label)}</i></figure>"
    )
