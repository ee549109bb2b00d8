"""Hash lists: what a line may be, what matches, and that nothing slips through a list that cannot be used."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from skimage import data as photos

from pipeline.dedupe.hashes import hash_pixels
from pipeline.download.blocklist import Blocklist
from pipeline.errors import InputError

BODY, URL = b"body", "http://a.example/1"
SHA1 = hashlib.sha1(BODY).hexdigest()
PDQ = "f8f8f0cee0f4a84f06370a22038f63f0b36e2ed596621e1d33e6b39c4e9c9b22"


def written(folder: Path, *lines: str, name: str = "list") -> Blocklist:
    (folder / name).write_text("\n".join(lines))
    return Blocklist([str(folder / name)])


def flipped(pdq: str, bits: int) -> str:
    return f"{int(pdq, 16) ^ ((1 << bits) - 1):064x}"


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("prefix", [True, False])
def test_bytes_match_by_any_hash_whether_it_is_known_already_or_not(tmp_path: Path, kind: str, prefix: bool) -> None:
    digest = hashlib.new(kind, BODY).hexdigest()
    blocklist = written(tmp_path, "# known", f"{kind}:{digest}" if prefix else digest.upper())
    assert blocklist.body(BODY, {}) == ("blocklisted", f"{kind} {digest}")
    assert blocklist.body(BODY, {kind: digest}) == ("blocklisted", f"{kind} {digest}")
    assert blocklist.body(b"another", {}) is None


def test_urls_match_by_md5(tmp_path: Path) -> None:
    digest = hashlib.md5(URL.encode()).hexdigest()
    for line in (digest, f"url_md5:{digest}"):
        blocklist = written(tmp_path, line)
        assert blocklist.url(URL) == ("blocklisted", f"url_md5 {digest}")
        assert blocklist.url(URL + "0") is None
    assert written(tmp_path, f"md5:{digest}").url(URL) is None


@pytest.mark.parametrize(("bits", "matches"), [(0, True), (31, True), (32, False)])
def test_pdq_matches_up_to_31_bits(tmp_path: Path, bits: int, matches: bool) -> None:
    blocklist = written(tmp_path, "pdq:" + "0" * 64, f"pdq:{PDQ}")
    found = blocklist.image(flipped(PDQ, bits), 100)
    assert found == (("blocklisted", f"pdq {PDQ} at distance {bits}") if matches else None)


@pytest.mark.parametrize(("quality", "matches"), [(50, True), (49, False)])
def test_pdq_of_low_quality_says_nothing(tmp_path: Path, quality: int, matches: bool) -> None:
    assert (written(tmp_path, f"pdq:{PDQ}").image(PDQ, quality) is not None) is matches


def test_pdq_is_asked_for_where_a_list_has_some(tmp_path: Path) -> None:
    assert written(tmp_path, f"pdq:{PDQ}").has_pdq
    assert not written(tmp_path, "0" * 64).has_pdq


def test_a_smaller_copy_of_a_listed_photo_matches_by_pdq(tmp_path: Path) -> None:
    photo = np.ascontiguousarray(photos.astronaut()[..., ::-1])
    known, copy = hash_pixels(photo), hash_pixels(np.ascontiguousarray(photo[::2, ::2]))
    other = hash_pixels(np.ascontiguousarray(photos.coffee()[..., ::-1]))
    blocklist = written(tmp_path, f"pdq:{known.pdq}")
    assert blocklist.image(copy.pdq, copy.quality) is not None
    assert blocklist.image(other.pdq, other.quality) is None


def test_another_list_brings_its_own_reason(tmp_path: Path) -> None:
    blocklist = Blocklist()
    blocklist.add([f"sha1:{SHA1}", f"pdq:{PDQ}"], "the root's own", "retracted")
    blocklist.add([SHA1], "another list")
    assert blocklist.body(BODY, {}) == ("retracted", f"sha1 {SHA1}")
    assert blocklist.image(PDQ, 100) == ("retracted", f"pdq {PDQ} at distance 0")


@pytest.mark.parametrize(
    "line", ["zz", "abc", "0" * 63, "g" * 64, "pdq:" + "0" * 63, "sha3:" + "0" * 64, ":" + "0" * 64]
)
def test_a_line_that_is_no_hash_is_refused_by_file_and_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"list:2: .* is no md5, sha1 or sha256"):
        written(tmp_path, "0" * 64, line)


def test_a_list_named_after_pdq_must_say_what_its_hashes_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"known_pdq.txt:1: 64 digits alone are a sha256"):
        written(tmp_path, PDQ, name="known_pdq.txt")
    assert written(tmp_path, f"pdq:{PDQ}", name="known_pdq.txt").has_pdq


def test_a_list_may_be_written_on_windows(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf" + SHA1.encode() + b"\r\n\r\n# end\r\n")
    assert Blocklist([str(tmp_path / "list")]).body(BODY, {}) == ("blocklisted", f"sha1 {SHA1}")


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"download\.blocklists: cannot read"):
        Blocklist([str(tmp_path / "missing")])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"download\.blocklists: cannot read"):
        Blocklist([str(tmp_path / "binary")])
