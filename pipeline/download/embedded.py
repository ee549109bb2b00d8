"""Consent signals inside an image's bytes, read before re-encoding strips them: IPTC/PLUS in XMP, and C2PA."""

from collections.abc import Collection
from typing import Final

from pipeline.download.consent import Signal, verdict
from pipeline.images import c2pa, xmp
from pipeline.images.segments import read_segments

MOST: Final = 16
"""Signals recorded of one image; those that forbid come first."""


def embedded_signals(data: bytes, evaluated: Collection[str]) -> list[Signal]:
    """The signals of `evaluated` (iptc_plus, c2pa) that fetched bytes carry."""
    terms: list[str] = []
    entries: list[tuple[str, str]] = []
    left = xmp.MAX_PARSED
    for kind, body in read_segments(data):
        if kind == "xmp" and "iptc_plus" in evaluated:
            terms += xmp.data_mining(body, left)
            left -= len(body)
        elif kind == "c2pa" and "c2pa" in evaluated:
            entries += c2pa.training_entries(body)
    told = [_signal("iptc_plus", value, xmp.forbids(value)) for value in dict.fromkeys(terms)]
    told += [_signal("c2pa", f"{name}={use}", c2pa.forbids(use)) for name, use in dict.fromkeys(entries)]
    return sorted(told, key=lambda signal: signal.verdict == "allow")[:MOST]


def _signal(signal: str, value: str, denied: bool) -> Signal:
    text = value.encode("utf-8", "replace").decode()[:1000]
    return Signal(signal, text, "xmp" if signal == "iptc_plus" else "c2pa", verdict(denied))
