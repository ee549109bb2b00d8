"""Parts of adopt: img2dataset's messages as reasons, tars of every dialect, EXIF by the recipe."""

import hashlib
import io
import json
import tarfile

import pytest

from pipeline.adopt.measure import kept_exif
from pipeline.adopt.reasons import reason_of
from pipeline.adopt.tar import read_images
from schemas.statuses import STATUS_OF
from tests.pool_fixture import picture


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 404: Not Found", "http_error"),
        ("HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.",
         "too_many_redirects"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("<urlopen error [Errno 111] Connection refused>", "connect"),
        ("[Errno 104] Connection reset by peer", "connect"),
        ("Remote end closed connection without response", "connect"),
        ("IncompleteRead(10 bytes read, 90 more expected)", "truncated"),
        ("Use of image disallowed by X-Robots-Tag directive", "opt_out"),
        ("hash mismatch", "hash_mismatch"),
        ("unknown url type: 'data'", "bad_scheme"),
        ("'ascii' codec can't encode character '\\xe9' in position 9", "bad_url"),
        ("something nobody has seen", "connect"),
    ],
)  # fmt: skip
def test_a_failed_download_gets_the_reason_its_message_tells(message: str, reason: str) -> None:
    assert reason_of("failed_to_download", message)[0] == reason
    assert reason in STATUS_OF


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("image too small", "too_small"),
        ("image area too large", "too_many_pixels"),
        ("aspect ratio too large", "aspect_ratio"),
        ("Image decoding error", "decode_error"),
        ("OpenCV(4.8.0) error: (-215:Assertion failed) !buf.empty()", "decode_error"),
    ],
)
def test_a_failed_resize_gets_the_reason_its_message_tells(message: str, reason: str) -> None:
    assert reason_of("failed_to_resize", message)[0] == reason


def test_success_has_no_reason_an_http_code_is_kept_and_an_unknown_status_is_ours() -> None:
    assert reason_of("success", None) == (None, None)
    assert reason_of("failed_to_download", "HTTP Error 410: Gone") == ("http_error", 410)
    assert reason_of("half_done", None)[0] == "internal"


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_of_every_tar_dialect_are_found_where_they_lie(dialect: int) -> None:
    out = io.BytesIO()
    # Float times make PAX headers, as webdataset's writer does; long names make headers of their own in each dialect.
    names = ["a/000.jpg", "001.jpg", "001.json", "002.txt", f"{'long/' * 30}003.jpg", "./004.PNG"]
    if dialect == tarfile.USTAR_FORMAT:
        names[4] = f"{'long/' * 18}003.jpg"
    with tarfile.open(fileobj=out, mode="w", format=dialect) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            data = picture(number)
            info.size, info.mtime = len(data), 1.5  # type: ignore[assignment]
            if dialect == tarfile.USTAR_FORMAT:
                info.mtime = 1
            tar.addfile(info, io.BytesIO(data))
    whole = out.getvalue()
    found = read_images(io.BytesIO(whole), sized=True)
    assert found.broken is None
    assert sorted(found.of) == sorted(["a/000", "001", names[4].removesuffix(".jpg"), "004"])
    for number, name in ((0, "a/000"), (1, "001"), (5, "004")):
        image = found.of[name]
        assert whole[image.offset : image.offset + image.size] == picture(number)
        assert image.sha256 == hashlib.sha256(picture(number)).hexdigest()
        assert (image.kind, image.width, image.height) == ("jpeg", 16 + number % 5, 16)


def test_a_cut_tar_keeps_what_comes_before_the_cut() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(picture(number))
            tar.addfile(info, io.BytesIO(picture(number)))
    last = read_images(io.BytesIO(out.getvalue()), sized=False).of["2"]
    for cut, why in ((last.offset + 5, "cut short in 2.jpg"), (last.offset - 100, "ends at byte")):
        found = read_images(io.BytesIO(out.getvalue()[:cut]), sized=False)
        assert sorted(found.of) == ["0", "1"]
        assert why in (found.broken or "")
    damaged = bytearray(out.getvalue())
    damaged[last.offset - 512] ^= 1
    assert "damaged header" in (read_images(io.BytesIO(bytes(damaged)), sized=False).broken or "")


def test_exif_of_a_download_is_kept_as_the_recipe_says() -> None:
    given = json.dumps({"Image Make": "Camera", "GPS GPSLatitude": "[1, 2, 3]", "Image Artist": "A Person"})
    assert json.loads(kept_exif(given, "safe") or "") == {"Image Make": "Camera"}
    assert json.loads(kept_exif(given, "all") or "") == json.loads(given)
    assert kept_exif(given, "none") is None
    assert kept_exif("{}", "safe") is None
    assert kept_exif("not json", "all") is None
