"""The fetch towards hosts: robots.txt, opt-outs, retries, pace, and hosts that are down or silent."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from pipeline.download import responses
from pipeline.download.fetch import Fetched, Fetcher
from pipeline.download.hosts import Host
from schemas.recipe import Download
from tests.integration.hostile_web import HostileWeb, answer, endless_body, reset, silent
from tests.unit.test_fetch_guard import SETTINGS, fetch, stub_names

FetchAll = Callable[..., Awaitable[list[Fetched]]]


@pytest.fixture
async def web() -> AsyncIterator[HostileWeb]:
    async with HostileWeb() as web:
        yield web


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "BACKOFF_S", 0.01)


async def fetch_all(fetcher: Fetcher, urls: list[str]) -> list[Fetched]:
    async def one(url: str) -> Fetched:
        async with fetcher.fetch(url) as fetched:
            return fetched

    return await asyncio.gather(*map(one, urls))


# --- robots.txt ---


@pytest.mark.parametrize(
    ("robots", "reason"),
    [
        (answer("404 Not Found"), None),
        (answer("403 Forbidden"), None),
        (answer(body=b"User-agent: *\nDisallow: /private"), None),
        (answer(body=b"User-agent: *\nDisallow: /"), "robots"),
        (answer("503 Busy"), "robots"),
        (answer("429 Too Many"), "robots"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nConnection: close\r\n\r\nUser-agent: *", "timeout"),
        (endless_body, None),
        (silent, "timeout"),
        (reset, "connect"),
        (answer("302 Found", Location="/status?404"), None),
        (answer("302 Found", Location="/robots.txt"), None),
        (answer("302 Found", Location="http://127.0.0.1/robots.txt"), "blocked_address"),
    ],
)
async def test_robots_txt_is_asked_first_and_its_answer_decides(
    web: HostileWeb, robots: Any, reason: str | None
) -> None:
    web.robots = robots
    fetched = await fetch(web.url("ok"), timeout=0.5)
    assert fetched.reason == reason
    assert web.hits["/ok"] == (reason is None)
    assert fetched.attempts == (reason is None)


async def test_a_host_whose_robots_txt_cannot_be_had_for_dns_ends_dns() -> None:
    assert (await fetch("http://nowhere.test/a.png", stub_names())).reason == "dns"


async def test_robots_txt_is_asked_once_for_all_rows_of_a_host(web: HostileWeb) -> None:
    web.robots = answer(body=b"User-agent: pairmill\nDisallow: /slow\n")
    async with Fetcher(Download(**SETTINGS, per_host={"per_second": 0})) as fetcher:
        found = await fetch_all(fetcher, [web.url(f"ok/{number}") for number in range(8)] + [web.url("slow")])
        fetcher.forget(web.address)
        found += await fetch_all(fetcher, [web.url("ok/again")])
    assert [one.reason for one in found] == [None] * 8 + ["robots", None]
    assert web.hits["/robots.txt"] == 1
    assert found[8].signals[0].source == web.url("robots.txt")
    assert found[8].signals[0].verdict == "deny"


async def test_another_port_has_a_robots_txt_of_its_own(web: HostileWeb) -> None:
    web.robots = answer(body=b"User-agent: *\nDisallow: /")
    async with HostileWeb() as other, Fetcher(Download(**SETTINGS)) as fetcher:
        found = await fetch_all(fetcher, [web.url("ok"), other.url("ok")])
    assert [one.reason for one in found] == ["robots", None]


async def test_the_recipes_token_picks_the_group_and_the_user_agent_is_honest(web: HostileWeb) -> None:
    web.robots = answer(body=b"User-agent: *\nDisallow: /\n\nUser-agent: artbot\nAllow: /\n")
    contact = "https://lab.test/crawler"
    fetched = await fetch(web.url("ok"), user_agent_token="artbot", contact=contact)
    assert fetched.body == b"image"
    assert all(f"User-Agent: Mozilla/5.0 (compatible; artbot/0.1; +{contact})\r\n" in head for head in web.heads)


# --- opt-outs ---


@pytest.mark.parametrize(
    ("query", "signal"),
    [
        ("X-Robots-Tag=noai", "x_robots_tag"),
        ("X-Robots-Tag=all&X-ROBOTS-TAG=noimageai", "x_robots_tag"),
        ("tdm-reservation=1", "tdm_reservation"),
        ("Content-Usage=train-ai%3Dn", "content_usage"),
    ],
)
async def test_an_opt_out_header_is_honoured_recorded_and_not_tried_again(
    web: HostileWeb, query: str, signal: str
) -> None:
    fetched = await fetch(web.url(f"ok?{query}"), retries=2)
    assert (fetched.reason, fetched.body, fetched.attempts) == ("opt_out", None, 1)
    assert [one.signal for one in fetched.signals if one.verdict == "deny"] == [signal]
    assert fetched.evaluated == ["robots", "x_robots_tag", "tdm_reservation", "content_usage"]
    assert web.hits["/ok"] == 1
    ignored = await fetch(web.url(f"ok?{query}"), consent={signal: False})
    assert ignored.body == b"image"
    assert signal not in ignored.evaluated
    assert ignored.signals == []


async def test_robots_txt_is_not_asked_where_the_signal_is_off(web: HostileWeb) -> None:
    fetched = await fetch(web.url("ok"), consent={"robots": False})
    assert fetched.evaluated == ["x_robots_tag", "tdm_reservation", "content_usage"]
    assert web.hits == {"/ok": 1}


@pytest.mark.parametrize(("line", "header"), [("n", "y"), ("y", "n"), ("n", None), (None, "n")])
async def test_of_robots_txt_and_header_the_most_restrictive_content_usage_wins(
    web: HostileWeb, line: str | None, header: str | None
) -> None:
    if line:
        web.robots = answer(body=f"User-agent: *\nContent-Usage: train-ai={line}\n".encode())
    fetched = await fetch(web.url(f"ok?Content-Usage=train-ai%3D{header}" if header else "ok"))
    assert fetched.reason == "opt_out"


# --- retries ---


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    ("path", "tries"),
    [
        ("status?503", 3), ("status?500", 3), ("status?429", 3), ("reset", 3), ("reset_in_body", 3), ("silent", 3),
        ("status?404", 1), ("status?403", 1), ("status?410", 1), ("short_body", 1), ("many_headers", 1),
        ("huge_length", 1), ("ok?X-Robots-Tag=noai", 1), ("redirect?http://127.0.0.1/", 1), ("redirect?file:///", 1),
    ],
)  # fmt: skip
async def test_only_timeouts_resets_429_and_5xx_are_tried_again(web: HostileWeb, path: str, tries: int) -> None:
    fetched = await fetch(web.url(path), retries=2, timeout=0.3)
    assert fetched.attempts == tries
    assert len(web.starts) == tries


@pytest.mark.usefixtures("quick_retries")
async def test_a_kept_connection_that_the_server_drops_is_a_reset(web: HostileWeb) -> None:
    async with Fetcher(Download(**{**SETTINGS, "retries": 1})) as fetcher:
        found = [(await fetch_all(fetcher, [web.url(f"once/{number}")]))[0].body for number in range(3)]
    assert found == [b"image"] * 3


@pytest.mark.usefixtures("quick_retries")
async def test_a_try_that_succeeds_ends_the_retries(web: HostileWeb) -> None:
    web.first = [answer("503 Busy")]
    fetched = await fetch(web.url("ok"), retries=5)
    assert (fetched.body, fetched.attempts, fetched.http_status) == (b"image", 2, 200)


@pytest.mark.usefixtures("quick_retries")
async def test_retry_after_is_waited_for(web: HostileWeb) -> None:
    web.first = [answer("429 Too Many", Retry_After="1")]
    fetched = await fetch(web.url("ok"), retries=1)
    assert fetched.body == b"image"
    assert web.starts[1] - web.starts[0] >= 0.99


async def test_a_server_that_asks_for_an_hour_is_left_alone(web: HostileWeb) -> None:
    fetched = await fetch(web.url("status?429&3600"), retries=2)
    assert (fetched.reason, fetched.attempts) == ("http_error", 1)


# --- limits of a host ---


async def test_a_host_gets_no_more_connections_at_a_time_than_the_recipe_says(web: HostileWeb) -> None:
    settings = Download(**SETTINGS, per_host={"connections": 3, "per_second": 0})
    async with Fetcher(settings) as fetcher:
        urls = [web.url(f"slow/{number}") for number in range(12)]
        async with HostileWeb("127.64.0.2") as other:
            urls += [other.url(f"redirect?{web.url('slow')}") for _ in range(4)]
            assert all(one.body == b"image" for one in await fetch_all(fetcher, urls))
    assert web.peak == 3


async def test_starts_of_a_host_are_spaced(web: HostileWeb) -> None:
    settings = Download(**SETTINGS, per_host={"connections": 8, "per_second": 50})
    began = time.monotonic()
    async with Fetcher(settings) as fetcher:
        await fetch_all(fetcher, [web.url(f"ok/{number}") for number in range(20)])
    # robots.txt and 20 images: 20 spaces of 20 ms between 21 starts.
    assert time.monotonic() - began >= 0.4


async def test_a_row_that_waits_for_its_host_keeps_nobody_else_waiting(web: HostileWeb) -> None:
    settings = Download(**{**SETTINGS, "timeout": 0.6}, per_host={"connections": 1, "per_second": 0})
    async with HostileWeb("127.64.0.2") as stalled, Fetcher(settings, concurrency=2) as fetcher:
        waiting = asyncio.create_task(fetch_all(fetcher, [stalled.url(f"silent/{n}") for n in range(3)]))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(fetch_all(fetcher, [web.url(f"ok/{n}") for n in range(10)]), 0.5)
        assert [one.reason for one in await waiting] == ["timeout"] * 3


async def test_requests_on_the_wire_are_bounded_for_the_worker(web: HostileWeb) -> None:
    settings = Download(**SETTINGS, per_host={"per_second": 0})
    names = stub_names(**{f"h{n}": [[web.address]] for n in range(20)})
    async with Fetcher(settings, lookup=names, concurrency=5) as fetcher:
        found = await fetch_all(fetcher, [web.url("slow", f"h{n}.test") for n in range(20)])
        assert all(one.body == b"image" for one in found)
        assert web.peak == 5


# --- hosts that are down or silent ---


@pytest.mark.parametrize("robots", [True, False])
async def test_a_host_is_down_after_twenty_connection_failures_in_a_row(robots: bool) -> None:
    async with HostileWeb() as web:
        pass
    async with Fetcher(Download(**SETTINGS, consent={"robots": robots}, per_host={"per_second": 0})) as fetcher:
        reasons = []
        for number in range(25):
            reasons += [one.reason for one in await fetch_all(fetcher, [web.url(f"ok/{number}")])]
        assert reasons == ["connect"] * 20 + ["host_down"] * 5
        fetcher.forget(web.address)
        assert (await fetch_all(fetcher, [web.url("ok")]))[0].reason == "connect"


async def test_names_that_do_not_resolve_take_their_host_down_too() -> None:
    async with Fetcher(Download(**SETTINGS), lookup=stub_names()) as fetcher:
        found = [(await fetch_all(fetcher, [f"http://nowhere.test/{number}"]))[0].reason for number in range(25)]
    assert found == ["dns"] * 20 + ["host_down"] * 5


@pytest.mark.usefixtures("quick_retries")
async def test_a_silent_host_loses_its_retries_but_every_url_is_tried(web: HostileWeb) -> None:
    settings = Download(**{**SETTINGS, "timeout": 0.3, "retries": 2}, per_host={"connections": 4, "per_second": 0})
    async with Fetcher(settings) as fetcher:
        found = await fetch_all(fetcher, [web.url(f"silent/{number}") for number in range(12)])
    assert [one.reason for one in found] == ["timeout"] * 12
    assert sum(hits > 0 for path, hits in web.hits.items() if path != "/robots.txt") == 12
    assert len(web.starts) <= 12 + 4


async def test_a_host_that_stalls_beyond_its_budget_gets_no_more_requests(web: HostileWeb) -> None:
    settings = Download(**{**SETTINGS, "timeout": 0.2}, host_budget=0.5, per_host={"connections": 2, "per_second": 0})
    async with Fetcher(settings) as fetcher:
        found = await fetch_all(fetcher, [web.url(f"silent/{number}") for number in range(10)])
    reasons = Counter(one.reason for one in found)
    assert reasons == {"timeout": 6, "host_budget": 4}
    assert len(web.starts) == 6


def test_deadlines_are_short_once_every_connection_has_timed_out_until_an_answer_comes() -> None:
    host = Host("a.test", Download(timeout=16, per_host={"connections": 4}))
    deadlines = []
    for number in range(24):
        if number % 4 == 0:
            deadlines.append(host.deadline())
        host.timed_out(number, number + 1)
    assert deadlines == [16, 1, 1, 1, 1, 1]
    assert host.silent
    host.answered(image=True)
    assert (host.deadline(), host.silent) == (16, False)


def test_stalls_at_the_same_time_count_once() -> None:
    host = Host("a.test", Download(host_budget=10))
    for _ in range(4):
        host.timed_out(100, 108)
    assert host.given_up() is None
    host.timed_out(108, 111)
    assert host.given_up() == ("host_budget", "11 s of stalls")
