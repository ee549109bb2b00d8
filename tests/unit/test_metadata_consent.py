"""Consent inside image bytes, written by others: XMP by Pillow, C2PA by the C2PA project's own library."""

import contextlib
import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pipeline.download.consent import Signal
from pipeline.download.embedded import embedded_signals
from pipeline.images import c2pa, xmp
from pipeline.images.cbor import decode_cbor
from tests.signed import MIME, image, signed, training

BOTH = ["iptc_plus", "c2pa"]
VOCABULARY = "http://ns.useplus.org/ldf/vocab/"


def packet(inner: str, attributes: str = "") -> bytes:
    """An XMP packet around properties, as Adobe's toolkit and exiftool write it."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        f' xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"{attributes}>'
        f"{inner}</rdf:Description></rdf:RDF></x:xmpmeta>" + " " * 2000 + '<?xpacket end="w"?>'
    ).encode()


def mining(term: str) -> bytes:
    return packet(f"<plus:DataMining>{VOCABULARY}{term}</plus:DataMining>")


def png(xmp_packet: bytes, packed: bool = False) -> bytes:
    told = PngImagePlugin.PngInfo()
    told.add_itxt("XML:com.adobe.xmp", xmp_packet.decode(), zip=packed)
    return image("PNG", pnginfo=told)


def extended_jpeg(xmp_packet: bytes) -> bytes:
    """A packet cut over APP1 segments, the last first (XMP specification, part 3, 1.1.3.1)."""
    data, guid = image("JPEG"), b"0123456789ABCDEF0123456789ABCDEF"
    parts = []
    for at in range(0, len(xmp_packet), 65_000):
        body = b"http://ns.adobe.com/xmp/extension/\0" + guid + struct.pack(">II", len(xmp_packet), at)
        body += xmp_packet[at : at + 65_000]
        parts.append(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
    return data[:2] + b"".join(reversed(parts)) + data[2:]


def gif(xmp_packet: bytes) -> bytes:
    data = image("GIF")
    trailer = b"\1" + bytes(range(255, -1, -1)) + b"\0"
    return data[:-1] + b"\x21\xff\x0bXMP DataXMP" + xmp_packet + trailer + b";"


WRITERS: dict[str, Callable[[bytes], bytes]] = {
    "jpeg": lambda told: image("JPEG", xmp=told),
    "jpeg, extended": lambda told: extended_jpeg(told + b" " * 150_000),
    "png": png,
    "png, packed": lambda told: png(told, True),
    "webp": lambda told: image("WEBP", xmp=told),
    "avif": lambda told: image("AVIF", xmp=told),
    "gif": gif,
}


def verdicts(data: bytes, evaluated: list[str] | None = None) -> list[tuple[str, str, str]]:
    return [(one.signal, one.value, one.verdict) for one in embedded_signals(data, evaluated or BOTH)]


# --- IPTC/PLUS ---


@pytest.mark.parametrize("writer", WRITERS)
def test_a_prohibition_is_found_in_every_kind_of_file(writer: str) -> None:
    data = WRITERS[writer](mining("DMI-PROHIBITED-AIMLTRAINING"))
    assert verdicts(data) == [("iptc_plus", f"{VOCABULARY}DMI-PROHIBITED-AIMLTRAINING", "deny")]
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()


@pytest.mark.parametrize(
    ("term", "verdict"),
    [
        ("DMI-PROHIBITED", "deny"), ("DMI-PROHIBITED-AIMLTRAINING", "deny"), ("DMI-PROHIBITED-GENAIMLTRAINING", "deny"),
        ("DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", "deny"), ("DMI-PROHIBITED-SEECONSTRAINT", "deny"),
        ("DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR", "deny"), ("DMI-PROHIBITED-SEELINKEDRIGHTSEXPR", "deny"),
        ("DMI-ALLOWED", "allow"), ("DMI-UNSPECIFIED", "allow"),
    ],
)  # fmt: skip
def test_every_prohibition_of_the_vocabulary_denies(term: str, verdict: str) -> None:
    assert [told[2] for told in verdicts(WRITERS["jpeg"](mining(term)))] == [verdict]


@pytest.mark.parametrize(
    "told",
    [
        packet(f'<plus:DataMining rdf:resource="{VOCABULARY}DMI-PROHIBITED"/>'),
        packet("", f' plus:DataMining="{VOCABULARY}DMI-PROHIBITED"'),
        packet(f"<plus:DataMining>\n  {VOCABULARY}DMI-PROHIBITED\n</plus:DataMining>"),
        packet(f"<plus:DataMining><rdf:Bag><rdf:li>{VOCABULARY}DMI-PROHIBITED</rdf:li></rdf:Bag></plus:DataMining>"),
        packet(
            f'<plus:DataMining rdf:parseType="Resource"><rdf:value>{VOCABULARY}DMI-PROHIBITED</rdf:value>'
            "</plus:DataMining>"
        ),
        packet(f"<plus:DataMining>{VOCABULARY}DMI&#45;PROHIBITED</plus:DataMining>"),
        packet(f"<p:DataMining xmlns:p='http://ns.useplus.org/ldf/xmp/1.0/'>{VOCABULARY}DMI-PROHIBITED</p:DataMining>"),
        b"\n" + mining("DMI-PROHIBITED") + bytes(20),
    ],
)
def test_a_prohibition_may_be_written_in_any_of_rdf_s_ways(told: bytes) -> None:
    assert xmp.data_mining(told) == [f"{VOCABULARY}DMI-PROHIBITED"]


@pytest.mark.parametrize(
    "told",
    [
        packet("<dc:title>on DMI-PROHIBITED</dc:title>"),
        packet("<plus:OtherConstraints>DataMining is DMI-PROHIBITED</plus:OtherConstraints>"),
        packet("<!-- <plus:DataMining>DMI-PROHIBITED</plus:DataMining> -->"),
        packet("<plus:DataMining/>"), b"", b"\0",
    ],
)  # fmt: skip
def test_what_only_mentions_the_vocabulary_says_nothing(told: bytes) -> None:
    assert xmp.data_mining(told) == []


@pytest.mark.parametrize(
    "told",
    [
        mining("DMI-PROHIBITED").partition(b"</plus")[0], mining("DMI-PROHIBITED").decode().encode("utf-16"),
        mining("DMI-PROHIBITED").replace(b"</x:", b"<x:"),
        b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + mining("DMI-PROHIBITED"), b"\xff" + mining("DMI-PROHIBITED"),
        mining("DMI-PROHIBITED") + b" " * xmp.MAX_PARSED, b"<plus:DataMining>DMI-PROHIBITED</plus:DataMining>",
    ],
)  # fmt: skip
def test_a_prohibition_in_a_packet_that_cannot_be_read_is_still_one(told: bytes) -> None:
    assert xmp.data_mining(told) == ["DMI-PROHIBITED"]


def test_entities_are_not_expanded() -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "{"x" * 100}">{levels}]><x xmlns:p="p"><p:DataMining>&e9;</p:DataMining></x>'
    outside = (
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><x xmlns:p="p"><p:DataMining>&e;</p:DataMining></x>'
    )
    for told in (bomb, outside):
        tracemalloc.start()
        assert xmp.data_mining(told.encode()) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_a_packet_of_a_million_elements_takes_no_more_than_seconds() -> None:
    began = time.process_time()
    xmp.data_mining(packet("<plus:DataMining>" + "<a>" * 500_000 + "</a>" * 500_000 + "</plus:DataMining>"))
    assert time.process_time() - began < 10


def test_many_packets_cost_no_more_than_one() -> None:
    elements = packet("<plus:DataMining>" + "<a>" * 4_000 + "</a>" * 4_000 + "DMI-PROHIBITED</plus:DataMining>")
    segment = b"http://ns.adobe.com/xap/1.0/\0" + elements
    data = image("JPEG")
    data = data[:2] + (b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment) * 1_000 + data[2:]
    began = time.process_time()
    assert verdicts(data) == [("iptc_plus", "DMI-PROHIBITED", "deny")]
    assert time.process_time() - began < 10


# --- C2PA ---


@pytest.mark.parametrize("format_", MIME)
@pytest.mark.parametrize("prefix", ["c2pa", "cawg"])
def test_a_manifest_that_forbids_training_is_read_in_every_kind_of_file(format_: str, prefix: str) -> None:
    uses = {f"{prefix}.ai_training": "notAllowed", f"{prefix}.data_mining": "allowed"}
    data = signed(format_, training(uses, f"{prefix}.training-mining"))
    assert verdicts(data) == [
        ("c2pa", f"{prefix}.ai_training=notAllowed", "deny"), ("c2pa", f"{prefix}.data_mining=allowed", "allow"),
    ]  # fmt: skip


@pytest.mark.parametrize("entry", ["ai_training", "ai_generative_training", "data_mining", "ai_inference"])
@pytest.mark.parametrize(("use", "verdict"), [("notAllowed", "deny"), ("constrained", "deny"), ("allowed", "allow")])
def test_every_entry_counts_and_constrained_is_not_allowed(entry: str, use: str, verdict: str) -> None:
    assert [told[2] for told in verdicts(signed("JPEG", training({f"c2pa.{entry}": use})))] == [verdict]


def test_a_manifest_that_speaks_of_other_things_says_nothing() -> None:
    assert verdicts(signed("JPEG")) == []


def test_a_manifest_in_many_segments_is_put_together() -> None:
    long = {"label": "org.example.long", "data": {"text": "x" * 300_000}}
    data = signed("JPEG", long, training({"c2pa.ai_training": "notAllowed"}))
    assert data.count(b"\xff\xeb") > 4
    assert [told[2] for told in verdicts(data)] == ["deny"]


def test_what_an_ingredient_forbids_its_composition_may_not_be_used_for() -> None:
    import c2pa as writer

    from tests import signed as signing

    parent = signed("JPEG", training({"c2pa.ai_training": "notAllowed"}))
    out = io.BytesIO()
    manifest = {"title": "y", "format": "image/jpeg", "assertions": []}
    builder = writer.Builder(manifest)
    builder.set_intent(writer.C2paBuilderIntent.EDIT)
    builder.add_ingredient({"title": "parent", "relationship": "parentOf"}, "image/jpeg", io.BytesIO(parent))
    builder.sign(signing._signer(), "image/jpeg", io.BytesIO(image("JPEG")), out)
    assert [told[2] for told in verdicts(out.getvalue())] == ["deny"]


@pytest.mark.parametrize("size", range(20, 400, 7))
def test_a_broken_store_that_names_training_is_a_refusal_and_no_error(size: int) -> None:
    data = signed("PNG", training({"c2pa.ai_training": "notAllowed"}))
    at = data.index(b"caBX") + 4
    store = data[at : data.index(b"IDAT")]
    label = store.index(b"c2pa.training-mining")
    assert all(c2pa.forbids(use) for _, use in c2pa.training_entries(store[: label + size]))


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


def superbox(label: str, *inner: bytes) -> bytes:
    return box(b"jumb", box(b"jumd", bytes(16) + b"\3" + label.encode() + b"\0") + b"".join(inner))


@pytest.mark.parametrize(
    ("inner", "entries"),
    [
        (box(b"json", b'{"entries": {"a": {"use": "notAllowed"}}}'), [("a", "notAllowed")]),
        (box(b"cbor", cbor2.dumps({"a": {"use": "constrained"}})), [("a", "constrained")]),
        (box(b"cbor", b"\xff"), [("c2pa.training-mining", "unreadable")]),
        (box(b"cbor", cbor2.dumps([1])), [("c2pa.training-mining", "unreadable")]),
        (box(b"json", b"[" * 100_000), [("c2pa.training-mining", "unreadable")]),
        (box(b"cbor", b"\x81" * 100_000), [("c2pa.training-mining", "unreadable")]),
        (box(b"cbor", cbor2.dumps({"x": bytes(c2pa.MAX_ASSERTION)})), [("c2pa.training-mining", "unreadable")]),
        (b"", []),
    ],
)
def test_an_assertion_is_json_or_cbor_and_one_that_cannot_be_read_forbids(inner: bytes, entries: list[Any]) -> None:
    assert c2pa.training_entries(superbox("c2pa", superbox("c2pa.training-mining", inner))) == entries


def test_boxes_without_end_are_given_up() -> None:
    deep = superbox("c2pa.training-mining")
    for _ in range(50):
        deep = superbox("x", deep)
    wide = superbox("c2pa.training-mining", box(b"free", b"") * 20_000)
    for store in (deep, wide):
        assert [use for _, use in c2pa.training_entries(store)] == ["unreadable"]


# --- together ---


def test_each_signal_is_looked_for_only_where_it_is_evaluated() -> None:
    data = signed("JPEG", training({"c2pa.ai_training": "notAllowed"}), data=WRITERS["jpeg"](mining("DMI-PROHIBITED")))
    assert {one.signal for one in embedded_signals(data, BOTH)} == set(BOTH)
    for name in BOTH:
        assert {one.signal for one in embedded_signals(data, [name])} == {name}


def test_a_signal_says_where_it_was_and_by_what_it_was_judged() -> None:
    told = embedded_signals(WRITERS["jpeg"](mining("DMI-PROHIBITED")), BOTH)
    assert told == [Signal("iptc_plus", f"{VOCABULARY}DMI-PROHIBITED", "xmp", "deny")]
    assert told[0].rule_version == "IPTC Photo Metadata 2023.1"


@pytest.mark.parametrize("format_", MIME)
def test_an_image_without_such_metadata_has_no_signals(format_: str) -> None:
    assert verdicts(image(format_)) == []


@given(st.sampled_from(sorted(MIME)), st.data())
def test_no_bytes_make_an_error(format_: str, drawn: st.DataObject) -> None:
    data = bytearray(_with_both(format_))
    for _ in range(drawn.draw(st.integers(1, 8))):
        data[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))
    for one in embedded_signals(bytes(data[: drawn.draw(st.integers(0, len(data)))]), BOTH):
        one.value.encode()


_MADE: dict[str, bytes] = {}


def _with_both(format_: str) -> bytes:
    if format_ not in _MADE:
        plain = png(mining("DMI-PROHIBITED")) if format_ == "PNG" else image(format_, xmp=mining("DMI-PROHIBITED"))
        _MADE[format_] = signed(format_, training({"c2pa.ai_training": "notAllowed"}), data=plain)
    return _MADE[format_]


def test_a_packed_bomb_is_left_to_the_header_s_reader() -> None:
    body = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(1 << 26), 9)
    chunk = struct.pack(">I", len(body)) + b"iTXt" + body + struct.pack(">I", zlib.crc32(b"iTXt" + body))
    data = image("PNG")
    assert verdicts(data[:33] + chunk + data[33:]) == []


# --- CBOR ---


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4),
    max_leaves=12,
)


@given(_VALUES)
def test_cbor_is_read_as_another_library_writes_it(value: Any) -> None:
    assert decode_cbor(cbor2.dumps(value)) == value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("9f0102ff", [1, 2]), ("bf6161f5ff", {"a": True}), ("7f61616162ff", "ab"), ("5f41004101ff", b"\0\1"),
        ("c11a514b67b0", 1363896240), ("f90001", 5.960464477539063e-8), ("f97c00", float("inf")), ("f6", None),
        ("f7", None), ("f0", None), ("f8ff", None), ("a0", {}),
    ],
)  # fmt: skip
def test_cbor_of_rfc_8949_s_examples(written: str, value: Any) -> None:
    assert decode_cbor(bytes.fromhex(written)) == value


@given(st.binary(max_size=200))
def test_cbor_that_is_none_is_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_cbor(data)


@pytest.mark.parametrize(
    "written",
    ["", "1c", "9b7fffffffffffffff00", "5bffffffffffffffff00", "ff", "81ff", "a1", "bf00ff", "1f", "7f4100ff"],
)
def test_cbor_that_lies_about_its_size_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_cbor(bytes.fromhex(written))
