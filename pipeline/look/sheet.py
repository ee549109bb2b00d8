"""One PNG of cards: a contact sheet with captions."""

import io
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from pipeline.look.cards import Card

CELL, TEXT, GAP, EDGE = 184, 66, 12, 24
COLUMNS = 8
LINE = 15
INK, GREY, PAPER, HOLE = (29, 31, 34), (106, 111, 118), (246, 246, 243), (226, 226, 220)
TONES = {"good": (25, 121, 74), "bad": (179, 56, 44), "plain": (74, 91, 120)}

_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf")
"""Tried in turn for more letters than those of Pillow's own font, which is Latin alone."""


def sheet(title: str, notes: Sequence[str], groups: Sequence[tuple[str, Sequence[Card]]]) -> bytes:
    """The sheet as PNG; every group begins a new row, under its heading if it has one."""
    columns = min(COLUMNS, max(4, *(len(cards) for _, cards in groups))) if groups else 4
    rows = sum(-(-len(cards) // columns) for _, cards in groups)
    headings = sum(bool(heading) for heading, _ in groups)
    width = 2 * EDGE + columns * (CELL + GAP) - GAP
    height = 2 * EDGE + 30 + 18 * len(notes) + rows * (CELL + TEXT + GAP) + headings * 30
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((EDGE, EDGE - 6), _cut(title, width // 10), INK, _font(18))
    y = EDGE + 22
    for note in notes:
        draw.text((EDGE, y), _cut(note, width // 6), GREY, _font(12))
        y += 18
    y += 8
    for heading, cards in groups:
        if heading:
            draw.line((EDGE, y, width - EDGE, y), HOLE)
            draw.text((EDGE, y + 8), _cut(heading, width // 7), INK, _font(13))
            y += 30
        for number, card in enumerate(cards):
            x = EDGE + number % columns * (CELL + GAP)
            _draw(canvas, draw, card, x, y + number // columns * (CELL + TEXT + GAP))
        y += -(-len(cards) // columns) * (CELL + TEXT + GAP)
    png = io.BytesIO()
    canvas.save(png, "PNG")
    return png.getvalue()


def _draw(canvas: Image.Image, draw: ImageDraw.ImageDraw, card: Card, x: int, y: int) -> None:
    draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), HOLE)
    if card.picture.data:
        with Image.open(io.BytesIO(card.picture.data)) as image:
            picture = image.convert("RGB")
        picture.thumbnail((CELL, CELL))
        canvas.paste(picture, (x + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2))
    else:
        lines = textwrap.wrap(_printed(card.picture.reason), 24)[:8]
        draw.multiline_text((x + 12, y + 40), "\n".join(lines), GREY, _font(12), spacing=4)
    draw.text((x, y + CELL + 3), _cut(card.verdict, 32), TONES[card.tone], _font(11))
    lines = textwrap.wrap(_printed(card.text), 29)
    if len(lines) > 3:
        lines[2] = lines[2][:27] + " …"
    for number, line in enumerate(lines[:3]):
        draw.text((x, y + CELL + 5 + LINE * (number + 1)), line, INK, _font(11))


def _cut(text: str, most: int) -> str:
    text = _printed(text)
    return text if len(text) <= most else text[: most - 2] + " …"


def _printed(text: str) -> str:
    return "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Cs") else char for char in text)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
