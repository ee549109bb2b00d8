"""What an XMP packet says of data mining: the property `plus:DataMining` (IPTC Photo Metadata Standard 2023.1, PLUS).

Read by expat with every document type refused, so that there are no entities to expand and nothing to fetch. IPTC's
older binary records (IIM) have no such field; texts for people (plus:OtherConstraints, xmpRights:UsageTerms) and
embedded or linked rights expressions are not read: the property's own values say where they count.
"""

import contextlib
import re
from typing import Final
from xml.parsers import expat

MAX_PARSED: Final = 4 << 20
"""Bytes of XMP that are parsed of an image, about a second's worth at most; the rest is searched for terms."""

_PROPERTY: Final = b"DataMining"
_TERM: Final = re.compile(r"DMI-[A-Z-]+")
_RDF: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IN_RDF: Final = (f"{_RDF} resource", f"{_RDF} value", f"{_RDF} about")


def data_mining(packet: bytes, parsed: int = MAX_PARSED) -> list[str]:
    """The values of every DataMining property in a packet, as written, at most 1,000 characters each.

    A property of that name counts in any namespace, as tools disagree on it. What cannot be parsed (broken XML, a
    document type, more than `parsed` bytes) is searched for the vocabulary's terms: a broken refusal is still one.
    """
    # In these files XMP must be UTF-8; of what is UTF-16 all the same, this leaves the terms.
    plain = packet.replace(b"\0", b"") if b"\0" in packet[:4] else packet
    if _PROPERTY not in plain:
        return []
    if len(packet) <= parsed:
        with contextlib.suppress(expat.ExpatError, ValueError, LookupError):
            # What comes after the last tag is padding.
            return _Reader().read(packet[: packet.rfind(b">") + 1].lstrip())
    return sorted(set(_TERM.findall(plain.decode("ascii", "replace"))))


def forbids(value: str) -> bool:
    """Whether a value of plus:DataMining keeps an image out of a training set.

    Every DMI-PROHIBITED… does. AIMLTRAINING, and plain PROHIBITED, say so. GENAIMLTRAINING: whoever reads the set may
    train a generator on it. EXCEPTSEARCHENGINEINDEXING: this is no search engine. SEECONSTRAINT,
    SEEEMBEDDEDRIGHTSEXPR and SEELINKEDRIGHTSEXPR: prohibited but for terms that no program can weigh.
    DMI-ALLOWED, DMI-UNSPECIFIED and unknown values do not forbid.
    """
    return "PROHIBITED" in value.upper()


class _Reader:
    """Collects text, rdf:resource, rdf:value and rdf:about inside DataMining elements, and attributes of that name."""

    def __init__(self) -> None:
        self._values: list[str] = []
        self._depth = 0
        """Open elements from a DataMining element on."""

    def read(self, packet: bytes) -> list[str]:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.Parse(packet, True)
        return self._values

    def _refuse(self, *_: object) -> None:
        raise ValueError("XMP has no document type")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if self._depth or name.endswith(" DataMining"):
            self._depth += 1
        for attribute, value in attributes.items():
            if attribute.endswith(" DataMining") or (self._depth and attribute in _IN_RDF):
                self._add(value)

    def _end(self, name: str) -> None:
        if self._depth:
            self._depth -= 1

    def _characters(self, text: str) -> None:
        if self._depth:
            self._add(text)

    def _add(self, value: str) -> None:
        if value := value.strip():
            self._values.append(value[:1000])
