"""The guarded fetch against hostile URLs: nothing is opened or connected to that must not be."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from pipeline.download import resolver as resolver_module
from pipeline.download.fetch import Fetched, Fetcher
from schemas.recipe import Download
from tests.integration.hostile_web import PRIVATE, HostileWeb, answer

SETTINGS: dict[str, Any] = {"timeout": 1.0, "retries": 0, "allow_addresses": ["127.64.0.0/10"]}


def stub_names(**answers: list[list[str]]) -> Any:
    """A resolver of names under .test that gives a name's answers in turn, the last for ever."""

    async def lookup(host: str) -> list[str]:
        left = answers.get(host.removesuffix(".test"))
        if not left:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return left.pop(0) if len(left) > 1 else left[0]

    return lookup


async def fetch(url: str, lookup: Any = None, **settings: Any) -> Fetched:
    async with Fetcher(Download(**{**SETTINGS, **settings}), lookup=lookup) as fetcher, fetcher.fetch(url) as fetched:
        return fetched


@pytest.fixture
async def web() -> AsyncIterator[HostileWeb]:
    async with HostileWeb() as web:
        yield web


@pytest.fixture
async def canary() -> AsyncIterator[HostileWeb]:
    async with HostileWeb(PRIVATE) as canary:
        yield canary


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/hostname", "bad_scheme"), ("data:image/png;base64,AAAA", "bad_scheme"),
        ("ftp://a.test/a.png", "bad_scheme"), ("gopher://a.test/", "bad_scheme"), ("javascript:1", "bad_scheme"),
        ("//a.test/a.png", "bad_url"), ("a.png", "bad_url"), ("", "bad_url"), ("http://", "bad_url"),
        ("http://[::1", "bad_url"), ("http://a b.test/", "bad_url"),
    ],
)  # fmt: skip
async def test_only_http_and_https_are_fetched_and_nothing_is_opened_for_others(url: str, reason: str) -> None:
    async def no_lookup(host: str) -> list[str]:
        raise AssertionError(f"{host} was resolved")

    fetched = await fetch(url, no_lookup)
    assert (fetched.reason, fetched.attempts, fetched.body) == (reason, 0, None)


@pytest.mark.parametrize("robots", [True, False])
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "0", "127.0.0.1.", "[::1]", "[::]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fc00::1]",
        "[fe80::1]", "169.254.169.254", "10.0.0.1", "100.64.0.1", "224.0.0.1", "private.test", "mixed.test",
        "six.test", "%31%32%37.0.0.1", "①②⑦.⓪.⓪.①",
    ],
)  # fmt: skip
async def test_a_private_address_is_refused_without_a_connection(canary: HostileWeb, host: str, robots: bool) -> None:
    names = stub_names(private=[[PRIVATE]], mixed=[["127.64.0.1", PRIVATE]], six=[["127.64.0.1", "::1"]])
    fetched = await fetch(canary.url("ok", host), names, consent={"robots": robots})
    assert (fetched.reason, fetched.attempts) == ("blocked_address", 0)
    assert canary.connections == 0


async def test_a_private_range_is_fetched_from_where_the_recipe_opens_it(canary: HostileWeb) -> None:
    fetched = await fetch(canary.url("ok"), allow_addresses=["127.0.0.0/8"])
    assert (fetched.reason, fetched.body) == (None, b"image")


async def test_a_name_that_flips_to_a_private_address_is_not_followed(
    web: HostileWeb, canary: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "POSITIVE_S", -1.0)
    names = stub_names(flip=[[web.address], [PRIVATE]])
    fetched = await fetch(f"http://flip.test:{canary.port}/ok", names)
    assert fetched.reason == "blocked_address"
    assert canary.connections == 0


async def test_the_peer_is_checked_though_the_name_was_good(canary: HostileWeb) -> None:
    """A policy that sees the canary as public when the name is resolved, and as private at the socket."""

    class Flipping:
        asked = 0

        def blocked(self, address: str) -> str | None:
            self.asked += 1
            return None if self.asked == 1 else "private"

    policy: Any = Flipping()
    settings = Download(**SETTINGS, consent={"robots": False})
    async with Fetcher(settings, policy) as fetcher, fetcher.fetch(canary.url("ok")) as fetched:
        assert fetched.reason == "blocked_address"
    assert policy.asked == 2
    assert canary.connections == 0


