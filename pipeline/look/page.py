"""One self-contained HTML page of cards: no script, no link, no request. Whatever came from the web is escaped."""

import base64
import html
import unicodedata
from collections.abc import Sequence

from pipeline.look.cards import Card

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f6f3; --card: #fff; --ink: #1d1f22; --grey: #6a6f76; --line: #e2e2dc;
  --good: #19794a; --bad: #b3382c; --plain: #4a5b78; --hole: #ecece7; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --card: #212327; --ink: #e6e6e3; --grey: #9a9fa6;
  --line: #34373c; --good: #57c08a; --bad: #ec8377; --plain: #9fb2d2; --hole: #2a2d31; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1680px; padding: 28px; background: var(--paper); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
header { margin-bottom: 22px; }
h1 { font-size: 20px; margin: 0 0 6px; overflow-wrap: anywhere; }
header p { margin: 2px 0; color: var(--grey); }
code { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; color: var(--ink); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)); gap: 16px; align-items: start; }
.groups { display: flex; flex-wrap: wrap; gap: 20px; align-items: flex-start; }
.group { border: 1px solid var(--line); border-radius: 14px; padding: 12px 14px 14px; max-width: 100%; }
.group h2 { font-size: 12px; font-weight: 500; color: var(--grey); margin: 0 0 10px; overflow-wrap: anywhere; }
.group .cards { display: flex; flex-wrap: wrap; gap: 12px; }
.group article { width: 224px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.witnesses article:first-child { border: 2px solid var(--good); }
figure { margin: 0; height: 220px; background: var(--hole); display: flex; align-items: center;
  justify-content: center; }
figure img { max-width: 100%; max-height: 100%; }
figure p { margin: 0; padding: 14px; color: var(--grey); text-align: center; overflow-wrap: anywhere; }
.told { padding: 10px 12px 12px; }
.verdict { margin: 0; font-weight: 600; font-size: 12px; }
.good { color: var(--good); } .bad { color: var(--bad); } .plain { color: var(--plain); }
.text { margin: 4px 0 8px; max-height: 8.7em; overflow: auto; overflow-wrap: anywhere; white-space: pre-wrap; }
.rules { display: flex; flex-wrap: wrap; gap: 4px; margin-bottom: 8px; font-size: 11px; }
.rules span { border: 1px solid currentColor; border-radius: 9px; padding: 0 7px; }
.uid { margin: 6px 0 0; font: 9.5px/1.2 ui-monospace, "DejaVu Sans Mono", monospace; color: var(--grey);
  overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 1px 8px; margin: 0; font-size: 11.5px; }
dt { color: var(--grey); } dd { margin: 0; overflow-wrap: anywhere; max-height: 4.4em; overflow: auto; }
"""


def page(
    title: str, notes: Sequence[str], groups: Sequence[tuple[str, Sequence[Card]]], witnesses: bool = False
) -> str:
    """The page's HTML; `notes` are HTML. A group without a heading is a grid; the first card may be its witness."""
    head = "".join(f"<p>{note}</p>" for note in notes)
    body = "".join(_group(heading, cards) for heading, cards in groups)
    # The policy forbids whatever an escape might have missed.
    kind = f' class="groups{" witnesses" if witnesses else ""}"'
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">
<title>{told(title)}</title><style>{_STYLE}</style></head>
<body><header><h1>{told(title)}</h1>{head}</header>
<div{kind if any(heading for heading, _ in groups) else ""}>{body}</div>
</body></html>
"""


def told(text: str) -> str:
    """Text as HTML: escaped, and what steers instead of printing (NUL, ESC, bidirectional overrides) made visible."""
    shown = "".join(char.encode("unicode_escape").decode() if _steers(char) else char for char in text)
    return html.escape(shown)


def _steers(char: str) -> bool:
    # Joiners, and the tags from U+E0020, are parts of letters and emoji.
    part = char in "\n\u200c\u200d" or char >= "\U000e0020"
    return not part and unicodedata.category(char) in ("Cc", "Cf", "Cs")


def _group(heading: str, cards: Sequence[Card]) -> str:
    grid = f'<div class="cards">{"".join(map(_card, cards))}</div>'
    return f'<section class="group"><h2>{told(heading)}</h2>{grid}</section>' if heading else grid


def _card(card: Card) -> str:
    picture = card.picture
    if picture.data:
        encoded = base64.b64encode(picture.data).decode()
        shown = f'<img src="data:image/{picture.kind};base64,{encoded}" alt="">'
    else:
        shown = f"<p>{told(picture.reason)}</p>"
    rules = "".join(
        f'<span class="{"good" if passed else "bad"}">{"✓" if passed else "✗"} {told(name)}</span>'
        for name, passed in card.rules
    )
    facts = "".join(f"<dt>{told(name)}</dt><dd>{told(value)}</dd>" for name, value in card.facts if name != "uid")
    uids = "".join(f'<p class="uid">{told(value)}</p>' for name, value in card.facts if name == "uid")
    return (
        f'<article><figure>{shown}</figure><div class="told"><p class="verdict {card.tone}">{told(card.verdict)}</p>'
        f'<p class="text" dir="auto">{told(card.text)}</p>'
        + (f'<div class="rules">{rules}</div>' if rules else "")
        + f"<dl>{facts}</dl>{uids}</div></article>\n"
    )
