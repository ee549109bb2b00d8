"""The embedded web answers as its list says, and its list and pictures are what the demo promises."""

import asyncio
import ssl
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.demo.hosts import HIDES, PLAIN, make_hosts
from jobs.demo.kinds import KINDS, TLS_KINDS
from jobs.demo.pairs import PICTURE, Pair, fetched_as, make_pairs
from jobs.demo.pictures import compose, extension, picture_count, picture_name, size
from jobs.demo.web import Web
from schemas.recipe import parse_recipe

ROWS = 400


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), ROWS, cache=tmp_path_factory.mktemp("cache")) as web:
        yield web


@pytest.fixture(scope="module")
def full() -> list[Pair]:
    return make_pairs(8000, 0, 18480, 18443)


def a_pair(web: Web, kind: str) -> Pair:
    return next(pair for pair in web.pairs if pair.kind == kind)


async def ask(web: Web, url: str, wait: float = 5.0) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, raw body) of a GET over a plain socket; EOF or `wait` seconds end the body."""
    scheme, rest = fetched_as(url).split("://")
    place, _, path = rest.partition("/")
    name, _, port = place.partition(":")
    address = next(host.address for host in web.hosts if host.name == name)
    tls = ssl.create_default_context(cafile=str(web.folder / "ca.pem")) if scheme == "https" else None
    reader, writer = await asyncio.open_connection(
        address, int(port), ssl=tls, server_hostname=name if tls else None, limit=1 << 20
    )
    try:
        writer.write(f"GET /{path} HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), wait)
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = bytearray()
        try:
            async with asyncio.timeout(wait):
                while len(body) < 2_000_000 and (part := await reader.read(1 << 16)):
                    body += part
        except TimeoutError:
            pass
        return int(lines[0].split(" ")[1]), headers, bytes(body)
    finally:
        writer.transport.abort()


# The list.


def test_the_full_list_is_as_large_and_as_varied_as_the_demo_promises(full: list[Pair]) -> None:
    pictures = {pair.url.rpartition("/")[2] for pair in full if pair.kind == PICTURE and pair.url}
    assert len(full) == 8000
    assert len({pair.host for pair in full if pair.host}) >= 300
    assert len(pictures) >= 2500
    texts = Counter(pair.url for pair in full if pair.kind == PICTURE)
    assert sum(count > 1 for count in texts.values()) > 300
    assert len({pair.language for pair in full}) >= 12


def test_one_row_in_ten_goes_wrong_in_one_of_many_ways(full: list[Pair]) -> None:
    wrong = Counter(pair.kind for pair in full if pair.reason)
    assert 0.08 < wrong.total() / len(full) < 0.12
    assert set(wrong) == {name for name, kind in KINDS.items() if kind.reason}
    assert max(wrong.values()) < 0.15 * wrong.total()


def test_ordinary_text_filters_both_keep_and_drop(full: list[Pair]) -> None:
    dropped = sum(pair.expected_in_demo == ("rejected", "text_rule") for pair in full)
    assert 0.05 < dropped / len(full) < 0.15


def test_half_of_the_pictures_are_at_most_256_px_and_few_are_large_or_avif() -> None:
    count = picture_count(8000)
    sides = [size(0, number) for number in range(count)]
    assert statistics.median(max(side) for side in sides) == 256
    assert sum(max(side) == 1024 for side in sides) <= 0.01 * count
    assert min(min(side) for side in sides) >= 64
    formats = Counter(extension(number) for number in range(count))
    assert set(formats) == {"jpg", "png", "webp", "avif", "gif"}
    assert formats["avif"] <= 0.02 * count


def test_a_small_list_still_has_every_kind() -> None:
    assert {pair.kind for pair in make_pairs(ROWS, 0, 80, 443)} == {PICTURE, *KINDS}


def test_the_same_seed_gives_the_same_list_and_another_seed_another() -> None:
    assert make_pairs(ROWS, 0, 80, 443) == make_pairs(ROWS, 0, 80, 443)
    assert make_pairs(ROWS, 0, 80, 443) != make_pairs(ROWS, 1, 80, 443)


def test_of_equal_pairs_the_first_is_no_duplicate(full: list[Pair]) -> None:
    seen = set()
    for pair in full:
        if pair.url and pair.caption and pair.kind in (PICTURE, "duplicate"):
            key = fetched_as(pair.url), pair.caption
            assert (pair.reason == "duplicate") == (key in seen)
            seen.add(key)


def test_the_list_on_disk_is_the_list_in_memory_in_all_its_forms(web: Web, tmp_path: Path) -> None:
    table = pq.read_table(web.list_path)
    assert table["url"].to_pylist() == [pair.url for pair in web.pairs]
    assert table["caption"].to_pylist() == [pair.caption for pair in web.pairs]
    assert len(web.write(tmp_path / "list.jsonl").read_text("utf-8").splitlines()) == ROWS
    assert web.write(tmp_path / "list.csv").read_text("utf-8").startswith("url,caption")


def test_hosts_have_addresses_of_their_own_in_127_64_and_a_name_each() -> None:
    hosts = [host for host in make_hosts(8000) if host.address not in ("", "127.0.0.1")]
    assert len({host.address for host in hosts}) == len(hosts) == len({host.name for host in hosts})
    assert all(64 <= int(host.address.split(".")[1]) < 128 for host in hosts)


def test_the_recipe_overrides_are_valid(web: Web) -> None:
    assert parse_recipe(web.recipe, "the web").download.allow_addresses == ["127.64.0.0/10"]


# Pictures.


@pytest.mark.parametrize("format_", ["jpg", "png", "webp", "avif", "gif"])
def test_a_picture_is_composed_alike_every_time_and_decodes_to_its_size(format_: str) -> None:
    number = next(number for number in range(64) if extension(number) == format_)
    data = compose(0, number)
    assert data == compose(0, number)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert (pixels.shape[1], pixels.shape[0]) == size(0, number)


async def test_a_picture_is_kept_in_the_cache_and_served_from_there(web: Web) -> None:
    pair = a_pair(web, PICTURE)
    assert pair.url is not None
    _, _, first = await ask(web, pair.url)
    kept = web.cache / pair.url.rpartition("/")[2]
    assert kept.read_bytes() == first
    kept.write_bytes(first + b"mark")
    _, _, second = await ask(web, pair.url)
    kept.write_bytes(first)
    assert second == first + b"mark"


async def test_several_clients_of_one_new_picture_get_the_same_bytes(web: Web) -> None:
    number = picture_count(ROWS) - 1
    (web.cache / picture_name(number)).unlink(missing_ok=True)
    host = next(host for host in web.hosts if host.role == PLAIN and host.scheme == "http")
    url = f"http://{host.name}:{web.ports['http']}/pictures/9/{picture_name(number)}"
    replies = await asyncio.gather(*(ask(web, url) for _ in range(4)))
    assert {body for _, _, body in replies} == {compose(0, number)}
    assert web.peaks()[host.name] >= 2


# Answers.

STATUSES = {
    "not-found": [404], "gone": [410], "error-500": [500, 500], "busy-then-ok": [429, 200],
    "unavailable-then-ok": [503, 200], "redirect": [301],
}  # fmt: skip


@pytest.mark.parametrize("kind", STATUSES)
async def test_statuses_come_in_the_order_promised(web: Web, kind: str) -> None:
    url = a_pair(web, kind).url
    assert url is not None
    before = web.hits().get(fetched_as(url), 0)
    if kind.endswith("then-ok"):
        assert before == 0
    answers = [await ask(web, url) for _ in STATUSES[kind]]
    assert [status for status, _, _ in answers] == STATUSES[kind]
    if kind.endswith("then-ok"):
        assert answers[0][1]["retry-after"] == "1"
    assert web.hits()[fetched_as(url)] == before + len(answers)


STARTS = {
    "html": b"<!doctype html", "svg": b"<?xml", "bmp": b"BM", "png-bomb": b"\x89PNG", "gif-bomb": b"GIF89a",
    "cut-jpeg": b"\xff\xd8", "turned": b"\xff\xd8", "cmyk": b"\xff\xd8", "grey": b"\xff\xd8", "sixteen-bit": b"\x89PNG",
    "alpha": b"\x89PNG", "palette": b"\x89PNG", "animated": b"GIF89a", "progressive": b"\xff\xd8",
    "wrong-type": b"\xff\xd8",
    "no-length": b"\xff\xd8", "gzip-coded": b"\x1f\x8b", "gzip-bomb": b"\x1f\x8b", "größe and spaces": b"\xff\xd8",
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", STARTS)
async def test_bodies_are_of_their_kind(web: Web, kind: str) -> None:
    url = a_pair(web, kind).url
    assert url is not None
    status, headers, body = await ask(web, url)
    assert status == 200
    assert body.startswith(STARTS[kind])
    assert headers.get("content-length") == (None if kind == "no-length" else str(len(body)))


HEADERS = {
    "noai": ("x-robots-tag", "noai"), "noai-for-us": ("x-robots-tag", "pairmill: NoAI"),
    "tdm-reserved": ("tdm-reservation", "1"), "no-training": ("content-usage", "train-ai=n"),
    "many-headers": ("x-filler-199", "x"), "huge-header": ("x-filler", "x" * 100_000),
    "declared-too-large": ("content-length", "5000000000"), "chunked": ("transfer-encoding", "chunked"),
    "redirect-to-file": ("location", "file:///"), "redirect-to-private": ("location", "http://127.0.0.1:"),
    "redirect-loop": ("location", "/redirect-loop/"), "redirect-to-disallowed": ("location", "http://robots-all"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
async def test_headers_say_what_the_kind_says(web: Web, kind: str) -> None:
    url = a_pair(web, kind).url
    assert url is not None
    _, headers, _ = await ask(web, url)
    name, value = HEADERS[kind]
    assert value in headers[name]


async def test_six_hops_take_six_redirects_to_a_picture(web: Web) -> None:
    url = a_pair(web, "six-hops").url
    assert url is not None
    statuses = []
    for _ in range(7):
        status, headers, body = await ask(web, url)
        statuses.append(status)
        url = "/".join(url.split("/")[:3]) + headers.get("location", "")
    assert [status // 100 for status in statuses] == [3] * 6 + [2]
    assert body.startswith(b"\xff\xd8")


@pytest.mark.parametrize("kind", ["reset-at-once", "reset-in-body"])
async def test_resets_reset(web: Web, kind: str) -> None:
    url = a_pair(web, kind).url
    assert url is not None
    with pytest.raises(ConnectionResetError):
        await ask(web, url)


async def test_a_reset_that_passes_is_followed_by_the_picture(web: Web) -> None:
    url = a_pair(web, "reset-then-ok").url
    assert url is not None
    with pytest.raises(ConnectionResetError):
        await ask(web, url)
    assert (await ask(web, url))[0] == 200


async def test_a_short_body_ends_before_its_length(web: Web) -> None:
    url = a_pair(web, "short-body").url
    assert url is not None
    _, headers, body = await ask(web, url)
    assert 0 < len(body) < int(headers["content-length"])


@pytest.mark.parametrize(("kind", "least", "most"), [("trickle", 3, 10), ("endless-body", 1_000_000, 10_000_000)])
async def test_a_body_that_does_not_end_comes_at_its_pace(web: Web, kind: str, least: int, most: int) -> None:
    url = a_pair(web, kind).url
    assert url is not None
    _, _, body = await ask(web, url, wait=1.2)
    assert least <= len(body) <= most


async def test_a_stall_says_nothing(web: Web) -> None:
    url = a_pair(web, "stall").url
    assert url is not None
    with pytest.raises(TimeoutError):
        await ask(web, url, wait=0.3)


async def test_endless_100_says_continue(web: Web) -> None:
    url = a_pair(web, "endless-100").url
    assert url is not None
    status, _, body = await ask(web, url, wait=0.7)
    assert status == 100
    assert b"HTTP/1.1 100 Continue" in body


@pytest.mark.parametrize(
    ("role", "status", "says"),
    [("robots-all", 200, b"Disallow: /\n"), ("robots-us", 200, b"pairmill"), ("robots-500", 500, b""),
     ("robots-403", 403, b""), ("robots-usage", 200, b"train-ai=n")],
)  # fmt: skip
async def test_robots_txt_says_what_its_host_is_for(web: Web, role: str, status: int, says: bytes) -> None:
    host = next(host for host in web.hosts if host.role == role)
    found, _, body = await ask(web, f"http://{host.name}:{web.ports['http']}/robots.txt")
    assert found == status
    assert says in body


async def test_plain_hosts_have_no_robots_txt_or_one_that_allows_pictures(web: Web) -> None:
    plain = [host for host in web.hosts if host.role == PLAIN and host.scheme == "http"]
    for host in plain[:6]:
        status, _, body = await ask(web, f"http://{host.name}:{web.ports['http']}/robots.txt")
        number = [other for other in web.hosts if other.role == PLAIN].index(host)
        assert status == (404 if host.robots is None else 200)
        assert (b"Disallow" in body) == (number % 3 == HIDES)


@pytest.mark.parametrize("kind", TLS_KINDS)
async def test_bad_certificates_fail_verification(web: Web, kind: str) -> None:
    url = a_pair(web, kind).url
    assert url is not None
    with pytest.raises(ssl.SSLCertVerificationError):
        await ask(web, url)


async def test_nobody_listens_at_a_closed_host(web: Web) -> None:
    url = a_pair(web, "closed").url
    assert url is not None
    with pytest.raises(ConnectionRefusedError):
        await ask(web, url)


async def test_the_canary_counts_connections_to_private_addresses(tmp_path: Path) -> None:
    with Web(tmp_path, ROWS, cache=tmp_path / "cache") as web:
        assert web.canary() == 0
        _, writer = await asyncio.open_connection("127.0.0.1", web.ports["http"])
        writer.close()
        await asyncio.sleep(0.05)
        assert web.canary() == 1


def test_a_taken_port_is_one_clear_error(web: Web, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot listen.*127\.6.*in use"):
        Web(tmp_path, ROWS, http_port=web.ports["http"]).start()


async def test_keep_alive_serves_several_requests_and_closing_hosts_close(web: Web) -> None:
    for closes in (False, True):
        host = next(h for h in web.hosts if h.role == PLAIN and h.scheme == "http" and h.closes == closes)
        reader, writer = await asyncio.open_connection(host.address, web.ports["http"])
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write_eof() if closes else None
        text = (await asyncio.wait_for(reader.read(1 << 16), 5)).decode()
        while not closes and text.count("HTTP/1.1 404") < 2:
            text += (await asyncio.wait_for(reader.read(1 << 16), 5)).decode()
        assert text.count("HTTP/1.1 404") == (1 if closes else 2)
        writer.close()