async def test_a_redirect_is_followed_and_its_end_recorded(web: HostileWeb) -> None:
    fetched = await fetch(web.url("redirect?/ok"))
    assert (fetched.reason, fetched.body, fetched.attempts) == (None, b"image", 1)
    assert fetched.final_url == web.url("ok")


async def test_five_redirects_are_followed(web: HostileWeb) -> None:
    assert (await fetch(web.url("hops?5"))).body == b"image"


@pytest.mark.parametrize("path", ["hops?6", "redirect?/redirect?/redirect"])
async def test_a_sixth_redirect_is_not_followed(web: HostileWeb, path: str) -> None:
    if "/" in path:
        web.first = [answer("302 Found", Location=web.url(path)) for _ in range(50)]
    fetched = await fetch(web.url(path))
    assert fetched.reason == "too_many_redirects"
    assert len(web.starts) == 6


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("file:///etc/hostname", "bad_scheme"), ("ftp://127.64.0.1/", "bad_scheme"), ("http://[::1", "bad_url"),
        ("http://a b/", "bad_url"),
        ("http://169.254.169.254/latest/meta-data/", "blocked_address"), ("//127.0.0.1/", "blocked_address"),
        ("http://nowhere.test/", "dns"),
    ],
)  # fmt: skip
async def test_every_hop_is_checked_as_a_new_url(web: HostileWeb, to: str, reason: str) -> None:
    assert (await fetch(web.url(f"redirect?{to}"), stub_names())).reason == reason


async def test_a_redirect_to_a_private_host_does_not_reach_it(web: HostileWeb, canary: HostileWeb) -> None:
    fetched = await fetch(web.url(f"redirect?{canary.url('ok')}"))
    assert (fetched.reason, canary.connections) == ("blocked_address", 0)


async def test_the_robots_txt_of_a_redirects_host_is_asked(web: HostileWeb) -> None:
    async with HostileWeb("127.64.0.2") as other:
        other.robots = answer(body=b"User-agent: *\nDisallow: /")
        fetched = await fetch(web.url(f"redirect?{other.url('ok')}"))
    assert fetched.reason == "robots"
    assert other.hits == {"/robots.txt": 1}


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(certificate: trustme.LeafCert) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def ca_file(authority: trustme.CA, folder: Path) -> str:
    path = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


async def test_a_certificate_of_the_recipes_ca_is_trusted_and_a_downgrade_recorded(
    authority: trustme.CA, tmp_path: Path, web: HostileWeb
) -> None:
    names = stub_names(good=[["127.64.0.1"]])
    async with HostileWeb(tls=server_tls(authority.issue_cert("good.test"))) as secure:
        trusted = {"ca_file": ca_file(authority, tmp_path)}
        assert (await fetch(secure.url("ok", "good.test"), names, **trusted)).body == b"image"
        fetched = await fetch(secure.url(f"redirect?{web.url('ok')}", "good.test"), names, **trusted)
    assert (fetched.reason, fetched.final_url) == (None, web.url("ok"))
    assert fetched.detail == f"redirected from https to {web.url('ok')}"


@pytest.mark.parametrize("fault", ["unknown authority", "expired", "wrong host", "no tls"])
async def test_a_certificate_that_proves_nothing_is_tls_and_not_tried_again(
    authority: trustme.CA, tmp_path: Path, fault: str
) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    context = {
        "unknown authority": lambda: server_tls(trustme.CA().issue_cert("good.test")),
        "expired": lambda: server_tls(authority.issue_cert("good.test", not_after=past)),
        "wrong host": lambda: server_tls(authority.issue_cert("other.test")),
        "no tls": lambda: None,
    }[fault]()
    async with HostileWeb(tls=context) as secure:
        secure.greeting = b"220 mail.test ESMTP\r\n" if context is None else b""
        url = f"https://good.test:{secure.port}/ok"
        names = stub_names(good=[["127.64.0.1"]])
        fetched = await fetch(url, names, ca_file=ca_file(authority, tmp_path), retries=2, consent={"robots": False})
        assert (fetched.reason, fetched.attempts) == ("tls", 1)
        assert secure.starts == []


async def test_many_fetches_share_their_connections(web: HostileWeb) -> None:
    settings = Download(**SETTINGS, per_host={"connections": 2, "per_second": 0})
    async with Fetcher(settings) as fetcher:

        async def one(number: int) -> None:
            async with fetcher.fetch(web.url(f"ok/{number}")) as fetched:
                assert fetched.body == b"image"

        await asyncio.gather(*(one(number) for number in range(20)))
    assert len(web.starts) == 20
    assert web.connections <= 2
