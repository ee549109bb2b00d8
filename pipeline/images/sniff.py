"""What kind of file some bytes are, from the bytes alone (names and Content-Type headers lie)."""

import re
from typing import Final

ALLOWED: Final = ("jpeg", "png", "webp", "gif", "avif")

_SIGNATURES: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\0\0\1\0", "ico"),
    (b"\0\0\2\0", "cur"),
    (b"\xff\x0a", "jpeg xl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "jpeg xl"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg 2000"),
    (b"\xff\x4f\xff\x51", "jpeg 2000"),
    (b"8BPS", "psd"),
    (b"gimp xcf", "xcf"),
    (b"icns", "icns"),
    (b"DDS ", "dds"),
    (b"qoif", "qoi"),
    (b"\x8aMNG\r\n\x1a\n", "mng"),
    (b"\x8bJNG\r\n\x1a\n", "jng"),
    (b"%!PS", "eps"),
    (b"\xc5\xd0\xd3\xc6", "eps"),
    (b"\xd7\xcd\xc6\x9a", "wmf"),
    (b"#?RADIANCE", "hdr"),
    (b"\x76\x2f\x31\x01", "exr"),
    (b"BPG\xfb", "bpg"),
    (b"FLIF", "flif"),
    (b"SIMPLE  =", "fits"),
    (b"\x59\xa6\x6a\x95", "sun raster"),
    (b"\x01\xda", "sgi"),
    (b"/* XPM */", "xpm"),
    (b"FTEX", "ftex"),
    (b"BLP", "blp"),
)
_ISO_BRANDS: Final = {
    b"avif": "avif",
    b"avis": "avif",
    b"heic": "heic",
    b"heix": "heic",
    b"heim": "heic",
    b"heis": "heic",
    b"hevc": "heic",
    b"hevx": "heic",
    b"mif1": "heif",
    b"msf1": "heif",
    b"crx ": "cr3",
}
_XML_PROLOGUE: Final = re.compile(rb"\s+|<\?.*?\?>|<!--.*?-->|<!DOCTYPE\s+svg", re.DOTALL | re.IGNORECASE)
_SVG_ROOT: Final = re.compile(rb"<(?:[\w.-]+:)?svg[\s>/]")


def sniff(data: bytes) -> str | None:
    """The kind of image, one of ALLOWED or another kind's name; None when the bytes are no image."""
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _iso_kind(data)
    if data[:2] == b"BM" and len(data) > 26 and data[6:10] == b"\0\0\0\0":
        return "bmp"
    if re.match(rb"P[1-7fF]\s", data) or re.match(rb"\x0a[\x00-\x05]\x01[\x01\x02\x04\x08]", data):
        return "pnm" if data[:1] == b"P" else "pcx"
    if re.match(rb"\s*#define\s+\S+_width\s", data[:256]):
        return "xbm"
    return "svg" if _is_svg(data[:4096]) else None


def _iso_kind(data: bytes) -> str | None:
    size = int.from_bytes(data[:4], "big")
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(size, len(data), 256), 4))]
    kinds = [_ISO_BRANDS[brand] for brand in brands if brand in _ISO_BRANDS]
    # A container brand (mif1) says nothing of the codec; any AVIF brand beside it does.
    return "avif" if "avif" in kinds else kinds[0] if kinds else None


def _is_svg(head: bytes) -> bool:
    """True when the document's root element is svg; HTML that contains one is still HTML."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.replace(b"\0", b"")[2:]
    at = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    while found := _XML_PROLOGUE.match(head, at):
        if found[0][:2] == b"<!" and found[0][:4] != b"<!--":
            return True
        at = found.end()
    return _SVG_ROOT.match(head, at) is not None
