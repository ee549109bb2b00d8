"""What a text is like: statistics and detectors as columns of pairs, and the caption, with or without redaction.

Every detector takes time linear in the text. Precision and recall on a labelled file: tests/unit/test_text.py.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ingest.boilerplate import has_boilerplate
from pipeline.ingest.phones import phone_spans

Span = tuple[int, int]
"""First code point and the one after the last."""

_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0 \u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space as str.split() has it."""
_WORD = f"[^{_SPACE}]+"


def text_statistics(text: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Code points, and runs of characters that are no white space (len(text.split())), as int32."""
    words = pc.count_substring_regex(text, pattern=_WORD)
    return pc.utf8_length(text).cast(pa.int32()), words.cast(pa.int32())


def repetition(texts: Iterable[str]) -> tuple[pa.Array, pa.Array]:
    """Share of words, and of word trigrams, that repeat an earlier one of the same text; float32, 0 if there is none.

    Words are runs of non-space characters in lower case. CC12M (Changpinyo et al. 2021, arXiv 2102.08981, section 2.2)
    allows a fraction of word repetition of at most 0.2. Trigrams see a phrase said again, and not small words alone,
    as Gopher's n-gram rules do (Rae et al. 2021, arXiv 2112.11446, appendix A1). Scripts without spaces give 0.
    """
    of_words: list[float] = []
    of_trigrams: list[float] = []
    for text in texts:
        words = text.lower().split()
        repeats = len(words) - len(set(words))
        of_words.append(repeats / len(words) if repeats else 0.0)
        if repeats < 3:  # a repeated trigram repeats three words
            of_trigrams.append(0.0)
            continue
        count = len(words) - 2
        of_trigrams.append(1 - len(set(zip(words, words[1:], words[2:], strict=False))) / count)
    return pa.array(of_words, pa.float32()), pa.array(of_trigrams, pa.float32())


_TLD: Final = (
    "com|org|net|edu|gov|info|biz|shop|blog|online|site|store|wiki|dev|app|co|io|tv|fm|gg|ai|eu|uk|us|ca|au|nz|de|fr"
    "|nl|pl|ru|ua|jp|cn|kr|br|mx|ar|cl|ch|cz|se|dk|fi|tr|ir|gr|pt|hu|ro|id|in|it|es|be|at|no|sk|me|to|ly|gl|example"
)
"""Ends of names that are written without http:// or www.; those that are words count before a slash only."""
_WORD_TLD: Final = "(?:in|it|es|be|at|no|id|us|me|to|ly|gl|app|site|store|online|shop|blog|ai|ar)"
_CLEAR_TLD: Final = "(?:" + "|".join(t for t in _TLD.split("|") if not re.fullmatch(_WORD_TLD, t)) + ")"
_LABEL: Final = r"[\pL\pN][\pL\pN-]{0,62}"
_URL: Final = (
    r"(?i:\b(?:https?|ftp)://?[^\s/])"
    r"|(?i:\bwww\d?\.[^\s.]+\.[a-z])"
    rf"|(?:^|[^@\pL\pN_.\-/&])(?:{_LABEL}\.)+(?:{_CLEAR_TLD}(?:[^\pL\pN_.@\-]|\.(?:\W|$)|$)|(?:{_CLEAR_TLD}|{_WORD_TLD})/\w)"
)


def has_url(text: pa.Array) -> pa.Array:
    """A URL, or a host name as one reads it ("flickr.com/photos", "Amazon.com"); an e-mail address's host is none.

    Names ending in a top-level domain that is a word too ("done.It") count with a path only, and in lower case.
    """
    return _where(
        text, pc.match_substring_regex(text, pattern="[.:]"), lambda rows: pc.match_substring_regex(rows, pattern=_URL)
    )


_AT: Final = r"(?:@|\s?[\[({]\s?(?:at|AT|arroba)\s?[\])}]\s?)"
_DOT: Final = r"(?:\.|\s?[\[({]\s?(?:dot|DOT)\s?[\])}]\s?)"
_EMAIL: Final = re.compile(
    rf"(?<![\w.+%@/-])[\w.+%-]{{1,64}}+{_AT}(?:[\w-]{{1,63}}{_DOT}){{1,8}}[^\W\d_]{{2,24}}(?![\w@])(?!:\w)"
)
_NO_TLD: Final = {"jpg", "jpeg", "png", "gif", "webp", "svg", "bmp", "tif", "tiff", "pdf", "mp4", "css", "js"}


def email_spans(text: str) -> list[Span]:
    """Where e-mail addresses are, also as "name (at) host (dot) org"; no retina file names, no fediverse handles."""
    return [
        match.span()
        for match in _EMAIL.finditer(text)
        if text[max(match.start(), match.end() - 25) : match.end()].rpartition(".")[2].lower() not in _NO_TLD
    ]


_AT_SIGN: Final = r"(?i)@|[\[({]\s?(?:at|arroba)\s?[\])}]"


def has_email(text: pa.Array) -> pa.Array:
    return _where(text, pc.match_substring_regex(text, pattern=_AT_SIGN), lambda rows: _each(rows, email_spans))


_SEVEN_DIGITS: Final = r"\d(?:[^\w<>]{0,4}\d){6}"


def has_phone(text: pa.Array) -> pa.Array:
    return _where(text, pc.match_substring_regex(text, pattern=_SEVEN_DIGITS), lambda rows: _each(rows, phone_spans))


def _each(rows: pa.Array, spans: Callable[[str], list[Span]]) -> pa.Array:
    return pa.array([bool(spans(text)) for text in rows.to_pylist()], pa.bool_())


def _where(text: pa.Array, candidates: pa.Array, detect: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """`detect` of the candidates, false elsewhere."""
    return pc.replace_with_mask(candidates, candidates, detect(text.filter(candidates)))


DETECTORS: Final = {
    "has_boilerplate": has_boilerplate, "has_url": has_url, "has_email": has_email, "has_phone": has_phone,
}  # fmt: skip


def make_caption(text: str, normalise: bool, redact: bool) -> str:
    """What trains: the text in NFC with runs of white space as one space, and e-mail addresses and phone numbers as
    [email] and [phone], each if asked for."""
    if normalise:
        text = " ".join(unicodedata.normalize("NFC", text).split())
    if redact:
        text = _replaced(text, email_spans(text), "[email]")
        text = _replaced(text, phone_spans(text), "[phone]")
    return text


def _replaced(text: str, spans: list[Span], by: str) -> str:
    if not spans:
        return text
    pieces: list[str] = []
    end = 0
    for start, stop in spans:
        pieces += (text[end:start], by)
        end = stop
    return "".join([*pieces, text[end:]])
