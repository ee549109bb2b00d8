"""Consent signals in headers, judged on their text."""

import time

import pytest

from pipeline.download.consent import RULE_VERSIONS, content_usage_verdict, header_signals, honoured, robots_tag_denies
from schemas.recipe import CONSENT_DEFAULTS, Download

DISALLOWED = frozenset(Download().disallowed_header_directives)
ALL = ["x_robots_tag", "tdm_reservation", "content_usage"]


@pytest.mark.parametrize(
    "line",
    [
        "noai", "NOAI", " NoImageAI ", "noindex", "noimageindex", "none", "noml", "nofollow, noai", "noai,nofollow",
        "noai, googlebot: nofollow", "*: noai", "pairmill: noai", "PairMill: nofollow, noai",
        "googlebot: nofollow, pairmill: noai", "googlebot: noindex, *: noai",
        "unavailable_after: 25 Jun 2010 15:00:00 PST, noai",
        "unavailable_after: Friday, 25-Jun-10 15:00:00 PST, noai",
        "max-snippet:20, noai", "max-snippet: -1, max-image-preview: large, noindex",
        "pairmill: unavailable_after: 25 Jun 2010 15:00:00 PST, noai",
    ],
)  # fmt: skip
def test_a_line_opts_out(line: str) -> None:
    assert robots_tag_denies(line, "pairmill", DISALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "", "all", "nofollow", "nosnippet, noarchive", "googlebot: noai", "googlebot: nofollow, noai",
        "otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST, noai", "unavailable_after: 25 Jun 2010 15:00:00 PST",
        "noaix", "no ai", "max-snippet: 0", "pairmill-other: noai", "googlebot: max-snippet: 5, noindex",
    ],
)  # fmt: skip
def test_a_line_does_not_opt_out(line: str) -> None:
    assert not robots_tag_denies(line, "pairmill", DISALLOWED)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("train-ai=n", "deny"), ("TRAIN-AI=N", "deny"), ("search=y, train-ai=n", "deny"), ("train-ai = n", "deny"),
        ('train-ai="n"', "deny"), ("train-ai=n;note=\"a, b\"", "deny"), ("train-ai=y, train-ai=n", "deny"),
        ("train-ai=?0", "deny"), ("train-ai=y", "allow"), ("train-ai=y;x=n", "allow"), ("search=n", None),
        ("train-ai", None), ("", None), ('note="train-ai=n"', None), ('note="a, train-ai=n, b"', None),
        ("not-train-ai=n", None), ("train-ai=never", None),
        ("train-genai=n", "deny"), ("train-ai=y, train-genai=n", "deny"), ("train-genai=y", None), ("all=n", "deny"),
        ("bots=n, search=y", "deny"), ("all=n, train-ai=y", "allow"), ("all=y, train-ai=n", "deny"), ("all=y", None),
        ('note="a, train-ai=n', "deny"), ('note=", train-ai=y", train-ai=n', "deny"),
    ],
)  # fmt: skip
def test_content_usage_speaks_of_training_in_its_member_alone(value: str, verdict: str | None) -> None:
    assert content_usage_verdict(value) == verdict


@pytest.mark.parametrize("value", ['"', ",", 'a="', "train-ai=n,", "a", " ", '",'])
def test_a_value_of_half_a_megabyte_takes_no_time(value: str) -> None:
    began = time.process_time()
    content_usage_verdict(value * (500_000 // len(value)))
    assert time.process_time() - began < 5


def test_every_signal_is_recorded_with_its_value_source_and_verdict() -> None:
    headers = [
        ("Content-Type", "image/png"),
        ("X-ROBOTS-TAG", "googlebot: noai"),
        ("x-robots-tag", "noimageai"),
        ("TDM-Reservation", "1"),
        ("Content-Usage", "train-ai=y"),
    ]
    found = header_signals(headers, ALL, "pairmill", DISALLOWED)
    assert [(one.signal, one.value, one.source, one.verdict) for one in found] == [
        ("x_robots_tag", "googlebot: noai", "x-robots-tag", "allow"),
        ("x_robots_tag", "noimageai", "x-robots-tag", "deny"),
        ("tdm_reservation", "1", "tdm-reservation", "deny"),
        ("content_usage", "train-ai=y", "content-usage", "allow"),
    ]


@pytest.mark.parametrize("signal", ALL)
def test_a_signal_that_is_switched_off_is_not_looked_at(signal: str) -> None:
    headers = [("X-Robots-Tag", "noai"), ("tdm-reservation", "1"), ("Content-Usage", "train-ai=n")]
    evaluated = [name for name in ALL if name != signal]
    found = header_signals(headers, evaluated, "pairmill", DISALLOWED)
    assert {one.signal for one in found} == set(evaluated)


def test_a_reservation_of_zero_allows() -> None:
    assert header_signals([("tdm-reservation", "0")], ALL, "pairmill", DISALLOWED)[0].verdict == "allow"


def test_stray_bytes_of_a_header_become_text() -> None:
    value = b"noai, \xff".decode("utf-8", "surrogateescape")
    signal = header_signals([("X-Robots-Tag", value)], ALL, "pairmill", DISALLOWED)[0]
    assert (signal.value, signal.verdict) == ("noai, �", "deny")


def test_all_signals_but_those_that_cost_a_request_are_on_by_default() -> None:
    assert set(RULE_VERSIONS) == set(CONSENT_DEFAULTS)
    assert [name for name in RULE_VERSIONS if name not in honoured(Download().consent)] == ["tdmrep"]
    assert honoured(Download(consent={"tdmrep": True}).consent) == list(RULE_VERSIONS)


@pytest.mark.parametrize("signal", RULE_VERSIONS)
def test_each_signal_is_switched_off_by_its_name_alone(signal: str) -> None:
    settings = Download(consent={"tdmrep": True, signal: False})  # type: ignore[dict-item]
    assert honoured(settings.consent) == [name for name in RULE_VERSIONS if name != signal]
