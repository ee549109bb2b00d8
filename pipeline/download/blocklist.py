"""Hash lists whose images must not be kept: sha256, sha1 or md5 of the bytes, md5 of the URL, PDQ of the picture."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.storage import open_store

if TYPE_CHECKING:
    from pipeline.retract.tombstone import Tombstones

PDQ_DISTANCE: Final = 31
PDQ_QUALITY: Final = 50
"""PDQ's own advice: at most 31 of 256 bits differ; below quality 50 a hash says nothing."""

_DIGITS: Final = {"md5": 32, "url_md5": 32, "sha1": 40, "sha256": 64, "pdq": 64}
_BARE: Final = {32: ("md5", "url_md5"), 40: ("sha1",), 64: ("sha256",)}
_HEX: Final = re.compile(r"[0-9a-f]+")


class Match(NamedTuple):
    reason: str
    """blocklisted, or what the list's owner made of it, such as retracted."""
    detail: str


OF_THE_IMAGE: Final = frozenset({
    "final_url", "bytes", "sha256", "sha1", "md5", "format", "original_width", "original_height", "width", "height",
    "exif",
})  # fmt: skip
"""What an outcome does not say of an image that was withdrawn."""

_WITHDRAWN: Final = "retraction "


def withdrawn_by(retraction: str) -> Match:
    """What matched a tombstone: nothing else is told of it."""
    return Match("blocklisted", f"{_WITHDRAWN}{retraction}")


def is_withdrawn(reason: str | None, detail: str | None) -> bool:
    """Whether a row ended by a tombstone, so that no hash of its bytes may be kept."""
    return reason == "blocklisted" and (detail or "").startswith(_WITHDRAWN)


class Blocklist:
    """Lines are a hash in hex (32 digits: md5 of bytes or URL; 40: sha1; 64: sha256) or `kind:hash`, which PDQ needs.

    Fails closed: a list that cannot be read or a line that is no hash is an InputError, not a line to skip. What was
    withdrawn from the ROOT (`tombstones`) comes before all lists.
    """

    def __init__(self, files: Sequence[str] = (), tombstones: "Tombstones | None" = None) -> None:
        self._tombstones = tombstones
        self._hashes: dict[tuple[str, str], str] = {}
        self._kinds: set[str] = set()
        self._pdq: list[tuple[str, str]] = []
        self._packed: npt.NDArray[np.uint64] | None = None
        for file in files:
            folder, _, name = file.rpartition("/")
            try:
                text = open_store(folder or ("/" if file.startswith("/") else ".")).read(name).decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"download.blocklists: cannot read {file}: {error}") from None
            self.add(text.split("\n"), file)

    def add(self, lines: Iterable[str], place: str, reason: str = "blocklisted") -> None:
        """Add a list; `place` names it in errors, and rows it matches end for `reason`. Where two lists hold a hash,
        the first one added decides. Raises InputError."""
        named_pdq = "pdq" in place.rpartition("/")[2].lower()
        for number, line in enumerate(lines, 1):
            entry = line.partition("#")[0].strip().lower()
            if not entry:
                continue
            kind, colon, digits = entry.rpartition(":")
            known = _DIGITS.get(kind) == len(digits) if colon else len(digits) in _BARE
            if not known or not _HEX.fullmatch(digits):
                raise InputError(
                    f"{place}:{number}: {entry[:80]!r} is no md5, sha1 or sha256 in hex, nor one of "
                    f"{', '.join(_DIGITS)} and a colon before it"
                )
            if named_pdq and not colon and len(digits) == _DIGITS["pdq"]:
                raise InputError(
                    f"{place}:{number}: 64 digits alone are a sha256, but the list's name says pdq; "
                    "write pdq:… or sha256:…"
                )
            if kind == "pdq":
                self._pdq.append((digits, reason))
                self._packed = None
            for one in (kind,) if colon else _BARE[len(digits)]:
                self._hashes.setdefault((one, digits), reason)
                self._kinds.add(one)

    def __bool__(self) -> bool:
        return bool(self._kinds or self._tombstones)

    @property
    def has_pdq(self) -> bool:
        return bool(self._pdq) or (self._tombstones is not None and self._tombstones.has_pdq)

    @property
    def has_urls(self) -> bool:
        return "url_md5" in self._kinds

    def url(self, url: str) -> Match | None:
        """What matched, for a URL as given (img2dataset's and LAION's url md5), or None."""
        if self._tombstones and (name := self._tombstones.url(url)):
            return withdrawn_by(name)
        if not self.has_urls:
            return None
        return self._match("url_md5", hashlib.md5(url.encode("utf-8", "replace"), usedforsecurity=False).hexdigest())

    def body(self, body: bytes, known: Mapping[str, str]) -> Match | None:
        """What matched among the hashes of a body, or None; `known` are those that are there already, by kind."""
        for kind in ("sha256", "sha1", "md5"):
            if kind in self._kinds or self._tombstones:
                digest = known.get(kind) or hashlib.new(kind, body, usedforsecurity=False).hexdigest()
                if self._tombstones and (name := self._tombstones.body({kind: digest})):
                    return withdrawn_by(name)
                if match := self._match(kind, digest):
                    return match
        return None

    def image(self, pdq: str, quality: int) -> Match | None:
        """The nearest PDQ entry within PDQ_DISTANCE of `pdq` (64 hex digits), or None."""
        if self._tombstones and (name := self._tombstones.pdq(pdq, quality)):
            return withdrawn_by(name)
        if not self._pdq or quality < PDQ_QUALITY:
            return None
        if self._packed is None:
            self._packed = np.frombuffer(bytes.fromhex("".join(entry for entry, _ in self._pdq)), ">u8").reshape(-1, 4)
        own = np.frombuffer(bytes.fromhex(pdq), ">u8")
        distances = np.bitwise_count(self._packed ^ own).sum(axis=1, dtype=np.int64)
        nearest = int(distances.argmin())
        if distances[nearest] > PDQ_DISTANCE:
            return None
        entry, reason = self._pdq[nearest]
        return Match(reason, f"pdq {entry} at distance {distances[nearest]}")

    def _match(self, kind: str, digest: str) -> Match | None:
        reason = self._hashes.get((kind, digest))
        return None if reason is None else Match(reason, f"{kind} {digest}")
