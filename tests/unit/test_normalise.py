"""URLs as fetched, keys, text statistics and captions."""

import hashlib

import can_ada
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.ingest.normalise import (
    Fetchable,
    Unfetchable,
    located,
    normalise_url,
)


@pytest.mark.parametrize(
    ("given_url", "fetched", "host"),
    [
        ("http://example.com", "http://example.com/", "example.com"),
        ("HTTP://EXAMPLE.com:80/A b?q=a b#frag", "http://example.com/A%20b?q=a%20b", "example.com"),
        ("https://example.com:443/%7Ex", "https://example.com/%7Ex", "example.com"),
        ("https://example.com:8443/", "https://example.com:8443/", "example.com"),
        ("https://münchen.example/ä?ö", "https://xn--mnchen-3ya.example/%C3%A4?%C3%B6", "xn--mnchen-3ya.example"),
        ("  http://a.example/x\n", "http://a.example/x", "a.example"),
        ("http://a.example/x\ty", "http://a.example/xy", "a.example"),
        ("http://a.example/a/../../b/./c", "http://a.example/b/c", "a.example"),
        ("http:\\\\a.example\\x", "http://a.example/x", "a.example"),
        ("http://0x7f.1/", "http://127.0.0.1/", "127.0.0.1"),
        ("http://[::ffff:7f00:1]/", "http://[::ffff:7f00:1]/", "[::ffff:7f00:1]"),
        ("http://a.example/100%", "http://a.example/100%", "a.example"),
        ("http://a.example/\0x", "http://a.example/%00x", "a.example"),
    ],
)  # fmt: skip
def test_usable_urls_are_normalised_as_the_url_standard_says(given_url: str, fetched: str, host: str) -> None:
    assert normalise_url(given_url) == Fetchable(fetched, host)


@pytest.mark.parametrize(
    "given_url",
    [None, "", "  \n", "x.jpg", "/x.jpg", "//host/x.jpg", "www.example.com/x.jpg", "http:", "http://", "http:///x",
     "https:x", "http:/x", "http://?q", "http://#f", "http://a b/", "http://a:99999/", "http://[::1/", "http://%/",
     "http://a.example/\x1fx", "?q", "#f", "http://\ufffd/"],
)  # fmt: skip
def test_urls_without_a_usable_host_are_bad_urls(given_url: str | None) -> None:
    found = normalise_url(given_url)
    assert isinstance(found, Unfetchable)
    assert found.reason == "bad_url"
    assert found.detail


@pytest.mark.parametrize(
    "given_url",
    ["file:///etc/hostname", "data:image/png;base64,AAAA", "ftp://a.example/x", "gopher://a.example/", "C:\\x.jpg",
     "javascript:alert(1)", "mailto:a@b.example", "s3://bucket/key", "localhost:8080/x", " FILE:///x", "fi\nle:///x"],
)  # fmt: skip
def test_other_schemes_are_bad_schemes_on_their_text_alone(given_url: str) -> None:
    found = normalise_url(given_url)
    assert isinstance(found, Unfetchable)
    assert found.reason == "bad_scheme"


hosts = st.sampled_from(
    ["a.example", "B.Example.", "münchen.example", "127.1", "[::1]", "xn--4ca.example", "a_b.example"]
)
urls = st.builds(
    "{}{}{}{}/{}".format,
    st.sampled_from(["http://", "https://", "HTTP://", " https:\\\\"]),
    st.sampled_from(["", "user:pw@"]),
    hosts,
    st.sampled_from(["", ":80", ":443", ":8080"]),
    st.text(max_size=30),
)


@given(urls | st.text())
@example("http://a.example/?q#f#g")
@example("http://a.example/#")
def test_normalising_is_idempotent_and_agrees_with_the_standard_s_parser(url: str) -> None:
    found = normalise_url(url)
    if isinstance(found, Unfetchable):
        return
    assert normalise_url(found.url) == found
    parsed = can_ada.parse(url)
    assert parsed.protocol in ("http:", "https:")
    assert found.host == parsed.hostname != ""
    parsed.hash = ""
    assert found.url == parsed.href
    assert "#" not in found.url
    assert found.url.isascii()


@given(urls)
def test_what_the_parser_takes_we_take(url: str) -> None:
    try:
        can_ada.parse(url)
    except ValueError:
        assert isinstance(normalise_url(url), Unfetchable)
    else:
        assert isinstance(normalise_url(url), Fetchable) or "\x1f" in url


def rows(urls: list[str | None]) -> pa.Table:
    count = len(urls)
    return pa.table(
        {
            "row": range(count),
            "url": pa.array(urls, pa.large_string()),
            "reason": pa.nulls(count, pa.string()),
            "detail": pa.nulls(count, pa.large_string()),
        }
    )


def test_keys_are_the_hashes_of_host_and_url() -> None:
    table = located(rows(["HTTP://A.example:80/x#f", "nothing", "https://a.example:8443/"]))
    first = {name: table[name][0].as_py() for name in ("fetch_url", "hi", "lo", "reason")}
    assert first == {
        "fetch_url": "http://a.example/x",
        "hi": int(hashlib.sha256(b"a.example").hexdigest()[:16], 16),
        "lo": int(hashlib.sha256(b"http://a.example/x").hexdigest()[:16], 16),
        "reason": None,
    }
    assert table["hi"][2] == table["hi"][0], "a host's ports are one host"
    assert [table[name][1].as_py() for name in ("fetch_url", "hi", "lo", "reason")] == [None, None, None, "bad_url"]
