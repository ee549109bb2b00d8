"""The fetch's limits on time, bytes and headers, each with its typed outcome."""

import asyncio
import gzip
import resource
import zlib
from collections.abc import AsyncIterator

import pytest

from pipeline.download import body as body_module
from pipeline.download import fetch as fetch_module
from pipeline.download.body import ByteBudget, Loan, decoded
from pipeline.download.failure import Failure
from pipeline.download.fetch import Fetcher
from schemas.recipe import Download
from tests.integration.hostile_web import HostileWeb, answer
from tests.unit.test_fetch_guard import SETTINGS, fetch


@pytest.fixture
async def web() -> AsyncIterator[HostileWeb]:
    async with HostileWeb() as web:
        yield web


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("trickle", "timeout"), ("silent", "timeout"), ("endless_continue", "timeout"), ("endless_header", "timeout"),
        ("endless_body", "too_large"), ("huge_length", "too_large"), ("bomb", "too_large"),
        ("short_body", "truncated"), ("many_headers", "bad_headers"), ("large_header", "bad_headers"),
        ("no_http", "bad_headers"), ("reset", "connect"), ("reset_in_body", "connect"),
        ("status?404", "http_error"), ("status?304", "http_error"), ("status?503", "http_error"),
    ],
)  # fmt: skip
async def test_a_misbehaving_answer_has_its_typed_outcome(web: HostileWeb, path: str, reason: str) -> None:
    fetched = await fetch(web.url(path), timeout=0.5, max_bytes=4_000_000)
    assert (fetched.reason, fetched.body, fetched.attempts) == (reason, None, 1)
    assert fetched.detail
    assert fetched.fetch_ms < 5_000


async def test_an_http_error_names_its_status(web: HostileWeb) -> None:
    fetched = await fetch(web.url("status?410"))
    assert (fetched.http_status, fetched.detail) == (410, "HTTP 410")


async def test_a_closed_port_is_connect_and_an_unknown_name_dns() -> None:
    async with HostileWeb() as web:
        url = web.url("ok")
    assert (await fetch(url)).reason == "connect"
    assert (await fetch("http://nowhere.invalid/")).reason == "dns"


async def test_a_slow_body_is_a_timeout_before_the_deadline(web: HostileWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "RATE_FROM_S", 0.2)
    fetched = await fetch(web.url("trickle"), timeout=30)
    assert fetched.reason == "timeout"
    assert fetched.detail is not None
    assert "below 1024 bytes a second" in fetched.detail


async def test_a_body_of_exactly_max_bytes_passes(web: HostileWeb) -> None:
    assert (await fetch(web.url("ok"), max_bytes=5)).body == b"image"
    assert (await fetch(web.url("ok"), max_bytes=4)).reason == "too_large"
    assert (await fetch(web.url("zipped"), max_bytes=4)).reason == "too_large"


async def test_a_content_coding_that_nobody_asked_for_is_undone(web: HostileWeb) -> None:
    assert (await fetch(web.url("zipped"))).body == b"image"


@pytest.mark.parametrize(
    ("body", "encoding", "plain"),
    [
        (gzip.compress(b"image", mtime=0), "gzip", b"image"),
        (zlib.compress(b"image"), "deflate", b"image"),
        (zlib.compress(b"image")[2:-4], "deflate", b"image"),
        (b"\x89PNG not gzip at all", "gzip", b"\x89PNG not gzip at all"),
        (b"\x89PNG not deflate at all", "deflate", b"\x89PNG not deflate at all"),
        (b"", "gzip", b""),
    ],
)
def test_gzip_and_deflate_are_undone_and_a_wrong_label_ignored(body: bytes, encoding: str, plain: bytes) -> None:
    assert decoded(body, encoding, 1000) == plain


@pytest.mark.parametrize(
    "body", [gzip.compress(b"image", mtime=0)[:-9], gzip.compress(b"image" * 99, mtime=0)[:15] + b"\xff" * 20]
)
def test_a_broken_gzip_stream_is_truncated(body: bytes) -> None:
    with pytest.raises(Failure) as failed:
        decoded(body, "gzip", 1000)
    assert failed.value.reason == "truncated"


async def test_memory_stays_flat_under_endless_bodies_and_bombs(
    web: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "LARGE_BYTES", 24_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = Download(
        **{**SETTINGS, "timeout": 60}, max_bytes=12_000_000, per_host={"connections": 32, "per_second": 0}
    )
    async with Fetcher(settings) as fetcher:

        async def one(number: int) -> str | None:
            async with fetcher.fetch(web.url(f"{'bomb' if number % 4 == 0 else 'endless_body'}/{number}")) as fetched:
                return fetched.reason

        assert await asyncio.gather(*(one(number) for number in range(32))) == ["too_large"] * 32
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    # 32 bodies of 1 MiB and 24 MB of large ones, and buffers; without the budget it would be 32 × 12 MB.
    assert grown < 160_000_000


async def test_a_large_body_waits_for_its_bytes_without_losing_time(
    web: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "FREE_BYTES", 0)
    budget = ByteBudget(Download().max_bytes * 2)
    async with Fetcher(Download(**{**SETTINGS, "timeout": 0.3}, consent={"robots": False})) as fetcher:
        monkeypatch.setattr(fetcher, "_budget", budget)
        other = Loan(budget)
        await other.borrow(budget.size)
        asyncio.get_running_loop().call_later(0.8, other.settle)
        async with fetcher.fetch(web.url("ok")) as fetched:
            assert fetched.body == b"image"


async def test_a_byte_budget_lends_in_order_and_survives_who_gives_up() -> None:
    budget = ByteBudget(10)
    loans = [Loan(budget) for _ in range(4)]
    await loans[0].borrow(6)
    large, hasty, small = (
        asyncio.create_task(loan.borrow(size)) for loan, size in zip(loans[1:], (8, 9, 2), strict=True)
    )
    await asyncio.sleep(0)
    assert not small.done()
    hasty.cancel()
    loans[0].settle(1)
    await asyncio.sleep(0)
    assert large.done()
    loans[1].settle()
    await asyncio.gather(large, small)
    loans[0].settle()
    loans[3].settle()
    await asyncio.wait_for(Loan(budget).borrow(10), 1)


async def test_an_answer_of_one_hundred_headers_passes(web: HostileWeb) -> None:
    web.first = [answer(body=b"image", **{f"X_{number}": "x" for number in range(90)})]
    assert (await fetch(web.url("ok"), consent={"robots": False})).body == b"image"
