"""EXIF: the tags a recipe keeps, as JSON for the column and as a TIFF structure for kept bytes.

`safe` is orientation, size, make and model. Names and wording are exifread's, which img2dataset writes.
"""

import json
import struct
from typing import Final

from PIL import ExifTags, Image

_ORIENTATIONS: Final = (
    "",
    "Horizontal (normal)",
    "Mirrored horizontal",
    "Rotated 180",
    "Mirrored vertical",
    "Mirrored horizontal then rotated 90 CCW",
    "Rotated 90 CW",
    "Mirrored horizontal then rotated 90 CW",
    "Rotated 90 CCW",
)
_ORIENTATION: Final = 0x0112
_EXIF_IFD: Final = 0x8769
_SAFE: Final = {0x0112: "Orientation", 0x010F: "Make", 0x0110: "Model", 0x0100: "ImageWidth", 0x0101: "ImageLength"}
_SAFE_EXIF: Final = {0xA002: "ExifImageWidth", 0xA003: "ExifImageLength"}
_GROUPS: Final = ((_EXIF_IFD, "EXIF", ExifTags.TAGS), (0x8825, "GPS", ExifTags.GPSTAGS))
_NEVER: Final = frozenset({0x8769, 0x8825, 0xA005, 0x927C})
"""Pointers, and maker notes, which are bytes only their maker can read."""
_BROKEN: Final = (struct.error, SyntaxError, ValueError, TypeError, LookupError, OSError, ArithmeticError)


def load(tiff: bytes | None) -> Image.Exif | None:
    """The tags of a TIFF structure; None when there are none or they cannot be read."""
    if not tiff:
        return None
    exif = Image.Exif()
    try:
        exif.load(b"Exif\0\0" + tiff)
        dict(exif)
    except _BROKEN:
        return None
    return exif


def orientation(exif: Image.Exif | None) -> int:
    """EXIF orientation, 1 to 8; 1 where it is absent or nonsense."""
    value = exif.get(_ORIENTATION) if exif else None
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def to_json(exif: Image.Exif | None, keep: str) -> str | None:
    """A JSON object of the tags that `keep` (none, safe, all) keeps; None when it keeps none."""
    if exif is None or keep == "none":
        return None
    try:
        tags = _tags(exif, everything=keep == "all")
    except _BROKEN:
        return None
    return json.dumps(tags, ensure_ascii=False) if tags else None


def _tags(exif: Image.Exif, *, everything: bool) -> dict[str, str]:
    tags: dict[str, str] = {}
    for tag, value in exif.items():
        if tag in _SAFE or (everything and tag not in _NEVER):
            text = _ORIENTATIONS[value] if tag == _ORIENTATION and value in range(1, 9) else _text(value)
            if text is not None:
                tags[f"Image {_SAFE.get(tag) or ExifTags.TAGS.get(tag, f'Tag 0x{tag:04X}')}"] = text
    for pointer, group, names in _GROUPS:
        for tag, value in exif.get_ifd(pointer).items():
            safe = _SAFE_EXIF.get(tag) if pointer == _EXIF_IFD else None
            text = _text(value) if safe or (everything and tag not in _NEVER) else None
            if text is not None:
                tags[f"{group} {safe or names.get(tag, f'Tag 0x{tag:04X}')}"] = text
    return tags


def _text(value: object) -> str | None:
    """At most 1,000 characters, without NULs; None for bytes that are no text."""
    if isinstance(value, bytes):
        value = value.rstrip(b"\0")
        if not value.isascii():
            return None
        value = value.decode("ascii")
    elif isinstance(value, tuple):
        value = "[" + ", ".join(str(part) for part in value) + "]"
    return str(value).replace("\0", "").strip()[:1000]


def safe_tiff(exif: Image.Exif | None) -> bytes | None:
    """A new TIFF structure of the safe tags alone; None when there are none."""
    if exif is None:
        return None
    kept = Image.Exif()
    try:
        for tag in _SAFE:
            value = exif.get(tag)
            if isinstance(value, int | str) and value != "":
                kept[tag] = value[:1000] if isinstance(value, str) else value
        inner = {
            tag: value for tag, value in exif.get_ifd(_EXIF_IFD).items() if tag in _SAFE_EXIF and isinstance(value, int)
        }
        if inner:
            kept.get_ifd(_EXIF_IFD).update(inner)
            kept[_EXIF_IFD] = kept.get_ifd(_EXIF_IFD)
        return kept.tobytes().removeprefix(b"Exif\0\0") if len(kept) or inner else None
    except _BROKEN:
        return None
