"""tdmrep.json: what it says of a URL, and how it is asked for."""

import json
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.download import responses
from pipeline.download.fetch import Fetched, Fetcher
from pipeline.download.paths import matches
from pipeline.download.robots import MAX_BYTES
from pipeline.download.tdmrep import WELL_KNOWN, TdmRules
from schemas.recipe import Download
from tests.integration.hostile_web import HostileWeb, answer, reset, silent
from tests.unit.test_fetch_guard import SETTINGS, fetch

ORIGIN = "http://a.test"
RESERVED = json.dumps([{"location": "/", "tdm-reservation": 1}]).encode()


def reserved(rules: object, path: str) -> bool | None:
    body = rules if isinstance(rules, bytes) else json.dumps(rules).encode()
    rule = TdmRules(ORIGIN + WELL_KNOWN, body).rule(ORIGIN + path)
    return None if rule is None else rule.reserved


@pytest.mark.parametrize(
    ("location", "path", "matched"),
    [
        ("/", "/a", True), ("/a", "/ab", True), ("/a/", "/a", False), ("/A", "/a", False), ("a", "/a", False),
        ("/images/*.jpg", "/images/x/y.jpg", True), ("/images/*.jpg", "/images/y.jpg?size=1", True),
        ("/images/*.jpg$", "/images/y.jpg?size=1", False), ("/images/*.jpg$", "/images/y.jpg.jpg", True),
        ("/a$", "/a", True), ("/a$", "/ab", False), ("*", "/a", True), ("*$", "/a", True), ("/a*b*c", "/a1b2c3", True),
        ("/a*b*c", "/a1c2b3", False), ("/ab*ba$", "/aba", False), ("/%61", "/a", True), ("/a", "/%61", True),
        ("/a%2fb", "/a%2Fb", True), ("/a%2fb", "/a/b", False), ("/ä", "/%C3%A4", True), ("/foo-%24", "/foo-$", False),
        ("/foo-%24", "/foo-%24", True), ("/x?q=", "/x?q=1", True), ("", "/a", True),
    ],
)  # fmt: skip
def test_a_location_is_a_prefix_with_stars_and_an_end(location: str, path: str, matched: bool) -> None:
    assert matches(location, path) is matched


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10), st.booleans())
def test_patterns_match_as_an_obvious_search_says(pattern: str, path: str, anchored: bool) -> None:
    def obvious(pattern: str, path: str) -> bool:
        if not pattern:
            return not path or not anchored
        if pattern[0] == "*":
            return any(obvious(pattern[1:], path[at:]) for at in range(len(path) + 1))
        return bool(path) and path[0] == pattern[0] and obvious(pattern[1:], path[1:])

    assert matches(pattern + "$" * anchored, path) == obvious(pattern, path)


def test_a_pattern_of_thousands_of_stars_costs_nothing() -> None:
    began = time.process_time()
    assert not matches("/" + "*a" * 100_000 + "*b", "/" + "a" * 2000)
    assert time.process_time() - began < 5


def test_the_report_s_own_example_is_read_as_it_says() -> None:
    rules = [
        {"location": "/directory-a/", "tdm-reservation": 1},
        {
            "location": "/directory-b/html/",
            "tdm-reservation": 1,
            "tdm-policy": "https://provider.com/policies/policy.json",
        },
        {"location": "/directory-b/images/*.jpg", "tdm-reservation": 0},
    ]
    found = [
        reserved(rules, path) for path in ("/directory-a/x", "/directory-b/html/x", "/directory-b/images/x.jpg", "/x")
    ]
    assert found == [True, True, False, None]


def test_the_first_rule_that_matches_counts() -> None:
    rules = [{"location": "/free/", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}]
    assert [reserved(rules, path) for path in ("/free/a", "/a")] == [False, True]
    assert reserved(rules[::-1], "/free/a") is True


@pytest.mark.parametrize(
    ("value", "said"),
    [(1, True), ("1", True), (0, False), ("0", False), (2, None), (True, None), (None, None), ("yes", None)],
)
def test_a_reservation_is_1_or_0_and_anything_else_is_unset(value: object, said: bool | None) -> None:
    assert reserved([{"location": "/", "tdm-reservation": value}], "/a") is said


@pytest.mark.parametrize(
    "body", [b"", b"<html>no such page</html>", b"[", b"null", b"[1, null, {}]", b'"x"', b"[" * 100_000, b"\xff\xfe[",
             b'[{"tdm-reservation": 1}]', b'[{"location": 1, "tdm-reservation": 1}]', b"[" + b"9" * 5000 + b"]"],
)  # fmt: skip
def test_what_is_no_list_of_rules_says_nothing(body: bytes) -> None:
    assert reserved(body, "/a") is None


