"""Tombstones: what they recognise, and that they do not say what they stand for."""

import hashlib

import numpy as np
import pytest

from pipeline.retract.tombstone import Tombstones, near_pdq, tombstone

URL, FETCHED = "HTTP://Example.org/a b", "http://example.org/a%20b"


def stones(*entries: tuple[str, str]) -> Tombstones:
    return Tombstones({"0001": [tombstone(kind, value) for kind, value in entries]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("url", FETCHED),
        ("host", "example.org"),
        ("url_md5", hashlib.md5(URL.encode()).hexdigest()),
        ("url_md5", hashlib.md5(FETCHED.encode()).hexdigest()),
    ],
)
def test_a_url_is_recognised_by_itself_its_host_and_its_md5(kind: str, value: str) -> None:
    assert stones((kind, value)).url(URL) == "0001"
    assert stones((kind, value)).url("http://example.com/a%20b") is None


def test_another_port_is_the_same_host_and_another_path_another_url() -> None:
    assert stones(("host", "example.org")).url("https://example.org:8443/x") == "0001"
    assert stones(("host", "example.org")).url("https://www.example.org/x") is None
    assert stones(("url", FETCHED)).url("http://example.org/a") is None


@pytest.mark.parametrize("kind", ["sha256", "sha1", "md5"])
def test_bytes_are_recognised_by_each_of_their_hashes(kind: str) -> None:
    digest = hashlib.new(kind, b"image").hexdigest()
    assert stones((kind, digest)).body({kind: digest}) == "0001"
    assert stones((kind, digest)).body({kind: hashlib.new(kind, b"other").hexdigest()}) is None


def test_a_pool_image_is_recognised_by_a_listed_sha256() -> None:
    digest = hashlib.sha256(b"image").hexdigest()
    assert stones(("sha256", digest)).body({"pool_sha256": digest}) == "0001"


def test_one_kind_is_never_taken_for_another() -> None:
    digest = hashlib.md5(b"x").hexdigest()
    assert stones(("md5", digest)).has("uid", digest) is None
    assert stones(("uid", digest)).has("uid", digest) == "0001"


def test_only_a_pdq_hash_is_told_as_it_is() -> None:
    value = hashlib.sha256(b"x").hexdigest()
    for kind in ("md5", "sha1", "sha256", "url_md5", "url", "host", "uid"):
        assert value not in tombstone(kind, value)
    assert tombstone("pdq", value) == f"pdq {value}"


def test_no_tombstones_match_nothing() -> None:
    empty = Tombstones({})
    assert not empty
    assert empty.url(URL) is None
    assert empty.pdq("0" * 64, 100) is None


def test_pdq_matches_up_to_distance_31_from_quality_50() -> None:
    value = hashlib.sha256(b"picture").hexdigest()
    for flipped, quality, wanted in ((0, 100, "0001"), (31, 50, "0001"), (32, 100, None), (31, 49, None)):
        near = f"{int(value, 16) ^ ((1 << flipped) - 1):064x}"
        assert stones(("pdq", value)).pdq(near, quality) == wanted


def test_near_pdq_agrees_with_counting_bits_one_by_one() -> None:
    random = np.random.default_rng(3)
    listed = [random.bytes(32).hex() for _ in range(40)]
    flips = [sum(1 << int(bit) for bit in random.choice(256, size, replace=False)) for size in range(64)]
    values = [f"{int(listed[place % 40], 16) ^ flip:064x}" for place, flip in enumerate(flips)]
    words = np.frombuffer(bytes.fromhex("".join(listed)), np.uint64).reshape(-1, 4)
    wanted = [
        next((n for n, one in enumerate(listed) if (int(one, 16) ^ int(value, 16)).bit_count() <= 31), -1)
        for value in values
    ]
    assert near_pdq(words, values).tolist() == wanted
