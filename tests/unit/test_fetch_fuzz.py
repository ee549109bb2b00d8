"""Whatever a server sends, a fetch ends with a reason or a body, and within its deadline."""

import random
from collections.abc import AsyncIterator

import pytest

from pipeline.download.fetch import Fetcher
from schemas.recipe import Download
from schemas.statuses import REASONS
from tests.integration.hostile_web import HostileWeb, answer
from tests.unit.test_fetch_guard import SETTINGS

SEEDS = [
    answer(body=b"image", Content_Type="image/png", X_Robots_Tag="googlebot: nofollow, noimageindex: 1"),
    answer("301 Moved", Location="http://127.64.0.1:1/%zz?\xff#[", Set_Cookie="a=b; path=/"),
    answer("503 Busy", Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"),
    answer(body=b"\x1f\x8b\x08\x00broken", Content_Encoding="gzip, deflate"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Usage: train-ai=y\r\n\r\n5\r\nimage\r\n0\r\n\r\n",
    b"User-agent: *\nDisallow: /*.png$\nContent-Usage: /a train-ai=y\n",
]


def mutated(draw: random.Random) -> bytes:
    """A seed with some bytes changed, dropped, doubled or cut."""
    data = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randrange(6)):
        at = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[at] = draw.randrange(256)
            case 1:
                del data[at : at + draw.randrange(1, 9)]
            case 2:
                data[at:at] = data[at : at + draw.randrange(1, 40)]
            case 3:
                data[at:at] = draw.choice([b"\r\n", b"\0", b": ", b"\xff\xfe", b"99999999999999999999", b"%"])
        data = data or bytearray(b"x")
    return bytes(data)


@pytest.fixture
async def web() -> AsyncIterator[HostileWeb]:
    async with HostileWeb() as web:
        yield web


async def test_no_answer_makes_a_fetch_raise(web: HostileWeb) -> None:
    draw = random.Random(20261121)
    closed = Download(**{**SETTINGS, "timeout": 0.15}, per_host={"per_second": 0}, host_budget=1e9)
    for number in range(150):
        robots = number % 3 == 0
        async with Fetcher(closed.model_copy(update={"consent": {"robots": robots}})) as fetcher:
            web.first = [mutated(draw)]
            if robots:
                web.robots = mutated(draw)
            async with fetcher.fetch(web.url("ok")) as fetched:
                if fetched.reason is None:
                    assert fetched.body is not None
                else:
                    assert fetched.reason in REASONS["failed"] + REASONS["refused"]
                    assert fetched.reason != "internal"
