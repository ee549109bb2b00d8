"""Detectors against a labelled file, redaction, statistics, and texts made to take long."""

import csv
import time
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.text import DETECTORS, make_caption, repetition, text_statistics

LABELLED = Path(__file__).parent.parent / "data" / "alt_texts.tsv"
"""Alt texts in twenty languages, each labelled by what it is, among them dates, prices, ISBNs, versions and sizes."""
FLOORS = {
    "has_boilerplate": (0.98, 0.95), "has_url": (0.96, 0.96), "has_email": (0.96, 0.96), "has_phone": (0.97, 0.96),
    "repetition > 0.2": (0.60, 0.97), "repetition > 0.33": (0.90, 0.97), "repeated_trigrams > 0": (0.85, 0.45),
}  # fmt: skip
"""Least precision and recall. repetition > 0.2 is CC12M's rule: small words repeat in many good captions too."""


def large(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def found(texts: list[str]) -> dict[str, list[bool]]:
    words, trigrams = (shares.to_pylist() for shares in repetition(texts))
    return {
        **{name: detect(large(texts)).to_pylist() for name, detect in DETECTORS.items()},
        "repetition > 0.2": [share > 0.2 for share in words],
        "repetition > 0.33": [share > 0.33 for share in words],
        "repeated_trigrams > 0": [share > 0 for share in trigrams],
    }


def test_detectors_on_the_labelled_file_keep_their_precision_and_recall() -> None:
    with LABELLED.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) >= 500
    texts = [row["text"] for row in rows]
    print(f"\n{'detector':<24}{'rows':>5}{'precision':>11}{'recall':>8}   of {len(rows)} rows")
    missed = []
    for name, marked in found(texts).items():
        label = "repetition" if name.startswith("rep") else name.removeprefix("has_")
        wanted = [label in row["labels"].split(",") for row in rows]
        hits = sum(a and b for a, b in zip(marked, wanted, strict=True))
        precision, recall = hits / sum(marked), hits / sum(wanted)
        print(f"{name:<24}{sum(wanted):>5}{precision:>11.3f}{recall:>8.3f}")
        if precision < FLOORS[name][0] or recall < FLOORS[name][1]:
            missed.append(name)
    assert missed == []


@pytest.mark.parametrize(
    ("text", "words", "trigrams"),
    [
        ("", 0, 0),
        ("one two three", 0, 0),
        ("a A a a", 3 / 4, 1 / 2),
        ("red cat red cat red cat", 4 / 6, 2 / 4),
        ("one two three four one", 1 / 5, 0),
    ],
)
def test_repetition_is_the_share_that_was_there_before(text: str, words: float, trigrams: float) -> None:
    assert [shares[0].as_py() for shares in repetition([text])] == pytest.approx([words, trigrams])


HOSTILE = {
    "one word": "x" * 10_000_000,
    "digits": "1" * 10_000_000,
    "digits in groups": "1 2-3 4." * 1_250_000,
    "dots": "a." * 5_000_000,
    "at signs": "a@" * 5_000_000,
    "addresses without an end": "a@b." * 2_500_000,
    "white space": " \u00a0\t\n" * 2_500_000,
    "brackets": "([ (at) [dot] " * 700_000,
    "slashes": "http://" * 1_400_000,
    "instructions": "click to " * 1_100_000,
    "plus signs": "+1 " * 3_300_000,
    "phone numbers": "+1 212 555 0187, " * 600_000,
    "zeros": "\0" * 10_000_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.timeout(120)
def test_ten_megabytes_take_seconds(kind: str) -> None:
    text = HOSTILE[kind]
    begun = time.process_time()
    found([text])
    make_caption(text, normalise=False, redact=True)
    print(f"{kind}: {time.process_time() - begun:.1f} CPU s")


@given(st.text())
def test_text_statistics_are_python_s(text: str) -> None:
    n_chars, n_words = text_statistics(pa.array([text], pa.large_string()))
    assert (n_chars[0].as_py(), n_words[0].as_py()) == (len(text), len(text.split()))


@given(st.text())
def test_a_caption_is_the_text_unless_asked(text: str) -> None:
    assert make_caption(text, normalise=False, redact=False) == text
    assert make_caption(text, normalise=True, redact=False) == " ".join(unicodedata.normalize("NFC", text).split())


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("write to a.b+c@mail.example.co.uk now", "write to [email] now"),
        ("call +44 20 7946 0958 or (555) 123-4567", "call [phone] or [phone]"),
        ("call 555-123-4567", "call [phone]"),
        ("shot on 2019-01-02 at 1920x1080, f/2.8, ISBN 9783161484100", None),
        ("room 1234 @ home", None),
        ("Tel: 030 1234567 / 030 7654321, x@y.de", "Tel: [phone] / [phone], [email]"),
        ("020 7946 0958 - 020 7946 0959", "[phone] - [phone]"),
        (" / ".join(f"030 {number}" for number in range(1234560, 1234590)), " / ".join(["[phone]"] * 30)),
        ("jane [at] example [dot] org", "[email]"),
    ],
)
def test_redaction_replaces_addresses_and_numbers(text: str, caption: str | None) -> None:
    assert make_caption(text, normalise=False, redact=True) == (caption or text)


def test_what_is_redacted_is_what_is_detected() -> None:
    with LABELLED.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
    marked = found(texts)
    captions = [make_caption(text, normalise=False, redact=True) for text in texts]
    assert ["[email]" in caption for caption in captions] == marked["has_email"]
    assert ["[phone]" in caption for caption in captions] == marked["has_phone"]
    assert not any(again for name in ("has_email", "has_phone") for again in found(captions)[name])
