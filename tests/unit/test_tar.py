"""Tar headers of our own making against the standard library's."""

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tar import TarMembers


@given(
    name=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=100),
    size=st.integers(0, 8**11 - 1),
    mode=st.sampled_from([0o444, 0o644]),
)
def test_a_header_is_the_bytes_that_tarfile_writes(name: str, size: int, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, mode
    assert TarMembers(mode).header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("a" * 101, 1), ("é.jpg", 1), ("a.jpg", 8**11)])
def test_what_does_not_fit_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError):
        TarMembers(0o644).header(name, size)