def test_one_rule_that_lost_its_brackets_is_read_as_meant() -> None:
    assert reserved(b'\xef\xbb\xbf {"location": "/", "tdm-reservation": 1}', "/a") is True


# --- asked for ---


@pytest.fixture
async def web() -> AsyncIterator[HostileWeb]:
    async with HostileWeb() as web:
        yield web


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "BACKOFF_S", 0.01)


def told(fetched: Fetched) -> list[tuple[str, str, str]]:
    return [(one.signal, one.value, one.verdict) for one in fetched.signals if one.signal == "tdmrep"]


async def test_it_is_not_asked_for_unless_the_recipe_says_so(web: HostileWeb) -> None:
    web.tdmrep = answer(body=RESERVED)
    fetched = await fetch(web.url("ok"))
    assert (fetched.reason, web.hits[WELL_KNOWN]) == (None, 0)
    assert "tdmrep" not in fetched.evaluated


async def test_a_reserved_url_is_not_requested(web: HostileWeb) -> None:
    web.tdmrep = answer(body=b'[{"location": "/ok", "tdm-reservation": 1, "tdm-policy": "https://a.example/p"}]')
    fetched = await fetch(web.url("ok/1"), consent={"tdmrep": True})
    assert (fetched.reason, fetched.attempts, web.starts) == ("opt_out", 0, [])
    assert told(fetched) == [("tdmrep", "/ok 1 https://a.example/p", "deny")]
    assert fetched.signals[-1].source == web.url(".well-known/tdmrep.json")
    assert fetched.evaluated == ["robots", "tdmrep"]


async def test_an_url_that_is_free_is_fetched_and_says_so(web: HostileWeb) -> None:
    web.tdmrep = answer(body=b'[{"location": "/ok", "tdm-reservation": 0}]')
    fetched = await fetch(web.url("ok/1"), consent={"tdmrep": True})
    assert (fetched.reason, told(fetched)) == (None, [("tdmrep", "/ok 0", "allow")])
    assert fetched.evaluated == ["robots", "x_robots_tag", "tdm_reservation", "content_usage", "tdmrep"]


@pytest.mark.parametrize("robots", [True, False])
async def test_an_origin_is_asked_once(web: HostileWeb, robots: bool) -> None:
    web.tdmrep = answer(body=b"[]")
    async with Fetcher(Download(**SETTINGS, consent={"tdmrep": True, "robots": robots})) as fetcher:
        for number in range(5):
            async with fetcher.fetch(web.url(f"ok/{number}")) as fetched:
                assert fetched.reason is None
            fetcher.forget(web.address)
    assert (web.hits[WELL_KNOWN], web.hits["/robots.txt"]) == (1, int(robots))


@pytest.mark.parametrize(
    ("tdmrep", "reason"),
    [
        (answer("404 Not Found"), None), (answer("403 Forbidden"), None),
        (answer(body=b"<html>everything is a page here</html>"), None),
        (answer("302 Found", Location="/status?404"), None), (answer("302 Found", Location="file:///etc/passwd"), None),
        (answer("302 Found", Location=WELL_KNOWN), None),
        (answer("302 Found", Location="http://127.0.0.1/tdmrep.json"), "blocked_address"),
        (answer("503 Busy"), "http_error"), (answer("429 Too Many"), "http_error"), (silent, "timeout"),
        (reset, "connect"), (answer(body=b"[" + b" " * MAX_BYTES), "too_large"),
        (answer(body=b"<" + b" " * MAX_BYTES), None),
    ],
)  # fmt: skip
async def test_a_server_in_trouble_says_neither_yes_nor_no(web: HostileWeb, tdmrep: object, reason: str | None) -> None:
    web.tdmrep = tdmrep  # type: ignore[assignment]
    fetched = await fetch(web.url("ok"), consent={"tdmrep": True})
    assert fetched.reason == reason
    assert len(web.starts) == (reason is None) + (b"status" in tdmrep if isinstance(tdmrep, bytes) else 0)
    if reason and reason != "blocked_address":
        assert (fetched.detail or "").startswith("tdmrep.json: ")


async def test_a_redirect_is_judged_by_the_file_of_where_it_leads(web: HostileWeb) -> None:
    async with HostileWeb("127.64.0.2") as other:
        other.tdmrep = answer(body=RESERVED)
        fetched = await fetch(web.url(f"redirect?{other.url('ok')}"), consent={"tdmrep": True})
    assert (fetched.reason, other.starts) == ("opt_out", [])
